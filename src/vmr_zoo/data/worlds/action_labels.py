"""A simulated perception channel over real Charades videos, sentences and splits.

Charades (Sigurdsson et al. 2016) publishes time-stamped action labels for every video of Charades-STA. Here
they replace a video backbone. In each clip, a running action is seen with one probability and confused with a
similar one with another; distractors that persist over time are added. A seen action appears as the sentence
embedding of its class name plus noise. A second, independent channel narrates.

The moments of Charades-STA were made from these labels (each moment equals a labelled interval): a faultless
channel would reveal them. The task results from the error rates, and no number obtained from it says anything
about pixels. Everything is determined by a seed and the id of the video.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.features.problems import FeatureError, Problem
from vmr_zoo.data.features.source import NarrationSource, VideoSource
from vmr_zoo.data.text.sentence import SentenceEncoder
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array, l2_normalise

_FILES = ("Charades_v1_train.csv", "Charades_v1_test.csv")
_CLASSES = "Charades_v1_classes.txt"


@dataclass(frozen=True, slots=True)
class Actions:
    """The labelled actions of one video.

    Attributes:
        duration: seconds.
        classes: (A,) int64 class numbers.
        times: (A, 2) float64 start and end in seconds, 0 <= start < end <= duration.
    """

    duration: float
    classes: Array
    times: Array


class ActionLabels:
    """The published labels, and the similarity of their classes."""

    def __init__(self, annotations: str | Path, encoder: SentenceEncoder) -> None:
        """Stores the paths; files are read on first use.

        Args:
            annotations: folder with `Charades_v1_{train,test}.csv` and `Charades_v1_classes.txt`.
            encoder: embeds the class names.
        """
        self.folder = Path(annotations).expanduser()
        self.encoder = encoder

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        try:
            return path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise FeatureError(
                "missing",
                f"Expected the Charades action labels at {path}; {error.strerror or error}. They are part of "
                "the Charades annotations; set paths.annotations to the folder that contains `charades/`.",
            ) from error

    @cached_property
    def names(self) -> list[str]:
        """Class names such as "Holding some clothes", by class number."""
        names = []
        for number, line in enumerate(self._lines(_CLASSES)):
            code, _, name = line.strip().partition(" ")
            if code != f"c{number:03d}" or not name:
                where = f"{self.folder / _CLASSES}, line {number + 1}"
                raise VmrError(f"{where}: expected 'c{number:03d} <name>', found {line!r:.80}.")
            names.append(name)
        return names

    @cached_property
    def videos(self) -> dict[str, Actions]:
        """Labelled actions by video; intervals are clipped to the video, empty ones dropped."""
        videos: dict[str, Actions] = {}
        for file in _FILES:
            for number, row in enumerate(csv.DictReader(self._lines(file)), 2):
                try:
                    duration = float(row["length"])
                    labels = [label.split() for label in row["actions"].split(";") if label]
                    codes = [int(code.removeprefix("c")) for code, _, _ in labels]
                    times = [(max(float(start), 0), min(float(end), duration)) for _, start, end in labels]
                except (KeyError, ValueError, AttributeError, TypeError) as error:
                    raise VmrError(
                        f"{self.folder / file}, row {number}: expected `length` in seconds, `actions` like "
                        f"'c092 11.90 21.20;c147 0.00 12.60' ({error})."
                    ) from error
                if not (duration > 0 and math.isfinite(duration)) or max(codes, default=0) >= len(self.names):
                    raise VmrError(
                        f"{self.folder / file}, row {number}: expected a positive length and classes below "
                        f"c{len(self.names)}; found length={duration}, actions={row['actions']!r:.80}."
                    )
                kept = [index for index, (start, end) in enumerate(times) if start < end]
                videos[row["id"]] = Actions(
                    duration,
                    np.array([codes[index] for index in kept], np.int64),
                    np.array([times[index] for index in kept], np.float64).reshape(-1, 2),
                )
        return videos

    @cached_property
    def embeddings(self) -> Array:
        """(C, D) float32 sentence embeddings of the class names, of unit length."""
        return self.encoder.sentences(self.names)

    @cached_property
    def means(self) -> Array:
        """(C, D) float32 means of the token vectors of the class names, not normalised."""
        return self.encoder.means(self.names)

    def confusion(self, temperature: float) -> Array:
        """Returns what each class is confused with.

        Args:
            temperature: a lower one favours more similar classes.

        Returns:
            (C, C) cumulative probabilities in each row: the softmax of the cosine similarities of the class
            names divided by the temperature, without the class itself.
        """
        logits = self.embeddings @ self.embeddings.T / temperature
        np.fill_diagonal(logits, -np.inf)
        weights = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
        return np.cumsum(weights / weights.sum(1, keepdims=True), axis=1)

    def of(self, video_id: str) -> Actions:
        """Returns the actions of a video.

        Raises:
            FeatureError: if Charades does not list the video.
        """
        actions = self.videos.get(video_id)
        if actions is None:
            raise FeatureError("missing", f"Neither of {' and '.join(_FILES)} lists the video '{video_id}'.")
        return actions

    def missing(self, part: str, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that Charades does not list."""
        try:
            lacking = tuple(video_id for video_id in video_ids if video_id not in self.videos)
        except VmrError as error:
            return [Problem(part, "unreadable", tuple(video_ids), str(error))]
        detail = f"Not in {' or '.join(_FILES)}; action labels exist for the Charades protocols only."
        return [Problem(part, "missing", lacking, detail)] if lacking else []

    def manifest(self) -> dict[str, Any]:
        """Returns the backbone name and the encoder."""
        return {"backbone": "simulated from Charades action labels", **self.encoder.manifest()}


