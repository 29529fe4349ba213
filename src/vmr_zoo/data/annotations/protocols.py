"""Protocols of the published data sets: which file is for training, selection and testing.

One function per protocol reads the files as published from a directory with one folder per data set:

    charades/       charades_sta_{train,test}.txt, Charades_v1_{train,test}.csv (for the lengths)
    charades_cd/    charades_{train,val,test_iid,test_ood}.json
    charades_cg/    train.json, novel_composition.json, novel_word.json, test_trivial.json
    activitynet/    train.json, val_1.json, val_2.json
    activitynet_cd/ anet_{val,test_iid,test_ood}.json (train is derived from activitynet/)
    activitynet_cg/ as charades_cg/
    tacos/          train.json, val.json, test.json
    qvhighlights/   highlight_{train,val}_release.jsonl, highlight_test_with_gt.jsonl

Readers fix and count known errors of these files (`vmr_zoo.data.annotations.rows`).

**Selection.** Every function takes `selection`. The default "heldout" never uses a test split: it is the
published validation split if there is one, else a tenth of the train videos, which are excluded from training
(`Protocol.published_train` keeps them). Several papers selected on test data: the name of a test split does
the same, trains on the whole train split, as they did, and marks every number through
`Protocol.selection_origin`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vmr_zoo.data.annotations import readers
from vmr_zoo.data.annotations.records import (
    HELD_OUT,
    PUBLISHED,
    SELECTION,
    TRAIN,
    Protocol,
    Query,
    Split,
    shared_videos,
)
from vmr_zoo.data.annotations.rows import FIXED, AnnotationRow, MomentRules, numbered, split_of
from vmr_zoo.data.text.parsing import ClauseCounts, count_words
from vmr_zoo.errors import VmrError, unknown

log = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.1
"""Share of the train videos that is held out if no validation split is published."""

_SALT = "vmr_zoo selection 1"

SplitRows = tuple[list[AnnotationRow], str]
"""The rows of a split, and the name of their file for reports."""


def charades_sta(root: str | Path, selection: str = "heldout", moments: MomentRules = FIXED) -> Protocol:
    """Charades-STA (Gao et al. 2017): 12,408 train and 3,720 test sentences; selection is held out.

    Args:
        root: the annotations directory.
        selection: "heldout" or the name of a test split.
        moments: what is done with moments that do not fit their video.

    Returns:
        The protocol, its one test split named "test".

    Raises:
        VmrError: if a file is missing or broken, or `selection` is unknown.
    """
    folder = Path(root) / "charades"
    lengths = readers.read_charades_lengths(folder / "Charades_v1_train.csv", folder / "Charades_v1_test.csv")
    name = numbered()

    def read(file: str, scored: bool) -> SplitRows:
        return readers.read_charades_sta(folder / file, lengths, name, scored, moments), file

    train = read("charades_sta_train.txt", scored=False)
    return build_protocol(
        "charades_sta", train, None, {"test": read("charades_sta_test.txt", scored=True)}, selection
    )


def charades_cd(root: str | Path, selection: str = "heldout", moments: MomentRules = FIXED) -> Protocol:
    """Charades-CD (Yuan et al. 2021): test moments are distributed as in training (iid) or not (ood).

    Arguments and errors as in `charades_sta`. Tests are "iid" and "ood"; selection is the published
    validation split.
    """
    folder = Path(root) / "charades_cd"
    name = numbered()

    def read(part: str, scored: bool = True) -> SplitRows:
        file = f"charades_{part}.json"
        return readers.read_by_video(folder / file, name, scored, "video_duration", rules=moments), file

    train, val = read("train", scored=False), read("val")
    return build_protocol(
        "charades_cd", train, val, {"iid": read("test_iid"), "ood": read("test_ood")}, selection
    )


def charades_cg(root: str | Path, selection: str = "heldout", moments: MomentRules = FIXED) -> Protocol:
    """Charades-CG (Li et al. 2022): test sets with new compositions, new words, and neither (trivial).

    Arguments and errors as in `charades_sta`. Tests are "novel_composition", "novel_word" and "trivial";
    selection is held out.
    """
    return _compositional("charades_cg", root, selection, moments)


def activitynet(root: str | Path, selection: str = "heldout", moments: MomentRules = FIXED) -> Protocol:
    """ActivityNet Captions (Krishna et al. 2017): train on train, select on val_1, test on val_2.

    Arguments and errors as in `charades_sta`. The one test split is "test". val_1 and val_2 are two
    annotations of the same videos: selection uses no test sentence, but it does use test videos, as is common
    practice.
    """
    folder = Path(root) / "activitynet"
    name = numbered()

    def read(file: str, scored: bool = True) -> SplitRows:
        return readers.read_by_video(folder / file, name, scored, rules=moments), file

    train, val = read("train.json", scored=False), read("val_1.json")
    return build_protocol("activitynet", train, val, {"test": read("val_2.json")}, selection)


def activitynet_cd(root: str | Path, selection: str = "heldout", moments: MomentRules = FIXED) -> Protocol:
    """ActivityNet-CD (Yuan et al. 2021), as `charades_cd`.

    Arguments and errors as in `charades_sta`. Tests are "iid" and "ood"; selection is the published
    validation split. The train split is derived: every sentence of train, val_1 and val_2 of ActivityNet
    Captions whose video is in none of the other three splits. This requires the folder activitynet/ too.
    """
    folder = Path(root) / "activitynet_cd"
    name = numbered()

    def read(part: str) -> SplitRows:
        file = f"anet_{part}.json"
        return readers.read_by_video(folder / file, name, scored=True, rules=moments), file

    val, iid, ood = read("val"), read("test_iid"), read("test_ood")
    others = frozenset(row.query.video_id for rows, _ in (val, iid, ood) for row in rows)
    files = ("train.json", "val_1.json", "val_2.json")
    train = [
        row
        for file in files
        for row in readers.read_by_video(
            Path(root) / "activitynet" / file, name, scored=False, without=others, rules=moments
        )
    ]
    source = "derived from activitynet/" + ", ".join(files)
    return build_protocol("activitynet_cd", (train, source), val, {"iid": iid, "ood": ood}, selection)


def activitynet_cg(root: str | Path, selection: str = "heldout", moments: MomentRules = FIXED) -> Protocol:
    """ActivityNet-CG (Li et al. 2022), as `charades_cg`.

    Arguments and errors as in `charades_sta`. Tests are "novel_composition", "novel_word" and "trivial";
    selection is held out.
    """
    return _compositional("activitynet_cg", root, selection, moments)


def tacos(root: str | Path, selection: str = "heldout", moments: MomentRules = FIXED) -> Protocol:
    """TACoS (Regneri et al. 2013; the splits and merged sentences of 2D-TAN): 75, 27 and 25 cooking videos.

    Arguments and errors as in `charades_sta`. The one test split is "test"; selection is the published
    validation split. Query ids are those of the released text features (`s30-d52_0`).
    """
    folder = Path(root) / "tacos"
    name = numbered()

    def read(file: str, scored: bool = True) -> SplitRows:
        return readers.read_tacos(folder / file, name, scored, rules=moments), file

    train, val = read("train.json", scored=False), read("val.json")
    return build_protocol("tacos", train, val, {"test": read("test.json")}, selection)


def qvhighlights(root: str | Path, selection: str = "heldout", moments: MomentRules = FIXED) -> Protocol:
    """QVHighlights (Lei et al. 2021): several windows per sentence, and ratings of every clip in them.

    Arguments and errors as in `charades_sta`. The one test split is "test" (its ground truth became public in
    2026); selection is the published validation split. Query ids are the published `qid`s.
    """
    folder = Path(root) / "qvhighlights"

    def read(file: str, scored: bool = True) -> SplitRows:
        return readers.read_qvhighlights(folder / file, scored, moments), file

    train, val = read("highlight_train_release.jsonl", scored=False), read("highlight_val_release.jsonl")
    return build_protocol(
        "qvhighlights", train, val, {"test": read("highlight_test_with_gt.jsonl")}, selection
    )


def listed(
    root: str | Path,
    name: str,
    folder: str,
    tests: Mapping[str, str],
    val: str | None = None,
    selection: str = "heldout",
    moments: MomentRules = FIXED,
) -> Protocol:
    """Reads the lists that authors publish in the format of QVHighlights, in place of a data set's own files.

    Query ids are the lists' `qid`s, by which the authors' text features are named. The train list is
    `train.jsonl`.

    Args:
        root: the annotations directory.
        name: name of the protocol.
        folder: folder of the lists in `root`.
        tests: list of each test split by name.
        val: list of the published validation split; None: there is none.
        selection: "heldout" or the name of a test split.
        moments: what is done with moments that do not fit their video.

    Raises:
        VmrError: as in `charades_sta`.
    """

    def read(file: str, scored: bool = True) -> SplitRows:
        return readers.read_lists(Path(root) / folder / file, scored, moments), file

    train, published_val = read("train.jsonl", scored=False), None if val is None else read(val)
    return build_protocol(
        name, train, published_val, {test: read(file) for test, file in tests.items()}, selection
    )


@dataclass(frozen=True, slots=True)
class CQValSubset:
    """One column of LMR's table IV.

    Attributes:
        clauses: minimum number of clauses.
        words: minimum number of words.
        sentences: size of the authors' subset. The paper states only the range, 48 to 388. The sizes follow
            from the table: both R1@0.7 values of a column are multiples of 1 / size to the printed digit. If
            several sizes qualify, the smallest two or three are listed.
    """

    clauses: int
    words: int
    sentences: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the test split."""
        return f"c{self.clauses}_w{self.words}"


