"""Compares the recipe that an experiment composes with the one that a trajectory was trained by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vmr_zoo.parity.case import Case
from vmr_zoo.parity.check import Verdict
from vmr_zoo.parity.trajectories.base import ReleasedTrajectory
from vmr_zoo.parity.trajectories.training import Run

_LINEAR = "linear to 0, no warm-up"
_STEP_LR_GAMMA = 0.1  # torch's default, which the authors' loops leave as it is where no option sets it


def apply_case(cfg: DictConfig, adapter: ReleasedTrajectory[Any], case: Case) -> list[Verdict]:
    """Compares the recipe, and gives the experiment the case's sizes and epochs.

    Args:
        cfg: the experiment; modified in place: sizes, dropout, and the epochs of changes that happen within
            the case. Nothing else is taken from the case.
        adapter: of the method.
        case: the case.

    Returns:
        A verdict for every other value.
    """
    settings = adapter.settings(case)
    epochs = {f"method.{key}": value for key, value in adapter.epochs(case.options).items()}
    verdicts = [
        same(f"method.{key}", OmegaConf.select(cfg.method, key), value)
        for key, value in settings.items()
        if key not in adapter.sizes and f"method.{key}" not in epochs
    ]
    verdicts.append(same("data.name", cfg.data.name, adapter.released.data(case.options)))
    verdicts += [
        same(name, value, case.options[name]) for name, value in adapter.only.items() if name in case.options
    ]
    recipe = adapter.recipe(case.options)
    verdicts += [same(key, OmegaConf.select(cfg, key), value) for key, value in recipe.items()]
    with open_dict(cfg):
        verdicts += [_epochs(cfg, key, value, case) for key, value in epochs.items()]
        for key, value in settings.items():
            if key in adapter.sizes:
                OmegaConf.update(cfg.method, key, value, merge=False)
    return verdicts


def same(key: str, ours: Any, theirs: Any) -> Verdict:
    """Compares one value of the recipe.

    Args:
        key: our dotted key.
        ours: what the experiment composes.
        theirs: what the case has.
    """
    ours, theirs = plain(ours), plain(theirs)
    passed = ours == theirs
    difference = 0.0 if passed else math.nan
    if _number(ours) and _number(theirs):
        difference = abs(ours - theirs)
        passed = math.isclose(ours, theirs, rel_tol=1e-12)
    note = "" if passed else f"{ours}, in the case {theirs}"
    return Verdict(f"config/{key}", difference, 0.0, passed, note)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """Converts nodes of a configuration, and tuples, to plain values."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    return list(value) if isinstance(value, tuple) else value


def _epochs(cfg: DictConfig, key: str, value: Any, case: Case) -> Verdict:
    """Compares epochs of a change; a change within the few epochs of the case was moved on purpose."""
    parent, _, _ = key.rpartition(".")
    # A scheduler that is null has no key to select.
    ours = None if OmegaConf.select(cfg, parent) is None else plain(OmegaConf.select(cfg, key))
    if ours == value:
        return same(key, ours, value)
    first = min(value) if isinstance(value, list) else value
    if ours is not None and first < case.options["epochs"]:
        OmegaConf.update(cfg, key, value, merge=False)
        return Verdict(f"config/{key}", 0.0, 0.0, True, f"{value}, from the case; the experiment's is {ours}")
    if ours is None and first >= cfg.trainer.max_epochs:
        note = f"none; in the case after {first} of {cfg.trainer.max_epochs} epochs, never"
        return Verdict(f"config/{key}", 0.0, 0.0, True, note)
    return same(key, ours, value)


