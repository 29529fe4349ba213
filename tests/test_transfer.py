"""`vmr eval data=OTHER`: what is refused, what the results say, and where `vmr report` shows them."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import toy
from vmr_zoo.data.annotations.inspection import inspect_protocol
from vmr_zoo.data.annotations.protocols import charades_sta, refuse_shared_videos
from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.annotations.timelens import timelens_charades
from vmr_zoo.engine.transfer import _for_other_world
from vmr_zoo.errors import VmrError
from vmr_zoo.report.leaderboard import leaderboards
from vmr_zoo.report.query_scores import leaderboard_scores
from vmr_zoo.report.runs import scan_runs
from vmr_zoo.report.significance import mark_significance
from vmr_zoo.report.transfer import transfer_boards
from vmr_zoo.report.writers import LEADERBOARD_WRITERS

FAR = (toy.SEARCH, "data=toy", "data.name=far", "+data.protocol.name=far")
"""Other data with the videos and sentences of the toy's tests."""


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def runs(train_toy_in, vmr, tmp_path_factory):
    """A run tested on other data, once as it is and once with a probe."""
    root = tmp_path_factory.mktemp("transfer") / "runs"
    run = root / "toy" / "seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMR_TRUST", "toy")
        assert train_toy_in(run) == 0
        assert vmr("eval", *FAR, f"run={run}") == 0
        assert vmr("eval", *FAR, f"run={run}", "split=iid", "probe=blank_query") == 0
    return root


def test_results_say_what_was_trained_and_tested(runs):
    run = runs / "toy" / "seed0"
    folders = {"iid-on-far-001", "ood-on-far-001", "iid-on-far-blank_query-001"}
    assert {path.name for path in (run / "eval").iterdir()} == folders
    own, moved = metrics(run), metrics(run / "eval/iid-on-far-001")
    assert moved["header"]["protocol"] == "toy -> far"
    facts = {"trained_on": "toy", "tested_on": "far", "videos": {"iid": 3, "ood": 2}}
    assert moved["header"]["transfer"] == facts
    assert moved["iid"] == own["iid"], "the same weights on the same queries"
    probed = metrics(run / "eval/iid-on-far-blank_query-001")["header"]
    assert (probed["protocol"], probed["probe"]) == ("toy -> far", "blank_query")


def test_transfer_has_a_table_of_its_own(runs):
    for evals in (False, True):
        found, _ = scan_runs(runs, evals=evals)
        (ordinary,) = leaderboards(found, ["mIoU"])
        assert ordinary.title.startswith("toy, features toy")
        assert len(ordinary.rows) == 1, "neither protocol ranks the results"
        (board,) = transfer_boards(found, ["mIoU", "EtF1"], evals)
        assert board.title.startswith("Trained on -> tested on far, features toy")
        assert board.metrics == ["mIoU"]
        assert board.splits == ["iid", "ood"]
        names = {row.name.removeprefix("toy-paper+max_epochs-2"): row for row in board.rows}
        probed = {" asked with blank query, trained on toy"} if evals else set()
        assert names.keys() == {", trained on toy", *probed}
        assert names[", trained on toy"].values["ood", "mIoU"] == [found[0].metrics["ood"]["mIoU"]]
        mark_significance(board, leaderboard_scores(board))


def test_a_run_trained_on_the_other_data_stands_beside(runs):
    (run,), _ = scan_runs(runs)
    native = replace(run, header=run.header | {"protocol": "far"}, transfers=())
    other = replace(native, header=native.header | {"method": "another"})
    (board,) = transfer_boards([run, native, other], ["mIoU"])
    assert {row.name.partition(", ")[2] for row in board.rows} == {"trained on toy", "trained on far"}
    assert board.splits == ["iid", "ood"]


def test_results_on_other_features_stand_in_a_table_of_their_own(runs):
    (run,), _ = scan_runs(runs)
    (one, *_), features = run.transfers, "toy, held in bfloat16"
    again = replace(one, header=one.header | {"features": features})
    boards = transfer_boards([replace(run, transfers=(*run.transfers, again))], ["mIoU"])
    assert sorted(features in board.title for board in boards) == [False, True]


