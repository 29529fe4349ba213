"""NMS and average precision as plain loops, to compare the package's vectorized code with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vmr_zoo import spans

Row = Sequence[float]


def naive_nms(rows: Sequence[Row], threshold: float) -> list[Row]:
    """Returns the rows (start, end, score) that greedy suppression leaves, best first."""
    left: list[Row] = []
    for row in sorted(rows, key=lambda row: -row[2]):
        # Rounded as the package rounds: at the threshold, another rounding would change the decision.
        span = torch.tensor(row[:2], dtype=torch.float64)
        if all(spans.iou(span, torch.tensor(o[:2], dtype=torch.float64)) <= threshold for o in left):
            left.append(row)
    return left


def naive_iou(a: Row, b: Row) -> float:
    overlap = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = a[1] - a[0] + b[1] - b[0] - overlap
    return overlap / union if union > 0 else 0.0


def naive_ap(windows: Sequence[Row], moments: Sequence[Row], threshold: float) -> float:
    """Average precision of one query at one threshold, by the definition, window by window."""
    free = list(range(len(moments)))
    points = []  # (recall, precision)
    right = 0
    for rank, window in enumerate(windows, start=1):
        overlap = {j: naive_iou(window, moments[j]) for j in free}
        best = max(free, key=lambda j: (overlap[j], j), default=None)
        if best is not None and overlap[best] >= threshold:
            free.remove(best)
            right += 1
        points.append((right / len(moments), right / rank))
    area, reached = 0.0, 0.0
    for recall, _ in points:
        if recall > reached:
            area += (recall - reached) * max(p for r, p in points if r >= recall)
            reached = recall
    return area
