"""Measures the tiny CLIP on decoded frames of scenes that it has not seen.

    python experiments/shapes_clip/accuracy.py [--model shapes_clip]

Retrieval: 100 pictures of the world's own scenes, and one full description of each. Words: pictures of one
thing; a colour or form is found if its word fits better than the words of all other colours or forms.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmr_zoo.data.text.clip import ClipTextEncoder
from vmr_zoo.data.worlds.shapes import WorldSettings, render, stills
from vmr_zoo.data.worlds.shapes.sentences import NOVEL, WORDS
from vmr_zoo.data.worlds.shapes.world import COLOURS, SHAPES, Scene, Thing, sample_scene, states
from vmr_zoo.video.open_clip import OpenClip

SETTINGS = WorldSettings(seed=30_000)
Floats = NDArray[np.float32]


def still(scene: Scene, time: float) -> Scene:
    """Returns one second in which the scene stays as it is at a time."""
    state = states(scene, np.array([time]))[0]
    things = tuple(replace(t, state=tuple(row.tolist())) for t, row in zip(scene.things, state, strict=True))
    ground = max((b for b in scene.backgrounds if b.start <= time), key=lambda b: b.start)
    return replace(scene, duration=1, things=things, events=(), backgrounds=(replace(ground, start=0.0),))


def encode(encoder: OpenClip, scenes: Iterable[Scene]) -> Floats:
    """Renders scenes of one second as H.264 and encodes a decoded frame of each; rows of unit length."""
    with tempfile.TemporaryDirectory() as folder:
        path, rows = Path(folder) / "video.mp4", []
        for scene in scenes:
            render.write(scene, path, SETTINGS.fps, SETTINGS.height)
            rows.append(encoder.encode(list(encoder.clips(path))[:1])[0][0])
    features = np.stack(rows)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def retrieval(encoder: OpenClip, text: ClipTextEncoder, rounds: int = 3) -> tuple[float, float]:
    """Returns R@1 in percent of 100 pictures by their descriptions, and of descriptions by pictures."""
    found = []
    for number in range(rounds):
        rng = np.random.default_rng(number)
        scenes, captions = [], []
        for index in range(100 * number, 100 * (number + 1)):
            scene = sample_scene(SETTINGS, "test", index)
            times = np.sort(rng.uniform(0, scene.duration, 20))
            shown = [(t, s) for t, s in zip(times, stills.seen(scene, times), strict=True) if s]
            time, content = shown[int(rng.integers(len(shown)))]
            scenes.append(still(scene, float(time)))
            captions.append(stills.describe(content, rng))
        similar = encode(encoder, scenes) @ text.sentences(captions).T
        found.append([(similar.argmax(axis) == np.arange(100)).mean() for axis in (0, 1)])
    pictures, descriptions = 100 * np.mean(found, axis=0)
    return float(pictures), float(descriptions)


def words(encoder: OpenClip, text: ClipTextEncoder) -> dict[str, tuple[float, float, tuple[str, float]]]:
    """Classifies pictures of one thing.

    Returns:
        For colours and forms: accuracy in percent with the words of training and with the novel ones, and the
        worst single word with its accuracy against the first words of the other concepts.
    """
    rng = np.random.default_rng(0)
    looks = [(colour, shape) for colour in COLOURS for shape in SHAPES for _ in range(3)]
    scenes = []
    for number, look in enumerate(looks):
        scene = still(sample_scene(SETTINGS, "selection", number), 0.0)
        size = np.log(rng.choice((rng.uniform(0.09, 0.13), rng.uniform(0.17, 0.23))))
        turn = rng.uniform(0, 2 * np.pi) * (rng.random() < 0.3)
        state = (rng.uniform(0.2, 1.13), rng.uniform(0.2, 0.8), size, turn, 1.0)
        scenes.append(replace(scene, things=(Thing(*look, tuple(map(float, state))),)))
    pictures = encode(encoder, scenes)
    result = {}
    for part, kind, frame in (0, tuple(COLOURS), "A {} shape."), (1, SHAPES, "A {}."):
        true = np.array([kind.index(look[part]) for look in looks])
        accuracies = []
        for table in WORDS, NOVEL:
            vectors = np.stack([text.sentences([frame.format(w) for w in table[c]]).mean(0) for c in kind])
            accuracies.append(100 * float(((pictures @ vectors.T).argmax(1) == true).mean()))
        first = pictures @ text.sentences([frame.format(WORDS[c][0]) for c in kind]).T
        single = {}
        for number, concept in enumerate(kind):
            rivals = np.delete(first[true == number], number, axis=1).max(1)
            for word in (*WORDS[concept], *NOVEL[concept]):
                fits = pictures[true == number] @ text.sentences([frame.format(word)])[0]
                single[word] = 100 * float((fits > rivals).mean())
        worst = min(single, key=lambda word: single[word])
        result["colours" if part == 0 else "forms"] = (*accuracies, (worst, single[worst]))
    return result


def main() -> None:
    """Prints the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="shapes_clip", help="shapes_clip or local-dir:FOLDER")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as cache:
        text = ClipTextEncoder(cache, model, None)
        encoder = OpenClip(model, None, clip_seconds=1.0, device="cpu")
        pictures, descriptions = retrieval(encoder, text)
        print(f"R@1 of 100: pictures {pictures:.1f}, descriptions {descriptions:.1f}")
        for part, (known, novel, (worst, least)) in words(encoder, text).items():
            print(f"{part}: words of training {known:.1f}, novel {novel:.1f}; worst: {worst} {least:.1f}")


if __name__ == "__main__":
    main()
