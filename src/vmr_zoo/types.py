"""The contract between data, methods and metrics: a flat batch and a prediction.

Data and methods never import each other; both import this file. Sizes: B rows (queries) in the batch, Lv
clips, Lq query tokens, Ln narration sentences, N ground-truth moments (padded), K predicted moments, S
sibling queries, P patches per clip. Masks are bool, True = valid. Padding holds zeros, and no result may
depend on its values.

Spans are (start, end) as fractions of the row's `duration`, in [0, 1]. Where the annotations are read as
written (`data.protocol.moments.times`), moments may exceed 1 and may be empty. Only set-prediction code uses
centre and width (`vmr_zoo.spans` converts).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """A batch of the data module: a plain dict of tensors and id lists.

    Always present:
        video: (B, Lv, Dv) float32, the sources concatenated in their configured order, each L2-normalised if
            its manifest says so, without TEF (methods append it: `blocks.position.append_tef`).
        video_mask: (B, Lv) bool.
        query: (B, Lq, Dq) float32 token features.
        query_mask: (B, Lq) bool.
        spans: (B, N, 2) float32, start and end as fractions of `duration`, padded with zeros.
        span_mask: (B, N) bool. At least one True per row in training.
        duration: (B,) float32 seconds.
        clip_seconds: (B,) float32, length of one clip of `video` in seconds.
        video_index: (B,) int64; rows with equal numbers are queries on the same video.
        query_id, video_id: list[str] of length B.

    Present when a method's `needs` names it:
        "narration": narration (B, Ln, Dn) one vector per sentence, narration_mask (B, Ln), narration_spans
            (B, Ln, 2) fractions (start = end for a caption of one frame).
        "narration_query": narration_query (B, Lq', Dn'), narration_query_mask (B, Lq'): the same sentence as
            `query`, by the encoder of the narrations.
        "negative_query": negative_query (B, Ln', Dq), negative_query_mask (B, Ln'); a row whose mask is all
            False has no negative. Only in training.
        "sentence": sentence (B, Ds), one vector for the whole sentence in the space of the first Ds numbers
            of `video`, from features that declare a joint space of images and text.
        "sibling_queries": sibling_query (B, S, Dq), one sentence vector per other query on the same video
            (mean of its token features), sibling_mask (B, S).
        "shift": shift_order (B, Lv) int64, a permutation of the valid clips that moves the moment (the
            identity in rows that are not shifted), and shifted_spans (B, N, 2). Only in training.
        "patches": patches (B, Lv, P, Dp). Only in training and in evaluation with details.
        "query_tokens": query_tokens (B, Lq) int64 tokenizer ids.
        "query_words": query_words (B, Lq) int64, rank of each token by its frequency in the training split;
            the most frequent has rank 1, tokens that are absent there have the rank 2**31 - 1, padding is 0;
            the start and the end token, where the features have rows for them, are -1 and -2.
            Only in training and in evaluation with details.
        "word_weights": word_weights (B, Lq) float32: 2 for nouns, verbs, adjectives and adverbs, 0 for the
            start and the end token, else 1; padding is 0. Only in training and in evaluation with details.
        "noun_mask": noun_mask (B, Lq) bool, True = the token belongs to a noun chunk.
        "saliency": saliency (B, Lv) float32, sum of the annotators' ratings (0 where unrated), and
            saliency_mask (B, Lv), True = rated. In data without ratings, clips inside a moment have rating 1.
            With `data.rated_past_end=kept`, ratings of clips that a video lacks are on its padding, and both
            may be longer than Lv.
        "moment_clips": moment_clips (B, Lv) bool, the clips in which a moment starts and ends, and all
            between (MESM's released code); computed in float64, where a moment that ends exactly between two
            clips may count as ending in either. Only in training and in evaluation with details.
        "all_spans": all_spans (B, N', 2) and all_span_mask (B, N'), every moment of a row; in training,
            `spans` holds at most `data.max_moments` of them.
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
    narration_query: Tensor
    narration_query_mask: Tensor
    negative_query: Tensor
    negative_query_mask: Tensor
    sentence: Tensor
    sibling_query: Tensor
    sibling_mask: Tensor
    shift_order: Tensor
    shifted_spans: Tensor
    patches: Tensor
    query_tokens: Tensor
    query_words: Tensor
    word_weights: Tensor
    noun_mask: Tensor
    saliency: Tensor
    saliency_mask: Tensor
    moment_clips: Tensor
    all_spans: Tensor
    all_span_mask: Tensor


class Prediction(TypedDict, total=False):
    """The predictions of a method for a batch.

    Always present:
        spans: (B, K, 2) start and end as fractions of `duration`, best first, after NMS;
            0 <= start <= end <= 1.
        scores: (B, K) in descending order. Short lists are padded with empty spans of score 0. K is at
            least 5.

    Optional:
        saliency: (B, Lv) one score per clip, valid where `video_mask` is True.
        details: quantities that the papers plot, (B, …) by name (`DETAILS`), if `predict` is called with
            `details=True` and the method has any. Those whose fields are missing in the batch are omitted.
    """

    spans: Tensor
    scores: Tensor
    saliency: Tensor
    details: dict[str, Tensor]


NEEDS = frozenset(
    {
        "narration",
        "narration_query",
        "negative_query",
        "sentence",
        "sibling_queries",
        "shift",
        "patches",
        "query_tokens",
        "query_words",
        "word_weights",
        "noun_mask",
        "saliency",
        "moment_clips",
        "all_spans",
    }
)
"""All valid names in a method's `needs`."""

Axis = Literal["clip", "word", "moment", "cell", "frame", "patch"]

DETAILS: Mapping[str, tuple[Axis, ...]] = {
    "decoder_attention": ("moment", "clip"),
    "decoder_word_attention": ("moment", "word"),
    "end_probability": ("clip",),
    "enhanced_text_in_enhanced_segment": ("word",),
    "frame_attention": ("clip",),
    "frame_probability": ("clip",),
    "frame_word_attention": ("clip", "word"),
    "heatmap": ("frame", "patch"),
    "highlight": ("clip",),
    "score_map": ("cell", "cell"),
    "start_probability": ("clip",),
    "text_in_enhanced_segment": ("word",),
    "text_in_segment": ("word",),
    "word_probability": ("word",),
}
"""All valid names in `details`, with the axes after the first; docs/contract.md defines each.

A clip axis (or snippet axis, where a method pools the clips of long videos) is padded like `video_mask`, a
word axis like `query_mask`, and a moment axis like `spans`; other axes have the same length in all rows.
"""
