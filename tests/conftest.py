"""Shared by every test: runs stay in the temporary folder, and nothing is sent to a server."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

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
    monkeypatch.setenv("VMR_TRUST", "toy")  # its runs name its own classes
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture
def overtaken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Callable[[], object]], None]:
    """Lets another call do its work while the next one waits for the lock of a module's folder."""

    def prepare(module: Any, other: Callable[[], object]) -> None:
        lock = module.lock_folder

        @contextmanager
        def waits(folder: Path) -> Iterator[None]:
            monkeypatch.setattr(module, "lock_folder", lock)
            other()
            with lock(folder):
                yield

        monkeypatch.setattr(module, "lock_folder", waits)

    return prepare


@pytest.fixture(scope="session", autouse=True)
def _composing_is_cheap() -> Iterator[None]:
    """Parses each file of `conf/` once for all tests, and measures no coverage while Hydra merges them."""
    parse, parsed = yaml.load, {}
    merge = ConfigLoaderImpl.load_configuration

    def load(stream: Any, Loader: Any) -> Any:
        if Loader.__name__ != "OmegaConfLoader" or not hasattr(stream, "seek"):
            return parse(stream, Loader)
        text = stream.read()
        if text not in parsed:
            stream.seek(0)  # a message about a mistake names the file
            parsed[text] = pickle.dumps(parse(stream, Loader))
        return pickle.loads(parsed[text])

    def load_configuration(*args: Any, **options: Any) -> DictConfig:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return merge(*args, **options)
        finally:
            sys.settrace(tracer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", load)
        patch.setattr(ConfigLoaderImpl, "load_configuration", load_configuration)
        yield


@pytest.fixture(scope="session")
def vmr() -> Callable[..., int]:
    """Runs `vmr` in this process and returns its exit code; `toy.SEARCH` adds the test data set."""

    def run(verb: str, *args: str) -> int:
        try:
            return main.main([verb, *args])
        except SystemExit as stop:
            return int(stop.code or 0)

    return run


@pytest.fixture(scope="session")
def train_toy_in(vmr: Callable[..., int]) -> Callable[..., int]:
    """Trains on the toy data set for two epochs in the directory given; returns the exit code."""

    def run(directory: Path, *args: str, method: str = "toy") -> int:
        return vmr(
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

    return run


@pytest.fixture
def train_toy(train_toy_in: Callable[..., int], tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Trains on the toy data set in a new directory; returns the exit code and the directory."""

    def run(*args: str, name: str = "run", method: str = "toy") -> tuple[int, Path]:
        return train_toy_in(tmp_path / name, *args, method=method), tmp_path / name

    return run


@pytest.fixture(scope="session")
def trained_toy(train_toy_in: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the toy data set; only for reading."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train_toy_in(run) == 0
    return run


@pytest.fixture(scope="session")
def whole(train_toy_in: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs on the toy data set that nothing stopped; only for reading."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_toy_in(run, "trainer.max_epochs=4") == 0
    return run
