from __future__ import annotations

import json
from types import SimpleNamespace

import lightning
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.engine import bench, flops
from vmr_zoo.engine.bench_turns import Subject
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method, Training

COST = sorted((config_dir().parent / "experiments/cost").glob("*.yaml"))
SMALL = [
    "data=synthetic",
    "steps=2",
    "warmup=1",
    "threads=1",
    "data.batch_size=4",
    "data.protocol.train_videos=8",
    "data.protocol.test_videos=4",
    "data.protocol.durations=[3,6]",
    "features.video_dim=6",
    "features.query_dim=5",
    "method.network.dim=8",
    "method.network.heads=2",
    "method.network.feedforward_dim=8",
    "trainer.accelerator=cpu",
]


class Linear(Method):
    """One Linear map: (B, 7, 6) to (B, 7, 5)."""

    def __init__(self) -> None:
        super().__init__(Training(loss_weights={"mean": 1.0}, metrics=None))
        self.map = nn.Linear(6, 5)

    def losses(self, batch):
        return {"mean": self.map(batch["video"]).mean()}

    def predict(self, batch, *, details=False):
        raise NotImplementedError


def test_flops_are_those_of_the_matrix_products():
    batch = {
        "video": torch.randn(3, 7, 6),
        "video_mask": torch.arange(7) < torch.tensor([[7], [7], [0]]),
        "query_id": ["a", "b", "c"],
        "video_id": ["v", "v", "w"],
    }
    data = SimpleNamespace(train_dataloader=lambda: [batch, batch])
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    counted, sizes = flops.count_flops(Linear(), data, trainer, skip=0, steps=2)
    # Forward, and the gradient of the weights; the input needs none.
    assert counted == 2 * (2 * 3 * 7 * 6 * 5)
    assert sizes == {"query": 3, "video": 2, "clips": 7, "padding": pytest.approx(1 / 3)}


def test_words_for_narrations_are_part_of_the_work_that_is_measured(vmr, tmp_path, monkeypatch):
    monkeypatch.setitem(flops._MATRIX_SIZE, "cpu", 512)
    measured = []
    for number, words in enumerate(([], ["features/narration_query=random"])):
        out = tmp_path / str(number)
        assert vmr("bench", "method=lmr", f"out={out}", *words, *SMALL) == 0
        (row,) = json.loads((out / "bench.json").read_text())["rows"]
        measured.append(row["flops"])
    assert 0 < measured[0] < measured[1]


def test_a_row_is_stored_with_its_ratio_and_replaced_when_measured_again(vmr, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(flops._MATRIX_SIZE, "cpu", 512)
    file = tmp_path / "bench" / "bench.json"
    measure = ["method=qd_detr", f"out={file.parent}", *SMALL]
    assert vmr("bench", *measure) == 0
    first = json.loads(file.read_text())["rows"]
    file.write_text(json.dumps({"schema": bench.SCHEMA, "rows": [first[0] | {"threads": 64}, first[0]]}))
    assert vmr("bench", *measure) == 0
    assert "qd_detr-paper" in capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    assert [row["threads"] for row in rows] == [64, 1]
    row = rows[1]
    assert row["step"] != first[0]["step"]
    for name in ("step", "forward", "backward", "optimizer", "loader", "inference", "inference_per_query"):
        assert 0 <= row[name]["low"] <= row[name]["median"] <= row[name]["high"], name
    assert row["step"]["n"] == 2
    assert row["step"]["median"] > 0
    assert row["batch"]["query"] <= 4
    assert row["batch"]["clips"] <= 6
    assert 0 < row["efficiency"] < 1.5
    assert row["flops"] > 0
    assert row["peak_training_gb"] > 0
    reference = row["reference"]
    assert row["training_set"]["video"] == 8
    assert row["setup"] > 0
    assert row["ratio"]["step"] == pytest.approx(
        reference["step"] / reference["size"] / row["step_per_query"]["median"]
    )


def test_settings_are_measured_in_turns_and_compared_with_the_first(vmr, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(flops._MATRIX_SIZE, "cpu", 64)
    # Traced as for any backend, but not compiled.
    monkeypatch.setattr(Method, "compile", lambda self: nn.Module.compile(self, backend="eager"))
    turns = []
    turn = Subject.turn
    monkeypatch.setattr(Subject, "turn", lambda self: (turns.append(self.cfg), turn(self)))
    names = ["plain", "compiled", "method.training.optimizer.lr=0.5 seed=1"]
    settings = f"settings=[plain,compiled,'{names[2]}']"
    small = [*SMALL, "method.network.encoder_layers=1", "method.network.decoder_layers=1"]
    assert vmr("bench", "method=moment_detr", f"out={tmp_path}", *small, "rounds=2", settings) == 0
    printed = capsys.readouterr().out
    assert [cfg.compile for cfg in turns] == [False, True, False, False, True, False]
    assert [cfg.method.training.optimizer.lr == 0.5 for cfg in turns].count(True) == 2
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["comparison"]["setting"] for row in rows] == names
    assert all(name in printed for name in names)
    assert len({row["name"] for row in rows}) == 3
    plain, compiled, _ = rows
    for part in ("step", "inference"):
        assert plain["comparison"][part] == {"median": 1, "low": 1, "high": 1, "n": 2}
        assert compiled["comparison"][part]["low"] > 0
    assert [row["compilation"] is None for row in rows] == [True, False, True]
    assert compiled["compilation"]["training"] > compiled["step"]["high"]
    assert compiled["flops"] == plain["flops"] > 0
    assert plain["step"]["n"] == 2 * 2


def test_compilation_pays_after_the_steps_that_save_its_time():
    def row(step, compilation=None):
        return {"step": {"median": step}, "compilation": compilation}

    compilation = {"training": 10.25, "inference": 99.0}
    assert bench._pays_after(row(0.75), row(0.25, compilation)) == 21
    assert bench._pays_after(row(0.5), row(0.5, compilation)) is None
    assert bench._pays_after(row(0.5), row(0.3)) is None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["method=predict_all"], "no parameters"),
        (["method=qd_detr", "steps=0"], "steps"),
        (["settings=[plain,complied]"], "Did you mean compiled"),
        (["settings=[plain,plain]"], "twice"),
        (["settings=[plain]", "rounds=0"], "rounds"),
    ],
)
def test_settings_that_measure_nothing_are_refused(vmr, tmp_path, capsys, args, expected):
    assert vmr("bench", "data=synthetic", f"out={tmp_path}", *args) == 2
    assert expected in capsys.readouterr().err


