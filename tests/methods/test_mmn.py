from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, DistilBertConfig, DistilBertModel

from batches import make_batch, row
from golden.find import golden_case
from test_methods_contract import build
from vmr_zoo.blocks.text_encoder import PooledTokens, TransformerQueryEncoder, clip_text
from vmr_zoo.config.compose import compose
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.mutual_contrastive import MutualContrast, largest_moment_iou
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.check import build_released, check_case
from vmr_zoo.parity.released.mmn import MMNReleased
from vmr_zoo.spans import iou


def recompute(file: Path) -> dict[str, bool]:
    cfg = compose("parity", ["method=mmn", f"case={file}"])
    released, case = instantiate(cfg.released), Case(file)
    torch.manual_seed(0)
    method = build_released(cfg, released, case.options, case.group("param"))
    return {verdict.key: verdict.passed for verdict in check_case(released, method, case)}


@pytest.mark.parametrize(
    "key",
    [
        "param/proposal_conv.bn.1.bias",
        "input/raw_feats_1",
        "input/token_feats",
        "target/positive_index",
        "output/train/conv_out_0",
        "output/train/bn/proposal_conv.bn.0.running_var",
        "output/eval/nms_cells",
        "output/eval/metric/Best_R1",
        "loss/sent",
        "grad/featpool.conv.weight",
    ],
)
def test_a_wrong_number_fails(key, tmp_path):
    with np.load(golden_case("mmn_a.npz")) as stored:
        wrong = dict(stored)
    wrong[key].reshape(-1)[:1] += 1 if wrong[key].dtype.kind == "i" else 0.05
    np.savez(tmp_path / "wrong.npz", **wrong)
    assert not all(recompute(tmp_path / "wrong.npz").values())


def test_a_checkpoint_brings_its_text_encoder():
    weights = {f"text_encoder.bert.{name}": p for name, p in tiny().model.named_parameters()}
    weights |= {
        "featpool.conv.weight": torch.zeros(6, 5, 1),
        "proposal_conv.convs.0.weight": torch.zeros(4, 6, 3, 3),
        "proposal_conv.convs.1.weight": torch.zeros(4, 4, 3, 3),
        "text_encoder.fc_out1.weight": torch.zeros(7, 8),
    }
    found = MMNReleased().settings({}, weights)
    assert found["text"]["_target_"].endswith("distilbert")
    assert [found["video_dim"]] + [
        found[f"network.{k}"] for k in ("dim", "map_dim", "kernel", "layers", "joint_dim")
    ] == [5, 6, 4, 3, 2, 7]
    ours = {MMNReleased.names.ours(name) for name in weights if "bert" in name}
    assert ours == {f"text.{name}" for name, _ in tiny().named_parameters()}
    with pytest.raises(VmrError, match="Expected an MMN checkpoint"):
        MMNReleased().settings({}, {"w": torch.zeros(1)})


def test_each_video_is_computed_once():
    method = build("mmn").eval()
    batch = make_batch()
    moments, sentences = method(batch)
    assert moments.iou.shape[0] == 3
    assert len(sentences.iou) == 4
    assert moments.video.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("name", ["mmn", "vdi"])
def test_batch_norm_takes_a_sentence_alone(name):
    method = build(name, changes={"text_norm": {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}})
    vectors = torch.randn(4, method.text.dim)
    for _ in range(200):  # until the running statistics are those of the batch
        together = method.sentences(vectors).normed
    unbiased = torch.tensor(3 / 4).sqrt()  # of the running variance
    alone = method.sentences(vectors[2:3]).normed
    torch.testing.assert_close(alone, together[2:3] * unbiased, rtol=1e-3, atol=1e-4)
    method.total_loss(method.losses(row(make_batch(method.needs), 3))).backward()


def contrast(own_cells: str = "dissimilar", **changes) -> MutualContrast:
    options = {
        "positives": 2,
        "margin": 0.3,
        "moment_temperature": 0.2,
        "sentence_temperature": 0.1,
        "negative_iou": 0.5,
        "sibling_iou": 0.5,
        "late_epoch": 7,
        "late_factor": 0.01,
    }
    return MutualContrast(own_cells=own_cells, **(options | changes))