@dataclass(frozen=True, slots=True)
class Rates:
    """Error rates of the channel.

    Attributes:
        seen: probability that a running action is seen in a clip.
        confused: probability that a seen action is confused with a similar one in that clip.
        distractors_per_minute: mean number of actions per minute that do not occur but seem to; each is
            perceived and confused like one that does. They begin inside of the video, so its first seconds
            have fewer.
        distractor_seconds: mean length of these (exponentially distributed).
        distractors_alike: probability that a distractor is drawn from the confusions of an action in the
            video instead of uniformly from all classes.
        temperature: temperature of the confusions.
    """

    seen: float
    confused: float
    distractors_per_minute: float
    distractor_seconds: float
    distractors_alike: float
    temperature: float

    def __post_init__(self) -> None:
        for name in ("seen", "confused", "distractors_alike"):
            if not 0 <= getattr(self, name) <= 1:
                raise VmrError(f"Expected the rate {name} in [0, 1], found {getattr(self, name)}.")
        if self.distractors_per_minute < 0 or self.distractor_seconds <= 0 or self.temperature <= 0:
            raise VmrError(
                "Expected distractors_per_minute >= 0, distractor_seconds > 0 and temperature > 0, found "
                f"{self.distractors_per_minute}, {self.distractor_seconds} and {self.temperature}."
            )


