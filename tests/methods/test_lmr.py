"""LMR: what its parts read, and that without them it is QD-DETR."""

from __future__ import annotations

import math

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from batches import NARRATION_DIM, NARRATION_QUERY_DIM, QUERY_DIM, VIDEO_DIM, make_batch
from vmr_zoo.blocks.position import sine_position
from vmr_zoo.config.compose import compose
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.lmr import LMR

OFF = {
    "narrations": None,
    "language_queries": False,
    "training.loss_weights.rank_contrast": 1.0,
    "training.loss_weights.margin": 1.0,
}


def make(name: str, changes: dict | None = None):
    cfg = compose("train", ["data=charades_cd", "features=action_labels", f"method={name}"])
    sizes = {"video_dim": VIDEO_DIM, "query_dim": QUERY_DIM}
    sizes |= {"network.dim": 16, "network.heads": 2, "network.feedforward_dim": 24}
    with open_dict(cfg):
        for key, value in (sizes | (changes or {})).items():
            OmegaConf.update(cfg.method, key, value)
        if cfg.method.get("narrations") is not None:
            cfg.method.narrations.dim = NARRATION_DIM
    torch.manual_seed(0)
    return instantiate(cfg.method).eval()


def test_without_its_parts_it_is_qd_detr() -> None:
    lmr, baseline = make("lmr", OFF), make("qd_detr")
    assert isinstance(lmr, LMR)
    assert not isinstance(baseline, LMR)
    assert lmr.needs == baseline.needs
    assert lmr.state_dict().keys() == baseline.state_dict().keys()
    lmr.load_state_dict(baseline.state_dict())
    batch = make_batch(lmr.needs)
    for key, value in baseline.predict(batch).items():
        assert torch.equal(lmr.predict(batch)[key], value)
    torch.manual_seed(1)
    expected = baseline.losses(batch)
    torch.manual_seed(1)
    found = lmr.losses(batch)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_both_fusions_share_their_weights_unless_separate() -> None:
    shared, apart = make("lmr"), make("lmr", {"narrations.share_weights": False})
    extra = apart.state_dict().keys() - shared.state_dict().keys()
    assert extra == {f"narration_fusion.{key}" for key in shared.aligner.state_dict()}
    batch = make_batch(shared.needs)
    # A narration that equals a clip, in feature and in time, is fused to the same vector.
    read = shared.project(batch)
    narration = read.narration._replace(
        sentences=read.video[:, :4], mask=read.video_mask[:, :4], position=read.position[:, :4]
    )
    fused = shared.fuse(read._replace(narration=narration))
    torch.testing.assert_close(fused.sequence[:, fused.clips :], fused.sequence[:, :4])
    assert fused.clips == batch["video_mask"].shape[1]


@pytest.mark.parametrize("read", [1.0, 0.5])
def test_a_narration_stands_where_the_clip_that_it_ends_with_stands(read: float) -> None:
    """Also where only the first part of the video is read."""
    method = make("lmr")
    batch = make_batch(method.needs)
    clips = batch["video_mask"].sum(1)[:, None]
    batch["duration"] = clips[:, 0] * batch["clip_seconds"] / read
    ends = (torch.arange(4) + 1) / clips * read  # of the first four clips
    batch["narration_spans"] = torch.stack((torch.zeros_like(ends), ends), -1)
    narration = method.project(batch).narration
    expected = sine_position(batch["video_mask"], 16)[:, :4]
    torch.testing.assert_close(narration.position, expected, atol=1e-5, rtol=0)


def test_moment_queries_start_from_the_mean_word() -> None:
    method = make("lmr", {"network.queries": 3})
    read = method.project(make_batch(method.needs))
    content = method.decoder_content(read)
    assert content.shape == (4, 3, 16)
    for row in range(4):
        mean = read.query[row][read.query_mask[row]].mean(0)
        for slot in range(3):
            torch.testing.assert_close(content[row, slot], mean)
    assert make("lmr", {"language_queries": False}).decoder_content(read) is None


