"""Builds protocols from the rows of files, and refuses rows that mean something else than they should."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from vmr_zoo.data.annotations.records import (
    HELD_OUT,
    NO_TRAINING,
    PUBLISHED,
    SELECTION,
    TRAIN,
    Protocol,
    Query,
    Split,
    shared_videos,
)
from vmr_zoo.data.annotations.rows import AnnotationRow, split_of
from vmr_zoo.errors import VmrError, unknown

log = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.1
"""Share of the train videos that is held out if no validation split is published."""

_SALT = "vmr_zoo selection 1"

_OUTSIDE = 0.25
"""Share of moments after the end of their video above which a file is refused; published files: 0.2 %."""
_FIRST_PART, _ENOUGH = 0.7, 50
"""A split of at least so many moments, none of which ends later in its video than this share, is doubtful."""

POOLS = {
    "charades": ("charades_sta", "charades_cd", "charades_cg", "timelens_charades"),
    "activitynet": ("activitynet", "activitynet_cd", "activitynet_cg", "timelens_activitynet"),
    "qvhighlights": ("qvhighlights", "cqval", "cqval_hanta", "timelens_qvhighlights"),
    "tacos": ("tacos",),
}
"""The published protocols by the set of videos that they split."""

SplitRows = tuple[list[AnnotationRow], str]
"""The rows of a split, and the name of their file for reports."""


def pool_of(name: str) -> str:
    """Returns the set of videos that a published protocol splits; "" for any other protocol."""
    return next((pool for pool, names in POOLS.items() if name in names), "")


def held_out_videos(video_ids: tuple[str, ...]) -> frozenset[str]:
    """Chooses the videos that are held out of train for selection.

    The choice depends on the ids alone, not on their order, the machine or a seed: videos are ranked by a
    hash, and the first `HELD_OUT_SHARE` of them, at least one, is held out.

    Args:
        video_ids: distinct videos of the train split.

    Raises:
        VmrError: if there are fewer than two videos.
    """
    if len(video_ids) < 2:
        raise VmrError(
            f"Cannot hold out videos from a train split of {len(video_ids)}: selection and training need "
            "at least one each. Use a larger train split."
        )
    ranked = sorted(video_ids, key=lambda video: hashlib.sha256(f"{_SALT}:{video}".encode()).digest())
    return frozenset(ranked[: max(1, round(HELD_OUT_SHARE * len(ranked)))])


def build_protocol(
    name: str, train: SplitRows, val: SplitRows | None, tests: Mapping[str, SplitRows], selection: str
) -> Protocol:
    """Builds a protocol, holds out videos if selection needs them, and warns about fixes.

    Args:
        name: name of the protocol and of the data set.
        train: training rows.
        val: rows of the published validation split; None: there is none.
        tests: rows of each test split.
        selection: "heldout" or the name of a test split.

    Raises:
        VmrError: if `selection` is unknown, too few videos can be held out, times are not in seconds, or an
            id means different sentences in different splits.
    """
    published = split_of(TRAIN, *train)
    test_splits = {test: split_of(test, *part) for test, part in tests.items()}
    trained, held = published, None
    if selection == "heldout" and val is not None:
        selected, origin = split_of(SELECTION, *val), PUBLISHED
    elif selection == "heldout":
        held = held_out_videos(published.video_ids)
        rows, source = train
        trained = split_of(TRAIN, (row for row in rows if row.query.video_id not in held), source)
        selected = split_of(SELECTION, (row for row in rows if row.query.video_id in held), source)
        origin = HELD_OUT
    elif selection in tests:
        selected, origin = split_of(SELECTION, *tests[selection]), f"test split '{selection}'"
    else:
        raise unknown("selection", selection, {"heldout", *tests})

    parts = {TRAIN: train[0], **({} if val is None else {SELECTION: val[0]})}
    parts |= {test: rows for test, (rows, _) in tests.items()}
    doubts = (*check_times(parts), *_test_videos_in_training(trained, test_splits))
    published_train = published if held else None
    return _announced(
        Protocol(name, trained, selected, test_splits, origin, published_train, doubts, pool=pool_of(name))
    )


def _test_videos_in_training(train: Split, tests: Mapping[str, Split]) -> list[str]:
    """Returns a sentence about each test split with videos of the training data; no published one has any."""
    counts = {name: len(shared_videos([train], [split])) for name, split in tests.items()}
    return [
        f"Test split '{name}': {count:,} of its {tests[name].videos:,} videos are training data, too. Its "
        "numbers do not show what the method does on new videos."
        for name, count in counts.items()
        if count
    ]


def build_tests(name: str, tests: Mapping[str, SplitRows], train_with: str = "") -> Protocol:
    """Builds a protocol that only tests, and warns about fixes.

    Args:
        name: name of the protocol and of the data set.
        tests: rows of each test split.
        train_with: a protocol on the same videos that has training data; "": none is known.

    Raises:
        VmrError: if times are not in seconds, or an id means different sentences in different splits.
    """
    splits = {test: split_of(test, *part) for test, part in tests.items()}
    doubts = check_times({test: rows for test, (rows, _) in tests.items()})
    train, selection = Split(TRAIN, ()), Split(SELECTION, ())
    return _announced(
        Protocol(
            name,
            train,
            selection,
            splits,
            NO_TRAINING,
            doubts=doubts,
            pool=pool_of(name),
            train_with=train_with,
        )
    )


def _announced(protocol: Protocol) -> Protocol:
    """Warns about fixes and doubts, and returns the protocol."""
    _warn_about_fixes(protocol)
    for doubt in protocol.doubts:
        log.warning("WARNING: %s", doubt)
    return protocol


def _warn_about_fixes(protocol: Protocol) -> None:
    parts = []
    for split in protocol.published.values():
        fixes = [f"{count:,} {kind}" for kind, count in sorted(split.counts.items()) if kind != "repeated"]
        if fixes:
            parts.append(f"{split.name} {', '.join(fixes)} of {split.sentences:,}")
    if parts:
        log.warning(
            "%s: moments fixed on reading: %s. `vmr doctor` with the same data explains them.",
            protocol.name,
            "; ".join(parts),
        )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences warnings about fixes and doubts: nobody requested the protocol, or a report shows them."""
    log.disabled, before = True, log.disabled
    try:
        yield
    finally:
        log.disabled = before


