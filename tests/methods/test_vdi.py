from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import open_dict

from batches import PATCH_DIM, PATCHES, QUERY_DIM, VIDEO_DIM, make_batch
from vmr_zoo.config.compose import compose
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.mmn import MMN
from vmr_zoo.methods.vdi import SpatialDynamic, correlation_consistency, scaled

OFF = [
    "method.visual_context=null",
    "method.spatial_dynamic=null",
    "method.training.loss_weights.visual_context=null",
    "method.training.loss_weights.spatial_dynamic=null",
]
NEEDS = {"query_tokens", "noun_mask", "patches"}
SMALL = [
    "method.network.map_dim=8",
    "method.network.joint_dim=8",
    "method.network.segments=4",
    "method.network.clips=4",
    "method.network.diagonals=[3]",
    "method.text.trained_layers=1",
]


def build(name: str, *overrides: str, seed: int = 0) -> MMN:
    cfg = compose("train", ["data=shapes", "recipe=none", f"method={name}", *overrides, *SMALL])
    with open_dict(cfg):
        cfg.features.update(
            video_dim=VIDEO_DIM, query_dim=QUERY_DIM, patch_dim=PATCH_DIM, patch_count=PATCHES
        )
        if cfg.method.get("visual_context"):
            cfg.method.visual_context.feedforward_dim = 16
        if cfg.method.get("spatial_dynamic"):
            cfg.method.spatial_dynamic.feedforward_dim = 16
    torch.manual_seed(seed)
    return instantiate(cfg.method).eval()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_without_injections_it_is_mmn(variant):
    batch = make_batch({"query_tokens"})
    vdi = build("vdi", *OFF, f"variant={variant}")
    mmn = build("mmn", "method/text=minilm", "method.network.dim=null", f"variant={variant}", seed=1)
    assert vdi.needs == mmn.needs == {"query_tokens"}
    mmn.load_state_dict(vdi.state_dict())
    assert vdi.loss_weights | mmn.loss_weights == vdi.loss_weights
    for training in (False, True):
        losses = []
        for method in (vdi, mmn):
            torch.manual_seed(2)  # dropout in the text encoder
            losses.append(method.train(training).losses(batch))
        assert losses[0].keys() == losses[1].keys()
        assert all(torch.equal(value, losses[1][key]) for key, value in losses[0].items())
    vdi.eval(), mmn.eval()
    for key, value in vdi.predict(batch).items():
        assert torch.equal(value, mmn.predict(batch)[key])


def test_answering_reads_neither_patches_nor_nouns():
    vdi = build("vdi")
    assert vdi.needs == NEEDS
    batch = make_batch(NEEDS)
    answer = vdi.predict(batch)
    for key in ("patches", "noun_mask"):
        del batch[key]
    assert torch.equal(vdi.predict(batch)["scores"], answer["scores"])


