"""Highlight detection on QVHighlights (Lei et al. 2021): average precision and HIT@1 of saliency, per query.

Several annotators rate every 2-second clip inside a moment from 0 to 4; clips outside all moments count as 0.
For one annotator, a clip is a highlight if its rating reaches the level: Fair 2, Good 3, VeryGood 4. Pure
numpy, vectorised over queries, levels and annotators.

Sizes: B queries, L clips (padded), A annotators.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CLIP_SECONDS = 2.0
LEVELS = {"VeryGood": 4, "Good": 3, "Fair": 2}
"""Lowest rating of a highlight, by the benchmark's name of the level."""


def metric_name(metric: str, level: str) -> str:
    """Names a highlight metric; VeryGood, the level that papers report, is omitted.

    >>> metric_name("HIT@1", "VeryGood"), metric_name("HIT@1", "Good")
    ('HIT@1', 'HIT@1/Good')
    """
    return metric if level == "VeryGood" else f"{metric}/{level}"


def clip_average_precision(scores: Floats, positive: NDArray[np.bool_], clips: NDArray[np.int64]) -> Floats:
    """Interpolated average precision of clips ranked by score, per query.

    Averages, over the distinct recalls that score thresholds reach, the highest precision at that or a higher
    recall. Clips with equal scores are taken together.

    Args:
        scores: (B, L), valid in the first `clips` positions of a row.
        positive: (B, ..., L), True = highlight; False on padding.
        clips: (B,) number of clips, at least 1.

    Returns:
        (B, ...) in [0, 1]; 0 for a row without a positive.

    >>> scores = np.array([[0.9, 0.5, 0.5, 0.1]])
    >>> positive = np.array([[True, True, False, False]])
    >>> float(clip_average_precision(scores, positive, np.array([4]))[0])  # 1 at recall 1/2, 2/3 at 1
    0.8333333333333333
    """
    rows, length = scores.shape
    shape = (rows, *(1,) * (positive.ndim - 2), length)
    valid = np.arange(length) < clips[:, None]
    order = np.argsort(np.where(valid, -scores, np.inf), axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, 1)
    # A threshold can only cut where a run of equal scores ends.
    cut = np.ones_like(valid)
    cut[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    cut[np.arange(rows), clips - 1] = True
    cut = (cut & valid).reshape(shape)
    found = np.take_along_axis(positive, order.reshape(shape), -1).cumsum(-1)
    precision = np.where(cut, found / np.arange(1, length + 1), 0.0)
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    reached = np.maximum.accumulate(np.where(cut, found, 0), axis=-1)
    rises = np.diff(reached, axis=-1, prepend=0) > 0
    return (best * rises).sum(-1) / np.maximum(rises.sum(-1), 1)


def highlight_scores(
    scores: Floats, top: NDArray[np.int64], ratings: NDArray[np.int64], clips: NDArray[np.int64]
) -> dict[str, Floats]:
    """Scores the saliency of every query.

    Args:
        scores: (B, L) predicted saliency, valid in the first `clips` positions of a row.
        top: (B,) the clip with the highest prediction; a clip beyond the last one is a miss.
        ratings: (B, L, A), 0 outside every moment and on padding.
        clips: (B,) number of clips, at least 1.

    Returns:
        (B,) scores in [0, 1] by metric name, for each of `LEVELS`: highlight_mAP, the mean over annotators,
        and HIT@1, whether the top clip is a highlight for any annotator.
    """
    levels = np.array(list(LEVELS.values()))
    positive = ratings.transpose(0, 2, 1)[:, None] >= levels[:, None, None]  # (B, levels, A, L)
    ap = clip_average_precision(scores, positive, clips).mean(2)
    within = positive[np.arange(len(scores)), :, :, np.minimum(top, clips - 1)].any(2)
    hit = (within & (top < clips)[:, None]).astype(np.float64)
    return {
        metric_name(metric, level): values[:, index]
        for metric, values in (("highlight_mAP", ap), ("HIT@1", hit))
        for index, level in enumerate(LEVELS)
    }
