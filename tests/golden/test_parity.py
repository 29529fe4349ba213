"""`vmr parity` reproduces the authors' numbers, and fails on wrong ones."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from golden import authors
from golden.find import arrays, golden_case, saved
from vmr_zoo.config.compose import compose
from vmr_zoo.methods.base import Method
from vmr_zoo.parity.case import Case, Number, Released
from vmr_zoo.parity.check import build_released, check_case

CASES = {
    "moment_detr_a": 127,
    "moment_detr_b": 165,
    "bm_detr_a": 235,
    "bm_detr_b": 253,
    "qd_detr_a": 226,
    "qd_detr_b": 254,
    "mesm_a": 334,
    "mesm_b": 349,
    "mesm_c": 294,
    "mmn_a": 95,
    "mmn_b": 111,
    "emb_a": 583,
    "emb_b": 583,
}
"""How many arrays of each case are compared: a file that was cut short has fewer."""


@pytest.mark.parametrize("case", CASES)
def test_every_stored_number_is_reproduced(vmr, case, tmp_path):
    file, out = golden_case(f"{case}.npz"), tmp_path / "table.json"
    assert vmr("parity", f"method={case[:-2]}", f"case={file}", f"out={out}") == 0
    table = {line["key"]: line for line in json.loads(out.read_text())}
    groups = ("output", "loss", "grad", "after_step/", "match/", "target/iou")
    assert {key for key in arrays(f"{case}.npz") if key.startswith(groups)} <= table.keys()
    assert len(table) == CASES[case]
    assert all(line["passed"] for line in table.values())


@pytest.mark.parametrize("method", ["moment_detr", "bm_detr"])
@pytest.mark.parametrize(
    "key",
    [
        "param/class_embed.bias",
        "param/transformer.encoder.layers.1.self_attn.out_proj.weight",
        "input/raw_video",
        "loss/loss_giou",
        "grad/saliency_proj.weight",
        "after_step/query_embed.weight",
        "output/post_windows",
    ],
)
def test_a_wrong_number_fails(vmr, method, key, tmp_path):
    wrong = arrays(f"{method}_a.npz")
    wrong[key].reshape(-1)[0] += 2 if key.endswith("windows") else 5e-2  # one entry is enough
    np.savez(tmp_path / "wrong.npz", **wrong)
    assert vmr("parity", f"method={method}", f"case={tmp_path / 'wrong.npz'}") == 1


def test_an_array_that_nothing_recomputes_fails(vmr, tmp_path):
    more = arrays("moment_detr_a.npz") | {"output/something_else": np.zeros(3, np.float32)}
    np.savez(tmp_path / "more.npz", **more)
    assert vmr("parity", "method=moment_detr", f"case={tmp_path / 'more.npz'}") == 1


@pytest.mark.parametrize("change", ["missing", "unknown", "misshapen", "option"])
def test_a_case_that_does_not_fit_is_refused(vmr, capsys, change, tmp_path):
    other = arrays("bm_detr_a.npz")
    if change == "missing":
        del other["param/FPM.0.weight"]
    elif change == "unknown":
        other["param/FPM.4.weight"] = np.zeros(2, np.float32)
    elif change == "misshapen":
        other["param/FPM.0.weight"] = np.zeros((3, 3), np.float32)
    else:
        options = json.loads(str(other["config"])) | {"pre_norm": True}
        other["config"] = np.array(json.dumps(options))
    np.savez(tmp_path / "other.npz", **other)
    assert vmr("parity", "method=bm_detr", f"case={tmp_path / 'other.npz'}") == 2
    named = {"missing": "matcher.w1", "unknown": "FPM.4", "misshapen": "matcher.w1", "option": "pre_norm"}
    assert named[change] in capsys.readouterr().err


class Generated(NamedTuple):
    """A generated case, with sizes and options that no golden case has.

    Attributes:
        template: the golden case that provides names and all other options.
        options: options that differ from the template.
        draw: draws the inputs; a function of `authors`.
        sizes: shapes of the authors' weights that determine settings.
        lacks: regular expression of the template's keys that the case does not have, "#" for numbers.
    """

    template: str
    options: dict[str, Any]
    draw: Callable[[dict[str, Any], dict[str, torch.Tensor]], dict[str, np.ndarray]]
    sizes: dict[str, tuple[int, ...]]
    lacks: str = "(?!)"


SMALL = {"hidden_dim": 20, "nheads": 2, "dim_feedforward": 28, "num_queries": 4, "t_feat_dim": 7}
SOURCES = {"video_source_dims": [5, 4, 2], "a_feat_dim": 3}
ONE_LAYER = {
    "enc_layers": 1,
    "dec_layers": 1,
    "n_input_proj": 1,
    "num_recfw_layers": 1,
    "num_recss_layers": 1,
}
DEEP = {"enc_layers": 4, "dec_layers": 4, "n_input_proj": 3, "num_queries": 9}
NO_AUX = {"aux_loss": False, "span_loss_coef": 3, "loss_span_coef": 3, "eos_coef": 0.3, "dec_layers": 2}
WIDTHS = {"input_vid_proj.0.LayerNorm.weight": (13,), "input_txt_proj.0.LayerNorm.weight": (7,)}
AUX_LOSSES = r"loss\w*/.*_#"
FURTHER_LAYERS = (
    rf"{AUX_LOSSES}|output\w*/(aux|match_aux).*|grad/transformer.decoder.(query_scale|bbox_embed).*"
)


def family(
    template: str, options: dict[str, Any], clips: str, words: str, counts: str, *lacks: str
) -> Generated:
    """Generates a case of the Moment-DETR family; `clips`, `words` and `counts` list one number per row."""
    rows = [[int(n) for n in x.split()] for x in (clips, words, counts)]
    audio = SOURCES["a_feat_dim"] if template == "qd_detr_b" else 0
    widths = WIDTHS | {"input_vid_proj.0.LayerNorm.weight": (13 + audio,)}
    method = template[:-2]
    sources = {"video_source_dims": [11] if method == "qd_detr" else [5, 4, 2]}
    more = SMALL | sources | {"max_v_l": 20, "contrastive_hdim": 6, "a_feat_dim": audio or None}
    return Generated(
        template, more | options, lambda opt, _: authors.family_case(method, opt, *rows), widths, *lacks
    )


def mesm(
    template: str, options: dict[str, Any], clips: str, words: str, counts: str, *lacks: str
) -> Generated:
    """Generates a case of MESM; empty `counts` means one moment per row."""
    rows = [[int(n) for n in x.split()] for x in (clips, words, counts)]
    classes = 9 + (3 if template == "mesm_b" else 1)
    return Generated(
        template,
        SMALL | {"num_clips": [2, 1, 3], "vocab_size": 9, "max_words_l": 6} | options,
        lambda opt, _: authors.mesm_case(opt, 13, rows[0], rows[1], rows[2] or None),
        WIDTHS | {"output_txt_proj.1.bias": (classes,)},
        *lacks,
    )


def mmn(options: dict[str, Any], kernel: int, frames: list[int], sentences: list[int]) -> Generated:
    """Generates a case of MMN with three layers."""
    convolutions = {f"proposal_conv.convs.{i}.weight": (10, 12, kernel, kernel) for i in range(3)}
    return Generated(
        "mmn_a",
        options | {"batch_videos": len(frames)},
        lambda opt, _: authors.mmn_case(opt, (5, 7), frames, sentences),
        convolutions | {"featpool.conv.weight": (12, 5, 1), "text_encoder.fc_out1.weight": (6, 7)},
    )


def emb(options: dict[str, Any], longest: int, frames: list[int], words: list[int]) -> Generated:
    """Generates a case of EMB."""
    vectors = {"pad_vec": 1, "unk_vec": 1, "glove_vec": 19}
    return Generated(
        "emb_b",
        options,
        lambda _, like: authors.emb_case(like, 5, frames, words),
        {f"embedding_net.word_emb.{name}": (count, 7) for name, count in vectors.items()}
        | {
            "video_affine.linear.conv1d.weight": (24, 5, 1),
            "embedding_net.linear.conv1d.weight": (24, 7, 1),
            "encoder.f2f.layers.0.guide.conv_layers.0.weight": (24, 1, 5, 3),
            "position.pe": (longest, 24),
        },
    )


GENERATED = {
    "bm_detr, one layer, shifted": family(
        "bm_detr_a", ONE_LAYER | {"clip_length": 2}, "9 12", "4 3", "1 1", FURTHER_LAYERS
    ),
    "bm_detr, four layers, no margin": family(
        "bm_detr_a", DEEP | {"lw_saliency": 0}, "8 25 10", "4 3 6", "1 1 1"
    ),
    "bm_detr, ReLU, several moments": family(
        "bm_detr_b",
        {"transformer_activation": "relu"},
        "7 9 12",
        "4 3 5",
        "2 1 3",
        r"(grad|param)/.*activation\.weight",
    ),
    "moment_detr, one layer": family("moment_detr_a", ONE_LAYER, "9 12", "4 3", "1 2", FURTHER_LAYERS),
    "moment_detr, four layers": family(
        "moment_detr_b", DEEP | {"clip_length": 1}, "9 12 8", "4 3 8", "1 2 4"
    ),
    "moment_detr, last layer": family("moment_detr_b", NO_AUX, "9 12 8", "4 3 8", "1 2 1", AUX_LOSSES),
    "qd_detr, one layer": family("qd_detr_a", ONE_LAYER, "9 12", "4 3", "1 2", FURTHER_LAYERS),
    "qd_detr, four layers, audio": family(
        "qd_detr_b", DEEP | {"a_feat_dir": "x"}, "9 12 8", "4 3 8", "1 2 4"
    ),
    "qd_detr, last layer, one row": family("qd_detr_a", NO_AUX, "9", "4", "2", AUX_LOSSES),
    "mesm, one layer": mesm("mesm_a", ONE_LAYER, "9 7 12", "6 2 4 1 3 5", "", FURTHER_LAYERS),
    "mesm, no frame rate, longer texts": mesm(
        "mesm_b", DEEP | {"rank_coef": 3.0, "loss_recfw_coef": 0.5}, "9 7 12", "8 2 4 1 3 5", ""
    ),
    "mesm, graded clips": mesm("mesm_c", NO_AUX, "9 7 12 5 8 6", "6 2 4 1 3 5", "1 2 1 3 1 1", AUX_LOSSES),
    "mesm, no words": mesm(
        "mesm_a",
        {"rec_fw": False},
        "9 7 12",
        "6 2 4 1 3 5",
        "",
        r".*(rec_?fw|mlm_words).*|grad/enhance_encoder.*|(grad|param)/(output_txt_proj|masked_token|unknown_token).*",
    ),
    "mesm, no sentences": mesm(
        "mesm_b", {"rec_ss": False}, "9 7 12", "6 2 4 1 3 5", "", r".*(rec_ss|recon_feat|ss_reconstructor).*"
    ),
    "mmn, one video": mmn(
        {"num_clips": 4, "num_pre_clips": 8, "pooling_counts": [3], "top_k": 2}, 5, [30], [3]
    ),
    "mmn, sparse": mmn(
        {"num_clips": 16, "num_pre_clips": 16, "pooling_counts": [3, 2, 2]}, 3, [30, 9, 50, 17], [1, 4, 2, 1]
    ),
    "emb, uneven lengths": emb(
        {
            "num_heads": 3,
            "proposal_downscale": 4,
            "thresholds": [0.8, 0.2],
            "main_threshold": 0.2,
            "highlight_lambda": 2.0,
            "rank_lambda": 0.5,
            "num_train_steps": 30,
        },
        20,
        [18, 9, 3],
        [5, 1, 6],
    ),
    "emb, one row, one block": emb({"num_heads": 2, "main_threshold": 0.3}, 16, [7], [3]),
}


@pytest.mark.parametrize("own", GENERATED.values(), ids=GENERATED)
def test_generated_cases_pass_until_a_weight_changes(own, tmp_path):
    """A case generated from our own numbers has all keys of a golden case."""
    method = own.template[:-2]
    stored = arrays(f"{own.template}.npz")
    options = json.loads(str(stored["config"])) | own.options
    like = {
        k.removeprefix("param/"): torch.from_numpy(v) for k, v in stored.items() if k.startswith("param/")
    }
    like |= {name: torch.zeros(size) for name, size in own.sizes.items()}
    cfg = copy.deepcopy(composed(method))
    released = instantiate(cfg.released)
    for key, value in released.settings(options, like).items():
        OmegaConf.update(cfg.method, key, value, merge=False)
    network = instantiate(cfg.method)
    official = authors.weights(network, released.names, like)

    case = own.draw(options, like) | {"config": np.array(json.dumps(options))}
    case |= {f"param/{name}": weight.numpy() for name, weight in official.items()}
    buffers = {name for name, _ in network.named_buffers()}
    for name, weight in official.items():
        if released.names.ours(name) in buffers:
            case[f"output/train/bn/{name}"] = weight.numpy()
        else:
            case |= {f"{group}/{name}": weight.numpy() for group in ("grad", "after_step", "after3")}
    # Repeated, because arrays are computed from others: inputs first, then MMN's scores, then its answers.
    for _ in range(3 if method == "mmn" else 2):
        numbers = recomputed(method, released, case, tmp_path)
        case |= {key: number.value.detach().numpy() for key, number in numbers.items()}
    never = {key for key in case if key.startswith(("grad/", "after")) and key not in numbers}
    case = {key: value for key, value in case.items() if key not in never}

    assert {key for key, value in case.items() if value.dtype.kind == "f" and np.isinf(value).any()} == set()
    expected = {re.sub(r"\d+", "#", key) for key in stored} - {re.sub(r"\d+", "#", key) for key in case}
    assert {key for key in expected if not re.fullmatch(own.lacks, key)} == set()
    assert failing(method, released, case, tmp_path) == []

    head = {"mmn": "text_encoder.fc_out1.weight", "emb": "highlight_layer.conv1d.conv1d.weight"}
    key = f"param/{head.get(method, 'class_embed.weight')}"
    wrong = case | {key: case[key] * np.float32(1.1)}
    assert any(key.startswith("output/") for key in failing(method, released, wrong, tmp_path))


def recomputed(
    method: str, released: Released, content: dict[str, np.ndarray], folder: Path
) -> dict[str, Number]:
    case = saved(content, folder)
    return released.recompute(built(method, released, case), case)


def failing(method: str, released: Released, content: dict[str, np.ndarray], folder: Path) -> list[str]:
    case = saved(content, folder)
    return [v.key for v in check_case(released, built(method, released, case), case) if not v.passed]


def built(method: str, released: Released, case: Case) -> Method:
    return build_released(copy.deepcopy(composed(method)), released, case.options, case.group("param"))


@functools.cache
def composed(method: str) -> DictConfig:
    return compose("parity", [f"method={method}", "case=x"])


class _Kink(nn.Module):
    """One ReLU with a trained input."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([value, 1.0, -1.0]))
        self.relu = nn.ReLU()


class _OneReLU:
    """Recomputes the gradient of a ReLU, and spoils the weights, as a step of an optimizer does."""

    def recompute(self, method: _Kink, case: Case) -> dict[str, Number]:
        method.relu(method.x).sum().backward()
        gradient = method.x.grad
        method.x = nn.Parameter(torch.full((3,), 5.0))
        return {"grad/x": Number(gradient, 1e-6)}


@pytest.mark.parametrize(
    ("value", "stored", "passes"),
    [(1e-8, 1.0, True), (1e-8, 0.0, True), (-1e-8, 1.0, True), (1e-8, 0.5, False), (1e-4, 0.0, False)],
)
def test_an_input_of_a_kink_that_rounds_to_zero_may_lie_on_either_side(value, stored, passes, tmp_path):
    case = saved({"grad/x": np.array([stored, 1.0, 0.0], np.float32), "config": np.array("{}")}, tmp_path)
    (verdict,) = check_case(_OneReLU(), _Kink(value), case)
    assert verdict.passed == passes
    assert bool(verdict.note) == (passes and stored != (value > 0))
