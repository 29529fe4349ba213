"""The simulated channel has the declared error rates and depends on seed and video alone."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.worlds.action_labels import ActionLabelClips, ActionLabelNarrations, ActionLabels, Rates
from vmr_zoo.errors import VmrError

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "charades"
NAMES = ["Opening a door", "Closing a door", "Someone is sneezing", "Washing dishes"]
FAULTLESS = Rates(1.0, 0.0, 0.0, 1.0, 0.0, 0.1)


class Encoder:
    """Deterministic unit vectors; those of the two doors are alike."""

    dim = 64

    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        def vector(text: str) -> np.ndarray:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
            x = np.random.default_rng(seed).normal(size=self.dim)
            return x + 3 * np.ones(self.dim) * ("door" in text)

        x = np.stack([vector(text) for text in texts]).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def manifest(self) -> dict:
        return {"encoder": "toy"}


@pytest.fixture
def labels(tmp_path: Path) -> ActionLabels:
    (tmp_path / "Charades_v1_classes.txt").write_text("".join(f"c{i:03d} {n}\n" for i, n in enumerate(NAMES)))
    header = "id,script,actions,length\n"
    rows = [
        'LONG,"a, b",c000 0.00 1000.00,2000.00',
        "TWO,x,c000 1.00 4.00;c002 3.00 12.00,9.50",
        "NONE,x,,5.00",
        "ODD,x,c001 4.00 4.00;c003 2.10 2.30;c000 8.00 9.00,6.00",
    ]
    (tmp_path / "Charades_v1_train.csv").write_text(header + "\n".join(rows[:2]) + "\n")
    (tmp_path / "Charades_v1_test.csv").write_text(header + "\n".join(rows[2:]) + "\n")
    return ActionLabels(tmp_path, Encoder())  # type: ignore[arg-type]


def clips(
    labels: ActionLabels, rates: Rates = FAULTLESS, noise: float = 0.0, seed: int = 0
) -> ActionLabelClips:
    return ActionLabelClips(labels, rates, noise, 1.0, seed, normalise=True)


def test_a_faultless_channel_shows_the_labels(labels: ActionLabels) -> None:
    video = clips(labels).load("TWO")
    e = labels.embeddings
    both = e[0] + e[2]
    expected = np.stack([0 * e[0], e[0], e[0], both / np.linalg.norm(both), *[e[2]] * 6])
    np.testing.assert_allclose(video, expected, atol=2e-5)


def test_intervals_are_clipped_and_short_ones_get_a_clip(labels: ActionLabels) -> None:
    odd = labels.of("ODD")
    assert (odd.classes.tolist(), odd.times.tolist()) == ([3], [[2.1, 2.3]])
    seen = np.linalg.norm(clips(labels).load("ODD"), axis=1) > 0.5
    assert seen.tolist() == [False, False, True, False, False, False]
    assert clips(labels).load("NONE").shape == (5, 64)


def test_rates_are_kept(labels: ActionLabels) -> None:
    video = clips(labels, dataclasses.replace(FAULTLESS, seen=0.6, confused=0.3)).load("LONG")
    cosine = video @ labels.embeddings.T
    nothing = np.linalg.norm(video, axis=1) < 0.5
    assert nothing[1000:].all()
    running = cosine[:1000][~nothing[:1000]]
    assert len(running) == pytest.approx(600, abs=4 * np.sqrt(240))
    right = (running.argmax(1) == 0).sum()
    assert right == pytest.approx(0.7 * len(running), abs=4 * np.sqrt(0.21 * len(running)))
    wrong = np.bincount(running.argmax(1), minlength=4)
    assert wrong[1] > 10 * max(wrong[2], wrong[3], 1)  # a door is taken for a door


def test_distractors_persist(labels: ActionLabels) -> None:
    rates = dataclasses.replace(FAULTLESS, distractors_per_minute=6.0, distractor_seconds=5.0)
    video = clips(labels, rates).load("LONG")[1000:]
    there = np.linalg.norm(video, axis=1) > 0.5
    starts = (there[1:] & ~there[:-1]).sum()
    assert 1 - np.exp(-0.5) == pytest.approx(there.mean(), abs=0.08)  # 0.1 a second, 5 s each
    assert there.sum() / starts > 3


def test_noise_has_the_declared_length(labels: ActionLabels) -> None:
    video = clips(labels, noise=2.0).load("LONG")
    cosine = video[:1000] @ labels.embeddings[0]
    assert cosine.mean() == pytest.approx(1 / np.sqrt(1 + 2.0**2), abs=0.03)
    np.testing.assert_allclose(np.linalg.norm(video, axis=1), 1, atol=1e-4)


def test_seed_and_video_decide(labels: ActionLabels) -> None:
    rates = Rates(0.5, 0.3, 10.0, 5.0, 0.5, 0.1)
    one, other = clips(labels, rates, 1.0), clips(labels, rates, 1.0)
    first = {video: one.load(video) for video in ("LONG", "TWO", "ODD")}
    for video in ("ODD", "LONG", "TWO", "ODD"):
        np.testing.assert_array_equal(other.load(video), first[video])
    assert not np.allclose(clips(labels, rates, 1.0, seed=1).load("TWO"), first["TWO"])


def test_narrations(labels: ActionLabels) -> None:
    source = ActionLabelNarrations(labels, FAULTLESS, 4.0, 0, normalise=True)
    said, times = source.narrate("TWO")
    assert times.tolist() == [[0, 4], [4, 8], [8, 9.5]]
    assert source.sentences[said[0]] == "A person is opening a door."
    assert [source.sentences[i] for i in said[1:]] == ["A person is sneezing."] * 2
    vectors, _ = source.load("NONE")
    nothing = Encoder().sentences(["There is a person in a room."])[0]
    np.testing.assert_allclose(vectors, np.stack([nothing] * 2), atol=1e-6)


def test_the_two_channels_err_independently(labels: ActionLabels) -> None:
    rates = dataclasses.replace(FAULTLESS, seen=0.5)
    narrator = ActionLabelNarrations(labels, rates, 1.0, 0, normalise=True)
    said = narrator.narrate("LONG")[0][:1000] == 0
    seen = np.linalg.norm(clips(labels, rates).load("LONG")[:1000], axis=1) > 0.5
    assert np.corrcoef(said, seen)[0, 1] == pytest.approx(0, abs=4 / np.sqrt(1000))


def test_what_is_wrong_is_named(labels: ActionLabels, tmp_path: Path) -> None:
    (problem,) = clips(labels).missing(["TWO", "v_abc"])
    assert problem.ids == ("v_abc",)
    with pytest.raises(FeatureError, match="v_abc"):
        clips(labels).load("v_abc")
    with pytest.raises(VmrError, match="rate seen"):
        dataclasses.replace(FAULTLESS, seen=1.5)
    with (tmp_path / "Charades_v1_test.csv").open("a") as file:
        file.write("BAD,x,c000 1.00,5.00\n")
    with pytest.raises(VmrError, match=r"Charades_v1_test\.csv, row 4"):
        _ = ActionLabels(tmp_path, Encoder()).videos  # type: ignore[arg-type]
    (problem,) = ActionLabels(tmp_path / "nowhere", Encoder()).missing("video", ["TWO"])  # type: ignore[arg-type]
    assert "set paths.annotations" in problem.detail


@pytest.mark.skipif(not REAL.exists(), reason="the published Charades annotations are not at ../shared/data")
def test_every_moment_of_charades_sta_is_a_labelled_action() -> None:
    """Why the channel needs errors: with perfect labels the task would be a look-up."""
    labels = ActionLabels(REAL, Encoder())  # type: ignore[arg-type]
    assert (len(labels.names), len(labels.videos)) == (157, 9848)
    for line in (REAL / "charades_sta_test.txt").read_text().splitlines():
        video, start, end = line.split("##")[0].split()
        actions = labels.of(video)
        moment = np.clip([float(start), float(end)], 0, actions.duration)
        assert np.abs(actions.times - moment).max(1).min() < 0.051, line
