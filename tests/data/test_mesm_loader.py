"""What MESM's released loader does and no other: pooling, moments, words and groups."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vmr_zoo.data.annotations.rows import MomentRules, RowCollector
from vmr_zoo.data.batches.sampling import EpochBatchSampler
from vmr_zoo.data.batches.word_ranks import listed_ranks
from vmr_zoo.data.features.files import mean_pool
from vmr_zoo.data.features.source import QuerySource
from vmr_zoo.data.text.tagging import ContentWords
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.mesm.frame_word import draw_words
from vmr_zoo.utils.arrays import l2_normalise


@pytest.mark.parametrize("length", [4, 5, 6, 10, 31])
@pytest.mark.parametrize("edges", ["floor", "half_even"])
def test_bins_of_a_long_video(length, edges):
    video = np.random.default_rng(0).random((length, 3), np.float32)
    exact = [i * length / 4 for i in range(5)]
    # Python rounds halves to even numbers.
    first = [int(x) for x in exact] if edges == "floor" else [min(round(x), length - 1) for x in exact]
    want = [video[a : max(b, a + 1)].mean(0) for a, b in itertools.pairwise(first)]
    np.testing.assert_allclose(mean_pool(video, 4, edges), want, atol=1e-6)


def test_a_floor_under_the_norm_leaves_unit_vectors_as_they_are():
    x = np.array([[3e-4, 4e-4], [0.0, 0.0]])
    np.testing.assert_allclose(l2_normalise(x, "floor"), [[0.6, 0.8], [0, 0]])
    assert abs(np.linalg.norm(l2_normalise(x)[0]) - 1) > 0.01


@pytest.mark.parametrize(
    ("times", "moment", "want"),
    [
        ("swapped", (5.0, 3.0), (3.0, 5.0)),
        ("swapped", (5.0, 12.0), (5.0, 10.0)),
        ("swapped", (10.0, 12.0), (10.0, 10.0)),
        ("swapped", (11.0, 3.0), None),
        ("forward", (5.0, 12.0), (5.0, 10.0)),
        ("forward", (5.0, 3.0), None),
        ("forward", (5.0, 5.0), (5.0, 5.0)),
    ],
)
@pytest.mark.parametrize("scored", [True, False])
def test_moments_that_do_not_fit(times, moment, want, scored):
    rows = RowCollector(Path("x"), scored, MomentRules(times))
    rows.add("q", "v", "text", [moment], 10.0)
    assert getattr(rows.finish()[0].query, "moments", None) == (None if want is None else (want,))


def test_content_words_by_hanta_and_by_a_table(tmp_path):
    words = ["a", "man", "quickly", "opens", "the", "red", "door", "."]
    assert ContentWords("hanta").marks(words) == [False, True, True, True, False, True, True, False]
    table = tmp_path / "tags.json"
    table.write_text(json.dumps({"a": "DT", "man": "NNS", "opens": "VBZ"}))
    assert ContentWords("table", table).marks(words[:2]) == [False, True]
    with pytest.raises(VmrError, match="quickly"):
        ContentWords("table", table).marks(words)
    with pytest.raises(VmrError, match="table"):
        ContentWords("table")


class Listed(QuerySource):
    def load(self, query):
        raise AssertionError

    def manifest(self):
        return {}

    def listed_id(self, token):
        return None if token == "rare" else int(token)


def test_ranks_are_the_lines_of_a_file_of_counts(tmp_path):
    file = tmp_path / "counts.txt"
    file.write_text("40 9\nrare 5\n7 3 2\n")
    assert listed_ranks(file, Listed()) == {40: 1, 7: 3}
    file.write_text("word 1\n")
    with pytest.raises(VmrError, match="word_counts"):
        listed_ranks(file, Listed())


def test_groups_of_one_video_are_kept_apart_in_every_epoch():
    video = np.array([0] * 6 + [1, 1, 2, 2, 3])
    groups = list(np.arange(11)[:, None])
    sampler = EpochBatchSampler(groups, np.ones(11, np.int64), 3, seed=0, apart=video)
    seen = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        batches = [batch.rows for batch in sampler]
        assert len(batches) == len(sampler)
        for rows in batches:
            assert 2 <= len(rows) <= 3
            assert len(set(video[rows])) == len(rows)
        used = np.concatenate(batches)
        assert len(set(used)) == len(used)
        left = set(range(11)) - set(used)
        assert len({video[group] for group in left}) <= 1
        seen |= set(used)
    assert seen == set(range(11))


def test_words_of_double_weight_are_masked_twice_as_often_and_the_ends_never():
    torch.manual_seed(0)
    weights = torch.tensor([[0.0, 2, 1, 1, 0]]).repeat(6000, 1)
    drawn = draw_words(torch.ones(6000, 5, dtype=torch.bool), weights)
    assert (drawn.sum(1) == 1).all()  # a third of five
    share = drawn.float().mean(0)
    assert share[[0, 4]].sum() == 0
    torch.testing.assert_close(share[1:4], torch.tensor([0.5, 0.25, 0.25]), atol=0.02, rtol=0)