CQVAL = (
    CQValSubset(1, 8, (388,)),
    CQValSubset(1, 9, (353,)),
    CQValSubset(1, 10, (305,)),
    CQValSubset(1, 11, (266,)),
    CQValSubset(1, 12, (226,)),
    CQValSubset(1, 13, (188,)),
    CQValSubset(1, 14, (153,)),
    CQValSubset(1, 15, (125,)),
    CQValSubset(1, 16, (58, 87, 116)),
    CQValSubset(2, 8, (50, 100)),
    CQValSubset(2, 9, (49, 98)),
    CQValSubset(2, 10, (48,)),
)
"""LMR (section IV-D, table IV). The first subset is the largest and contains all others; the smallest, of 48
sentences, can only be the last."""


def cqval(
    root: str | Path, clauses: ClauseCounts, selection: str = "val", moments: MomentRules = FIXED
) -> Protocol:
    """C-QVal (LMR, section IV-D): QVHighlights, tested on complex sentences of its val split.

    The 12 nested test splits contain the sentences with at least a given number of clauses and words
    (`CQVAL`), and are named "c1_w8" and so on.

    Args:
        root: the annotations directory.
        clauses: counts clauses; named in the source of the splits. The paper's parser is spaCy: other parsers
            give other subsets, and so another protocol, "cqval_hanta".
        selection: "val" selects on the whole val split, which contains the tests: numbers are marked as
            selected on test data. "heldout" holds out a tenth of the train videos.
        moments: what is done with moments that do not fit their video.

    Returns:
        The protocol.

    Raises:
        VmrError: if a file is missing or broken, or `selection` is unknown.
    """
    if selection not in ("val", "heldout"):
        raise unknown("selection", selection, ("val", "heldout"))
    folder = Path(root) / "qvhighlights"
    file = "highlight_val_release.jsonl"
    train = readers.read_qvhighlights(folder / "highlight_train_release.jsonl", False, moments)
    val = readers.read_qvhighlights(folder / file, True, moments)
    counted = [
        (clauses.count(row.query.text), count_words(row.query.text), row)
        for row in val
        if isinstance(row.query, Query)
    ]
    parser = " ".join(map(str, clauses.manifest().values()))
    name = "cqval" if clauses.parser == "spacy" else f"cqval_{clauses.parser}"
    tests: dict[str, SplitRows] = {}
    for subset in CQVAL:
        rows = [row for c, w, row in counted if c >= subset.clauses and w >= subset.words]
        sizes = " or ".join(map(str, subset.sentences))
        limits = f">= {subset.clauses} clauses ({parser}), >= {subset.words} words"
        tests[subset.name] = rows, f"{file}: {limits}; LMR's table IV implies {sizes}"
    part = (train, "highlight_train_release.jsonl")
    if selection == "heldout":
        return build_protocol(name, part, None, tests, selection)
    protocol = build_protocol(name, part, (val, file), tests, "heldout")
    return replace(protocol, selection_origin="test data: the val split, which contains every test split")


