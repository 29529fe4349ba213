from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

import toy
from vmr_zoo.config.compose import compose
from vmr_zoo.data.annotations.records import Split
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.batches.sampling import RowBatch
from vmr_zoo.data.batches.split_dataset import SplitDataset
from vmr_zoo.data.features.source import NarrationSource
from vmr_zoo.engine.probes import BlankQuery, BlankVideo, OtherNarration, OtherQuery, ShuffledVideo
from vmr_zoo.errors import VmrError

PATCHES = 3
NEEDS = frozenset({"narration", "narration_query", "patches", "query_tokens", "noun_mask", "sibling_queries"})
SPLIT = toy.protocol().tests["iid"]


class Narrations(NarrationSource):
    """Three sentences on clips 1, 5-6 and 11 of twelve, each with the features of its middle clip.

    The first ends later in some videos.
    """

    dim = toy.DIM

    def manifest(self):
        return {}

    def load(self, video_id):
        times = np.array([[1, 2 + int(video_id[1:]) % 2 / 4], [5, 7], [11, 12]], np.float32)
        return toy.Video().load(video_id)[[1, 6, 11]], times


@pytest.fixture
def features():
    made = toy.features("toy", toy.DIM, toy.DIM, 1.0, toy.DIM, PATCHES)
    return replace(
        made,
        narration=Narrations(),
        narration_dim=toy.DIM,
        narration_query=toy.Sentence(),
        narration_query_dim=toy.DIM,
    )


def batch(features, split=SPLIT, rows=None):
    data = SplitDataset(split, features, NEEDS)
    return data[RowBatch(None, np.arange(len(data)) if rows is None else np.array(rows))]


def same(a, b, *names):
    return all(torch.equal(a[name], b[name]) for name in names)


def test_a_blank_video_is_one_real_clip(features):
    plain, blank = batch(features), batch(BlankVideo()(features, SPLIT).features)
    for name in ("video", "patches", "narration"):
        assert (blank[name] == blank[name][0, 0]).all(), name
    (clip,) = (plain["video"] == blank["video"][0, 0]).all(-1).flatten().nonzero()[:1, 0]
    assert torch.equal(plain["patches"].flatten(0, 1)[clip], blank["patches"][0, 0]), (
        "the same clip's patches"
    )
    assert (blank["narration_spans"] == blank["narration_spans"][0]).all()
    assert same(plain, blank, "video_mask", "query", "query_tokens", "spans", "duration")
    mean = plain["video"].flatten(0, 1).mean(0)
    nearest = (plain["video"] - mean).norm(dim=-1).min()
    assert (blank["video"][0, 0] - mean).norm() == pytest.approx(nearest.item(), rel=1e-5)


def test_a_shuffled_video_keeps_its_clips_and_narrations(features):
    plain, shuffled = batch(features), batch(ShuffledVideo()(features, SPLIT).features)
    assert not torch.equal(plain["video"], shuffled["video"])
    for row in range(len(SPLIT.queries)):
        # Two patches of noise distinguish the clips.
        order = [
            next(i for i in range(toy.CLIPS) if torch.equal(plain["patches"][row, i], clip))
            for clip in shuffled["patches"][row]
        ]
        assert sorted(order) == list(range(toy.CLIPS))
        assert torch.equal(plain["video"][row, order], shuffled["video"][row])
        spans = shuffled["narration_spans"][row] * toy.CLIPS
        middle = spans.mean(-1).floor().long()
        whole = (spans[:, 1] - spans[:, 0] == spans.diff().round().squeeze(-1)) & (spans[:, 0] > 0)
        assert whole.any()
        assert torch.equal(shuffled["narration"][row], shuffled["video"][row, middle])
        assert (spans[:-1, 0] <= spans[1:, 0]).all()
    assert same(plain, shuffled, "query", "query_tokens", "noun_mask", "spans", "duration")
    again, other = (batch(ShuffledVideo(seed)(features, SPLIT).features) for seed in (0, 1))
    assert torch.equal(again["video"], shuffled["video"])
    assert not torch.equal(other["video"], shuffled["video"])


