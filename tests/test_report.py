"""`vmr report`: what may stand in one table; how rows are averaged, compared, filtered, sorted, written."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from vmr_zoo import cli
from vmr_zoo.errors import VmrError
from vmr_zoo.report import BEST, DROP, WORSE, chosen, collect, compare, leaderboards
from vmr_zoo.significance import paired_bootstrap, query_scores

QUERIES = 200


def write(root, name, hits, seed=0, **header):
    """Writes a run that answers the first `hits` queries of each split right, by split."""
    run = root / name / f"seed{seed}"
    run.mkdir(parents=True)
    rows = [
        {
            "split": split,
            "query_id": f"{split}{number}",
            "video_id": "v",
            "query": "a star",
            "duration": 30.0,
            "moments": [[0.0, 10.0]],
            "pred_relevant_windows": [[0.0, 10.0, 0.9]] if number < right else [[20.0, 30.0, 0.9]],
        }
        for split, right in hits.items()
        for number in range(QUERIES)
    ]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text(
        "metrics: {_target_: x, r1_thresholds: [0.5], r5_thresholds: [0.5], windows: 10, "
        "rounding: {_target_: vmr_zoo.metrics.settings.Rounding, decimals: 4}}\n"
    )
    shared = {
        "name": name,
        "method": name,
        "variant": "paper",
        "protocol": "p",
        "features": "f_1",
        "origin": "real",
        "selection": "published",
        "rounding": "4 decimals",
        "seed": seed,
        "parameters": 1000,
        "train_seconds": 10.0,
    }
    metrics = {split: {"R1@0.5": 100 * right / QUERIES} for split, right in hits.items()}
    (run / "metrics.json").write_text(json.dumps({"header": shared | header, **metrics}))


@pytest.fixture
def runs(tmp_path):
    write(tmp_path, "strong", {"iid": 160, "ood": 120, "far": 100, "selection": 150})
    write(tmp_path, "close", {"iid": 158, "ood": 60, "far": 60, "selection": 150})
    write(tmp_path, "weak", {"iid": 90, "ood": 20, "far": 40, "selection": 80}, seed=0)
    write(tmp_path, "weak", {"iid": 110, "ood": 60, "far": 60, "selection": 80}, seed=1)
    return tmp_path


def test_rows_are_averaged_over_seeds_and_say_how_much_they_lose_out_of_distribution(runs):
    (board,) = leaderboards(collect(runs), ["R1@0.5"])
    assert board.columns == ["iid", "ood", "far", "selection", DROP]
    weak = next(row for row in board.rows if row.name == "weak")
    assert weak.cell(("iid", "R1@0.5")) == "50.00 ± 7.07"
    # 45 - mean(10, 20) and 55 - mean(30, 30).
    assert weak.values[DROP, "R1@0.5"] == pytest.approx([30.0, 25.0])
    assert weak.rest() == ["2", "1,000", "10"]


def test_only_rows_that_are_worse_by_more_than_chance_are_marked(runs):
    (board,) = leaderboards(collect(runs), ["R1@0.5"])
    compare(board)
    marks = {row.name: {column: mark for (column, _), mark in row.marks.items()} for row in board.rows}
    assert marks["strong"]["iid"] == BEST
    assert "iid" not in marks["close"]  # 2 of 200 queries apart
    assert marks["close"]["ood"] == WORSE
    assert marks["weak"] == dict.fromkeys(("iid", "ood", "far", "selection"), WORSE)


def test_the_bootstrap_is_the_naive_one_and_pairs_its_queries():
    rng = np.random.default_rng(0)
    a, b = rng.random(60), rng.random(60) - 0.1
    found = paired_bootstrap(a, b, resamples=4000)
    draws = rng.integers(0, 60, (4000, 60))
    naive = np.percentile(100 * (a - b)[draws].mean(1), [2.5, 97.5])
    assert found.mean == pytest.approx(100 * (a - b).mean())
    assert (found.low, found.high) == pytest.approx(tuple(naive), abs=0.6)
    assert not paired_bootstrap(a, a).significant
    # Far less noise in the differences than in either row.
    assert paired_bootstrap(a, a - 0.01 - 0.001 * rng.random(60)).significant


def test_scores_of_queries_average_to_the_metrics_of_the_run(train_toy):
    _, run = train_toy()
    stored = json.loads((run / "metrics.json").read_text())
    scores = query_scores(run, ["iid", "ood"])
    for split, by_metric in scores.items():
        for metric, values in by_metric.items():
            if values:
                assert 100 * np.mean(list(values.values())) == pytest.approx(stored[split][metric], abs=1e-9)


def test_what_is_not_comparable_stands_apart(runs):
    write(runs, "other", {"iid": 200}, selection="test split 'iid'")
    write(runs, "simulated", {"iid": 200}, origin="simulated", features="labels")
    boards = leaderboards(collect(runs), ["R1@0.5"])
    assert sorted(len(board.rows) for board in boards) == [1, 1, 3]
    assert any("SIMULATED: no number here comes from pixels" in board.title for board in boards)


def test_filters_and_sorting(runs):
    kept = chosen(collect(runs), {"method": ["weak", "close"], "seed": 0})
    assert [run.header["name"] for run in kept] == ["close", "weak"]
    (board,) = leaderboards(collect(runs), ["R1@0.5"], "ood R1@0.5")
    assert [row.name for row in board.rows] == ["strong", "close", "weak"]
    with pytest.raises(VmrError, match="Did you mean method"):
        chosen(collect(runs), {"methd": "weak"})
    with pytest.raises(VmrError, match="There is method: close, strong, weak"):
        chosen(collect(runs), {"method": "absent"})
    with pytest.raises(VmrError, match=r"Did you mean iid R1@0\.5"):
        leaderboards(collect(runs), ["R1@0.5"], "idd R1@0.5")


def test_every_format_holds_the_same_cells(runs, tmp_path, capsys):
    written = {}
    for kind in ("csv", "markdown", "latex"):
        out = tmp_path / f"table.{kind}"
        assert cli.main(["report", f"runs={runs}", f"format={kind}", f"out={out}", "significance=true"]) == 2
        assert "Unknown metric 'R1@0.7'" in capsys.readouterr().err  # a default column that these runs lack
        arguments = ["report", f"runs={runs}", f"format={kind}", f"out={out}", "columns=[R1@0.5]"]
        assert cli.main([*arguments, "significance=true"]) == 0
        written[kind] = out.read_text()
    frame = pd.read_csv(tmp_path / "table.csv", dtype=str)
    assert list(frame["iid R1@0.5"]) == ["79.00", f"80.00{BEST}", f"50.00 ± 7.07{WORSE}"]
    assert f"| 50.00 ± 7.07{WORSE} |" in written["markdown"]
    assert r"50.00 $\pm$ 7.07$\downarrow$" in written["latex"]
    assert r"features f\_1" in written["latex"]
    assert "↓" not in written["latex"]

    assert cli.main(["report", f"runs={runs}", "columns=[R1@0.5]", "significance=true"]) == 0
    shown = capsys.readouterr().out
    assert "worse than it (paired bootstrap over queries, 95 %)" in shown
