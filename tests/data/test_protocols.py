"""Readers reproduce the published sizes, fix and count known errors, and refuse broken files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from vmr_zoo.data.annotations import building, protocols, readers
from vmr_zoo.data.annotations.records import HELD_OUT, PUBLISHED, Dropped, Protocol, Query, shared_videos
from vmr_zoo.data.annotations.rows import MomentRules, numbered
from vmr_zoo.errors import VmrError

ROOT = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not ROOT.is_dir(), reason="../shared/data (published annotations) is not there"
)

SIZES = {
    "charades_sta": {"train": (5338, 12408), "test": (1334, 3720)},
    "charades_cd": {
        "train": (4564, 11071),
        "selection": (333, 859),
        "iid": (333, 823),
        "ood": (1442, 3375),
    },
    "charades_cg": {
        "train": (3555, 8281),
        "novel_composition": (2480, 3442),
        "novel_word": (580, 695),
        "trivial": (1689, 3096),
    },
    "activitynet": {"train": (10009, 37421), "selection": (4917, 17505), "test": (4885, 17031)},
    "activitynet_cd": {
        "train": (10984, 51415),
        "selection": (746, 3521),
        "iid": (746, 3443),
        "ood": (2450, 13578),
    },
    "activitynet_cg": {
        "train": (9659, 36724),
        "novel_composition": (4202, 12028),
        "novel_word": (1991, 3920),
        "trivial": (4775, 15712),
    },
    "tacos": {"train": (75, 9790), "selection": (27, 4436), "test": (25, 4001)},
    "qvhighlights": {"train": (7100, 7218), "selection": (1519, 1550), "test": (1529, 1542)},
}
FIXES = {
    "charades_sta": {"train": {"clipped": 1802}, "test": {"clipped": 562}},
    "charades_cd": {"ood": {"clipped": 345, "unanswerable_outside": 3}},
    "activitynet": {"train": {"clipped": 261, "swapped": 2, "dropped_zero_length": 2}},
    "activitynet_cd": {"ood": {"clipped": 55, "swapped": 2, "unanswerable_zero_length": 2}},
    "tacos": {"train": {"clipped": 43, "repeated": 1206}, "test": {"clipped": 5, "repeated": 572}},
    "qvhighlights": {"train": {}, "selection": {}, "test": {}},
}


@pytest.fixture(scope="module")
def read() -> Callable[[str], Protocol]:
    """Reads each protocol once per module."""
    cache: dict[str, Protocol] = {}

    def get(name: str) -> Protocol:
        if name not in cache:
            cache[name] = getattr(protocols, name)(ROOT)
        return cache[name]

    return get


@needs_data
@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str, read: Callable[[str], Protocol]) -> None:
    protocol = read(name)
    sizes = {split: (entry.videos, entry.sentences) for split, entry in protocol.published.items()}
    if protocol.selection_origin == HELD_OUT:
        assert "selection" not in SIZES[name]
        del sizes["selection"]
    assert sizes == SIZES[name]


@needs_data
@pytest.mark.parametrize("name", FIXES)
def test_fixes_of_the_published_files(name: str, read: Callable[[str], Protocol]) -> None:
    published = read(name).published
    assert {split: dict(published[split].counts) for split in FIXES[name]} == FIXES[name]


@needs_data
@pytest.mark.parametrize("name", SIZES)
def test_every_query_is_normalised(name: str, read: Callable[[str], Protocol]) -> None:
    protocol = read(name)
    seen: set[str] = set()
    for split in protocol.splits.values():
        for query in split.queries:
            assert query.query_id not in seen
            seen.add(query.query_id)
            assert query.text
            assert query.text == query.text.strip()
            assert query.moments
            assert all(0 <= start < end <= query.duration for start, end in query.moments)
    for test in protocol.tests.values():
        assert not shared_videos([protocol.train], [test])


@needs_data
@pytest.mark.parametrize("name", ["charades_sta", "charades_cg", "activitynet_cg"])
def test_held_out_by_video(name: str, read: Callable[[str], Protocol]) -> None:
    protocol = read(name)
    published = protocol.published["train"]
    assert protocol.selection.videos == round(published.videos / 10)
    assert not shared_videos([protocol.train], [protocol.selection])
    assert protocol.train.sentences + protocol.selection.sentences == published.sentences
    assert protocol.train.counts + protocol.selection.counts == published.counts


@needs_data
@pytest.mark.parametrize(
    ("trained_on", "videos", "requested"),
    [("charades_cg", "729", "charades_sta"), ("charades_cd", "907", "charades_sta")],
)
def test_refusal_says_how_many_test_videos_were_trained_on(
    read: Callable[[str], Protocol], trained_on: str, videos: str, requested: str
) -> None:
    with pytest.raises(VmrError, match=f"not tested under '{requested}'.* {videos} of the 1,334 videos"):
        protocols.refuse_shared_videos(read(trained_on), read(requested), ["test"])
    protocols.refuse_shared_videos(read(trained_on), read("tacos"), ["test"])


@needs_data
def test_tacos_ids_are_those_of_the_text_features_and_times_are_seconds(
    read: Callable[[str], Protocol],
) -> None:
    query = read("tacos").tests["test"].queries[0]
    assert (query.query_id, query.video_id) == ("s30-d52_0", "s30-d52")
    assert query.moments == ((141 / 29.4, 354 / 29.4),)


@needs_data
def test_qvhighlights_keeps_windows_and_ratings(read: Callable[[str], Protocol]) -> None:
    protocol = read("qvhighlights")
    assert sum(len(query.moments) for query in protocol.selection.queries) == 2803
    query = next(query for query in protocol.tests["test"].queries if query.query_id == "7920")
    assert query.moments == ((134, 138), (140, 150))
    assert query.saliency[2] == (70, (2, 2, 1))


def test_held_out_choice_depends_on_the_ids_alone() -> None:
    videos = tuple(f"v{number}" for number in range(30))
    chosen = building.held_out_videos(videos)
    assert chosen == {"v13", "v14", "v18"}  # pinned: a change would mix train and selection of existing runs
    assert building.held_out_videos(videos[::-1]) == chosen
    assert len(building.held_out_videos(("a", "b"))) == 1
    with pytest.raises(VmrError, match="train split of 1"):
        building.held_out_videos(("a",))


# --- small files


def write(root: Path, name: str, content: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def entry(*moments: tuple[float, float], duration: float = 10.0) -> dict[str, object]:
    sentences = [f" sentence {number}\n" for number in range(len(moments))]
    return {"duration": duration, "timestamps": [list(m) for m in moments], "sentences": sentences}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small activitynet with every kind of fix in train and in test."""
    odd = entry((1, 4), (8, 12), (5, 2), (3, 3), (10, 11), duration=10)
    write(tmp_path, "activitynet/train.json", {"a": odd, "b": entry((0, 1))})
    write(tmp_path, "activitynet/val_1.json", {"c": entry((0, 1))})
    write(tmp_path, "activitynet/val_2.json", {"c": entry((0, 2)), "d": odd})
    return tmp_path


