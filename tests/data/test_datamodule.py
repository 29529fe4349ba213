import dataclasses
import zlib
from collections import Counter

import lightning
import numpy as np
import pytest
import torch

from vmr_zoo.data.annotations.records import Protocol, Query, Split
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.batches.negatives import NegativeSampling
from vmr_zoo.data.batches.sampling import RowBatch
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.problems import Problem
from vmr_zoo.data.features.source import NarrationSource, QuerySource, VideoSource
from vmr_zoo.errors import VmrError
from vmr_zoo.types import NEEDS

TRAINING_ONLY = {"negative_query", "negative_query_mask", "shift_order", "shifted_spans"}
FOR_DETAILS = {"query_words", "word_weights", "moment_clips", "patches"}


def noise(*key: int | str, shape: tuple[int, ...]) -> np.ndarray:
    return (
        np.random.default_rng(zlib.crc32(repr(key).encode())).standard_normal(shape).astype(np.float32) + 10
    )  # never 0


def length(video_id: str) -> int:
    return 6 + int(video_id[1:]) % 7


class Videos(VideoSource):
    dim = 4
    gone: tuple[str, ...] = ()

    def load(self, video_id):
        return noise(video_id, shape=(length(video_id), self.dim))

    def missing(self, video_ids):
        lacking = tuple(v for v in video_ids if v in self.gone)
        return [Problem("video", "missing", lacking, "Looked nowhere.")] if lacking else []

    def manifest(self):
        return {}


class Patches(Videos):
    dim = 2

    def load(self, video_id):
        return noise(video_id, "p", shape=(length(video_id), 3, self.dim))


class Words(QuerySource):
    dim = 5
    sentence_dim = 3
    has_token_ids = True
    has_noun_masks = True

    def load(self, query):
        return noise(query.query_id, shape=(2 + len(query.text) % 4, self.dim))

    def sentence(self, query):
        return noise(query.query_id, "s", shape=(self.sentence_dim,))

    def token_ids(self, query):
        return np.arange(1, 3 + len(query.text) % 4)

    def token_text(self, query):
        return ["", *("man" if token % 2 else "the" for token in self.token_ids(query)[1:])]

    def noun_mask(self, query):
        return self.token_ids(query) % 2 == 0

    def manifest(self):
        return {}


class OtherTokens(Words):
    """The words by the narrations' encoder, which splits sentences into other tokens."""

    dim = 2

    def load(self, query):
        return noise(query.query_id, "n", shape=(1 + len(query.text) % 3, self.dim))


class Narrations(NarrationSource):
    dim = 3

    def load(self, video_id):
        count = int(video_id[1:]) % 3  # some videos have none
        times = np.arange(count, dtype=np.float32)[:, None] + np.array([[0.0, 1.5]], np.float32)
        return noise(video_id, "n", shape=(count, self.dim)), times

    def manifest(self):
        return {}


def features(**changes) -> FeatureSet:
    options = {
        "name": "tiny",
        "origin": "simulated",
        "video_dim": 4,
        "query_dim": 5,
        "clip_seconds": 2.0,
        "video": Videos(),
        "query": Words(),
        "narration": Narrations(),
        "patches": Patches(),
        "narration_dim": 3,
        "narration_query": OtherTokens(),
        "narration_query_dim": 2,
        "joint_space": "tiny",
        "patch_dim": 2,
    }
    return FeatureSet(**(options | changes))


def split(name: str, videos: range, saliency: bool = False, clip_seconds: float = 2.0) -> Split:
    """Videos with one to three queries of one to seven moments."""
    queries = []
    for v in videos:
        duration = clip_seconds * length(f"v{v}")
        for i in range(1 + v % 3):
            many = 7 if (v + i) % 5 == 0 else 1
            starts = [(i * 3 + j * 1.5) % (duration - 3) for j in range(many)]
            moments = tuple((s, s + 2.5) for s in starts)
            rated = ((0, (1, 2, 3)), (2, (0, 0, 4))) if saliency else ()
            queries.append(Query(f"{name}{v}_{i}", f"v{v}", "x" * (v + i), moments, duration, rated))
    return Split(name, tuple(queries))


