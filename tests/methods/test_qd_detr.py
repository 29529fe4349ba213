"""QD-DETR: wrong numbers of the authors are found, and its parts against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from golden.find import golden_case
from vmr_zoo.blocks.cross_encoder import Aligner, CrossEncoder, attention_mask
from vmr_zoo.blocks.projection import LayerSizes
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.mesm.losses import clip_entropy
from vmr_zoo.methods.qd_detr.saliency import Saliency, negative_pair_loss, rank_contrast


@pytest.mark.parametrize(
    "key", ["grad/input_vid_proj.0.net.1.weight", "output_fixmask/memory", "loss/loss_saliency"]
)
def test_a_wrong_number_fails(vmr, key, tmp_path) -> None:
    with np.load(golden_case("qd_detr_b.npz"), allow_pickle=False) as stored:
        wrong = {name: stored[name] for name in stored.files}
    wrong[key] = wrong[key] + np.float32(2e-4)
    np.savez(tmp_path / "wrong.npz", **wrong)
    assert vmr("parity", "method=qd_detr", f"case={tmp_path / 'wrong.npz'}") == 1


def lengths(*counts: int) -> torch.Tensor:
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def test_head_order_mask_takes_its_padding_from_another_row() -> None:
    queries, keys, heads = lengths(4, 2, 3), lengths(5, 3, 4), 2
    mask = attention_mask(queries, keys, heads, "head_order")
    for b in range(3):
        for h in range(heads):
            other = (b * heads + h) % 3
            for i in range(4):
                for j in range(5):
                    blocked = not queries[other, i] and not keys[other, j]
                    assert mask[b, h, i, j] == (keys[b, j] and not blocked)
    # Row 0 is full, yet loses pairs to the padding of row 1.
    assert not mask[0, 1].all()
    assert attention_mask(queries, keys, heads, "own_row") is keys
    with pytest.raises(VmrError, match="own_row"):
        Aligner(layers=2, padding_mask="rowwise")


def test_own_row_masks_make_a_row_independent_of_the_others() -> None:
    torch.manual_seed(0)
    encoder = CrossEncoder(LayerSizes(8, 2, 8, nn.PReLU, dropout=0.0), layers=2)
    x, keys = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    queries_mask, keys_mask = lengths(4, 2, 3), lengths(5, 3, 4)
    together = encoder(x, queries_mask, None, keys, keys_mask)
    alone = encoder(x[:1], queries_mask[:1], None, keys[:1], keys_mask[:1])
    torch.testing.assert_close(together[:1], alone)
    encoder.padding_mask = "head_order"
    assert (encoder(x, queries_mask, None, keys, keys_mask)[:1] - alone).abs().max() > 1e-3


def saliency(**changes: Any) -> Saliency:
    values = {
        "score": "token", "token_is_key": True, "negative_pair": "other_video", "rank_levels": 3,
        "rank_divisor": 12, "rank_temperature": 0.5, "margin": 0.2,
        "margin_pairs": "usable",
    }  # fmt: skip
    return Saliency(**values | changes)


def test_an_unknown_switch_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(VmrError, match="other_video, rolled"):
        saliency(negative_pair="same_video")


def test_negatives_are_about_another_video() -> None:
    video = torch.tensor([7, 7, 3, 7, 3])
    rows, exists = saliency().negative_rows(video)
    assert rows.tolist() == [2, 2, 3, 4, 0]
    assert exists.all()
    rows, exists = saliency().negative_rows(torch.tensor([4, 4]))
    assert rows.tolist() == [0, 1]
    assert not exists.any()
    assert saliency(negative_pair="rolled").negative_rows(video)[0].tolist() == [1, 2, 3, 4, 0]


def test_rank_contrast_is_the_mean_over_levels_of_a_softmax_over_both_passes() -> None:
    torch.manual_seed(0)
    mask = lengths(5, 3, 4)
    scores, negative = torch.randn(3, 5), torch.randn(3, 5)
    labels = torch.tensor([[0, 2, 3, 1, 0], [0, 0, 0, 9, 9], [1, 1, 0, 0, 9.0]]) * mask
    exists = torch.tensor([True, True, False])
    total = 0.0
    for b in range(3):
        valid = [scores[b, i] for i in range(5) if mask[b, i]]
        valid += [negative[b, i] for i in range(5) if mask[b, i] and exists[b]]
        normaliser = math.log(sum(math.exp(s / 0.5) for s in valid))
        for level in range(1, 4):
            positive = [
                scores[b, i] / 0.5 - normaliser for i in range(5) if mask[b, i] and labels[b, i] >= level
            ]
            if positive:
                total -= float(sum(positive)) / len(positive)
    found = rank_contrast(scores, negative, mask, exists, labels, saliency())
    assert found.item() == pytest.approx(total / 3 / 12, rel=1e-5)


def test_negative_pairs_and_entropy_stay_finite_and_skip_what_is_not_there() -> None:
    mask = lengths(2, 1)
    scores = torch.tensor([[200.0, -1.0], [3.0, 50.0]], requires_grad=True)
    loss = negative_pair_loss(scores, mask, torch.tensor([True, False]))
    assert loss.item() == pytest.approx((200 + math.log1p(math.exp(-1))) / 2)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad[1] == 0).all()
    inside = torch.tensor([[True, False], [False, False]])
    value = clip_entropy(torch.zeros(2, 2), inside, mask)
    assert value.item() == pytest.approx(math.log(2))
