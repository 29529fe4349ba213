"""`vmr report`: which runs share a table; how rows are averaged, compared, filtered, sorted and written."""

from __future__ import annotations

import errno
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, ttest_ind

from vmr_zoo.cli import main
from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.calibration import ECE
from vmr_zoo.report.conclusion import conclusion
from vmr_zoo.report.leaderboard import (
    BEST,
    DROP,
    TABLE_KEYS,
    TIED,
    WORSE,
    Leaderboard,
    LeaderboardRow,
    leaderboards,
)
from vmr_zoo.report.notes import table_notes
from vmr_zoo.report.query_scores import (
    leaderboard_scores,
    query_index,
    read_predictions,
    run_query_scores,
)
from vmr_zoo.report.run_settings import filter_runs
from vmr_zoo.report.runs import REQUIRED_KEYS, UNREADABLE, Run, finished_runs, scan_runs
from vmr_zoo.report.significance import (
    TEST,
    compare_rows,
    mark_significance,
    paired_bootstrap,
    resampled_means,
    video_codes,
    with_seeds,
)
from vmr_zoo.report.stored_scores import QUERY, VIDEO

QUERIES = 200


def write(root, name, hits, seed=0, **header):
    """Writes a run that answers the first `hits` queries of each split correctly; `hits` is by split."""
    run = root / name / f"seed{seed}"
    run.mkdir(parents=True)
    rows = [
        {
            "split": split,
            "query_id": f"{split}{number}",
            "video_id": f"v{number}",
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


def test_rows_are_averaged_over_seeds_with_the_drop_out_of_distribution(runs):
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"])
    assert board.columns == ["iid", "ood", "far", "selection", DROP]
    weak = next(row for row in board.rows if row.name == "weak")
    assert weak.cell(("iid", "R1@0.5")) == "50.00 ± 7.07"
    # 45 - mean(10, 20) and 55 - mean(30, 30).
    assert weak.values[DROP, "R1@0.5"] == pytest.approx([30.0, 25.0])
    assert board.cost() == (["seeds", "parameters", "train s"], [[n, "1,000", "10"] for n in "112"])


def test_only_significantly_worse_rows_are_marked(runs):
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"])
    mark_significance(board, leaderboard_scores(board))
    marks = {row.name: {column: mark for (column, _), mark in row.marks.items()} for row in board.rows}
    assert marks["strong"]["iid"] == BEST
    assert marks["close"]["iid"] == TIED  # 2 of 200 queries apart
    assert marks["close"]["ood"] == WORSE
    assert marks["weak"] == dict.fromkeys(("iid", "ood", "far", "selection"), WORSE)


def test_a_best_row_without_scores_of_queries_is_marked_and_nothing_is_said_to_be_compared(runs):
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"])
    scores = leaderboard_scores(board)
    number = next(number for number, row in enumerate(board.rows) if row.name == "strong")
    scores[number] = [{split: frame for split, frame in scores[number][0].items() if split != "iid"}]
    mark_significance(board, scores)
    marks = {row.name: row.marks.get(("iid", "R1@0.5")) for row in board.rows}
    assert marks == {"strong": BEST, "close": None, "weak": None}
    assert board.not_compared == ["iid"]
    assert any(note.startswith("Not compared") and note.endswith(": iid.") for note in table_notes(board))
    text = "".join(piece for piece, _ in conclusion(board, compared=True)[0])
    assert "strong is best on iid" in text
    assert text.endswith("Not compared, for lack of scores of single queries: close, weak.")


def test_the_mean_out_of_distribution_has_a_deviation_and_was_not_tested(runs):
    (board,) = leaderboards(filter_runs(finished_runs(runs), {"method": ["weak", "close"]}), ["R1@0.5"])
    (_, out, *_) = conclusion(board, compared=False)
    assert "close is best: 30.00 per cent" in "".join(text for text, _ in out)
    (board,) = leaderboards(filter_runs(finished_runs(runs), {"method": "weak"}), ["R1@0.5"])
    for name in ("first", "second"):
        board.rows.append(replace(board.rows[0], name=name, label=name))
    (_, out, *_) = conclusion(board, compared=False)
    said = "".join(text for text, _ in out)
    # 10 and 20 in the first seed, 30 and 30 in the second.
    assert "weak is best: 22.50 ± 10.61 per cent, a drop of 27.50 ± 3.54 points" in said
    assert said.endswith("(the average was not tested).")


def test_the_least_calibration_error_is_called_best():
    values = {"low": {"iid": 2.0, "ood": 3.0}, "high": {"iid": 4.0, "ood": 9.0}}
    rows = [
        LeaderboardRow(
            name,
            [Run(None, {}, {split: {ECE: x} for split, x in own.items()})],
            {(split, ECE): [x] for split, x in own.items()},
        )
        for name, own in values.items()
    ]
    board = Leaderboard("table", ["iid", "ood", DROP], [ECE], rows)
    for sentence in conclusion(board, compared=False)[:2]:
        assert ("low", True) in sentence


def test_the_bootstrap_is_scipys_and_pairs_its_queries():
    rng = np.random.default_rng(0)
    a, b = rng.random(60), rng.random(60) - 0.1
    found, none, little = paired_bootstrap(
        100 * np.stack([a - b, np.zeros(60), 0.01 + 0.001 * rng.random(60)]), np.arange(60), resamples=4000
    )
    expected = bootstrap(
        (100 * (a - b),), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.mean == pytest.approx(100 * (a - b).mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert none.p > 0.05
    assert little.p < 0.001  # far less noise in the differences than in either row


def test_the_bootstrap_draws_videos_with_all_their_queries():
    rng = np.random.default_rng(0)
    videos = np.repeat(np.arange(20), rng.integers(1, 6, 20))
    difference = rng.normal(size=20)[videos] + 0.1 * rng.normal(size=len(videos))
    draws = np.random.default_rng(3).integers(0, 20, (500, 20))
    naive = [np.concatenate([difference[videos == video] for video in drawn]).mean() for drawn in draws]
    (means,) = resampled_means(difference[None], videos, 500, seed=3)
    assert means == pytest.approx(naive)
    (alone,) = resampled_means(difference[None], np.arange(len(videos)), 500, seed=3)
    assert means.std() > 1.3 * alone.std()  # queries about one video are alike here
    rows = [{"video_id": f"v{video}", "query_id": f"q{n}"} for n, video in enumerate(videos)]
    (codes,) = video_codes(query_index(rows))
    assert codes.tolist() == videos.tolist()
    again, backwards = video_codes(query_index(rows), query_index(rows[::-1]))
    assert (again.tolist(), backwards.tolist()) == (videos.tolist(), videos[::-1].tolist())


def test_the_order_of_queries_in_a_file_does_not_change_a_comparison():
    generator = np.random.default_rng(0)
    names = [f"metric{number}" for number in range(6)]
    videos = [f"v{number}" for number in range(20)]
    index = pd.MultiIndex.from_product([videos, range(10)], names=[VIDEO, QUERY])
    mixed = index[generator.permutation(len(index))]
    rows = []
    for number in range(4):
        of_video = generator.random(20).repeat(10)[:, None]
        row = pd.DataFrame(generator.random((len(index), 6)) + of_video, index, names)
        rows.append(row.reindex(mixed if number % 2 else index))
    together = compare_rows(rows, dict.fromkeys(names, 0))
    for name in names:
        for pair, difference in compare_rows(rows, {name: 0}).items():
            assert together[pair] == difference


def test_a_cell_over_fewer_seeds_than_its_row_is_named(runs):
    write(runs, "weak", {"iid": 100}, seed=2)
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"])
    assert "weak has 3 seeds, but fewer on ood (2), far (2), selection (2), drop (2)." in table_notes(board)


@pytest.mark.parametrize(("videos", "least"), [(1, 1.0), (2, 0.5), (6, 1 / 32)])
def test_few_videos_are_never_significant(videos, least):
    (difference,) = paired_bootstrap(np.ones((1, 60)), np.arange(60) % videos, resamples=500)
    assert difference.p == pytest.approx(max(least, 2 / 501))


def test_equal_rows_on_few_videos_rarely_differ():
    """Percentiles alone would call 12 % different."""
    differences = np.random.default_rng(0).normal(size=(2000, 8))
    found = paired_bootstrap(differences, np.arange(8), resamples=1000)
    assert 0.03 < np.mean([one.p < 0.05 for one in found]) < 0.06


@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (5, 2)])
@pytest.mark.parametrize("deviation", [0.0, 2.0, 10.0])
def test_equal_rows_whose_seeds_vary_rarely_differ(counts, deviation):
    """Over videos alone, up to three quarters of the comparisons would be significant."""
    rng = np.random.default_rng(0)
    comparisons, videos = 400, 80
    hard = 20 * rng.normal(size=(comparisons, 1, videos))
    a, b = (
        hard
        + deviation * rng.normal(size=(comparisons, seeds, 1))
        + 10 * rng.normal(size=(comparisons, 1, videos))
        for seeds in counts
    )
    found = paired_bootstrap(a.mean(1) - b.mean(1), np.arange(videos), resamples=1000)
    p = np.array([with_seeds(one, *own) for one, *own in zip(found, a.mean(2), b.mean(2), strict=True)])
    assert 0.01 < (p < 0.05).mean() < 0.08
    if deviation == 10:
        assert np.mean([one.p < 0.05 for one in found]) > 0.5


def test_without_an_error_over_videos_the_test_over_seeds_is_welchs():
    rows = [81.7, 78.8, 94.1], [82.0, 84.5, 82.7, 60.0]
    (difference,) = paired_bootstrap(np.full((1, 60), np.mean(rows[0]) - np.mean(rows[1])), np.arange(60))
    assert difference.p < 0.001
    expected = ttest_ind(*rows, equal_var=False).pvalue
    assert with_seeds(difference, *rows) == pytest.approx(expected)
    assert with_seeds(difference, rows[0], [60.0]) == difference.p  # one seed: as before
    assert with_seeds(difference, [80.0, 80.0], [60.0, 60.0]) == difference.p


def test_a_row_is_best_among_equals_if_one_of_its_seeds_was_lucky(tmp_path):
    for seed, (lucky, steady) in enumerate([(158, 160), (150, 162), (190, 161)]):
        write(tmp_path, "lucky", {"iid": lucky}, seed)
        write(tmp_path, "steady", {"iid": steady}, seed)
        write(tmp_path, "middle", {"iid": 140 + seed}, seed)  # worse than steady, not than lucky
        write(tmp_path, "bad", {"iid": 40 + seed}, seed)
    (board,) = leaderboards(finished_runs(tmp_path), ["R1@0.5"])
    mark_significance(board, leaderboard_scores(board))
    marks = {row.name: row.marks["iid", "R1@0.5"] for row in board.rows}
    assert marks == {"lucky": BEST, "steady": TIED, "middle": WORSE, "bad": WORSE}
    said = "seeds are not counted"
    assert said not in " ".join(table_notes(board)) + str(conclusion(board, True))
    write(tmp_path, "alone", {"iid": 30})
    (board,) = leaderboards(finished_runs(tmp_path), ["R1@0.5"])
    mark_significance(board, leaderboard_scores(board))
    assert f"rows with one seed are compared as trained: {said}" in " ".join(table_notes(board))
    assert said in conclusion(board, True)[0][-1][0]
    (board,) = leaderboards(filter_runs(finished_runs(tmp_path), {"seed": 0}), ["R1@0.5"])
    mark_significance(board, leaderboard_scores(board))
    assert f"of these trained models, one seed: {said}" in " ".join(table_notes(board))


def test_scores_of_queries_average_to_the_metrics_of_the_run(trained_toy):
    run = trained_toy
    stored = json.loads((run / "metrics.json").read_text())
    assert {"experiment": None, "ablation": None}.items() <= stored["header"].items()
    scores = run_query_scores(read_predictions([run / "predictions.jsonl"]), run, ["iid", "ood"])
    assert set(scores) == {"iid", "ood"}
    for split, frame in scores.items():
        means = 100 * frame.mean().dropna()
        assert {"R1@0.5", "mIoU", "mAP"} <= set(means.index)
        for metric, value in means.items():
            assert value == pytest.approx(stored[split][metric], abs=1e-4)


def test_broken_predictions_are_named(runs):
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"])
    file = runs / "close" / "seed0" / "predictions.jsonl"
    whole = file.read_text()
    file.write_text(whole.replace("[20.0, 30.0, 0.9]", "[NaN, 30.0, 0.9]"))
    with pytest.raises(VmrError, match="finite windows"):
        leaderboard_scores(board)
    kept = whole.splitlines(keepends=True)
    file.write_text("".join(kept[:100] + kept[-100:]))
    with pytest.raises(VmrError, match=r"close.seed0 were cut or changed: its \S+ on \w+ is .* metrics.json"):
        leaderboard_scores(board)
    file.write_text(whole[:-20])
    with pytest.raises(VmrError, match=r"predictions.jsonl, line 800: expected one JSON object"):
        leaderboard_scores(board)


@pytest.mark.parametrize("wanted", ["significance=true", "html=true", "by=length"])
def test_a_run_with_damaged_predictions_costs_the_others_nothing(wanted, runs, capsys):
    file = runs / "close" / "seed0" / "predictions.jsonl"
    file.write_text(file.read_text()[:-20])
    arguments = ["report", f"runs={runs}", "columns=R1@0.5", wanted]
    assert main.main(arguments) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"1 unreadable): {file.parent} ({file}, line 800: expected one JSON object" in shown
    assert "strong" in shown
    assert "weak" in shown
    file.unlink()  # nothing can be said about a run without the file: that is no damage
    assert main.main(arguments) == 2
    assert "found no such file" in capsys.readouterr().err


def test_unfinished_runs_are_counted_and_have_no_row(runs, capsys):
    for state, message in {"failed": "ValueError: loss is [red]nan", "running": ""}.items():
        write(runs, state, {"iid": 200})
        status = {"state": state, "train_seconds": 1.0, "message": message}
        (runs / state / "seed0" / "status.json").write_text(json.dumps(status))
    (runs / "broken").mkdir()
    (runs / "broken" / "metrics.json").write_text("[]")
    (runs / "strong" / "seed0" / "wandb" / "metrics.json").mkdir(parents=True)
    assert main.main(["report", f"runs={runs}", "columns=R1@0.5"]) == 1  # one could not be read
    shown = capsys.readouterr().out
    assert "1 unreadable, 1 failed, 1 running" in shown
    assert "(ValueError: loss is [red]nan)" in shown
    assert sum(line.startswith(("strong ", "close ", "weak ")) for line in shown.splitlines()) == 3


def test_runs_of_several_folders_share_a_table(runs, tmp_path_factory, capsys):
    other = tmp_path_factory.mktemp("other")
    write(other, "elsewhere", {"iid": 140})
    # `strong` lies in two of the folders, and is one row with one seed.
    folders = f"runs=[{runs},{other},{runs}/strong]"
    assert main.main(["report", folders, "columns=R1@0.5", "format=long"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert sorted(table["method"]) == ["close", "elsewhere", "strong", "weak", "weak"]
    assert main.main(["report", f"runs=[{runs},{other}/none]"]) == 2
    assert f"{other}/none" in capsys.readouterr().err


def test_evaluations_are_rows_on_request(runs):
    run = runs / "strong" / "seed0"
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    stored = json.loads((run / "metrics.json").read_text())
    header = stored["header"]
    for number, name, added in (
        (1, "strong", 1.0),
        (1, "strong with blank", 9.0),
        (2, "strong with blank", 0),
    ):
        for split in ("iid", "ood"):
            target = run / "eval" / f"{split}-{number:03d}{len(name)}"
            target.mkdir(parents=True)
            (target / "predictions.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in rows if row["split"] == split)
            )
            content = {"header": header | {"name": name}, split: {"R1@0.5": stored[split]["R1@0.5"] + added}}
            (target / "metrics.json").write_text(json.dumps(content))
    assert len(finished_runs(runs)) == 4
    added, _ = scan_runs(runs, evals=True)
    (board,) = leaderboards(added, ["R1@0.5"])
    names = [row.name for row in board.rows]
    assert sorted(names) == ["close", "strong", "strong with blank", "weak"]
    blank = names.index("strong with blank")
    assert board.rows[blank].values["iid", "R1@0.5"] == [80.0]  # the later one
    assert board.rows[names.index("strong")].values["iid", "R1@0.5"] == [80.0]  # the run's own
    scores = leaderboard_scores(board)
    assert {split: len(frame) for split, frame in scores[blank][0].items()} == {
        "iid": QUERIES,
        "ood": QUERIES,
    }
    mark_significance(board, scores)
    assert set(board.rows[blank].marks.values()) == {TIED}  # its predictions are those of the best row


def test_a_damaged_evaluation_costs_the_run_nothing(runs, capsys):
    broken = runs / "strong" / "seed0" / "eval" / "iid-other_query-001"
    broken.mkdir(parents=True)  # as a killed evaluation leaves it
    assert main.main(["report", f"runs={runs}", "evals=true", "columns=[R1@0.5]"]) == 0
    (broken / "metrics.json").write_text("{")
    capsys.readouterr()
    assert main.main(["report", f"runs={runs}", "columns=[R1@0.5]"]) == 1
    shown = capsys.readouterr().out
    assert "1 unreadable" in shown
    assert any(line.startswith("strong ") for line in shown.splitlines())


def test_a_repeated_seed_is_not_averaged(runs):
    write(runs / "other_study", "strong", {"iid": 10, "ood": 10, "far": 10, "selection": 10})
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"])
    strong = {row.name: row.values["iid", "R1@0.5"] for row in board.rows if "strong" in row.name}
    assert strong == {"strong (strong)": [80.0], "strong (other_study/strong)": [5.0]}
    write(runs / "another_study", "strong", {"iid": 30, "ood": 10})
    (board,) = leaderboards([run for run in finished_runs(runs) if "study" in str(run.path)], ["R1@0.5"])
    assert {row.label for row in board.rows} == {"strong (another_study)", "strong (other_study)"}
    write(runs / "third/runs", "strong", {"iid": 20, "ood": 10})
    (runs / "third/runs/strong/seed0").rename(runs / "third/runs/strong/again")
    write(runs / "third/runs", "strong", {"iid": 30, "ood": 10})  # the same seed in the same folder
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"])
    strong = {row.label for row in board.rows if "strong" in row.name}
    assert strong == {
        "strong (strong)",
        "strong (other_study/strong)",
        "strong (another_study/strong)",
        "strong (third/runs/strong/again)",
        "strong (third/runs/strong/seed0)",
    }


def test_runs_of_one_row_with_other_settings_are_named(runs):
    def settings(seed, lr, patience=8):
        return (
            f"variant: paper\nseed: {seed}\ndata:\n  seed: {seed}\n  num_workers: {seed}\n"
            f"method:\n  world:\n    seed: 0\n  optimizer:\n    lr: {lr}\n"
            f"callbacks:\n  checkpoint:\n    dirpath: {seed}\n  plateau:\n    patience: {patience}\n"
        )

    def notes(*texts):
        for seed, text in enumerate(texts):
            config = runs / f"weak/seed{seed}/config.yaml"
            config.write_text(text)
        (board,) = leaderboards(finished_runs(runs), ["R1@0.5"])
        return [note for note in table_notes(board) if note.startswith("WARNING")]

    assert notes(settings(0, 0.1), settings(1, 0.1)) == []
    assert notes(settings(0, 0.1), settings(1, 0.1).replace("method:", "method:\n  added: 1")) == []
    assert notes(settings(0, 0.1), "method: [") == []
    found = "method.optimizer.lr (0.1, 0.2), callbacks.plateau.patience (8, 9)"
    assert notes(settings(0, 0.1), settings(1, 0.2, 9)) == [f"WARNING: the runs of weak differ in {found}."]


def test_runs_on_other_annotations_are_named(runs, capsys):
    found = {"strong/seed0": (3, "a"), "weak/seed0": (3, "a"), "weak/seed1": (2, "b")}
    for run, (sentences, digest) in found.items():
        split = {"sentences": sentences, "sha256": digest}
        (runs / run / "annotations.json").write_text(json.dumps({"iid": split, "ood": {"sha256": "same"}}))
    (runs / "close/seed0/annotations.json").write_text("{")
    warning = "WARNING: the annotations of iid differ: strong (3 sentences), weak (3 sentences)"
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"])
    warnings = [note for note in table_notes(board) if note.startswith("WARNING")]
    broken = "WARNING: the annotations of close cannot be read."
    assert warnings == [broken, f"{warning} | weak (2 sentences)."]
    for asked in (["format=csv"], ["format=csv", "by=moments"]):
        assert main.main(["report", f"runs={runs}", "columns=[R1@0.5]", *asked]) == 0
        shown = capsys.readouterr().err
        assert warning in shown
        assert broken in shown


def test_rows_of_a_broken_predictions_file_are_read_once(tmp_path):
    """A row without a split makes the second reader read the file; the rows before it count once."""
    (tmp_path / "whole.jsonl").write_text('{"split": "iid", "n": 0}\n')
    (tmp_path / "odd.jsonl").write_text('{"split": "iid", "n": 1}\n{"n": 2}\n{"split": "ood", "n": 3}\n')
    found = read_predictions([tmp_path / "whole.jsonl", tmp_path / "odd.jsonl"])
    assert {split: [row["n"] for row in rows] for split, rows in found.items()} == {
        "iid": [0, 1],
        "": [2],
        "ood": [3],
    }


def test_a_finished_run_that_lost_its_metrics_is_named(runs):
    lost = runs / "weak" / "seed0"
    (lost / "status.json").write_text('{"state": "finished", "train_seconds": 1.0}')
    (lost / "metrics.json").unlink()
    found, unfinished = scan_runs(runs)
    assert lost not in {run.path for run in found}
    assert [(one.path, one.state) for one in unfinished] == [(lost, UNREADABLE)]


def test_a_folder_that_cannot_be_read_is_named(runs, capsys, monkeypatch):
    closed = runs / "weak"
    if os.geteuid():
        closed.chmod(0)
    else:  # root reads every folder
        scandir = os.scandir

        def refuse(folder):
            if Path(folder) == closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(folder))
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", refuse)
    try:
        found, unfinished = scan_runs(runs)
        assert main.main(["report", f"runs={runs}", "columns=[R1@0.5]", "format=csv"]) == 1
    finally:
        closed.chmod(0o755)
    assert {run.header["name"] for run in found} == {"strong", "close"}
    assert [(one.path, one.state) for one in unfinished] == [(closed, UNREADABLE)]
    assert "Permission denied" in unfinished[0].message
    assert "weak" in capsys.readouterr().err


def test_runs_that_are_not_comparable_share_no_table(runs):
    write(runs, "other", {"iid": 200}, selection="test split 'iid'")
    write(runs, "simulated", {"iid": 200}, origin="simulated", features="labels")
    boards = leaderboards(finished_runs(runs), ["R1@0.5"])
    assert sorted(len(board.rows) for board in boards) == [1, 1, 3]
    assert any("SIMULATED: no number here comes from pixels" in board.title for board in boards)


def test_a_header_without_a_table_key_is_refused():
    assert set(TABLE_KEYS) <= set(REQUIRED_KEYS)


def test_features_in_half_precision_have_their_own_table(train_toy, tmp_path):
    for name, storage in (("full", "float32"), ("half", "float16")):
        assert train_toy(f"data.storage={storage}", method="predict_all", name=f"runs/{name}")[0] == 0
    boards = leaderboards(finished_runs(tmp_path / "runs"), ["mIoU"])
    titles = [board.title.partition(";")[0] for board in boards]
    simulated = "(SIMULATED: no number here comes from pixels)"
    assert titles == [f"toy, features toy{held} {simulated}" for held in ("", ", held in float16")]


REFUSED = {
    "source=wandb with evals=true": ["source=wandb", "evals=true"],
    "printed=… with log=wandb": ["printed=all", "log=wandb"],
    "printed=… with significance=true": ["printed=[tea/table4]", "significance=true"],
    "printed=… with sort=…": ["printed=tea", "sort=iid mIoU"],
    "html=true with format=…": ["html=true", "format=csv"],
    "videos=… without html=true": ["videos=."],
}


@pytest.mark.parametrize("found", REFUSED)
def test_ignored_arguments_are_refused_before_anything_is_read(found, capsys, monkeypatch):
    for reader in ("vmr_zoo.report.runs.scan_runs", "vmr_zoo.report.wandb_runs.fetch_runs"):
        monkeypatch.setattr(reader, lambda *_: pytest.fail("was read"))
    assert main.main(["report", *REFUSED[found]]) == 2
    assert f"Found {found}." in " ".join(capsys.readouterr().err.split())


def test_filters_and_sorting(runs):
    kept = filter_runs(finished_runs(runs), {"method": ["weak", "close"], "seed": 0})
    assert [run.header["name"] for run in kept] == ["close", "weak"]
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"], "ood R1@0.5")
    assert [row.name for row in board.rows] == ["strong", "close", "weak"]
    (board,) = leaderboards(finished_runs(runs), ["R1@0.5"], "name")
    assert [row.name for row in board.rows] == ["close", "strong", "weak"]
    with pytest.raises(VmrError, match="Did you mean method"):
        filter_runs(finished_runs(runs), {"methd": "weak"})
    with pytest.raises(VmrError, match="Available: method: close, strong, weak"):
        filter_runs(finished_runs(runs), {"method": "absent"})
    with pytest.raises(VmrError, match=r"Did you mean iid R1@0\.5"):
        leaderboards(finished_runs(runs), ["R1@0.5"], "idd R1@0.5")


def test_every_format_has_the_same_cells(runs, tmp_path, capsys):
    written = {}
    for seed, git in enumerate(
        [{"revision": "1" * 40, "dirty": True}, {"revision": "0" * 40, "dirty": False}]
    ):
        (runs / "weak" / f"seed{seed}" / "environment.json").write_text(json.dumps({"git": git}))
    for kind in ("csv", "markdown", "latex"):
        out = tmp_path / f"table.{kind}"
        assert main.main(["report", f"runs={runs}", f"format={kind}", f"out={out}", "significance=true"]) == 2
        assert "Unknown metric 'R1@0.3'" in capsys.readouterr().err  # a default column that these runs lack
        arguments = ["report", f"runs={runs}", f"format={kind}", f"out={out}", "columns=[R1@0.5]"]
        assert main.main([*arguments, "significance=true"]) == 0
        written[kind] = out.read_text()
    frame = pd.read_csv(tmp_path / "table.csv")
    assert list(frame["run"]) == ["strong", "close", "weak"]
    assert list(frame["iid R1@0.5"]) == [80.0, 79.0, 50.0]
    assert frame["iid R1@0.5 std"].tolist()[2] == pytest.approx(7.0711, abs=1e-4)
    assert list(frame["iid R1@0.5 n"]) == list(frame["seeds"]) == [1, 1, 2]
    assert list(frame["ood R1@0.5 significance"]) == ["best", "worse", "worse"]
    assert list(frame["iid R1@0.5 significance"]) == ["best", "tied", "worse"]
    assert list(frame["parameters"]) == [1000] * 3
    assert list(frame["revision"]) == ["?", "?", f"{'0' * 10} {'1' * 10}+changes"]
    # The best is bold, the rest of the best group has a sign, and rows that are worse have none.
    cells = [re.findall(r"[^|\s][^|]*[^|\s]", line) for line in written["markdown"].splitlines()]
    rows = {row[0]: row[1:] for row in cells if row and row[0] in ("strong", "close", "weak")}
    assert rows["strong"][:2] == ["**80.00**", "**60.00**"]
    assert rows["close"][:2] == ["79.00≈", "30.00"]
    assert rows["weak"][0] == "50.00 ± 7.07"
    assert r"strong & \textbf{80.00} & \textbf{60.00} &" in written["latex"]
    assert r"close & 79.00\rlap{$^{\approx}$} & 30.00 &" in written["latex"]
    assert r"\usepackage{booktabs}" in written["latex"].splitlines()[0]
    assert r"features f\_1" in written["latex"]

    filtered = tmp_path / "filtered.csv"
    where = "where={method:[weak,close],seed:0}"
    arguments = ["report", f"runs={runs}", "columns=[R1@0.5]", "format=csv", where, f"out={filtered}"]
    assert main.main(arguments) == 0
    assert list(pd.read_csv(filtered)["method"]) == ["close", "weak"]
    capsys.readouterr()

    assert main.main(["report", f"runs={runs}", "columns=[R1@0.5]", "significance=true"]) == 0
    shown = capsys.readouterr().out
    assert f"*: best; ≈: no row is significantly better ({TEST}; rows with one seed" in " ".join(
        shown.split()
    )
    assert re.search(r"^close +79\.00≈ +30\.00 ", shown, re.MULTILINE)


def test_labels_omit_what_all_rows_share_up_to_the_name_of_their_method(tmp_path):
    for method in ("emb", "tea"):
        for setting in ("", "+dim-8"):
            name = f"{method}-paper+recipe-shapes_{method}{setting}"
            write(tmp_path, name, {"iid": 100}, method=method, ablation=None)
    (board,) = leaderboards(finished_runs(tmp_path), ["R1@0.5"])
    assert sorted(row.label for row in board.rows) == ["emb", "emb+dim-8", "tea", "tea+dim-8"]
    assert board.shared == "recipe-shapes_METHOD"
