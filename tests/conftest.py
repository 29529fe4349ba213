"""Shared by every test: runs stay in the temporary folder, and nothing is sent to a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import toy
from vmr_zoo.cli import main


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips GPU tests without a GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMR_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture
def vmr() -> Callable[..., int]:
    """Runs `vmr` in this process and returns its exit code; `toy.SEARCH` adds the test data set."""

    def run(verb: str, *args: str) -> int:
        try:
            return main.main([verb, *args])
        except SystemExit as stop:
            return int(stop.code or 0)

    return run


@pytest.fixture
def train_toy(vmr: Callable[..., int], tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Trains on the toy data set for two epochs; returns the exit code and the run directory."""

    def run(*args: str, name: str = "run", method: str = "toy") -> tuple[int, Path]:
        directory = tmp_path / name
        code = vmr(
            "train",
            toy.SEARCH,
            "data=toy",
            f"method={method}",
            "logger=csv",
            "trainer.accelerator=cpu",
            *([] if any("max_epochs" in arg for arg in args) else ["trainer.max_epochs=2"]),
            *([] if any(arg.startswith("run=") for arg in args) else [f"run={directory}"]),
            *args,
        )
        return code, directory

    return run
