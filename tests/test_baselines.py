from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.bias_kde import BiasKDE
from vmr_zoo.methods.predict_all import PredictAll
from vmr_zoo.metrics.moment import MomentMetrics


def batch(ids: list[str]) -> dict:
    return {
        "query_id": ids,
        "duration": torch.full((len(ids),), 30.0),
        "video_mask": torch.ones(len(ids), 4, dtype=torch.bool),
    }


def moments(count: int = 4000) -> torch.Tensor:
    """Two clusters: three quarters near (0.1, 0.3), a quarter near (0.6, 0.9)."""
    rng = np.random.default_rng(0)
    centre = np.where(rng.random((count, 1)) < 0.75, [[0.1, 0.3]], [[0.6, 0.9]])
    return torch.tensor(centre + rng.normal(scale=0.02, size=(count, 2)))


def fitted(seed: int = 0, samples: int = 10) -> BiasKDE:
    method = BiasKDE(training=Training(MomentMetrics()), seed=seed, samples=samples)
    method.fit_density(moments())
    return method


def test_predict_all_answers_the_whole_video_once():
    answer = PredictAll(training=Training(MomentMetrics())).predict(batch(["a", "b"]))
    assert answer["spans"].shape == (2, 5, 2)
    assert answer["spans"][:, 0].tolist() == [[0, 1], [0, 1]]
    assert not answer["spans"][:, 1:].any()
    assert answer["scores"].tolist() == [[1, 0, 0, 0, 0]] * 2


def test_bias_kde_draws_from_the_density_of_the_training_moments():
    answer = fitted().predict(batch([f"q{i}" for i in range(400)]))
    spans = answer["spans"].reshape(-1, 2)
    assert ((spans >= 0) & (spans <= 1)).all()
    assert (spans[:, 0] < spans[:, 1]).all()
    early = spans[:, 0] < 0.4
    assert early.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.allclose(spans[early].median(0).values, torch.tensor([0.1, 0.3]), atol=0.03)
    assert torch.allclose(spans[~early].median(0).values, torch.tensor([0.6, 0.9]), atol=0.03)
    # The first is a fair draw, not the density's peak.
    assert (answer["spans"][:, 0, 0] < 0.4).float().mean().item() == pytest.approx(0.75, abs=0.07)
    assert (answer["scores"].diff(dim=1) < 0).all()


def test_a_draw_depends_on_seed_and_query_alone():
    together = fitted().predict(batch(["a", "b", "c"]))["spans"]
    alone = fitted().predict(batch(["b"]))["spans"]
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(fitted(seed=1).predict(batch(["b"]))["spans"], alone)


def test_the_checkpoint_holds_the_density():
    copy = BiasKDE(training=Training(MomentMetrics()))
    copy.load_state_dict(fitted().state_dict())
    assert torch.equal(copy.predict(batch(["a"]))["spans"], fitted().predict(batch(["a"]))["spans"])


def test_bias_kde_refuses_what_has_no_density():
    with pytest.raises(VmrError, match="seen no training moments"):
        BiasKDE(training=Training(MomentMetrics())).predict(batch(["a"]))
    with pytest.raises(VmrError, match="vary independently"):
        fitted().fit_density(torch.tensor([[0.1, 0.2], [0.2, 0.3], [0.3, 0.4]]))
    with pytest.raises(VmrError, match="samples >= 5"):
        BiasKDE(training=Training(MomentMetrics()), samples=3)


def test_both_run_through_training_and_evaluation(train_toy, vmr):
    for method in ("predict_all", "bias_kde"):
        code, run = train_toy(name=method, method=method)
        assert code == 0
        assert vmr("eval", f"run={run}", "split=iid") == 0
        mine, again = run / "predictions.jsonl", run / "eval/iid-001/predictions.jsonl"
        assert again.read_text() in mine.read_text()
    assert len(load_file(run / "model.safetensors")["moments"]) == 24
