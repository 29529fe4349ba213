"""Runs that are published on the hub and used from there, against a local server."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import hub
from vmr_zoo.config.allowed import TRUST
from vmr_zoo.config.foreign import own_paths, places, portable, restricted
from vmr_zoo.engine.weights import load_weights
from vmr_zoo.errors import VmrError
from vmr_zoo.runs import directory
from vmr_zoo.runs.hub import FILES, local_run
from vmr_zoo.runs.publish import check_secrets, stage

# ------------------------------------------------------------------------ what a configuration may name

DATA, METHODS = "vmr_zoo.data", "vmr_zoo.methods"
STORE = {
    "_target_": f"{DATA}.features.store.FileStore",
    "folder": "${paths.features}/clip",
    "suffix": ".npz",
    "key": "features",
}
ENCODER = {"_target_": f"{DATA}.text.sentence.SentenceEncoder", "cache": "${paths.cache}", "model": None}
GOOD = {
    "layout": 2,
    "name": "run",
    "variant": "paper",
    "seed": 2**32 - 1,
    "data": {
        "_target_": f"{DATA}.batches.datamodule.VMRDataModule",
        "name": "charades_cd",
        "protocol": {
            "_target_": f"{DATA}.annotations.protocols.charades_cd",
            "root": "${paths.annotations}",
            "selection": "heldout",
        },
        "word_counts": None,
        "num_workers": 2,
    },
    "features": {
        "_target_": f"{DATA}.features.feature_set.FeatureSet",
        "name": "clip",
        "packed": None,
        "video": {
            "_target_": f"{DATA}.features.files.VideoFiles",
            "sources": [
                {
                    "_target_": f"{DATA}.features.files.FileFeatures",
                    "backbone": "CLIP ViT-B/32",
                    "store": STORE,
                }
            ],
        },
        "query": {"_target_": f"{DATA}.features.queries.EncodedQueries", "encoder": ENCODER},
    },
    "method": {
        "_target_": f"{METHODS}.mmn.MMN",
        "text": {
            "_target_": "vmr_zoo.blocks.text_encoder.distilbert",
            "folder": "${paths.features}/distilbert-base-uncased",
        },
        "activation": {"_target_": "torch.nn.ReLU", "_partial_": True},
    },
    "trainer": {
        "_target_": "lightning.Trainer",
        "precision": "bf16-mixed",
        "profiler": "advanced",
        "default_root_dir": "/etc",
        "plugins": [{"_target_": "os.system", "_args_": ["touch PROOF"]}],
    },
    "callbacks": {"x": {"_target_": "os.system", "_args_": ["touch PROOF"]}},
    "logger": {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "/etc"}},
    "paths": {"annotations": "/etc", "features": "/home", "cache": "/etc", "runs": "/", "mine": "/"},
    "run": "/etc",
}

STORE_KEY = "features.video.sources.0.store"
CLIP = {"_target_": "vmr_zoo.video.open_clip.OpenClip", "model": "ViT-B-32", "pretrained": "openai"}
JSONL = {
    "_target_": f"{DATA}.annotations.protocols.jsonl",
    "name": "x",
    "train": "${paths.annotations}/a.jsonl",
}


def call(name: str, *args: object) -> dict[str, object]:
    return {"_target_": name, "_args_": list(args)}


NAMES = "names "  # the list of `config.allowed`
PLACES = "somebody else's"
MODEL = "would download this model"
ATTACKS = {
    # code
    "shutil.copy": ("method.x", call("shutil.copy", "/etc/passwd", "PROOF"), NAMES),
    "os.system": ("method.x", call("os.system", "touch PROOF"), NAMES),
    "eval": ("method.x", call("builtins.eval", "1"), NAMES),
    "torch.load": ("method.x", {"_target_": "torch.load", "f": "x.pt", "weights_only": False}, NAMES),
    "partial": ("method.x", {"_target_": "os.system", "_partial_": True}, NAMES),
    "functools.partial": ("method.x", call("functools.partial", "os.system"), NAMES),
    "in a list": ("method.x", [{"y": [call("subprocess.run", "id")]}], NAMES),
    "get_class": ("method.x", {"_target_": "hydra.utils.get_class", "path": "os.system"}, NAMES),
    "target in a target": ("method.x", {"_target_": {"_target_": "os.system"}}, NAMES),
    "through our own module": ("method.x", call("vmr_zoo.utils.files.os.system", "id"), NAMES),
    "writer of our own": ("method.x", call("vmr_zoo.utils.files.atomic_write", "PROOF", "x"), NAMES),
    "code in the data": ("data.protocol", call("runpy.run_path", "x.py"), NAMES),
    "not built recursively": ("features.video", {"_recursive_": False, **call("os.system", "id")}, NAMES),
    # classes of our own that do more
    "narrator": ("features.x", {"_target_": "vmr_zoo.narrators.VisionLanguageNarrator"}, PLACES),
    "callback": ("method.x", {"_target_": "vmr_zoo.engine.callbacks.Resumable", "path": "x"}, PLACES),
    "logger": ("method.x", {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "x"}, PLACES),
    "trainer": ("method.x", {"_target_": "lightning.Trainer"}, PLACES),
    "download": ("data.x", {"_target_": f"{DATA}.annotations.download.AnnotationSource"}, PLACES),
    "address": ("data.x", "http://example.org/x", PLACES),
    # interpolations
    "environment": ("name", "${oc.env:HOME}", PLACES),
    "target by interpolation": ("method._target_", "${name}", NAMES),
    "resolver": ("features.name", "${oc.create:x}", PLACES),
    "other path": (f"{STORE_KEY}.folder", "${paths.mine}", PLACES),
    "runs": (f"{STORE_KEY}.folder", "${paths.runs}", PLACES),
    "path in a name": ("features.name", "${paths.features}", PLACES),
    # places to read
    "absolute folder": (f"{STORE_KEY}.folder", "/etc", PLACES),
    "home": (f"{STORE_KEY}.folder", "~/.ssh", PLACES),
    "relative folder": (f"{STORE_KEY}.folder", "private", PLACES),
    "up": (f"{STORE_KEY}.folder", "${paths.features}/../private", PLACES),
    "up at the end": (f"{STORE_KEY}.folder", "${paths.features}/..", PLACES),
    "two interpolations": (f"{STORE_KEY}.folder", "${paths.features}/${paths.cache}", PLACES),
    "annotations": ("data.protocol.root", "/home", PLACES),
    "splits": ("data.protocol", {**JSONL, "test": {"iid": "/etc/passwd"}}, PLACES),
    "same dotted key": (
        "data.protocol",
        {**JSONL, "test": {"a": {"b": "/etc/passwd"}, "a.b": "${paths.annotations}/x"}},
        PLACES,
    ),
    "positional": (STORE_KEY, call(STORE["_target_"], "/etc", ".npz"), PLACES),
    "word counts": ("data.word_counts", "/etc/passwd", PLACES),
    "pack": ("features.packed", "/etc", PLACES),
    "text model": ("method.text.folder", "/home/x", PLACES),
    "name that leads up": ("features.name", "../x", PLACES),
    "Windows": ("features.name", "C:\\x", PLACES),
    # places to write
    "cache": ("features.query.encoder.cache", "/etc", PLACES),
    "cache beside the features": ("features.query.encoder.cache", "${paths.features}", PLACES),
    "folder in the cache": ("features.query.encoder.cache", "${paths.cache}/../..", PLACES),
    # models
    "model of the hub": ("features.query.encoder.model", "evil/model", MODEL),
    "model without an owner": ("features.query.encoder.model", "evil", MODEL),
    "local model": ("features.query.encoder.model", "/home/x/model", PLACES),
    "open_clip from the hub": ("features.video.encoders", [{**CLIP, "model": "hf-hub:evil/x"}], MODEL),
    "open_clip from a folder": ("features.video.encoders", [{**CLIP, "model": "local-dir:x"}], PLACES),
    "pickled weights": ("features.video.encoders", [{**CLIP, "pretrained": "/home/x/evil.pt"}], PLACES),
    "weights here": ("features.video.encoders", [{**CLIP, "pretrained": __file__}], PLACES),
    "escape sequence": ("features.name", "\x1b]0;x", PLACES),
    # amounts
    "processes": ("data.num_workers", 5000, PLACES),
    "sizes": ("data.eval_batch_size", 10**12, PLACES),
    "precision": ("trainer.precision", {"_target_": "os.system"}, PLACES),
}


def attacked(key: str, value: object) -> dict[str, object]:
    tree = copy.deepcopy(GOOD)
    node = tree
    *parents, last = key.split(".")
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node[name]
    node[last] = value
    return tree


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_run_of_the_hub_names_nothing_but_methods_and_the_places_of_its_user(attack) -> None:
    key, value, reason = ATTACKS[attack]
    with pytest.raises(VmrError, match=f"evil/config.yaml.*{reason}"):
        restricted(attacked(key, value), "evil/config.yaml")


def test_what_is_rebuilt_of_a_run_of_the_hub(monkeypatch) -> None:
    kept = restricted(GOOD, "x")
    assert set(kept) == {"name", "variant", "seed", "data", "features", "method", "trainer", "paths"}
    assert kept["trainer"] == {
        "_target_": "lightning.Trainer",
        "accelerator": "auto",
        "devices": 1,
        "precision": "bf16-mixed",
    }
    assert kept["paths"] == own_paths()
    assert {place.key.rpartition(".")[2]: place.kind for place in places(kept["features"])} == {
        "folder": "path",
        "cache": "cache",
    }
    monkeypatch.setenv(TRUST, "intfloat/e5-small, hf-hub-owner/clip")
    restricted(attacked("features.query.encoder.model", "intfloat/e5-small"), "x")
    restricted(attacked("features.video.encoders", [{**CLIP, "model": "hf-hub:hf-hub-owner/clip"}]), "x")
    restricted(attacked("features.video.encoders", [CLIP]), "x")


# --------------------------------------------------------------------------------- publishing and using


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub.serve() as served:
        hub.connect(monkeypatch, served, tmp_path / "caches")
        yield served


def published(server: hub.Hub, name: str = "me/toy") -> dict[str, bytes]:
    repository = server.repositories[f"models/{name}"]
    return repository.commits[repository.branches["main"]]


def test_a_published_run_scores_the_same_from_an_empty_cache(
    vmr, server, trained_toy, tmp_path, capfd
) -> None:
    assert vmr("push", f"run={trained_toy}", "repo=me/toy", "licence=apache-2.0") == 0
    shown = capfd.readouterr()
    assert "Next: vmr predict run=hf://me/toy" in shown.out
    assert hub.TOKEN not in shown.out + shown.err
    files = published(server)
    assert set(files) == {
        *("README.md", "config.yaml", "metrics.json", "manifest.json", "annotations.json"),
        *("environment.json", "status.json", "predictions.jsonl", "model.safetensors"),
    }
    whole = b"".join(content for name, content in files.items() if name != "model.safetensors").decode()
    for private in (str(tmp_path), str(trained_toy), str(Path.home()), "checkpoints", "at 3"):
        assert private not in whole, private
    assert vmr("eval", "run=hf://me/toy", "split=[iid,ood]") == 0
    commit = server.repositories["models/me/toy"].branches["main"]
    assert f"hf://me/toy is commit {commit}" in capfd.readouterr().err
    local = tmp_path / "caches" / "vmr_zoo" / "hub" / "me" / "toy" / commit
    original = directory.read_json(trained_toy / "metrics.json")
    for split in ("iid", "ood"):
        assert directory.read_json(local / "eval" / f"{split}-001" / "metrics.json")[split] == original[split]
    # Offline: the copy is used. A second push replaces the run.
    assert vmr("push", f"run={trained_toy}", "repo=me/toy") == 0
    server.url, before = "http://127.0.0.1:9", list(server.requests)
    with pytest.MonkeyPatch.context() as offline:
        offline.setenv("HF_ENDPOINT", server.url)
        assert local_run("hf://me/toy") == local
        assert local_run(f"hf://me/toy@{commit}") == local
        assert vmr("eval", "run=hf://me/unknown") == 2
    assert "is not complete on this machine, and the hub cannot be reached" in capfd.readouterr().err
    assert server.requests == before
    assert local_run("hf://me/toy").name == server.repositories["models/me/toy"].branches["main"] != commit
    assert vmr("push", f"run={local}", "repo=me/other") == 2
    assert "is a copy of hf://me/toy" in capfd.readouterr().err


def test_the_card_says_how_a_run_was_scored(vmr, server, trained_toy, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_toy, run)
    content = json.loads((run / "metrics.json").read_text())
    content["header"] |= {"name": "a|b <img> `x`: #\n---", "plateau": False, "warnings": ["<script>"]}
    (run / "metrics.json").write_text(json.dumps(content))
    out = tmp_path / "new" / "out"
    assert vmr("push", f"run={run}", "repo=me/toy", f"out={out}") == 0
    assert not server.requests
    _, metadata, text = (out / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(metadata)
    assert found["library_name"] == "vmr_zoo"
    (model,) = found["model-index"]
    assert model["name"] == content["header"]["name"]
    values = {
        (one["dataset"]["split"], metric["type"]): metric["value"]
        for one in model["results"]
        for metric in one["metrics"]
    }
    assert values["iid", "mIoU"] == round(content["iid"]["mIoU"], 2)
    assert "ended before a plateau" in text
    assert "best mIoU on the selection split" in text
    assert "<img>" not in text
    assert "<script>" not in text
    assert vmr("push", f"run={run}", "repo=me/toy", f"out={out}") == 2


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "status.json",
            {"state": "interrupted", "train_seconds": 1, "message": "SIGTERM"},
            "is not finished",
        ),
        ("status.json", {"state": "debug", "train_seconds": 1, "message": ""}, "is a debugging run"),
        ("metrics.json", {"header": {"name": "x"}}, "without scores"),
        (
            "metrics.json",
            {"header": {"weights_sha256": "0" * 64}, "iid": {"mIoU": 1.0}},
            "does not belong to",
        ),
        ("metrics.json", {"header": {"name": "x"}, "iid": {"mIoU": 1.0}}, "vmr eval run="),
        ("model.safetensors", None, "does not belong to"),
        ("manifest.json", {"x": "hf_abcdefghijklmnopqrstuvwx"}, r"manifest.json would contain a secret"),
        ("manifest.json", {"x": "http://user:password@host/x"}, r"manifest.json would contain a secret"),
        ("manifest.json", {"x": "a SECRETVALUE b"}, r"would contain a secret \(MY_API_KEY\)"),
    ],
)
def test_what_is_not_published(trained_toy, tmp_path, monkeypatch, file, change, message) -> None:
    monkeypatch.setenv("MY_API_KEY", "SECRETVALUE")
    run = tmp_path / "run"
    shutil.copytree(trained_toy, run)
    if change is None:
        content = bytearray((run / file).read_bytes())
        content[-1] ^= 1
        (run / file).write_bytes(content)
    else:
        (run / file).write_text(json.dumps(change))
    (tmp_path / "out").mkdir()

    def publish() -> None:
        stage(run, tmp_path / "out")
        check_secrets(tmp_path / "out")

    with pytest.raises(VmrError, match=message) as refused:
        publish()
    assert "SECRETVALUE" not in str(refused.value)


def test_a_run_of_an_earlier_version_is_published_once_it_was_evaluated(vmr, trained_toy, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_toy, run)
    content = json.loads((run / "metrics.json").read_text())
    del content["header"]["weights_sha256"]
    (run / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(VmrError, match="vmr eval run="):
        stage(run, tmp_path)
    assert vmr("eval", f"run={run}", "split=iid") == 0
    (tmp_path / "out").mkdir()
    assert stage(run, tmp_path / "out").header["weights_sha256"] == directory.weights_digest(run)


def test_only_shared_splits_show_whether_an_earlier_run_has_its_weights(trained_toy, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_toy, run)
    content = json.loads((run / "metrics.json").read_text())
    header = {"weights_sha256": content["header"].pop("weights_sha256")}
    (run / "metrics.json").write_text(json.dumps(content))
    evaluation = run / "eval" / "one" / "metrics.json"
    evaluation.parent.mkdir(parents=True)
    other = {"another": {"mIoU": 1.0}}  # sorts, and is written, before "iid"

    evaluation.write_text(json.dumps({"header": header, **other}))
    with pytest.raises(VmrError, match="Repeat them once"):
        stage(run, tmp_path)
    evaluation.write_text(json.dumps({"header": header, **other, "iid": {**content["iid"], "mIoU": 101.0}}))
    with pytest.raises(VmrError, match="on iid: other weights"):
        stage(run, tmp_path)
    evaluation.write_text(json.dumps({"header": header, **other, "iid": content["iid"]}))
    (tmp_path / "out").mkdir()
    assert stage(run, tmp_path / "out").header["weights_sha256"] == header["weights_sha256"]


def test_places_of_this_machine_stay_here(vmr, server, trained_toy, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_toy, run)
    cfg = OmegaConf.load(run / "config.yaml")
    store = {**STORE, "folder": "/home/somebody/clip"}
    cfg.features.more = {**ENCODER, "cache": "/scratch/x", "model": "/models/e5"}
    cfg.features.store = store
    cfg.trainer.default_root_dir = "/home/somebody"
    OmegaConf.save(cfg, run / "config.yaml")
    out = tmp_path / "out"
    assert vmr("push", f"run={run}", "repo=me/toy", f"out={out}") == 0
    stored = OmegaConf.load(out / "config.yaml")
    assert OmegaConf.to_container(stored)["features"]["store"]["folder"] == "${paths.features}/clip"
    more = OmegaConf.to_container(stored)["features"]["more"]
    assert (more["cache"], more["model"]) == ("${paths.cache}", "${paths.features}/e5")
    assert "/home/somebody/clip by ${paths.features}/clip" in capsys.readouterr().out
    assert "/home/somebody" not in (out / "config.yaml").read_text()
    with pytest.raises(VmrError, match=r"the same name: /a/clip, /b/clip"):
        portable(attacked("features.video.sources", [{**STORE, "folder": f"/{one}/clip"} for one in "ab"]))
    (out / "notes.json").write_text(f'"{Path.home()}/x"')
    with pytest.raises(VmrError, match=r"notes\.json would contain a path below"):
        check_secrets(out)


# ----------------------------------------------------------------------------------- hostile repositories


@pytest.fixture(scope="module")
def good_files(trained_toy, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRUST, "toy")
        stage(trained_toy, out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: content for key, content in files.items() if key != name}


def test_nothing_but_the_files_of_a_run_is_downloaded(server, good_files) -> None:
    names = ("model.py", "pytorch_model.bin", "x/config.yaml", "config.yaml/x", "../../up", "a.ckpt")
    others = dict.fromkeys(names, b"import os")
    server.add("me/toy", {**good_files, **others, "origin.json": b"{}"})
    run = local_run("hf://me/toy")
    found = {path.name for path in run.iterdir()}
    assert found == (set(good_files) & set(FILES)) | {"origin.json"}
    assert directory.read_json(run / "origin.json")["repository"] == "me/toy"
    fetched = {request.rpartition("/")[2] for request in server.requests if "/resolve/" in request}
    assert fetched <= set(FILES)
    server.add("me/toy", {"status.json": b"{}"})
    assert local_run("hf://me/toy") != run
    server.cut["model.safetensors"] = 100
    server.add("me/toy", {"status.json": b'{"state": "finished"}'})
    assert (local_run("hf://me/toy") / "model.safetensors").read_bytes() == good_files["model.safetensors"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (lambda good: without(good, "config.yaml"), r"is not a run of vmr_zoo: it has no config\.yaml"),
        (lambda good: {"README.md": b"x"}, r"is not a run of vmr_zoo"),
        (lambda good: {**good, "model.safetensors": b"\x80\x02."}, "does not belong to metrics.json"),
        (lambda good: {**good, "metrics.json": b'{"header": []}'}, "does not belong to metrics.json"),
        (lambda good: {**good, "metrics.json": b"[" * 100_000}, "is not valid JSON"),
        (lambda good: {**good, "config.yaml": b"a" * 300_000}, "Nothing was downloaded"),
        (lambda good: {**good, "manifest.json": b'{"a": "\\u001b[2J"}'}, "holds control characters"),
    ],
)
def test_a_repository_that_is_no_run_is_refused(server, good_files, files, message, tmp_path) -> None:
    server.add("me/toy", files(good_files))
    with pytest.raises(VmrError, match=message):
        local_run("hf://me/toy")
    assert not list((tmp_path / "caches" / "vmr_zoo").rglob("origin.json"))


def test_a_huge_file_and_a_link_to_another_place_are_refused(
    server, good_files, tmp_path, monkeypatch
) -> None:
    server.add("me/toy", good_files)
    server.sizes["model.safetensors"] = 2**40
    with pytest.raises(VmrError, match=r"1,099,511,627,776 bytes.* Nothing was downloaded"):
        local_run("hf://me/toy")
    del server.sizes["model.safetensors"]
    local_run("hf://me/toy")
    shutil.rmtree(tmp_path / "caches" / "vmr_zoo")
    link = next((tmp_path / "caches" / "hf").rglob("snapshots/*/status.json"))
    link.unlink()
    link.symlink_to("/etc/passwd")
    with pytest.raises(VmrError, match="outside of its repository"):
        local_run("hf://me/toy")


def test_pickled_weights_are_never_loaded(vmr, server, good_files, tmp_path, capsys) -> None:
    proof = tmp_path / "PROOF"

    class Evil:
        def __reduce__(self):
            return Path.touch, (proof,)

    import pickle

    weights = pickle.dumps(Evil())
    metrics = json.loads(good_files["metrics.json"])
    metrics["header"]["weights_sha256"] = hub.oid(weights)  # the stranger keeps the books in order
    server.add(
        "me/toy", {**good_files, "model.safetensors": weights, "metrics.json": json.dumps(metrics).encode()}
    )
    assert vmr("eval", "run=hf://me/toy", "split=iid") == 2
    assert "is not a safetensors file" in capsys.readouterr().err
    with pytest.raises(VmrError):
        load_weights(None, local_run("hf://me/toy") / "model.safetensors")  # type: ignore[arg-type]
    assert not proof.exists()


def test_a_hostile_configuration_stays_hostile_wherever_its_folder_moves(
    server, good_files, tmp_path
) -> None:
    cfg = OmegaConf.create(good_files["config.yaml"].decode())
    cfg.features.more = {**ENCODER, "cache": "/scratch"}
    server.add("me/toy", {**good_files, "config.yaml": OmegaConf.to_yaml(cfg).encode()})
    run = local_run("hf://me/toy")
    shutil.copytree(run, tmp_path / "mine")
    for place in (run, tmp_path / "mine"):
        with pytest.raises(VmrError, match=r"features\.more\.cache=/scratch"):
            directory.load_config(place)


def test_a_run_on_extracted_features_brings_their_manifest(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VMR_FEATURES", str(tmp_path / "features"))
    folders = ["${paths.features}", "${paths.features}/second"]
    video = {"_target_": f"{DATA}.features.extracted.ExtractedVideos", "folders": folders, "encoders": [CLIP]}
    patches = {"_target_": f"{DATA}.features.extracted.extracted_patches", "folders": folders}
    tree = attacked("features", {"video": video, "patches": patches})
    OmegaConf.save(OmegaConf.create(tree), tmp_path / "config.yaml")
    (tmp_path / "origin.json").write_text("{}")
    for number in (0, 1):
        (tmp_path / "extracted" / str(number)).mkdir(parents=True)
        (tmp_path / "extracted" / str(number) / "manifest.json").write_text("{}")
    (tmp_path / "features" / "second").mkdir(parents=True)
    (tmp_path / "features" / "second" / "manifest.json").write_text("{}")  # these features are here
    expected = [str(tmp_path / "extracted" / "0"), str(tmp_path / "features" / "second")]
    features = directory.load_config(tmp_path).features
    assert list(features.video.folders) == list(features.patches.folders) == expected


# ---------------------------------------------------------------------------------------- one clear message


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://me/absent", "the hub has no such model, or it is private"),
        ("hf://me/private", "the hub has no such model, or it is private"),
        ("hf://me/gated", "Ask for access on its page"),
        ("hf://me/open@v9", "has no branch, tag or commit v9"),
        ("hf://me", "Expected run=hf://OWNER/NAME"),
        ("hf://me/x/y", "Expected run=hf://OWNER/NAME"),
        ("hf://me/../x", "Expected run=hf://OWNER/NAME"),
        ("hf://me/x@../../y", "Expected run=hf://OWNER/NAME"),
    ],
)
def test_each_refusal_has_its_own_message(
    vmr, server, monkeypatch, tmp_path, capsys, address, message
) -> None:
    hub.connect(monkeypatch, server, tmp_path, token=None)
    server.add("me/open", {})
    server.add("me/private", {}, private=True)
    server.add("me/gated", {}, gated=True)
    assert vmr("eval", f"run={address}", "split=iid") == 2
    assert message in capsys.readouterr().err


def test_pushing_without_rights_says_what_to_do(
    vmr, server, monkeypatch, trained_toy, tmp_path, capsys
) -> None:
    hub.connect(monkeypatch, server, tmp_path, token=None)
    assert vmr("push", f"run={trained_toy}", "repo=me/toy") == 2
    assert "hf auth login" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    server.add("me/public", {})
    assert vmr("push", f"run={trained_toy}", "repo=me/public", "private=true") == 2
    assert "is public: nothing was uploaded" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert vmr("push", f"run={trained_toy}", "repo=me/toy") == 2
    assert "cannot be reached" in capsys.readouterr().err
