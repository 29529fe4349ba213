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
    timelens/       {charades,activitynet,qvhighlights}-timelens.json

Readers fix and count known errors of these files (`vmr_zoo.data.annotations.rows`).

**Selection.** Every function takes `selection`. The default "heldout" never uses a test split: it is the
published validation split if there is one, else a tenth of the train videos, which are excluded from training
(`Protocol.published_train` keeps them). Several papers selected on test data: the name of a test split does
the same, trains on the whole train split, as they did, and marks every number through
`Protocol.selection_origin`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vmr_zoo.data.annotations import readers
from vmr_zoo.data.annotations.building import SplitRows, build_protocol, build_tests
from vmr_zoo.data.annotations.records import (
    PUBLISHED,
    TRAIN,
    Protocol,
    Query,
    Split,
    shared_videos,
)
from vmr_zoo.data.annotations.rows import FIXED, MomentRules, numbered
from vmr_zoo.data.annotations.timelens import timelens_activitynet, timelens_charades, timelens_qvhighlights
from vmr_zoo.data.annotations.validation import MissingFile
from vmr_zoo.data.text.parsing import ClauseCounts, count_words
from vmr_zoo.errors import VmrError, unknown


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
    read = _reader_by_video(Path(root) / "activitynet", moments)
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
        return readers.read_qvhighlights(Path(root) / folder / file, scored, moments, rated=False), file

    train, published_val = read("train.jsonl", scored=False), None if val is None else read(val)
    return build_protocol(
        name, train, published_val, {test: read(file) for test, file in tests.items()}, selection
    )


def jsonl(
    name: str,
    train: str | Path | None,
    test: str | Path | Mapping[str, str | Path],
    validation: str | Path | None = None,
    ids: Literal["as_written", "by_split"] = "as_written",
    selection: str = "heldout",
    moments: MomentRules = FIXED,
) -> Protocol:
    """A data set of one's own: JSON Lines in the format of QVHighlights, with or without ratings.

    The name of the protocol ends with a digest of the files: only runs on equal annotations share a table.

    Args:
        name: name of the data set.
        train: the training file; None: the protocol only tests runs that were trained on other data.
        test: the test file, or test files by the name of their split.
        validation: the file that selects checkpoints; None: a tenth of the train videos is held out.
        ids: query ids are the `qid`s "as_written" (lines without one are numbered within their video), or
            "by_split" begin with the name of the split, for files that each count from 0.
        selection: "heldout" or the name of a test split.
        moments: what is done with moments that do not fit their video.

    Raises:
        VmrError: as in `charades_sta`.
    """
    numbers = numbered()
    content = hashlib.sha256()

    def read(split: str, file: str | Path, scored: bool = True) -> SplitRows:
        path = Path(file).expanduser()
        if not path.is_file():
            raise MissingFile(
                f"No annotation file {path}. Name an existing one with train=, selection= and test=. A run "
                "finds its files where they were when it was trained; those below paths.annotations may move "
                "with it."
            )
        rows = readers.read_qvhighlights(path, scored, moments, numbers)
        content.update(f"{split}\n".encode() + path.read_bytes())
        prefix = f"{split}_" if ids == "by_split" else ""
        return [row.renamed(prefix) for row in rows] if prefix else rows, path.name

    files = {"test": test} if isinstance(test, str | Path) else test
    trained = None if train is None else read("train", train, scored=False)
    val = None if validation is None else read("selection", validation)
    tests = {split: read(split, file) for split, file in files.items()}
    name = f"{name}-{content.hexdigest()[:8]}"
    return build_protocol(name, trained, val, tests, selection) if trained else build_tests(name, tests)


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
    timelens_charades,
    timelens_activitynet,
    timelens_qvhighlights,
)
"""Every protocol that is read from published files, to find the videos that several share."""


def _reader_by_video(folder: Path, moments: MomentRules) -> Callable[..., SplitRows]:
    """Returns a reader of the files of a folder that list sentences by video; it numbers them through."""
    name = numbered()

    def read(file: str, scored: bool = True) -> SplitRows:
        return readers.read_by_video(folder / file, name, scored, rules=moments), file

    return read


def _compositional(protocol: str, root: str | Path, selection: str, moments: MomentRules) -> Protocol:
    read = _reader_by_video(Path(root) / protocol, moments)
    train = read("train.json", scored=False)
    tests = {
        "novel_composition": read("novel_composition.json"),
        "novel_word": read("novel_word.json"),
        "trivial": read("test_trivial.json"),
    }
    return build_protocol(protocol, train, None, tests, selection)


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


def refuse_shared_videos(trained: Protocol, tested: Protocol, splits: Collection[str]) -> None:
    """Refuses to test a model on videos that it was trained on, by their ids.

    The protocols of one data set split the same videos differently: test data of one is training data of
    another.

    Args:
        trained: the protocol that the model was trained for.
        tested: the protocol to test it under.
        splits: the requested splits of `tested`.

    Raises:
        VmrError: with the number of shared videos; or if both protocols split the same set of videos, but no
            id of a requested split occurs in `trained`: then ids are written differently, and their
            comparison would find nothing.
    """
    if trained.pool and tested.pool and trained.pool != tested.pool:
        return
    train = [trained.published[TRAIN]]
    counts = {name: len(shared_videos(train, [tested.splits[name]])) for name in splits}
    if any(counts.values()):
        shared = ", ".join(
            f"{count:,} of the {tested.splits[name].videos:,} videos of its {name} split"
            for name, count in counts.items()
            if count
        )
        free = [name for name, count in counts.items() if not count]
        others = f"test it on splits without shared videos (split=[{','.join(free)}]), " if free else ""
        raise VmrError(
            f"This model was trained for the protocol '{trained.name}' and is not tested under "
            f"'{tested.name}': its training data holds {shared}. Leave out data=… to test it under its own "
            f"protocol, {others}or train one with data={tested.train_with or tested.name}."
        )
    for name in splits if trained.pool and trained.pool == tested.pool else ():
        if not shared_videos(trained.published.values(), [tested.splits[name]]):
            first = next(iter(tested.splits[name].video_ids), "none")
            raise VmrError(
                f"No video of the {name} split of {tested.name} (the first is '{first}') occurs in "
                f"{trained.name}, although both are about the videos of {trained.pool}. Its ids are written "
                "differently, and which videos the model was trained on cannot be checked. Compare the ids "
                "of the two annotation files."
            )
