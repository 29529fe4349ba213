"""Shared by the adapters of the Moment-DETR family: names of weights and options, post-processing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.settings import Rounding
from vmr_zoo.parity.case import Number, Released
from vmr_zoo.parity.weights import Replacement
from vmr_zoo.spans import to_start_end

SET_LOSSES = {
    "loss_span": "span_l1",
    "loss_giou": "span_giou",
    "loss_label": "label",
    "class_error": "class_error",
}
"""Our name by the authors', of the losses on the decoder's moments."""

ROUNDING = Rounding(decimals=4, clamp=(0, 150), multiple_of=2)
"""Of the windows that Moment-DETR and QD-DETR submit, on every data set."""


def projection_names(ours: str) -> tuple[str, Callable[[re.Match[str]], str]]:
    """Names the parts of the input projections, whose layers are LayerNorm, dropout, Linear and ReLU.

    Args:
        ours: our name of a projection up to "query" or "video".

    Returns:
        A rule of `WeightNames`.
    """

    def name(match: re.Match[str]) -> str:
        kind = {"txt": "query", "vid": "video"}[match[1]]
        place = 4 * int(match[2]) + (0 if match[3] == "LayerNorm" else 2)
        return f"{ours}{kind}.{place}.{match[4]}"

    return r"input_(txt|vid)_proj\.(\d+)\.(LayerNorm|net\.1)\.(weight|bias)", name


NEVER_USED = "the authors' network never uses it"
SHARED_NAMES: list[tuple[str, Replacement]] = [
    projection_names("encoder.project_"),
    (r"transformer\.encoder\.layers\.(\d+)\.self_attn\.(.*)", r"encoder.encoder.layers.\1.attention.\2"),
    (
        r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(linear[12]|activation)\.(.*)",
        lambda m: f"{'encoder.encoder' if m[1] == 'encoder' else 'decoder'}.layers.{m[2]}.ffn.{m[3]}.{m[4]}",
    ),
    (
        r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(norm[123])\.(.*)",
        lambda m: f"{'encoder.encoder' if m[1] == 'encoder' else 'decoder'}.layers.{m[2]}.{m[3]}.{m[4]}",
    ),
    (r"transformer\.decoder\.norm\.(.*)", r"decoder.norm.\1"),
    (r"span_embed\.(.*)", r"heads.spans.\1"),
    (r"class_embed\.(.*)", r"heads.classes.\1"),
    (r"saliency_proj\.(.*)", r"saliency.\1"),
]
_DECODER = {
    "sa_qcontent_proj": "self_query_content",
    "sa_qpos_proj": "self_query_position",
    "sa_kcontent_proj": "self_key_content",
    "sa_kpos_proj": "self_key_position",
    "sa_v_proj": "self_value",
    "self_attn.out_proj": "self_out",
    "ca_qcontent_proj": "cross_query_content",
    "ca_qpos_proj": "cross_query_position",
    "ca_qpos_sine_proj": "cross_query_sine",
    "ca_kcontent_proj": "cross_key_content",
    "ca_kpos_proj": "cross_key_position",
    "ca_v_proj": "cross_value",
    "cross_attn.out_proj": "cross_out",
}
ANCHOR_DECODER_NAMES: list[tuple[str, Replacement]] = [
    (
        rf"transformer\.decoder\.layers\.(\d+)\.({'|'.join(map(re.escape, _DECODER))})\.(.*)",
        lambda m: f"decoder.layers.{m[1]}.{_DECODER[m[2]]}.{m[3]}",
    ),
    (r"transformer\.decoder\.query_scale\.(.*)", r"decoder.sine_scale.\1"),
    (r"transformer\.decoder\.ref_point_head\.(.*)", r"decoder.position_head.\1"),
    (r"transformer\.decoder\.ref_anchor_head\.(.*)", r"decoder.width_head.\1"),
    (r"query_embed\.weight", r"decoder.anchors.weight"),
]
"""Weights of the decoder with learnable spans."""
UNUSED = {r"txt_position_embed\..*": NEVER_USED}

SHARED_SETTINGS = {
    "hidden_dim": "network.dim",
    "nheads": "network.heads",
    "dim_feedforward": "network.feedforward_dim",
    "enc_layers": "network.encoder_layers",
    "dec_layers": "network.decoder_layers",
    "num_queries": "network.queries",
    "n_input_proj": "network.projection_layers",
    "dropout": "network.dropout",
    "input_dropout": "network.input_dropout",
    "saliency_margin": "margin",
    "eos_coef": "criterion.background_weight",
    "set_cost_span": "criterion.cost_l1",
    "set_cost_giou": "criterion.cost_giou",
    "set_cost_class": "criterion.cost_class",
    "lr": "training.optimizer.lr",
    "wd": "training.optimizer.weight_decay",
    "span_loss_coef": "training.loss_weights.span_l1",
    "giou_loss_coef": "training.loss_weights.span_giou",
    "label_loss_coef": "training.loss_weights.label",
    "lw_saliency": "training.loss_weights.margin",
}
"""Key below `method` by the authors' option."""