def test_train_drops_what_cannot_be_fixed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train = protocols.activitynet(root).train
    assert [query.moments for query in train.queries] == [((1, 4),), ((8, 10),), ((2, 5),), ((0, 1),)]
    assert [query.query_id for query in train.queries] == ["a_0", "a_1", "a_2", "b_0"]
    assert train.queries[0].text == "sentence 0"
    assert train.counts == {"clipped": 1, "swapped": 1, "dropped_zero_length": 1, "dropped_outside": 1}
    assert [(row.query_id, row.reason) for row in train.dropped] == [
        ("a_3", "dropped_zero_length"),
        ("a_4", "dropped_outside"),
    ]
    assert (train.videos, train.sentences) == (2, 6)
    assert "train 1 clipped, 1 dropped_outside, 1 dropped_zero_length, 1 swapped of 6" in caplog.text


def test_a_scored_split_keeps_every_sentence_and_nothing_hits_an_unanswerable_one(root: Path) -> None:
    test = protocols.activitynet(root).tests["test"]
    assert [query.query_id for query in test.queries] == ["c_1", "d_0", "d_1", "d_2", "d_3", "d_4"]
    no_extent, outside = (query.moments[0] for query in test.queries[-2:])
    assert no_extent == pytest.approx((3, 3.01))
    assert outside == pytest.approx((9.99, 10))
    assert test.counts["unanswerable_zero_length"] == test.counts["unanswerable_outside"] == 1
    assert test.dropped == ()