def test_every_format_has_the_table(runs, vmr, tmp_path, capsys):
    assert vmr("report", f"runs={runs}", "columns=[mIoU]") == 0
    assert "Trained on -> tested on" in capsys.readouterr().out
    boards = transfer_boards(scan_runs(runs)[0], ["mIoU"])
    text = {form: write(boards, False) for form, write in LEADERBOARD_WRITERS.items()}
    for form in ("csv", "long"):
        row = pd.read_csv(io.StringIO(text[form])).squeeze()
        assert row["iid mIoU"] == pytest.approx(boards[0].rows[0].values["iid", "mIoU"][0], abs=1e-5)
    assert "trained on toy" in text["markdown"]
    assert "trained on toy" in text["latex"]


def test_significance_is_marked(runs, vmr, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(runs / "toy" / "seed0", tmp_path / name)
        evals = tmp_path / name / "eval"
        shutil.copytree(
            evals / "iid-on-far-001", evals / "iid-on-far-002"
        )  # tested twice: the last one counts
        for path in [tmp_path / name / "metrics.json", *(tmp_path / name).glob("eval/*/metrics.json")]:
            content = json.loads(path.read_text())
            content["header"]["name"] = content["header"]["name"].replace("toy-paper", name)
            path.write_text(json.dumps(content))
    out = tmp_path / "board.csv"
    options = ("columns=[mIoU]", "significance=true", "format=csv", f"out={out}")
    assert vmr("report", f"runs={tmp_path}", *options) == 0
    table = pd.read_csv(out)
    moved = table[table["run"].str.contains("trained on toy")]
    assert sorted(moved["iid mIoU significance"]) == ["best", "tied"]


def test_shared_videos_and_other_features_are_refused(runs, vmr, tmp_path, capsys):
    """The other iid split has the videos v10 to v12; training had v0 to v11."""
    run = tmp_path / "run"
    shutil.copytree(runs / "toy" / "seed0", run, ignore=shutil.ignore_patterns("eval"))
    assert vmr("eval", *FAR, f"run={run}", "+data.protocol.first=10") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "trained for the protocol 'toy' and is not tested under 'far'" in said
    assert "holds 2 of the 3 videos of its iid split" in said
    assert "split=[ood]" in said
    assert not (run / "eval").exists()
    assert vmr("eval", *FAR, f"run={run}", "split=ood", "features=toy", "features.scale=2") == 2
    assert "scale: trained on 1.0, now 2" in capsys.readouterr().err
    assert vmr("eval", *FAR, f"run={run}", "split=ood", "metrics.rounding.decimals=0") == 0
    moved = run / "eval/ood-on-far-001"
    assert metrics(moved)["header"]["rounding"] == "0 decimals"
    rows = map(json.loads, (moved / "predictions.jsonl").read_text().splitlines())
    assert all(time == round(time) for row in rows for time in row["pred_relevant_windows"][0][:2])
    assert vmr("eval", toy.SEARCH, "data=toy", f"run={run}", "split=ood") == 0
    assert "transfer" not in metrics(run / "eval/ood-001")["header"], "its own data"


def test_equal_ids_of_other_pools_are_other_videos():
    trained, tested = toy.protocol(videos=202), toy.protocol(name="far")
    with pytest.raises(VmrError, match="2 of the 3 videos"):
        refuse_shared_videos(replace(trained, pool="a"), tested, ["iid"])
    refuse_shared_videos(replace(trained, pool="a"), replace(tested, pool="b"), ["iid"])
    renamed = replace(tested, tests={"iid": Split("iid", (Query("q", "v_200", "at 1", ((0, 1),), 12.0),))})
    refuse_shared_videos(trained, renamed, ["iid"])
    with pytest.raises(VmrError, match=r"'v_200'.* ids are written differently"):
        refuse_shared_videos(replace(trained, pool="a"), replace(renamed, pool="a"), ["iid"])


def test_features_of_a_world_follow_the_world():
    own, other = {"_target_": "World", "seed": 0}, {"_target_": "World", "seed": 1}
    features = {"video": {"world": own, "blind": "form"}, "more": [{"world": own}], "encoder": {"seed": 0}}
    moved = _for_other_world(features, {"world": own, "cache": "c"}, {"world": other})
    assert moved == {**features, "video": {"world": other, "blind": "form"}, "more": [{"world": other}]}


# --- TimeLens-Bench

ENTRY = {"duration": 20.0, "spans": [[2, 9], [10, 25]], "queries": ["A man sits down. ", "he drinks"]}


def write_charades(root: Path, timelens: object) -> None:
    """Two videos to train and to select with, one to test."""
    lines = {
        "train": [f"{video} 0.0 5.0##a person sits." for video in "AB"],
        "test": ["C 1.0 8.0##a person eats."],
    }
    for folder in ("charades", "timelens"):
        (root / folder).mkdir(parents=True)
    for part, rows in lines.items():
        (root / f"charades/charades_sta_{part}.txt").write_text("\n".join(rows))
        videos = "".join(f"{row[0]},20.0\n" for row in rows)
        (root / f"charades/Charades_v1_{part}.csv").write_text(f"id,length\n{videos}")
    text = timelens if isinstance(timelens, str) else json.dumps(timelens)
    (root / "timelens/charades-timelens.json").write_text(text)


def test_timelens_is_read_with_ids_of_its_own(tmp_path):
    write_charades(tmp_path, {"C": ENTRY})
    protocol = timelens_charades(tmp_path)
    first, second = protocol.tests["test"].queries
    assert (first.query_id, first.video_id, first.text) == ("timelens_C_0", "C", "A man sits down.")
    assert second.moments == ((10, 20),)
    assert (protocol.label, protocol.pool, protocol.train_with) == (
        "timelens_charades",
        "charades",
        "charades_sta",
    )
    assert not protocol.train.queries


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"C": {"duration": 1', "line 1, column 21: not valid JSON .* cut short"),
        ([ENTRY], "expected a JSON object of videos"),
        ({"C": {"duration": 9, "timestamps": [], "sentences": []}}, "expected the key 'spans' and 'queries'"),
        ({"C": ENTRY | {"queries": ["x"]}}, "as many sentences as moments, found 1 and 2"),
        ({"C": ENTRY | {"spans": [[[2, 9]], [1, 2]]}}, r"expected a moment as \[start, end\]"),
        ({"../C": ENTRY}, "part of a file name"),
    ],
)
def test_a_broken_timelens_file_is_named_with_the_place(tmp_path, content, message):
    write_charades(tmp_path, content)
    with pytest.raises(VmrError, match=f"(?s)charades-timelens.json.*{message}"):
        timelens_charades(tmp_path)


