"""Generates weights and cases in the format of the golden cases, at any size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vmr_zoo.errors import VmrError
from vmr_zoo.parity.weights import WeightNames

Array = NDArray[Any]
_NUMBERED = re.compile(r"((?:\.|^)(?:layers|convs|bn|input_txt_proj|input_vid_proj)\.)\d+\.")


def weights(
    module: nn.Module, names: WeightNames, like: Mapping[str, Tensor], seed: int = 0
) -> dict[str, Tensor]:
    """Returns random weights for a module under the authors' names and in their shapes.

    Args:
        module: our module, of any size.
        names: translates the names of weights.
        like: the weights of a golden case; its layers also serve as templates for further layers.

    Returns:
        Weights by the authors' names; those that only the authors' network has are copied from `like`.
    """
    generator = torch.Generator().manual_seed(seed)
    ours = module.state_dict()
    templates = dict(like)
    for name in like:
        for layer in range(6):
            templates.setdefault(_NUMBERED.sub(rf"\g<1>{layer}.", name, count=1), like[name])
    made = {}
    for name in sorted(templates):
        try:
            target = names.ours(name)
        except VmrError:
            continue  # the authors' network has no such layer
        if target is None:
            made[name] = templates[name]
        elif target in ours:
            made[name] = _theirs(target, ours[target], names, templates[name].dim(), generator)
    assert {names.ours(name) for name in made} - {None} == ours.keys()
    return made


def _theirs(
    name: str, ours: Tensor, names: WeightNames, dimensions: int, generator: torch.Generator
) -> Tensor:
    """Draws a weight in the authors' shape: with more rows, axes of size 1, or as a 2D convolution (EMB)."""
    shape = list(ours.shape)
    if name in names.rows:
        shape[0] += 1
    if name.endswith("depthwise.weight"):
        shape = [shape[0], 1, shape[2], shape[1]]
    shape += [1] * (dimensions - len(shape))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    drawn = torch.randn(shape, generator=generator) * 0.3
    return drawn.abs() + 0.1 if name.endswith("running_var") else drawn


def lengths(counts: Sequence[int]) -> Array:
    """Returns the mask of valid positions in padded rows, (B, L) bool."""
    return np.arange(max(counts)) < np.array(counts)[:, None]


def _noise(rng: np.random.Generator, mask: Array, width: int) -> Array:
    """Draws vectors (B, L, width), zero in padding."""
    drawn = rng.normal(size=(*mask.shape, width)) * mask[..., None]
    return drawn.astype(np.float32)


def _moments(rng: np.random.Generator, clips: Sequence[int], counts: Sequence[int]) -> list[Array]:
    """Draws moments of whole clips that end at least one clip before the end, (count, 2) for each row."""
    start = [rng.integers(0, n - 2, size=k) for n, k in zip(clips, counts, strict=True)]
    return [np.stack((first, rng.integers(first + 1, n)), 1) for first, n in zip(start, clips, strict=True)]


def _pairs(rng: np.random.Generator, clips: Sequence[int]) -> Array:
    """Draws two clips of each row, (B, 2)."""
    return rng.integers(0, np.array(clips)[:, None], size=(len(clips), 2))