def protocol(saliency: bool = False, clip_seconds: float = 2.0) -> Protocol:
    videos = {
        "train": range(0, 30),
        "selection": range(30, 40),
        "iid": range(40, 46),
        "ood": range(46, 50),
    }
    train, selection, *tests = (split(name, v, saliency, clip_seconds) for name, v in videos.items())
    return Protocol("tiny", train, selection, {test.name: test for test in tests}, "published")


def module(**options) -> VMRDataModule:
    negatives = NegativeSampling(similarity_below=None, when_none="skip")
    defaults = {"batch_size": 8, "eval_batch_size": 8, "negatives": negatives}
    return VMRDataModule("tiny", protocol(), features(), **(defaults | options))


def epoch_of(data: VMRDataModule, epoch: int = 0) -> list[dict]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a
    )


@pytest.fixture(scope="module")
def everything() -> VMRDataModule:
    data = module(needs=NEEDS)
    data.setup("fit")
    return data


def test_every_field_of_the_contract_holds_what_the_sources_and_annotations_say(everything):
    queries = {query.query_id: query for query in protocol().train.queries}
    seen = 0
    counts = Counter(token for query in queries.values() for token in Words().token_ids(query).tolist())
    place = {token: i + 1 for i, token in enumerate(sorted(counts, key=lambda t: (-counts[t], t)))}
    for batch in epoch_of(everything):
        rows, clips = batch["video_mask"].shape
        for i, query_id in enumerate(batch["query_id"]):
            query = queries[query_id]
            video, words = Videos().load(query.video_id), Words().load(query)
            t, tokens = len(video), len(words)
            fraction = torch.tensor(query.moments).div(query.duration)
            assert batch["video_id"][i] == query.video_id
            assert batch["duration"][i] == query.duration
            assert batch["clip_seconds"][i] == 2.0
            for name, expected in {
                "video": video,
                "query": words,
                "patches": Patches().load(query.video_id),
                "query_tokens": Words().token_ids(query),
                "query_words": [place[token] for token in Words().token_ids(query).tolist()],
                "noun_mask": Words().noun_mask(query),
                "word_weights": [0.0, *(1.0 + (t % 2) for t in Words().token_ids(query)[1:].tolist())],
                "narration": Narrations().load(query.video_id)[0],
                "narration_spans": Narrations().load(query.video_id)[1] / query.duration,
                "narration_query": OtherTokens().load(query),
            }.items():
                torch.testing.assert_close(batch[name][i, : len(expected)], torch.as_tensor(expected))
                assert not batch[name][i, len(expected) :].any()
            assert batch["video_mask"][i].tolist() == [True] * t + [False] * (clips - t)
            assert batch["query_mask"][i].sum() == tokens
            assert batch["narration_mask"][i].sum() == len(Narrations().load(query.video_id)[0])
            assert batch["narration_query_mask"][i].sum() == len(OtherTokens().load(query))
            spans = batch["spans"][i][batch["span_mask"][i]]
            assert len(spans) == min(5, len(query.moments))
            assert (torch.cdist(spans, fraction).amin(1) < 1e-6).all()
            assert not batch["spans"][i][~batch["span_mask"][i]].any()
            torch.testing.assert_close(batch["all_spans"][i][batch["all_span_mask"][i]], fraction)

            others = [q for q in queries.values() if q.video_id == query.video_id and q is not query]
            means = [torch.from_numpy(Words().load(q)).mean(0) for q in others]
            assert batch["sibling_mask"][i].sum() == len(others)
            if others:
                torch.testing.assert_close(batch["sibling_query"][i, : len(others)], torch.stack(means))
            assert not batch["sibling_query"][i, len(others) :].any()
            seen += 1
        index = batch["video_index"]
        assert torch.equal(
            index[:, None] == index,
            torch.tensor([[a == b for b in batch["video_id"]] for a in batch["video_id"]]),
        )
        for name, value in batch.items():
            if torch.is_tensor(value):
                integer = name in ("video_index", "query_tokens", "query_words", "shift_order")
                kind = torch.bool if name.endswith("_mask") or name == "moment_clips" else torch.float32
                kind = torch.int64 if integer else kind
                assert value.dtype == kind, name
                assert len(value) == rows
    assert seen == len(queries)