def compare_optimizer(run: Run, adapter: ReleasedTrajectory[Any], case: Case, steps: int) -> list[Verdict]:
    """Compares optimizer, schedule and loss weights as they were when the method trained."""
    options = case.options
    verdicts = _optimizer(run, adapter, case)
    if "scheduler" in options:
        verdicts += _schedule(run, options["scheduler"], adapter.epochs(options), steps)
    # The case states some values twice, as the option and as what it made of the schedule.
    twice = {"lr_gamma": "gamma", "gamma": "gamma", "num_train_steps": "steps"}
    for name, part in twice.items():
        if name in options and part in options.get("scheduler", {}):
            verdicts.append(same(name, options["scheduler"][part], options[name]))
    ours = dict(run.method.loss_weights)
    theirs = adapter.loss_weights(options)
    layers = {name for name in theirs if "/aux" in name}
    ours |= {name: ours.get(name.split("/")[0]) for name in layers}
    for name in sorted(ours.keys() | theirs.keys()):
        verdicts.append(same(f"loss weight {name}", ours.get(name), theirs.get(name)))
    return verdicts


def _optimizer(run: Run, adapter: ReleasedTrajectory[Any], case: Case) -> list[Verdict]:
    theirs: Mapping[str, Any] = case.options["optimizer"]
    kind = adapter.optimizers.get(theirs["name"])
    name = theirs["name"] if kind is type(run.optimizer) else type(run.optimizer).__name__
    verdicts = [same("optimizer.name", name, theirs["name"])]
    for key in ("betas", "eps"):
        for group in run.optimizer.param_groups:
            verdicts.append(same(f"optimizer.{key}", group[key], theirs[key]))
    rates = {"lr": theirs.get("lr", case.options.get("lr"))} | {
        name: case.options[name] for name in adapter.rates[1:]
    }
    for rate, group in zip(adapter.rates, run.optimizer.param_groups, strict=False):
        verdicts.append(same(f"optimizer.{rate}", group.get("initial_lr", group["lr"]), rates[rate]))
    exempt = theirs.get("no_decay_if_name_contains", [])
    decay = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    parameters = dict(run.method.named_parameters())
    wrong = []
    for name in case.part("init").keys:
        ours = adapter.released.names.ours(name)
        if ours in parameters:
            expected = 0.0 if any(part in name for part in exempt) else theirs["weight_decay"]
            found = decay.get(id(parameters[ours]), math.nan)
            if not math.isclose(found, expected, rel_tol=1e-12):
                wrong.append(f"{name}: {found}, in the case {expected}")
    note = f"{len(wrong)} weights, the first {wrong[0]}" if wrong else ""
    verdicts.append(Verdict("config/optimizer.weight_decay", len(wrong), 0.0, not wrong, note))
    return list(dict.fromkeys(verdicts))


def _schedule(run: Run, theirs: Mapping[str, Any], epochs: Mapping[str, Any], steps: int) -> list[Verdict]:
    """Compares the schedule by what it is made of; the learning rate of every step is a curve."""
    schedule = None if run.schedule is None else run.schedule.scheduler
    if theirs["name"] == _LINEAR:
        kind = type(schedule).__name__
        return [
            same("scheduler.name", kind, "LinearLR"),
            same("scheduler.steps", getattr(schedule, "total_iters", None), theirs["steps"]),
            same("scheduler.per", run.schedule and run.schedule.interval, theirs["per"]),
            same("scheduler.steps of the case", steps, theirs["steps"]),
        ]
    drop = epochs.get("training.scheduler.step_size")
    verdicts = [same("scheduler.step_size", drop, theirs["step_size"])]
    if schedule is None:
        gamma, interval, kind = _STEP_LR_GAMMA, "epoch", "StepLR"
    else:
        gamma = getattr(schedule, "gamma", math.nan)
        interval, kind = run.schedule.interval, type(schedule).__name__
    return [
        *verdicts,
        same("scheduler.name", kind, theirs["name"]),
        same("scheduler.gamma", gamma, theirs["gamma"]),
        same("scheduler.per", interval, theirs["per"]),
    ]


def unread(case: Case) -> Verdict:
    """Lists the options that nothing here corresponds to: those of data files, inference and logging."""
    names = ", ".join(sorted(case.options.keys() - case.options.read))
    return Verdict("config", 0.0, 0.0, True, f"not compared: {names}")
