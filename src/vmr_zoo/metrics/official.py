"""The report of QVHighlights' evaluator, with its keys, order and number of digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vmr_zoo.metrics.highlight import LEVELS, metric_name
from vmr_zoo.metrics.per_query import FULL, Floats, MomentScores
from vmr_zoo.metrics.settings import AP_THRESHOLDS


def _percent(scores: Floats) -> float:
    """Returns the mean in per cent with two decimals, formatted as by the evaluator."""
    return float(f"{100 * np.mean(scores):.2f}")


def moment_report(
    scores: MomentScores, recall_thresholds: Sequence[float] = AP_THRESHOLDS
) -> dict[str, dict[str, float]] | None:
    """Reports one length bucket.

    Args:
        scores: scores of that bucket.
        recall_thresholds: IoU thresholds of R1.

    Returns:
        "MR-mAP" and "MR-R1" by IoU threshold, in per cent; None if no query has a moment of that length.
    """
    applies = ~np.isnan(scores.iou[:, 0])
    if not applies.any():
        return None
    ap, best = scores.ap[applies].mean(0), scores.iou[applies, 0]
    precision = {str(m): _percent(value) for m, value in zip(AP_THRESHOLDS, ap, strict=True)}
    recall = {str(m): _percent((best >= m).astype(np.float64)) for m in recall_thresholds}
    return {"MR-mAP": {**precision, "average": _percent(ap)}, "MR-R1": recall}


def highlight_report(scores: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    """Reports the highlight metrics of `highlight_scores`, by level from Fair to VeryGood."""
    return {
        f"HL-min-{level}": {
            "HL-mAP": _percent(scores[metric_name("highlight_mAP", level)]),
            "HL-Hit1": _percent(scores[metric_name("HIT@1", level)]),
        }
        for level in reversed(LEVELS)
    }


def benchmark_report(
    moments: Mapping[str, MomentScores], highlights: Mapping[str, Floats] | None
) -> dict[str, Any]:
    """Builds the whole report.

    Args:
        moments: result of `per_query.moment_scores`, in the order of the submission.
        highlights: result of `highlight.highlight_scores`; None if the submission has no saliency.

    Returns:
        "brief", then one entry per highlight level and length bucket.
    """
    ranges = {bucket: found for bucket in sorted(moments) if (found := moment_report(moments[bucket]))}
    levels = highlight_report(highlights) if highlights is not None else {}
    full = ranges[FULL]
    brief = {f"MR-full-R1@{m}": full["MR-R1"][m] for m in ("0.5", "0.7")}
    brief["MR-full-mAP"] = full["MR-mAP"]["average"]
    brief |= {f"MR-full-mAP@{m}": full["MR-mAP"][m] for m in ("0.5", "0.75")}
    brief |= {f"MR-{name}-mAP": r["MR-mAP"]["average"] for name, r in ranges.items() if name != FULL}
    brief |= {f"{level}-{key[3:]}": value for level, r in levels.items() for key, value in r.items()}
    return {"brief": brief, **levels, **ranges}
