"""Weights & Biases: runs are logged completely, leaderboards are logged, and projects are read."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

import toy
from vmr_zoo.engine.wandb_layout import FILES, wandb_offline
from vmr_zoo.engine.wandb_logger import wandb_logger
from vmr_zoo.errors import VmrError
from vmr_zoo.report import wandb_runs
from vmr_zoo.report.data_tables import rows_of_means
from vmr_zoo.report.leaderboard import Leaderboard, LeaderboardRow, leaderboards
from vmr_zoo.report.runs import Run, finished_runs
from wandb_server import run_node, serving

wandb = pytest.importorskip("wandb")

ROOT = Path(__file__).parents[1]

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


def inspect(run, *options):
    """Reads an offline run with wandb's own command."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def online(header, metrics, state="finished"):
    """A run as the public API returns it: with a sorted summary that includes the curves."""
    numbers = {f"final/{split}/{name}": value for split, of in metrics.items() for name, value in of.items()}
    summary = dict(sorted({**numbers, "selection/R1@0.5": "NaN", "_step": 3, "epoch": 1}.items()))
    config = {"header": header, "splits": list(metrics), "seed": 0}
    return SimpleNamespace(state=state, config=config, summary=summary, entity="me", project="mine", id="r1")


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


@pytest.fixture(scope="module")
def mirrored(vmr, tmp_path_factory):
    """A run with two mirrors, trained for one epoch and resumed for a second."""
    root = tmp_path_factory.mktemp("mirrored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("VMR_TRUST", "toy")
        for options in (["trainer.max_epochs=1"], ["trainer.max_epochs=2", "resume=true"]):
            chosen = (toy.SEARCH, "data=toy", "method=toy", "trainer.accelerator=cpu", f"run={root}/runs/toy")
            notes = "logger.wandb.notes=first: a test, really"
            assert vmr("train", *chosen, "logger=[wandb,tensorboard]", notes, *options) == 0
    return root / "runs" / "toy"


def test_an_offline_run_contains_what_its_row_needs(mirrored, project):
    first, second = sorted((mirrored / "wandb").glob("offline-run-*"))
    # One run on the server. wandb numbers the folders of one second: offline-run-TIME-ID-1.
    assert first.name.split("-")[3] == second.name.split("-")[3]
    records = [json.loads(line) for line in inspect(second).splitlines()]
    begun = next(record["run"] for record in records if record["type"] == "run")
    assert begun["run_group"] == "toy-toy"
    assert begun["tags"] == ["toy", "paper"]  # method, protocol and features are all "toy"
    assert begun["notes"] == "first: a test, really"
    ended = json.loads(inspect(second, "--summary"))
    assert ended["config"]["method"]["_target_"] == "toy.ToyMethod"
    assert ended["config"]["header"]["selection"] == "published"
    uploaded = next(record["artifact"] for record in records if "artifact" in record)
    assert uploaded["name"] == f"run-{ended['run_id']}-results"
    contents = {one["path"]: one for one in uploaded["manifest"]["contents"]}
    assert contents.keys() == ended["config"]["files"].keys() == set(FILES)
    for name, digest in ended["config"]["files"].items():
        content = (mirrored / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert base64.b64encode(hashlib.md5(content).digest()).decode() == contents[name]["digest"]

    # The same leaderboard from the directory and from what was logged.
    address = {"entity": "me", "project": "mine", "id": ended["run_id"]}
    project([SimpleNamespace(**{key: ended[key] for key in ("state", "config", "summary")}, **address)])
    (ours,) = leaderboards(finished_runs(mirrored.parent), ["R1@0.5", "mIoU"])
    (theirs,) = leaderboards(wandb_runs.fetch_runs("me", "mine"), ["R1@0.5", "mIoU"])
    assert theirs.title == ours.title
    without = ["revision"]  # only a directory knows it
    frames = [rows_of_means([board]).drop(columns=without) for board in (theirs, ours)]
    pd.testing.assert_frame_equal(*frames)
    assert theirs.rows[0].values == ours.rows[0].values


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


def built(tmp_path, **given):
    usual = {"project": "p", "entity": None, "save_dir": str(tmp_path), "offline": True, "name": "n"}
    return wandb_logger(**{**usual, "group": "g", "tags": ["t"], **given})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"project": "a/b"}, ["project=a/b", "without /"]),
        ({"entity": "my team", "id": "a b"}, ["entity=my team", "id=a b"]),
        ({"tags": ["t", ""]}, ["empty tag"]),
        ({"job_type": "t" * 65}, ["job_type"]),
        ({"checkpoint_name": "a:b"}, ["checkpoint_name=a:b", "artifact"]),
        ({"notse": "x"}, ["Unknown argument of logger.wandb 'notse'", "notes"]),
        ({"log_model": "all"}, ["log_model=all", "offline"]),
    ],
)
def test_what_wandb_refuses_is_refused_before_training(tmp_path, given, words):
    with pytest.raises(VmrError) as error:
        built(tmp_path, **given)
    assert all(word in str(error.value) for word in words), error.value