def test_a_negative_is_another_query_of_the_video_at_another_time_and_changes_with_the_epoch(everything):
    queries = {query.query_id: query for query in protocol().train.queries}
    drawn: dict[str, set[str]] = {}
    for epoch in range(4):
        for batch in epoch_of(everything, epoch):
            for i, query_id in enumerate(batch["query_id"]):
                mask = batch["negative_query_mask"][i]
                negative = batch["negative_query"][i][mask].numpy()
                assert not batch["negative_query"][i][~mask].any()
                found = [
                    q.query_id
                    for q in queries.values()
                    if Words().load(q).shape == negative.shape and (Words().load(q) == negative).all()
                ]
                drawn.setdefault(query_id, set()).update(found)
                assert len(found) == int(mask.any())
                assert all(queries[f].video_id == queries[query_id].video_id for f in found)
                assert query_id not in found
    assert {len(names) for names in drawn.values()} == {0, 1, 2}
    with_negative = everything.negative_pool.counts["and_iou_below"]
    assert sum(bool(names) for names in drawn.values()) == with_negative


def test_shifted_spans_point_at_the_clips_that_were_moved(everything):
    moved = 0
    for batch in epoch_of(everything):
        order = batch["shift_order"]
        assert torch.equal(order.sort(1).values, torch.arange(order.shape[1]).expand_as(order))
        assert torch.equal(batch["video_mask"].gather(1, order), batch["video_mask"])
        centre = (torch.arange(order.shape[1]) + 0.5) * 2.0 / batch["duration"][:, None]
        for i in torch.nonzero(batch["span_mask"].sum(1) == 1)[:, 0]:
            (start, end), (new_start, new_end) = batch["spans"][i, 0], batch["shifted_spans"][i, 0]
            inside = (centre[i] >= start) & (centre[i] < end)
            inside_after = (centre[i] >= new_start) & (centre[i] < new_end)
            assert torch.equal(inside[order[i]], inside_after)
            assert new_end - new_start == pytest.approx(float(end - start))
            moved += bool(new_start != start)
        several = batch["span_mask"].sum(1) > 1
        assert torch.equal(batch["shifted_spans"][several], batch["spans"][several])
    assert moved > 20


def test_many_moments_are_thinned_to_a_random_subset_in_training_only(everything):
    def spans(epoch):
        return {
            q: s for b in epoch_of(everything, epoch) for q, s in zip(b["query_id"], b["spans"], strict=True)
        }

    many = [q.query_id for q in protocol().train.queries if len(q.moments) == 7]
    a, b, again = spans(0), spans(1), spans(0)
    assert all(torch.equal(a[q], again[q]) for q in many)
    assert sum(not torch.equal(a[q], b[q]) for q in many) > len(many) / 2
    evaluated = next(iter(everything.val_dataloader()))
    assert evaluated["span_mask"].sum(1).max() == 7


def test_unrated_data_rate_the_clips_inside_a_moment(everything):
    batch = next(iter(everything.val_dataloader()))
    centre = (torch.arange(batch["video"].shape[1]) + 0.5) * 2.0 / batch["duration"][:, None]
    inside = (centre[:, None] >= batch["spans"][..., :1]) & (centre[:, None] < batch["spans"][..., 1:])
    inside = (inside & batch["span_mask"][..., None]).any(1) & batch["video_mask"]
    assert (batch["saliency_mask"] >= inside).all()
    assert (batch["saliency_mask"].sum(1) > 0).all()
    assert torch.equal(batch["saliency"], batch["saliency_mask"].float())


