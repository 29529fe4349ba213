"""The contract between data, methods and metrics: one flat batch, one prediction.

Data never imports methods and methods never import data; both import this file. Sizes: B rows (queries) in
the batch, Lv clips, Lq query tokens, Ln narration sentences, N ground-truth moments (padded), K predicted
moments, S sibling queries, P patches per clip. Masks are bool, True = valid. A padded position holds zeros,
and no result may depend on what it holds.

Spans are (start, end) as fractions of the row's `duration`, in [0, 1]. Centre and width exist only inside
set-prediction code (`vmr_zoo.spans` converts).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """What the data module yields: a plain dict of tensors and id lists.

    Always present:
        video: (B, Lv, Dv) float32, the sources concatenated in the declared order, each L2-normalised if its
            manifest says so, without TEF (a method appends it, `blocks.position.append_tef`).
        video_mask: (B, Lv) bool.
        query: (B, Lq, Dq) float32 token features.
        query_mask: (B, Lq) bool.
        spans: (B, N, 2) float32, start and end as fractions of `duration`, padded with zeros.
        span_mask: (B, N) bool. At least one True per row in training.
        duration: (B,) float32 seconds.
        clip_seconds: (B,) float32, the seconds that one clip of `video` covers.
        video_index: (B,) int64; rows with equal numbers are queries on the same video.
        query_id, video_id: list[str] of length B.

    Present when a method's `needs` names it:
        "narration": narration (B, Ln, Dn) one vector per sentence, narration_mask (B, Ln), narration_spans
            (B, Ln, 2) fractions (start = end for a caption of one frame).
        "negative_query": negative_query (B, Ln', Dq), negative_query_mask (B, Ln'); a row whose mask is all
            False has no negative. Training only.
        "sibling_queries": sibling_query (B, S, Dq), one sentence vector per other query on the same video
            (mean of its token features), sibling_mask (B, S), sibling_spans (B, S, 2).
        "shift": shift_order (B, Lv) int64, a permutation of the valid clips that moves the moment to another
            place (identity where the row is not shifted), and shifted_spans (B, N, 2). Training only.
        "patches": patches (B, Lv, P, Dp). Training, and evaluation that asks for details.
        "query_tokens": query_tokens (B, Lq) int64 tokenizer ids.
        "query_words": query_words (B, Lq) int64, each token's place among the training split's tokens by
            frequency, the most frequent is 1; a token that it lacks comes after all of them; padding is 0.
            Training, and evaluation that asks for details.
        "noun_mask": noun_mask (B, Lq) bool, True = the token belongs to a noun chunk.
        "saliency": saliency (B, Lv) float32, the annotators' ratings summed (0 where unrated), and
            saliency_mask (B, Lv), True = rated. Data without ratings rate every clip inside a moment 1.
    """

    video: Tensor
    video_mask: Tensor
    query: Tensor
    query_mask: Tensor
    spans: Tensor
    span_mask: Tensor
    duration: Tensor
    clip_seconds: Tensor
    video_index: Tensor
    query_id: list[str]
    video_id: list[str]
    narration: Tensor
    narration_mask: Tensor
    narration_spans: Tensor
    negative_query: Tensor
    negative_query_mask: Tensor
    sibling_query: Tensor
    sibling_mask: Tensor
    sibling_spans: Tensor
    shift_order: Tensor
    shifted_spans: Tensor
    patches: Tensor
    query_tokens: Tensor
    query_words: Tensor
    noun_mask: Tensor
    saliency: Tensor
    saliency_mask: Tensor


class Prediction(TypedDict, total=False):
    """What a method answers.

    Always present:
        spans: (B, K, 2) start and end as fractions of `duration`, best first, NMS done;
            0 <= start <= end <= 1.
        scores: (B, K) in descending order. A short list is padded with empty spans of score 0. K is at
            least 5.

    Optional:
        saliency: (B, Lv) one score per clip, meaningful where `video_mask` is True.
        details: what the papers plot, (B, …) by name, present only if `predict` was asked for it; names out
            of `DETAILS`. What needs a field that is not in the batch is left out.
    """

    spans: Tensor
    scores: Tensor
    saliency: Tensor
    details: dict[str, Tensor]


NEEDS = frozenset(
    {
        "narration",
        "negative_query",
        "sibling_queries",
        "shift",
        "patches",
        "query_tokens",
        "query_words",
        "noun_mask",
        "saliency",
    }
)
"""Every name that a method's `needs` may hold."""

Axis = Literal["clip", "word", "moment", "cell", "frame", "patch"]

DETAILS: Mapping[str, tuple[Axis, ...]] = {
    "decoder_attention": ("moment", "clip"),
    "decoder_word_attention": ("moment", "word"),
    "end_probability": ("clip",),
    "frame_attention": ("clip",),
    "frame_probability": ("clip",),
    "frame_word_attention": ("clip", "word"),
    "heatmap": ("frame", "patch"),
    "highlight": ("clip",),
    "score_map": ("cell", "cell"),
    "start_probability": ("clip",),
    "word_probability": ("word",),
}
"""Every name that `details` may hold, and its axes after the first; docs/contract.md says what each means.

An axis of clips (or of snippets, where a method pools the clips of long videos) is padded as `video_mask`,
one of words as `query_mask`, one of moments as `spans`; the others have one length for all rows.
"""