@pytest.mark.parametrize("own_cells", ["dissimilar", "released"])
def test_contrastive_losses_against_loops(own_cells):
    torch.manual_seed(0)
    video = [0, 0, 0, 1, 2]
    spans = torch.tensor([[0.1, 0.5], [0.12, 0.52], [0.7, 0.9], [0.0, 0.3], [0.2, 0.8]]).unsqueeze(1)
    mask = torch.ones(5, 1, dtype=torch.bool)
    cosine, overlap = torch.rand(5, 3, 7) * 2 - 1, torch.rand(5, 7)
    to_sentence, to_moment = [], []
    for s, v in enumerate(video):
        for k in overlap[s].topk(2).indices.tolist():
            p = cosine[s, v, k].item() - 0.3
            others = [
                cosine[t, v, k].item()
                for t in range(5)
                if t != s and not (video[t] == v and iou(spans[s, 0], spans[t, 0]) >= 0.5)
            ]
            e = math.exp(p / 0.2)
            to_sentence.append(-math.log(e / (e + sum(math.exp(c / 0.2) for c in others))))
            others = [cosine[s, w, c].item() for w in range(3) for c in range(7) if w != v]
            for c in range(7):
                similar = overlap[s, c] >= 0.5
                if own_cells == "released":
                    others.append(0.0 if similar else cosine[s, v, c].item())
                elif not similar and c not in overlap[s].topk(2).indices:
                    others.append(cosine[s, v, c].item())
            e, rest = math.exp(p / 0.1), sum(math.exp(c / 0.1) for c in others)
            to_moment.append(-math.log(e / (e + rest + (1e-6 if own_cells == "released" else 0))))
    found = contrast(own_cells)(cosine, torch.tensor(video), overlap, spans, mask)
    assert found[0].item() == pytest.approx(sum(to_sentence) / 10, rel=1e-5)
    assert found[1].item() == pytest.approx(sum(to_moment) / 10, rel=1e-5)


def test_a_sentence_without_any_negative_gives_no_nan():
    cosine = torch.rand(1, 1, 3, requires_grad=True)
    losses = contrast(positives=1)(
        cosine,
        torch.tensor([0]),
        torch.ones(1, 3),
        torch.tensor([[[0.0, 1.0]]]),
        torch.ones(1, 1, dtype=torch.bool),
    )
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    assert cosine.grad.isfinite().all()


def test_padding_among_moments_overlaps_nothing():
    spans = torch.tensor([[[0.0, 0.4], [0.5, 0.9]], [[0.5, 0.9], [0.0, 0.4]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert largest_moment_iou(spans, mask).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    mask[0, 1] = False
    assert largest_moment_iou(spans, mask)[0, 1] == 0


def test_contrastive_losses_weigh_less_in_late_epochs():
    method = build("mmn")
    assert method.weight("sentence_to_moment") == 0.05
    method.contrast = replace(method.contrast, late_epoch=0)
    assert method.weight("sentence_to_moment") == pytest.approx(0.0005)
    assert method.weight("iou") == 1.0


def tiny(**options) -> TransformerQueryEncoder:
    config = DistilBertConfig(vocab_size=40, dim=8, n_heads=2, hidden_dim=12, n_layers=3)
    return TransformerQueryEncoder(model=DistilBertModel(config), start=1, end=2, pooling="mean", **options)


def tiny_clip(folder):
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=6,
        eos_token_id=49407,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return clip_text(folder).eval()


@pytest.fixture(params=["given", "bert", "clip"])
def text(request, tmp_path):
    torch.manual_seed(0)
    if request.param == "given":
        return PooledTokens(10).eval()
    if request.param == "bert":
        return tiny().eval()
    return tiny_clip(tmp_path)


def test_what_is_hidden_or_padded_changes_nothing(text):
    batch = make_batch({"query_tokens"})
    mask = batch["query_mask"]
    part = mask.clone()
    part[:, 1] = False
    vectors = text(batch, torch.stack((mask, part)))
    assert vectors.shape == (2, 4, text.dim)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)
    changed = {**batch, "query_tokens": batch["query_tokens"].clone(), "query": batch["query"].clone()}
    changed["query_tokens"][:, 1] = 21
    changed["query"][:, 1] += 1
    other = text(changed, torch.stack((mask, part)))
    torch.testing.assert_close(other[1], vectors[1], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(other[0], vectors[0], atol=1e-4)
    for index in range(4):
        alone = row(batch, index)
        torch.testing.assert_close(
            text(alone, alone["query_mask"].unsqueeze(0))[0, 0], vectors[0, index], atol=1e-5, rtol=1e-5
        )


def test_clip_reads_as_transformers_does(tmp_path):
    text = tiny_clip(tmp_path)
    batch = make_batch({"query_tokens"})
    found = text(batch, batch["query_mask"].unsqueeze(0))[0]
    for index, tokens in enumerate((4, 6, 3, 5)):
        ids = torch.tensor([[49406, *batch["query_tokens"][index, :tokens].tolist(), 49407]])
        torch.testing.assert_close(
            text.model(input_ids=ids).text_embeds[0], found[index], atol=1e-5, rtol=1e-4
        )


def test_only_the_last_layers_are_trained_when_asked():
    text = tiny(trained_layers=1)
    trained = {name.split(".")[3] for name, p in text.named_parameters() if p.requires_grad}
    assert trained == {"2"}
    with pytest.raises(VmrError, match="3 layers"):
        tiny(trained_layers=4)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(VmrError, match="clip-vit-base-patch32"):
        clip_text(tmp_path / "nothing")
