"""`vmr import` of checkpoints in the authors' format."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

import toy
from golden.authors import weights
from golden.find import golden_case
from vmr_zoo.config.compose import compose
from vmr_zoo.errors import VmrError
from vmr_zoo.parity.checkpoint_import import imported_config, read_checkpoint
from vmr_zoo.parity.released.detr import SHARED_SETTINGS
from vmr_zoo.runs import directory

METHODS = ["bm_detr", "moment_detr", "qd_detr", "mesm", "mmn", "emb"]
_LAYER = (
    *(f"attention.{x}_lin" for x in ("q", "k", "v", "out")),
    *("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
)
DISTILBERT = {
    "embeddings.position_ids": torch.arange(20).unsqueeze(0),
    "embeddings.word_embeddings.weight": torch.zeros(1, 1),
    "embeddings.position_embeddings.weight": torch.zeros(1, 1),
    "embeddings.LayerNorm.weight": torch.zeros(1),
    "embeddings.LayerNorm.bias": torch.zeros(1),
    **{f"transformer.layer.{i}.{x}.weight": torch.zeros(1) for i in range(2) for x in _LAYER},
    **{f"transformer.layer.{i}.{x}.bias": torch.zeros(1) for i in range(2) for x in _LAYER},
}
"""DistilBERT's weights under the names of the transformers package."""


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr("vmr_zoo.blocks.text_encoder.distilbert", toy.text_encoder)


@functools.cache
def official(method: str, video_dim: int) -> tuple[dict, dict]:
    """Returns random weights by the authors' names in the sizes of the toy data, and the authors' options."""
    with np.load(golden_case(f"{method}_a.npz"), allow_pickle=False) as stored:
        params = [key for key in stored.files if key.startswith("param/")]
        like = {key.removeprefix("param/"): torch.from_numpy(stored[key]) for key in params}
        opt = json.loads(str(stored["config"])) | {"max_v_l": 75, "dropout": 0.1}
    if method == "mmn":
        like |= {f"text_encoder.bert.{name}": weight for name, weight in DISTILBERT.items()}
        opt = {}
    sizes = {
        "input_vid_proj.0.LayerNorm.weight": (video_dim + 2,),
        "input_txt_proj.0.LayerNorm.weight": (toy.DIM,),
        "video_affine.linear.conv1d.weight": (16, video_dim, 1),
        "embedding_net.linear.conv1d.weight": (16, toy.DIM, 1),
        "featpool.conv.weight": (16, video_dim, 1),
        "text_encoder.fc_out1.weight": (16, toy.DIM),
    }
    like |= {name: torch.zeros(size) for name, size in sizes.items() if name in like}
    cfg = compose("parity", [f"method={method}", "case=x"])
    released = instantiate(cfg.released)
    for key, value in released.settings(opt, like).items():
        OmegaConf.update(cfg.method, key, value, merge=False)
    return weights(instantiate(cfg.method), released.names, like), opt