@pytest.mark.parametrize(
    ("clip_seconds", "expected"),
    [(2.0, [6, 0, 4, 0, 0, 0]), (1.0, [6, 6, 0, 0, 4, 4]), (4.0, [0, 0, 0, 0, 0, 0])],
)
def test_ratings_are_summed_and_follow_the_clip_length(clip_seconds, expected):
    data = VMRDataModule(
        "tiny", protocol(True, clip_seconds), features(clip_seconds=clip_seconds), needs={"saliency"}
    )
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    # The midpoint of a 4 s clip starts the second and fourth rated clip, which have no rating.
    assert batch["saliency"][0, :6].tolist() == expected
    assert batch["saliency_mask"][0, :6].tolist() == [bool(x) for x in expected]


def test_evaluation_draws_nothing_and_keeps_the_order_of_the_file(everything):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    loader = everything.eval_dataloader("ood")
    first, second = list(loader), list(loader)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not (TRAINING_ONLY | FOR_DETAILS) & first[0].keys()
    assert [q for b in first for q in b["query_id"]] == [q.query_id for q in protocol().tests["ood"].queries]
    epoch_of(everything)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_details_add_patches_and_words_counted_in_training(everything):
    counts = Counter(t for query in protocol().train.queries for t in Words().token_ids(query).tolist())
    place = {token: i + 1 for i, token in enumerate(sorted(counts, key=lambda t: (-counts[t], t)))}
    queries = {query.query_id: query for query in protocol().tests["ood"].queries}
    plain = list(everything.eval_dataloader("ood"))
    for batch, without in zip(everything.eval_dataloader("ood", details=True), plain, strict=True):
        assert batch.keys() == without.keys() | FOR_DETAILS
        assert same({key: batch[key] for key in without}, without)
        for i, query_id in enumerate(batch["query_id"]):
            query = queries[query_id]
            words = [place[token] for token in Words().token_ids(query).tolist()]
            assert batch["query_words"][i, : len(words)].tolist() == words
            patches = torch.from_numpy(Patches().load(query.video_id))
            assert torch.equal(batch["patches"][i, : len(patches)], patches)


class OtherWords(Words):
    """The test sentences contain tokens that training lacks."""

    def token_ids(self, query):
        return super().token_ids(query) + (0 if query.query_id.startswith("train") else 4)


def test_words_that_training_lacks_are_outside_every_vocabulary():
    data = VMRDataModule("tiny", protocol(), features(query=OtherWords()), needs={"query_words"})
    loader = data.eval_dataloader("iid", details=True)
    batch = next(iter(loader))
    counts = Counter(t for query in protocol().train.queries for t in Words().token_ids(query).tolist())
    assert set(counts) == {1, 2, 3, 4, 5}
    ids = OtherWords().token_ids(protocol().tests["iid"].queries[0]).tolist()
    assert max(ids) > 5
    ranked = sorted(counts, key=lambda t: (-counts[t], t))
    expected = [ranked.index(token) + 1 if token in counts else 2**31 - 1 for token in ids]
    assert batch["query_words"][0, : len(ids)].tolist() == expected


def test_details_do_without_words_where_there_are_no_token_ids():
    class Bare(Words):
        has_token_ids = False

        def token_ids(self, query):
            raise AssertionError

    data = VMRDataModule("tiny", protocol(), features(query=Bare()), needs={"query_words", "patches"})
    batch = next(iter(data.eval_dataloader("iid", details=True)))
    assert "patches" in batch
    assert "query_words" not in batch


def test_details_load_a_split_again_only_where_they_add_something():
    data = module(needs={"sibling_queries"})
    plain = data.eval_dataloader("iid").dataset
    assert data.eval_dataloader("iid", details=True).dataset is plain


