from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.bias_kde import BiasKDE
from vmr_zoo.methods.bias_query import BiasQuery
from vmr_zoo.methods.clip_zero_shot import ClipZeroShot
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


def sentences_and_moments(count: int = 300) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Two kinds of sentences in four dimensions: one has early moments, the other late ones."""
    generator = torch.Generator().manual_seed(0)
    late = torch.arange(count) % 3 == 0
    kinds = torch.eye(4)[:2][late.long()]
    sentences = kinds + 0.3 * torch.randn(count, 4, generator=generator)
    centre = torch.tensor([[0.1, 0.3], [0.6, 0.9]])[late.long()]
    moments = centre + 0.02 * torch.randn(count, 2, generator=generator)
    return sentences, moments, [f"v{number // 2}" for number in range(count)]


def asking(*vectors: list[float]) -> dict:
    query = torch.tensor(vectors)[:, None]
    return {"query": query, "query_mask": torch.ones(query.shape[:2], dtype=torch.bool)}


def test_bias_query_answers_what_similar_training_sentences_had():
    method = BiasQuery(training=Training(MomentMetrics()))
    method.fit_density(*sentences_and_moments())
    answer = method.predict(asking([1.0, 0, 0, 0], [0, 1.0, 0, 0]))
    assert torch.allclose(answer["spans"][:, 0], torch.tensor([[0.1, 0.3], [0.6, 0.9]]), atol=0.03)
    assert answer["spans"].shape == (2, 10, 2)
    assert answer["scores"][0, 0] > answer["scores"][0, 1] > 0
    copy = BiasQuery(training=Training(MomentMetrics()))
    copy.load_state_dict(method.state_dict())
    assert torch.equal(copy.predict(asking([1.0, 0, 0, 0]))["spans"], answer["spans"][:1])


def test_bias_query_does_not_depend_on_the_order_of_training():
    sentences, moments, videos = sentences_and_moments()
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(1))
    found = []
    for rows in (torch.arange(len(videos)), order):
        method = BiasQuery(training=Training(MomentMetrics()))
        method.fit_density(sentences[rows], moments[rows], [videos[row] for row in rows.tolist()])
        found.append(method)
    assert torch.equal(found[0].moments, found[1].moments)  # what the checkpoint holds
    assert torch.equal(found[0].widths, found[1].widths)
    asked = asking([0.4, 0.6, 0, 0])
    assert torch.equal(found[0].predict(asked)["spans"], found[1].predict(asked)["spans"])


def test_bias_query_chooses_its_kernel_without_the_other_sentences_about_a_video():
    """Two wordings of each event have one moment: within a video, similar sentences answer perfectly."""
    generator = torch.Generator().manual_seed(0)
    sentences = torch.randn(150, 16, generator=generator).repeat_interleave(2, 0)
    start = 0.6 * torch.rand(150, 1, generator=generator)
    moments = torch.cat((start, start + 0.3), 1).repeat_interleave(2, 0)
    method = BiasQuery(training=Training(MomentMetrics()))
    method.fit_density(sentences, moments, [f"v{number // 2}" for number in range(300)])
    assert method.widths[1] >= 0.3  # nearly equal weights: no sentence tells where its moment is
    apart = BiasQuery(training=Training(MomentMetrics()))
    apart.fit_density(sentences, moments, [f"v{number}" for number in range(300)])
    assert apart.widths[1] < 0.1


def test_bias_query_refuses_what_it_cannot_learn_from():
    sentences, moments, _ = sentences_and_moments()
    method = BiasQuery(training=Training(MomentMetrics()))
    with pytest.raises(VmrError, match="seen no training sentences"):
        method.predict(asking([1.0, 0, 0, 0]))
    with pytest.raises(VmrError, match="two or more videos"):
        method.fit_density(sentences, moments, ["v"] * len(moments))
    for options in ({"samples": 3}, {"bandwidths": []}, {"temperatures": [0.1, 0.0]}):
        with pytest.raises(VmrError, match="Expected"):
            BiasQuery(training=Training(MomentMetrics()), **options)


def resembling(noise: float = 0.0, rows: int = 1) -> dict:
    """Videos of 20 clips of 2 s; the clips 6 to 10, 12 to 22 s, resemble the sentence."""
    generator = torch.Generator().manual_seed(0)
    inside = torch.zeros(rows, 20)
    inside[:, 6:11] = 1
    inside += noise * torch.randn(rows, 20, generator=generator)
    return {
        "video": torch.stack((inside, torch.ones(rows, 20), torch.rand(rows, 20) * 9), -1),  # then motion
        "video_mask": torch.ones(rows, 20, dtype=torch.bool),
        "sentence": torch.tensor([[3.0, 0.0]]).expand(rows, -1),
        "clip_seconds": torch.full((rows,), 2.0),
        "duration": torch.full((rows,), 40.0),
        "spans": torch.tensor([[[0.3, 0.55]]]).expand(rows, -1, -1),
        "span_mask": torch.ones(rows, 1, dtype=torch.bool),
    }


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_clip_zero_shot_finds_the_clips_that_resemble_the_sentence():
    method = ClipZeroShot(training=Training(MomentMetrics()))
    with pytest.raises(VmrError, match="seen no selection split"):
        method.predict(resembling())
    method.validation_step(resembling(), 0)
    method.on_validation_epoch_end()
    assert method.chosen[0] == 0  # without noise, smoothing only blurs
    answer = method.predict(resembling())
    assert torch.allclose(answer["spans"][0, 0], torch.tensor([0.3, 0.55]))
    assert answer["saliency"][0].argsort(descending=True)[:5].sort().values.tolist() == [6, 7, 8, 9, 10]
    method.validation_step(resembling(0.3, rows=200), 0)
    method.on_validation_epoch_end()
    assert method.chosen[0] > 2  # seconds: with noise it does not
    method.chosen[:] = torch.tensor([0.0, 0.0])
    flat = resembling()
    flat["video"][..., 0] = 1
    assert method.predict(flat)["spans"][0, 0].tolist() == [0, 1]
    for options in ({"samples": 3}, {"powers": []}, {"smoothings": [-1.0]}):
        with pytest.raises(VmrError, match="Expected"):
            ClipZeroShot(training=Training(MomentMetrics()), **options)


def test_bias_query_and_clip_zero_shot_run_through_training_and_evaluation(train_toy, vmr, capsys):
    joint = "+features.joint_space=toy"
    for method, options in (("bias_query", []), ("clip_zero_shot", [joint])):
        code, run = train_toy(*options, name=method, method=method)
        assert code == 0
        header = json.loads((run / "metrics.json").read_text())["header"]
        assert (header["steps"], header["plateau"]) == (0, True)  # there is nothing to train
        assert vmr("eval", f"run={run}", "split=iid") == 0
        mine, again = run / "predictions.jsonl", run / "eval/iid-001/predictions.jsonl"
        assert again.read_text() in mine.read_text()
        assert vmr("eval", f"run={run}", "split=iid", "probe=other_query") == 0
    capsys.readouterr()
    assert train_toy(name="refused", method="clip_zero_shot")[0] == 2
    assert "an image-text model (features.joint_space)" in capsys.readouterr().err