PUBLISHED_PROTOCOLS: tuple[Callable[..., Protocol], ...] = (
    charades_sta,
    charades_cd,
    charades_cg,
    activitynet,
    activitynet_cd,
    activitynet_cg,
    tacos,
    qvhighlights,
)
"""Every protocol that is read from published files, to find the videos that several share."""


def _compositional(protocol: str, root: str | Path, selection: str, moments: MomentRules) -> Protocol:
    folder = Path(root) / protocol
    name = numbered()

    def read(file: str, scored: bool = True) -> SplitRows:
        return readers.read_by_video(folder / file, name, scored, rules=moments), file

    train = read("train.json", scored=False)
    tests = {
        "novel_composition": read("novel_composition.json"),
        "novel_word": read("novel_word.json"),
        "trivial": read("test_trivial.json"),
    }
    return build_protocol(protocol, train, None, tests, selection)


def held_out_videos(video_ids: tuple[str, ...], share: float = HELD_OUT_SHARE) -> frozenset[str]:
    """Chooses the videos that are held out of train for selection.

    The choice depends on the ids alone, not on their order, the machine or a seed: videos are ranked by a
    hash, and the first `share` of them, at least one, is held out.

    Args:
        video_ids: distinct videos of the train split.
        share: share of the videos, between 0 and 1.

    Raises:
        VmrError: if there are fewer than two videos.
    """
    if len(video_ids) < 2:
        raise VmrError(
            f"Cannot hold out videos from a train split of {len(video_ids)}: selection and training need "
            "at least one each. Use a larger train split."
        )
    ranked = sorted(video_ids, key=lambda video: hashlib.sha256(f"{_SALT}:{video}".encode()).digest())
    return frozenset(ranked[: max(1, round(share * len(ranked)))])


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
        VmrError: if `selection` is unknown, or too few videos can be held out.
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

    protocol = Protocol(name, trained, selected, test_splits, origin, published if held else None)
    _warn_about_fixes(protocol)
    return protocol