def test_other_narrations_are_those_of_another_video(features):
    plain, other = batch(features), batch(OtherNarration()(features, SPLIT).features)
    given, replaced = (
        list(zip(one["video_id"], one["narration"], one["narration_spans"], strict=True))
        for one in (plain, other)
    )
    for video, narration, spans in replaced:
        sources = [row for row in given if row[0] != video and torch.equal(row[1], narration)]
        assert sources
        assert all(torch.equal(row[2], spans) for row in sources)
    assert any(not torch.equal(own[2], new[2]) for own, new in zip(given, replaced, strict=True))
    assert same(plain, other, "video", "patches", "query", "spans")
    again, seeded = (batch(OtherNarration(seed)(features, SPLIT).features) for seed in (0, 1))
    assert same(other, again, "narration")
    assert not same(other, seeded, "narration")
    queries = [replace(query, duration=2 * query.duration) for query in SPLIT.queries]
    half = queries[0].video_id
    queries = [replace(q, duration=q.duration / 2) if q.video_id == half else q for q in queries]
    longer = OtherNarration()(features, Split("s", tuple(queries))).features
    assert longer.narration.load(half)[1].max() == 6.0  # of 12 seconds out of 24
    with pytest.raises(VmrError, match="these features have none"):
        OtherNarration()(replace(features, narration=None, narration_dim=None), SPLIT)
    alone = Split("one", tuple(query for query in SPLIT.queries if query.video_id == half))
    with pytest.raises(VmrError, match="one has one video only"):
        OtherNarration()(features, alone)


def test_a_blank_query_is_one_of_the_sentences_for_all(features):
    probed = BlankQuery()(features, SPLIT)
    plain, blank = batch(features), batch(probed.features)
    for name in ("query", "narration_query", "query_tokens", "noun_mask"):
        assert (blank[name] == blank[name][0]).all(), name
    assert (blank["sibling_query"][blank["sibling_mask"]] == blank["query"][0].mean(0)).all()
    assert same(plain, blank, "video", "narration", "spans")
    assert set(probed.sentences) == {query.query_id for query in SPLIT.queries}
    (typical,) = set(probed.sentences.values())
    assert typical in {query.text for query in SPLIT.queries}


def test_another_query_comes_from_another_video(features):
    # One sentence per video: the text identifies the video.
    split = Split("s", tuple(replace(q, text=f"{q.video_id} {q.text}") for q in SPLIT.queries))
    probed = OtherQuery()(features, split)
    for query in split.queries:
        assert probed.sentences[query.query_id].split()[0] != query.video_id
    assert probed.sentences == OtherQuery()(features, split).sentences
    assert any(OtherQuery(seed)(features, split).sentences != probed.sentences for seed in (1, 2))
    plain, other = batch(features, split), batch(probed.features, split)
    starts = [float(probed.sentences[query.query_id].split()[-1]) for query in split.queries]
    for name in ("query", "narration_query"):
        assert torch.allclose(other[name][:, 0, 0] * toy.CLIPS, torch.tensor(starts)), name
    assert other["query_tokens"][:, 1].tolist() == starts
    assert same(plain, other, "video", "narration", "spans")
    alone = Split("one", tuple(query for query in split.queries if query.video_id == "v200"))
    with pytest.raises(VmrError, match="one has one video only"):
        OtherQuery()(features, alone)


class BetweenEnds(toy.Sentence):
    """Sentences with a start and an end token, as CLIP's."""

    end_ids = (90, 91)
    encodes = True

    def load(self, query):
        return np.pad(super().load(query), ((1, 1), (0, 0)))

    def token_ids(self, query):
        return np.array([90, *super().token_ids(query), 91])

    def noun_mask(self, query):
        return np.pad(super().noun_mask(query), 1)

    def token_text(self, query):
        return ["", *query.text.split(), ""]

    def listed_id(self, token):
        return int(token)


@pytest.mark.parametrize("counted", [False, True])
def test_the_words_of_another_query_are_those_it_would_have_itself(features, tmp_path, counted):
    counts = tmp_path / "counts.txt"
    counts.write_text("12 9\n3 4\n")
    data = VMRDataModule(
        "toy",
        toy.protocol(),
        replace(features, query=BetweenEnds()),
        needs={"query_tokens", "query_words", "word_weights"},
        word_counts=counts if counted else None,
    )
    (own,) = data.eval_dataloader("iid", details=True)
    probed = OtherQuery()(data.features, data.split("iid"))
    data.features = probed.features
    data._loaded.clear()
    (asked,) = data.eval_dataloader("iid", details=True)
    sentences = [query.text for query in data.split("iid").queries]
    rows = [sentences.index(probed.sentences[query.query_id]) for query in data.split("iid").queries]
    assert not same(own, asked, "query_tokens")
    for name in ("query", "query_tokens", "query_words", "word_weights"):
        assert torch.equal(asked[name], own[name][rows]), name
    assert (asked["query_words"][:, [0, -1]] == torch.tensor([-1, -2])).all()
    assert not asked["word_weights"][:, [0, -1]].any()
    assert data.features.query.encodes


@pytest.mark.parametrize(
    "probe", [BlankVideo(), ShuffledVideo(), OtherNarration(), BlankQuery(), OtherQuery()]
)
def test_a_row_does_not_depend_on_its_batch(features, probe):
    served = probe(features, SPLIT).features
    together = batch(served)
    for row in range(len(SPLIT.queries)):
        one = batch(served, rows=[row])
        names = ("video", "patches", "narration", "narration_spans", "query", "query_tokens")
        assert all(torch.equal(one[name][0], together[name][row]) for name in names)


