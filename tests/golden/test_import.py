"""`vmr import` of checkpoints in the authors' format."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

import toy
from vmr_zoo import run_dir
from vmr_zoo.config import compose
from vmr_zoo.import_checkpoint import configuration, read
from vmr_zoo.released.detr import SHARED_SETTINGS

sys.path.insert(0, str(Path(__file__).parent))
from authors import weights

GOLDEN = Path(__file__).parents[2] / ".." / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the names in ../shared/golden")


def checkpoint(
    method: str, path: Path, video_dim: int = toy.DIM, prefix: str = "", **options: object
) -> Path:
    """A checkpoint as the authors' code saves it: weights, options as a Namespace, the optimizer's state."""
    with np.load(GOLDEN / f"{method}_a.npz", allow_pickle=False) as stored:
        names = [key.removeprefix("param/") for key in stored.files if key.startswith("param/")]
        opt = json.loads(str(stored["config"])) | {"max_v_l": 75, "dropout": 0.1, **options}
    cfg = compose("parity", [f"method={method}", "case=x"])
    released = instantiate(cfg.released)
    dims = {
        "input_vid_proj.0.LayerNorm.weight": torch.zeros(video_dim + 2),
        "input_txt_proj.0.LayerNorm.weight": torch.zeros(toy.DIM),
    }
    from omegaconf import OmegaConf

    for key, value in released.settings(opt, dims).items():
        OmegaConf.update(cfg.method, key, value)
    model = weights(instantiate(cfg.method), released.names, names)
    model = {prefix + name: weight for name, weight in model.items()}
    saved = {"model": model, "optimizer": {"state": {}}, "epoch": 3, "opt": argparse.Namespace(**opt)}
    torch.save(saved, path)
    return path


@pytest.mark.parametrize("method", ["moment_detr", "bm_detr"])
def test_a_checkpoint_becomes_a_run_that_evaluates(vmr, method, tmp_path):
    file = checkpoint(method, tmp_path / "model_best.ckpt", prefix="module.")
    out = tmp_path / "run"
    assert vmr("import", toy.SEARCH, f"method={method}", "data=toy", f"checkpoint={file}", f"out={out}") == 0

    cfg = run_dir.load_config(out)
    assert cfg.variant == "released"
    assert cfg.method.span_unit == "clips"
    assert cfg.method.dim == 32
    assert cfg.method.dropout == 0.1
    assert cfg.method.video_dim == toy.DIM
    assert vmr("eval", f"run={out}", "split=iid") == 0
    rows = (out / "eval" / "iid-001" / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == 6
    assert json.loads((out / "metrics.json").read_text())["header"]["imported_from"] == "model_best.ckpt"

    assert vmr("import", toy.SEARCH, f"method={method}", "data=toy", f"checkpoint={file}", f"out={out}") == 2


def test_the_data_set_comes_from_the_options(tmp_path):
    released = instantiate(compose("parity", ["method=bm_detr", "case=x"]).released)
    cfg = configuration(released, {"dset_name": "hl"}, ["method=bm_detr", "checkpoint=a", "out=b"])
    assert cfg.data.name == "qvhighlights"
    assert cfg.variant == "released"
    chosen = configuration(released, {"dset_name": "hl"}, ["method=bm_detr", "data=charades_cd"])
    assert chosen.data.name == "charades_cd"


def test_features_of_another_width_are_refused(vmr, capsys, tmp_path):
    file = checkpoint("bm_detr", tmp_path / "wide.ckpt", video_dim=toy.DIM + 3)
    assert vmr("import", toy.SEARCH, "data=toy", f"checkpoint={file}", f"out={tmp_path / 'run'}") == 2
    assert "features=toy has 8 and 8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class EasyDict(dict):
    """As the package of that name defines it, as far as pickle sees."""


def test_an_easydict_is_read_as_a_dict(monkeypatch, tmp_path):
    module = ModuleType("easydict")
    monkeypatch.setattr(EasyDict, "__module__", "easydict")
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)
    options = EasyDict(hidden_dim=3)
    options.__dict__.update(options)
    torch.save({"model": {"module.w": torch.ones(2)}, "opt": options}, tmp_path / "easy.ckpt")
    monkeypatch.delitem(sys.modules, "easydict")
    weights_read, read_options = read(tmp_path / "easy.ckpt")
    assert read_options == {"hidden_dim": 3}
    assert weights_read["w"].tolist() == [1, 1]


class Unknown:
    """What a pickle could run on loading."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}, "opt": Unknown()}, "Unknown"),
        ({"state_dict": {}}, "'model' and 'opt'"),
        ({"model": {}, "opt": argparse.Namespace(hidden_dim=3)}, "lack"),
    ],
)
def test_other_files_are_refused(vmr, capsys, content, message, tmp_path):
    torch.save(content, tmp_path / "other.ckpt")
    arguments = (toy.SEARCH, "data=toy", f"checkpoint={tmp_path / 'other.ckpt'}", f"out={tmp_path / 'run'}")
    assert vmr("import", *arguments) == 2
    assert message in capsys.readouterr().err
    (tmp_path / "other.ckpt").write_bytes(b"no checkpoint")
    assert vmr("import", *arguments) == 2


def test_options_name_each_setting_once():
    assert len(set(SHARED_SETTINGS.values())) == len(SHARED_SETTINGS)
