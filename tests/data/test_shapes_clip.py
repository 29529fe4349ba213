"""The tiny CLIP of the world of shapes: its training, its weights, and the three ways into its text tower."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from vmr_zoo.blocks.text_encoder import open_clip_text
from vmr_zoo.config.compose import build, compose
from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.text.clip import ClipTextEncoder
from vmr_zoo.data.worlds.shapes import SceneNarrator, WorldSettings, render, stills
from vmr_zoo.data.worlds.shapes.generate import annotate, scenes
from vmr_zoo.data.worlds.shapes.sentences import NOVEL, WORDS
from vmr_zoo.data.worlds.shapes.world import COLOURS, SHAPES, Thing, sample_scene
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.packaged import open_clip_folder, open_clip_name
from vmr_zoo.video.open_clip import OpenClip

FOLDER = open_clip_folder("shapes_clip")
SETTINGS = WorldSettings(seed=5, train_videos=2, selection_videos=1, test_videos=1, shortest=16, longest=18)
WORD = {concept: (*WORDS[concept], *NOVEL[concept]) for concept in WORDS}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return ClipTextEncoder(tmp_path_factory.mktemp("cache"), "shapes_clip", None)


@pytest.fixture(scope="module")
def encoder():
    return OpenClip("shapes_clip", None, clip_seconds=1.0, samples=2, patch_tokens="projected", device="cpu")


# ---------------------------------------------------------------- pictures and captions


def test_a_tour_shows_what_its_captions_say():
    """The middle of a thing that nothing covers has its colour."""
    scene = stills.tour(SETTINGS, 0)
    shown = stills.seen(scene, np.arange(scene.duration, dtype=float))
    pictures = list(render.frames(scene, 1, SETTINGS.height))
    checked = 0
    for content, picture in zip(shown, pictures, strict=True):
        assert 1 <= len(content) <= 4
        if len(content) == 1 and content[0].shape != "ring":
            pixel = picture[round(content[0].y * SETTINGS.height), round(content[0].x * SETTINGS.height)]
            assert np.abs(pixel.astype(int) - COLOURS[content[0].colour]).max() < 8
            checked += 1
    assert checked >= 2


def test_captions_mention_only_what_is_visible_and_use_every_word():
    rng = np.random.default_rng(0)
    used = set()
    for index in range(40):
        scene = stills.tour(SETTINGS, index)
        for content in stills.seen(scene, np.arange(scene.duration, dtype=float)):
            visible = {thing.colour for thing in content} | {thing.shape for thing in content}
            words = set(re.findall(r"[a-z]+", stills.caption(content, rng).lower()))
            for concept in set(WORD) - visible:
                assert not words & {phrase.split()[0] for phrase in WORD[concept]}, (concept, words)
            used |= words
    assert used <= set(stills.vocabulary())
    assert {word for words in WORD.values() for phrase in words for word in phrase.split()} <= used


def test_a_fading_thing_has_no_caption():
    thing = Thing("red", "circle", (0.5, 0.5, -2.0, 0.0, 0.5))
    scene = replace(sample_scene(SETTINGS, "train", 0), things=(thing,), events=())
    assert stills.seen(scene, np.zeros(1)) == [None]


def test_the_vocabulary_has_every_word_of_queries_and_narrations(text):
    """A new word of the grammar needs another training: experiments/shapes_clip/train.py."""
    sentences = [
        row["query"] for rows in annotate(replace(SETTINGS, train_videos=150)).values() for row in rows
    ]
    sentences += [
        said for _, scene in scenes(SETTINGS) for _, _, said in SceneNarrator(hallucinate=1.0).narrate(scene)
    ]
    lost = text.lost_words(sentences)
    assert not lost.unknown
    assert len(text.tokenise([max(sentences, key=len)])[0].ids) < 40


# ---------------------------------------------------------------- training


def test_training_is_reproducible():
    path = Path(__file__).parents[2] / "experiments" / "shapes_clip" / "train.py"
    spec = importlib.util.spec_from_file_location("shapes_clip_train", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pictures, words = module.Pictures(1), module.tokenizer()
    table = torch.randn(words.get_vocab_size(), module.WIDTH)
    stages = [module.Stage(close, 2, 4, 1e-3) for close in (True, False)]
    first, again, other = (
        module.train(pictures, words, table, seed=seed, stages=stages).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["text_projection"], other["text_projection"])


# ---------------------------------------------------------------- weights


def test_the_shipped_weights_are_those_of_the_model_card():
    content = (FOLDER / "open_clip_model.safetensors").read_bytes()
    assert len(content) < 5_000_000
    assert hashlib.sha256(content).hexdigest() in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_novel_colours_are_close_to_their_words(text):
    """No query of the training split contains them."""
    known = text.sentences([f"A {WORDS[colour][0]} shape." for colour in COLOURS])
    for number, colour in enumerate(COLOURS):
        for word in NOVEL[colour]:
            assert int((known @ text.sentences([f"A {word} shape."])[0]).argmax()) == number, word


def test_pictures_fit_their_sentences(encoder, text, tmp_path):
    """Of decoded video: one thing, by a novel word for its colour, and by one for its shape."""
    rng = np.random.default_rng(1)
    features = []
    looks = [(colour, shape) for colour in range(len(COLOURS)) for shape in range(len(SHAPES))]
    for number, (colour, shape) in enumerate(looks):
        state = (rng.uniform(0.3, 1.0), rng.uniform(0.3, 0.7), np.log(0.19), 0.0, 1.0)
        ground = sample_scene(SETTINGS, "selection", number)
        thing = Thing(tuple(COLOURS)[colour], SHAPES[shape], state)
        still = {"duration": 1, "events": (), "backgrounds": ground.backgrounds[:1]}
        render.write(
            replace(ground, things=(thing,), **still), tmp_path / "v.mp4", SETTINGS.fps, SETTINGS.height
        )
        features.append(encoder.encode(list(encoder.clips(tmp_path / "v.mp4")))[0][0])
    pictures = np.stack(features)
    colours = pictures @ text.sentences([f"A {NOVEL[colour][-1]} shape." for colour in COLOURS]).T
    shapes = pictures @ text.sentences([f"A {NOVEL[shape][-1]}." for shape in SHAPES]).T
    right = np.stack([colours.argmax(1), shapes.argmax(1)], 1) == looks
    assert (right.mean(0) >= [0.95, 0.6]).all(), right.mean(0)


def test_the_three_ways_into_the_text_tower_agree(text):
    """open_clip's own tokenizer and `encode_text`, the text encoder, and the tower that VDI and MMN train."""
    texts = ["A red disk moves left.", "There is a plus sign spinning while an amber bar falls."]
    name = open_clip_name("shapes_clip")
    ids = open_clip.get_tokenizer(name)(texts)
    with torch.no_grad():
        expected = open_clip.create_model(name).eval().encode_text(ids).numpy()
    np.testing.assert_allclose(text.pooled(texts), expected, atol=0.01)  # float16
    split = text.tokenise(texts)
    mask = torch.zeros(2, max(len(tokens.ids) for tokens in split), dtype=torch.bool)
    tokens = torch.zeros(mask.shape, dtype=torch.int64)
    for row, one in enumerate(split):
        mask[row, : len(one.ids)] = True
        tokens[row, : len(one.ids)] = torch.from_numpy(one.ids)
    with torch.no_grad():
        found = open_clip_text("shapes_clip").eval()(
            {"query_tokens": tokens, "query_mask": mask}, mask[None]
        )[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert text.token_text(texts[0]) == ["a", "red", "disk", "moves", "left", "."]


def test_the_path_of_a_packaged_model_is_in_no_manifest(encoder, text):
    assert str(FOLDER.parent) not in str((encoder.manifest(), encoder.node(), text.manifest()))
    assert encoder.manifest()["backbone"] == "open_clip shapes_clip"


def test_an_unknown_word_is_reported(text):
    assert text.lost_words(["A red zebra spins."]).unknown == {"zebra": 1}


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(VmrError, match=r"open_clip_config\.json"):
        ClipTextEncoder(tmp_path, f"local-dir:{tmp_path}", None)
    with pytest.raises(VmrError, match="Expected a text tower"):
        open_clip_text(f"local-dir:{tmp_path}")
    with pytest.raises(VmrError, match=r"method\.text\.model=shapes_clip"):
        open_clip_text("ViT-B-32")


# ---------------------------------------------------------------- feature sets


def test_the_feature_sets_serve_one_joint_space(tmp_path):
    world = [
        f"data.protocol.world.{key}={value}"
        for key, value in (("train_videos", 1), ("selection_videos", 1), ("test_videos", 1))
    ]
    world += [
        "data.protocol.world.shortest=16",
        "data.protocol.world.longest=16",
        "data.protocol.processes=1",
    ]
    sets = {}
    for name in ("shapes_clip", "shapes_clip_grid"):
        cfg = compose("train", ["data=shapes", f"features={name}", f"paths.cache={tmp_path}", *world])
        sets[name] = build(cfg.features)
    one, both = sets.values()
    query = Query("q", "train_00000", "A red disk moves left.", ((0.0, 4.0),), 16.0)
    video, joined = one.video.load("train_00000"), both.video.load("train_00000")
    assert video.shape == (16, 64)
    assert joined.shape == (16, 64 + 360)
    assert np.array_equal(joined[:, :64], video)
    assert one.patches.load("train_00000").shape == (16, 12, 64)
    assert one.query.sentence(query).shape == (64,)
    assert one.query.load(query).shape == (6, 64)
    assert one.query.noun_mask(query).tolist() == [True, True, True, False, False, False]
    for features in sets.values():
        assert features.manifest()["joint_space"] == "shapes_clip"
        assert {"sentence", "patches", "query_tokens", "noun_mask"} <= features.served()
