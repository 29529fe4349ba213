"""The protocols of the published data sets: which file is trained on, selected on, tested on.

One function per protocol reads the files as published, in place, from a directory with one folder per data
set:

    charades/       charades_sta_{train,test}.txt, Charades_v1_{train,test}.csv (for the lengths)
    charades_cd/    charades_{train,val,test_iid,test_ood}.json
    charades_cg/    train.json, novel_composition.json, novel_word.json, test_trivial.json
    activitynet/    train.json, val_1.json, val_2.json
    activitynet_cd/ anet_{val,test_iid,test_ood}.json (train is derived from activitynet/)
    activitynet_cg/ as charades_cg/
    tacos/          train.json, val.json, test.json
    qvhighlights/   highlight_{train,val}_release.jsonl, highlight_test_with_gt.jsonl

What is normalised and mended on reading: `vmr_zoo.data.annotations.readers`.

**Selection.** Every function takes `selection`. The default "heldout" never touches a test split: it is the
published validation split where there is one, else a tenth of the train videos, which are then not trained on
(`Protocol.train` lacks them, `Protocol.published_train` has them). Several papers selected on test data
instead: the name of a test split does that. It trains on the whole train split, as they did, and is recorded
in `Protocol.selection_origin`, so that every number it yields is marked.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vmr_zoo.data.annotations import readers
from vmr_zoo.data.annotations.readers import Row, numbered, split_of
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
from vmr_zoo.data.text.parsing import ClauseCounts, count_words
from vmr_zoo.errors import VmrError, unknown

log = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.1
"""Share of the train videos that is held out where no validation split is published."""

_SALT = "vmr_zoo selection 1"

_Part = tuple[list[Row], str]
"""Rows of a split and the name of the file that they are from."""


def charades_sta(root: str | Path, selection: str = "heldout") -> Protocol:
    """Charades-STA (Gao et al. 2017): 12,408 train and 3,720 test sentences; selection is held out.

    Args:
        root: the annotations directory.
        selection: "heldout" or a test split's name; see the module's docstring.

    Returns:
        The protocol, its one test split named "test".

    Raises:
        VmrError: if a file is missing or broken, or `selection` is unknown.
    """
    folder = Path(root) / "charades"
    lengths = readers.charades_lengths(folder / "Charades_v1_train.csv", folder / "Charades_v1_test.csv")
    name = numbered()

    def read(file: str, scored: bool) -> _Part:
        return readers.charades_sta(folder / file, lengths, name, scored), file

    train = read("charades_sta_train.txt", scored=False)
    return _protocol(
        "charades_sta", train, None, {"test": read("charades_sta_test.txt", scored=True)}, selection
    )


def charades_cd(root: str | Path, selection: str = "heldout") -> Protocol:
    """Charades-CD (Yuan et al. 2021): test moments are distributed as in training (iid) or not (ood).

    Args, returns and errors as `charades_sta`; tests "iid" and "ood", selection is the published validation
    split.
    """
    folder = Path(root) / "charades_cd"
    name = numbered()

    def read(part: str, scored: bool = True) -> _Part:
        file = f"charades_{part}.json"
        return readers.by_video(folder / file, name, scored, duration_key="video_duration"), file

    train, val = read("train", scored=False), read("val")
    return _protocol("charades_cd", train, val, {"iid": read("test_iid"), "ood": read("test_ood")}, selection)


def charades_cg(root: str | Path, selection: str = "heldout") -> Protocol:
    """Charades-CG (Li et al. 2022): test sets with new compositions, new words, and neither (trivial).

    Args, returns and errors as `charades_sta`; tests "novel_composition", "novel_word", "trivial"; selection
    is held out.
    """
    return _compositional("charades_cg", root, selection)


def activitynet(root: str | Path, selection: str = "heldout") -> Protocol:
    """ActivityNet Captions (Krishna et al. 2017): train on train, select on val_1, test on val_2.

    Args, returns and errors as `charades_sta`; one test split, "test". val_1 and val_2 are two annotations of
    the same videos: selection never sees a test sentence, but it does see test videos. That is the usual
    protocol.
    """
    folder = Path(root) / "activitynet"
    name = numbered()

    def read(file: str, scored: bool = True) -> _Part:
        return readers.by_video(folder / file, name, scored), file

    train, val = read("train.json", scored=False), read("val_1.json")
    return _protocol("activitynet", train, val, {"test": read("val_2.json")}, selection)


def activitynet_cd(root: str | Path, selection: str = "heldout") -> Protocol:
    """ActivityNet-CD (Yuan et al. 2021), as `charades_cd`.

    Args, returns and errors as `charades_sta`; tests "iid" and "ood", selection is the published validation
    split. The train file is derived: every sentence of ActivityNet Captions' train, val_1 and val_2 whose
    video is in none of the other three splits. It needs the folder activitynet/ too.
    """
    folder = Path(root) / "activitynet_cd"
    name = numbered()

    def read(part: str) -> _Part:
        file = f"anet_{part}.json"
        return readers.by_video(folder / file, name, scored=True), file

    val, iid, ood = read("val"), read("test_iid"), read("test_ood")
    others = frozenset(row.query.video_id for rows, _ in (val, iid, ood) for row in rows)
    files = ("train.json", "val_1.json", "val_2.json")
    train = [
        row
        for file in files
        for row in readers.by_video(Path(root) / "activitynet" / file, name, scored=False, without=others)
    ]
    source = "derived from activitynet/" + ", ".join(files)
    return _protocol("activitynet_cd", (train, source), val, {"iid": iid, "ood": ood}, selection)


def activitynet_cg(root: str | Path, selection: str = "heldout") -> Protocol:
    """ActivityNet-CG (Li et al. 2022), as `charades_cg`.

    Args, returns and errors as `charades_sta`; tests "novel_composition", "novel_word", "trivial"; selection
    is held out.
    """
    return _compositional("activitynet_cg", root, selection)


def tacos(root: str | Path, selection: str = "heldout") -> Protocol:
    """TACoS (Regneri et al. 2013; the splits and merged sentences of 2D-TAN): 75, 27 and 25 cooking videos.

    Args, returns and errors as `charades_sta`; one test split, "test", selection is the published validation
    split. Query ids are those of the released text features (`s30-d52_0`).
    """
    folder = Path(root) / "tacos"
    name = numbered()

    def read(file: str, scored: bool = True) -> _Part:
        return readers.tacos(folder / file, name, scored), file

    train, val = read("train.json", scored=False), read("val.json")
    return _protocol("tacos", train, val, {"test": read("test.json")}, selection)


def qvhighlights(root: str | Path, selection: str = "heldout") -> Protocol:
    """QVHighlights (Lei et al. 2021): several windows per sentence, and ratings of every clip in them.

    Args, returns and errors as `charades_sta`; one test split, "test" (its ground truth became public in
    2026), selection is the published validation split. Query ids are the published `qid`s.
    """
    folder = Path(root) / "qvhighlights"

    def read(file: str, scored: bool = True) -> _Part:
        return readers.qvhighlights(folder / file, scored), file

    train, val = read("highlight_train_release.jsonl", scored=False), read("highlight_val_release.jsonl")
    return _protocol("qvhighlights", train, val, {"test": read("highlight_test_with_gt.jsonl")}, selection)


@dataclass(frozen=True, slots=True)
class CQValSubset:
    """One column of LMR's table IV.

    Attributes:
        clauses: the least number of clauses.
        words: the least number of words.
        sentences: how many the authors' subset has. The paper prints none but the range, 48 to 388. These
            follow from the table: both of its R1@0.7 in a column are a whole number of this many sentences
            to the printed digit. Where several numbers do that, the smallest two or three are listed.
    """

    clauses: int
    words: int
    sentences: tuple[int, ...]

    @property
    def name(self) -> str:
        """The test split's name."""
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
"""LMR (section IV-D, table IV). The largest subset is the first, which holds all others; the smallest, of 48,
can only be the last."""