def test_a_foreign_file_is_refused(tmp_path):
    file = tmp_path / "bench.json"
    file.write_text("[1]")
    with pytest.raises(VmrError, match="another directory"):
        bench.stored_rows(file)


@pytest.mark.parametrize(
    "recipe", sorted(path.stem for path in (config_dir() / "recipe" / "synthetic").glob("*.yaml"))
)
def test_every_synthetic_recipe_has_a_reference(recipe):
    known = ("moment_detr", "bm_detr", "qd_detr", "lmr", "mesm", "emb", "tea", "mmn", "vdi")
    method = next(name for name in known if recipe.startswith(name))
    reference = compose(
        "bench", [f"method={method}", "data=synthetic", f"recipe=synthetic/{recipe}"]
    ).reference
    assert reference.per in ("query", "video")
    assert reference.step > 0
    assert reference.inference > 0


@pytest.mark.parametrize("sweep", COST, ids=lambda path: path.stem)
def test_every_job_of_a_cost_sweep_is_measured_in_sizes_of_its_own(sweep, vmr, tmp_path, monkeypatch):
    measured = []

    def measure(cfg):
        measured.append(OmegaConf.to_container(cfg, resolve=True))
        return dict.fromkeys(set(bench.KEY) - {"name"})

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "print_rows", lambda rows: None)
    args = ["--config-dir", str(sweep.parent), "--config-name", sweep.stem, f"out={tmp_path}"]
    assert vmr("bench", *args, "method=vdi") == 0
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == len(measured) >= 3
    assert all(cfg["data"]["name"] == "synthetic" and cfg["threads"] == 1 for cfg in measured)
    assert all(measured.count(cfg) == 1 for cfg in measured)


def test_parameters_frozen_in_the_first_epochs_are_counted(monkeypatch):
    monkeypatch.setitem(flops._MATRIX_SIZE, "cpu", 64)
    small = ["method=mmn", "method/text=minilm", "data=synthetic", "recipe=none", "trainer.accelerator=cpu"]
    small += ["method.text.trained_layers=1", "+method.text.layers=2", "method.network.map_dim=8"]
    small += ["method.network.dim=8"]
    small += ["data.protocol.train_videos=2", "data.protocol.test_videos=2", "data.batch_size=2"]
    cfg = compose("bench", [*small, "steps=1", "warmup=0"])
    row = bench.measure(cfg)
    fresh = instantiate(cfg.method)
    layer = sum(one.numel() for one in fresh.text.model.encoder.layer[1].parameters())
    rest = sum(one.numel() for name, one in fresh.named_parameters() if not name.startswith("text."))
    assert row["parameters_trained"] == rest + layer
    assert row["parameters"] == sum(one.numel() for one in fresh.parameters())