def check_times(splits: Mapping[str, Sequence[AnnotationRow]]) -> tuple[str, ...]:
    """Refuses moments in another unit than seconds: frames, milliseconds, per cent, fractions of the video.

    Args:
        splits: the rows of each split.

    Returns:
        A sentence about each split whose times may be in another unit, such as clips.

    Raises:
        VmrError: for a split whose times cannot be seconds.
    """
    doubts = []
    for name, rows in splits.items():
        queries = [row.query for row in rows if isinstance(row.query, Query) and row.query.moments]
        moments = [(moment, query.duration) for query in queries for moment in query.moments]
        outside = sum(fix.endswith("_outside") for row in rows for fix in row.fixes)
        outside += sum(start >= duration and end > duration for (start, end), duration in moments)
        total = len(moments) + sum(fix == "dropped_outside" for row in rows for fix in row.fixes)
        if outside > max(2, _OUTSIDE * total):
            raise VmrError(
                f"Split '{name}': {outside:,} of {total:,} moments start after the end of their video. Times "
                "and durations must be in seconds; these look like frames, milliseconds or per cent. Convert "
                "them."
            )
        ends = [end for (_, end), _ in moments]
        fractional = len(ends) > 2 and max(ends) <= 1 and any(end % 1 for end in ends)
        if fractional and min(duration for _, duration in moments) >= 2:
            raise VmrError(
                f"Split '{name}': every moment ends within the first second of its video. Times must be in "
                "seconds; these look like fractions of the duration. Multiply them by it."
            )
        latest = max((end / duration for (_, end), duration in moments), default=1.0)
        if len(moments) >= _ENOUGH and latest < _FIRST_PART:
            doubts.append(
                f"Split '{name}': none of {len(moments):,} moments ends in the last "
                f"{1 - latest:.0%} of its video. Are the times in seconds, not in clips or per cent?"
            )
    return (*doubts, *_unequal_durations(splits))


def _unequal_durations(splits: Mapping[str, Sequence[AnnotationRow]]) -> list[str]:
    """Returns a sentence about videos whose rows disagree on their duration by over a second and 2 %."""
    found: dict[str, list[float]] = {}
    for query in (row.query for rows in splits.values() for row in rows):
        if isinstance(query, Query):
            found.setdefault(query.video_id, []).append(query.duration)
    odd = {video_id: own for video_id, own in found.items() if max(own) - min(own) > max(1, 0.02 * max(own))}
    if not odd:
        return []
    first, own = next(iter(odd.items()))
    return [
        f"Videos with several durations: {len(odd):,}, such as '{first}' with {min(own):g} and "
        f"{max(own):g} s. Which one is right?"
    ]