def cqval(root: str | Path, clauses: ClauseCounts, selection: str = "val") -> Protocol:
    """C-QVal (LMR, section IV-D): QVHighlights, tested on complex sentences of its val split.

    The 12 test splits are the sentences with at least so many clauses and words (`CQVAL`), named "c1_w8" and
    so on. They lie in one another.

    Args:
        root: the annotations directory.
        clauses: what counts clauses; it is named in the splits' source.
        selection: "val" selects on the whole val split, of which the tests are parts: the numbers are marked
            as selected on test data. "heldout" holds a tenth of the train videos out.

    Returns:
        The protocol.

    Raises:
        VmrError: if a file is missing or broken, or `selection` is unknown.
    """
    if selection not in ("val", "heldout"):
        raise unknown("selection", selection, ("val", "heldout"))
    folder = Path(root) / "qvhighlights"
    file = "highlight_val_release.jsonl"
    train = readers.qvhighlights(folder / "highlight_train_release.jsonl", scored=False)
    val = readers.qvhighlights(folder / file, scored=True)
    counted = [
        (clauses.count(row.query.text), count_words(row.query.text), row)
        for row in val
        if isinstance(row.query, Query)
    ]
    parser = " ".join(map(str, clauses.manifest().values()))
    tests: dict[str, _Part] = {}
    for subset in CQVAL:
        rows = [row for c, w, row in counted if c >= subset.clauses and w >= subset.words]
        sizes = " or ".join(map(str, subset.sentences))
        limits = f">= {subset.clauses} clauses ({parser}), >= {subset.words} words"
        tests[subset.name] = rows, f"{file}: {limits}; LMR's table IV implies {sizes}"
    part = (train, "highlight_train_release.jsonl")
    if selection == "heldout":
        return _protocol("cqval", part, None, tests, selection)
    protocol = _protocol("cqval", part, (val, file), tests, "heldout")
    return replace(protocol, selection_origin="test data: the val split, of which every test split is a part")


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
"""Every protocol that is read from published files, for questions that concern several: shared videos."""