def test_timelens_tests_runs_of_charades_and_trains_none(vmr, tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    write_charades(data, {"C": ENTRY})
    given = ("method=predict_all", "features=synthetic", "logger=csv", "trainer.accelerator=cpu")
    assert vmr("train", "data=timelens_charades", *given, f"paths.annotations={data}", f"run={run}") == 2
    assert "only tests. Train with data=charades_sta" in capsys.readouterr().err
    assert vmr("train", "data=charades_sta", *given, f"paths.annotations={data}", f"run={run}") == 0
    assert vmr("eval", f"run={run}", "data=timelens_charades") == 0
    header = metrics(run / "eval/test-on-timelens_charades-001")["header"]
    assert header["protocol"] == "charades_sta -> timelens_charades"


def test_timelens_shares_videos_with_charades(tmp_path):
    write_charades(tmp_path, {"C": ENTRY, "A": ENTRY, "B": ENTRY})
    trained, tested = charades_sta(tmp_path), timelens_charades(tmp_path)
    with pytest.raises(VmrError, match=r"holds 2 of the 3 videos of its test split.* data=charades_sta\."):
        refuse_shared_videos(trained, tested, ["test"])
    report = inspect_protocol(tested, tmp_path)
    shared = {(row["protocol"], row["other_split"]): row["videos"] for row in report["shared_videos"]}
    assert shared == {("charades_sta", "train"): 2, ("charades_sta", "test"): 1}
    assert report["splits"]["train"]["sentences"] == 0
