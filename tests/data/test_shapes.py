import hashlib
import json
from dataclasses import replace

import av
import numpy as np
import pytest

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.text.sentence import SentenceEncoder
from vmr_zoo.data.worlds.shapes import GridEncoder, SceneNarrator, WorldSettings, protocol
from vmr_zoo.data.worlds.shapes.features import RenderedNarrations, RenderedVideos, features_folder
from vmr_zoo.data.worlds.shapes.generate import SPLITS, VERSION, annotate, generate_world, scenes, video_path
from vmr_zoo.data.worlds.shapes.render import write
from vmr_zoo.data.worlds.shapes.sentences import NOVEL, Clause, matching
from vmr_zoo.data.worlds.shapes.weak import WeakAlignment
from vmr_zoo.data.worlds.shapes.world import (
    BY_SHAPE,
    GROUPS,
    OPPOSITES,
    Background,
    Event,
    Scene,
    Thing,
    held_out,
    sample_scene,
)
from vmr_zoo.errors import VmrError

TINY = WorldSettings(train_videos=4, selection_videos=2, test_videos=2, shortest=16, longest=20)
FULL = WorldSettings()
"""The default size; these tests do not render it."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tiny(cache):
    return generate_world(TINY, cache, processes=2)


def words(rows):
    return {word for row in rows for word in row["query"].lower().strip(".").split()}


@pytest.fixture(scope="module")
def rows():
    return annotate(FULL)


# ---------------------------------------------------------------- queries


def test_default_world_is_large_enough_and_what_version_says(rows):
    assert len({row["video_id"] for split in rows.values() for row in split}) >= 600
    assert sum(map(len, rows.values())) >= 2500
    # A change of world or grammar changes the data of all results: raise VERSION, then update this. Sizes
    # alone need no new version: a larger split begins with the smaller one.
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert (VERSION, digest[:16]) == ("2", "94792865e433176f")


def test_query_ids_are_unique_and_moments_lie_in_the_video(rows):
    listed = [row for split in rows.values() for row in split]
    assert len({row["query_id"] for row in listed}) == len(listed)
    assert all(0 <= s < e <= row["duration"] for row in listed for s, e in row["moments"])


def test_ground_truth_is_everything_that_a_simple_sentence_describes(rows):
    """Matches the scenes again with the colours, shapes and actions of the row."""
    worlds = {scene.video_id: scene for _, scene in scenes(FULL)}
    checked = 0
    for row in rows["train"] + rows["novel_word"] + rows["novel_composition"]:
        if len(row["clauses"]) == 1:
            (clause,) = row["clauses"]
            scene = worlds[row["video_id"]]
            found = [
                [event.start, event.end]
                for event in scene.events
                if event.action == clause["action"]
                and clause["colour"] in (None, scene.things[event.thing].colour)
                and clause["shape"] in (None, scene.things[event.thing].shape)
            ]
            assert row["moments"] == found
            checked += 1
    assert checked > 2000


def test_complex_sentences_have_one_moment_and_often_need_their_second_clause(rows):
    worlds = {scene.video_id: scene for _, scene in scenes(FULL)}
    deciding = 0
    for row in rows["complex"]:
        assert len(row["moments"]) == 1
        assert len(row["clauses"]) == len(row["relations"]) + 1 >= 2
        deciding += len(matching(worlds[row["video_id"]], Clause(**row["clauses"][0]))) > 1
    assert deciding > 0.08 * len(rows["complex"])


def test_novel_words_are_novel_and_only_there(rows):
    known = words(rows["train"])
    assert all(words([row]) - known for row in rows["novel_word"])
    for split in SPLITS.keys() - {"novel_word", "paraphrase"}:
        assert words(rows[split]) <= known
    concepts = {word for words in NOVEL.values() for phrase in words for word in phrase.split()}
    assert not concepts & words(rows["paraphrase"])


def test_novel_words_repeat_the_questions_of_iid(rows):
    def meaning(row):
        return row["video_id"], json.dumps(row["clauses"]), json.dumps(row["moments"])

    simple = {meaning(row) for row in rows["iid"] if len(row["clauses"]) == 1}
    assert simple <= {meaning(row) for row in rows["novel_word"]}


def test_novel_compositions_happen_in_their_own_videos_only(rows):
    for group, scene in scenes(FULL):
        novel = [e for e in scene.events if held_out(scene.colour(e), scene.shape(e), e.action)]
        assert bool(novel) == (group == "pairs")
    assert len(rows["novel_composition"]) > 150
    assert all(
        held_out(c["colour"], c["shape"], c["action"])
        for row in rows["novel_composition"]
        for c in row["clauses"]
    )


def iou(answers, moments):
    """(A, M) IoU of answers (A, 2) with moments (M, 2)."""
    inter = np.minimum(answers[:, None, 1], moments[:, 1]) - np.maximum(answers[:, None, 0], moments[:, 0])
    union = np.maximum(answers[:, None, 1], moments[:, 1]) - np.minimum(answers[:, None, 0], moments[:, 0])
    return inter.clip(0) / union


def test_a_query_alone_helps_on_iid_and_misleads_on_ood_time(rows):
    """The best answer of train to each action, without a look at the video, against one answer to all."""
    answers = np.array([(s, s + w) for s in np.arange(0, 0.9, 0.02) for w in np.arange(0.1, 0.5, 0.02)])

    def best(rows):
        return answers[(iou(answers, np.array(rows)) >= 0.5).mean(1).argmax()]

    def first(row):
        return row["clauses"][0]["action"], len(row["clauses"]) > 1

    def r1(split, answer):
        hits = [
            iou(answer(row)[None], np.array(row["moments"]) / row["duration"]).max() >= 0.5
            for row in rows[split]
        ]
        return 100 * np.mean(hits)

    asked = {}
    for row in rows["train"]:
        asked.setdefault(first(row), []).append(np.array(row["moments"][0]) / row["duration"])
    constant = best([moment for moments in asked.values() for moment in moments])
    by_action = {action: best(moments) for action, moments in asked.items()}
    assert r1("iid", lambda row: constant) == pytest.approx(r1("ood_time", lambda row: constant), abs=3)
    assert r1("iid", lambda row: by_action[first(row)]) > r1("iid", lambda row: constant) + 15
    assert (
        r1("iid", lambda row: by_action[first(row)]) > r1("ood_time", lambda row: by_action[first(row)]) + 20
    )


def test_ood_time_changes_nothing_but_the_places_of_actions():
    """Numbers of events, their lengths and times, and the frequency of each pair of opposites are alike."""
    drawn = {"test": [], "exchanged": []}
    for group, listed in drawn.items():
        for index in range(300):
            scene = sample_scene(FULL, group, index)
            listed += [(scene, event) for event in scene.events]
    test, exchanged = drawn.values()
    assert len(test) == pytest.approx(len(exchanged), rel=0.05)
    for measure in (
        lambda scene, event: (event.end - event.start) / scene.duration,
        lambda scene, event: event.start / scene.duration,
        *(lambda scene, event, pair=pair: event.action in pair for pair in (*OPPOSITES, BY_SHAPE)),
    ):
        means = [np.mean([measure(*pair) for pair in listed]) for listed in (test, exchanged)]
        assert means[0] == pytest.approx(means[1], abs=0.03)
    for action in (action for pair in OPPOSITES for action in pair):
        starts = [
            [e.start / s.duration for s, e in listed if e.action == action] for listed in (test, exchanged)
        ]
        assert abs(np.mean(starts[0]) - np.mean(starts[1])) > 0.15, action


def test_paraphrases_ask_the_same_in_other_patterns(rows):
    def meaning(row):
        return row["video_id"], json.dumps(row["clauses"]), json.dumps(row["moments"])

    simple = {meaning(row): row["query"] for row in rows["iid"] if len(row["clauses"]) == 1}
    asked = {meaning(row): row["query"] for row in rows["paraphrase"]}
    assert simple.keys() <= asked.keys()
    assert not {row["query"] for row in rows["paraphrase"]} & {row["query"] for row in rows["train"]}


@pytest.mark.parametrize(("setting", "groups"), [("train", 1), ("selection", 1), ("test", 3)])
def test_more_videos_leave_the_others_alone(setting, groups):
    key = f"{setting}_videos"
    larger = replace(TINY, **{key: getattr(TINY, key) + 3})
    few, many = ({s.video_id: s for _, s in scenes(settings)} for settings in (TINY, larger))
    assert len(many) == len(few) + 3 * groups
    assert all(many[video_id] == scene for video_id, scene in few.items())
    for split, rows in annotate(TINY).items():
        assert annotate(larger)[split][: len(rows)] == rows


# ---------------------------------------------------------------- videos


def test_same_seed_same_bytes_whoever_renders(tiny, tmp_path):
    again = generate_world(TINY, tmp_path, processes=1)
    files = sorted(path.relative_to(tiny) for path in tiny.rglob("*") if path.suffix in (".mp4", ".jsonl"))
    assert len(files) == TINY.train_videos + TINY.selection_videos + 3 * TINY.test_videos + len(SPLITS)
    for file in files:
        assert (tiny / file).read_bytes() == (again / file).read_bytes(), file


def test_videos_are_h264_of_the_stated_length(tiny):
    for _, scene in scenes(TINY):
        with av.open(str(video_path(tiny, scene.video_id))) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (TINY.width, TINY.height)
            assert float(stream.duration * stream.time_base) == pytest.approx(scene.duration)


def test_interrupted_rendering_resumes_and_half_a_file_is_none(tmp_path, monkeypatch):
    calls = []

    def fails_at_third(scene, path, fps, height):
        calls.append(scene.video_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(scene, path, fps, height)

    monkeypatch.setattr("vmr_zoo.data.worlds.shapes.render.write", fails_at_third)
    with pytest.raises(KeyboardInterrupt):
        generate_world(TINY, tmp_path, processes=1)
    (folder,) = (tmp_path / "shapes").iterdir()
    assert not (folder / "manifest.json").exists()
    rendered = len(list((folder / "videos").iterdir()))
    assert rendered == 2
    generate_world(TINY, tmp_path, processes=1)
    assert len(calls) == 3 + sum(map(TINY.size, GROUPS)) - rendered
    assert (folder / "manifest.json").exists()


# ---------------------------------------------------------------- features


def scene_of(*events, shape="star", colour="green", size=0.15):
    thing = Thing(colour, shape, (0.66, 0.5, float(np.log(size)), 0.3, 1.0))
    grey = Background(0.0, "stripes", ((90, 95, 100), (120, 115, 118)), (0.01, 0.0), 0.3)
    return Scene("train_00000", 9, (thing,), events, (grey,))


def by_hue(scene, tmp_path, encoder=None):
    """(seconds, quantities) of the hue that the thing fills most."""
    encoder = encoder or GridEncoder()
    path = tmp_path / "video.mp4"
    write(scene, path, 8, 96)
    clips, patches = encoder.encode(list(encoder.clips(path)))
    hues = clips[:, : 17 * encoder.hues].reshape(len(clips), encoder.hues, 17)
    return hues[:, hues[:, :, 0].sum(0).argmax()], clips, patches


@pytest.mark.parametrize(
    ("action", "change", "column", "sign"),
    [
        ("right", (0.4, 0, 0, 0, 0), 10, 1),
        ("left", (-0.4, 0, 0, 0, 0), 10, -1),
        ("down", (0, 0.3, 0, 0, 0), 11, 1),
        ("up", (0, -0.3, 0, 0, 0), 11, -1),
        ("grow", (0, 0, 0.6, 0, 0), 12, 1),
        ("shrink", (0, 0, -0.5, 0, 0), 12, -1),
        ("appear", (0, 0, 0, 0, 1), 13, 1),
        ("vanish", (0, 0, 0, 0, -1), 13, -1),
        ("blink", (0, 0, 0, 0, 0), 14, 1),
        ("shake", (0, 0, 0, 0, 0), 15, 1),
        ("spin", (0, 0, 0, 6.0, 0), 16, 1),
    ],
)
def test_encoder_sees_an_action_when_it_happens(action, change, column, sign, tmp_path):
    scene = scene_of(Event(0, action, 3.0, 6.0, change))
    if action == "appear":
        scene = replace(scene, things=(replace(scene.things[0], state=(*scene.things[0].state[:4], 0.0)),))
    hue, _, _ = by_hue(scene, tmp_path)
    during, outside = sign * hue[3:6, column], np.abs(hue[[1, 8], column])
    assert during.mean() > 3 * outside.max() + 0.02


def test_encoder_tells_shapes_apart_whatever_their_angle_and_size(tmp_path):
    """The nearest mean form of the training shapes names the shape at other sizes."""
    names = ("circle", "ring", "square", "triangle", "star", "cross", "bar")

    def form(shape, size):
        return by_hue(scene_of(shape=shape, size=size), tmp_path)[0][:, 5:10].mean(0)

    known = np.stack([form(shape, 0.14) for shape in names])
    for number, shape in enumerate(names):
        assert np.abs(known - form(shape, 0.22)).sum(1).argmin() == number, shape


def test_features_have_the_declared_sizes_and_place_things(tmp_path):
    encoder = GridEncoder(rows=3, columns=4)
    _, clips, patches = by_hue(scene_of(), tmp_path, encoder)
    assert clips.shape == (9, encoder.dim)
    assert patches.shape == (9, 12, encoder.patch_dim)
    coloured = patches[:, :, : encoder.hues].sum(-1)
    assert np.isin(coloured.argmax(1), (5, 6)).all()  # the middle of a 3 x 4 grid
    assert coloured[:, [0, 3, 8, 11]].max() < 0.01  # striped grey corners have no hue


def test_features_are_sampled_by_time_not_by_frame(tmp_path):
    """Twice the frame rate shows the same things at the same times."""
    scene = scene_of(Event(0, "right", 3.0, 6.0, (0.4, 0, 0, 0, 0)))
    slow, fast = tmp_path / "slow.mp4", tmp_path / "fast.mp4"
    write(scene, slow, 8, 96)
    write(scene, fast, 16, 96)
    encoder = GridEncoder()
    first, second = (encoder.encode(list(encoder.clips(path)))[0] for path in (slow, fast))
    assert np.abs(first - second).mean() < 0.02


def test_extraction_is_deterministic_and_served_by_id(tiny, cache):
    encoder = GridEncoder()
    clips, patches = encoder.encode(list(encoder.clips(video_path(tiny, "exchanged_00001"))))
    video = RenderedVideos(TINY, cache, encoder, processes=2)
    cells = RenderedVideos(TINY, cache, encoder, part="patches")
    assert np.array_equal(video.load("exchanged_00001"), clips)
    assert np.array_equal(cells.load("exchanged_00001"), patches.astype(np.float16).astype(np.float32))
    files = {path.stem for path in features_folder(TINY, cache, encoder).glob("*.npz")}
    assert files == {scene.video_id for _, scene in scenes(TINY)}
    with pytest.raises(VmrError, match="no video 'AO8RW'"):
        video.load("AO8RW")


def test_clips_are_encoded_alike_whatever_stands_beside_them(tiny):
    """Neighbours share a picture; clips of other videos, or the same ones in another order, do not matter."""
    encoder = GridEncoder(clip_seconds=2.0, samples=3)
    first, second = (list(encoder.clips(video_path(tiny, f"train_0000{n}"))) for n in (0, 1))
    together = encoder.encode([*second[3:5], *first[::-1]])
    alone = encoder.encode(first)
    for mixed, straight in zip(together, alone, strict=True):
        assert np.array_equal(mixed[2:][::-1], straight)


@pytest.mark.parametrize(("blind", "shown"), [("colour", ["form"]), ("form", ["colour"]), ("both", [])])
def test_a_blind_encoder_hides_a_property(blind, shown, tmp_path):
    """Videos that differ in one property have similar features if the encoder is blind to it."""
    encoder, whole = GridEncoder(blind=blind), GridEncoder()

    def features(**look):
        path = tmp_path / "video.mp4"
        write(scene_of(Event(0, "right", 3.0, 6.0, (0.4, 0, 0, 0, 0)), **look), path, 8, 96)
        clips = list(encoder.clips(path))
        return np.array([one.encode(clips)[0] for one in (encoder, whole)])

    base, others = features(), {"colour": features(colour="blue"), "form": features(shape="bar")}
    for name, other in others.items():
        blinded, sighted = np.abs(other - base).mean((1, 2))
        assert (blinded > 0.5 * sighted) == (name in shown)
    assert encoder.manifest() != whole.manifest()
    norms = np.linalg.norm(base, axis=2).mean(1)
    assert norms[0] == pytest.approx(norms[1], rel=0.3)  # some methods read features as they are
    patches = encoder.encode(list(encoder.clips(tmp_path / "video.mp4")))[1]
    assert patches[..., 1:16].any() == ("colour" in shown)  # hues but the first
    assert patches[..., 36:].any() == ("form" in shown)  # directions of edges


# ---------------------------------------------------------------- weak alignment


def test_weak_alignment_changes_the_moments_of_train_alone(tiny, cache):
    exact = protocol(TINY, cache)
    weak = protocol(TINY, cache, weak=WeakAlignment(boundary_noise=0.3, partial=0.5))
    assert {name: weak.splits[name] for name in weak.splits if name != "train"} == {
        name: exact.splits[name] for name in exact.splits if name != "train"
    }
    assert [q.text for q in weak.train.queries] == [q.text for q in exact.train.queries]
    assert protocol(TINY, cache, weak=WeakAlignment()).train == exact.train
    assert protocol(TINY, cache, weak=WeakAlignment(boundary_noise=0.3, partial=0.5)).train == weak.train


def test_weak_alignment_has_the_declared_strength(rows):
    queries = tuple(
        Query(r["query_id"], r["video_id"], r["query"], tuple(map(tuple, r["moments"])), r["duration"])
        for r in rows["train"]
    )
    exact = Split("train", queries)
    noisy = WeakAlignment(boundary_noise=0.1).weaken(exact, FULL)
    shifts = [
        (after.moments[0][0] - before.moments[0][0]) / (before.moments[0][1] - before.moments[0][0])
        for before, after in zip(exact.queries, noisy.queries, strict=True)
        if len(before.moments) == 1 and before.moments[0][0] > 1
    ]
    assert np.std(shifts) == pytest.approx(0.1, abs=0.01)
    partial = WeakAlignment(partial=0.5).weaken(exact, FULL)
    longer = [
        after.moments[0][0] <= before.moments[0][0]
        and after.moments[0][1] >= before.moments[0][1]
        and after.moments != before.moments
        for before, after in zip(exact.queries, partial.queries, strict=True)
    ]
    assert 0.35 < np.mean(longer) <= 0.5
    for query in (*noisy.queries, *partial.queries):
        assert all(0 <= start < end <= query.duration for start, end in query.moments)


# ---------------------------------------------------------------- narrations


def test_narrator_errs_at_the_declared_rates():
    """Counts omitted, altered and hallucinated events in 100 scenes."""
    drawn = [sample_scene(FULL, "train", i) for i in range(100)]

    def said(**rates):
        narrator = SceneNarrator(**{"miss": 0.0, "confuse": 0.0, "hallucinate": 0.0, **rates})
        return [[row for row in narrator.narrate(scene) if "There is" not in row[2]] for scene in drawn]

    truth = [set(rows) for rows in said()]
    total = sum(map(len, truth))
    windows = sum(scene.duration for scene in drawn)
    assert total > 1000
    missed = sum(len(t) - len(s) for t, s in zip(truth, said(miss=0.3), strict=True))
    assert missed / total == pytest.approx(0.3, abs=0.03)
    confused = sum(len(t.difference(s)) for t, s in zip(truth, said(confuse=0.3), strict=True))
    assert confused / total == pytest.approx(0.3, abs=0.03)
    invented = sum(len(set(s) - t) for t, s in zip(truth, said(hallucinate=0.3), strict=True))
    assert invented / windows == pytest.approx(0.3, abs=0.03)


def test_narrator_without_errors_tells_what_happens():
    scene = scene_of(Event(0, "spin", 2.0, 6.0, (0, 0, 0, 5.0, 0)), shape="bar", colour="orange")
    narrated = SceneNarrator(miss=0.0, confuse=0.0, hallucinate=0.0).narrate(scene)
    assert [(s, e) for s, e, text in narrated if text == "An orange bar is spinning."] == [
        (2.0, 3.0),
        (3.0, 4.0),
        (4.0, 5.0),
        (5.0, 6.0),
    ]
    assert {text for s, _, text in narrated if not 2 <= s < 6} == {"There is an orange bar."}


def test_narrations_are_embedded_from_their_file_and_their_seed_is_their_own(tiny, cache):
    encoder = SentenceEncoder(cache)
    first = RenderedNarrations(TINY, cache, SceneNarrator(), encoder, normalise=True)
    other = RenderedNarrations(TINY, cache, SceneNarrator(seed=1), encoder, normalise=True)
    train = protocol(TINY, cache)
    first.prepare(train)
    vectors, times = first.load("test_00000")
    assert vectors.shape == (len(times), first.dim)
    assert (times[:, 0] < times[:, 1]).all()
    assert times[-1, 1] == train.tests["iid"].queries[0].duration
    assert other.file != first.file
    assert other.manifest()["narrator"]["miss"] == 0.2


# ---------------------------------------------------------------- settings


def test_settings_that_make_no_world_are_refused():
    for setting in ("train_videos", "selection_videos", "test_videos"):
        with pytest.raises(VmrError, match=f"found {setting}=0"):
            WorldSettings(**{setting: 0})
    with pytest.raises(VmrError, match=r"features\.narration\.narrator\.miss"):
        SceneNarrator(miss=1.2)
    with pytest.raises(VmrError, match="rows that divide 48"):
        GridEncoder(rows=7)


def test_protocol_names_the_world_and_its_videos(monkeypatch, tiny):
    monkeypatch.setattr("vmr_zoo.data.worlds.shapes.generate_world", lambda *_: tiny)
    worlds = (
        FULL,
        replace(FULL, train_videos=9, selection_videos=9),
        replace(FULL, seed=1, height=48, test_videos=5),
    )
    names = [(one.label, one.pool) for one in (protocol(world, "unused") for world in worlds)]
    default = ("shapes", "shapes")
    assert names == [default, default, ("shapes seed=1 test_videos=5 height=48", "shapes seed=1")]


def test_protocol_has_every_split_from_its_own_group(tiny, cache):
    shapes = protocol(TINY, cache)
    assert list(shapes.splits) == [
        "train",
        "selection",
        "iid",
        "ood_time",
        "novel_word",
        "novel_composition",
        "paraphrase",
        "complex",
    ]
    for name, split in shapes.splits.items():
        assert {video_id.split("_")[0] for video_id in split.video_ids} == {SPLITS[name]}
        assert SPLITS[name] in GROUPS
