from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from golden.find import golden_case
from vmr_zoo.blocks.span_predictor import Proposals, span_to_indices
from vmr_zoo.config.compose import compose
from vmr_zoo.methods.emb import (
    EMB,
    ElasticBoundary,
    SnippetPooling,
    choose_proposal,
    overlap_threshold,
    set_log_probability,
)


@pytest.fixture(scope="module")
def aux():
    return np.load(golden_case("emb_aux.npz"), allow_pickle=False)


@pytest.mark.parametrize("rows", [57, 128, 129, 150, 200, 300, 500, 1000])
def test_long_videos_are_pooled_as_in_the_released_code(aux, rows):
    longest = 1000  # one padded width for all rows shows that padding has no effect
    video = torch.zeros(2, longest, 3)
    video[0, :rows] = torch.from_numpy(aux[f"downsample/in_{rows}"])
    video[1] = 7.0
    mask = torch.arange(longest) < torch.tensor([[rows], [longest]])
    pooled, valid, snippet = SnippetPooling(128, "mean", drop_last_clip=True)(video, mask)
    expected = torch.from_numpy(aux[f"downsample/out_{rows}"])
    torch.testing.assert_close(pooled[0, : len(expected)], expected, atol=1e-5, rtol=1e-5)
    assert valid[0].sum() == len(expected)
    assert (pooled[0, len(expected) :] == 0).all()
    assert (snippet[0, :rows].diff() >= 0).all()


def test_times_become_indices_as_in_the_released_code(aux):
    units = aux["time_to_index/num_units"]
    duration = torch.from_numpy(aux["time_to_index/duration"])
    span = torch.from_numpy(np.stack([aux["time_to_index/start_time"], aux["time_to_index/end_time"]], 1))
    mask = torch.arange(units.max()) < torch.from_numpy(units)[:, None]
    indices = span_to_indices(span / duration[:, None], mask)
    expected = np.stack([aux["time_to_index/start_index"], aux["time_to_index/end_index"]], 1)
    assert indices.tolist() == expected.tolist()
    seconds = (indices + torch.tensor([0, 1])) / torch.from_numpy(units)[:, None] * duration[:, None]
    times = np.stack([aux["index_to_time/start_time"], aux["index_to_time/end_time"]], 1)
    np.testing.assert_allclose(seconds.numpy(), times, atol=1e-4)


@pytest.mark.parametrize(("key", "epochs"), [("epoch_0_to_99_of_100", 100), ("epoch_0_to_9_of_10", 10)])
def test_the_overlap_threshold_falls_as_in_the_released_code(aux, key, epochs):
    ours = [overlap_threshold(epoch / epochs) for epoch in range(epochs)]
    np.testing.assert_allclose(ours, aux[f"threshold/{key}"], atol=1e-9)


def test_the_learning_rate_decays_as_in_the_released_code(aux):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    schedule = EMB.linear_decay(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = aux["lr/100_total_steps"]
    np.testing.assert_allclose(np.array(rates) / rates[0], expected / expected[0], atol=1e-6)


def test_the_threshold_follows_the_trainer():
    class Trainer:
        max_epochs, current_epoch = 10, 5

    cfg = compose(
        "train", ["data=charades_cd", "features=action_labels", "method=emb", "method.network.dim=16"]
    )
    method = instantiate(cfg.method)
    assert method.progress() == 0.0
    method._trainer = Trainer()
    assert method.progress() == 0.5
    assert overlap_threshold(method.progress()) == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["emb", "tea"])
def test_the_elastic_boundary_acts_long_before_a_plateau(name):
    """The budget of 120 epochs is many times what these trainings need: theta may not follow it."""

    class Trainer:
        max_epochs, current_epoch = 120, 6

    method = instantiate(compose("train", ["data=shapes", f"method={name}"]).method)
    method._trainer = Trainer()
    assert overlap_threshold(method.progress()) == pytest.approx(0.75)
    Trainer.max_epochs = 8
    assert method.progress() == 6 / 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.order=x", r"Unknown SpanNetwork\.order 'x'"),
        ("network.unit=equation6", "Did you mean equation_6"),
        ("network.guide_placement=x", r"Unknown SpanNetwork\.guide_placement"),
        ("snippets.pooling=x", r"Unknown SnippetPooling\.pooling"),
        ("branch.gate=x", r"Unknown EndpointBranch\.gate"),
        ("proposals.block_padding=x", r"Unknown ProposalBranch\.block_padding"),
        ("boundary.end_set=x", r"Unknown ElasticBoundary\.end_set"),
        ("proposals=null", "turn off both"),
    ],
)
def test_an_impossible_setting_is_refused(override, message):
    cfg = compose("train", ["data=charades_cd", "features=action_labels", "method=emb", f"method.{override}"])
    with pytest.raises(Exception, match=message):
        instantiate(cfg.method)


