import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from golden.find import golden_case
from vmr_zoo.data.annotations.records import PUBLISHED, Protocol, Query, Split
from vmr_zoo.engine import score_file, scoring, submission
from vmr_zoo.errors import VmrError
from vmr_zoo.metrics import official
from vmr_zoo.metrics.settings import MetricSettings, Rounding

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
PREDICTIONS = SHARED / "metrics" / "qvh_val_preds_moment_detr.jsonl"
OFFICIAL = SHARED / "metrics" / "qvh_val_preds_moment_detr_metrics.json"

HIGHLIGHTS = MetricSettings(highlights=True, rounding=Rounding(4, (0, 150), 2))
needs_shared = pytest.mark.skipif(not PREDICTIONS.is_file(), reason="no ../shared/metrics")


def query(row):
    """A row of QVHighlights' ground truth as a query."""
    saliency = zip(row["relevant_clip_ids"], map(tuple, row["saliency_scores"]), strict=True)
    return Query(
        str(row["qid"]),
        row["vid"],
        "",
        tuple(map(tuple, row["relevant_windows"])),
        row["duration"],
        tuple(saliency),
    )


def rated(query_id, duration=10.0):
    return Query(
        query_id, f"video{query_id}", "a sentence", ((2.0, 6.0),), duration, ((1, (4, 2, 0)), (2, (3, 3, 1)))
    )


SPLIT = Split("selection", (rated("1"), rated("2")))
GOOD = [
    {
        "qid": 1,
        "vid": "video1",
        "pred_relevant_windows": [[2, 6, 0.9], [0, 4, 0.1]],
        "pred_saliency_scores": [0, 2, 1, 0, 0],
    },
    {
        "qid": 2,
        "vid": "video2",
        "pred_relevant_windows": [[0, 10, 0.9]],
        "pred_saliency_scores": [0, 1, 2, 0, 0],
    },
]


def good(position, **changes):
    """The valid submission with one row changed; None removes a key."""
    rows = [dict(row) for row in GOOD]
    rows[position] = {k: v for k, v in (rows[position] | changes).items() if v is not None}
    return rows


def protocol():
    """Is instantiated from the configuration, like a published protocol."""
    empty = Split("train", ())
    return Protocol("tiny", empty, SPLIT, {"ood": Split("ood", (rated("7"),))}, PUBLISHED)


def configuration(predictions, **overrides):
    metrics = OmegaConf.load(ROOT / "conf" / "metrics" / f"{overrides.pop('metrics', 'highlights')}.yaml")
    node = {"predictions": str(predictions), "split": "val", "out": None, "metrics": metrics}
    return OmegaConf.create(node | {"data": {"protocol": {"_target_": f"{__name__}.protocol"}}} | overrides)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def truth_of(query):
    """A query as a row of QVHighlights' ground truth."""
    return {
        "qid": int(query.query_id),
        "vid": query.video_id,
        "query": query.text,
        "duration": query.duration,
        "relevant_windows": query.moments,
        "relevant_clip_ids": [clip for clip, _ in query.saliency],
        "saliency_scores": [ratings for _, ratings in query.saliency],
    }


@needs_shared
def test_qvhighlights_numbers_are_the_official_ones_to_the_last_byte(tmp_path, capsys):
    protocol = {"_target_": "vmr_zoo.data.annotations.protocols.qvhighlights", "root": str(SHARED / "data")}
    out = tmp_path / "out.json"
    score_file.score_file(configuration(PREDICTIONS, data={"protocol": protocol}, out=str(out)))
    assert out.read_text() == OFFICIAL.read_text()
    assert "34.84" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["hl", "charades"])
def test_bm_detr_evaluator_is_reproduced(case):
    golden = json.loads(golden_case("bm_detr_eval.json").read_text())[case]
    split = Split("test", tuple(query(row) for row in golden["ground_truth"]))
    rows = submission.locate_rows(golden["submission"])
    scored = scoring.score_queries(rows, split, MetricSettings(highlights=case == "hl"))
    expected = golden["metrics"]
    got = {"full": official.moment_report(scored.moments["full"], (0.3, 0.4, 0.5, 0.6, 0.7))}
    if case == "hl":
        got |= official.highlight_report(scored.highlights)
    assert got == {name: values for name, values in expected.items() if name != "brief"}
    assert round(scored.metrics["R1@0.7"], 2) == expected["brief"]["MR-full-R1@0.7"]


