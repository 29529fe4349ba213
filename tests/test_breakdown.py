"""`vmr report`: scores by kind of query, sets of moments, calibration, correction for many comparisons."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml

import toy
from test_report import write
from vmr_zoo.cli import main
from vmr_zoo.report.breakdown import ALL, FEW, KINDS, group_queries
from vmr_zoo.report.leaderboard import TIED, WORSE, leaderboards
from vmr_zoo.report.query_scores import leaderboard_scores, read_predictions, run_query_scores
from vmr_zoo.report.runs import finished_runs
from vmr_zoo.report.significance import mark_significance

SENTENCES = (
    "a star",
    "the person who wears a hat opens the door",
    "a man walks in and he sits down on a chair near the window",
)
SPLITS = ("iid", "ood", "selection")


def rows_of(seed, unscored=False):
    """Rows whose first window is right as often as its score says; every fourth query has two moments."""
    rng = np.random.default_rng(seed)
    rows = []
    for split in SPLITS:
        for number in range(80):
            score = float(rng.uniform(0.05, 0.95))
            moments = [[0.0, 4.0], [20.0, 29.0]] if number % 4 == 0 else [[float(number % 3) * 10, 26.0]]
            right = rng.random() < score
            windows = [[*(moments[0] if right else [29.0, 30.0]), round(score, 4)]]
            windows += [[*moments[-1], round(score * (0.9 if len(moments) > 1 else 0.2), 4)]]
            if unscored:
                windows = [[start, end, value - 5] for start, end, value in windows]
            rows.append(
                {
                    "split": split,
                    "query_id": f"{split}{number}",
                    "video_id": f"v{number}",
                    "query": SENTENCES[number % 3],
                    "duration": 30.0,
                    "moments": moments,
                    "pred_relevant_windows": windows,
                }
            )
    return rows


def is_right(row):
    return row["pred_relevant_windows"][0][:2] == row["moments"][0]


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for name, seed, unscored in (("first", 0, False), ("first", 1, False), ("other", 0, True)):
        write(root, name, dict.fromkeys(SPLITS, 10), seed)
        folder = root / name / f"seed{seed}"
        rows = rows_of(seed, unscored)
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = json.loads((folder / "metrics.json").read_text())
        scores = run_query_scores(read_predictions([folder / "predictions.jsonl"]), folder, SPLITS)
        content |= {
            split: {name: 100 * float(frame[name].mean()) for name in ("R1@0.5", "mIoU")}
            for split, frame in scores.items()
        }
        (folder / "metrics.json").write_text(json.dumps(content))
    return root


def report(*arguments):
    return main.main(["report", *arguments])


def test_queries_are_grouped_by_what_their_rows_say():
    rows = [{**row, "query_id": str(n)} for n, row in enumerate(rows_of(0)[:3])]
    groups = group_queries(rows, list(KINDS))
    assert groups["words"].tolist() == ["1-4", "8-11", "12-16"]
    assert groups["clauses"].tolist() == ["1", "2", "2"]
    assert groups["verbs"].tolist() == ["0", "2", "2"]
    assert groups["moments"].tolist() == ["2", "1", "1"]
    assert groups["length"].tolist() == ["5-10 s", "10-30 s", "5-10 s"]
    assert groups["place"].tolist() == ["last third", "middle third", "last third"]


def test_groups_average_and_resample_their_own_queries(runs, tmp_path, capsys):
    out = tmp_path / "by.csv"
    arguments = [f"runs={runs}", "by=[moments,place]", "columns=[R1@0.5,mIoU]"]
    assert report(*arguments, "format=csv", f"out={out}") == 0
    frame = pd.read_csv(out)
    cell = frame.query("run == 'first' and split == 'ood' and by == 'moments' and metric == 'mIoU'")
    cell = cell.set_index("group").loc["2"]
    ious = [
        [
            max(
                max(0.0, min(w[1], m[1]) - max(w[0], m[0])) / (max(w[1], m[1]) - min(w[0], m[0]))
                for m in row["moments"]
            )
            for row in rows_of(seed)
            if row["split"] == "ood" and len(row["moments"]) == 2
            for w in row["pred_relevant_windows"][:1]
        ]
        for seed in (0, 1)
    ]
    values = 100 * np.mean(ious, axis=0)
    assert cell["mean"] == pytest.approx(values.mean(), abs=1e-3)
    assert (cell["queries"], cell["few"]) == (20, "yes")
    rng = np.random.default_rng(5)
    means = [rng.choice(values, len(values)).mean() for _ in range(2000)]
    assert [cell["low"], cell["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=2.5)
    sizes = frame.query("run == 'other' and metric == 'R1@0.5' and split == 'iid'")
    for kind in ("moments", "place"):
        of_kind = sizes[sizes["by"] == kind].set_index("group")["queries"]
        assert of_kind.drop(ALL).sum() == of_kind[ALL] == 80
    capsys.readouterr()
    assert report(*arguments) == 0
    shown = capsys.readouterr().out
    assert "n=20 (few)" in shown
    assert f"fewer than {FEW}" in " ".join(shown.split())
    assert "mIoU on" not in shown  # the terminal shows the leading metric


def test_queries_of_one_video_are_drawn_together(runs, tmp_path):
    for predictions in runs.glob("*/*/predictions.jsonl"):
        rows = sorted(map(json.loads, predictions.read_text().splitlines()), key=is_right)
        for number, row in enumerate(row for row in rows if row["split"] == "iid"):
            row["video_id"] = f"v{number // 8}"  # hard and easy videos
        predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "by.csv"
    arguments = [f"runs={runs}", "by=moments", "columns=[R1@0.5]", "format=csv", f"out={out}"]
    assert report(*arguments) == 0
    cell = pd.read_csv(out).query("run == 'other' and split == 'iid'").set_index("group").loc[ALL]
    assert (cell["queries"], cell["few"]) == (80, "yes")  # of ten videos
    right = sorted(100.0 * is_right(row) for row in rows_of(0) if row["split"] == "iid")
    by_video = np.reshape(right, (10, 8))
    rng = np.random.default_rng(5)
    means = [by_video[rng.integers(0, 10, 10)].mean() for _ in range(4000)]
    assert [cell["low"], cell["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=2.5)


def test_every_table_fits_80_columns(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert report(f"runs={runs}", "by=[words,length]", "columns=[R1@0.5]") == 0
    assert report(f"runs={runs}", "columns=[R1@0.5,EtF1,C-Acc,ECE,ECE-iso]") == 0
    shown = capsys.readouterr().out
    tables = [line for line in shown.splitlines() if not line.startswith(("Next:", "Wrote"))]
    assert max(map(len, tables)) <= 80


def test_sets_and_calibration_are_columns_of_any_run_with_predictions(runs, tmp_path, capsys):
    out, picture = tmp_path / "table.csv", tmp_path / "reliability.svg"
    columns = "columns=[R1@0.5,EtF1,C-Acc,ECE,ECE-iso]"
    assert report(f"runs={runs}", columns, "format=csv", f"out={out}", f"reliability={picture}") == 0
    frame = pd.read_csv(out).set_index("run")
    # From the chosen score on, most second moments are in the set, and most other second windows are not.
    assert frame.loc["first", "ood C-Acc"] > 60
    assert frame.loc["first", "ood ECE"] < 20
    assert pd.isna(frame.loc["other", "ood ECE"])  # its scores are below 0
    assert frame.loc["other", "ood ECE-iso"] < 30
    assert pd.isna(frame.loc["first", "selection ECE-iso"])
    assert "score; those of 15 bins" in picture.read_text()
    assert report(f"runs={runs}", "columns=[R1@0.5,EtF1,ECE]") == 0
    notes = " ".join(capsys.readouterr().out.split())
    assert "chosen on the selection split by EtF1" in notes
    assert "15 bins of equal width; lower is better" in notes
    assert report(f"runs={runs}", "columns=[R1@0.5]", f"reliability={tmp_path}/a.gif") == 2
    assert report(f"runs={runs}", "columns=[ECE]", "by=words") == 2
    assert report(f"runs={runs}", "by=wordz", "columns=[R1@0.5]") == 2
    shown = capsys.readouterr().err
    for part in (".png, .pdf or .svg", "columns=[mIoU]", "Did you mean words"):
        assert part in shown


@pytest.mark.slow
def test_the_page_has_a_reliability_diagram(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert report(f"runs={runs}", "columns=[R1@0.5]", "html=true", "browse=0", f"out={page}") == 0
    assert "Reliability: how often the first moment" in page.read_text()


def test_a_difference_that_many_comparisons_explain_is_no_mark(tmp_path):
    hits = {"iid": 160, "selection": 160}
    write(tmp_path, "best", hits)
    write(tmp_path, "near", {"iid": 156, "selection": 160})  # p = 0.04 on iid

    def mark():
        (board,) = leaderboards(finished_runs(tmp_path), ["R1@0.5"])
        mark_significance(board, leaderboard_scores(board))
        return next(row.marks["iid", "R1@0.5"] for row in board.rows if row.name == "near")

    (tmp_path / "best" / "seed0" / "metrics.json").write_text(
        (tmp_path / "best" / "seed0" / "metrics.json")
        .read_text()
        .replace('"R1@0.5": 80.0', '"R1@0.5": 80.005')
    )
    assert mark() == TIED  # two comparisons: 0.04 becomes 0.08
    for name in ("best", "near"):
        file = tmp_path / name / "seed0" / "metrics.json"
        content = json.loads(file.read_text())
        del content["selection"]
        file.write_text(json.dumps(content))
    assert mark() == WORSE


def test_training_scores_sets_with_the_score_of_its_selection_split(tmp_path):
    run = tmp_path / "run"
    arguments = [
        "train",
        toy.SEARCH,
        "data=toy",
        "method=toy",
        "logger=csv",
        f"run={run}",
        "metrics.sets=selection",
    ]
    assert main.main([*arguments, "trainer.accelerator=cpu", "trainer.max_epochs=1"]) == 0
    stored = json.loads((run / "metrics.json").read_text())
    rule = stored["header"]["moment_sets"]
    assert rule["from"] == "selection"
    assert {"tF1@0.5", "EtF1", "C-Acc", "tIoU"} <= set(stored["ood"])
    assert yaml.safe_load((run / "config.yaml").read_text())["metrics"]["sets"] == "selection"
    assert main.main(["eval", f"run={run}", "split=ood"]) == 0
    (evaluated,) = (run / "eval").glob("ood-*/metrics.json")
    again = json.loads(evaluated.read_text())
    assert again["header"]["moment_sets"] == rule
    assert again["ood"] == pytest.approx(stored["ood"])
