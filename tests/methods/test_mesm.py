"""MESM: the authors' numbers, its equations against plain loops, and that without its parts it is QD-DETR."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from batches import QUERY_DIM, VIDEO_DIM, make_batch, mask_of, stretch
from golden.find import golden_case
from vmr_zoo.config.compose import compose
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.mesm.frame_word import WordMasking, draw_words
from vmr_zoo.methods.mesm.losses import SegmentContrast, word_reconstruction
from vmr_zoo.methods.mesm.method import MESM
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.check import build_released, check_case
from vmr_zoo.spans import giou, iou

OFF = {
    "frame_word": None,
    "segment_sentence": None,
    "saliency.score": "token",
    "training.loss_weights.word_reconstruction": None,
    "training.loss_weights.segment_contrast": None,
    "training.loss_weights.clip_entropy": None,
    "training.loss_weights.negative_pair": 1.0,
    "training.loss_weights.rank_contrast": 1.0,
    "training.loss_weights.margin": 1.0,
}


def make(name: str, changes: dict | None = None, variant: str = "paper"):
    cfg = compose(
        "train", ["data=charades_cd", "features=action_labels", f"method={name}", f"variant={variant}"]
    )
    sizes = {"video_dim": VIDEO_DIM, "query_dim": QUERY_DIM}
    sizes |= {"network.dim": 16, "network.heads": 2, "network.feedforward_dim": 24}
    with open_dict(cfg):
        for key, value in (sizes | (changes or {})).items():
            OmegaConf.update(cfg.method, key, value)
    torch.manual_seed(0)
    return instantiate(cfg.method).eval()


def verdicts(case: Case):
    cfg = compose("parity", ["method=mesm", "case=x"])
    released = instantiate(cfg.released)
    return check_case(released, build_released(cfg, released, case.options, case.group("param")), case)


def test_a_wrong_number_fails(tmp_path) -> None:
    with np.load(golden_case("mesm_c.npz"), allow_pickle=False) as stored:
        wrong = {key: stored[key] for key in stored.files}
    keys = ("output/recon_feat", "output_fixmask/mlm_words_feat", "grad/masked_token", "loss/loss_rec_ss")
    for key in keys:
        wrong[key] = wrong[key] + np.float32(3e-4)
    np.savez(tmp_path / "wrong.npz", **wrong)
    failed = {verdict.key for verdict in verdicts(Case(tmp_path / "wrong.npz")) if not verdict.passed}
    assert failed == set(keys)


def test_without_its_parts_it_is_qd_detr() -> None:
    mesm, baseline = make("mesm", OFF), make("qd_detr")
    assert isinstance(mesm, MESM)
    assert not isinstance(baseline, MESM)
    assert mesm.needs == baseline.needs
    assert mesm.state_dict().keys() == baseline.state_dict().keys()
    mesm.load_state_dict(baseline.state_dict())
    batch = make_batch(mesm.needs)
    for key, value in baseline.predict(batch).items():
        assert torch.equal(mesm.predict(batch)[key], value)
    torch.manual_seed(1)
    expected = baseline.losses(batch)
    torch.manual_seed(1)
    found = mesm.losses(batch)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_context_sentences_reach_the_generated_token_in_the_paper_variant_only() -> None:
    for variant, reaches in (("paper", True), ("released", False)):
        method = make("mesm", variant=variant)
        batch = make_batch(method.needs | {"sibling_queries"})
        other = dict(batch, sibling_query=batch["sibling_query"].flip(-1))
        with torch.no_grad():
            before, after = method.project(batch).token, method.project(other).token
        changed = (before - after).abs().amax(1) > 1e-4
        assert changed.tolist() == [reaches and bool(row.any()) for row in batch["sibling_mask"]]


def test_the_generated_token_is_part_of_what_the_video_is_aligned_with() -> None:
    method = make("mesm")
    read = method.project(make_batch(method.needs))
    text, mask = read.text
    assert torch.equal(text[:, 0], read.token)
    assert torch.equal(text[:, 1:], read.query)
    assert mask[:, 0].all()
    moved = method.fuse(read._replace(token=read.token + 1))
    assert (moved.sequence - method.fuse(read).sequence).abs().max() > 1e-3
    assert torch.equal(moved.enhanced, method.fuse(read).enhanced)  # the frames meet the words alone


def test_a_third_of_the_words_is_masked_whatever_the_padding() -> None:
    lengths = (1, 2, 3, 7, 12)
    torch.manual_seed(0)
    drawn = draw_words(mask_of(lengths))
    assert drawn.sum(1).tolist() == [0, 1, 1, 2, 4]
    assert not (drawn & ~mask_of(lengths)).any()
    torch.manual_seed(0)
    assert torch.equal(draw_words(mask_of(lengths, 20))[:, :12], drawn)
    assert (torch.stack([draw_words(mask_of((3,)))[0] for _ in range(200)]).sum(0) > 40).all()


def test_reconstruction_learns_from_masked_words_and_shares_the_attention_of_the_enhancer() -> None:
    method = make("mesm", {"frame_word.vocabulary": 15})
    batch = make_batch(method.needs)
    read, masking = method.project(batch), method.draw_masking(batch)
    assert (masking.labels <= 15).all()
    assert (masking.labels[batch["query_words"] > 15] == 0).all()
    _, logits = method.reconstruct(batch, read, masking)
    logits.sum().backward()
    assert method.masked_word.grad.abs().sum() > 0
    assert method.enhancer.layers[0].attention.in_proj_weight.grad.abs().sum() > 0
    longer = stretch(batch, 3)
    padded = WordMasking(*(F.pad(field, (0, 3)) for field in masking))
    more = method.reconstruct(longer, method.project(longer), padded)[1]
    valid = batch["query_mask"]
    torch.testing.assert_close(more[:, : valid.shape[1]][valid], logits[valid], atol=1e-5, rtol=1e-5)


def test_word_reconstruction_is_the_mean_over_words_then_sentences() -> None:
    torch.manual_seed(0)
    logits, labels, mask = torch.randn(2, 3, 5), torch.tensor([[1, 4, 0], [2, 0, 0]]), mask_of((3, 1))
    words = ((0, 3), (1, 1))  # row, words
    rows = [-sum(float(logits[b, j].log_softmax(0)[labels[b, j]]) for j in range(n)) / n for b, n in words]
    assert word_reconstruction(logits, labels, mask).item() == pytest.approx(sum(rows) / 2, rel=1e-5)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("over", ["segments", "sentences"])
@pytest.mark.parametrize("positives", ["log_of_sum", "mean_of_logs"])
@pytest.mark.parametrize("overlap", ["iou", "giou"])
def test_segment_contrast_is_equation_5(similarity, over, positives, overlap) -> None:
    torch.manual_seed(0)
    video, text = torch.randn(4, 6, 3), torch.randn(4, 5, 3)
    inside, mask = mask_of((2, 4, 3, 1), 6), mask_of((5, 3, 4, 2))
    index = torch.tensor([0, 0, 0, 1])
    spans = torch.tensor([[0.1, 0.5], [0.12, 0.5], [0.6, 0.9], [0.1, 0.5]])
    segment = [video[i][inside[i]].mean(0) for i in range(4)]
    score = torch.zeros(4, 4)
    for i in range(4):
        words = text[i][mask[i]]
        for j in range(4):
            if similarity == "dot":
                score[i, j] = sum(word @ segment[j] for word in words) / 0.5
            else:
                score[i, j] = F.cosine_similarity(words.mean(0), segment[j], 0) / 0.5
    measure = {"iou": iou, "giou": giou}[overlap]
    total = 0.0
    for anchor in range(4):
        row = score[anchor] if over == "segments" else score[:, anchor]
        good = [j for j in range(4) if index[j] == index[anchor] and measure(spans[j], spans[anchor]) >= 0.9]
        assert good == {0: [0, 1], 1: [0, 1], 2: [2], 3: [3]}[anchor]
        share = row.softmax(0)
        if positives == "log_of_sum":
            total -= math.log(sum(share[j] for j in good))
        else:
            total -= sum(math.log(share[j]) for j in good) / len(good)
    contrast = SegmentContrast(
        gamma=0.9, temperature=0.5, similarity=similarity, over=over, positives=positives, overlap=overlap
    )
    assert contrast(video, inside, text, mask, spans, index).item() == pytest.approx(total / 4, rel=1e-4)


def test_the_clips_of_a_moment_follow_the_rule() -> None:
    batch = make_batch({"saliency", "all_spans"})
    moments = torch.tensor([[4.1, 7.0], [0.0, 2.0]])
    batch["all_spans"] = moments / batch["duration"][:, None, None]
    batch["all_span_mask"] = torch.ones(4, 2, dtype=torch.bool)
    batch["spans"], batch["span_mask"] = batch["all_spans"][:, :1], batch["all_span_mask"][:, :1]  # drawn
    batch["moment_clips"] = batch["video_mask"].roll(1, 1)  # by the data module
    kinds = ("exclusive", "inclusive", "rated")
    clips = {kind: make("mesm", {"moment_clips": kind}).clips_of_moments(batch) for kind in kinds}
    assert [row.nonzero().flatten().tolist() for row in clips["exclusive"]] == [[0, 2]] * 4
    assert torch.equal(clips["inclusive"], batch["moment_clips"])
    assert torch.equal(clips["rated"], batch["saliency"] > 0)


def test_a_loss_on_a_part_that_is_left_out_is_refused() -> None:
    with pytest.raises(Exception, match=r"loss_weights\.segment_contrast=null") as caught:
        make("mesm", {"segment_sentence": None})
    assert isinstance(caught.value.__cause__ or caught.value, VmrError)


def test_dropout_is_drawn_again_for_the_generator_and_reused_for_the_reconstruction(monkeypatch) -> None:
    method = make("mesm", {"network.input_dropout": 0.5, "segment_sentence.context": "inert"}).train()
    batch, read = make_batch(method.needs), []
    for part, place in ((method.generator, 3), (method.enhancer, 0)):
        forward = part.forward
        monkeypatch.setattr(
            part, "forward", lambda *a, f=forward, p=place, **k: (read.append(a[p]), f(*a, **k))[1]
        )
    inputs, masking = method.project(batch), method.draw_masking(batch)
    method.reconstruct(batch, inputs, masking)
    clips, words = read
    assert clips.shape == inputs.video.shape
    assert not torch.equal(clips, inputs.video)
    kept = batch["query_mask"] & ~masking.masked & ~masking.unknown
    assert torch.equal(words[kept], inputs.query[kept])
    assert not torch.equal(words[masking.masked], inputs.query[masking.masked])