def test_the_verb_imports_no_torch(tmp_path):
    """A complete call, so that what is only imported on the way counts too."""
    truth = write(tmp_path / "truth.jsonl", [truth_of(query) for query in SPLIT.queries])
    arguments = [
        "score", "data=jsonl", f"test={truth}", "split=test", "metrics=highlights",
        f"predictions={write(tmp_path / 'rows.jsonl', GOOD)}", f"out={tmp_path / 'out.json'}",
        "model.name=somebody", f"run={tmp_path / 'row'}",
    ]  # fmt: skip
    code = (
        "import sys; from vmr_zoo.cli.main import main; code = main(sys.argv[1:]);"
        "print('loaded:', *sys.modules); sys.exit(code)"
    )
    shown = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "out.json").is_file()
    assert (tmp_path / "row" / "metrics.json").is_file()
    modules = set(shown.stdout.rsplit("loaded: ", 1)[1].split())
    assert "vmr_zoo.cli.score" in modules
    assert not {"torch", "lightning"} & modules


def test_scores_are_kept_by_query_in_the_order_of_the_rows():
    scored = scoring.score_queries(submission.locate_rows(GOOD[::-1]), SPLIT, HIGHLIGHTS)
    assert scored.query_ids == ("2", "1")
    assert scored.queries["R1@0.5"].tolist() == [0, 1]
    assert scored.queries["HIT@1"].tolist() == [0, 1]
    assert scored.metrics["R1@0.5"] == 50


def test_our_own_rows_are_scored_by_split():
    ours = [
        {"split": "selection", "query_id": str(row["qid"]), "video_id": row["vid"], **row} for row in GOOD
    ]
    ours = [{k: v for k, v in row.items() if k not in ("qid", "vid")} for row in ours]
    elsewhere = {"split": "ood", "query_id": "7", "pred_relevant_windows": [[0, 1, 1.0]]}
    assert scoring.score_rows([elsewhere, *ours], SPLIT, HIGHLIGHTS) == scoring.score_rows(
        GOOD, SPLIT, HIGHLIGHTS
    )


def test_the_file_has_our_metric_names_and_the_rounding(tmp_path, capsys):
    out = tmp_path / "deep" / "out.json"
    path = write(tmp_path / "rows.jsonl", good(0, pred_relevant_windows=[[2.00001, 6, 0.9]]))
    score_file.score_file(configuration(path, metrics="moments", out=str(out)))
    written = json.loads(out.read_text())
    assert written["R1@0.5"] == 50
    assert written["rounding"] == "as submitted, not: 4 decimals"
    assert "highlight_mAP" not in written
    assert "mIoU" in capsys.readouterr().out


def test_a_submission_without_saliency_is_scored_for_moments_only():
    rows = [{k: v for k, v in row.items() if k != "pred_saliency_scores"} for row in GOOD]
    scored = scoring.score_queries(submission.locate_rows(rows), SPLIT, HIGHLIGHTS)
    assert not [k for k in scored.official["brief"] if k.startswith("HL")]


@pytest.mark.parametrize("scores", [[0, 2, 1, 0], [0, 2, 1, 0, 0, 0]])
def test_saliency_may_end_a_clip_early_or_late(scores):
    assert scoring.score_rows(good(0, pred_saliency_scores=scores), SPLIT, HIGHLIGHTS)["HIT@1"] == 50