def tiny(method, *overrides):
    small = {
        "emb": ["method.network.dim=16"],
        "tea": ["method.network.dim=16"],
        "lmr": ["method.network.dim=16", "method.network.heads=2", "method.network.feedforward_dim=16"],
        "mesm": ["method.network.dim=16", "method.network.heads=2", "method.network.feedforward_dim=16"],
        "vdi": [
            "method/text=minilm", "method.text._target_=toy.text_encoder", "method.visual_context=null",
            "method.spatial_dynamic=null", "method.training.loss_weights.visual_context=null",
            "method.training.loss_weights.spatial_dynamic=null",
        ],
    }  # fmt: skip
    dims = [f"features.{name}={toy.DIM}" for name in ("video_dim", "query_dim", "narration_dim")]
    torch.manual_seed(0)
    cfg = compose("train", ["data=shapes", "recipe=none", f"method={method}", *dims, *small[method]])
    return instantiate(cfg.method).eval()


@pytest.mark.parametrize("method", ["emb", "tea", "lmr", "mesm", "vdi"])
@torch.inference_mode()
def test_methods_predict_from_the_remaining_inputs(features, method):
    network = tiny(method)
    # All sentences are the same; every video has two.
    alike = Split("iid", tuple(replace(query, text="at 2") for query in SPLIT.queries))

    def predicted(split, probe=None):
        return network.predict(batch(probe(features, split).features if probe else features, split))

    def answers(split, probe=None):
        prediction = predicted(split, probe)
        return torch.cat((prediction["spans"].flatten(1), prediction["scores"]), 1)

    def equal(a, b):
        return torch.allclose(a, b, atol=1e-5)

    assert not equal(answers(alike)[::2], answers(alike)[:1]), "the video counts"
    # If all clips are equal, candidates tie: their scores are equal and their order is arbitrary.
    blank = predicted(alike, BlankVideo())["scores"]
    assert equal(blank[::2], blank[:1])
    assert not equal(answers(SPLIT)[::2], answers(SPLIT)[1::2]), "the sentence counts"
    assert equal(answers(SPLIT, BlankQuery())[::2], answers(SPLIT, BlankQuery())[1::2])
    assert not equal(answers(SPLIT), answers(SPLIT, ShuffledVideo()))
    assert not equal(answers(SPLIT), answers(SPLIT, OtherQuery()))


def test_eval_names_the_probe(train_toy, vmr, capsys):
    code, run = train_toy()
    assert code == 0
    assert vmr("eval", "-m", f"run={run}", "split=[iid,ood]", "probe=blank_query,other_query") == 0
    assert "asked with other query" in capsys.readouterr().out
    folder = run / "eval/iid-blank_query-001"
    assert {path.name for path in (run / "eval").iterdir()} == {
        f"{split}-{probe}-001" for split in ("iid", "ood") for probe in ("blank_query", "other_query")
    }
    header = json.loads((folder / "metrics.json").read_text())["header"]
    assert header["probe"] == "blank_query"
    assert header["name"].endswith(" asked with blank query")
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len({tuple(map(tuple, row["pred_relevant_windows"])) for row in rows}) == 1
    truth = {query.query_id: query for query in SPLIT.queries}
    assert all(row["query"] == truth[row["query_id"]].text for row in rows)
    assert {row["asked"] for row in rows} < {query.text for query in SPLIT.queries}
    assert vmr("eval", f"run={run}", "split=iid", "probe=shuffled_video", "probe.seed=3") == 0
    header = json.loads((run / "eval/iid-shuffled_video_3-001/metrics.json").read_text())["header"]
    assert header["probe"] == "shuffled_video_3"
    assert vmr("eval", f"run={run}", "split=iid", "probe=blank") == 2
    assert "blank_video" in capsys.readouterr().err
    assert vmr("eval", f"run={run}", "split=iid", "probe=other_narration") == 2
    assert "does not read (narration)" in capsys.readouterr().err


def test_eval_needs_no_training_only_inputs(train_toy, vmr, capsys, monkeypatch):
    code, run = train_toy(
        "+features.patch_dim=4",
        "+features.patch_count=3",
        "method.text._target_=toy.text_encoder",
        "method.network.segments=8",
        "method.network.clips=4",
        "method.network.diagonals=[3]",
        "method.spatial_dynamic.frames=4",
        "trainer.max_epochs=1",
        method="vdi",
    )
    assert code == 0, capsys.readouterr().err

    def gone(self, video_id):
        raise FileNotFoundError(video_id)

    monkeypatch.setattr(toy.Patches, "load", gone)
    assert vmr("eval", f"run={run}", "split=iid") == 0