@pytest.mark.parametrize("decode", [False, True])
def test_the_scores_and_by_default_the_decoder_see_the_video_tokens_only(decode: bool) -> None:
    method = make("lmr", {"narrations.decode": decode})
    batch = make_batch(method.needs)
    output = method(batch)
    assert output.positive.saliency.shape == batch["video_mask"].shape
    encoded = output.positive
    clips = encoded.fused.clips
    narrations = batch["narration_mask"].shape[1] if decode else 0
    assert encoded.scored.memory.shape[1] == clips + narrations
    padding = ~encoded.fused.mask[:, clips : clips + narrations]
    for where, same in ((padding, True), (~padding, not decode)):
        memory = encoded.scored.memory.clone()
        memory[:, clips:] += torch.randn(memory[:, clips:].shape) * where.unsqueeze(2)
        changed = encoded._replace(scored=encoded.scored._replace(memory=memory))
        assert torch.equal(method.decode(output.inputs, changed)[0], output.states) == same
    assert method.details_of(output, batch)["decoder_attention"].shape[-1] == clips
    # The narrations reach both through the encoder.
    other = dict(batch, narration=batch["narration"].flip(-1))
    assert (method(other).positive.saliency - output.positive.saliency).abs().max() > 1e-4


def two_streams(changes: dict | None = None) -> LMR:
    return make("lmr", {"narrations.query_dim": NARRATION_QUERY_DIM} | (changes or {}))


def test_the_video_meets_its_words_and_the_narrations_meet_theirs() -> None:
    method = two_streams()
    batch = make_batch(method.needs)
    plain = method.project(batch)
    before = method.fuse(plain).sequence
    clips = batch["video_mask"].shape[1]
    for key, own in (("query", slice(None, clips)), ("narration_query", slice(clips, None))):
        changed = method.project(batch | {key: batch[key].flip(-1)})
        after = method.fuse(changed).sequence
        differs = (after - before).abs().amax(-1) > 1e-4
        valid = method.fuse(plain).mask
        assert differs[:, own][valid[:, own]].all(), key
        differs[:, own] = False
        assert not differs.any(), key
        # The moment queries start from the words of the video.
        assert torch.equal(method.decoder_content(changed), method.decoder_content(plain)) is (key != "query")


def test_a_negative_pair_has_both_encodings_of_the_negative_sentence() -> None:
    method = two_streams()
    batch = make_batch(method.needs)
    rows = torch.tensor([1, 2, 3, 0])
    swapped = dict(batch)
    for key in ("query", "query_mask", "narration_query", "narration_query_mask"):
        swapped[key] = batch[key][rows]
    torch.testing.assert_close(method(batch, rows).negative.saliency, method(swapped).positive.saliency)


def test_words_for_narrations_are_needed_only_where_they_are_read() -> None:
    assert "narration_query" in two_streams().needs
    for changes in ({"narrations.fuse": False}, {"narrations": None}):
        method = two_streams(changes)
        assert "narration_query" not in method.needs
        assert method.project_narration_query is None
    blind = two_streams({"visual": False})
    batch = make_batch(blind.needs)
    expected = blind.predict(batch)["spans"]
    assert torch.equal(blind.predict(batch | {"query": batch["query"] + 1})["spans"], expected)
    blind.total_loss(blind.losses(batch)).backward()
    assert all(p.grad is not None for p in blind.parameters())


def test_relevance_under_a_negative_query_is_equation_8() -> None:
    method = make("lmr")
    batch = make_batch(method.needs)
    found = method.losses(batch)
    assert found.keys() & {"rank_contrast", "margin"} == set()
    rows = torch.tensor([1, 2, 3, 0])  # rows 0 and 2 share a video, neighbours do not
    negative = method(batch, rows).negative
    total = 0.0
    for row, scores in enumerate(negative.saliency.tolist()):
        for place, score in enumerate(scores):
            if batch["video_mask"][row, place]:
                total -= math.log(1 - 1 / (1 + math.exp(-score)))
    assert found["negative_pair"].item() == pytest.approx(total / 4, rel=1e-4)


def test_without_visual_features_only_the_narrations_matter() -> None:
    method = make("lmr", {"visual": False})
    batch = make_batch(method.needs)
    prediction = method.predict(batch)
    assert "saliency" not in prediction
    assert torch.equal(method.answer_score(prediction, batch), prediction["scores"][:, 0])
    assert "moment" in method.answer_evidence
    blind = dict(batch, video=torch.zeros_like(batch["video"]))
    assert torch.equal(method.predict(blind)["spans"], prediction["spans"])
    method.total_loss(method.losses(batch)).backward()
    assert all(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"visual": False, "narrations": None}, "narrations.fuse=true"),
        ({"visual": False, "training.loss_weights.margin": 1.0}, r"margin=null"),
    ],
)
def test_impossible_combinations_are_refused(changes, hint) -> None:
    with pytest.raises(InstantiationException, match=hint) as caught:
        make("lmr", changes)
    assert isinstance(caught.value.__cause__, VmrError)