WINDOWS = "pred_relevant_windows"
SALIENCY = "pred_saliency_scores"
BAD_ROWS = {
    "duplicate": ([GOOD[0], *GOOD], "line 2 (query 1)", "line 1 already"),
    "unknown": ([*GOOD, {"qid": 3, WINDOWS: [[0, 1, 1]]}], "line 3 (query 3)", "split 'selection'"),
    "no id": (good(1, qid=None), "line 2:", "'query_id' or 'qid'"),
    "id of a wrong type": (good(1, qid=2.0), "line 2:", "found 2.0"),
    "another video": (good(1, vid="x"), "line 2 (query 2)", "video 'x'"),
    "missing": (GOOD[:1], "1 of the 2 queries", "2"),
    "missing, all in other splits": ([{"split": "ood", **GOOD[0]}], "2 of the 2 queries", "{'ood': 1}"),
    "no windows key": (good(1, **{WINDOWS: None}), "line 2 (query 2)", WINDOWS),
    "no windows": (good(1, **{WINDOWS: []}), "line 2 (query 2)", "at least one"),
    "windows of a wrong type": (good(1, **{WINDOWS: "0 10"}), "line 2 (query 2)", "found '0 10'"),
    "two elements": (good(1, **{WINDOWS: [[0, 1, 1], [0, 10]]}), "line 2 (query 2)", "window 2"),
    "text for a number": (good(1, **{WINDOWS: [["0", 10, 1]]}), "line 2 (query 2)", "three numbers"),
    "a truth value for a number": (
        good(1, **{WINDOWS: [[0, 10, True]]}),
        "line 2 (query 2)",
        "three numbers",
    ),
    "reversed": (
        good(1, **{WINDOWS: [[0, 1, 1], [9, 3, 0.5]]}),
        "line 2 (query 2)",
        "start <= end in window 2",
    ),
    "NaN": (good(1, **{WINDOWS: [[0, 1, 1], [0, 1, float("nan")]]}), "line 2 (query 2)", "nan in number 2"),
    "infinite": (good(1, **{WINDOWS: [[0, float("inf"), 1]]}), "line 2 (query 2)", "inf"),
    "beyond any float": (good(1, **{WINDOWS: [[0, 10**400, 1]]}), "line 2 (query 2)", "too large"),
    "saliency too short": (good(1, **{SALIENCY: [1, 2, 3]}), "line 2 (query 2)", "expected 5 numbers"),
    "saliency too long": (good(1, **{SALIENCY: [1] * 7}), "line 2 (query 2)", "found 7"),
    "saliency in one row only": (good(1, **{SALIENCY: None}), "line 2 (query 2)", "in every row or in none"),
    "saliency of a wrong type": (
        good(1, **{SALIENCY: [1, 2, 3, 4, "5"]}),
        "line 2 (query 2)",
        "list of numbers",
    ),
    "NaN saliency": (
        good(1, **{SALIENCY: [0, 1, 2, 3, float("nan")]}),
        "line 2 (query 2)",
        "nan in number 5",
    ),
}


@pytest.mark.parametrize(("rows", "where", "what"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_reported_with_line_and_query(tmp_path, rows, where, what):
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(VmrError) as caught:
        score_file.score_file(configuration(path))
    for expected in (str(path), where, what):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (f"{json.dumps(GOOD[0])}\n\n{{'qid': 2}}\n", "line 3: expected one JSON object, found invalid JSON"),
        (json.dumps([GOOD[0], 3]), "entry 2: expected a JSON object, found a JSON int"),
        ("[" * 100_000, "line 1: expected one JSON object, found invalid JSON"),
        (b"\xff\xfe", "line 1: expected one JSON object, found invalid JSON"),
    ],
)
def test_a_file_that_is_not_json_lines_is_reported(tmp_path, content, what):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VmrError, match=what):
        score_file.score_file(configuration(path))


def test_a_missing_file_and_a_missing_key_are_reported(tmp_path):
    with pytest.raises(VmrError, match="No predictions file at"):
        score_file.score_file(configuration(tmp_path / "none.jsonl"))
    with pytest.raises(VmrError, match="predictions=FILE"):
        score_file.score_file(configuration("???"))


def test_ground_truth_that_cannot_be_scored_is_reported():
    withheld = Split("test", (Query("1", "video1", "", (), 10.0),))
    with pytest.raises(VmrError, match="withheld"):
        scoring.score_rows(GOOD[:1], withheld, HIGHLIGHTS)
    unrated = Split("test", (Query("1", "video1", "", ((2.0, 6.0),), 10.0),), Counter())
    with pytest.raises(VmrError, match="metrics=moments"):
        scoring.score_rows(GOOD[:1], unrated, HIGHLIGHTS)


# --- another unit than seconds

MANY = Split(
    "selection",
    tuple(Query(str(i), f"video{i}", "", ((17.0 * i + 3, 17.0 * i + 16),), 180.0 + i) for i in range(10)),
)
UNITS = {
    "frames at 30 per second": lambda start, end, duration: (30 * start, 30 * end),
    "milliseconds": lambda start, end, duration: (1000 * start, 1000 * end),
    "fractions of the video": lambda start, end, duration: (start / duration, end / duration),
    "per cent of the video": lambda start, end, duration: (100 * start / duration, 100 * end / duration),
    "clips of 2 s": lambda start, end, duration: (start / 2, end / 2),
    "minutes": lambda start, end, duration: (start / 60, end / 60),
    "start and length": lambda start, end, duration: (start, end - start + start * (start > end - start)),
}