def family_case(
    method: str,
    options: Mapping[str, Any],
    clips: Sequence[int],
    words: Sequence[int],
    counts: Sequence[int],
    seed: int = 0,
) -> dict[str, Array]:
    """Draws the inputs of a case of BM-DETR, Moment-DETR or QD-DETR.

    Args:
        method: name of the method.
        options: the authors' options; `video_source_dims` and `t_feat_dim` are the feature widths.
        clips: number of clips of each row.
        words: number of words of each row.
        counts: number of moments of each row.
        seed: seed of the draws.

    Returns:
        Arrays by key; derived ones (normalised inputs) are still zero.
    """
    rng = np.random.default_rng(seed)
    mask, word_mask, seconds = lengths(clips), lengths(words), options["clip_length"]
    sources = options["video_source_dims"]
    moments = _moments(rng, clips, counts)
    padded = np.full((len(clips), max(counts), 2), np.nan, np.float32)
    for row, found in zip(padded, moments, strict=True):
        row[: len(found)] = found * seconds
    case = {
        "input/src_vid": np.zeros((*mask.shape, sum(sources) + 2), np.float32),
        "input/src_vid_mask": mask.astype(np.float32),
        "input/src_txt": _noise(rng, word_mask, options["t_feat_dim"]),
        "input/src_txt_mask": word_mask.astype(np.float32),
        "input/duration": (np.array(clips) * seconds).astype(np.float32),
        "target/saliency_pos_labels": _pairs(rng, clips),
        "target/saliency_neg_labels": _pairs(rng, clips),
    }
    if method == "qd_detr":
        case["input/src_vid"] = _noise(rng, mask, sources[0] + 2)
        if options["a_feat_dim"]:
            case["input/src_aud"] = _noise(rng, mask, options["a_feat_dim"])
            case["input/src_aud_mask"] = mask.astype(np.float32)
        spans = [found / n for found, n in zip(moments, clips, strict=True)]
        flat = np.concatenate([np.stack((x.mean(1), x[:, 1] - x[:, 0]), 1) for x in spans])
        case["target/spans_flat"] = flat.astype(np.float32)
        case["target/num_spans"] = np.array(counts)
        case["target/saliency_all_labels"] = (rng.integers(0, 13, mask.shape) * mask).astype(np.float32)
        return case
    case["input/raw_video"] = _noise(rng, mask, sum(sources))
    case["input/windows_sec"] = padded
    if method == "moment_detr":
        case["input/raw_text"] = _noise(rng, word_mask, options["t_feat_dim"])
        return case
    others = lengths([n + 2 for n in words])
    case["input/neg_src_txt"] = _noise(rng, others, options["t_feat_dim"])
    case["input/neg_src_txt_mask"] = others.astype(np.float32)
    if "shifting" in options["additional_losses"]:
        first = np.concatenate(moments)
        case["input/shifted_vid"] = np.zeros_like(case["input/src_vid"])
        case["input/shifted_vid_mask"] = np.zeros_like(case["input/src_vid_mask"])
        case["input/shift_start"] = rng.integers(0, np.array(clips) - (first[:, 1] - first[:, 0]))
        case["target/shift.saliency_pos_labels"] = _pairs(rng, clips)
        case["target/shift.saliency_neg_labels"] = _pairs(rng, clips)
    return case


def mesm_case(
    options: Mapping[str, Any],
    video_dim: int,
    clips: Sequence[int],
    words: Sequence[int],
    counts: Sequence[int] | None,
    seed: int = 0,
) -> dict[str, Array]:
    """Draws the inputs of a case of MESM.

    Args:
        options: the authors' options; `num_clips` is the number of rows of each video.
        video_dim: width of the video features, with TEF.
        clips: number of clips of each video; with `counts`, of each row.
        words: number of words of each row.
        counts: number of moments of each row, for a case with several moments and graded clips; else None.
        seed: seed of the draws.

    Returns:
        Arrays by key.
    """
    rng = np.random.default_rng(seed)
    sentences = options["num_clips"]
    if counts is None:
        clips = np.repeat(clips, sentences).tolist()
    mask, word_mask = lengths(clips), lengths(words)
    read = word_mask[:, : options["max_words_l"]]
    video = _noise(rng, mask, video_dim)
    groups = np.repeat(np.arange(len(sentences)), sentences)
    if counts is None:
        video = video[np.unique(groups, return_index=True)[1][groups]]
    moments = _moments(rng, clips, counts or [1] * len(clips))
    norm = [found / n for found, n in zip(moments, clips, strict=True)]
    spans = [np.stack((x.mean(1), x[:, 1] - x[:, 0]), 1) for x in norm]
    case = {
        "input/num_clips": np.array(sentences),
        "input/video_feat": video,
        "input/video_mask": mask,
        "input/words_feat": rng.normal(size=(*word_mask.shape, options["t_feat_dim"])).astype(np.float32),
        "input/words_mask": word_mask,
        "input/words_weight": np.ones(read.shape, np.int64),
        "input/unknown_mask": read & (rng.random(read.shape) < 0.3),
        "input/mlm_masked": read & (rng.random(read.shape) < 0.4),
        "input/clip_mask": np.zeros_like(mask),
        "input/duration": (np.array(clips) * abs(options["clip_len"])).astype(np.float32),
        "input/neg_index": np.array([np.flatnonzero(groups != group)[-1] for group in groups]),
        "target/words_label": rng.integers(0, options["vocab_size"] + 1, read.shape) * read,
        "target/clip_mask": np.zeros_like(mask),
        "target/pos_idx": _pairs(rng, clips),
        "target/neg_idx": _pairs(rng, clips),
    }
    if counts is None:
        flat = {"moment": np.zeros((len(clips), 2)), "norm_moment": norm, "norm_span": spans}
    else:
        case["target/num_spans"] = np.array(counts)
        graded = rng.integers(1, 13, mask.shape) * (rng.random(mask.shape) < 0.5) * mask
        graded[:, 0] = 1
        case["target/saliency_label"] = graded.astype(np.float32)
        flat = {"norm_moment_flat": norm, "norm_span_flat": spans}
    return case | {f"target/{key}": np.concatenate(x).reshape(-1, 2).astype("f") for key, x in flat.items()}


