"""Whether a row reads its sentences: its score with sentences about other videos (`probe=other_query`)."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmr_zoo.report.leaderboard import LEADING_METRIC
from vmr_zoo.report.runs import REFERENCE_SPLITS, Run

LEAST_LOSS = 20.0
"""A row that loses fewer points does not read its sentences well enough to compare with others."""


@dataclass(frozen=True)
class SentenceProbe:
    """Scores of one row, averaged over the seeds that have both.

    Attributes:
        split: the split of both scores.
        own: per cent with the sentence of each query.
        other: per cent with a sentence about another video.
        least_loss: points that the seed loses that loses the fewest without the right sentence.
    """

    split: str
    own: float
    other: float
    least_loss: float

    @property
    def reads_sentence(self) -> bool:
        """Whether every seed loses at least `LEAST_LOSS` points."""
        return self.least_loss >= LEAST_LOSS


def probe_row(runs: Sequence[Run]) -> SentenceProbe | None:
    """Compares the scores of a row with those that `vmr eval run=RUN probe=other_query` wrote.

    Args:
        runs: the runs of one row, one for each seed.

    Returns:
        The scores on the in-distribution split if it was probed, else on the first probed split; None if no
        run was probed, or the row itself consists of evaluations under changed conditions.
    """
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        for split, other in probed(run).items():
            own = run.metrics.get(split, {}).get(LEADING_METRIC)
            if own is not None:
                pairs[split].append((own, other))
    if not pairs:
        return None
    split = next((one for one in REFERENCE_SPLITS if one in pairs), next(iter(pairs)))
    own, other = (statistics.fmean(values) for values in zip(*pairs[split], strict=True))
    return SentenceProbe(split, own, other, min(one - another for one, another in pairs[split]))


def probed(run: Run) -> Mapping[str, float]:
    """Returns the score with other sentences by split, averaged over the probe's own seeds."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for one in run.probes:
        for split, values in one.metrics.items():
            if values.get(LEADING_METRIC) is not None:
                # The latest of equal probes counts.
                found[split][one.header["probe"]] = values[LEADING_METRIC]
    return {split: statistics.fmean(by_probe.values()) for split, by_probe in found.items()}
