"""Hungarian matcher: optimal one-to-one assignment of predicted slots to targets, for a whole batch."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def hungarian_match(cost: Tensor, target_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Assigns a slot to each target with the smallest total cost in every row (Hungarian algorithm).

    With one target per row the cheapest slot is found on the device. With several, the costs of the whole
    batch are copied to the host once, and the solver runs on the rows with several targets.

    Args:
        cost: (B, M, N) cost of assigning slot m to target n. NaN counts as 0; the check for non-finite losses
            reports it later.
        target_mask: (B, N), True = valid.

    Returns:
        slots: (B, N) int64, the slot of each target, 0 where it has none.
        matched: (B, N) bool, True where a target has a slot. A valid target has none if its row has more
            targets than slots. No slot is matched twice.
    """
    cost = torch.nan_to_num(cost)
    cheapest = cost.argmin(1)
    if cost.shape[2] == 1:
        return cheapest, target_mask
    packed = torch.cat((cost.flatten(1), cheapest.to(cost.dtype), target_mask.to(cost.dtype)), 1)
    host = packed.to("cpu", torch.float64).numpy()
    m, n = cost.shape[1:]
    costs = host[:, : m * n].reshape(-1, m, n)
    slots = host[:, m * n : m * n + n].astype(np.int64)
    matched = host[:, m * n + n :].astype(bool)
    for row in np.flatnonzero(matched.sum(1) > 1):
        targets = np.flatnonzero(matched[row])
        slot, target = linear_sum_assignment(costs[row][:, targets])
        matched[row] = False
        matched[row, targets[target]] = True
        slots[row, targets[target]] = slot
    slots[~matched] = 0
    return (
        torch.from_numpy(slots).to(cost.device, non_blocking=True),
        torch.from_numpy(matched).to(cost.device, non_blocking=True),
    )
