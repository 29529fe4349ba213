from __future__ import annotations

import torch
from torch import nn

from vmr_zoo.blocks.decoder import AnchorDecoder, SpanHeads, logit
from vmr_zoo.blocks.projection import LayerSizes

SIZES = LayerSizes(16, 2, 24, nn.PReLU, dropout=0.0)


def test_refinement_moves_the_anchors_and_lets_gradients_reach_it() -> None:
    torch.manual_seed(0)
    decoder = AnchorDecoder(SIZES, layers=3, queries=5, refine=True)
    plain = AnchorDecoder(SIZES, layers=3, queries=5, refine=False)
    missing = plain.load_state_dict(decoder.state_dict(), strict=False)
    assert not missing.missing_keys
    memory, mask, position = torch.randn(2, 6, 16), torch.ones(2, 6).bool(), torch.randn(2, 6, 16)
    states, references = decoder(memory, mask, position)
    assert states.shape == (3, 2, 5, 16)
    assert references.shape == (3, 2, 5, 2)
    constant = plain(memory, mask, position)[1]
    torch.testing.assert_close(references[0], constant[0])
    assert (references[1] - constant[1]).abs().max() > 1e-2
    _, spans = SpanHeads(16)(states, references)
    spans.sum().backward()
    assert decoder.refine is not None
    assert decoder.refine.layers[-1].weight.grad.abs().sum() > 0


def test_content_replaces_the_empty_start() -> None:
    torch.manual_seed(0)
    memory, mask, position = torch.randn(2, 6, 16), torch.ones(2, 6).bool(), torch.randn(2, 6, 16)
    decoder = AnchorDecoder(SIZES, layers=2, queries=5)
    empty, _ = decoder(memory, mask, position)
    zeros, _ = decoder(memory, mask, position, torch.zeros(2, 5, 16))
    filled, _ = decoder(memory, mask, position, torch.randn(2, 5, 16))
    torch.testing.assert_close(zeros, empty)
    assert (filled - empty).abs().max() > 1e-2


def test_logit_inverts_the_sigmoid_within_its_clamp() -> None:
    x = torch.tensor([-3.0, 0.0, 2.0])
    torch.testing.assert_close(logit(x.sigmoid()), x)
    assert logit(torch.tensor([0.0, 1.0])).isfinite().all()
