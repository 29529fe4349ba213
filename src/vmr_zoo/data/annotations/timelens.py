"""TimeLens-Bench (Zhang et al. 2025): refined tests of Charades-STA, ActivityNet Captions and QVHighlights.

The layout follows the authors' loader. Nobody has read the published files with this code yet
(docs/transfer.md).
"""

from __future__ import annotations

from pathlib import Path

from vmr_zoo.data.annotations import readers
from vmr_zoo.data.annotations.building import build_tests
from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.data.annotations.rows import FIXED, MomentRules, numbered


def timelens_charades(root: str | Path, moments: MomentRules = FIXED) -> Protocol:
    """Charades-TimeLens (Zhang et al. 2025): new sentences and moments for test videos of Charades-STA.

    A part of TimeLens-Bench, which only tests: sentences were checked by hand and rewritten, so its numbers
    are never compared with those of the original test split.

    Args:
        root: the annotations directory.
        moments: what is done with moments that do not fit their video.

    Returns:
        The protocol, its one test split named "test". Query ids begin with "timelens_": text features of the
        original sentences are named by video and number, too.

    Raises:
        VmrError: if the file is missing or broken.
    """
    return _timelens("charades", "charades_sta", root, moments)


def timelens_activitynet(root: str | Path, moments: MomentRules = FIXED) -> Protocol:
    """ActivityNet-TimeLens: as `timelens_charades`, for test videos of ActivityNet Captions."""
    return _timelens("activitynet", "activitynet", root, moments)


def timelens_qvhighlights(root: str | Path, moments: MomentRules = FIXED) -> Protocol:
    """QVHighlights-TimeLens: as `timelens_charades`, for QVHighlights: one moment per sentence, unrated."""
    return _timelens("qvhighlights", "qvhighlights", root, moments)


def _timelens(pool: str, train_with: str, root: str | Path, moments: MomentRules) -> Protocol:
    file = f"{pool}-timelens.json"
    number = numbered()
    rows = readers.read_by_video(
        Path(root) / "timelens" / file,
        lambda video_id: f"timelens_{number(video_id)}",
        scored=True,
        rules=moments,
        moments_key="spans",
        sentences_key="queries",
    )
    return build_tests(f"timelens_{pool}", {"test": (rows, file)}, train_with)
