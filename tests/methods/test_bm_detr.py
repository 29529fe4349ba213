"""BM-DETR: its four components, and that it equals Moment-DETR without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from batches import make_batch
from test_methods_contract import build
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.bm_detr.alignment import pair_contrast
from vmr_zoo.methods.bm_detr.background import frame_probability_loss
from vmr_zoo.methods.bm_detr.method import BMDETR


def bm_detr(variant: str = "paper", **changes: Any) -> BMDETR:
    built = build("bm_detr", variant, changes=changes)
    assert isinstance(built, BMDETR)
    return built.eval()


def run(method: BMDETR, **changes: Any) -> Any:
    batch = make_batch(method.needs) | changes
    return method.run_rows(method.training_rows(batch).batch)


def test_without_its_parts_it_is_moment_detr() -> None:
    base = build("moment_detr", seed=5).eval()
    off = bm_detr(
        background=None,
        learnable_spans=None,
        shifting=None,
        network={
            "activation": {"_target_": "torch.nn.ReLU", "_partial_": True},
            "scale_positions": False,
        },
        criterion={"cost_l1": 10.0, "cost_giou": 1.0, "cost_class": 4.0, "every_layer": True},
        training={"loss_weights": {"frame_probability": None, "semantic": None}},
    )
    assert off.needs == base.needs
    off.load_state_dict(base.state_dict())  # the same parameters, by name
    batch = make_batch(base.needs)
    expected, found = base.predict(batch), off.predict(batch)
    for key, value in expected.items():
        assert torch.equal(found[key], value)
    torch.manual_seed(0)
    losses = base.losses(batch)
    torch.manual_seed(0)
    assert {k: float(v.detach()) for k, v in off.losses(batch).items()} == {
        k: float(v.detach()) for k, v in losses.items()
    }


def test_frames_follow_equations_6_to_8() -> None:
    method = bm_detr(shifting=None, background={"frame_weight": "softmax"})
    output = run(method)
    mask = make_batch()["video_mask"]
    frames = output.frames
    joint = frames.positive * (1 - frames.negative) * mask
    torch.testing.assert_close(frames.joint, joint)
    for row, clips in enumerate(mask.sum(1).tolist()):
        torch.testing.assert_close(frames.attention[row, :clips], joint[row, :clips].softmax(0))
    assert (frames.attention * ~mask).sum() == 0
    clips = mask.shape[1]
    torch.testing.assert_close(
        output.memory[:, :clips], frames.attention.unsqueeze(-1) * output.encoded.video
    )
    assert torch.equal(output.memory[:, clips:], output.encoded.query)
    # Row 1 has no negative query: P(f | Q+) alone.
    torch.testing.assert_close(frames.joint[1], frames.positive[1] * mask[1])
    assert not torch.allclose(frames.joint[0], frames.positive[0] * mask[0])


def test_the_decoder_reads_weighted_or_raw_memory() -> None:
    for memory, changes in (("weighted", True), ("raw", False)):
        method = bm_detr(decoder_memory=memory, shifting=None)
        with_negative = run(method).logits
        without = run(method, negative_query_mask=torch.zeros(4, 5, dtype=torch.bool)).logits
        assert torch.equal(with_negative, without) != changes


def test_times_length_keeps_the_scale_of_the_features() -> None:
    literal, scaled = (
        run(bm_detr(shifting=None, background={"frame_weight": "softmax"})),
        run(bm_detr(shifting=None, background={"frame_weight": "softmax_times_length"})),
    )
    clips = make_batch()["video_mask"].sum(1)
    torch.testing.assert_close(
        scaled.frames.weighted, literal.frames.weighted * clips[:, None, None].float(), atol=1e-5, rtol=1e-4
    )


def test_padded_softmax_depends_on_padding_and_masked_does_not() -> None:
    batch = make_batch({"negative_query", "saliency"})
    for variant, equal in (("paper", True), ("released", False)):
        method = bm_detr(variant, shifting=None)
        short = {k: v[3:] for k, v in batch.items()}
        cut = {**short, "video": short["video"][:, :7], "video_mask": short["video_mask"][:, :7]}
        padded, tight = (
            method(
                method.encoder.project_clips(b["video"], b["video_mask"]),
                b["video_mask"],
                b["query"],
                b["query_mask"],
            )
            for b in (short, cut)
        )
        close = torch.allclose(padded.frames.attention[:, :7], tight.frames.attention, atol=1e-6)
        assert close == equal


def test_prediction_needs_no_negative_and_encodes_once() -> None:
    method = bm_detr()
    passes = []
    method.encoder.encoder.register_forward_hook(lambda *_: passes.append(1))
    batch = make_batch(method.needs)
    full = method.predict(batch)
    assert len(passes) == 1
    plain = method.predict(make_batch())
    assert torch.equal(full["spans"], plain["spans"])


def test_the_shifted_copy_moves_clips_targets_and_ratings_together() -> None:
    batch = make_batch({"negative_query", "shift", "saliency", "all_spans"})
    order = batch["shift_order"]
    for variant in ("paper", "released"):
        rows = bm_detr(variant).training_rows(batch)
        assert rows.copies == 2
        video = rows.batch["video"]
        for row in range(4):
            torch.testing.assert_close(video[4 + row, :, :-2], batch["video"][row, order[row]])
            tef = video[row, :, -2:]
            torch.testing.assert_close(video[4 + row, :, -2:], tef if variant == "paper" else tef[order[row]])
            assert torch.equal(rows.inside[4 + row], rows.inside[row, order[row]])
            assert torch.equal(rows.batch["saliency"][4 + row], batch["saliency"][row, order[row]])
        assert torch.equal(rows.batch["spans"][4:], batch["shifted_spans"])
        assert torch.equal(rows.batch["negative_query"][4:], batch["negative_query"])


def test_ratings_past_the_end_of_the_videos_stay_in_the_shifted_copy() -> None:
    batch = make_batch({"negative_query", "shift", "saliency", "all_spans"})
    past = torch.tensor([[5.0, 0.0], [0.0, 7.0], [1.0, 2.0], [0.0, 0.0]])
    longer = {
        "saliency": torch.cat((batch["saliency"], past), 1),
        "saliency_mask": torch.cat((batch["saliency_mask"], past > 0), 1),
    }
    rows = bm_detr("released").training_rows(batch | longer)
    copy = rows.batch["saliency"][4:]
    assert torch.equal(copy[:, -2:], past)
    assert torch.equal(copy[:, :-2], batch["saliency"].gather(1, batch["shift_order"]))
    assert torch.equal(rows.batch["saliency_mask"][4:, -2:], past > 0)


def test_losses_are_the_mean_of_both_copies() -> None:
    method = bm_detr(training={"loss_weights": {"margin": None}})  # its pairs are drawn
    batch = make_batch(method.needs)
    both = method.losses(batch)
    identity = torch.arange(batch["video"].shape[1]).repeat(4, 1)
    twice = method.losses(batch | {"shift_order": identity, "shifted_spans": batch["spans"]})
    once = bm_detr(training={"loss_weights": {"margin": None}}, shifting=None)
    once.load_state_dict(method.state_dict())
    alone = once.losses(batch)
    for name, value in alone.items():
        torch.testing.assert_close(twice[name], value, atol=1e-5, rtol=1e-5)
    assert any(not torch.allclose(both[name], alone[name]) for name in alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_memory": "wieghted"}, r"Unknown BMDETR.decoder_memory .* Did you mean weighted"),
        ({"background": {"frame_softmax": "maksed"}}, "Unknown FrameWeighting.frame_softmax .* mean masked"),
        ({"alignment": {"pooling": "liner"}}, "Unknown SemanticAlignment.pooling .* mean linear"),
        ({"shifting": {"tef": "travel"}}, "Unknown ShiftedCopy.tef .* mean travels"),
        ({"span_unit": {"unit": "clip"}}, "Unknown SpanUnit.unit .* mean clips"),
        ({"background": None}, "training.loss_weights.frame_probability=null"),
    ],
)
def test_wrong_switches_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        bm_detr(**changes)
    assert isinstance(caught.value.__cause__ or caught.value, VmrError)


def test_span_unit_clips_scales_targets_and_predictions_as_released() -> None:
    method = bm_detr("released", span_unit={"max_clips": 6})
    batch = make_batch()
    seconds = batch["spans"] * batch["duration"][:, None, None]
    read = batch["video_mask"].sum(1) * 2.0
    targets = method.span_unit.targets(batch["spans"], batch)
    torch.testing.assert_close(targets, seconds / read[:, None, None])
    longest = batch["duration"].clamp(max=12.0)
    torch.testing.assert_close(method.span_unit.scale(batch), longest / batch["duration"])


@pytest.mark.parametrize("name", ["qd_detr", "moment_detr"])
def test_the_released_baselines_predict_fractions_of_the_whole_video(name: str) -> None:
    batch = make_batch() | {"clip_seconds": torch.full((4,), 1 / 6), "duration": torch.full((4,), 30.0)}
    assert build(name, "released").span_unit.scale(batch) is None, "30 s at 6 clips per second are 180 clips"


def test_a_weight_without_a_loss_and_a_loss_without_a_weight_are_named() -> None:
    method = bm_detr()
    losses = method.losses(make_batch(method.needs))
    with pytest.raises(VmrError, match="frame_probability"):
        method.total_loss({k: v for k, v in losses.items() if k != "frame_probability"})
    with pytest.raises(VmrError, match="'odd'"):
        method.total_loss(losses | {"odd": losses["label"]})


def test_pair_contrast_with_and_without_the_positive() -> None:
    torch.manual_seed(0)
    left, right = F.normalize(torch.randn(5, 4), dim=-1), F.normalize(torch.randn(5, 4), dim=-1)
    similarity = left @ right.T / 0.07
    info_nce = F.cross_entropy(similarity, torch.arange(5))
    torch.testing.assert_close(
        pair_contrast(left, right, temperature=0.07, positive_in_denominator=True), info_nce
    )
    exponent = similarity.exp()
    literal = -(exponent.diagonal() / (exponent.sum(1) - exponent.diagonal())).log().mean()
    torch.testing.assert_close(
        pair_contrast(left, right, temperature=0.07, positive_in_denominator=False),
        literal,
        atol=1e-4,
        rtol=0,
    )
    alone = pair_contrast(left[:1], right[:1], temperature=0.07, positive_in_denominator=False)
    assert alone == 0


def test_frame_probability_is_equation_16() -> None:
    probability = torch.tensor([[0.8, 0.6, 0.1, 0.9], [0.5, 0.5, 0.0, 0.0]])
    inside = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    expected = ((1 - 0.7 + 0.1) + (1 - 0.5 + 0)) / 2
    torch.testing.assert_close(frame_probability_loss(probability, inside, mask), torch.tensor(expected))