def test_arguments_of_wandb_pass_through(tmp_path, monkeypatch):
    given = {"job_type": "study", "notes": "x", "resume": "never", "save_code": False, "prefix": "p"}
    logger = built(tmp_path, **given)
    assert {"job_type", "notes", "resume", "save_code"} <= logger._wandb_init.keys()
    assert (logger._wandb_init["resume"], logger._prefix, logger.version) == ("never", "p", None)
    assert built(tmp_path, dir=str(tmp_path / "w")).save_dir == str(tmp_path / "w")
    monkeypatch.setenv("WANDB_RUN_ID", "agent1")  # by wandb agent
    assert built(tmp_path).version == "agent1"
    (tmp_path / "loggers.json").write_text('{"wandb": "kept1"}')
    assert built(tmp_path).version == "kept1"
    with pytest.raises(VmrError, match="has the id kept1"):
        built(tmp_path, id="other")


def test_wandb_says_whether_it_has_a_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it reads its settings once
    try:
        assert wandb_offline()
        experiment = built(tmp_path, offline=None).experiment
        assert experiment.offline, "without a key a run stays on disk"
        experiment.finish()
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'a' * 40}\n")
        assert not wandb_offline()
    finally:
        wandb.teardown()


def test_each_run_of_a_wandb_sweep_has_its_own_directory(vmr, monkeypatch, capsys):
    """Composes what `wandb agent` runs, by wandb's own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())
    first = {
        key: {"value": one.get("value", one.get("min", one.get("values", [None])[-1]))}
        for key, one in sweep["parameters"].items()
    }
    values = create_sweep_command_args({"args": first})["args_no_hyphens"]
    command = create_sweep_command(sweep["command"])
    parts = [values if part == "${args_no_hyphens}" else [part] for part in command]
    program, verb, *arguments = [word for part in parts for word in part if word != "${env}"]
    assert (program, verb) == ("vmr", "train")
    assert vmr(verb, *arguments, "--cfg=job", "--resolve") == 2
    assert "WANDB_SWEEP_ID" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    assert vmr(verb, *arguments, "--cfg=job", "--resolve") == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    assert composed["run"] == f"{composed['paths']['runs']}/sweep-s1/r1"
    assert composed["resume"] is True
    assert composed["logger"].keys() == {"csv", "wandb"}
    metric = sweep["metric"]["name"].removeprefix("selection/")
    assert metric == composed["data"]["selection_metric"]
    for key, one in first.items():
        node = composed
        for part in key.split("."):
            node = node[part]
        assert node == one["value"]
    monkeypatch.setenv("WANDB_RUN_ID", "../r1")
    assert vmr(verb, *arguments, "--cfg=job", "--resolve") == 2


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


class Entry:
    """A file of an artifact, as the public API gives it."""

    def __init__(self, content, ref=None, size=None):
        self.content, self.ref, self.size = content, ref, len(content) if size is None else size
        self.name = None

    def download(self, root, skip_cache):
        (Path(root) / self.name).write_bytes(self.content)


def online_with_files(monkeypatch, entries, recorded=None):
    """A run of a project whose artifact has these entries; wandb's client is replaced."""

    def get_entry(name):
        entries[name].name = name
        return entries[name]

    artifact = SimpleNamespace(get_entry=get_entry)
    monkeypatch.setattr("wandb.Api", lambda timeout: SimpleNamespace(artifact=lambda name, type: artifact))
    digests = {name: hashlib.sha256(one.content).hexdigest() for name, one in entries.items()}
    return wandb_runs.OnlineRun(None, HEADER, {}, address="me/mine/r1", files=recorded or digests)


SMALL = {"config.yaml": b"a: 1", "metrics.json": b"{}", "predictions.jsonl": b""}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"metrics.json": Entry(b"{}", ref="file:///etc/passwd")}, "refers to file:///etc/passwd"),
        ({"metrics.json": Entry(b"{}", size=2**40)}, "1099511627776 bytes"),
        ({"metrics.json": Entry(b'{"a": "\\u001b[2J"}')}, "control characters"),
    ],
)
def test_files_of_a_run_that_are_no_files_of_a_run_are_refused(monkeypatch, tmp_path, entries, message):
    monkeypatch.setenv("VMR_CACHE", str(tmp_path))
    run = online_with_files(monkeypatch, {name: Entry(content) for name, content in SMALL.items()} | entries)
    with pytest.raises(VmrError, match=re.escape(message)):
        wandb_runs.with_files([run])
    assert not list((tmp_path / "wandb").iterdir())


