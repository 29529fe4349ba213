"""Searches: a study survives interruptions, has several workers, and never loses or mixes trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from omegaconf import OmegaConf

import toy
from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.errors import VmrError
from vmr_zoo.runs.optuna_study import JOURNAL
from vmr_zoo.runs.search_space import configured, read_space
from vmr_zoo.runs.status import read_status

optuna = pytest.importorskip("optuna", reason="pip install 'vmr_zoo[sweep]'")

TESTS = Path(__file__).parent
LR = "method.training.optimizer.lr"
LR_RANGE = optuna.distributions.FloatDistribution(1e-3, 0.1, log=True)
SEARCHES = sorted(
    path.stem for path in (config_dir() / "search").glob("*.yaml") if path.stem not in ("default", "wandb")
)


def search(runs: Path, trials: int, *args: str, epochs: int = 1) -> list[str]:
    return [
        "train", toy.SEARCH, "search=toy", "data=toy", "logger=csv", "trainer.accelerator=cpu",
        "hydra/launcher=basic",
        f"trainer.max_epochs={epochs}", f"paths.runs={runs}", f"hydra.sweeper.n_trials={trials}", *args,
    ]  # fmt: skip


def folder(runs: Path, epochs: int = 1) -> Path:
    return runs / "toy-toy" / "search" / f"toy-paper+max_epochs-{epochs}"


def study(runs: Path, epochs: int = 1, storage: str | None = None) -> optuna.Study:
    where = folder(runs, epochs)
    where.mkdir(parents=True, exist_ok=True)
    journal = optuna.storages.journal.JournalFileBackend(str(where / JOURNAL)) if storage is None else None
    return optuna.create_study(
        study_name=f"toy-toy/{where.name}/seed0",
        storage=storage or optuna.storages.JournalStorage(journal),
        direction="maximize",
        load_if_exists=True,
    )


def states(trials: list[optuna.trial.FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]


def test_every_trainable_method_has_a_search():
    methods = {path.stem for path in (config_dir() / "method").glob("*.yaml")}
    assert set(SEARCHES) == methods - {"predict_all", "bias_kde", "bias_query", "clip_zero_shot"}


@pytest.mark.parametrize("method", SEARCHES)
def test_every_search_space_names_arguments_of_its_method(method):
    """Composes at the low end of each range; an unknown key would be refused."""
    space = read_space(OmegaConf.load(config_dir() / "search" / f"{method}.yaml").hydra.sweeper.params, [])
    assert not space.fixed
    assert LR in space.distributions
    lowest = space.lowest()
    cfg = compose("train", [f"search={method}", "data=shapes", *space.overrides(lowest)])
    assert cfg.choices.method == method
    assert all(OmegaConf.select(cfg, key) == value for key, value in lowest.items())
    trial, parent = Path(cfg.run).parent.name, Path(cfg.run).parent.parent
    assert parent.parts[-2:] == ("search", f"{method}-paper")
    assert trial.count("+") == len(lowest) or len(trial) > 120


@pytest.mark.parametrize("method", SEARCHES)
def test_the_search_of_recipes_begins_with_the_recipe_of_each_method(method):
    folder = config_dir().parent / "experiments/recipes_shapes"
    files = ["search_maps", "search", "search_mesm"][: {"mmn": 1, "vdi": 1, "mesm": 3}.get(method, 2)]
    loaded = (OmegaConf.load(folder / f"{name}.yaml") for name in files)
    ranges = dict(OmegaConf.merge(*loaded).hydra.sweeper.params)
    space, cfg = read_space(ranges, []), compose("train", [f"method={method}", "data=shapes"])
    assert configured(space, cfg) == {key: OmegaConf.select(cfg, key) for key in ranges}


def test_a_search_space_is_read_as_hydra_writes_it():
    ranges = {
        "a": "interval(1, 2)", "b": "int(interval(1, 8))", "c": "tag(log, interval(0.1, 10))",
        "d": "range(1, 8, 3)",
        "e": "choice(x, 2, true, [1, 2], 'p q')", "f": 1, "g": "choice(1, 2)", "h": "range(0, 1, 0.25)",
    }  # fmt: skip
    space = read_space(ranges, ["g=3"])
    whole, real = optuna.distributions.IntDistribution, optuna.distributions.FloatDistribution
    assert space.distributions == {
        "a": real(1, 2),
        "b": whole(1, 8),
        "c": real(0.1, 10, log=True),
        "d": whole(1, 7, step=3),
        "e": optuna.distributions.CategoricalDistribution(["x", 2, True, "[1,2]", "p q"]),
        "h": real(0, 0.75, step=0.25),
    }
    assert space.overrides({"e": "p q", "d": 4}) == ["g=3", "f=1", "e=p\\ q", "d=4"]
    for wrong in ("glob(*)", "tag(log, interval(0, 1))", "range(3, 1)"):
        with pytest.raises(VmrError, match="Cannot search over a="):
            read_space({"a": wrong}, [])
    with pytest.raises(VmrError, match="one value for each key"):
        read_space(ranges, ["seed=0,1"])
    found = OmegaConf.create({"a": 1.5, "b": 8, "e": "x"})
    inside = read_space({"a": ranges["a"], "b": ranges["b"], "e": ranges["e"]}, [])
    assert configured(inside, found) == {"a": 1.5, "b": 8, "e": "x"}
    for key, value in {"a": 3, "b": "y", "e": None}.items():
        assert configured(inside, OmegaConf.merge(found, {key: value})) is None
    with pytest.raises(VmrError, match="varies nothing"):
        read_space({"a": 1}, [])


def test_a_search_goes_on_with_its_study(vmr, tmp_path, capsys):
    """Trials that failed or whose worker was killed are repeated, those of a living worker are not."""
    assert vmr(*search(tmp_path, 1)) == 0
    found = study(tmp_path)
    (first,) = found.trials
    assert first.params == {
        LR: pytest.approx(compose("train", [toy.SEARCH, "method=toy"]).method.training.optimizer.lr)
    }
    for lr, worker in ((0.02, "killed"), (0.03, "failed"), (0.04, "living")):
        found.enqueue_trial({LR: lr})
        trial = found.ask({LR: LR_RANGE})
        trial.set_user_attr("worker", worker)
        (folder(tmp_path) / f".worker-{worker}.lock").touch()
        if worker == "failed":
            found.tell(trial, state=optuna.trial.TrialState.FAIL)
    with FileLock(folder(tmp_path) / ".worker-living.lock"):
        assert vmr(*search(tmp_path, 4)) == 0
    trials = study(tmp_path).trials
    assert states(trials) == ["COMPLETE", "FAIL", "FAIL", "RUNNING", "COMPLETE", "COMPLETE"]
    assert [trial.params[LR] for trial in trials[4:]] == [0.02, 0.03]
    reached = {
        str(run.parent.relative_to(folder(tmp_path))): json.loads(run.read_text())["selection"]["mIoU"]
        for run in folder(tmp_path).glob("*/seed0/metrics.json")
    }
    assert {trial.user_attrs["run"]: trial.value for trial in trials if trial.value is not None} == reached
    best = yaml.safe_load((folder(tmp_path) / "best-seed0.yaml").read_text())
    assert best["value"] == max(reached.values()) == reached[best["run"]]
    shown = capsys.readouterr().err
    assert "3 finished, 1 running in another command" in shown
    assert f"{LR}={best['params'][LR]}" in shown
    assert "study.journal" in shown

    assert vmr(*search(tmp_path, 4, f'hydra.sweeper.params.{LR}="interval(1,2)"')) == 2
    assert "has trials of another search space" in capsys.readouterr().err
    assert vmr(*search(tmp_path, 4, 'hydra.sweeper.params.method.unknown="choice(1,2)"')) == 2
    assert "The search space names 'method.unknown'" in capsys.readouterr().err
    assert len(study(tmp_path).trials) == 6
    assert vmr("report", f"runs={tmp_path}", "columns=[mIoU]") == 2
    assert "trials=true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(0, 1, id="crash, in a database", marks=pytest.mark.slow),
    ],
)
def test_a_trial_that_stops_half_way_is_resumed(vmr, tmp_path, sent, code):
    storage = None if sent else f"sqlite:///{tmp_path}/study.db"
    stored = [f"hydra.sweeper.storage={storage}"] if storage else []
    at = [
        "+callbacks.stop._target_=toy.At",
        "+callbacks.stop.step=4",
        f"+callbacks.stop.signal={int(sent)}",
    ]
    assert vmr(*search(tmp_path, 1, *stored, *at, epochs=2)) == code
    (cut,) = study(tmp_path, 2, storage).trials
    assert (cut.state.name, list(cut.intermediate_values)) == ("FAIL", [0])
    assert vmr(*search(tmp_path, 1, *stored, epochs=2)) == 0
    trials = study(tmp_path, 2, storage).trials
    assert states(trials) == ["FAIL", "COMPLETE"]
    assert list(trials[1].intermediate_values) == [0, 1]
    assert trials[1].intermediate_values[0] == cut.intermediate_values[0]
    assert trials[1].params == cut.params
    (run,) = folder(tmp_path, 2).glob("*/seed0")
    assert json.loads((run / "metrics.json").read_text())["header"]["epochs"] == 2


def test_the_pruner_of_the_study_stops_a_trial(vmr, tmp_path, capsys):
    found = study(tmp_path, 4)
    for _ in range(5):
        good = optuna.trial.create_trial(
            value=99.0, params={LR: 0.1}, distributions={LR: LR_RANGE}, intermediate_values={2: 99.0}
        )
        found.add_trial(good)
    assert vmr(*search(tmp_path, 6, epochs=4)) == 0
    (run,) = folder(tmp_path, 4).glob("*/seed0")
    assert read_status(run)["state"] == "pruned"
    assert "in epoch 3, too low for the pruner" in read_status(run)["message"]
    assert not (run / "metrics.json").exists()
    pruned = study(tmp_path, 4).trials[5]
    assert (pruned.state.name, list(pruned.intermediate_values)) == ("PRUNED", [0, 1, 2])
    assert "5 finished, 1 pruned" in capsys.readouterr().err
    assert vmr("report", f"runs={tmp_path}", "trials=true") == 2, "a pruned run has no results"


def test_a_study_that_cannot_be_opened_says_so(vmr, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert vmr(*search(tmp_path / "file", 1)) == 3
    assert "Cannot write" in capsys.readouterr().err
    assert vmr(*search(tmp_path, 1, "hydra.sweeper.storage=nosuchbase://x")) == 2
    assert "Cannot open the study of this search (hydra.sweeper.storage)" in capsys.readouterr().err
    assert vmr(*search(tmp_path, 1, "hydra.sweeper.pruner._target_=optuna.pruners.NopPruner")) == 2
    assert "Cannot build hydra.sweeper.pruner: NopPruner" in capsys.readouterr().err
    (folder(tmp_path) / JOURNAL).write_text("no journal\nat all\n")
    assert vmr(*search(tmp_path, 1)) == 2
    assert JOURNAL in capsys.readouterr().err


@pytest.mark.slow
def test_two_workers_share_a_study_and_survive_a_kill(vmr, tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    quiet = {"start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "vmr_zoo.cli.main", *search(tmp_path, 6)]
    workers = [subprocess.Popen(command, env=environment, **quiet) for _ in range(2)]
    deadline = time.monotonic() + 500
    found = study(tmp_path)
    while states(found.trials).count("COMPLETE") < 2 or "RUNNING" not in states(found.trials):
        assert time.monotonic() < deadline
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.05)
    os.killpg(workers[0].pid, signal.SIGKILL)
    workers[0].wait()
    _, shown = workers[1].communicate(timeout=500)
    assert workers[1].returncode == 0, shown.decode()
    assert vmr(*search(tmp_path, 6)) == 0
    trials = study(tmp_path).trials
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == 6
    assert len({trial.params[LR] for trial in complete}) == 6
    # A worker that is killed between drawing a trial and signing it leaves no name.
    assert len({trial.user_attrs.get("worker") for trial in trials} - {None}) >= 2
