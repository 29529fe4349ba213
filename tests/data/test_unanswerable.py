"""Which sentences without an answer are chosen; on shapes, the scenes are asked."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import toy
from vmr_zoo.data.annotations.no_answer import InDomain, OutOfDomain
from vmr_zoo.data.annotations.records import Protocol, Query, Split
from vmr_zoo.data.worlds.shapes.answers import SceneAnswers
from vmr_zoo.data.worlds.shapes.generate import annotate, scenes
from vmr_zoo.data.worlds.shapes.sentences import Clause, may_hold
from vmr_zoo.data.worlds.shapes.world import (
    GROUPS,
    Background,
    Event,
    Scene,
    Thing,
    WorldSettings,
    sample_scene,
    scene_of,
)
from vmr_zoo.errors import VmrError

WORLD = WorldSettings(train_videos=1, selection_videos=12, test_videos=12)


@pytest.fixture(scope="module")
def rows():
    return annotate(WORLD)


@pytest.fixture(scope="module")
def shapes(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotations")
    splits = {}
    for name, listed in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in listed))
        queries = [
            Query(
                row["query_id"],
                row["video_id"],
                row["query"],
                tuple(map(tuple, row["moments"])),
                row["duration"],
            )
            for row in listed
        ]
        splits[name] = Split(name, tuple(queries))
    train, selection = splits.pop("train"), splits.pop("selection")
    answers = SceneAnswers(WORLD, tuple(folder.glob("*.jsonl")))
    return Protocol("shapes", train, selection, splits, "generated", pool="shapes", answers=answers)


def in_domain(**options):
    return InDomain(encoder=toy.WordCounts(), **options)


def holds_one(scene, clause):
    return any(
        event.action == clause["action"]
        and clause["colour"] in (None, scene.things[event.thing].colour)
        and clause["shape"] in (None, scene.things[event.thing].shape)
        for event in scene.events
    )


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_no_chosen_sentence_is_one_that_the_scene_answers(shapes, rows, share):
    world = {scene.video_id: scene for _, scene in scenes(WORLD)}
    clauses = {row["query_id"]: row["clauses"] for listed in rows.values() for row in listed}
    passed_over = 0
    for name in ("iid", "ood_time", "novel_word"):
        chosen = in_domain(share=share).choose(shapes, shapes.tests[name])
        passed_over += chosen.facts["passed_over"]
        for query, donor in chosen.donors.items():
            meaning = clauses[donor.query_id]
            if len(meaning) == 1:
                assert not holds_one(world[query.video_id], meaning[0])
        presumed = in_domain(share=share, proof=False).choose(shapes, shapes.tests[name])
        wrong = [shapes.answers(query.video_id, donor) for query, donor in presumed.donors.items()]
        assert presumed.facts["answered_after_all"] == sum(wrong)
    if share == 1.0:
        assert passed_over > 0, "the test would not notice a proof that is not asked"


def test_every_sentence_of_a_video_gets_a_counterpart_from_other_videos(shapes):
    split = shapes.tests["iid"]
    chosen = in_domain().choose(shapes, split)
    assert [query.query_id for query in chosen.split.queries] == [
        f"{q.query_id}_no_answer" for q in split.queries
    ]
    assert chosen.facts["sentences"] == len(split.queries)
    own = {}
    for query in split.queries:
        own.setdefault(query.video_id, set()).add(query.text)
    for query, donor in chosen.donors.items():
        assert query.text == donor.text
        assert query.moments == ()
        assert donor.video_id != query.video_id
        assert donor.text not in own[query.video_id]
    pairs = [(query.video_id, query.text) for query in chosen.split.queries]
    assert len(set(pairs)) == len(pairs), "no sentence twice on one video"


def test_chosen_sentences_are_far_from_every_sentence_of_the_video(shapes):
    split = shapes.tests["iid"]
    encoder = toy.WordCounts()

    def nearest(video_id, text):
        own = [query.text for query in split.queries if query.video_id == video_id]
        return float((encoder.sentences(own) @ encoder.sentences([text])[0]).max())

    chosen = in_domain(share=0.25).choose(shapes, split)
    for video_id in split.video_ids[:5]:
        others = sorted(nearest(video_id, q.text) for q in split.queries if q.video_id != video_id)
        limit = others[int(np.ceil(0.25 * len(others))) - 1]
        taken = [nearest(video_id, q.text) for q in chosen.split.queries if q.video_id == video_id]
        assert max(taken) <= limit + 1e-4


def test_the_choice_depends_on_split_and_seed_alone(shapes):
    split = shapes.tests["iid"]
    first = in_domain().choose(shapes, split)
    assert in_domain().choose(shapes, split) == first
    assert in_domain(seed=1).choose(shapes, split).split != first.split


def test_scenes_hold_every_sentence_about_them(shapes):
    asked = shapes.queries
    assert len(asked) > 300
    assert all(shapes.answers(query.video_id, query) for query in asked)


def test_a_scene_is_found_by_the_id_of_its_video():
    world = WorldSettings(seed=3)
    for number, group in enumerate(GROUPS):
        drawn = sample_scene(world, group, 12)
        assert scene_of(world, drawn.video_id) == drawn
        assert drawn.seed == (3, number, 12, 1)  # errors of narrations and of moments are seeded by it


def test_relations_decide_whether_a_scene_holds_a_sentence():
    red, blue = Thing("red", "star", (0.0,) * 5), Thing("blue", "ring", (0.0,) * 5)
    events = (Event(0, "spin", 2.0, 5.0), Event(1, "grow", 8.0, 12.0))
    scene = Scene(
        "test_00000", 20, (red, blue), events, (Background(0.0, "plain", ((0,) * 3,) * 2, (0, 0), 1.0),)
    )
    spin, grow = Clause("spin", "red", None), Clause("grow", None, "ring")
    assert may_hold(scene, (spin, grow), ("before",))
    assert may_hold(scene, (grow, spin), ("after",))
    assert may_hold(scene, (spin, grow), ("then",))
    assert not may_hold(scene, (grow, spin), ("then",))
    assert not may_hold(scene, (spin, grow), ("after",))
    assert not may_hold(scene, (spin, grow), ("while",))
    assert not may_hold(scene, (Clause("spin", "blue", None),), ())
    nearly = replace(scene, events=(events[0], Event(1, "grow", 4.5, 9.0)))  # overlaps by half a second
    assert may_hold(nearly, (spin, grow), ("while",))


def test_out_of_domain_sentences_come_from_another_data_set(shapes):
    other = toy.protocol()
    chosen = OutOfDomain(protocol=other).choose(shapes, shapes.tests["iid"])
    texts = {query.text for split in other.tests.values() for query in split.queries}
    assert {query.text for query in chosen.split.queries} <= texts
    assert chosen.facts["left_out"] > 0, "the toy data have fewer sentences than some video asks for"
    assert chosen == OutOfDomain(protocol=other).choose(shapes, shapes.tests["iid"])
    for same in (shapes, replace(other, pool="shapes")):
        with pytest.raises(VmrError, match="not out of the domain"):
            OutOfDomain(protocol=same).choose(shapes, shapes.tests["iid"])


def test_a_split_about_one_video_has_no_other_sentences(shapes):
    alone = Split("one", tuple(q for q in shapes.tests["iid"].queries if q.video_id == "test_00003"))
    with pytest.raises(VmrError, match="of the one split"):
        in_domain().choose(shapes, alone)
