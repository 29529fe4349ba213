"""Prints how much of shapes the times of training moments answer: R1@0.5 without the video.

python experiments/ood_shapes/time_prior.py

Answers are fractions of the duration on a grid of 1/50: the constant answer is the best one for all
sentences of train, the answer to an action the best one for the training sentences whose first clause has
that action.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vmr_zoo.data.worlds.shapes.generate import annotate
from vmr_zoo.data.worlds.shapes.world import WorldSettings
from vmr_zoo.spans import iou

SPLITS = ("iid", "ood_time")
GRID = 50


def answers() -> torch.Tensor:
    """Returns all spans on the grid, (A, 2), in fractions of the duration."""
    start, end = np.triu_indices(GRID + 1, 1)
    return torch.from_numpy(np.stack([start, end], 1) / GRID)


def hits(rows: Sequence[Mapping[str, Any]], spans: torch.Tensor) -> torch.Tensor:
    """Returns whether each span answers each query with an IoU of at least 0.5, (N, A)."""
    moments = torch.tensor([np.divide(row["moments"][0], row["duration"]).tolist() for row in rows])
    return iou(moments[:, None].double(), spans[None]) >= 0.5


def by_action(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups queries by the action of their first clause."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["clauses"][0]["action"]].append(row)
    return groups


def main() -> None:
    """Prints two lines."""
    rows, spans = annotate(WorldSettings()), answers()
    best = hits(rows["train"], spans).float().mean(0).argmax()
    per_action = {
        action: hits(own, spans).float().mean(0).argmax() for action, own in by_action(rows["train"]).items()
    }
    for split in SPLITS:
        constant = hits(rows[split], spans[best][None]).float().mean()
        found = [hits(own, spans[per_action[action]][None]) for action, own in by_action(rows[split]).items()]
        print(
            f"{split}: one constant answer {100 * constant:.1f}, "
            f"one answer per action {100 * torch.cat(found).float().mean():.1f}"
        )


if __name__ == "__main__":
    main()