def _warn_about_fixes(protocol: Protocol) -> None:
    parts = []
    for split in protocol.published.values():
        fixes = [f"{count:,} {kind}" for kind, count in sorted(split.counts.items()) if kind != "repeated"]
        if fixes:
            parts.append(f"{split.name} {', '.join(fixes)} of {split.sentences:,}")
    if parts:
        log.warning(
            "%s: moments fixed on reading: %s. `vmr doctor data=%s` explains them.",
            protocol.name,
            "; ".join(parts),
            protocol.name,
        )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences the warning about fixes, to read a protocol that the user did not request."""
    log.disabled, before = True, log.disabled
    try:
        yield
    finally:
        log.disabled = before


def find_split(protocol: Protocol, name: str) -> Split:
    """Finds a split by name; "val" is another name for a published selection split.

    Args:
        protocol: where to look.
        name: "train", "selection", "val", or a test split's name.

    Raises:
        VmrError: if there is no such split, or if "val" is requested and the selection split is not a
            published validation split.
    """
    if name == "val":
        if protocol.selection_origin == PUBLISHED:
            return protocol.selection
        raise VmrError(
            f"{protocol.name} has no published validation split; its selection split is "
            f"'{protocol.selection_origin}'. Use split=selection for that one."
        )
    if name not in protocol.splits:
        raise unknown(f"split of {protocol.name}", name, protocol.splits)
    return protocol.splits[name]


def refuse_other_protocol(trained_on: str, requested: str, root: str | Path | None = None) -> None:
    """Refuses to score a checkpoint under a protocol that it was not trained for.

    The protocols of one data set split the same videos differently: test data of one is training data of
    another.

    Args:
        trained_on: protocol that the checkpoint was trained for.
        requested: protocol to score it under.
        root: the annotations directory; if given, the error counts the test videos seen in training.

    Raises:
        VmrError: if the two differ.
    """
    if trained_on == requested:
        return
    raise VmrError(
        f"This checkpoint was trained for the protocol '{trained_on}' and is scored only under it, not under "
        f"'{requested}'{_leak(trained_on, requested, root)}. Score it with data={trained_on}, or train one "
        f"with data={requested}."
    )


def _leak(trained_on: str, requested: str, root: str | Path | None) -> str:
    known = {function.__name__: function for function in PUBLISHED_PROTOCOLS}
    if root is None or trained_on not in known or requested not in known:
        return ""
    try:
        with without_warnings():
            train, tests = known[trained_on](root).published[TRAIN], known[requested](root).tests
    except VmrError:  # the error message works without the numbers
        return ""
    seen = {name: len(shared_videos([train], [split])) for name, split in tests.items()}
    if not any(seen.values()):
        return ": the two are different data"
    return ": its train split holds " + ", ".join(
        f"{count:,} of the {tests[name].videos:,} videos of {requested}'s {name} split"
        for name, count in seen.items()
    )
