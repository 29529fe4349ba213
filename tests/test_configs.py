from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vmr_zoo.config.allowed import check_names
from vmr_zoo.config.arguments import with_present_keys
from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.config.resolvers import by_variant, register_resolvers, sweep_jobs
from vmr_zoo.config.run_names import run_name
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method

pytestmark = (
    pytest.mark.no_cover
)  # other tests run the same lines; composing takes twice as long when measured
CONF = config_dir()


def options(group: str) -> list[str]:
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


DATA = [name for name in options("data") if name != "default" and "/" not in name]
METHODS = [name for name in options("method") if "/" not in name]


def build(node: DictConfig) -> object:
    """Builds a method; skips one whose published weights are missing."""
    try:
        return instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, VmrError) and "Download it" in str(error.__cause__):
            pytest.skip(str(error.__cause__))
        raise


@pytest.mark.parametrize("data", [name for name in DATA if name != "jsonl"])  # its files: test_own_files.py
@pytest.mark.parametrize("verb", ["train", "score", "doctor", "import"])
def test_every_data_set_composes_under_every_verb_that_reads_it(verb, data):
    cfg = compose(verb, [f"data={data}"])
    assert cfg.data.name == data
    assert cfg.features.video_dim > 0
    assert cfg.features.query_dim > 0


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_builds_in_both_variants(method, variant):
    cfg = compose(
        "train", ["data=charades_cd", "features=action_labels", f"method={method}", f"variant={variant}"]
    )
    OmegaConf.resolve(cfg)
    assert isinstance(instantiate(cfg.method), Method)
    assert cfg.choices.method == method


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    """Replaces paths.features by a folder with a tiny CLIP text encoder, otherwise a download."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("features")
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, projection_dim=16
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder / "clip-vit-base-patch32")
    return folder


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_and_builds(experiment, downloads):
    cfg = compose("train", [f"experiment={experiment}", f"paths.features={downloads}"])
    OmegaConf.resolve(cfg)
    check_names(OmegaConf.to_container(cfg), experiment)  # its run can be evaluated
    assert isinstance(build(cfg.method), Method)
    # Only a constructor call reveals a misspelt key of the trainer.
    instantiate(cfg.trainer, logger=False, enable_progress_bar=False, accelerator="cpu")


@functools.cache
def without_ablation(method: str) -> dict:
    cfg = compose("train", ["data=charades_cd", "features=action_labels", f"method={method}"])
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize("ablation", [name for name in options("ablation") if name != "full"])
def test_every_ablation_builds_and_changes_something(ablation):
    method = ablation.split("/")[0]
    plain = without_ablation(method)
    cfg = compose(
        "train",
        ["data=charades_cd", "features=action_labels", f"method={method}", f"ablation={ablation}"],
    )
    changed = OmegaConf.to_container(cfg, resolve=True)
    check_names(changed, ablation)
    assert isinstance(build(cfg.method), Method)
    ignored = {"choices", "name", "run", "callbacks", "logger"}
    assert any(plain.get(key) != changed[key] for key in changed.keys() - ignored)


def test_no_two_papers_take_their_narrations_from_one_file():
    readers: dict[str, set[str]] = {}
    for name in options("ablation"):
        node = OmegaConf.load(CONF / "ablation" / f"{name}.yaml")
        if "narration" in node.get("features", {}):
            file = OmegaConf.to_container(node)["features"]["narration"]["file"]
            readers.setdefault(file, set()).add(name.split("/")[0])
    assert len(readers) >= 4
    assert all(len(papers) == 1 for papers in readers.values()), readers


def test_ablations_stack_and_the_command_line_wins():
    names = [name for name in options("ablation") if name.startswith("bm_detr/")][:2]
    cfg = compose(
        "train",
        ["data=charades_cd", "method=bm_detr", f"ablation=[{','.join(names)}]", "method.network.dim=64"],
    )
    assert cfg.method.network.dim == 64


def test_the_data_set_picks_features_and_the_command_line_wins():
    assert "VideoFiles" in str(compose("train", ["data=qvhighlights", "method=predict_all"]).features)
    cfg = compose("train", ["data=charades_cd", "features=action_labels", "method=predict_all"])
    assert cfg.features.name == "action_labels"


@pytest.mark.parametrize(
    ("threads", "gpu", "jobs"), [(None, False, 1), (1, False, 8), (3, False, 2), (16, False, 1), (1, True, 1)]
)
def test_a_sweep_fills_the_cores_of_a_machine_without_a_gpu(monkeypatch, threads, gpu, jobs):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert sweep_jobs(threads) == jobs


def test_by_variant_takes_the_first_value_for_the_paper():
    register_resolvers()
    cfg = OmegaConf.create(
        {"variant": "paper", "switch": "${by_variant:weighted,raw}", "off": "${by_variant:null,1.0}"}
    )
    assert cfg.switch == "weighted"
    assert cfg.off is None
    cfg.variant = "released"
    assert cfg.switch == "raw"
    assert cfg.off == 1.0
    with pytest.raises(VmrError, match="Did you mean paper"):
        by_variant(1, 2, _root_=OmegaConf.create({"variant": "papre"}))


def test_run_name_keeps_what_changes_a_result_and_nothing_else():
    same = [
        "data=x",
        "method=y",
        "seed=3",
        "paths.runs=/a/b",
        "logger=csv",
        "features.packed=/c/d",
        "data.residency=disk",
        "resume=true",
        "ablation=full",
        "hydra.verbose=true",
    ]
    assert run_name("m", "paper", same) == "m-paper"
    assert run_name("m", "paper", ["ablation=[m/no_shift,m/no_loss]"]) == "m-paper+no_shift+no_loss"
    assert (
        run_name("m", "paper", ["method.memory=raw", "trainer.max_epochs=3"])
        == "m-paper+memory-raw+max_epochs-3"
    )
    long = [f"method.argument_{i}={i}" for i in range(40)]
    assert run_name("m", "paper", long) != run_name("m", "paper", [*long[:-1], "method.argument_39=x"])
    assert "/" not in run_name("m", "paper", ["method.file=a/b c"])


def test_two_keys_that_end_alike_give_two_names():
    keys = ["method.network.layers", "method.text.layers", "trainer.max_epochs", "method.layers"]
    names = {run_name("m", "paper", [f"{key}=2"], keys) for key in keys}
    assert names == {
        f"m-paper+{end}-2" for end in ("network.layers", "text.layers", "max_epochs", "method.layers")
    }
    assert run_name("m", "paper", ["train=a.jsonl", "test=b.jsonl"], keys) == "m-paper"


def test_keys_of_the_earlier_version_are_replaced_and_named():
    args = ["-m", "method.dim=32,64", "+method.optimizer.lr=1", "method.dimension=3", "method=mmn"]
    present, notes = with_present_keys(args)
    moved = ["method.network.dim=32,64", "+method.training.optimizer.lr=1"]
    assert present == ["-m", *moved, "method.dimension=3", "method=mmn"]
    assert notes[0] == "method.dim is now method.network.dim."
    assert len(notes) == 2
