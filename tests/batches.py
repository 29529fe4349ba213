"""Batches for tests: the contract's fields with random content, and padding that can be stretched."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vmr_zoo.types import Batch

VIDEO_DIM, QUERY_DIM, NARRATION_DIM, PATCH_DIM, PATCHES = 12, 10, 8, 6, 4
NARRATION_QUERY_DIM = 7
CLIPS, TOKENS, MOMENTS = (9, 5, 9, 7), (4, 6, 3, 5), (1, 2, 1, 3)


def mask_of(lengths: Collection[int], width: int | None = None) -> Tensor:
    lengths = torch.tensor(list(lengths))
    return torch.arange(width or int(lengths.max()))[None] < lengths[:, None]


def _padded(mask: Tensor, *shape: int) -> Tensor:
    x = torch.randn(*mask.shape, *shape)
    return x * mask.reshape(*mask.shape, *[1] * len(shape))


def make_batch(needs: Collection[str] = (), seed: int = 0, moments: Collection[int] = MOMENTS) -> Batch:
    """Four rows of different lengths; row 1 has no negative and no shift, rows 0 and 2 share a video."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    video_mask, query_mask, span_mask = mask_of(CLIPS), mask_of(TOKENS), mask_of(moments)
    rows = len(CLIPS)
    # Moments are disjoint, start on no clip boundary, and leave clips outside.
    edges = torch.rand(rows, 2 * span_mask.shape[1]).sort(1).values * 0.8 + 0.1
    spans = edges.reshape(rows, -1, 2) * span_mask.unsqueeze(-1)
    duration = torch.tensor(CLIPS) * 2.0 - 0.3
    batch: Batch = {
        "video": _padded(video_mask, VIDEO_DIM),
        "video_mask": video_mask,
        "query": _padded(query_mask, QUERY_DIM),
        "query_mask": query_mask,
        "spans": spans,
        "span_mask": span_mask,
        "duration": duration,
        "clip_seconds": torch.full((rows,), 2.0),
        "video_index": torch.tensor([0, 1, 0, 2]),
        "query_id": [f"q{i}" for i in range(rows)],
        "video_id": ["a", "b", "a", "c"],
    }
    if "narration" in needs:
        batch["narration_mask"] = mask_of((3, 2, 4, 1))
        batch["narration"] = _padded(batch["narration_mask"], NARRATION_DIM)
        ends = torch.rand(rows, 4, 2).sort(-1).values
        batch["narration_spans"] = ends * batch["narration_mask"].unsqueeze(-1)
    if "narration_query" in needs:  # another tokenizer: other lengths than `query`
        batch["narration_query_mask"] = mask_of((5, 2, 4, 3))
        batch["narration_query"] = _padded(batch["narration_query_mask"], NARRATION_QUERY_DIM)
    if "negative_query" in needs:
        batch["negative_query_mask"] = mask_of((5, 0, 3, 4))
        batch["negative_query"] = _padded(batch["negative_query_mask"], QUERY_DIM)
    if "sentence" in needs:
        batch["sentence"] = torch.randn(rows, VIDEO_DIM - 3)
    if "sibling_queries" in needs:
        batch["sibling_mask"] = mask_of((1, 0, 1, 2))
        batch["sibling_query"] = _padded(batch["sibling_mask"], QUERY_DIM)
    if "shift" in needs:
        order = torch.arange(video_mask.shape[1]).repeat(rows, 1)
        for row in (0, 2, 3):
            order[row, : CLIPS[row]] = order[row, : CLIPS[row]].roll(2)
        batch["shift_order"] = order
        batch["shifted_spans"] = ((spans + 0.1) * span_mask.unsqueeze(-1)).clamp(max=1)
        batch["shifted_spans"][1] = spans[1]
    if "patches" in needs:
        batch["patches"] = _padded(video_mask, PATCHES, PATCH_DIM)
    if "query_tokens" in needs:
        batch["query_tokens"] = torch.randint(1, 20, query_mask.shape) * query_mask
    if "query_words" in needs:
        batch["query_words"] = torch.randint(1, 20, query_mask.shape) * query_mask
    if "word_weights" in needs:
        batch["word_weights"] = torch.randint(1, 3, query_mask.shape) * query_mask.float()
    if "moment_clips" in needs:
        within = [[1, 2], [0], [2, 3], [0, 1]]
        batch["moment_clips"] = torch.zeros_like(video_mask)
        for row, clips in enumerate(within):
            batch["moment_clips"][row, clips] = True
        batch["moment_clips"] &= video_mask
    if "noun_mask" in needs:
        batch["noun_mask"] = mask_of((2, 0, 1, 3), query_mask.shape[1])  # row 1 has no noun
    if "saliency" in needs:
        batch["saliency_mask"] = video_mask & (torch.rand(video_mask.shape) < 0.6)
        batch["saliency"] = torch.randint(0, 12, video_mask.shape) * batch["saliency_mask"].float()
    if "all_spans" in needs:
        batch["all_spans"], batch["all_span_mask"] = spans, span_mask
    for key in ("video", "patches", "narration", "narration_mask", "narration_spans"):
        if key in batch:  # these belong to the video
            batch[key][2] = batch[key][0]  # type: ignore[literal-required]
    torch.set_rng_state(generator_state)
    return batch