def test_files_are_downloaded_once(monkeypatch, tmp_path):
    monkeypatch.setenv("VMR_CACHE", str(tmp_path))
    entries = {name: Entry(content) for name, content in SMALL.items()}
    run = online_with_files(monkeypatch, entries)
    (first,) = wandb_runs.with_files([run])
    assert first.directory.parent == tmp_path / "wandb"
    assert {path.name: path.read_bytes() for path in first.directory.iterdir()}.items() >= SMALL.items()
    entries.clear()
    assert wandb_runs.with_files([run]) == [first]


def test_a_replaced_or_missing_file_of_a_run_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("VMR_CACHE", str(tmp_path))
    entries = {name: Entry(content) for name, content in SMALL.items()}
    recorded = {name: hashlib.sha256(content).hexdigest() for name, content in SMALL.items()}
    run = online_with_files(monkeypatch, entries, recorded)
    entries["predictions.jsonl"].content = b"{}"
    with pytest.raises(VmrError, match=r"predictions\.jsonl is not the file that the run recorded"):
        wandb_runs.with_files([run])
    del entries["predictions.jsonl"]
    with pytest.raises(VmrError, match=r"has no predictions\.jsonl"):
        wandb_runs.with_files([run])


@pytest.mark.parametrize(
    "files", [None, {"metrics.json": "0" * 64}, {**dict.fromkeys(SMALL, "0" * 64), "../x": "0" * 64}]
)
def test_runs_without_predictions_are_named(project, files):
    run = online(HEADER, {"iid": {"R1@0.5": 41.25}})
    run.config["files"] = files
    project([run])
    runs = wandb_runs.fetch_runs("me", "mine")
    with pytest.raises(VmrError, match=r"1 of 1 runs .* such as me/mine/r1"):
        wandb_runs.with_files(runs)


def report_in_another_process(env, *arguments):
    """Runs `vmr report source=wandb`: wandb reads its settings once per process."""
    code = "import sys; from vmr_zoo.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "report", "source=wandb", "entity=me", "project=mine", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_the_client_of_wandb_pages_through_a_project():
    def node(number):
        header = {**HEADER, "name": f"m{number // 2}", "seed": number % 2}
        summary = {"final/iid/mIoU": number / 7}
        return run_node(number, f"r{number}", {"header": header, "splits": ["iid"]}, summary)

    with serving([node(number) for number in range(450)]) as (env, requests):
        done = report_in_another_process(env, "columns=[mIoU]", "format=csv")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(io.StringIO(done.stdout))
    assert (len(table), requests.count("page")) == (225, 3)
    assert set(table["seeds"]) == {2}
    score = table.loc[table["run"] == "m224", "iid mIoU"].item()
    assert score == pytest.approx(64.07, abs=0.01)  # (448 + 449) / 2 / 7


def test_the_client_of_wandb_downloads_what_significance_needs(mirrored, tmp_path):
    """Two runs of a project, whose rows need the predictions of both."""
    run = sorted((mirrored / "wandb").glob("offline-run-*"))[-1]
    ended = json.loads(inspect(run, "--summary"))
    logged = [json.loads(line) for line in inspect(run).splitlines()]
    manifest = next(record["artifact"]["manifest"] for record in logged if "artifact" in record)
    other = {**ended["config"], "header": {**ended["config"]["header"], "name": "other"}}
    configs = {"r1": ended["config"], "r2": other}
    nodes = [run_node(n, name, config, ended["summary"]) for n, (name, config) in enumerate(configs.items())]
    artifacts = {f"run-{name}-results": (manifest, mirrored) for name in configs}
    with serving(nodes, artifacts) as (env, requests):
        env |= {"VMR_CACHE": str(tmp_path / "cache")}
        done = report_in_another_process(env, "significance=true", "columns=[mIoU]", "format=csv")
        assert done.returncode == 0, done.stderr
    table = pd.read_csv(io.StringIO(done.stdout))
    assert list(table["iid mIoU"]) == [pytest.approx(ended["summary"]["final/iid/mIoU"], abs=0.01)] * 2
    assert "best" in set(table.to_numpy().ravel())
    folders = list((tmp_path / "cache" / "wandb").iterdir())
    assert [{path.name for path in one.iterdir()} for one in folders] == [{*FILES, "origin.json"}] * 2
    assert sum("/manifest/" in one for one in requests) == 2


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
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    config = json.loads(inspect(run, "--summary"))["config"]
    assert config["tables"] == {"p-f_1": "first", "p-f_1.2": "second"}