def _compositional(protocol: str, root: str | Path, selection: str) -> Protocol:
    folder = Path(root) / protocol
    name = numbered()

    def read(file: str, scored: bool = True) -> _Part:
        return readers.by_video(folder / file, name, scored), file

    train = read("train.json", scored=False)
    tests = {
        "novel_composition": read("novel_composition.json"),
        "novel_word": read("novel_word.json"),
        "trivial": read("test_trivial.json"),
    }
    return _protocol(protocol, train, None, tests, selection)


def held_out_videos(video_ids: tuple[str, ...], share: float = HELD_OUT_SHARE) -> frozenset[str]:
    """Chooses the videos that are held out of train for selection.

    The choice depends on the ids alone, not on their order, the machine or a seed: the videos are ranked by a
    hash, and the first `share` of them, at least one, are taken.

    Args:
        video_ids: distinct videos of the train split.
        share: of them to take, between 0 and 1.

    Raises:
        VmrError: if there are fewer than two videos.
    """
    if len(video_ids) < 2:
        raise VmrError(
            f"Cannot hold videos out of a train split of {len(video_ids)}: selection and training need "
            "at least one each. Use a larger train split."
        )
    ranked = sorted(video_ids, key=lambda video: hashlib.sha256(f"{_SALT}:{video}".encode()).digest())
    return frozenset(ranked[: max(1, round(share * len(ranked)))])


def _protocol(
    name: str, train: _Part, val: _Part | None, tests: Mapping[str, _Part], selection: str
) -> Protocol:
    """Assembles a protocol, holds out what selection needs, and warns about what was mended."""
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
    _warn_about_mends(protocol)
    return protocol


def _warn_about_mends(protocol: Protocol) -> None:
    parts = []
    for split in protocol.published.values():
        mends = [f"{count:,} {kind}" for kind, count in sorted(split.counts.items()) if kind != "repeated"]
        if mends:
            parts.append(f"{split.name} {', '.join(mends)} of {split.sentences:,}")
    if parts:
        log.warning(
            "%s: moments mended on reading: %s. `vmr doctor data=%s` explains.",
            protocol.name,
            "; ".join(parts),
            protocol.name,
        )


@contextmanager
def unheard() -> Iterator[None]:
    """Silences the warning about mends, for reading a protocol that the user did not ask for."""
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
        VmrError: if there is no such split, with the nearest names; if "val" was asked for and the selection
            split is not a published validation split.
    """
    if name == "val":
        if protocol.selection_origin == PUBLISHED:
            return protocol.selection
        raise VmrError(
            f"{protocol.name} has no published validation split; its selection split is "
            f"'{protocol.selection_origin}'. Say split=selection if that is what you mean."
        )
    if name not in protocol.splits:
        raise unknown(f"split of {protocol.name}", name, protocol.splits)
    return protocol.splits[name]


def refuse_other_protocol(trained_on: str, asked: str, root: str | Path | None = None) -> None:
    """Refuses to score a checkpoint under a protocol that it was not trained for.

    The protocols of one data set deal the same videos differently, so such a score would count what was
    trained on.

    Args:
        trained_on: the protocol that the checkpoint was trained for.
        asked: the protocol to score it under.
        root: the annotations directory; with it the error says how many test videos the checkpoint has seen.

    Raises:
        VmrError: if the two differ.
    """
    if trained_on == asked:
        return
    raise VmrError(
        f"This checkpoint was trained for the protocol '{trained_on}' and is scored only under it, not under "
        f"'{asked}'{_leak(trained_on, asked, root)}. Score it with data={trained_on}, or train one with "
        f"data={asked}."
    )


def _leak(trained_on: str, asked: str, root: str | Path | None) -> str:
    known = {function.__name__: function for function in PUBLISHED_PROTOCOLS}
    if root is None or trained_on not in known or asked not in known:
        return ""
    try:
        with unheard():
            train, tests = known[trained_on](root).published[TRAIN], known[asked](root).tests
    except VmrError:  # the refusal stands without the numbers
        return ""
    seen = {name: len(shared_videos([train], [split])) for name, split in tests.items()}
    if not any(seen.values()):
        return ": the two are different data"
    return ": its train split holds " + ", ".join(
        f"{count:,} of the {tests[name].videos:,} videos of {asked}'s {name} split"
        for name, count in seen.items()
    )
