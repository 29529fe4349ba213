"""The contract that every method satisfies; methods are found by their files in conf/method."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from batches import (
    NARRATION_DIM,
    NARRATION_QUERY_DIM,
    PATCH_DIM,
    PATCHES,
    QUERY_DIM,
    VIDEO_DIM,
    make_batch,
    row,
    shrink,
    stretch,
)
from vmr_zoo.config.compose import compose
from vmr_zoo.methods.base import Method
from vmr_zoo.types import DETAILS, NEEDS, Batch, Prediction

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # without a trainer
CONF = Path(__file__).parents[1] / "conf"
TWO_STREAMS = "lmr with words for narrations"
METHODS = [*sorted(path.stem for path in (CONF / "method").glob("*.yaml")), TWO_STREAMS]


@functools.cache
def composed(name: str, variant: str) -> DictConfig:
    method = name.split()[0]
    cfg = compose("train", ["data=shapes", "recipe=none", f"method={method}", f"variant={variant}"])
    with open_dict(cfg):
        cfg.features.update(
            video_dim=VIDEO_DIM,
            query_dim=QUERY_DIM,
            narration_dim=NARRATION_DIM,
            narration_query_dim=NARRATION_QUERY_DIM if name == TWO_STREAMS else None,
            patch_dim=PATCH_DIM,
            patch_count=PATCHES,
        )
    OmegaConf.set_struct(cfg, False)
    return cfg


def build(
    name: str, variant: str = "paper", seed: int = 0, changes: Mapping[str, object] | None = None
) -> Method:
    cfg = copy.deepcopy(composed(name, variant))
    shrink(cfg.method)
    cfg.method.merge_with(dict(changes or {}))
    torch.manual_seed(seed)
    return instantiate(cfg.method)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    built = build(request.param)
    if not learns(built):  # it collects statistics during an epoch instead
        built.training_step(make_batch(built.needs), 0)
        built.on_validation_epoch_start()
        built.validation_step(make_batch(built.needs), 0)
        built.on_validation_epoch_end()
    for norm in norms(built):  # their running statistics have seen no data yet
        norm.momentum = 1.0
    if norms(built):
        with torch.no_grad():
            built.train().predict(make_batch(built.needs))
    return built.eval()


def norms(method: Method) -> list[torch.nn.BatchNorm2d]:
    return [module for module in method.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def losses(method: Method, batch: dict) -> dict[str, Tensor]:
    torch.manual_seed(3)  # some losses sample
    return method.losses(batch)


def configured(method: Method) -> torch.optim.Optimizer:
    """The method's own optimizer, without its schedule."""
    method._trainer = SimpleNamespace(estimated_stepping_batches=100)  # for a decay over all steps
    found = method.configure_optimizers()
    method._trainer = None
    return found["optimizer"] if isinstance(found, dict) else found


def learns(method: Method) -> bool:
    return any(p.requires_grad for p in method.parameters())


def test_needs_are_known_names_and_a_family_is_declared(method: Method) -> None:
    assert method.needs <= NEEDS
    assert method.family


def test_prediction_keeps_the_contract(method: Method) -> None:
    batch = make_batch(method.needs)
    prediction = method.predict(batch)
    spans, scores = prediction["spans"], prediction["scores"]
    assert spans.shape == (*scores.shape, 2)
    assert len(spans) == 4
    assert spans.shape[1] >= 5
    assert (spans >= 0).all()
    assert (spans <= 1).all()
    assert (spans[..., 0] <= spans[..., 1]).all()
    assert (scores.diff(dim=1) <= 0).all()
    if "saliency" in prediction:
        assert prediction["saliency"].shape == batch["video_mask"].shape


def test_the_batch_is_left_as_it_was(method: Method) -> None:
    batch = make_batch(method.needs)
    before = copy.deepcopy(batch)
    method.predict(batch)
    method.losses(batch)
    assert batch.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(batch[key], value) if isinstance(value, Tensor) else batch[key] == value


