"""Losses and gradients stay finite on edge cases; bfloat16, fused and compiled steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from batches import make_batch, row
from test_methods_contract import METHODS, build, configured, learns
from vmr_zoo.types import Batch

# Measuring coverage doubles the time of torch's compiler; the contract's tests run the same lines.
pytestmark = pytest.mark.no_cover


def one_clip(batch: Batch) -> Batch:
    """Every video has one valid clip; everything aligned with clips has one valid entry."""
    for mask in ("video_mask", "saliency_mask"):
        if mask in batch:
            batch[mask] = batch[mask].clone()  # type: ignore[literal-required]
            batch[mask][:, 1:] = False  # type: ignore[literal-required]
    for field in ("video", "patches", "saliency"):
        if field in batch:
            batch[field] = batch[field].clone()  # type: ignore[literal-required]
            batch[field][:, 1:] = 0  # type: ignore[literal-required]
    if "shift_order" in batch:
        batch["shift_order"] = torch.arange(batch["shift_order"].shape[1]).expand_as(batch["shift_order"])
    return batch


def identical_clips(batch: Batch) -> Batch:
    batch["video"] = torch.ones_like(batch["video"]) * batch["video_mask"][..., None]
    return batch


def with_spans(start: float, end: float) -> Callable[[Batch], Batch]:
    def change(batch: Batch) -> Batch:
        for field in ("spans", "shifted_spans"):
            if field in batch:
                span = torch.tensor([start, end]).expand_as(batch[field])  # type: ignore[literal-required]
                batch[field] = span * batch["span_mask"][..., None]  # type: ignore[literal-required]
        return batch

    return change


CHANGES: dict[str, Callable[[Batch], Batch]] = {
    "one clip": one_clip,
    "one query": lambda batch: row(batch, 1),
    "identical clips": identical_clips,
    "moments as long as the video": with_spans(0.0, 1.0),
    "moments of no length": with_spans(0.5, 0.5),
    "moments of no length at the end": with_spans(1.0, 1.0),
}


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_finite(name: str, bfloat16: bool) -> None:
    for edge, change in (CHANGES | {"several windows": lambda batch: batch}).items():
        method = build(name).train()
        if not learns(method):
            pytest.skip("has no parameters")
        optimizer = configured(method)
        moments = (3, 4, 1, 5) if edge == "several windows" else (1, 2, 1, 3)
        for step in range(1 if bfloat16 else 2):  # few CPUs compute in bfloat16; others are slow at it
            batch = change(make_batch(method.needs, seed=step, moments=moments))
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                losses = method.losses(batch)
                total: Tensor = method.total_loss(losses)
            odd = {key: value.item() for key, value in losses.items() if not value.isfinite()}
            assert not odd, f"{edge}, step {step}: {odd}"
            optimizer.zero_grad()
            total.backward()
            odd_gradients = [
                key
                for key, p in method.named_parameters()
                if p.grad is not None and not p.grad.isfinite().all()
            ]
            assert odd_gradients == [], f"{edge}, step {step}"
            optimizer.step()


# EMB and TEA have another optimizer in each variant.
@pytest.mark.parametrize(
    ("name", "variant"), [*((name, "paper") for name in METHODS), ("emb", "released"), ("tea", "released")]
)
def test_bfloat16_a_fused_optimizer_and_clipping_train_together(name: str, variant: str) -> None:
    method = build(name, variant)
    if not learns(method):
        pytest.skip("has no parameters")
    before = {key: value.clone() for key, value in method.state_dict().items()}
    trainer = lightning.Trainer(
        max_steps=1,
        precision="bf16-mixed",
        gradient_clip_val=0.1,
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, DataLoader([make_batch(method.needs)], batch_size=None))
    after = method.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    assert all(group["fused"] for group in trainer.optimizers[0].param_groups)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("moment_detr", "mmn") else pytest.mark.slow)
        for name in METHODS
    ],
)
def test_compiling_keeps_the_losses_and_the_names_of_the_weights(name: str) -> None:
    found, traced = [], []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        """Traces as any backend does, but compiles nothing."""
        traced.append(graph)
        return graph.forward

    for compiled in (False, True):
        method = build(name).eval()
        if compiled:
            method.compile(backend=backend)
        torch.manual_seed(0)
        found.append((list(method.state_dict()), method.losses(make_batch(method.needs))))
    assert bool(traced) == learns(method)
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1][1], found[0][1], atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
@pytest.mark.parametrize("name", METHODS)
def test_inductor_computes_the_same_losses_and_gradients(name: str) -> None:
    method = build(name).eval()
    if not learns(method):
        pytest.skip("has no parameters")
    batches = [make_batch(method.needs), row(make_batch(method.needs, seed=1), 1)]

    def steps() -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        found = []
        for batch in batches:
            torch.manual_seed(0)
            losses = method.losses(batch)
            method.zero_grad()
            method.total_loss(losses).backward()
            gradients = {key: p.grad.clone() for key, p in method.named_parameters() if p.grad is not None}
            found.append(({key: value.detach() for key, value in losses.items()}, gradients))
        return found

    plain = steps()
    method.compile()
    torch.testing.assert_close(steps(), plain, atol=1e-4, rtol=1e-3)