class _Channel:
    """Shared by both simulated sources: labels, error rates and a generator per video."""

    def __init__(self, name: str, labels: ActionLabels, rates: Rates, seed: int) -> None:
        self._name = name
        self.labels = labels
        self.rates = rates
        self.seed = seed

    @cached_property
    def _confusion(self) -> Array:
        return self.labels.confusion(self.rates.temperature)

    def generator(self, video_id: str) -> np.random.Generator:
        """Returns the generator of a video, independent of draws for other videos."""
        digest = hashlib.sha256(f"{self._name}/{self.seed}/{video_id}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))

    def confuse(self, classes: Array, random: np.random.Generator) -> Array:
        """Draws for each of (N,) classes a similar one."""
        drawn = (self._confusion[classes] < random.random((len(classes), 1))).sum(1)
        return np.minimum(drawn, self._confusion.shape[1] - 1)

    def running(self, actions: Actions, edges: Array, random: np.random.Generator) -> tuple[Array, Array]:
        """Returns which actions run in each clip: the labelled ones, and distractors drawn for this video.

        Args:
            actions: the A actions of the video.
            edges: (T + 1,) seconds, the borders of the clips.
            random: the generator of the video.

        Returns:
            (T, A + distractors) bool, and (A + distractors,) classes. An action runs in the clips whose
            centre it covers, and in the clip that contains its own centre.
        """
        rates = self.rates
        count = random.poisson(rates.distractors_per_minute * actions.duration / 60)
        starts = random.uniform(0, actions.duration, count)
        times = np.stack((starts, starts + random.exponential(rates.distractor_seconds, count)), 1)
        classes = random.integers(len(self.labels.names), size=count)
        if len(actions.classes):
            alike = self.confuse(random.choice(actions.classes, count), random)
            classes = np.where(random.random(count) < rates.distractors_alike, alike, classes)
        classes = np.concatenate((actions.classes, classes))
        times = np.concatenate((actions.times, times))
        centres = (edges[:-1, None] + edges[1:, None]) / 2
        middle = times.mean(1)
        covered = (times[:, 0] <= centres) & (centres < times[:, 1])
        return covered | ((edges[:-1, None] <= middle) & (middle < edges[1:, None])), classes

    def perceive(self, running: Array, classes: Array, random: np.random.Generator) -> tuple[Array, Array]:
        """Draws which running actions are seen, and as which classes.

        Args:
            running: (T, N) bool.
            classes: (N,) int64.
            random: the generator of the video.

        Returns:
            (M,) clips in ascending order, and (M,) perceived classes.
        """
        clips, items = np.nonzero(running & (random.random(running.shape) < self.rates.seen))
        perceived = classes[items]
        wrong = random.random(len(perceived)) < self.rates.confused
        perceived[wrong] = self.confuse(perceived[wrong], random)
        return clips, perceived


class ActionLabelClips(VideoSource):
    """Clip features of the simulated channel."""

    computed = True

    def __init__(
        self,
        labels: ActionLabels,
        rates: Rates,
        noise: float,
        clip_seconds: float,
        seed: int,
        normalise: bool,
    ) -> None:
        """Stores the channel.

        Args:
            labels: the labelled actions.
            rates: error rates.
            noise: length of the Gaussian noise vector, relative to that of a class embedding.
            clip_seconds: length of a clip.
            seed: determines everything, together with the id of the video.
            normalise: whether class embeddings are sentence vectors of unit length, and clips have unit
                length; otherwise class embeddings are means of token vectors, and clips stay as they are.
        """
        self._channel = _Channel("clips", labels, rates, seed)
        self.noise = noise
        self.clip_seconds = clip_seconds
        self.normalise = normalise
        self.dim = labels.encoder.dim if normalise else labels.encoder.token_dim

    def load(self, video_id: str) -> Array:
        """Returns (T, dim) float32, T = duration / clip_seconds, rounded up.

        A clip is the sum of the embeddings of the seen actions, divided by the root of their number, plus
        noise.
        """
        channel = self._channel
        actions = channel.labels.of(video_id)
        random = channel.generator(video_id)
        length = math.ceil(actions.duration / self.clip_seconds)
        edges = np.minimum(np.arange(length + 1) * self.clip_seconds, actions.duration)
        running, classes = channel.running(actions, edges, random)
        clips, perceived = channel.perceive(running, classes, random)
        counts = np.zeros((length, len(channel.labels.names)), np.float32)
        np.add.at(counts, (clips, perceived), 1.0)
        scale = 1 / np.sqrt(np.maximum(counts.sum(1, keepdims=True), 1))
        noise = random.standard_normal((length, self.dim), np.float32) * np.float32(
            self.noise / self.dim**0.5
        )
        if self.normalise:
            return l2_normalise(scale * counts @ channel.labels.embeddings + noise)
        means = channel.labels.means
        return scale * counts @ means + noise * np.linalg.norm(means, axis=1).mean()

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that Charades does not list."""
        return self._channel.labels.missing("video", video_ids)

    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the features."""
        channel = self._channel
        settings = {
            "noise": self.noise,
            "clip_seconds": self.clip_seconds,
            "seed": channel.seed,
            "normalise": self.normalise,
        }
        return {**channel.labels.manifest(), "rates": asdict(channel.rates), **settings}


class ActionLabelNarrations(NarrationSource):
    """Narrations of a second simulated channel, independent of the first.

    In each interval the narrator names one of the actions that it perceives, or says that there is a person.
    """

    computed = True
    NOTHING = "There is a person in a room."

    def __init__(
        self, labels: ActionLabels, rates: Rates, every_seconds: float, seed: int, normalise: bool
    ) -> None:
        """Stores the channel.

        Args:
            labels: the labelled actions.
            rates: error rates, per sentence here, not per clip.
            every_seconds: length of the interval that a sentence covers.
            seed: determines everything, together with the id of the video.
            normalise: as `NarrationFile` describes it.
        """
        self._channel = _Channel("narrations", labels, rates, seed)
        self.every_seconds = every_seconds
        self.normalise = normalise
        self.dim = labels.encoder.dim if normalise else labels.encoder.token_dim

    @cached_property
    def sentences(self) -> list[str]:
        """Sentences by class number; the last one is used when nothing is perceived."""
        names = (name.lower() for name in self._channel.labels.names)
        return [f"A person is {name.removeprefix('someone is ')}." for name in names] + [self.NOTHING]

    @cached_property
    def _embeddings(self) -> Array:
        encoder = self._channel.labels.encoder
        return encoder.sentences(self.sentences) if self.normalise else encoder.means(self.sentences)

    def narrate(self, video_id: str) -> tuple[Array, Array]:
        """Draws the narrations of a video.

        Returns:
            (Ln,) indices into `sentences` and (Ln, 2) float32 start and end in seconds.
        """
        channel = self._channel
        actions = channel.labels.of(video_id)
        random = channel.generator(video_id)
        length = math.ceil(actions.duration / self.every_seconds)
        edges = np.minimum(np.arange(length + 1) * self.every_seconds, actions.duration)
        running, classes = channel.running(actions, edges, random)
        clips, perceived = channel.perceive(running, classes, random)
        order = random.permutation(len(clips))
        said = np.full(length, len(self.sentences) - 1)
        said[clips[order]] = perceived[order]  # of several actions in an interval, a random one remains
        return said, np.stack((edges[:-1], edges[1:]), 1).astype(np.float32)

    def load(self, video_id: str) -> tuple[Array, Array]:
        """Returns (Ln, dim) float32 sentence embeddings and (Ln, 2) float32 start and end in seconds."""
        said, times = self.narrate(video_id)
        return self._embeddings[said], times

    def texts(self, video_id: str) -> list[str]:
        """Returns the sentences about a video, in the order of `load`."""
        return [self.sentences[number] for number in self.narrate(video_id)[0]]

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that Charades does not list."""
        return self._channel.labels.missing("narration", video_ids)

    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the narrations."""
        channel = self._channel
        settings = {
            "every_seconds": self.every_seconds,
            "seed": channel.seed,
            "normalise": self.normalise,
        }
        return {**channel.labels.manifest(), "rates": asdict(channel.rates), **settings}