def checkpoint(
    method: str,
    folder: Path,
    video_dim: int = toy.DIM,
    change: Callable[[dict], object] = lambda weights: None,
) -> Path:
    """Saves a checkpoint in the authors' format: container, options, states of optimizer and scheduler."""
    model, opt = official(method, video_dim)
    model = dict(model)
    change(model)
    optimizer = torch.optim.AdamW([torch.zeros(2, requires_grad=True)])
    step = torch.optim.lr_scheduler.StepLR(optimizer, 400)
    if method == "emb":
        (folder / "configs.json").write_text(json.dumps(opt | {"task": "charades", "mode": "train"}))
        path = folder / "model_best.pth.tar"
        torch.save({"epoch": 3, "step": 9, "state_dict": model, "optimizer": optimizer.state_dict()}, path)
    elif method == "mmn":  # from several processes, at fixed epochs
        path = folder / "pool_model_8e.pth"
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 13])
        parallel = {f"module.{name}": weight for name, weight in model.items()}
        saved = {"model": parallel, "optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict()}
        torch.save({**saved, "epoch": 8}, path)
    else:
        path = folder / "model_best.ckpt"
        saved = {"model": OrderedDict(model), "optimizer": optimizer.state_dict(), "epoch": 3}
        opt = argparse.Namespace(**opt | {"device": torch.device("cuda"), "pin_memory": True})
        torch.save({**saved, "lr_scheduler": step.state_dict(), "opt": opt}, path)
    return path


def run_import(vmr: Callable[..., int], method: str, file: Path, out: Path) -> int:
    return vmr("import", toy.SEARCH, f"method={method}", "data=toy", f"checkpoint={file}", f"out={out}")


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_becomes_a_run_that_evaluates(vmr, method, tmp_path):
    file, out = checkpoint(method, tmp_path), tmp_path / "run"
    assert run_import(vmr, method, file, out) == 0

    cfg = directory.load_config(out)
    assert cfg.variant == "released"
    assert cfg.method.video_dim == toy.DIM
    if method == "mmn":
        assert cfg.method.network.dim == 16
    elif method == "emb":
        assert (cfg.method.network.dim, cfg.method.network.heads) == (16, 2)
        assert cfg.method.snippets.max_snippets == 32
    else:
        assert (cfg.method.network.dim, cfg.method.network.heads) == (32, 4)
        assert cfg.method.network.dropout == 0.1
    if method in ("moment_detr", "bm_detr", "qd_detr"):
        assert cfg.method.span_unit.unit == "clips"

    released = instantiate(compose("parity", [f"method={method}", "case=x"]).released)
    stored = load_file(out / "model.safetensors")
    read_back, options = read_checkpoint(file)
    released.settings(options, read_back)  # some names depend on the options
    theirs = {released.names.ours(name): weight for name, weight in read_back.items()}
    del theirs[None]
    assert stored.keys() == theirs.keys()
    assert all(torch.equal(stored[k], released.names.keep(k, weight)) for k, weight in theirs.items())

    assert vmr("eval", f"run={out}", "split=iid") == 0
    rows = (out / "eval" / "iid-001" / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == 6
    header = json.loads((out / "metrics.json").read_text())["header"]
    assert header["imported_from"] == file.name
    assert [name for names in header["not_imported"].values() for name in names] == sorted(
        read_back.keys() - {name for name in read_back if released.names.ours(name)}
    )

    assert run_import(vmr, method, file, out) == 2, "existing runs are not overwritten"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_alone_are_a_checkpoint_too(vmr, prefix, tmp_path):
    model, _ = official("mmn", toy.DIM)
    torch.save({prefix + name: weight for name, weight in model.items()}, tmp_path / "bare.pth")
    assert run_import(vmr, "mmn", tmp_path / "bare.pth", tmp_path / "run") == 0


LACKING = {
    "bm_detr": ("FPM.0.weight", "matcher.w1.weight"),
    "moment_detr": ("saliency_proj.bias", "saliency.bias"),
    "qd_detr": ("global_rep_token", "encoder.token"),
    "mesm": ("unknown_token", "missing_word"),
    "mmn": ("text_encoder.bert.transformer.layer.1.ffn.lin2.bias", "text.model.transformer.layer.1.ffn.lin2"),
    "emb": ("predictor.start_block.0.conv1d.bias", "branch.predictor.endpoints.start_output.0.bias"),
}
SIZED = {
    "bm_detr": "input_vid_proj.0.LayerNorm.weight",
    "moment_detr": "input_txt_proj.0.LayerNorm.weight",
    "qd_detr": "input_vid_proj.0.LayerNorm.weight",
    "mesm": "output_txt_proj.1.bias",
    "mmn": "featpool.conv.weight",
    "emb": "position.pe",
}


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(vmr, capsys, method, tmp_path):
    gone, ours = LACKING[method]
    for change, named in (
        (lambda w: w.update({"more.0.weight": torch.ones(2)}), "'more.0.weight'"),
        (lambda w: w.pop(gone), ours),
        (lambda w: w.pop(SIZED[method]), SIZED[method]),
        (lambda w: w.update({gone: torch.ones(3, 3, 3)}), ours),
    ):
        file = checkpoint(method, tmp_path, change=change)
        assert run_import(vmr, method, file, tmp_path / "run") == 2
        assert named in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "options", "data"),
    [
        ("bm_detr", {"dset_name": "hl"}, "qvhighlights"),
        ("bm_detr", {"dset_name": "charades"}, "charades_sta"),
        ("moment_detr", {"dset_name": "hl"}, "qvhighlights"),
        ("qd_detr", {"dset_name": "hl"}, "qvhighlights"),
        ("mesm", {"dataset_name": "tacos"}, "tacos"),
        ("mesm", {"dataset_name": "charades-cg"}, "charades_cg"),
        ("emb", {"task": "activitynet"}, "activitynet"),
    ],
)
def test_the_data_set_comes_from_the_options(method, options, data):
    released = instantiate(compose("parity", [f"method={method}", "case=x"]).released)
    overrides = [f"method={method}", "checkpoint=a", "out=b"]
    cfg = imported_config(released, options, overrides)
    assert cfg.data.name == data
    assert cfg.variant == "released"
    assert (
        imported_config(released, options, [*overrides, "data=activitynet_cd"]).data.name == "activitynet_cd"
    )


