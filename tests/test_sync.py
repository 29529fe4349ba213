"""A training step never synchronises with the GPU: `sync.Detector` checks it on the CPU, torch on a GPU."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import lightning
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection

from batches import make_batch
from sync import DEVICE, Detector, to_device
from test_methods_contract import METHODS, build, configured, learns
from vmr_zoo.blocks.text_encoder import TransformerQueryEncoder
from vmr_zoo.engine.callbacks import LearningRate, NonFiniteLoss, SeedSteps, StepTime
from vmr_zoo.types import Batch

# Measuring coverage would slow the detector, which sees every operation; other tests run the same lines.
pytestmark = pytest.mark.no_cover

WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool((x > 0).any()),
    "if": lambda x: 1 if x.isnan().any() else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", torch.float64),
    "copy to the host": lambda x: torch.zeros(4).copy_(x),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: (x > 0).nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "a mask as index": lambda x: x[x > 0],
    "a mask as index, written": lambda x: x.clone().index_put_((x > 0,), x.new_zeros(())),
    "an index from the host": lambda x: x[torch.tensor([0, 1])],
    "an index of numbers": lambda x: x[[0, 1]],
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones_like(x).long()),
    "multinomial": lambda x: x.abs().multinomial(1),
    "bincount": lambda x: x.abs().long().bincount(),
    "one_hot": lambda x: torch.nn.functional.one_hot(x.abs().long()),
    "torch.tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "moved, blocking": lambda x: torch.zeros(4).to(x.device),
    "copied from the host": lambda x: x.clone().copy_(torch.zeros(4)),
}
NO_WAIT: dict[str, Callable[[Tensor], object]] = {
    "moved": lambda x: torch.zeros(4).to(x.device, non_blocking=True),
    "copied": lambda x: x.clone().copy_(torch.zeros(4), non_blocking=True),
    "made there": lambda x: torch.arange(4, device=x.device) + x.new_zeros(4) + x.new_full((), 2.0),
    "an index from there": lambda x: x[torch.arange(2, device=x.device)],
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones_like(x).long(), output_size=4),
    "chosen": lambda x: torch.where(x > 0, x, 0.0).masked_fill(x < 1, 2.0).sort().values.cumsum(0),
    "on the host": lambda x: (torch.ones(3).sum().item(), torch.ones(3).nonzero(), x.shape),
}


@pytest.mark.parametrize("what", WAITS)
def test_the_detector_finds(what: str) -> None:
    with Detector() as detector:
        x = to_device(torch.tensor([1.0, -1.0, 2.0, 3.0]))
        assert detector.found == []
        WAITS[what](x)
    assert detector.found


@pytest.mark.parametrize("what", NO_WAIT)
def test_the_detector_lets_pass(what: str) -> None:
    with Detector() as detector:
        NO_WAIT[what](to_device(torch.tensor([1.0, -1.0, 2.0, 3.0])))
    assert detector.found == []


def test_the_detector_sees_backward_and_refuses_a_mix_of_devices() -> None:
    with Detector() as detector:
        x = to_device(torch.ones(3)).requires_grad_()
        x.register_hook(lambda gradient: float(gradient[0]) * gradient)
        assert detector.found == []
        x.sum().backward()
        assert detector.found
        with pytest.raises(RuntimeError, match="on the host"):
            x + torch.ones(3)


class Pretended(CPUAccelerator):
    """An accelerator for the simulated device."""

    def setup_device(self, device: torch.device) -> None:
        """Needs nothing."""


class Found(lightning.Callback):
    """Collects the synchronisations in each step, from the loaded batch to the updated weights."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.steps = detector, []

    def on_train_batch_start(self, *args: object) -> None:
        self.detector.found.clear()

    def on_train_batch_end(self, *args: object) -> None:
        self.steps.append(list(self.detector.found))


@pytest.mark.parametrize("variant", ["paper", pytest.param("released", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_never_synchronises(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fused optimizers refuse a device that is not on torch's list.
    optimizers = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: [DEVICE.type])
    method = build(name, variant)
    if not learns(method):
        pytest.skip("has no parameters")
    one, several = make_batch(method.needs, moments=(1, 1, 1, 1)), make_batch(method.needs, seed=1)
    with Detector() as detector:
        found = Found(detector)
        trainer = lightning.Trainer(
            strategy=SingleDeviceStrategy(device=DEVICE, accelerator=Pretended()),
            callbacks=[SeedSteps(0), NonFiniteLoss(), LearningRate(), StepTime(), found],
            max_epochs=1,
            gradient_clip_val=0.1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        to_device(method)
        trainer.fit(method, DataLoader([one, several], batch_size=None))
    # With several moments per query, the matching costs go to the host, once for all layers.
    matched = hasattr(method, "criterion")
    assert found.steps == [[], ["_to_copy: a copy to the host"] if matched else []]


@pytest.mark.parametrize("name", METHODS)
def test_the_losses_are_those_of_the_cpu(name: str) -> None:
    method = build(name).eval()
    if not learns(method):
        pytest.skip("has no parameters")
    batch = make_batch(method.needs)
    with torch.no_grad():
        torch.manual_seed(0)
        expected = method.losses(batch)
        with Detector():
            torch.manual_seed(0)
            found = to_device(method).losses(to_device(batch))
            found = {key: value.cpu() for key, value in found.items()}
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("causal", [False, True], ids=["bert", "clip"])
def test_a_text_encoder_never_synchronises(causal: bool) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    if causal:
        config = CLIPTextConfig(**sizes, vocab_size=22, projection_dim=6, eos_token_id=21)
        model = CLIPTextModelWithProjection(config)
    else:
        model = BertModel(BertConfig(**sizes, vocab_size=22), add_pooling_layer=False)
    text = TransformerQueryEncoder(
        model=model, start=20, end=21, pooling="end" if causal else "mean", causal=causal
    ).eval()
    batch = make_batch({"query_tokens"})
    with torch.no_grad():
        expected = text(batch, batch["query_mask"].unsqueeze(0))
        with Detector() as detector:
            text, batch = to_device(text), to_device(batch)
            found = text(batch, batch["query_mask"].unsqueeze(0))
            assert detector.found == []
            found = found.cpu()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_never_synchronises_on_a_gpu(name: str, bfloat16: bool) -> None:
    method = build(name).cuda().train()
    if not learns(method):
        pytest.skip("has no parameters")
    optimizer = configured(method)

    def step(batch: Batch) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16):
            total = method.total_loss(method.losses(batch))
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 0.1)
        optimizer.step()

    def on_gpu(batch: Batch) -> Batch:
        return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in batch.items()}  # type: ignore[return-value]

    one, several = on_gpu(make_batch(method.needs, moments=(1, 1, 1, 1))), on_gpu(make_batch(method.needs))
    for batch in (one, several, one):  # the first step may synchronise to set up libraries
        step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(one)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            step(several)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in warned if "synchronizing" in str(w.message)]
    assert len(waits) == hasattr(method, "criterion")