def test_workers_change_nothing(everything):
    data = module(needs=NEEDS, num_workers=2)
    data.setup("fit")
    for a, b in zip(epoch_of(data, 3), epoch_of(everything, 3), strict=True):
        assert same(a, b)


def test_half_precision_storage_serves_float32():
    data = module(storage="float16")
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert batch["video"].dtype == torch.float32
    torch.testing.assert_close(
        batch["video"][0, 0], torch.from_numpy(Videos().load("v30")[0]), rtol=1e-3, atol=0
    )


def test_clip_length_follows_from_the_duration_where_features_declare_none():
    data = VMRDataModule("tiny", protocol(), features(clip_seconds=None))
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    torch.testing.assert_close(batch["clip_seconds"], batch["duration"] / batch["video_mask"].sum(1))


def test_batches_by_video_hold_all_its_queries():
    data = module(by_video=True, batch_size=4, eval_batch_size=3)
    data.setup()
    count = {v: sum(q.video_id == v for q in protocol().train.queries) for v in protocol().train.video_ids}
    for batch in epoch_of(data):
        assert len(set(batch["video_id"])) <= 4
        assert all(batch["video_id"].count(v) == count[v] for v in batch["video_id"])
    assert [len(set(b["video_id"])) for b in data.eval_dataloader("iid")] == [3, 3]


def test_a_training_batch_holds_no_two_groups_of_a_video_where_they_are_kept_apart():
    def repeated(**options):
        data = module(by_video=True, rows_per_video=1, batch_size=8, **options)
        batches = [batch["video_id"] for epoch in range(4) for batch in epoch_of(data, epoch)]
        assert all(len(set(videos)) > 1 for videos in batches)
        return sum(len(set(videos)) < len(videos) for videos in batches)

    assert repeated() > 0
    assert repeated(groups_apart=True) == 0