def test_heatmaps_are_equation_3():
    vdi = build("vdi")
    batch = make_batch(NEEDS)
    part = vdi.spatial_dynamic
    maps = vdi.heatmaps(batch)
    assert maps.shape == (3, 32, PATCHES)
    for video, row in enumerate((0, 1, 3)):
        length = int(batch["video_mask"][row].sum())
        for place in (0, 13, 31):
            frame = int((place + 0.5) * length / 32)
            whole, patches = (scaled(batch[name][row, frame], "rms") for name in ("video", "patches"))
            expected = part.patch(patches) @ part.whole(whole) / math.sqrt(part.dim)
            torch.testing.assert_close(maps[video, place], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sequence", ["transformer", "lstm"])
def test_dynamics_know_the_order_of_the_frames(sequence):
    torch.manual_seed(0)
    part = SpatialDynamic(
        video_dim=3,
        patch_dim=2,
        patch_count=4,
        dim=8,
        frames=6,
        sequence=sequence,
        heads=2,
        feedforward_dim=8,
        dropout=0.0,
        scale="rms",
        target="trained",
    )
    maps = torch.randn(2, 6, 4)
    assert part.dynamics(maps).shape == (2, 8)
    assert not torch.allclose(part.dynamics(maps), part.dynamics(maps.flip(1)), atol=1e-3)


def test_consistency_of_correlations_by_hand():
    left = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    right = torch.tensor([[1.0], [-1.0], [1.0]])
    pairs = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    expected = ((0 + 1) ** 2 + (math.sqrt(0.5) + 1) ** 2) / 2
    assert correlation_consistency(left, right, pairs).item() == pytest.approx(expected, rel=1e-5)
    assert correlation_consistency(left, right, torch.zeros_like(pairs)).item() == 0


@pytest.mark.parametrize("scale", ["rms", "as_read"])
def test_the_length_of_the_features_does_not_matter_to_the_injections(scale):
    vdi = build("vdi", f"method.visual_context.scale={scale}", f"method.spatial_dynamic.scale={scale}")
    batch = make_batch(NEEDS)
    longer = {**batch, "video": 10 * batch["video"], "patches": 10 * batch["patches"]}
    losses, other = vdi.losses(batch), vdi.losses(longer)
    for name in ("visual_context", "spatial_dynamic"):
        assert (other[name].item() == pytest.approx(losses[name].item(), rel=1e-4)) == (scale == "rms")


def test_queries_without_nouns_take_no_part_in_the_injections():
    vdi = build("vdi")
    batch = make_batch(NEEDS)
    losses = vdi.losses(batch)
    changed = dict(batch)
    changed["query_tokens"] = batch["query_tokens"].clone()
    changed["query_tokens"][1] = 25 * batch["query_mask"][1]  # row 1 has no noun
    other = vdi.losses(changed)
    for name in ("visual_context", "spatial_dynamic"):
        torch.testing.assert_close(other[name], losses[name], atol=1e-6, rtol=1e-4)
        assert losses[name] > 0
    assert not torch.allclose(other["iou"], losses["iou"], atol=1e-6)
    nouns = {**batch, "noun_mask": torch.zeros_like(batch["noun_mask"])}
    assert vdi.losses(nouns)["visual_context"] == vdi.losses(nouns)["spatial_dynamic"] == 0


@pytest.mark.parametrize("query", ["static", "full", "learned"])
def test_injections_train_the_text_encoder_and_their_fc_by_the_dynamic_query(query):
    vdi = build("vdi", f"method.visual_context.decoder_query={query}")
    losses = vdi.losses(make_batch(NEEDS))
    text = {id(p) for p in vdi.text.parameters()}  # Algorithm 1
    for name in ("visual_context", "spatial_dynamic"):
        vdi.zero_grad()
        losses[name].backward(retain_graph=True)
        moved = {id(p) for p in vdi.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert moved & text
        assert moved - text == {id(p) for p in getattr(vdi, name).project.parameters()}
    dynamic = torch.randn(4, vdi.visual_context.project.in_features, requires_grad=True)
    video, usable = torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    frames = torch.randn(2, 5, vdi.visual_context.frames.in_features)
    vdi.visual_context(frames, video, dynamic.detach(), dynamic.detach(), dynamic, usable).backward()
    assert dynamic.grad is not None
    assert dynamic.grad.abs().sum() > 0


@pytest.mark.parametrize("target", ["fixed", "trained"])
def test_eq_2_sends_no_gradient_into_the_static_query_if_the_target_is_fixed(target):
    part = build("vdi", f"method.visual_context.target={target}").visual_context
    static = torch.randn(4, part.project.in_features, requires_grad=True)
    video, usable = torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    dynamic = torch.randn_like(static).requires_grad_()
    part(torch.randn(2, 5, part.frames.in_features), video, static, static, dynamic, usable).backward()
    assert (static.grad is None) == (target == "fixed")
    assert (part.decoder.norm2.weight.grad is None) == (target == "fixed")
    assert part.project.weight.grad is not None


@pytest.mark.parametrize("target", ["fixed", "trained"])
def test_a_fixed_target_is_the_same_at_every_step(target):
    """Also in training mode: dropout would move x-tilde more than another video does."""
    fixed = f"method.visual_context.target={target}", f"method.spatial_dynamic.target={target}"
    vdi = build("vdi", *fixed).train()
    maps = vdi.heatmaps(make_batch(NEEDS))
    query = torch.randn(4, 1, vdi.visual_context.project.in_features)
    memory = torch.randn(4, 5, query.shape[2])
    targets = [
        lambda: vdi.visual_context.decoder(query, torch.zeros_like(query), memory, memory, None),
        lambda: vdi.spatial_dynamic.dynamics(maps),
    ]
    for compute in targets:
        assert torch.equal(compute(), compute()) == (target == "fixed")


def test_retrieving_by_parts_of_the_query(monkeypatch):
    batch = make_batch(NEEDS)
    full, static, dynamic = (
        build("vdi", f"method.retrieve_by={name}") for name in ("full", "static", "dynamic")
    )
    scores = [method.predict(batch)["scores"] for method in (full, static, dynamic)]
    assert not torch.allclose(scores[0], scores[1], atol=1e-5)
    assert not torch.allclose(scores[1], scores[2], atol=1e-5)
    everything = {**batch, "noun_mask": batch["query_mask"]}
    torch.testing.assert_close(static.predict(everything)["scores"], scores[0])
    for name, value in full.losses(batch).items():  # what is learnt stays the same
        torch.testing.assert_close(static.losses(batch)[name], value)
    read = []
    for method in (full, static):
        monkeypatch.setattr(method.metrics, "update", lambda prediction, _: read.append(prediction["scores"]))
        method.validation_step(batch, 0)
    torch.testing.assert_close(read[0], read[1])  # and so is the choice of the weights


def test_the_text_encoder_learns_at_a_tenth_of_the_rate_and_may_be_frozen_first():
    vdi = build("vdi", "method.training.optimizer.lr=0.02")
    assert vdi.text_training.frozen_epochs == 0
    rest, text = vdi.configure_optimizers().param_groups
    assert (rest["lr"], text["lr"]) == (0.02, pytest.approx(0.002))
    trained = {id(p) for p in vdi.text.parameters() if p.requires_grad}
    assert {id(p) for p in text["params"]} == trained
    assert not trained & {id(p) for p in rest["params"]}
    vdi.text_training = replace(vdi.text_training, frozen_epochs=1)
    vdi.on_train_epoch_start()
    assert not any(p.requires_grad for p in vdi.text.parameters())
    vdi.text_training = replace(vdi.text_training, frozen_epochs=0)
    vdi.on_train_epoch_start()
    assert {id(p) for p in vdi.text.parameters() if p.requires_grad} == trained


def test_injecting_into_frozen_features_is_refused():
    cfg = compose("train", ["data=shapes", "recipe=none", "method=vdi"])
    cfg.method.text = {"_target_": "vmr_zoo.blocks.text_encoder.PooledTokens", "dim": 8}
    with pytest.raises(Exception, match="trains nothing") as error:
        instantiate(cfg.method)
    assert isinstance(error.value.__cause__, VmrError)


def test_leaving_out_hidden_tokens_changes_no_sentence_vector():
    batch = make_batch({"query_tokens", "noun_mask"})
    text = build("vdi").text
    mask, nouns = batch["query_mask"], batch["noun_mask"]
    visible = torch.stack((mask, mask & nouns, mask & ~nouns))
    packed = text(batch, visible)
    read: list[dict] = []
    hook = text.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs), with_kwargs=True
    )
    text(batch, visible)
    hook.remove()
    for one in read:
        assert (one["attention_mask"].bool() | (one["input_ids"] == text.end)).all()
    for row in range(len(mask)):  # each query alone, without padding, hidden tokens masked
        count = int(mask[row].sum())
        start, end = torch.tensor([text.start]), torch.tensor([text.end])
        ids = torch.cat((start, batch["query_tokens"][row, :count], end)).unsqueeze(0)
        seen = torch.nn.functional.pad(visible[:, row : row + 1, :count], (1, 1), value=True)
        alone = text._encode(ids, seen, torch.tensor([count + 1]))
        torch.testing.assert_close(packed[:, row], alone[:, 0], atol=1e-5, rtol=1e-4)
