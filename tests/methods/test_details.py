"""That each of a prediction's details is what its name says; the contract tests see to shapes and padding."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, load_model
from torch import nn

import toy
from batches import NARRATION_DIM, PATCH_DIM, PATCHES, QUERY_DIM, VIDEO_DIM, make_batch, shrink
from vmr_zoo.blocks.attention import MultiHeadAttention, attend
from vmr_zoo.config.compose import compose
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.vdi import scaled
from vmr_zoo.runs import directory

DETR = ("moment_detr", "bm_detr", "qd_detr", "mesm", "lmr")


def build(name: str, changes: Mapping[str, object] | None = None) -> Method:
    cfg = compose("train", ["data=shapes", "recipe=none", f"method={name}"])
    OmegaConf.set_struct(cfg, False)
    cfg.features.update(
        video_dim=VIDEO_DIM,
        query_dim=QUERY_DIM,
        narration_dim=NARRATION_DIM,
        patch_dim=PATCH_DIM,
        patch_count=PATCHES,
    )
    shrink(cfg.method)
    for key, value in (changes or {}).items():
        OmegaConf.update(cfg.method, key, value)
    torch.manual_seed(0)
    return instantiate(cfg.method).eval()


def details(method: Method, batch: dict) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return method.predict(batch, details=True).get("details", {})


def test_recorded_weights_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(12, 3).eval(), nn.MultiheadAttention(12, 3, batch_first=True).eval()
    state = ours.state_dict()
    theirs.load_state_dict({key: state[key] for key in theirs.state_dict()})
    query, key = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    mask = torch.arange(7)[None] < torch.tensor([[7], [3]])
    record: list[torch.Tensor] = []
    out = ours(query, key, key, mask, record)
    _, weights = theirs(query, key, key, key_padding_mask=~mask)
    torch.testing.assert_close(record, [weights])
    assert torch.equal(out, ours(query, key, key, mask))


def test_recorded_weights_mix_the_values_and_are_zero_where_nothing_may_be_attended_to() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 6)
    for mask in (
        None,
        torch.tensor([[True] * 5, [False] * 5]),
        torch.rand(2, 1, 3, 5) < 0.5,  # by head and query
    ):
        record: list[torch.Tensor] = []
        out = attend(query, key, value, heads=1, key_mask=mask, record=record)
        torch.testing.assert_close(record[0] @ value, out)


@pytest.mark.parametrize("name", DETR)
def test_the_decoder_attends_to_what_it_reads_and_nothing_else(name: str) -> None:
    method = build(name)
    batch = make_batch(method.needs)
    found = details(method, batch)
    total = found["decoder_attention"].sum(2)
    assert (found["decoder_attention"].masked_select(~batch["video_mask"].unsqueeze(1)) == 0).all()
    if name in ("moment_detr", "bm_detr"):
        words = found["decoder_word_attention"]
        assert (words.masked_select(~batch["query_mask"].unsqueeze(1)) == 0).all()
        assert (words.sum(2) > 0).all()
        total = total + words.sum(2)
    torch.testing.assert_close(total, torch.ones(4, 6))


@pytest.mark.parametrize("name", DETR)
def test_decoder_attention_comes_in_the_order_of_the_moments(name: str) -> None:
    method = build(name)
    batch = make_batch(method.needs)
    before = details(method, batch)["decoder_attention"]
    slots = method.decoder.query_position if name == "moment_detr" else method.decoder.anchors
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        slots.weight.copy_(slots.weight[order])
    torch.testing.assert_close(details(method, batch)["decoder_attention"], before, atol=1e-5, rtol=0)
    assert (before[:, order] - before).abs().max() > 1e-3  # or every order would do


@pytest.mark.parametrize("name", ["qd_detr", "mesm", "lmr"])
def test_every_clip_spreads_its_attention_over_the_words(name: str) -> None:
    method = build(name)
    batch = make_batch(method.needs)
    attention = details(method, batch)["frame_word_attention"]
    torch.testing.assert_close(
        attention.sum(2)[batch["video_mask"]], torch.ones(int(batch["video_mask"].sum()))
    )
    assert (attention.masked_select(~batch["query_mask"].unsqueeze(1)) == 0).all()


def test_bm_detr_answers_with_both_sides_of_equation_7() -> None:
    method = build("bm_detr")
    batch = make_batch(method.needs)
    without = {key: value for key, value in batch.items() if not key.startswith("negative")}
    found = details(method, without)
    for row, count in enumerate(batch["video_mask"].sum(1).tolist()):
        probability = found["frame_probability"][row, :count]
        assert ((probability > 0) & (probability < 1)).all()
        torch.testing.assert_close(found["frame_attention"][row, :count], probability.softmax(0))
    # With negative queries p is that of training (Table 9), while the answer stays.
    negative = details(method, batch)
    exists = batch["negative_query_mask"].any(1)
    assert (negative["frame_probability"] < found["frame_probability"])[
        batch["video_mask"] & exists[:, None]
    ].all()
    assert torch.equal(negative["frame_attention"], found["frame_attention"])
    off = build("bm_detr", {"background": None, "training.loss_weights.frame_probability": None})
    assert details(off, batch).keys() == {"decoder_attention", "decoder_word_attention"}


def test_word_probability_is_that_of_each_word_masked_in_turn() -> None:
    method = build("mesm", {"frame_word.vocabulary": 15})
    batch = make_batch(method.needs)
    found = details(method, batch)["word_probability"]
    with torch.no_grad():
        read, masking = method.project(batch), method.draw_masking(batch)
        for row, word in batch["query_mask"].nonzero().tolist():
            hidden = torch.zeros_like(batch["query_mask"])
            hidden[row, word] = True
            _, logits = method.reconstruct(batch, read, masking._replace(masked=hidden))
            label = int(batch["query_words"][row, word])
            expected = logits[row, word].softmax(0)[label if label <= 15 else 0]
            torch.testing.assert_close(found[row, word], expected)
    other = details(method, {**batch, "video": batch["video"].flip(-1)})["word_probability"]
    assert (other - found).abs().max() > 1e-4


def test_word_probability_rises_with_training_on_one_batch() -> None:
    method = build("mesm", {"frame_word.vocabulary": 15})
    batch = make_batch(method.needs)
    mask = batch["query_mask"]
    before = details(method, batch)["word_probability"]
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    torch.manual_seed(1)
    for _ in range(12):
        loss = method.losses(batch)["word_reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = details(method, batch)["word_probability"]
    assert after[mask].mean() > 1.5 * before[mask].mean()
    assert (after[~mask] == 0).all()


def test_without_the_words_their_probability_is_left_out() -> None:
    method = build("mesm")
    batch = make_batch(method.needs)
    del batch["query_words"]
    found = details(method, batch).keys()
    assert {"decoder_attention", "frame_word_attention"} <= found
    assert "word_probability" not in found


def test_lmr_without_clips_has_none() -> None:
    method = build("lmr", {"visual": False})
    assert details(method, make_batch(method.needs)) == {}


@pytest.mark.parametrize(("name", "total"), [("emb", 1.0), ("tea", 1.5)])
@pytest.mark.parametrize("limit", [128, 6])
def test_the_curves_are_what_moments_are_ranked_by(name: str, total: float, limit: int) -> None:
    changes: dict[str, object] = {"snippets": {"max_snippets": limit}}
    if name == "tea":
        changes["alpha"] = 0.5
    method = build(name, changes)
    batch = make_batch(method.needs)
    with torch.no_grad():
        prediction = method.predict(batch, details=True)
    start, end, highlight = (
        prediction["details"][key] for key in ("start_probability", "end_probability", "highlight")
    )
    width = min(limit, batch["video_mask"].shape[1])
    for row, clips in enumerate(batch["video_mask"].sum(1).tolist()):
        count = min(clips, limit)
        for curve in (start, end, highlight):
            assert curve.shape[1] == width
            assert (curve[row, count:] == 0).all()
        for curve in (start, end):
            assert curve[row, :count].sum().item() == pytest.approx(total, abs=1e-5)
        joint = torch.outer(start[row, :count], end[row, :count]).triu()
        assert joint.max().item() == pytest.approx(prediction["scores"][row, 0].item(), rel=1e-5)
        first, last = divmod(int(joint.argmax()), count)
        assert prediction["spans"][row, 0].tolist() == pytest.approx([first / count, (last + 1) / count])
        if clips <= limit and width == batch["video_mask"].shape[1]:
            assert torch.equal(highlight[row], prediction["saliency"][row])


@pytest.mark.parametrize("name", ["mmn", "vdi"])
def test_the_best_cell_of_the_score_map_is_the_first_answer(name: str) -> None:
    method = build(name)
    batch = make_batch(method.needs)
    with torch.no_grad():
        prediction = method.predict(batch, details=True)
    scores = prediction["details"]["score_map"]
    assert scores.shape == (4, 4, 4)
    assert (scores.tril(-1) == 0).all()
    for row in range(4):
        first, last = divmod(int(scores[row].argmax()), 4)
        assert prediction["spans"][row, 0].tolist() == pytest.approx([first / 4, (last + 1) / 4])
        assert scores[row].max() == prediction["scores"][row, 0]


def test_vdi_returns_the_heatmaps_of_each_sentence_where_there_are_patches() -> None:
    method = build("vdi")
    batch = make_batch(method.needs)
    heatmap = details(method, batch)["heatmap"]
    assert heatmap.shape[0] == 4
    assert heatmap.shape[2] == PATCHES
    assert torch.equal(heatmap[2], heatmap[0])  # one video
    dynamic = method.spatial_dynamic
    frame = int(dynamic.frame_indices(batch["video_mask"])[3, 0])
    whole = dynamic.whole(scaled(batch["video"][3, frame], "rms"))
    patches = scaled(batch["patches"][3, frame], "rms")
    for patch in range(PATCHES):  # Eq. 3
        expected = whole @ dynamic.patch(patches[patch]) / dynamic.dim**0.5
        torch.testing.assert_close(heatmap[3, 0, patch], expected)
    del batch["patches"]
    assert details(method, batch).keys() == {"score_map"}


def test_eval_writes_the_details_beside_the_predictions(train_toy, vmr, capsys) -> None:
    _, run = train_toy(
        "trainer.max_epochs=1",
        "method.network.dim=16",
        "method.network.heads=2",
        "method.network.queries=3",
        method="qd_detr",
    )
    assert vmr("eval", f"run={run}", "split=[iid,ood]", "details=true") == 0
    assert "decoder_attention, frame_word_attention" in capsys.readouterr().out.replace("\n", "")
    assert vmr("eval", f"run={run}", "split=iid") == 0
    for name in ("iid-001", "ood-001"):
        lines = (run / "eval" / name / "predictions.jsonl").read_text().splitlines()
        found = load_file(run / "eval" / name / "details.safetensors")
        names = ("decoder_attention", "frame_word_attention")
        assert found.keys() == {f"{row}/{detail}" for row in range(len(lines)) for detail in names}
        for row, line in enumerate(lines):
            moments = len(json.loads(line)["pred_relevant_windows"])
            assert moments == 3  # and two empty ones, which are cut
            decoder = found[f"{row}/decoder_attention"]
            assert decoder.shape == (moments, 12)
            torch.testing.assert_close(decoder.sum(1), torch.ones(moments))
            assert found[f"{row}/frame_word_attention"].shape == (12, 2)
    assert not (run / "eval/iid-002/details.safetensors").exists()
    same = [(run / "eval" / name / "predictions.jsonl").read_text() for name in ("iid-001", "iid-002")]
    assert same[0] == same[1]


def trained(run: Path) -> tuple[Method, VMRDataModule]:
    """The method and the data of a run."""
    cfg = directory.load_config(run)
    method = instantiate(cfg.method)
    load_model(method, str(run / "model.safetensors"))
    data = instantiate(cfg.data, needs=method.needs)
    data.prepare_data()
    return method.eval(), data


def test_eval_writes_the_probability_of_each_word_of_an_unseen_sentence(train_toy, vmr) -> None:
    """Each sentence is a token that all share, and one that says where the moment starts."""
    _, run = train_toy(
        "trainer.max_epochs=1",
        "method.network.dim=16",
        "method.network.heads=2",
        "method.network.queries=5",
        "method.segment_sentence.layers=1",
        "method.frame_word.vocabulary=8",
        method="mesm",
    )
    assert vmr("eval", f"run={run}", "split=iid", "details=true") == 0
    found = load_file(run / "eval/iid-001/details.safetensors")
    method, data = trained(run)
    counts = Counter(int(query.text.split()[-1]) for query in toy.protocol().train.queries)
    common = sorted(counts, key=lambda start: (-counts[start], start))
    queries = toy.protocol().tests["iid"].queries
    strange = 0
    (batch,) = data.eval_dataloader("iid")
    assert "query_words" not in batch
    for row, query in enumerate(queries):
        start = int(query.text.split()[-1])
        place = common.index(start) + 2 if start in common else len(common) + 2
        strange += place > 8
        batch["query_words"] = torch.ones(len(queries), 2, dtype=torch.int64)
        batch["query_words"][row, 1] = place
        expected = details(method, batch)["word_probability"][row]
        torch.testing.assert_close(found[f"{row}/word_probability"], expected)
    assert 0 < strange < len(queries)


def test_eval_writes_heatmaps_and_reads_patches_for_nothing_else(train_toy, vmr, monkeypatch) -> None:
    _, run = train_toy(
        "trainer.max_epochs=1",
        "+features.patch_dim=3",
        "+features.patch_count=4",
        "method.text._target_=toy.text_encoder",
        "method.network.segments=8",
        "method.network.clips=4",
        "method.network.diagonals=[3]",
        "method.network.map_dim=8",
        "method.network.layers=1",
        "method.network.joint_dim=8",
        "method.visual_context.heads=2",
        "method.spatial_dynamic.heads=2",
        "method.spatial_dynamic.frames=6",
        method="vdi",
    )
    assert vmr("eval", f"run={run}", "split=iid", "details=true") == 0
    found = load_file(run / "eval/iid-001/details.safetensors")
    method, data = trained(run)
    (batch,) = data.eval_dataloader("iid", details=True)
    expected = details(method, batch)["heatmap"]
    assert expected.shape == (len(toy.protocol().tests["iid"].queries), 6, 4)
    for row, heatmap in enumerate(expected):
        torch.testing.assert_close(found[f"{row}/heatmap"], heatmap)
    assert (expected[0] - expected[-1]).abs().max() > 1e-3  # different videos

    def refuse(source: toy.Patches, video_id: str) -> None:
        raise AssertionError(video_id)

    monkeypatch.setattr(toy.Patches, "load", refuse)
    (batch,) = data.eval_dataloader("iid")
    assert "patches" not in batch
    assert details(method, batch).keys() == {"score_map"}
