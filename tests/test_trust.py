"""A run, a cache or a feature file that somebody else made, or that the disk has changed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from vmr_zoo.config.allowed import TRUST, allowed_names, check_names
from vmr_zoo.data.features.packed import PackedVideos, pack
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.features.source import VideoSource
from vmr_zoo.data.features.store import FileStore, Hdf5Store
from vmr_zoo.data.text.cache import EmbeddingCache
from vmr_zoo.data.worlds.shapes import GridEncoder, WorldSettings, protocol
from vmr_zoo.data.worlds.shapes.features import RenderedVideos
from vmr_zoo.data.worlds.shapes.generate import generate_world
from vmr_zoo.engine.retriever import Retriever
from vmr_zoo.engine.weights import check_checkpoint
from vmr_zoo.errors import VmrError
from vmr_zoo.report.runs import scan_runs
from vmr_zoo.runs import directory
from vmr_zoo.runs.config_sections import metric_settings

ATTACKS = (
    "os.system",
    "subprocess.call",
    "builtins.exec",
    "timeit.timeit",
    "pandas.eval",
    "pandas.read_pickle",
    "torch.load",
    "torch.hub.load",
    "runpy.run_path",
    "shutil.copy",
    "pathlib.Path.touch",
    "webbrowser.open",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "hydra._internal.instantiate._instantiate2.instantiate",
    "vmr_zoo.utils.files.os.system",
    "vmr_zoo.utils.files.atomic_write",
    "vmr_zoo.methods.base.Method.load_from_checkpoint",
    "vmr_zoo.cli.main.main",
    "torch.nn.Module",
    "lightning.Trainer.fit",
)
"""Names that a configuration must not make Hydra call: they run, read or write something else."""


def edited(run: Path, target: Path, change: Callable[[object], None]) -> Path:
    """Copies a run and changes its configuration."""
    shutil.copytree(run, target)
    cfg = OmegaConf.load(target / "config.yaml")
    change(cfg)
    OmegaConf.save(cfg, target / "config.yaml")
    return target


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    "tree",
    [lambda n: n, lambda n: {"method": {"x": [{"y": n}]}}, lambda n: {"_target_": "torch.nn.ReLU", "z": n}],
)
def test_only_what_conf_names_may_be_built(name, tree) -> None:
    with pytest.raises(VmrError, match=f"names {name} at .*_target_"):
        check_names(tree({"_target_": name, "_partial_": True}), "run/config.yaml")


def test_the_list_holds_every_method_and_nothing_that_does_more_than_build() -> None:
    names = allowed_names()
    assert {
        "vmr_zoo.methods.emb.EMB",
        "torch.optim.AdamW",
        "torch.nn.BatchNorm1d",
        "lightning.Trainer",
    } <= names
    check_names(
        {"method": {"_target_": "vmr_zoo.methods.emb.EMB", "activation": {"_target_": "torch.nn.ReLU"}}}, ""
    )
    for bad in (
        "os.system",
        ["os.system"],
        None,
        {"a": 1},
        "",
        "vmr_zoo",
        "vmr_zoo.methods.emb.EMB.__init__",
    ):
        with pytest.raises(VmrError):
            check_names({"_target_": bad}, "")


def test_a_package_of_ones_own_is_trusted_by_name_alone(monkeypatch) -> None:
    monkeypatch.setenv(TRUST, "json, toy")
    check_names({"_target_": "toy.ToyMethod"}, "")
    for name in (
        "toy.os.system",
        "toy.Path",
        "toy.Path.touch",
        "toys.ToyMethod",
        "toy",
        "toy.missing",
        "toy.CONF",
    ):
        with pytest.raises(VmrError):
            check_names({"_target_": name}, "")
    monkeypatch.setenv(TRUST, "")
    with pytest.raises(VmrError, match="VMR_TRUST"):
        check_names({"_target_": "toy.ToyMethod"}, "")


@pytest.mark.parametrize(
    "key",
    [
        "method.training.optimizer",
        "method.extra",
        "data.protocol",
        "features.query",
        "trainer.plugins",
        "metrics.rounding",
    ],
)
@pytest.mark.parametrize("verb", ["eval", "draw", "predict"])
def test_no_verb_builds_what_a_strangers_run_names(vmr, trained_toy, tmp_path, capsys, verb, key) -> None:
    proof = tmp_path / "PROOF"

    def attack(cfg) -> None:
        node = {"_target_": "os.system", "_args_": [f"touch {proof}"], "_partial_": False}
        OmegaConf.update(cfg, key, node, merge=False, force_add=True)

    run = edited(trained_toy, tmp_path / "run", attack)
    message = f"{run / 'config.yaml'} names os.system at {key}._target_"
    if verb == "predict":
        with pytest.raises(VmrError, match=re.escape(message)):
            Retriever.from_run(run)
    else:
        args = ["split=iid"] if verb == "eval" else ["query=q200_0", "out=x.png"]
        assert vmr(verb, f"run={run}", *args) == 2
        assert message in capsys.readouterr().err
    assert not proof.exists()


def test_a_report_builds_nothing_and_an_evaluation_no_changed_class(
    vmr, trained_toy, tmp_path, capsys
) -> None:
    def attack(cfg) -> None:
        cfg.metrics.rounding = {"_target_": "os.system", "command": f"touch {tmp_path / 'PROOF'}"}

    run = edited(trained_toy, tmp_path / "run", attack)
    with pytest.raises(VmrError, match=r"rounding names os\.system"):
        metric_settings(run)
    change = f"change={{method.training.optimizer:{{_target_:os.system,command:'touch {tmp_path}/PROOF'}}}}"
    assert vmr("eval", f"run={trained_toy}", "split=iid", change) == 2
    assert "change={…} names os.system" in capsys.readouterr().err
    assert not (tmp_path / "PROOF").exists()


# -------------------------------------------------------------------------------- files of a run


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "an alias"),
        ("a: " + "[" * 500 + "]" * 500, r"more than \d+ levels"),
        # PyYAML 6.0.4 refuses this depth itself
        ("a: " + "[" * 2000 + "]" * 2000, r"more than \d+ levels|exceeded maximum nesting depth"),
        ("a: " + "x" * 300_000, "bytes"),
        ("a: !!python/object/apply:os.system ['touch PROOF']", "constructor"),
        ("secret: ${oc.env:HOME}", "refers to nothing but"),
        ("a: x${paths.cache}", "refers to nothing but"),
        ("a: b\na: c", "duplicate"),
        ("- a", "holds a list"),
        ("a: [", "no configuration|is not the configuration"),
    ],
)
def test_a_hostile_configuration_is_refused_at_once(tmp_path, text, reason) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(VmrError, match=f"config.yaml.*({reason})"):
        directory.load_config(tmp_path)


def test_a_broken_run_does_not_end_the_report_of_others(trained_toy, tmp_path) -> None:
    good = json.loads((trained_toy / "metrics.json").read_text())
    shutil.copytree(trained_toy, tmp_path / "runs" / "good")
    header = good["header"]
    contents = {
        "deep": "[" * 100_000,
        "list": "[1, 2]",
        "text": '"text"',
        "cut": json.dumps(good)[:-9],
        "no-header": json.dumps({"iid": {}}),
        "header-text": json.dumps({**good, "header": " ".join(header)}),
        "parameters": json.dumps({**good, "header": {**header, "parameters": "many"}}),
        "name": json.dumps({**good, "header": {**header, "name": ["a"]}}),
        "seconds": json.dumps({**good, "header": {**header, "train_seconds": "long"}}),
        "split": json.dumps({**good, "iid": [1.0]}),
        "metric": json.dumps({**good, "iid": {"R1@0.5": "high"}}),
        "bytes": "\udcff",
    }
    for name, text in contents.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "metrics.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    for name, status in (("state-list", {"state": ["x"]}), ("status-list", ["x"])):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "status.json").write_text(json.dumps(status))
    (tmp_path / "runs" / "pipe").mkdir()
    os.mkfifo(tmp_path / "runs" / "pipe" / "metrics.json")
    runs, unfinished = scan_runs(tmp_path / "runs", evals=True)
    assert [run.path.name for run in runs] == ["good"]
    assert {one.path.name for one in unfinished} == {*contents, "state-list", "status-list", "pipe"}


def test_links_to_runs_are_followed_once(trained_toy, tmp_path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(trained_toy)
    (tmp_path / "links" / "b").symlink_to(trained_toy)
    (tmp_path / "links" / "circle").symlink_to(tmp_path)
    assert len(scan_runs(tmp_path)[0]) == 1


# --------------------------------------------------------------------- annotations, paths, secrets


def test_a_run_is_not_scored_on_other_annotations_unless_wanted(vmr, trained_toy, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_toy, run)
    splits = json.loads((run / "annotations.json").read_text())
    splits["iid"] = {"sentences": 106, "sha256": "0" * 64}
    (run / "annotations.json").write_text(json.dumps(splits))
    assert vmr("eval", f"run={run}", "split=[ood,iid]") == 2
    assert "iid (then 106 sentences, 00000000, now 6 sentences" in capsys.readouterr().err
    assert not (run / "eval").exists()
    assert vmr("eval", f"run={run}", "split=ood") == 0
    assert vmr("eval", f"run={run}", "split=iid", "other_annotations=true") == 0
    header = json.loads((run / "eval" / "iid-001" / "metrics.json").read_text())["header"]
    assert header["name"].endswith(" on other annotations")
    assert "106 sentences" in header["annotations"][0]


def test_the_cache_of_this_machine_replaces_that_of_the_run(trained_toy, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VMR_CACHE", str(tmp_path / "here"))
    assert directory.load_config(trained_toy).paths.cache == str(tmp_path / "here")
    given = directory.load_config(trained_toy, paths={"cache": tmp_path / "given"})
    assert given.paths.cache == str(tmp_path / "given")
    monkeypatch.setenv("VMR_CACHE", str(tmp_path / "${oc.env:HOME}"))
    with pytest.raises(VmrError, match=r"without '\$\{'"):
        directory.load_config(trained_toy)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("+note=${oc.env:SECRET}", "reads an environment variable"),
        ("+note='x ${oc.decode:${oc.env:SECRET}}'", "reads an environment variable"),
        ("name=../../../x", "the name of one folder"),
        ("data.name=..", "the name of one folder"),
        ("paths.cache=/c${seed}", "\\$"),
    ],
)
def test_a_run_stores_no_secret_and_stays_in_its_folder(
    train_toy, tmp_path, capsys, monkeypatch, argument, message
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    assert train_toy(argument)[0] == 2
    captured = capsys.readouterr()
    assert message.replace("\\", "") in captured.err
    assert "hunter2" not in captured.err + captured.out
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("content", ["cut", "text", "empty", "other"])
def test_a_run_is_not_continued_from_a_broken_checkpoint(trained_toy, tmp_path, content) -> None:
    whole, file = (trained_toy / directory.LAST).read_bytes(), tmp_path / "last.ckpt"
    file.write_bytes({"cut": whole[:1000], "text": b"hello\n", "empty": b"", "other": b""}[content])
    if content == "other":
        torch.save({"state_dict": {}}, file)
    with pytest.raises(VmrError, match=r"Cannot continue from .*last\.ckpt: .*(it has no callbacks|Error)"):
        check_checkpoint(file)
    check_checkpoint(trained_toy / directory.LAST)


def test_a_run_directory_with_an_impossible_name_is_refused(tmp_path) -> None:
    with (
        pytest.raises(VmrError, match="File name too long"),
        directory.create_and_lock(tmp_path / ("a" * 300)),
    ):
        pass


# ------------------------------------------------------------------------------------ feature files


VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_hdf5_stays_in_its_file(tmp_path) -> None:
    VALUES.tofile(tmp_path / "raw")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = VALUES
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = VALUES
        file["group/k"] = VALUES
        file["bad/k"] = file["external-link"] = h5py.ExternalLink("other.h5", "x")
        file["soft"], file["loop"] = h5py.SoftLink("/external-link"), h5py.SoftLink("/loop")
        file.create_dataset("storage", (3, 4), "f4", external=[(str(tmp_path / "raw"), 0, 48)])
        layout = h5py.VirtualLayout((3, 4), "f4")
        layout[...] = h5py.VirtualSource("other.h5", "x", (3, 4))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("sparse", (10**10, 512), "f4", chunks=(1000, 512))
        file.create_dataset("zeros", data=np.zeros((50_000, 512), np.float32), compression="gzip")
    store, keyed = Hdf5Store(tmp_path / "a.h5"), Hdf5Store(tmp_path / "a.h5", key="k")
    assert np.array_equal(store.read("good")[0], VALUES)
    assert np.array_equal(keyed.read("group")[0], VALUES)
    for reader, name in [(keyed, "bad"), *((store, n) for n in ("external-link", "soft", "loop"))]:
        with pytest.raises(FeatureError, match="is a link to another place"):
            reader.read(name)
    for name in ("storage", "virtual"):
        with pytest.raises(FeatureError, match="values in other files"):
            store.read(name)
    for name in ("sparse", "zeros"):
        with pytest.raises(FeatureError, match=r"declares .* bytes, but stores"):
            store.read(name)


def _header(*shape: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_a_small_file_is_not_read_as_a_huge_array(tmp_path) -> None:
    with (tmp_path / "sparse.npy").open("wb") as file:
        file.write(_header(10**9, 512))
        file.truncate(file.tell() + 2_048_000_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", _header(50_000, 512) + bytes(102_400_000))
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as file:
        file.writestr("x.npy", _header(10**12, 512) + bytes(4))
    torch.save(torch.zeros(1).expand(10**9, 512), tmp_path / "repeated.pt")
    torch.save(torch.zeros(25_000_000), tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as file,
    ):
        for entry in stored.namelist():
            file.writestr(entry, stored.read(entry))
    for name in ("sparse.npy", "bomb.npz", "repeated.pt", "bomb.pt"):
        with pytest.raises(FeatureError, match=f"{name}.* declares .* bytes, but stores"):
            FileStore(tmp_path, f".{name.split('.')[1]}", key="x").read(name.split(".")[0])
    with pytest.raises(FeatureError, match=r"lie\.npz cannot be read"):
        FileStore(tmp_path, ".npz", key="x").read("lie")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_a_pipe_or_a_device_is_never_read(tmp_path, suffix) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(FeatureError, match="is not a regular file"):
            FileStore(tmp_path, suffix, key="x").read(name)
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(FeatureError, match="is not a regular file"):
        Hdf5Store(tmp_path / "pipe.h5").listing()


# ------------------------------------------------------------------------------------------- caches


def flipped(file: Path, places: int) -> list[int]:
    """Spreads places over a file."""
    return list(range(0, file.stat().st_size, max(1, file.stat().st_size // places)))


def flip(file: Path, place: int) -> bytes:
    """Flips a bit of a file in a new file of that name; returns the content before."""
    before = file.read_bytes()
    changed = bytearray(before)
    changed[place] ^= 1 << place % 8
    file.unlink()  # the old one may be mapped
    file.write_bytes(changed)
    return before


def restore(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def test_flipped_bytes_in_the_text_cache_are_noticed(tmp_path) -> None:
    rng = np.random.default_rng(0)
    keys = [rng.bytes(32) for _ in range(9)]
    tokens = [rng.normal(size=(5, 8)) for _ in keys]
    EmbeddingCache(tmp_path).add(keys, tokens, rng.normal(size=(9, 8)))
    (file,) = tmp_path.glob("*.safetensors")
    noticed = passed_over = 0
    for place in flipped(file, 200):
        before = flip(file, place)
        cache = EmbeddingCache(tmp_path)
        try:
            if cache.missing(keys):  # a key has changed: the entry is computed again
                passed_over += 1
                continue
            for key in keys:
                cache.tokens(key)
            cache.sentences(keys)
        except VmrError as error:
            noticed += str(file) in str(error)
        else:
            pytest.fail(f"byte {place} was not noticed")
        finally:
            restore(file, before)
    assert noticed + passed_over == len(flipped(file, 200))
    assert noticed > 100


def test_an_entry_without_a_checksum_is_computed_again(tmp_path) -> None:
    from safetensors.numpy import load_file, save_file

    key = bytes(32)
    EmbeddingCache(tmp_path).add([key], [VALUES], VALUES[:1])
    (file,) = tmp_path.glob("*.safetensors")
    content = load_file(file)
    del content["checksums"]
    save_file(content, file)
    cache = EmbeddingCache(tmp_path)
    assert cache.missing([key]) == [key]
    cache.add([key], [VALUES], VALUES[:1])
    assert np.array_equal(cache.tokens(key), VALUES)


class Two(VideoSource):
    """Two videos in memory."""

    dim = 4

    def load(self, video_id):
        return VALUES * len(video_id)

    def manifest(self):
        return {"order": ["two"]}


def test_flipped_bytes_in_features_and_packs_are_noticed(tmp_path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "v.npz", features=rng.normal(size=(50, 16)).astype(np.float32))
    pack(Two(), ["a", "bb"], tmp_path / "pack", "float32")

    def read(name: str) -> bytes:
        if name == "v.npz":
            return FileStore(tmp_path, ".npz", key="features").read("v")[0].tobytes()
        videos = PackedVideos(tmp_path / "pack", Two())
        return b"".join(videos.load(name).tobytes() for name in ("a", "bb"))

    for name in ("v.npz", "pack/features.npy", "pack/index.json"):
        good = read(name)
        for place in flipped(tmp_path / name, 120):
            before = flip(tmp_path / name, place)
            try:
                fine = read(name) == good  # such as the date in a zip's directory
            except VmrError as error:
                fine = str(tmp_path / name.split("/")[0]) in str(error)
            finally:
                restore(tmp_path / name, before)
            assert fine, f"byte {place} of {name} was not noticed"


def test_flipped_bytes_in_a_rendered_world_are_noticed(tmp_path) -> None:
    world = WorldSettings(train_videos=2, selection_videos=1, test_videos=1, shortest=16, longest=16)
    folder = generate_world(world, tmp_path, 1)
    protocol(world, tmp_path)
    file = folder / "annotations" / "iid.jsonl"
    before = flip(file, 70)
    with pytest.raises(VmrError, match=r"iid.jsonl has changed"):
        protocol(world, tmp_path)
    restore(file, before)
    protocol(world, tmp_path)
    video = next((folder / "videos").iterdir())
    flip(video, 700)
    encoder = GridEncoder()
    with pytest.raises(VmrError, match=f"{video.name} has changed"):
        RenderedVideos(world, tmp_path, encoder, processes=1).prepare(protocol(world, tmp_path))
