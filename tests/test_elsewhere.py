"""Rows from elsewhere: forms of files and answers, how they find their queries, and the row in reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vmr_zoo.data.annotations.records import PUBLISHED, Protocol, Query, Split
from vmr_zoo.engine.answers import read_spans
from vmr_zoo.engine.score_file import score_file
from vmr_zoo.errors import VmrError
from vmr_zoo.report.data_tables import rows_of_means
from vmr_zoo.report.leaderboard import Leaderboard, leaderboards
from vmr_zoo.report.notes import table_notes
from vmr_zoo.report.query_scores import leaderboard_scores
from vmr_zoo.report.runs import scan_runs
from vmr_zoo.runs.directory import load_config

ROOT = Path(__file__).parents[1]


def query(query_id: str, video: str, text: str, start: float, end: float) -> Query:
    return Query(query_id, video, text, ((start, end),), 60.0)


IID = Split(
    "iid",
    (
        query("i1", "v_1.5", "A man sits.", 3, 7),
        query("i2", "v_1.5", "He stands up", 20, 30),
        query("i3", "v2", "A dog barks.", 10, 20),
        query("i4", "v2", "A dog barks.", 40, 50),  # the same sentence about another moment
    ),
)
OOD = Split("ood", (query("o1", "v3", "A cat runs.", 5, 9),))


def protocol() -> Protocol:
    """Is instantiated from the configuration, like a published protocol."""
    return Protocol("tiny", Split("train", ()), IID, {"iid": IID, "ood": OOD}, PUBLISHED)


def configuration(predictions: Path | list[Path], **changes: object) -> object:
    metrics = OmegaConf.load(ROOT / "conf" / "metrics" / "moments.yaml")
    given = [str(one) for one in predictions] if isinstance(predictions, list) else str(predictions)
    node = {
        "predictions": given,
        "split": "iid",
        "metrics": metrics,
        "paths": {},
        "data": {"name": "tiny", "protocol": {"_target_": f"{__name__}.protocol"}},
        "model": {"name": None, "revision": None, "prompt": None, "fps": None, "pixels": None},
        **{"unit": None, "missing": "refuse", "extra": "refuse", "out": None, "run": None, "seed": 0},
    }
    return OmegaConf.merge(node, changes)


SPANS = {
    "The event happens in 3.2 - 7.1 seconds.": [(3.2, 7.1)],
    "It starts at 00:00:12 and ends at 00:00:20.": [(12, 20)],
    "Start time: 0.8 seconds\nEnd time: 1.1 seconds": [(0.8, 1.1)],
    "from 3.2 to 7 seconds, and between 9 and 12 s": [(3.2, 7), (9, 12)],
    "00:12 - 00:20": [(12, 20)],
    "3.2s-7.1s": [(3.2, 7.1)],
    "[3.2, 7.1]": [(3.2, 7.1)],
    "[[9, 12], [3.2, 7.1]]": [(9, 12), (3.2, 7.1)],
    '```json\n[{"start_time": "00:03", "end_time": 7.5}]\n```': [(3, 7.5)],
    "<3.2> <7.1>": [(3.2, 7.1)],
    "3.2, 7.1": [(3.2, 7.1)],
    "1 min 5 s to 1 min 20 s": [(65, 80)],
    "from 1 to 2 minutes": [(60, 120)],
    "from the 3.2 second mark to the 7.1 second mark": [(3.2, 7.1)],
    "2-3 people sit from 4 to 9 seconds": [(4, 9)],
    "<think>perhaps 1 to 2 s</think> 5 to 6": [(5, 6)],
    "I saw 1 to 2 s. <answer>12.54 to 17.83</answer>": [(12.54, 17.83)],
    "<think>perhaps 1 to 2 s": [],
    "[3.2, 7.1] and [9, 12]": [(3.2, 7.1), (9, 12)],
    "It does not happen.": [],
    "7 to 3 seconds": [],
    "12% to 30%": [],
    "frames 80 to 230 frames": [],
    "on 2024-05-06": [],
    "[NaN, 3] or [1e400, 3] or [-3, 7]": [],
    "-3.2 to 7 s": [],
}


@pytest.mark.parametrize(("answer", "spans"), SPANS.items())
def test_answers_in_words(answer: str, spans: list[tuple[float, float]]) -> None:
    assert read_spans(answer) == spans


seconds = st.integers(0, 35_999).map(lambda tenths: tenths / 10)
FORMS = (
    "The event happens in {0:.1f} - {1:.1f} seconds.",
    "from {0:.1f} to {1:.1f} seconds",
    "between {0:.1f} and {1:.1f} s",
    "{0:.1f}s-{1:.1f}s",
    "[{0:.1f}, {1:.1f}]",
    '{{\'no\': json}} [{{"start": {0:.1f}, "end": {1:.1f}}}]',
    "<{0:.1f}><{1:.1f}>",
    "{2} - {3}",
    "It begins at {2} and it stops at {3}.",
)


def clock(time: float) -> str:
    return f"{int(time // 60):02d}:{time % 60:04.1f}"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=3, unique=True), st.sampled_from(FORMS))
def test_every_stated_moment_is_read_in_order(moments: list[tuple[float, float]], form: str) -> None:
    spans = list(dict.fromkeys((min(one), max(one)) for one in moments))
    text = "; ".join(form.format(start, end, clock(start), clock(end)) for start, end in spans)
    assert read_spans(text) == [pytest.approx(one) for one in spans]


@settings(max_examples=40, deadline=None)
@given(st.text(st.sampled_from('0123456789.:,-<>[](){}" stomandfrbe%'), max_size=80) | st.text(max_size=80))
def test_any_answer_has_ordered_finite_moments(answer: str) -> None:
    assert all(0 <= start <= end < 1e10 for start, end in read_spans(answer))


KEY = "v_1.5.mp4>>>a man sits>>>[3.0, 7.0]"
TRUE = {
    KEY: "from 3 to 7 seconds",
    "videos/v_1.5.mp4>>>He stands up.>>>[[20, 30]]": "20 - 30",
    "v2.mp4>>>A dog  barks>>>[10.0, 20.0]": "00:10 to 00:20",
    "v2.mp4>>>A dog barks>>>(40.0, 50.0)": "I do not know.",
}
ROWS = [
    {"video": key.split(">>>")[0], "question": key.split(">>>")[1], "answer": "[[0, 1]]", "prediction": text}
    for key, text in list(TRUE.items())[:2]
] + [{"qid": "i3", "response": ["00:10 to 00:20"]}, {"query_id": "i4", "output": None}]
TIMELENS = {
    **{key: {"timestamps": [[3, 7]], "answers": "3 - 7", "duration": 60} for key in [KEY]},
    **{key: {"answers": text} for key, text in list(TRUE.items())[1:3]},
    list(TRUE)[3]: {"timestamps": [[70, 80]], "answers": "No idea.", "duration": 60},
}
TABLE = "\n".join(
    ["index\tvideo\tquestion\tanswer\tprediction"]
    + [
        f"{n}\t{row['video']}\t{row['question']}\t[[0, 1]]\t{row['prediction']}"
        for n, row in enumerate(ROWS[:2])
    ]
    + ["2\tv2\tA dog barks.\t[[0, 1]]\t[10, 20]"]
)
FILES = {
    "lmms_eval.json": json.dumps(TRUE, indent=4),
    "one_line.json": json.dumps(TRUE),
    "samples.jsonl": "\n".join(
        json.dumps({"doc_id": n, "target": "x", "filtered_resps": [text], "submission": {key: text}})
        for n, (key, text) in enumerate(TRUE.items())
    ),
    "timelens.jsonl": "\n".join(json.dumps({key: value}) for key, value in TIMELENS.items()),
    "rows.json": json.dumps(ROWS),
    "rows.jsonl": "\n".join(map(json.dumps, ROWS)),
    "ids.json": json.dumps({"i1": [3, 7], "i2": [[20, 30]], "i3": "[10, 20]", "i4": []}),
}


@pytest.mark.parametrize(("name", "content"), FILES.items(), ids=FILES)
def test_the_forms_of_files(tmp_path, capsys, name, content):
    path = tmp_path / name
    path.write_text(content)
    score_file(configuration(path, out=str(tmp_path / "out.json")))
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["R1@0.7"] == 75, "three right answers, and one without a moment, which is a miss"
    assert "1 of 4 queries (25.0%): the answer states no moment" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["table.tsv", "lines.txt", "pairs.jsonl"])
def test_one_answer_serves_all_queries_that_ask_the_same(tmp_path, name):
    """Without the annotated moment in the file, "A dog barks." is asked once: 10 to 20 s is right for i3."""
    lines = [f"{row['video']}>>>{row['question']}>>>{row['prediction']}" for row in ROWS[:2]]
    pairs = [
        ("v_1.5", "A man sits.", 3, 7),
        ("v_1.5", "He stands up", 20, 30),
        ("v2", "A dog barks.", 10, 20),
    ]
    own = [{"vid": v, "query": text, "pred_relevant_windows": [[s, e]]} for v, text, s, e in pairs]
    content = {
        "table.tsv": TABLE,
        "lines.txt": "\n".join([*lines, "v2>>>A dog barks.>>>10 - 20"]),
        "pairs.jsonl": "\n".join(map(json.dumps, own)),
    }
    path = tmp_path / name
    path.write_text(content[name])
    score_file(configuration(path, out=str(tmp_path / "out.json")))
    assert json.loads((tmp_path / "out.json").read_text())["R1@0.7"] == 75


REFUSED = {
    "missing": ({KEY: "3 to 7"}, "no row for 3 of the 4 queries"),
    "unknown sentence": ({**TRUE, "v2>>>A dog sleeps": "1 to 2"}, "the most similar is 'A dog barks.'"),
    "unknown video": ({**TRUE, "v4>>>A dog barks": "1 to 2"}, "video 'v4'"),
    "two answers": (
        {"v2>>>A dog barks": "1 to 2 s", "v2.mp4>>>a dog barks.": "3 to 4 s"},
        "a second, different one",
    ),
    "no answer": ([{"qid": "i1", "text": "1 to 2"}], "the keys 'qid', 'text'"),
    "a number": ({"i1": 3}, "expected text or a list"),
    "NaN": ({"i1": [[1, float("nan")]]}, "finite windows"),
    "huge": ({"i1": [[1, 10**400]]}, "too large for a float"),
    "no window": ({"i1": [[1], [2]]}, "three numbers"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(tmp_path, content, message):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(content, indent=1))
    with pytest.raises(VmrError, match=message):
        score_file(configuration(path))


def test_a_spreadsheet_is_refused_with_advice(tmp_path):
    path = tmp_path / "answers.xlsx"
    path.write_bytes(b"PK")
    with pytest.raises(VmrError, match="PRED_FORMAT=tsv"):
        score_file(configuration(path))


def test_declared_units_missing_and_extra_answers(tmp_path, capsys):
    path = tmp_path / "answers.json"
    answers = {"i1": [0.05, 7 / 60], "i2": [20 / 60, 0.5], "o1": [0.1, 0.2]}
    path.write_text(json.dumps(answers))
    with pytest.raises(VmrError, match="unit=fractions"):
        score_file(configuration(path, missing="misses", extra="skip"))
    out = tmp_path / "out.json"
    score_file(configuration(path, missing="misses", extra="skip", unit="fractions", out=str(out)))
    assert json.loads(out.read_text())["R1@0.7"] == 50
    shown = capsys.readouterr().out
    assert "2 queries without an answer, scored as misses" in shown
    assert "1 answers to other queries were skipped" in shown


@pytest.fixture
def row(tmp_path):
    """A run directory from two files, for both test splits."""
    (tmp_path / "a.json").write_text(json.dumps(TRUE))
    (tmp_path / "b.json").write_text(json.dumps({"v3>>>A cat runs": "Between 5 and 9 s, or 70 to 80 s."}))
    run = tmp_path / "runs" / "elsewhere"
    model = {"name": "org/<script>alert(1)</script>\n\\input{x}", "prompt": "When\ndoes it happen?", "fps": 2}
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    score_file(configuration(files, split="tests", run=str(run), model=model))
    return run


def ours(row: Path, name: str, **changes: object) -> Path:
    """A run of our own with the same predictions."""
    run = shutil.copytree(row, row.parent / name)
    content = json.loads((run / "metrics.json").read_text())
    header = content["header"] | {
        **{
            "name": f"{name}-paper",
            "method": name,
            "variant": "paper",
            "features": "shapes",
            "origin": "rendered",
        },
        **{"selection": "published", "rounding": "4 decimals", "parameters": 5, "family": ""},
    }
    del header["external"], header["moment_sets"]
    (run / "metrics.json").write_text(json.dumps(content | {"header": header | changes}))
    return run


def boards_below(folder: Path) -> list[Leaderboard]:
    runs, unfinished = scan_runs(folder)
    assert not unfinished
    return leaderboards(runs, ["R1@0.5"])


def test_a_row_from_elsewhere_is_a_run_directory(row):
    header = json.loads((row / "metrics.json").read_text())["header"]["external"]
    assert (header["revision"], header["pixels"]) == ("unknown", "unknown")
    assert (header["fps"], header["prompt"]) == (2, "When does it happen?")
    assert header["scores"] == "order of the answer"
    assert header["splits"]["iid"] == {"queries": 4, "unparsed": 1, "missing": 0, "outside": 0}
    rows = [json.loads(line) for line in (row / "predictions.jsonl").read_text().splitlines()]
    assert [one["pred_relevant_windows"] for one in rows][-2:] == [[[0, 0, 0]], [[5, 9, 1], [70, 80, 0.5]]]
    assert rows[3]["unparsed"] is True
    assert rows[3]["answer"] == "I do not know."
    with pytest.raises(VmrError, match="no model to run"):
        load_config(row)


def test_a_run_directory_needs_a_name_and_is_never_overwritten(row, tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(VmrError, match=r"model\.name=NAME"):
        score_file(configuration(path, run=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()
    with pytest.raises(VmrError, match="no result is ever overwritten"):
        score_file(configuration(path, run=str(row), model={"name": "x"}))


def test_it_joins_the_tables_of_its_protocol_but_no_simulated_one(row):
    ours(row, "tea")
    ours(row, "emb", features="other")
    ours(row, "mesm", features="labels", origin="simulated")
    ours(row, "lmr", protocol="another")
    annotations = ours(row, "vdi", features="fixed") / "annotations.json"
    annotations.write_text(annotations.read_text().replace('"sha256": "', '"sha256": "0'))
    with_row = {
        board.title.split(";")[0]: [one.label for one in board.rows] for board in boards_below(row.parent)
    }
    joined = {title for title, labels in with_row.items() if any("unparsed" in one for one in labels)}
    assert joined == {"tiny, features shapes (rendered)", "tiny, features other (rendered)"}
    assert len(with_row) == 5
    assert "tea" in with_row["tiny, features shapes (rendered)"], "names of ours are shortened as without it"


def test_the_row_in_tables_notes_and_scores(row):
    alone = boards_below(row.parent)[0]
    assert alone.title == "tiny, predictions from elsewhere; scored as submitted"
    ours(row, "tea")
    board = boards_below(row.parent)[0]
    label = next(one.label for one in board.rows if one.family == "Elsewhere")
    assert label.endswith("(20.0 % unparsed)")
    assert any("prompt When does it happen?; fps 2; pixels unknown" in note for note in table_notes(board))
    table = rows_of_means([board]).set_index("method")
    assert table.loc["external", "external_unparsed"] == 20
    scores = leaderboard_scores(board)
    assert [len(seeds[0]["iid"]) for seeds in scores] == [4, 4]


def test_a_broken_row_is_unreadable_not_a_crash(row):
    file = row / "metrics.json"
    content = json.loads(file.read_text())
    content["header"]["external"] = {"splits": {"iid": {"queries": "many"}}}
    file.write_text(json.dumps(content))
    runs, unfinished = scan_runs(row.parent)
    assert not runs
    assert unfinished[0].state == "unreadable"