AXIS_1 = {
    "video": "video_mask",
    "query": "query_mask",
    "spans": "span_mask",
    "narration": "narration_mask",
    "narration_spans": "narration_mask",
    "narration_query": "narration_query_mask",
    "negative_query": "negative_query_mask",
    "sibling_query": "sibling_mask",
    "shifted_spans": "span_mask",
    "patches": "video_mask",
    "query_tokens": "query_mask",
    "query_words": "query_mask",
    "word_weights": "query_mask",
    "moment_clips": "video_mask",
    "noun_mask": "query_mask",
    "saliency": "video_mask",
    "all_spans": "all_span_mask",
}
"""The mask of each field's second axis."""


def stretch(batch: Batch, extra: int, seed: int = 1) -> Batch:
    """The same batch with `extra` more padded places on every padded axis, all padding filled with noise."""
    generator = torch.Generator().manual_seed(seed)
    longer: Batch = dict(batch)  # type: ignore[assignment]
    for key, value in batch.items():
        if not isinstance(value, Tensor) or value.dim() < 2 or key == "sentence":
            continue
        if key == "shift_order":
            more = torch.arange(value.shape[1], value.shape[1] + extra).expand(len(value), -1)
            longer[key] = torch.cat((value, more), 1)
            continue
        mask = value if key.endswith("_mask") else batch[AXIS_1[key]]
        grown = torch.cat((mask, mask.new_zeros(len(mask), extra)), 1)
        if key.endswith("_mask"):
            longer[key] = grown
            continue
        place = torch.cat((value, value.new_zeros(len(value), extra, *value.shape[2:])), 1)
        noise = torch.rand(place.shape, generator=generator) * (5 if place.is_floating_point() else 20)
        where = grown.reshape(*grown.shape, *[1] * (place.dim() - 2))
        longer[key] = torch.where(where, place, noise.to(place.dtype))
    return longer


def row(batch: Batch, index: int) -> Batch:
    """One row alone, its padding cut off."""
    alone: Batch = {}
    for key, value in batch.items():
        if not isinstance(value, Tensor):
            alone[key] = value[index : index + 1]
            continue
        one = value[index : index + 1]
        if value.dim() >= 2 and key != "sentence":
            key_of_mask = "video_mask" if key in ("shift_order", "saliency_mask") else AXIS_1.get(key, key)
            one = one[:, : max(1, int(batch[key_of_mask][index].sum()))]
        alone[key] = one
    return alone


SMALL: dict[str, Any] = {
    "dim": 16,
    "feedforward_dim": 24,
    "joint_dim": 8,
    "pooling_dim": 8,
    "heads": 2,
    "layers": 2,
    "queries": 6,
    "segments": 4,
    "clips": 4,
    "diagonals": [3],
}
"""Sizes of small networks, by the argument's name or by its last word: `encoder_layers` are `layers`."""


def shrink(node: DictConfig) -> None:
    """Sets the sizes in a method's configuration to those of `SMALL`, at every depth.

    A new method needs no entry here if its sizes end in one of these words. `max_…` limits the data, not the
    network, and stays.
    """
    for key in map(str, node):
        if OmegaConf.is_interpolation(node, key) or key.startswith("max_"):
            continue
        if node[key] is None and key != "layers":  # all layers of a text encoder are too many here
            continue
        if OmegaConf.is_dict(node[key]):
            shrink(node[key])
        else:
            node[key] = SMALL.get(key, SMALL.get(key.rsplit("_", 1)[-1], node[key]))