def test_pooling_loses_no_clip_and_leaves_short_rows_alone():
    mask = torch.arange(11) < torch.tensor([[11], [3]])
    video = torch.arange(11.0)[None, :, None].repeat(2, 1, 1)
    pooled, valid, _ = SnippetPooling(4, "max", drop_last_clip=False)(video * mask.unsqueeze(-1), mask)
    edges = [round(k * 11 / 4) for k in range(1, 5)]
    assert pooled[0, :, 0].tolist() == [edge - 1.0 for edge in edges]
    assert pooled[1, :, 0].tolist() == [0.0, 1.0, 2.0, 0.0]
    assert valid.tolist() == [[True] * 4, [True, True, True, False]]
    snippet = SnippetPooling(4, "max", drop_last_clip=True).snippet_of_clip(mask)
    assert (snippet[0] == 4).sum() == 1  # the bug: the last clip is lost


MOMENT = torch.tensor([[3, 6]])
MASK = torch.arange(12) < torch.tensor([[10]])


def boundary(end_set="inclusive", highlight_end="max", extension=0.0):
    return ElasticBoundary(
        end_set=end_set,
        highlight_end=highlight_end,
        extension=extension,
        positive_weight=1.0,
        rank_low=0.3,
        rank_high=0.7,
        theta_epochs=None,
    )


def members(mask: torch.Tensor) -> list[int]:
    return mask[0].nonzero().flatten().tolist()


def test_the_best_proposal_that_overlaps_enough_is_chosen_else_the_annotation():
    proposals = Proposals(
        bounds=torch.tensor([[[0, 1], [2, 5], [3, 7], [3, 6]]]),
        mask=torch.tensor([[True, True, True, False]]),
        logits=torch.tensor([[9.0, 3.0, 2.0, 8.0]]),
    )
    assert choose_proposal(proposals, MOMENT, 0.5).tolist() == [[2, 5]]  # IoU 3/5
    assert choose_proposal(proposals, MOMENT, 0.7).tolist() == [[3, 7]]  # IoU 4/5
    assert choose_proposal(proposals, MOMENT, 0.9).tolist() == [[3, 6]]


def test_candidate_sets_extend_from_annotation_to_proposal():
    starts, ends = boundary().endpoint_sets(MOMENT, torch.tensor([[1, 8]]), 12)
    assert members(starts) == [1, 2, 3]
    assert members(ends) == [6, 7, 8]
    assert members(boundary("one_more").endpoint_sets(MOMENT, torch.tensor([[1, 8]]), 12)[1]) == [6, 7, 8, 9]
    assert members(boundary().endpoint_sets(MOMENT, MOMENT, 12)[1]) == [6]
    assert members(boundary().endpoint_sets(MOMENT, torch.tensor([[4, 4]]), 12)[1]) == [4, 5, 6]


def test_the_foreground_spans_both_sets_as_equation_16_says():
    shorter = torch.tensor([[4, 5]])
    assert members(boundary().highlight_labels(MOMENT, shorter, MASK)) == [3, 4, 5, 6]
    smaller = boundary(highlight_end="min")
    assert members(smaller.highlight_labels(MOMENT, shorter, MASK)) == [3, 4, 5]
    longer = torch.tensor([[0, 11]])
    assert members(boundary(extension=0.1).highlight_labels(MOMENT, longer, MASK)) == list(range(10))


def test_the_probability_of_a_set_is_exact_where_floats_underflow():
    logits = torch.tensor([[0.0, 200.0, -1e30]])
    inside = torch.tensor([[True, False, False]])
    assert set_log_probability(logits, inside).item() == -200.0
    assert set_log_probability(logits, ~inside).item() == 0.0