def answers(change):
    """Answers that are 1 s off, written in another unit."""
    rows = []
    for one in MANY.queries:
        start, end = one.moments[0]
        window = change(start + 1, end + 1, one.duration)
        rows.append({"qid": int(one.query_id), "pred_relevant_windows": [[*window, 0.9], [0, 0.5, 0.1]]})
    return rows


def score(rows, check_unit=True):
    located = submission.locate_rows(rows)
    return scoring.score_queries(located, MANY, MetricSettings(), "rows.jsonl", check_unit=check_unit)


@pytest.mark.parametrize("unit", list(UNITS)[:-1])
def test_windows_in_another_unit_are_refused_with_a_guess(unit):
    rows = answers(UNITS[unit])
    with pytest.raises(VmrError, match=f"do not look like seconds: .*; as {unit} .*unit=seconds"):
        score(rows)
    assert score(rows, check_unit=False).metrics["R1@0.7"] < 50


def test_bad_answers_in_seconds_are_scored():
    assert score(answers(lambda start, end, duration: (start, end))).metrics["R1@0.7"] == 100
    for window in ([0, 5], [0, 150], [60, 62], [0, 1], [89, 95]):
        assert score(answers(lambda *args, window=window: window)).metrics["mIoU"] < 50
    # Two windows past the end, as from models that always predict within the longest video.
    late = answers(lambda start, end, duration: (start, end))
    for row in late[:2]:
        row["pred_relevant_windows"] = [[190, 199, 0.9]]
    assert score(late).metrics["R1@0.7"] == 80


# --- a zip of a submission


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


LINES = "".join(json.dumps(row) + "\n" for row in GOOD)


@pytest.mark.parametrize(
    "files",
    [
        {"hl_val_submission.jsonl": LINES, "hl_test_submission.jsonl": "{}"},
        {"sub/mine.jsonl": LINES, "__MACOSX/._mine.jsonl": "x", "readme.txt": "x"},
        {"../../etc/evil.jsonl": LINES},
        {"/absolute.jsonl": LINES},
    ],
)
def test_a_zipped_submission_is_scored_and_never_extracted(tmp_path, monkeypatch, files):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    path = zipped(folder / "submission.zip", files)
    score_file.score_file(configuration(path, out=str(folder / "out.json")))
    score_file.score_file(configuration(write(folder / "plain.jsonl", GOOD), out=str(folder / "plain.json")))
    assert (folder / "out.json").read_bytes() == (folder / "plain.json").read_bytes()
    assert {file.name for file in tmp_path.rglob("*")} == {
        "a", "b", "submission.zip", "plain.jsonl", "out.json", "plain.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jsonl": LINES, "b.jsonl": LINES}, "name contains 'val'; found: 'a.jsonl', 'b.jsonl'"),
        ({"my_val.jsonl": LINES, "val2.jsonl": LINES}, "Expected one .jsonl file"),
        ({"notes.txt": "x"}, "found: none"),
        ({}, "found: none"),
        ({"a.jsonl": ""}, "'a.jsonl'' is empty"),
        ({"a.jsonl": LINES + "{"}, "a.jsonl', line 3: expected one JSON object"),
        ({"a.jsonl": "0" * 3_000_000}, "a line of more than 1 MiB"),
        ({"a.jsonl": (" " * 999 + "\n") * (5 << 10)}, "more than 0 GiB in all"),
    ],
)
def test_another_zip_is_refused(tmp_path, monkeypatch, files, message):
    monkeypatch.setattr(submission, "MAX_LINE", 1 << 20)
    monkeypatch.setattr(submission, "MAX_UNPACKED", 4 << 20)
    with pytest.raises(VmrError, match=message):
        score_file.score_file(configuration(zipped(tmp_path / "s.zip", files)))


def test_a_damaged_zip_is_refused_at_any_byte(tmp_path, capsys):
    """Or, where the byte does not matter, scored as the whole one."""
    whole = zipped(tmp_path / "s.zip", {"a.jsonl": LINES}).read_bytes()
    score_file.score_file(configuration(tmp_path / "s.zip"))
    scored, refused = capsys.readouterr().out, 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "s.zip").write_bytes(damaged)
        try:
            score_file.score_file(configuration(tmp_path / "s.zip"))
        except VmrError:
            refused += 1
        else:
            assert capsys.readouterr().out == scored
        capsys.readouterr()
    assert refused