def test_a_video_with_many_queries_is_cut_into_groups_in_evaluation_too():
    def sizes(**options):
        data = module(by_video=True, eval_batch_size=1, **options)
        batches = [batch["query_id"] for batch in data.eval_dataloader("iid")]
        assert {q for batch in batches for q in batch} == {q.query_id for q in data.split("iid").queries}
        return [len(batch) for batch in batches]

    assert sizes() == [2, 3, 1, 2, 3, 1]
    assert sizes(eval_rows_per_video=2) == [2, 2, 1, 1, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("row_order", "expected"),
    [("file", "abcde"), ("start", "cbaed"), ("start_clip", "cabde")],
)
def test_rows_of_a_video_come_in_the_order_asked_for(row_order, expected):
    """Of 8 clips of 2 s. a and b start in the third; d and e start after the last, and count as in it."""
    starts = {"a": 5.0, "b": 4.5, "c": 1.0, "d": 29.0, "e": 20.0}
    queries = [Query(name, "v30", "x", ((start, start + 0.5),), 30.0) for name, start in starts.items()]
    tiny = dataclasses.replace(protocol(), selection=Split("selection", tuple(queries)))
    data = VMRDataModule("tiny", tiny, features(), by_video=True, row_order=row_order)
    (batch,) = data.val_dataloader()
    assert "".join(batch["query_id"]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"needs": {"narrations"}}, "Did you mean narration"),
        ({"selection": "ood"}, "selects on: published"),
        ({"storage": "float8"}, "float16"),
        ({"by_video": True, "no_repeat_video": True}, "no_repeat_video"),
        ({"rows_per_video": 3}, "by_video"),
        ({"batch_size": 0}, "batch_size >= 1"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(VmrError, match=message):
        module(**options)


@pytest.mark.parametrize(
    ("need", "served"),
    [("narration", "with narrations"), ("narration_query", "with words for the narrations")],
)
def test_a_need_that_the_features_cannot_serve_is_refused_at_set_up(need, served):
    bare = features(**{need: None, f"{need}_dim": None})
    data = VMRDataModule("tiny", protocol(), bare, needs={need})
    with pytest.raises(VmrError, match=rf"needs '{need}', which a feature set {served} .* serves"):
        data.setup("fit")


def test_missing_features_are_named_before_training():
    source = Videos()
    source.gone = tuple(f"v{v}" for v in range(45, 50))  # of the test splits
    data = VMRDataModule("tiny", protocol(), features(video=source))
    with pytest.raises(VmrError, match=r"missing for 5 ids: v45, v46"):
        data.setup("fit")


def test_another_number_of_patches_is_refused_before_training_and_in_a_batch():
    message = "features=tiny.* declares patch_count=4, but its source yields 3"
    data = VMRDataModule("tiny", protocol(), features(patch_count=4), needs={"patches"})
    with pytest.raises(VmrError, match=message):
        data.setup("fit")
    later = VMRDataModule("tiny", protocol(), features(patch_count=3), needs={"patches"})
    loader = later.eval_dataloader("iid", details=True)
    loader.dataset.features.patch_count = 4
    with pytest.raises(VmrError, match=message):
        next(iter(loader))


def test_sentences_about_videos_without_features_are_dropped_where_that_is_chosen():
    source = Videos()
    source.gone = ("v1", "v47")
    data = VMRDataModule("tiny", protocol(), features(video=source), missing_videos="dropped")
    data.setup()
    served = {v for batch in epoch_of(data) for v in batch["video_id"]}
    assert served == set(protocol().train.video_ids) - {"v1"}
    assert {q.video_id for q in data.split("ood").queries} == {"v46", "v48", "v49"}
    assert data.split("iid").queries == protocol().tests["iid"].queries


def test_rows_without_an_epoch_or_one_by_one_are_refused(everything):
    training = everything.train_dataloader().dataset
    with pytest.raises(VmrError, match="epoch"):
        training[RowBatch(None, np.arange(3))]
    with pytest.raises(VmrError, match="overfit_batches"):
        training[3]


class Recorder(lightning.LightningModule):
    """Trains one weight and remembers its batches; may save or stop after so many steps."""

    def __init__(self, save_at: int | None = None, path: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.batches: list[dict] = []
        self.save_at, self.path = save_at, path
        self.predicted: list[str] = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return (batch["video"] @ self.weight).mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if len(self.batches) == self.save_at:
            self.trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def validation_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch["query_id"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**options) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("save_at", [3, 8, 11])
def test_lightning_resumes_a_run_with_the_very_batches_it_would_have_seen(tmp_path, save_at, num_workers):
    """Steps 3 and 11 are within an epoch of 8 batches; step 8 ends one."""
    needs = frozenset({"negative_query", "shift"})
    whole = Recorder()
    trainer(max_epochs=3).fit(whole, datamodule=module(needs=needs))
    assert len(whole.batches) == 24

    path = str(tmp_path / "last.ckpt")
    broken = Recorder(save_at, path)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(max_epochs=3).fit(broken, datamodule=module(needs=needs))
    resumed = Recorder()
    trainer(max_epochs=3).fit(
        resumed, datamodule=module(needs=needs, num_workers=num_workers), ckpt_path=path
    )
    batches = broken.batches + resumed.batches
    assert len(batches) == 24
    for step, (a, b) in enumerate(zip(batches, whole.batches, strict=True)):
        assert same(a, b), step
    assert torch.equal(resumed.weight, whole.weight)
    assert not same(whole.batches[0], whole.batches[8])


def test_lightning_predicts_every_query_of_every_test_split_once():
    data = module()
    predicted = trainer().predict(Recorder(), data.test_dataloader())
    names = [[q for batch in split for q in batch] for split in predicted]
    assert names == [[q.query_id for q in protocol().tests[name].queries] for name in data.test_names]
