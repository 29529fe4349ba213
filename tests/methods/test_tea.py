from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import open_dict

from batches import NARRATION_DIM, QUERY_DIM, VIDEO_DIM, make_batch, row, stretch
from vmr_zoo.config.compose import compose
from vmr_zoo.methods.emb import EMB
from vmr_zoo.methods.tea import TEA, align_narration

OFF = ["method.merge=null", "method.alpha=0"]


def build(name: str, *overrides: str, seed: int = 0) -> EMB:
    cfg = compose(
        "train",
        [
            "data=charades_cd",
            "features=action_labels",
            f"method={name}",
            "method.network.dim=16",
            *overrides,
        ],
    )
    with open_dict(cfg):
        cfg.features.video_dim, cfg.features.query_dim = VIDEO_DIM, QUERY_DIM
        cfg.features.narration_dim = NARRATION_DIM
    torch.manual_seed(seed)
    return instantiate(cfg.method).eval()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_without_narrations_it_is_emb(variant):
    batch = make_batch()
    tea, emb = build("tea", f"variant={variant}", *OFF), build("emb", f"variant={variant}", seed=1)
    assert tea.needs == emb.needs == frozenset()
    emb.load_state_dict(tea.state_dict())
    for key, value in emb.predict(batch).items():
        assert torch.equal(value, tea.predict(batch)[key])
    for key, value in emb.losses(batch, 0.5).items():
        assert torch.equal(value, tea.losses(batch, 0.5)[key])


@pytest.mark.parametrize(
    "overrides",
    [[], ["method/merge=add"], ["method/merge=attention"], ["method.alpha=0"], ["method.merge=null"]],
    ids=["default", "add", "attention", "only merging", "only paragraph"],
)
@pytest.mark.parametrize("threshold", [0.99, 0.0])
def test_narrations_matter_padding_does_not(overrides, threshold):
    method = build("tea", *overrides)
    batch = make_batch(method.needs)
    plain, padded = method.losses(batch, threshold), method.losses(stretch(batch, extra=9), threshold)
    other = {**batch, "narration": batch["narration"].flip(2)}
    for name, value in plain.items():
        torch.testing.assert_close(padded[name], value, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(method.losses(other, threshold)["endpoint"], plain["endpoint"], atol=1e-4)
    together = method.predict(batch)
    for index in range(4):
        alone = method.predict(row(batch, index))
        torch.testing.assert_close(alone["spans"][0], together["spans"][index], atol=1e-5, rtol=0)
    method.total_loss(plain).backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []


def test_both_branches_add_up_by_alpha():
    method = build("tea", "method.alpha=0.25")
    assert isinstance(method, TEA)
    output = method(make_batch(method.needs))
    start, end = method.endpoint_probabilities(output)
    for curve in (start, end):
        torch.testing.assert_close(curve.sum(1), torch.full((4,), 1.25))
        assert (curve[~output.mask] == 0).all()
    # Eq. 15 on the sum itself, with the annotation as the only candidate.
    members = torch.zeros_like(output.mask)
    members[:, 0] = True
    log_probability = method.boundary._log_probability(
        [(branch.weight, branch.start) for branch in output.endpoints], members
    )
    torch.testing.assert_close(log_probability.exp(), start[:, 0])


def test_a_missing_narration_width_is_named():
    cfg = compose("train", ["data=charades_cd", "features=i3d", "method=tea"])
    with pytest.raises(Exception, match=r"narration_dim is not set"):
        instantiate(cfg.method)


def test_a_snippet_takes_the_mean_of_its_sentences_or_the_nearest_one():
    # Four snippets, [0, .25), [.25, .5), ...: two captions in the first, none in the second and third, one at
    # the very end, and one padded sentence that would be nearest to the second snippet.
    times = torch.tensor([0.05, 0.2, 1.0, 0.3])
    narration = torch.tensor([[[2.0], [4.0], [10.0], [99.0]]])
    mask = torch.tensor([[True, True, True, False]])
    spans = torch.stack((times, times), -1).unsqueeze(0)
    aligned = align_narration(narration, mask, spans, torch.tensor([[True, True, True, True, False]]))
    assert aligned[0, :, 0].tolist() == [3.0, 4.0, 10.0, 10.0, 0.0]


def test_a_time_on_an_edge_belongs_to_the_later_snippet_and_an_interval_to_all_whose_centre_it_holds():
    spans = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.0, 0.25]]])
    narration = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    present = torch.ones(1, 3, dtype=torch.bool)
    aligned = align_narration(narration, present, spans, torch.ones(1, 4, dtype=torch.bool))
    read = [set(weights.nonzero().flatten().tolist()) for weights in aligned[0]]
    assert read == [{2}, {1}, {0, 1}, {1}]


@pytest.mark.parametrize("seconds", [22, 30, 41])
def test_windows_that_meet_between_snippets_never_mix(seconds):
    """In float32 many of these edges are not exactly at a snippet's edge."""
    start = torch.arange(0, seconds, 2)
    spans = torch.stack((start, (start + 2).clamp(max=seconds)), 1).float() / seconds
    present = torch.ones(1, len(start), dtype=torch.bool)
    aligned = align_narration(
        torch.eye(len(start))[None], present, spans[None], torch.ones(1, seconds, dtype=torch.bool)
    )
    assert aligned[0].argmax(1).tolist() == [second // 2 for second in range(seconds)]
    assert (aligned.amax(2) == 1).all()


def test_a_sentence_shorter_than_a_snippet_belongs_to_the_one_around_its_centre():
    spans = torch.tensor([[[0.3, 0.36], [0.45, 0.6]]])
    aligned = align_narration(
        torch.eye(2)[None], torch.ones(1, 2, dtype=torch.bool), spans, torch.ones(1, 4, dtype=torch.bool)
    )
    assert aligned[0, 1].tolist() == [1.0, 0.0]
    assert aligned[0, 2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("seconds", range(2, 129))
def test_one_caption_a_second_belongs_to_the_snippet_that_begins_with_it(seconds):
    """In float32 the times of 282 of these captions are just below the edge of their snippet."""
    times = torch.arange(seconds).float() / seconds
    present = torch.ones(1, seconds, dtype=torch.bool)
    aligned = align_narration(
        torch.eye(seconds)[None], present, torch.stack((times, times), 1)[None], present
    )
    assert torch.equal(aligned[0], torch.eye(seconds))