def test_selection_on_a_test_split_trains_on_everything_and_is_recorded(root: Path) -> None:
    folder = root / "charades_cg"
    for file in ("train", "novel_composition", "novel_word", "test_trivial"):
        write(folder, f"{file}.json", {f"{file}{n}": entry((0, 1)) for n in range(20)})
    held = protocols.charades_cg(root)
    assert (held.train.videos, held.selection.videos) == (18, 2)
    assert not held.selected_on_test
    chosen = protocols.charades_cg(root, selection="novel_word")
    assert chosen.train.videos == 20
    assert chosen.selected_on_test
    assert chosen.selection.queries == chosen.tests["novel_word"].queries
    assert chosen.selection_origin == "test split 'novel_word'"
    with pytest.raises(VmrError, match="Did you mean novel_word"):
        protocols.charades_cg(root, selection="novel_words")


def test_find_split(root: Path) -> None:
    protocol = protocols.activitynet(root)
    assert protocol.selection_origin == PUBLISHED
    assert protocols.find_split(protocol, "val") is protocol.selection
    assert protocols.find_split(protocol, "test") is protocol.tests["test"]
    with pytest.raises(VmrError, match=r"Unknown split of activitynet 'tests'\. Did you mean test"):
        protocols.find_split(protocol, "tests")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "\xff"}', "line 1: expected UTF-8 text, found byte 0xff"),
        (b'{"a": {"duration": 1', "line 1, column 21: not valid JSON .* cut short"),
        ([1], "expected a JSON object of videos, found a list"),
        ({}, "holds no sentence"),
        ('{"a": {}, "a": {}}', "the same key twice: a"),
        ({"../a": entry((0, 1))}, r"part of a file name .* found '\.\./a'"),
        ({"a ": entry((0, 1))}, r"without white space at either end.* found 'a '"),
        ({"a\nb": entry((0, 1))}, r"found 'a\\nb'"),
        ({"a": {"timestamps": [[0, 1]], "sentences": ["x"]}}, "video 'a': expected the key 'duration'"),
        ({"a": entry((0, 1)) | {"duration": 0}}, "'duration' above 0"),
        ({"a": entry((0, 1)) | {"sentences": []}}, "found 0 and 1"),
        (
            {"a": entry((0, 1), (0, 1)) | {"sentences": ["x", " "]}},
            "sentence 1: expected a sentence, found ' '",
        ),
        ({"a": entry((-1, 1))}, "sentence 0: expected a moment's start .* found -1"),
        ('{"a": {"duration": 9, "timestamps": [[0, NaN]], "sentences": ["x"]}}', "moment's end .* found nan"),
        ({"a": entry() | {"timestamps": [[1]], "sentences": ["x"]}}, r"\[start, end\], found \[1\]"),
    ],
)
def test_a_broken_file_is_named_with_the_place(root: Path, content: object, message: str) -> None:
    write(root, "activitynet/val_1.json", content)
    with pytest.raises(VmrError, match=f"(?s)val_1.json.*{message}"):
        protocols.activitynet(root)