_ONLY = {"pre_norm": False, "use_txt_pos": False, "span_loss_type": "l1", "position_embedding": "sine"}


def settings(
    options: Mapping[str, Any], names: Mapping[str, str], also: Sequence[str] = ()
) -> dict[str, Any]:
    """Translates the authors' options.

    Args:
        options: the authors' options by name.
        names: dotted key below `method` by option.
        also: other options that must be present.

    Returns:
        Values by dotted key below `method`.

    Raises:
        VmrError: if an option is missing, or has a value that we do not implement (no released script uses
            it).
    """
    missing = sorted({*names, *also} - options.keys())
    if missing:
        raise VmrError(
            f"The authors' options lack {', '.join(missing)}. Is this a checkpoint of this method?"
        )
    for option, only in _ONLY.items():
        if options.get(option, only) != only:
            raise VmrError(
                f"The authors' option {option} is {options[option]}; vmr_zoo implements only {only}, which "
                "all released scripts use."
            )
    return {key: options[option] for option, key in names.items()}


def video_dim(weights: Mapping[str, Tensor]) -> int:
    """Reads the width of the video features, without the two channels of TEF, from the first LayerNorm."""
    return len(weight_of(weights, "input_vid_proj.0.LayerNorm.weight")) - 2


def query_dim(weights: Mapping[str, Tensor]) -> int:
    """Reads the width of the token features from the first LayerNorm."""
    return len(weight_of(weights, "input_txt_proj.0.LayerNorm.weight"))


def weight_of(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Returns one of the authors' weights.

    Raises:
        VmrError: if the checkpoint has no weight of that name.
    """
    if name not in weights:
        raise VmrError(f"The checkpoint has no weight '{name}': it is not of the Moment-DETR family.")
    return weights[name]


def post_windows(
    logits: Tensor, spans: Tensor, seconds: Tensor, clip_seconds: float, max_clips: int
) -> NDArray[np.float64]:
    """Ranks windows as the released inference: sort, four decimals, clamp, nearest multiple of a clip.

    Args:
        logits: (B, M, 2), index 0 = foreground.
        spans: (B, M, 2) centre and width.
        seconds: (B,) length of a span of 1.
        clip_seconds: seconds per clip.
        max_clips: maximum number of clips read.

    Returns:
        (B, M, 3) start in seconds, end in seconds, score.
    """
    rounding = Rounding(decimals=4, clamp=(0, max_clips * clip_seconds), multiple_of=clip_seconds)
    return rounded_windows(logits, spans, seconds, rounding)


def rounded_windows(
    logits: Tensor, spans: Tensor, seconds: Tensor, rounding: Rounding
) -> NDArray[np.float64]:
    """Ranks windows, (B, M, 3) start, end and score, with the given rounding of the times."""
    scores = logits.softmax(-1)[..., 0]
    order = scores.argsort(dim=1, descending=True, stable=True)
    ends = to_start_end(spans) * seconds[:, None, None]
    ends = ends.gather(1, order.unsqueeze(-1).expand(-1, -1, 2))
    windows = rounding.apply(ends.double().numpy())
    ranked = scores.gather(1, order).double().round(decimals=4).numpy()
    return np.concatenate((windows, ranked[..., None]), -1)


def compare_windows(
    post: NDArray[np.float64], key: str = "output/post_windows", seconds: float = 1e-6
) -> dict[str, Number]:
    """Tolerances of windows: `seconds` for times, one step of the four decimals for scores."""
    tolerance = torch.tensor([seconds, seconds, 1.5e-4], dtype=torch.float64)
    return {key: Number(torch.from_numpy(post), tolerance)}


def normalise(
    raw: Tensor, dims: Sequence[int], one: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> Tensor:
    """Normalises each feature source separately.

    Args:
        raw: (B, L, sum of dims), sources side by side.
        dims: the width of each source.
        one: normalises the vectors of a single source.

    Returns:
        (B, L, sum of dims).
    """
    return torch.cat([torch.from_numpy(one(x.numpy())) for x in raw.split(list(dims), -1)], -1)


_DATA = {
    "hl": "qvhighlights",
    "qvhighlights": "qvhighlights",
    "charades": "charades_sta",
    "charadesSTA": "charades_sta",
    "charades_sta": "charades_sta",
    "charadesCD": "charades_cd",
    "charades_cd": "charades_cd",
    "charades-cd": "charades_cd",
    "activitynet": "activitynet",
    "anet": "activitynet",
    "tacos": "tacos",
}


class DETRReleased(Released):
    """What the adapters of the family share."""

    def data(self, options: Mapping[str, Any]) -> str:
        """Returns our data set for the authors' option dset_name.

        Raises:
            VmrError: if conf/data has no such data set.
        """
        name = str(options.get("dset_name"))
        if name not in _DATA:
            raise VmrError(
                f"The checkpoint was trained on dset_name={name}, which corresponds to no data set of "
                "vmr_zoo. Name the data set: data=…"
            )
        return _DATA[name]
