from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import toy
from toy import protocol
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.engine.scoring import score_rows
from vmr_zoo.methods.base import Method
from vmr_zoo.metrics.settings import MetricSettings
from vmr_zoo.runs.directory import HEADER

FILES = {
    "config.yaml", "metrics.json", "predictions.jsonl", "model.safetensors", "manifest.json",
    "annotations.json", "environment.json", "status.json", "metrics.csv", "checkpoints",
    "overrides.yaml", "train.log",
}  # fmt: skip


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def state(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["state"]


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_directory_is_complete_without_partial_files(trained_toy):
    run = trained_toy
    assert {path.name for path in run.iterdir()} == FILES
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    header = metrics(run)[HEADER]
    assert header["method"] == "toy"
    assert header["origin"] == "simulated"
    assert header["selection"] == "published"
    assert header["epochs"] == 2
    assert header["parameters"] == 8 * 16 + 16 + 16 * 2 + 2
    assert state(run) == "finished"


def test_metrics_are_computed_from_the_predictions_file(trained_toy):
    stored = metrics(trained_toy)
    assert set(stored) == {HEADER, "iid", "ood", "selection"}
    for name, split in protocol().splits.items():
        if name != "train":
            scored = score_rows(rows(trained_toy), split, MetricSettings())
            assert scored == pytest.approx({k: v for k, v in stored[name].items() if v is not None}, abs=0)


def test_equal_seeds_give_equal_runs_and_other_seeds_do_not(train_toy, trained_toy):
    a, (_, b), (_, c) = trained_toy, train_toy(name="b"), train_toy("seed=1", name="c")
    assert same_weights(a, b)
    assert rows(a) == rows(b)
    assert not same_weights(a, c)


@pytest.mark.parametrize(
    ("number", "step", "code", "state_after"),
    [
        *((signal.SIGTERM, step, 143, "interrupted") for step in (1, 3, 4, 5)),
        (signal.SIGINT, 4, 130, "interrupted"),
        (0, 3, 2, "failed"),
        (0, 7, 2, "failed"),
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(train_toy, whole, number, step, code, state_after):
    """Three steps per epoch: a signal or a crash at the start of an epoch, within it and at its end."""
    stop = [f"+callbacks.stop.{key}={value}" for key, value in {"step": step, "signal": int(number)}.items()]
    stopped, run = train_toy("trainer.max_epochs=4", "+callbacks.stop._target_=toy.At", *stop, name="cut")
    assert stopped == code
    assert state(run) == state_after
    assert not (run / "metrics.json").exists()
    assert train_toy("trainer.max_epochs=4", "resume=true", name="cut")[0] == 0
    assert same_weights(whole, run)
    assert rows(whole) == rows(run)
    first, second = (torch.load(path / "checkpoints/last.ckpt", weights_only=True) for path in (whole, run))
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["epoch"] == second["epoch"] == 3
    assert all(torch.equal(first["state_dict"][name], value) for name, value in second["state_dict"].items())


def test_best_weights_are_the_ones_exported(train_toy):
    """With this rate the last epoch is not the best one, so that exporting the last weights would show."""
    _, run = train_toy("trainer.max_epochs=5", "method.training.optimizer.lr=0.05")
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] + 1 < 5, "choose another rate"
    exported = load_file(run / "model.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in best["state_dict"].items())
    assert metrics(run)[HEADER]["best_epoch"] == best["epoch"] + 1
    curve = (run / "metrics.csv").read_text().splitlines()
    column = curve[0].split(",").index("selection/mIoU")
    reached = [float(line.split(",")[column]) for line in curve[1:] if line.split(",")[column]]
    assert metrics(run)["selection"]["mIoU"] == pytest.approx(max(reached), abs=1e-3)


@pytest.mark.no_cover
@pytest.mark.parametrize("wanted", [False, True])
def test_training_compiles_the_method_where_that_is_chosen(train_toy, monkeypatch, wanted):
    traced = []

    def backend(graph, inputs):
        """Traces as any backend does, but compiles nothing."""
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(Method, "compile", lambda self: torch.nn.Module.compile(self, backend=backend))
    small = [f"method.network.{part}_layers=1" for part in ("encoder", "decoder")]
    code, _ = train_toy(
        f"compile={str(wanted).lower()}", "+trainer.fast_dev_run=true", *small, method="moment_detr"
    )
    assert code == 0
    assert bool(traced) == wanted


def test_no_result_is_overwritten(train_toy, capsys):
    _, run = train_toy()
    before = (run / "metrics.json").read_bytes(), (run / "metrics.json").stat().st_mtime_ns
    assert train_toy()[0] == 2
    assert "resume=true" in capsys.readouterr().err
    assert train_toy("resume=true")[0] == 0, "a finished run has nothing to resume"
    assert ((run / "metrics.json").read_bytes(), (run / "metrics.json").stat().st_mtime_ns) == before
    assert train_toy("resume=true", "method.training.optimizer.lr=0.5")[0] == 2
    assert "method.training.optimizer.lr was 0.02, now 0.5" in capsys.readouterr().err


def test_a_non_finite_loss_stops_training_and_names_its_terms(train_toy, capsys):
    code, run = train_toy("method.break_at=4")
    assert code == 2
    message = capsys.readouterr().err
    assert "step 4" in message
    assert "from odd (span=" in message
    assert "odd=nan" in message
    assert state(run) == "failed"
    assert all(
        torch.isfinite(v).all() for v in torch.load(run / "checkpoints/last.ckpt")["state_dict"].values()
    )


def test_eval_rebuilds_from_the_directory_alone(train_toy, vmr, tmp_path, monkeypatch):
    _, run = train_toy(name="first")
    moved = run.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    read, prepare = [], FeatureSet.prepare
    monkeypatch.setattr(FeatureSet, "prepare", lambda *args: (read.append(args[1].splits), prepare(*args)))
    assert vmr("eval", f"run={moved}", "split=ood") == 0
    assert vmr("eval", f"run={moved}", "split=[ood,val]") == 0
    needed = [[name for name, split in splits.items() if split.queries] for splits in read]
    assert needed == [["ood"], ["selection", "ood"]], "the features of other splits need not be there"
    assert {path.name for path in (moved / "eval").iterdir()} == {"ood-001", "ood-002", "selection-001"}
    assert metrics(moved / "eval/ood-002")["ood"] == metrics(moved)["ood"]
    assert rows(moved / "eval/ood-001") == [row for row in rows(moved) if row["split"] == "ood"]


def test_eval_refuses_misleading_requests(train_toy, vmr, capsys):
    _, run = train_toy()
    for args, part in (
        (["data=charades_cd", "paths.annotations=none"], "No annotation file none/charades_cd"),
        (["split=odd"], "Did you mean ood"),
        (["split=train"], "not scored on what it was trained on"),
        (["features=action_labels"], "features=… is for data=OTHER"),
        (["metrics=dense"], "metrics=… is for data=OTHER"),
    ):
        assert vmr("eval", f"run={run}", *args) == 2
        assert part in capsys.readouterr().err
    config = OmegaConf.load(run / "config.yaml")
    config.data.features.scale = 2.0
    OmegaConf.save(config, run / "config.yaml")
    assert vmr("eval", f"run={run}", "split=ood") == 2
    assert "scale: trained on 1.0, now 2.0" in capsys.readouterr().err


VDI = (
    "method.text._target_=toy.text_encoder",
    "method.network.segments=8",
    "method.network.clips=4",
    "method.network.diagonals=[3]",
    "method.network.map_dim=8",
    "method.network.layers=1",
    "method.network.joint_dim=8",
    "method.visual_context.heads=2",
    "method.spatial_dynamic=null",
    "method.training.loss_weights.spatial_dynamic=null",
)


def test_eval_changes_arguments_of_the_method(train_toy, vmr, capsys, tmp_path):
    """Figure 3 of VDI: one trained run retrieves by the whole query, by its nouns, by the rest."""
    code, run = train_toy(*VDI, name="runs/vdi", method="vdi")
    assert code == 0
    found = {}
    for reading in ("full", "static", "dynamic"):
        assert vmr("eval", f"run={run}", "split=iid", f"change={{method.retrieve_by:{reading}}}") == 0
        evaluated = run / f"eval/iid-{len(found) + 1:03d}"
        found[reading] = [row["pred_relevant_windows"] for row in rows(evaluated)]
        header = metrics(evaluated)[HEADER]
        assert header["change"] == [f"method.retrieve_by={reading}"]
        assert header["name"] == f"{metrics(run)[HEADER]['name']} with method.retrieve_by={reading}"
    assert found["full"] == [row["pred_relevant_windows"] for row in rows(run) if row["split"] == "iid"]
    assert found["static"] != found["full"]
    assert found["dynamic"] != found["full"]
    assert found["dynamic"][0] == found["dynamic"][1], "two sentences on one video differ in the noun only"
    assert found["static"][0] != found["static"][1]
    assert "withmethod.retrieve_by=dynamicontoy" in "".join(capsys.readouterr().out.split())  # wraps

    assert (
        vmr("eval", f"run={run}", "split=iid", "change={method.ranking.answers:1,method.ranking.nms_iou:0.3}")
        == 0
    )
    assert {len(row["pred_relevant_windows"]) for row in rows(run / "eval/iid-004")} == {1}
    assert metrics(run / "eval/iid-004")[HEADER]["change"] == [
        "method.ranking.answers=1",
        "method.ranking.nms_iou=0.3",
    ]
    assert vmr("eval", f"run={run}", "split=iid") == 0
    assert "change" not in metrics(run / "eval/iid-005")[HEADER]

    for change, part in (
        ("{method.retrieve_bye:static}", "Did you mean method.retrieve_by"),
        ("{method.contrast.margins:1}", "Did you mean method.contrast.margin"),
        ("{method._target_:toy.ToyMethod}", "Unknown argument of the method 'method._target_'"),
        ("{data.selection:ood}", "takes arguments of the method (method.…), found data.selection"),
        ("[method.ranking.answers]", "Expected change to be a mapping"),
        ("method.ranking.answers", "Expected change to be a mapping"),
        (
            "{method.network.joint_dim:4}",
            "does not fit the method in config.yaml beside it with method.network.joint_dim=4",
        ),
        ("{method.network.layers:2}", "with method.network.layers=2"),
    ):
        assert vmr("eval", f"run={run}", "split=iid", f"change={change}") == 2
        assert part in capsys.readouterr().err
    assert len(list((run / "eval").iterdir())) == 5

    out = tmp_path / "board.md"
    assert vmr("report", f"runs={tmp_path}/runs", "columns=[mIoU]", "format=markdown", f"out={out}") == 0
    assert out.read_text().count("\n| vdi") == 1
    assert " with " not in out.read_text()


def test_report_averages_seeds_and_keeps_apart_what_must_not_be_compared(train_toy, vmr, tmp_path, capsys):
    for seed in (0, 1):
        train_toy(f"seed={seed}", name=f"runs/toy{seed}")
    train_toy(name="runs/all", method="predict_all")
    train_toy("data.selection=ood", name="runs/selected_on_test")
    capsys.readouterr()
    out = tmp_path / "board.md"
    assert vmr("report", f"runs={tmp_path}/runs", "columns=[mIoU]", "format=markdown", f"out={out}") == 0
    first, second = out.read_text().split("###")[1:]
    fair, unfair = (second, first) if "test split 'ood'" in first else (first, second)
    assert "test split 'ood'" in unfair
    assert "SIMULATED" in fair
    values = [metrics(tmp_path / f"runs/toy{seed}")["iid"]["mIoU"] for seed in (0, 1)]
    mean, std = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert f"{mean:.2f} ± {std:.2f}" in fair
    assert fair.count("\n| toy†") == 1
    assert fair.count("\n| predict_all") == 1
    assert vmr("report", f"runs={tmp_path}/runs", "columns=[mIuO]") == 2
    assert "mIoU" in capsys.readouterr().err


def test_every_job_of_a_sweep_has_its_own_wandb_run(vmr, tmp_path, monkeypatch):
    monkeypatch.setenv("VMR_RUNS", str(tmp_path / "sweep"))
    arguments = (
        toy.SEARCH,
        "data=toy",
        "method=toy",
        "seed=0,1",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    )
    assert vmr("train", "-m", *arguments) == 0
    for seed in (0, 1):
        (run,) = (tmp_path / "sweep").glob(f"*/*/seed{seed}")
        assert len(list((run / "wandb").glob("offline-run-*"))) == 1