def test_a_missing_file_says_where_to_point(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"No annotation file .*train.json.* paths.annotations"):
        protocols.activitynet(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("V1 0 1##x\nV1 0 1 x\n", "line 2: expected 'video start end##sentence'"),
        ("V1 0 one##x\n", "line 1: expected a number, found 'one'"),
        ("V1 nan 1##x\n", "line 1: expected a moment's start .* found nan"),
        ("V1 0 1##\n", "line 1: expected a sentence"),
        ("V2 0 1##x\n", "list no length for V2"),
    ],
)
def test_a_broken_charades_sta_line(tmp_path: Path, lines: str, message: str) -> None:
    write(tmp_path, "train.txt", lines)
    with pytest.raises(VmrError, match=f"train.txt.*{message}"):
        readers.read_charades_sta(tmp_path / "train.txt", {"V1": 9.0}, numbered(), scored=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qid": 1}, "line 2: qid 1 was already used on line 1"),
        ({"vid": "a/b"}, "line 2: expected an id"),
        ({"relevant_windows": []}, r"line 2: expected a list of \[start, end\]"),
        ({"relevant_clip_ids": [5], "saliency_scores": [[1]]}, "line 2: .* from 0 to 4 .* found 5"),
        ({"saliency_scores": []}, "line 2: expected as many 'saliency_scores'"),
        ("{", "line 2, column 2: not valid JSON"),
    ],
)
def test_a_broken_qvhighlights_line(tmp_path: Path, change: dict[str, object] | str, message: str) -> None:
    row = {"qid": 1, "query": "x", "vid": "v", "duration": 10, "relevant_windows": [[0, 2]]}
    row |= {"relevant_clip_ids": [0], "saliency_scores": [[1, 2, 3]]}
    second = change if isinstance(change, str) else json.dumps(row | {"qid": 2} | change)
    write(tmp_path, "val.jsonl", json.dumps(row) + "\n" + second + "\n")
    with pytest.raises(VmrError, match=f"val.jsonl.*{message}"):
        readers.read_qvhighlights(tmp_path / "val.jsonl", scored=True)


LISTED = {
    "fits": [[1, 4]],
    "past the end": [[8, 12.5]],
    "starts past the end": [[11, 12]],
    "reversed": [[6, 3]],
    "empty": [[5, 5]],
    "whole video": [[0.5, 11]],
}


def read_list(folder: Path, rules: MomentRules) -> dict[str, Query | Dropped]:
    rows = [
        {"qid": number, "query": text, "vid": "v", "duration": 10, "relevant_windows": windows}
        for number, (text, windows) in enumerate(LISTED.items())
    ]
    write(folder, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    read = readers.read_qvhighlights(folder / "train.jsonl", True, rules, rated=False)
    return {text: row.query for text, row in zip(LISTED, read, strict=True)}


def test_moments_as_written(tmp_path: Path) -> None:
    found = read_list(tmp_path, MomentRules(times="as_written"))
    moments = {text: query.moments for text, query in found.items() if isinstance(query, Query)}
    expected = {text: tuple(tuple(window) for window in windows) for text, windows in LISTED.items()}
    assert moments == expected | {"reversed": ((6, 6),)}


def test_a_moment_as_long_as_the_video_is_dropped_on_request(tmp_path: Path) -> None:
    found = read_list(tmp_path, MomentRules(whole_video="dropped"))
    dropped = found.pop("whole video")
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "dropped_whole_video"
    assert not any(isinstance(query, Dropped) for query in found.values())


def test_lists_are_read_with_their_qids_and_negatives(tmp_path: Path) -> None:
    for file, qids in {"train": (7, 8), "test": (9, 10)}.items():
        lines = [
            {
                "qid": qid,
                "query": f"q{qid}",
                "vid": f"{file}{qid}",
                "duration": 9,
                "relevant_windows": [[1, 2]],
            }
            | ({"neg_query_ids": [8]} if qid == 7 else {})
            for qid in qids
        ]
        write(tmp_path / "lists", f"{file}.jsonl", "\n".join(map(json.dumps, lines)))
    read = protocols.listed(tmp_path, "charades_sta", "lists", {"test": "test.jsonl"}, selection="test")
    assert [query.query_id for query in read.train.queries] == ["7", "8"]
    assert [query.negatives for query in read.train.queries] == [("8",), ()]
    assert [query.query_id for query in read.selection.queries] == ["9", "10"]


def test_a_protocol_without_some_videos_counts_them(tmp_path: Path) -> None:
    lines = [
        {"qid": qid, "query": "q", "vid": f"v{qid}", "duration": 9, "relevant_windows": [[1, 2]]}
        for qid in (1, 2)
    ]
    for file in ("train", "test"):
        write(tmp_path / "lists", f"{file}.jsonl", "\n".join(map(json.dumps, lines)))
    read = protocols.listed(tmp_path, "x", "lists", {"test": "test.jsonl"}, selection="test").without({"v2"})
    for split in read.splits.values():
        assert [query.query_id for query in split.queries] == ["1"]
        assert split.counts["dropped_missing_video"] == 1
        assert (split.sentences, split.videos) == (2, 2)
