"""Weights & Biases: runs are logged completely, leaderboards are logged, and projects are read."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pandas as pd
import pytest

import toy
from vmr_zoo.engine.loggers import wandb_logger
from vmr_zoo.errors import VmrError
from vmr_zoo.report import wandb_runs
from vmr_zoo.report.data_tables import rows_of_means
from vmr_zoo.report.leaderboard import Leaderboard, LeaderboardRow, leaderboards
from vmr_zoo.report.runs import Run, finished_runs

wandb = pytest.importorskip("wandb")

HEADER = {
    "name": "weak",
    "method": "weak",
    "variant": "paper",
    "protocol": "p",
    "features": "f/1",
    "origin": "real",
    "selection": "published",
    "rounding": "4 decimals",
    "seed": 0,
    "parameters": 1234,
    "train_seconds": 10.5,
}


def inspect(folder, *options):
    """Reads the single offline run below a folder with wandb's own command."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def online(header, metrics, state="finished"):
    """A run as the public API returns it: with a sorted summary that includes the curves."""
    numbers = {f"final/{split}/{name}": value for split, of in metrics.items() for name, value in of.items()}
    summary = dict(sorted({**numbers, "selection/R1@0.5": "NaN", "_step": 3, "epoch": 1}.items()))
    config = {"header": header, "splits": list(metrics), "seed": 0}
    return SimpleNamespace(state=state, config=config, summary=summary)


@pytest.fixture
def project(monkeypatch):
    """Replaces the online project by a list of runs; returns the paths that were requested."""
    requested = []

    def fill(runs):
        def list_runs(path, filters, order, per_page, lazy):
            requested.append(path)
            assert (filters, order, lazy) == ({"state": "finished"}, "+created_at", False)
            if isinstance(runs, Exception):
                raise runs
            return runs

        monkeypatch.setattr("wandb.Api", lambda timeout: SimpleNamespace(runs=list_runs))
        return requested

    return fill


def test_an_offline_run_contains_what_its_row_needs(vmr, tmp_path, project):
    run = tmp_path / "runs" / "toy"
    arguments = (toy.SEARCH, "data=toy", "method=toy", "logger=wandb", "trainer.max_epochs=1")
    assert vmr("train", *arguments, "trainer.accelerator=cpu", f"run={run}") == 0
    records = [json.loads(line) for line in inspect(run).splitlines()]
    begun = next(record["run"] for record in records if record["type"] == "run")
    assert begun["run_group"] == "toy-toy"
    assert begun["tags"] == ["toy", "paper"]  # method, protocol and features are all "toy"
    ended = json.loads(inspect(run, "--summary"))
    assert ended["config"]["method"]["_target_"] == "toy.ToyMethod"
    assert ended["config"]["header"]["selection"] == "published"

    # The same leaderboard from the directory and from what was logged.
    project([SimpleNamespace(state=ended["state"], config=ended["config"], summary=ended["summary"])])
    (ours,) = leaderboards(finished_runs(tmp_path / "runs"), ["R1@0.5", "mIoU"])
    (theirs,) = leaderboards(wandb_runs.fetch_runs("me", "mine"), ["R1@0.5", "mIoU"])
    assert theirs.title == ours.title
    without = ["revision"]  # only a directory knows it
    frames = [rows_of_means([board]).drop(columns=without) for board in (theirs, ours)]
    pd.testing.assert_frame_equal(*frames)
    assert theirs.rows[0].values == ours.rows[0].values


def test_wandb_is_not_imported_without_its_logger(train_toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    assert train_toy("trainer.max_epochs=1")[0] == 0


@pytest.mark.parametrize(
    ("chosen", "group"),
    [
        (["method=bm_detr"], "shapes-shapes"),
        (["experiment=bm_detr/charades_cd"], "bm_detr/charades_cd"),
        (["--config-name=sweep"], "my_study"),
    ],
)
def test_runs_are_grouped_by_study_or_experiment(vmr, tmp_path, capsys, chosen, group):
    study = tmp_path / "my_study"
    if "--config-name=sweep" in chosen:
        study.mkdir()
        (study / "sweep.yaml").write_text("defaults: [train, _self_]\n")
        chosen = [f"--config-dir={study}", *chosen]
    assert vmr("train", *chosen, "--cfg=job", "--resolve", "--package=logger.wandb") == 0
    assert f"group: {group}\n" in capsys.readouterr().out


def test_names_and_tags_are_truncated_to_the_lengths_of_wandb(tmp_path):
    built = wandb_logger("p", None, str(tmp_path), True, "n" * 200, "g" * 200, ["t" * 70, "t" * 64])
    run = built.experiment
    try:
        assert (len(run.name), len(run.group), run.tags) == (128, 128, ("t" * 64,))
    finally:
        run.finish()


def test_finished_runs_of_a_project_are_read_once_per_seed(project, caplog):
    runs = [
        online({**HEADER, "seed": seed}, {"iid": {"R1@0.5": 40.0 + seed}, "far": {"R1@0.5": 30.0}})
        for seed in (0, 1)
    ]
    others = [
        online({**HEADER, "seed": 2}, {"iid": {"R1@0.5": 0.0}}, state="crashed"),
        SimpleNamespace(state="finished", config={"lr": 0.1}, summary={"loss": 1.0}),
        SimpleNamespace(state="finished", config={"header": "mine"}, summary={}),
    ]
    again = online({**HEADER, "seed": 1}, {"iid": {"R1@0.5": 43.0}, "far": {"R1@0.5": 30.0}})
    requested = project([*runs, *others, again])
    (board,) = leaderboards(wandb_runs.fetch_runs("team", "moments"), ["R1@0.5"])
    assert requested == ["team/moments"]
    assert board.columns == ["iid", "far", "drop"]  # in the order of the run, not by name
    assert board.rows[0].values["iid", "R1@0.5"] == [40.0, 43.0]
    assert "1 run(s) ignored" in caplog.text


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (wandb.errors.UsageError("No API key configured."), "wandb login"),
        (wandb.errors.CommError("timed out"), "Check the network"),
        (ValueError("Could not find project mine"), "Check entity=… and project=…"),
        ([], "it has 0 finished run"),
        ([SimpleNamespace(state="finished", config={}, summary={})], "it has 1 finished run"),
    ],
)
def test_errors_explain_what_to_do(project, runs, message):
    project(runs)
    with pytest.raises(VmrError, match=message):
        wandb_runs.fetch_runs("me", "mine")