def mmn_case(
    options: Mapping[str, Any],
    dims: tuple[int, int],
    frames: Sequence[int],
    sentences: Sequence[int],
    seed: int = 0,
) -> dict[str, Array]:
    """Draws the inputs of a case of MMN.

    Args:
        options: the authors' options.
        dims: width of video features and of word vectors.
        frames: number of frames of each video.
        sentences: number of sentences of each video.
        seed: seed of the draws.

    Returns:
        Arrays by key; derived ones are still zero.
    """
    rng = np.random.default_rng(seed)
    video = np.repeat(np.arange(len(frames)), sentences)
    words = rng.integers(1, 8, len(video))
    duration = rng.uniform(20, 60, len(frames)).astype(np.float32)
    ends = np.sort(rng.random((len(video), 2)), 1) * duration[video][:, None]
    n, metrics = options["num_clips"], [f"R@{k},IoU@{t}" for k in (1, 5) for t in (0.3, 0.7)]
    return {
        **{f"input/raw_feats_{i}": rng.normal(size=(t, dims[0])).astype("f") for i, t in enumerate(frames)},
        "input/feats": np.zeros((len(frames), options["num_pre_clips"], dims[0]), np.float32),
        "input/token_feats": rng.normal(size=(len(video), max(words), dims[1])).astype(np.float32),
        "input/wordlens": words,
        "input/num_sentence": np.zeros(len(frames), np.int64),
        "input/duration": duration,
        "input/video_index": video,
        "target/moments": ends.astype(np.float32),
        "output/eval/score_fused": np.zeros((len(video), n, n), np.float32),
        **{f"output/eval/metric/{name}": np.zeros((), np.float32) for name in metrics},
    }


def emb_case(
    weights_like: Mapping[str, Tensor],
    video_dim: int,
    frames: Sequence[int],
    words: Sequence[int],
    seed: int = 0,
) -> dict[str, Array]:
    """Draws the inputs of a case of EMB.

    Args:
        weights_like: the authors' weights, which determine the size of the vocabulary.
        video_dim: width of the video features.
        frames: number of frames of each row.
        words: number of words of each row.
        seed: seed of the draws.

    Returns:
        Arrays by key; derived ones are still zero.
    """
    rng = np.random.default_rng(seed)
    mask, word_mask = lengths(frames), lengths(words)
    vocabulary = len(weights_like["embedding_net.word_emb.glove_vec"]) + 2
    duration = rng.uniform(20, 60, len(frames)).astype(np.float32)
    ends = np.sort(rng.random((len(frames), 2)), 1) * duration[:, None]
    return {
        "input/word_ids": rng.integers(1, vocabulary, word_mask.shape) * word_mask,
        "input/char_ids": np.zeros((*word_mask.shape, 3), np.int64),
        "input/video_features": _noise(rng, mask, video_dim),
        "input/video_lengths": np.array(frames),
        "input/durations": duration,
        "input/query_mask": np.zeros(word_mask.shape, np.float32),
        "input/video_mask": np.zeros(mask.shape, np.float32),
        "target/moments_time": ends.astype(np.float32),
    }
