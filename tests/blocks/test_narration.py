from __future__ import annotations

import torch

from vmr_zoo.blocks.narration import align_narration, pool_clips, snippet_of_clip


def test_a_snippet_takes_the_mean_of_its_sentences_or_the_nearest_one():
    # Four snippets, [0, .25), [.25, .5), ...: two captions in the first, none in the second and third, one at
    # the very end, and one padded sentence that would be nearest to the second.
    times = torch.tensor([0.05, 0.2, 1.0, 0.3])
    narration = torch.tensor([[[2.0], [4.0], [10.0], [99.0]]])
    mask = torch.tensor([[True, True, True, False]])
    spans = torch.stack((times, times), -1).unsqueeze(0)
    aligned = align_narration(narration, mask, spans, torch.tensor([[True, True, True, True, False]]))
    assert aligned[0, :, 0].tolist() == [3.0, 4.0, 10.0, 10.0, 0.0]


def test_a_time_on_an_edge_belongs_to_the_later_snippet_and_an_interval_to_all_that_it_overlaps():
    spans = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.0, 0.25]]])
    narration = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    present = torch.ones(1, 3, dtype=torch.bool)
    aligned = align_narration(narration, present, spans, torch.ones(1, 4, dtype=torch.bool))
    read = [set(weights.nonzero().flatten().tolist()) for weights in aligned[0]]
    assert read == [{2}, {1}, {0, 1}, {1}]


def test_pooling_loses_no_clip_and_leaves_short_rows_alone():
    mask = torch.arange(11) < torch.tensor([[11], [3]])
    video = torch.arange(11.0)[None, :, None].repeat(2, 1, 1)
    pooled, valid, _ = pool_clips(video * mask.unsqueeze(-1), mask, 4, "max", drop_last=False)
    edges = [round(k * 11 / 4) for k in range(1, 5)]
    assert pooled[0, :, 0].tolist() == [edge - 1.0 for edge in edges]
    assert pooled[1, :, 0].tolist() == [0.0, 1.0, 2.0, 0.0]
    assert valid.tolist() == [[True] * 4, [True, True, True, False]]
    assert (snippet_of_clip(mask, 4, drop_last=True)[0] == 4).sum() == 1  # the slip: the last clip is lost
