"""Fuzz tests: hypothesis searches for inputs that break the readers, and for deviations from naive loops.

Each test has a short run, always on the same examples, and a longer run, marked slow, on new examples.
Together the short runs try more than 2,000 examples.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from naive import naive_ap, naive_iou, naive_nms
from vmr_zoo import spans
from vmr_zoo.config.arguments import as_typed
from vmr_zoo.data.annotations import readers
from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.annotations.rows import numbered
from vmr_zoo.data.features.files import FileFeatures
from vmr_zoo.data.features.queries import WordVectorQueries
from vmr_zoo.data.features.store import FileStore, Hdf5Store
from vmr_zoo.data.narrations import MANIFEST_KEYS, manifest_path, read_narrations
from vmr_zoo.engine import scoring, submission
from vmr_zoo.engine.query_file import read_query_file
from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.settings import MetricSettings
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.checkpoint_import import read_checkpoint

# Thousands of examples: measuring coverage doubles their time, and the readers' own tests run the same lines.
pytestmark = pytest.mark.no_cover

DATA = Path(__file__).parents[2] / "shared" / "data"

LENGTHS = pytest.mark.parametrize("times", [1, pytest.param(25, marks=pytest.mark.slow, id="long")])


def fuzz(times: int, examples: int, *strategies: Any) -> Callable[[Callable[..., None]], None]:
    """Runs a function on examples: the same in every short run, new ones in a long run."""

    def run(check: Callable[..., None]) -> None:
        settings(
            max_examples=examples * times,
            deadline=None,
            derandomize=times == 1,
            suppress_health_check=list(HealthCheck),
        )(given(*strategies)(check))()

    return run


# --- spans against exact fractions

coordinate = st.floats(-1e4, 1e4, width=32) | st.integers(-5, 5).map(float)
span = st.tuples(coordinate, coordinate).map(sorted)


def exact(a: list[float], b: list[float]) -> tuple[Fraction, Fraction]:
    """IoU and generalised IoU of two spans, without rounding."""
    (s, e), (t, f) = [Fraction(x) for x in a], [Fraction(x) for x in b]
    inter = max(min(e, f) - max(s, t), Fraction(0))
    union = (e - s) + (f - t) - inter
    hull = max(e, f) - min(s, t)
    iou = inter / union if union else Fraction(0)
    return iou, iou - ((hull - union) / hull if hull else Fraction(0))


@LENGTHS
def test_iou_and_giou_equal_exact_fractions_and_have_finite_gradients(times: int) -> None:
    @fuzz(times, 300, span, span)
    def check(a: list[float], b: list[float]) -> None:
        expected = exact(a, b)
        for function, value in zip((spans.iou, spans.giou), expected, strict=True):
            double = function(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
            assert double.item() == pytest.approx(float(value), abs=1e-9)
            single = torch.tensor(a, requires_grad=True)
            got = function(single, torch.tensor(b))
            assert -1 - 1e-6 <= got.item() <= 1 + 1e-6
            assert torch.equal(got, function(torch.tensor(b), single))
            got.backward()
            assert single.grad is not None
            # The squared inverse of a smaller union exceeds float32.
            tiny = max(a[1], b[1]) - min(a[0], b[0]) < 1e-18
            assert tiny or single.grad.isfinite().all()


@LENGTHS
def test_conversion_round_trip(times: int) -> None:
    @fuzz(times, 100, st.lists(span, min_size=1, max_size=5))
    def check(rows: list[list[float]]) -> None:
        given_ = torch.tensor(rows, dtype=torch.float64)
        converted = spans.to_centre_width(given_)
        assert (converted[:, 1] >= 0).all()
        torch.testing.assert_close(spans.to_start_end(converted), given_, rtol=1e-12, atol=1e-9)


@LENGTHS
def test_nms_equals_the_greedy_loop(times: int) -> None:
    scored = st.tuples(span, st.floats(0, 1, width=32))

    @fuzz(times, 200, st.lists(scored, min_size=1, max_size=8), st.floats(0, 1), st.integers(1, 8))
    def check(rows: list[tuple[list[float], float]], threshold: float, keep: int) -> None:
        keep = min(keep, len(rows))
        given_ = torch.tensor([row for row, _ in rows], dtype=torch.float64)[None]
        scores = torch.tensor([value for _, value in rows], dtype=torch.float64)[None]
        kept, values = spans.nms(given_, scores, threshold, keep)
        left = naive_nms([[*row, value] for row, value in rows], threshold)
        left = (left + [[0.0, 0.0, 0.0]] * keep)[:keep]
        assert torch.cat((kept[0], values[0, :, None]), 1).tolist() == left


# --- metrics, from the rows of a file to the numbers, against loops

THRESHOLDS = [n / 100 for n in range(50, 100, 5)]
second = st.integers(0, 60).map(float) | st.floats(0, 60).map(lambda x: round(x, 2))
a_window = st.tuples(st.tuples(second, second).map(sorted), st.integers(0, 9) | st.floats(-1, 1)).map(
    lambda pair: [*pair[0], pair[1]]
)
a_moment = st.tuples(second, second).map(sorted).filter(lambda m: m[1] - m[0] > 0.01)
clip = st.tuples(st.integers(-3, 3) | st.floats(-1, 1), st.lists(st.integers(0, 4), min_size=3, max_size=3))


def naive_highlight(scores: list[float], highlight: list[bool]) -> float:
    """Mean of the best precision at each distinct recall; equal scores share a threshold."""
    points = {}
    for threshold in sorted(set(scores), reverse=True):
        chosen = [h for s, h in zip(scores, highlight, strict=True) if s >= threshold]
        points.setdefault(sum(chosen), []).append(sum(chosen) / len(chosen))
    recalls = [found for found in points if found]
    best = [max(max(p) for found, p in points.items() if found >= r) for r in recalls]
    return sum(best) / len(best) if best else 0.0


@LENGTHS
def test_scores_of_a_file_equal_the_loops(times: int) -> None:
    one = st.tuples(
        st.lists(a_window, min_size=1, max_size=12),
        st.lists(a_moment, min_size=1, max_size=4, unique_by=tuple),
        st.lists(clip, min_size=1, max_size=9),
    )

    @fuzz(times, 250, st.lists(one, min_size=1, max_size=3))
    def check(videos: list[tuple[Any, Any, Any]]) -> None:
        queries, rows = [], []
        for number, (windows, moments, clips) in enumerate(videos):
            duration = 2.0 * len(clips)
            saliency = tuple((i, tuple(ratings)) for i, (_, ratings) in enumerate(clips))
            queries.append(
                Query(str(number), f"v{number}", "x", tuple(map(tuple, moments)), duration, saliency)
            )
            rows.append(
                {
                    "qid": number,
                    "pred_relevant_windows": windows,
                    "pred_saliency_scores": [s for s, _ in clips],
                }
            )
        rows = submission.locate_rows(json.loads(json.dumps(rows)))  # as they come out of a file
        scored = scoring.score_queries(rows, Split("test", tuple(queries)), MetricSettings(highlights=True))
        got = {name: values.tolist() for name, values in scored.queries.items()}
        for number, (windows, moments, clips) in enumerate(videos):
            ious = [max(naive_iou(w, m) for m in moments) for w in windows]
            ranked = sorted(windows[:10], key=lambda w: -w[2])
            # A ratio that equals a threshold up to rounding may fall on either side.
            assume(all(abs(naive_iou(w, m) - t) > 1e-9 for w in windows for m in moments for t in THRESHOLDS))
            expected = {f"R1@{t}": float(ious[0] >= t) for t in (0.5, 0.7)}
            expected |= {f"R5@{t}": float(max(ious[:5]) >= t) for t in (0.5, 0.7)}
            expected["mIoU"] = ious[0]
            expected["mAP@0.5"] = naive_ap(ranked, moments, 0.5)
            expected["mAP"] = sum(naive_ap(ranked, moments, t) for t in THRESHOLDS) / 10
            values = [s for s, _ in clips]
            for suffix, level in {"": 4, "/Good": 3, "/Fair": 2}.items():
                aps = [naive_highlight(values, [r[k] >= level for _, r in clips]) for k in range(3)]
                expected[f"highlight_mAP{suffix}"] = sum(aps) / 3
                expected[f"HIT@1{suffix}"] = float(max(clips[values.index(max(values))][1]) >= level)
            for name, value in expected.items():
                assert got[name][number] == pytest.approx(value, abs=1e-9), name


# --- damaged files

OTHER_VALUES = [
    None, True, -1, 0, 10**400, 1e300, -0.5, math.nan, math.inf, "", " ", "7", "../../etc/passwd", "a\nb",
    "\ud800", "\u202e\u05d0", "\U0001f600", [], {}, [[]], [1], {"x": 1}, "9" * 300,
]  # fmt: skip
"""Replacements for a value."""


def bent(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one item removed, doubled, renamed or of another type."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if not isinstance(value, dict | list):
        return rng.choice(OTHER_VALUES)
    walk(value)
    if not places:
        return rng.choice(OTHER_VALUES)
    node, key = rng.choice(places)
    kind = rng.choice(["other", "other", "other", "remove", "rename", "double"])
    if kind == "remove":
        del node[key]
    elif kind == "rename" and isinstance(node, dict):
        node[str(rng.choice(OTHER_VALUES))] = node.pop(key)
    elif kind == "double" and isinstance(node, list):
        node.insert(key, node[key])
    else:
        node[key] = rng.choice(OTHER_VALUES)
    return value


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file with one to three faults: bytes changed, a piece or a line lost or doubled."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        if not content:
            break
        at = rng.randrange(len(content))
        kind = rng.choice(["flip", "byte", "cut", "lose", "double", "insert", "line"])
        if kind == "flip":
            content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        elif kind == "byte":
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "lose":
            content = content[:at] + content[at + rng.randint(1, 40) :]
        elif kind == "double":
            content = content[: at + rng.randint(1, 40)] + content[at:]
        elif kind == "insert":
            piece = rng.choice([b'"', b"\n", b"\r", b"\0", b",", b"##", b"[", b"}", b"\xff", b"\xef\xbb\xbf"])
            content = content[:at] + piece + content[at:]
        else:
            lines = content.split(b"\n")
            number = rng.randrange(len(lines))
            content = b"\n".join(
                lines[:number] + rng.choice([[], lines[number : number + 1] * 2]) + lines[number + 1 :]
            )
    return content


def only_our_error(read: Callable[[], Any]) -> Any:
    """Reads; accepts a `VmrError` with a useful message only."""
    try:
        return read()
    except VmrError as error:
        return None if len(str(error)) > 20 else pytest.fail(f"says too little: {error}")


accidents = st.randoms(use_true_random=False)

SENTENCE = "a person opens the door, then \U0001f600 laughs"
VIDEO = {"duration": 30.5, "timestamps": [[0.0, 9.5], [3, 30.5]], "sentences": [SENTENCE, "she sits"]}
TACOS = {"fps": 29.4, "num_frames": 900, "timestamps": [[0, 90], [200, 900]], "sentences": [SENTENCE, "x"]}
HIGHLIGHT = {
    "qid": 7, "query": SENTENCE, "vid": "a_b_60.0", "duration": 10, "relevant_windows": [[0, 4], [6, 8]],
    "relevant_clip_ids": [0, 1, 3], "saliency_scores": [[1, 2, 3], [4, 4, 4], [0, 1, 0]],
}  # fmt: skip
NARRATION = {"video_id": "v", "start": 0.5, "end": 4.0, "text": SENTENCE}


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read_sta(path: Path) -> Any:
    return readers.read_charades_sta(path, {f"V{n}": 30.0 for n in range(9)}, numbered(), True)


def read_by_video(path: Path) -> Any:
    return readers.read_by_video(path, numbered(), scored=True)


FORMATS: dict[str, tuple[Any, Callable[[Any], bytes], Callable[[Path], Any]]] = {
    "charades text": (
        [f"V{n} {n}.5 {n + 9}##{SENTENCE}" for n in range(5)],
        lambda lines: "\n".join(map(str, lines)).encode(errors="replace"),
        read_sta,
    ),
    "charades csv": (
        [["id", "subject", "length"], ["V1", "he, \"or\" she", "30.5"], ["V2", "", "12"]],
        lambda rows: csv_file(rows),
        lambda path: readers.read_charades_lengths(path),
    ),
    "by video": ({"a": VIDEO, "b": VIDEO}, lambda value: json.dumps(value).encode(), read_by_video),
    "tacos": (
        {"a.avi": TACOS, "b.avi": TACOS},
        lambda value: json.dumps(value).encode(),
        lambda path: readers.read_tacos(path, numbered(), scored=False),
    ),
    "qvhighlights": (
        [HIGHLIGHT, HIGHLIGHT | {"qid": 8}],
        json_lines,
        lambda path: readers.read_qvhighlights(path, scored=True),
    ),
    "narrations": ([NARRATION, NARRATION | {"video_id": "w"}], json_lines, read_narrations),
    "queries": (
        [["video", "query", "query_id"], ["a.mp4", SENTENCE, "1"], ["b.mp4", "x", "2"]],
        lambda rows: csv_file(rows),
        read_query_file,
    ),
}  # fmt: skip


def csv_file(rows: list[Any]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows(row if isinstance(row, list) else [row] for row in rows)
    return file.getvalue().encode(errors="surrogatepass")


def holds(rows: Any) -> None:
    """Checks what downstream code relies on, for any reader."""
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            assert row["video"].strip()
            assert row["query"].strip()
            assert row["query_id"] is not None
        elif isinstance(query := row.query, Query):
            assert 0 < query.duration <= 1e9
            assert query.moments
            assert all(0 <= start < end <= query.duration for start, end in query.moments)
            assert query.text.strip().encode()
            assert "/" not in query.video_id + query.query_id
            assert "\n" not in query.video_id


@LENGTHS
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_yields_sound_rows_or_our_error(name: str, times: int, tmp_path: Path) -> None:
    value, write, read = FORMATS[name]
    path = tmp_path / "file.jsonl"
    manifest_path(path).write_text(json.dumps(dict.fromkeys(MANIFEST_KEYS)))

    @fuzz(times, 130, accidents, st.integers(0, 2))
    def check(rng: random.Random, kind: int) -> None:
        content = write(bent(value, rng) if kind else value)
        path.write_bytes(damaged(content, rng) if kind < 2 else content)
        holds(only_our_error(lambda: read(path)))


REAL: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "charades text": ("charades/charades_sta_test.txt", read_sta),
    "charades csv": ("charades/Charades_v1_test.csv", lambda path: readers.read_charades_lengths(path)),
    "charades_cd": (
        "charades_cd/charades_val.json",
        lambda path: readers.read_by_video(path, numbered(), True, duration_key="video_duration"),
    ),
    "activitynet": ("activitynet/val_1.json", read_by_video),
    "tacos": ("tacos/test.json", lambda path: readers.read_tacos(path, numbered(), True)),
    "qvhighlights": (
        "qvhighlights/highlight_val_release.jsonl",
        lambda path: readers.read_qvhighlights(path, True),
    ),
}


@LENGTHS
@pytest.mark.parametrize("name", REAL)
def test_a_damaged_part_of_a_published_file(name: str, times: int, tmp_path: Path) -> None:
    file, read = REAL[name]
    if not (DATA / file).is_file():
        pytest.skip("no published annotation files in ../shared/data")
    text = (DATA / file).read_text()
    value: Any = text.splitlines()[:20]
    if file.endswith(".json"):
        value = dict(list(json.loads(text).items())[:3])
    elif file.endswith(".jsonl"):
        value = [json.loads(line) for line in value]
    path = tmp_path / "file"

    def write(value: Any) -> bytes:
        if file.endswith(".json"):
            return json.dumps(value).encode()
        return (
            json_lines(value)
            if file.endswith(".jsonl")
            else "\n".join(map(str, value)).encode(errors="replace")
        )

    @fuzz(times, 50, accidents, st.integers(0, 2))
    def check(rng: random.Random, kind: int) -> None:
        try:
            content = write(bent(value, rng) if kind else value)
        except TypeError:  # the list of lines is no longer a list
            content = b""
        path.write_bytes(damaged(content, rng) if kind < 2 else content)
        holds(only_our_error(lambda: read(path)))


# --- submissions

SUBMISSION = [
    {
        "qid": n, "vid": f"v{n}", "split": "test",
        "pred_relevant_windows": [[0, 4.5, 0.9], [2, 8, 0.1]], "pred_saliency_scores": [0.5, 1, 2],
    }
    for n in range(2)
]  # fmt: skip
TRUTH = Split(
    "test", tuple(Query(str(n), f"v{n}", "x", ((1.0, 4.0),), 6.0, ((0, (1, 2, 4)),)) for n in range(2))
)


@pytest.mark.filterwarnings("error")
@LENGTHS
def test_a_submission_is_scored_within_bounds_or_refused(times: int, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"

    @fuzz(times, 300, accidents, st.integers(0, 2))
    def check(rng: random.Random, kind: int) -> None:
        value = bent(SUBMISSION, rng) if kind else SUBMISSION
        content = json_lines(value if isinstance(value, list) else [value])
        path.write_bytes(damaged(content, rng) if kind < 2 else content)

        def scores() -> Any:
            return scoring.score_queries(
                submission.read_prediction_rows(path), TRUTH, MetricSettings(highlights=True), str(path)
            )

        scored = only_our_error(scores)
        if scored is not None:
            assert scored.official["brief"]
            assert all(0 <= value <= 100 for value in scored.metrics.values())


# --- sentences of a user

typed = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    | st.sampled_from("\\'\"${}[](),=: \t\n#@~+"),
    max_size=30,
) | st.lists(st.sampled_from(["${", "$", "{", "}", "\\", "'", '"', "a", " ", "oc.env:HOME"]), max_size=8).map(
    "".join
)


@LENGTHS
def test_a_typed_sentence_arrives_as_it_was_typed(times: int) -> None:
    @fuzz(times, 300, typed)
    def check(text: str) -> None:
        assume(text[:1] not in ("", "[", "'", '"'))  # already Hydra's grammar
        for verb, key in (("predict", "query"), ("draw", "sentence"), ("report", "out"), ("eval", "run")):
            (override,) = OverridesParser.create().parse_overrides(as_typed(verb, [f"{key}={text}"]))
            cfg = OmegaConf.create({key: None})
            OmegaConf.update(cfg, key, override.value(), force_add=True)
            assert cfg[key] == text


@LENGTHS
def test_a_file_of_sentences_arrives_as_it_was_written(times: int, tmp_path: Path) -> None:
    path = tmp_path / "queries.csv"
    field = typed.filter(str.strip)

    @fuzz(times, 100, st.lists(st.tuples(field, field), min_size=1, max_size=4))
    def check(rows: list[tuple[str, str]]) -> None:
        path.write_bytes(csv_file([["video", "query"], *map(list, rows)]))
        assert [(row["video"], row["query"]) for row in read_query_file(path)] == rows


# --- arrays

GOOD = np.arange(12, dtype=np.float32).reshape(4, 3)


def write_arrays(folder: Path) -> None:
    np.save(folder / "v.npy", GOOD)
    np.savez_compressed(folder / "v.npz", features=GOOD, config=np.array('{"a": 1}'))
    torch.save({"features": torch.from_numpy(GOOD)}, folder / "v.pt")
    with h5py.File(folder / "v.h5", "w") as file:
        file["v/features"] = GOOD
    np.savez(folder / "words.npz", words=np.array(["a", "dog"]), vectors=GOOD[1:3])
    (folder / "words.txt").write_text("a 1 2 3\ndog 4 5 6\n")
    torch.save({"model": {"w": torch.from_numpy(GOOD)}, "opt": {"lr": 0.1}}, folder / "model.ckpt")


def features(file: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        store = (
            Hdf5Store(folder / file, key="features")
            if file.endswith(".h5")
            else FileStore(folder, Path(file).suffix, key=None if file.endswith(".npy") else "features")
        )
        return FileFeatures("x", 3, store, normalise=False).read("v")

    return read


def word(file: str) -> Callable[[Path], Any]:
    return lambda folder: WordVectorQueries(folder / file, 3, normalise=False).load(
        Query("q", "v", "a dog", ((0, 1),), 1.0)
    )


ARRAYS: dict[str, Callable[[Path], Any]] = {
    "v.npy": features("v.npy"),
    "v.npz": features("v.npz"),
    "v.pt": features("v.pt"),
    "v.h5": features("v.h5"),
    "words.npz": word("words.npz"),
    "words.txt": word("words.txt"),
    "model.ckpt": lambda folder: read_checkpoint(folder / "model.ckpt"),
    "case.npz": lambda folder: Case(folder / "case.npz"),
}


@pytest.mark.filterwarnings("ignore")  # numpy and torch warn before they refuse
@LENGTHS
@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_arrays_are_finite_or_refused(name: str, times: int, tmp_path: Path) -> None:
    write_arrays(tmp_path)
    np.savez_compressed(tmp_path / "case.npz", a=GOOD, config=np.array('{"a": 1}'))
    whole = (tmp_path / name).read_bytes()
    assert ARRAYS[name](tmp_path) is not None

    @fuzz(times, 80, accidents)
    def check(rng: random.Random) -> None:
        (tmp_path / name).write_bytes(damaged(whole, rng))
        read = only_our_error(lambda: ARRAYS[name](tmp_path))
        if isinstance(read, np.ndarray):
            assert read.dtype == np.float32
            assert read.shape[1:] == (3,)
            assert np.isfinite(read).all()