def test_the_report_explains_that_wandb_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(VmrError, match="pip install wandb"):
        wandb_runs.fetch_runs("me", "mine")


def test_the_report_reads_a_project(vmr, project, tmp_path, capsys):
    project([online(HEADER, {"iid": {"R1@0.5": 41.25}})])
    arguments = ("source=wandb", "entity=me", "project=mine", "columns=[R1@0.5]")
    assert vmr("report", *arguments, "format=csv") == 0
    assert "41.25" in capsys.readouterr().out
    assert vmr("report", *arguments[1:], "source=wanbd") == 2
    assert "wandb" in capsys.readouterr().err


def test_the_client_of_wandb_pages_through_a_project():
    def node(number):
        header = {**HEADER, "name": f"m{number // 2}", "seed": number % 2}
        config = {"header": {"value": header}, "splits": {"value": ["iid"]}}
        shown = dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes"))
        shown |= {"id": str(number), "name": f"r{number}", "state": "finished", "tags": [], "user": {}}
        summary = {"final/iid/mIoU": number / 7}
        texts = {"config": config, "summaryMetrics": summary, "systemMetrics": {}}
        return shown | {name: json.dumps(value) for name, value in texts.items()}

    class Server(BaseHTTPRequestHandler):
        pages = 0

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            data = self.answer(json.loads(body)) if self.path == "/graphql" else {}
            reply = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def answer(self, request):
            if "query Runs(" not in request["query"]:
                return {"viewer": {"id": "1", "entity": "me", "username": "me", "teams": {"edges": []}}}
            Server.pages += 1
            first = int(request["variables"].get("cursor") or 0)
            last = min(first + request["variables"]["perPage"], 450)
            edges = [{"node": node(number), "cursor": str(number + 1)} for number in range(first, last)]
            more = {"endCursor": str(last), "hasNextPage": last < 450}
            return {"project": {"runCount": 450, "runs": {"edges": edges, "pageInfo": more}}}

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # In a separate process: wandb reads its settings once.
        env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        env |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "a" * 40}
        env |= {"WANDB_ERROR_REPORTING": "false"}
        command = [
            sys.executable,
            "-c",
            "import sys; from vmr_zoo.cli.main import main; sys.exit(main())",
            "report",
        ]
        command += ["source=wandb", "entity=me", "project=mine", "columns=[mIoU]", "format=csv"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(io.StringIO(done.stdout))
    assert (len(table), Server.pages) == (225, 3)
    assert set(table["seeds"]) == {2}
    score = table.loc[table["run"] == "m224", "iid mIoU"].item()
    assert score == pytest.approx(64.07, abs=0.01)  # (448 + 449) / 2 / 7


def test_a_logged_leaderboard_equals_the_printed_one(tmp_path):
    def board(title, selection, *names):
        header = {**HEADER, "selection": selection}
        runs = {
            name: [
                Run(tmp_path, {**header, "name": name, "seed": seed}, {"iid": {"mIoU": 100 / (3 + seed)}})
                for seed in range(seeds)
            ]
            for name, seeds in names
        }
        rows = [
            LeaderboardRow(name, of, {("iid", "mIoU"): [run.metrics["iid"]["mIoU"] for run in of]})
            for name, of in runs.items()
        ]
        return Leaderboard(title, ["iid"], ["mIoU"], rows)

    boards = [
        board("first", "published", ("weak", 2), ("strong", 1)),
        board("second", "test split 'iid'", ("other", 1)),
    ]
    said = wandb_runs.log_leaderboards(boards, None, "mine", tmp_path)
    assert "wandb sync" in said
    (files,) = (tmp_path / "wandb").glob("offline-run-*/files")
    tables = {
        path.name.rsplit("_", 2)[0]: json.loads(path.read_text())
        for path in (files / "media" / "table").glob("*.json")
    }
    assert sorted(tables) == ["p-f_1", "p-f_1.2"]
    for table, expected in zip((tables["p-f_1"], tables["p-f_1.2"]), boards, strict=True):
        back = pd.DataFrame(table["data"], columns=table["columns"])
        assert list(back["run"]) == [row.name for row in expected.rows]
        assert list(back["seeds"]) == [len(row.runs) for row in expected.rows]
        assert set(back["parameters"]) == {1234}
    data = tables["p-f_1"]
    first = dict(zip(data["columns"], data["data"][0], strict=True))
    assert first["iid mIoU"] == pytest.approx((100 / 3 + 25) / 2, abs=1e-6)
    assert first["iid mIoU std"] == pytest.approx(5.8926, abs=1e-4)
    assert dict(zip(data["columns"], data["data"][1], strict=True))["iid mIoU std"] is None
    config = json.loads(inspect(tmp_path, "--summary"))["config"]
    assert config["tables"] == {"p-f_1": "first", "p-f_1.2": "second"}