@pytest.mark.parametrize("method", METHODS)
def test_without_a_data_set_in_the_options_data_is_required(method):
    released = instantiate(compose("parity", [f"method={method}", "case=x"]).released)
    for options in ({}, {"dset_name": "tvsum", "dataset_name": "tvsum", "task": "tvsum", "dataset": "tvsum"}):
        with pytest.raises(VmrError, match="data="):
            imported_config(released, options, [f"method={method}"])


def test_an_experiment_provides_data_and_settings_for_mmn():
    released = instantiate(compose("parity", ["method=mmn", "case=x"]).released)
    cfg = imported_config(released, {}, ["experiment=mmn/tacos", "method=mmn"])
    assert (cfg.data.name, cfg.method.network.clips, cfg.features.name) == ("tacos", 128, "mmn_tacos")


def test_options_that_are_missing_are_named(vmr, capsys, tmp_path):
    for method, option in (("qd_detr", "aux_loss"), ("mesm", "use_triplet"), ("bm_detr", "hidden_dim")):
        file = checkpoint(method, tmp_path)
        saved = torch.load(file, weights_only=False)
        delattr(saved["opt"], option)
        torch.save(saved, file)
        assert run_import(vmr, method, file, tmp_path / "run") == 2
        assert f"lack {option}" in capsys.readouterr().err


def test_features_of_another_width_are_refused(vmr, capsys, tmp_path):
    file = checkpoint("bm_detr", tmp_path, video_dim=toy.DIM + 3)
    assert vmr("import", toy.SEARCH, "data=toy", f"checkpoint={file}", f"out={tmp_path / 'run'}") == 2
    assert "features=toy has 8 and 8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class EasyDict(dict):
    """Pickles like the class of the package easydict."""


def test_an_easydict_is_read_as_a_dict(monkeypatch, tmp_path):
    module = ModuleType("easydict")
    monkeypatch.setattr(EasyDict, "__module__", "easydict")
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)
    options = EasyDict(hidden_dim=3)
    options.__dict__.update(options)
    torch.save({"model": {"module.w": torch.ones(2)}, "opt": options}, tmp_path / "easy.ckpt")
    monkeypatch.delitem(sys.modules, "easydict")
    weights_read, read_options = read_checkpoint(tmp_path / "easy.ckpt")
    assert read_options == {"hidden_dim": 3}
    assert weights_read["w"].tolist() == [1, 1]


class Unknown:
    """A class that a pickle must not load."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}, "opt": Unknown()}, "Unknown"),
        ({"network": {"w": torch.ones(2)}}, "'model' or 'state_dict', tensors by name"),
        ({"state_dict": {}}, "found state_dict"),
        ({"model": {"w": 3.0}}, "tensors by name"),
        ([torch.ones(2)], "found list"),
        ({"model": {"w": torch.ones(2)}, "opt": ["lr"]}, "options by name"),
        ({"model": {"w": torch.ones(2)}, "opt": argparse.Namespace(hidden_dim=3)}, "lack"),
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