def test_noise_in_more_padding_changes_nothing(method: Method) -> None:
    batch = make_batch(method.needs)
    longer = stretch(batch, extra=5)
    before, after = method.predict(batch), method.predict(longer)
    torch.testing.assert_close(after["spans"], before["spans"], atol=1e-5, rtol=0)
    torch.testing.assert_close(after["scores"], before["scores"], atol=1e-5, rtol=0)
    if "saliency" in before:
        mask = batch["video_mask"]
        after_saliency = after["saliency"][:, : mask.shape[1]][mask]
        torch.testing.assert_close(after_saliency, before["saliency"][mask], atol=1e-5, rtol=0)
    for name, value in losses(method, batch).items():
        torch.testing.assert_close(
            losses(method, longer)[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_a_row_alone_is_predicted_as_in_a_batch(method: Method) -> None:
    batch = make_batch(method.needs)
    together = method.predict(batch)
    for index in range(4):
        alone = method.predict(row(batch, index))
        torch.testing.assert_close(alone["spans"][0], together["spans"][index], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone["scores"][0], together["scores"][index], atol=1e-5, rtol=0)


def test_every_method_scores_whether_there_is_an_answer(method: Method) -> None:
    batch = make_batch(method.needs)
    longer = stretch(batch, extra=5)
    score = method.answer_score(method.predict(batch), batch)
    assert score.shape == (4,)
    assert score.isfinite().all()
    torch.testing.assert_close(method.answer_score(method.predict(longer), longer), score, atol=1e-5, rtol=0)
    assert method.answer_evidence


def test_details_are_an_addition_and_know_no_padding(method: Method) -> None:
    batch = make_batch(method.needs)
    longer = stretch(batch, extra=5)
    plain = method.predict(batch)
    assert "details" not in plain
    detailed, padded = method.predict(batch, details=True), method.predict(longer, details=True)
    assert torch.equal(detailed["spans"], plain["spans"])
    assert torch.equal(detailed["scores"], plain["scores"])
    assert detailed.get("details", {}).keys() == padded.get("details", {}).keys()
    for name, detail in detailed.get("details", {}).items():
        assert detail.isfinite().all(), name
        assert padded["details"][name].isfinite().all(), name
        for index in range(4):
            alone = row(batch, index)
            one = valid(method.predict(alone, details=True), name, alone, 0)
            for found in (valid(detailed, name, batch, index), valid(padded, name, longer, index)):
                torch.testing.assert_close(found, one, atol=1e-5, rtol=0)


def valid(prediction: Prediction, name: str, batch: Batch, index: int) -> Tensor:
    """One row of a detail without its padding; checks the length of its axes against `DETAILS`."""
    detail = prediction["details"][name]
    kept = {
        "clip": batch["video_mask"][index],
        "word": batch["query_mask"][index],
        "moment": torch.ones(prediction["scores"].shape[1], dtype=torch.bool),
    }
    assert len(detail) == len(batch["query_id"])
    one = detail[index]
    assert one.dim() == len(DETAILS[name])
    for place, axis in enumerate(DETAILS[name]):
        if axis in kept:
            assert one.shape[place] == len(kept[axis])
            one = one[(slice(None),) * place + (slice(int(kept[axis].sum())),)]
    return one


def test_every_parameter_learns(method: Method) -> None:
    if not learns(method):
        pytest.skip("has no parameters")
    found = losses(method, make_batch(method.needs))
    assert {name.split("/")[0] for name in found} >= {
        k for k, w in method.loss_weights.items() if w is not None
    }
    method.total_loss(found).backward()
    idle = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    moving = [name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moving) > 0.9 * sum(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("index", [0, 1])  # row 1 has no negative and no shift
def test_the_last_batch_of_an_epoch_may_be_one_row(method: Method, index: int) -> None:
    if not learns(method):
        pytest.skip("has no parameters")
    method.total_loss(losses(method.train(), row(make_batch(method.needs), index))).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_a_step_lowers_the_loss_on_its_own_batch(method: Method) -> None:
    if not learns(method):
        pytest.skip("has no parameters")
    batch = make_batch(method.needs)
    optimizer = configured(method)
    for group in optimizer.param_groups:  # published rates are for thousands of steps
        group["lr"] = max(group["lr"], 1e-3)
    values = []
    for _ in range(8):
        total = method.total_loss(losses(method, batch))
        values.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert values[-1] < values[0]


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("name", METHODS)
def test_the_optimizer_survives_saving(name: str, variant: str, tmp_path: Path) -> None:
    method = build(name, variant)
    if not learns(method):
        pytest.skip("has no parameters")
    optimizer = configured(method)
    method.total_loss(losses(method, make_batch(method.needs))).backward()
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["state"], "a step was taken"
    torch.save(saved, tmp_path / "optimizer.pt")
    read = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    again = configured(method)
    again.load_state_dict(read)
    assert again.state_dict()["param_groups"] == saved["param_groups"]
    for index, state in again.state_dict()["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(value, saved["state"][index][key], atol=0, rtol=0)


def test_weights_survive_saving(method: Method, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if not learns(method):
        pytest.skip("has no parameters")
    name = request.node.callspec.params["method"]
    batch = make_batch(method.needs)
    save_file(method.state_dict(), tmp_path / "model.safetensors")
    other = build(name, seed=1).eval()
    untrained, expected = other.predict(batch), method.predict(batch)
    assert any(not torch.equal(untrained[key], expected[key]) for key in ("spans", "scores"))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other.predict(batch)["spans"], method.predict(batch)["spans"])
    assert torch.equal(other.predict(batch)["scores"], method.predict(batch)["scores"])


@pytest.mark.parametrize("name", METHODS)
def test_two_trainings_are_equal_and_evaluation_draws_no_numbers(name: str) -> None:
    trained = []
    for evaluated in (False, True):
        method = build(name)
        if not learns(method):
            pytest.skip("has no parameters")
        optimizer = configured(method)
        for step in range(3):
            if evaluated:
                before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
                method.eval().predict(make_batch(method.needs, seed=9))
                after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
                assert torch.equal(before[0], after[0])
                assert before[1:] == after[1:]
            torch.manual_seed(step)
            total = method.train().total_loss(method.losses(make_batch(method.needs, seed=step)))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        trained.append(method.state_dict())
    assert all(torch.equal(value, trained[1][key]) for key, value in trained[0].items())
