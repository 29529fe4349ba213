"""The features of one configuration, and the check that they are complete and fit the annotations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.data.features.files import VideoFiles
from vmr_zoo.data.features.packed import PackedVideos
from vmr_zoo.data.features.problems import (
    SAMPLE,
    FeatureError,
    Problem,
    length_problem,
    lengths_differ,
    sample,
)
from vmr_zoo.data.features.source import FeatureSource, NarrationSource, QuerySource, VideoSource
from vmr_zoo.errors import VmrError, abbreviate, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.console import progress

log = logging.getLogger(__name__)

ORIGINS = ("real", "rendered", "simulated")

CheckDepth = Literal["names", "sample", "all"]
"""How much a check reads: "names" lists folders only, "sample" opens `SAMPLE` files, "all" every file."""


class _Missing(NamedTuple):
    """Problems found without opening a feature file."""

    videos: list[Problem]
    queries: list[Problem]


@dataclass
class FeatureSet:
    """The features of one configuration.

    Attributes:
        name: the configuration's name, joined by the `content` of its videos.
        origin: "real", "rendered" or "simulated"; rows of different origin never share a table.
        video_dim: size of a clip vector, without TEF.
        query_dim: size of a token vector.
        clip_seconds: seconds per clip; None: duration / number of clips.
        video: the clip features.
        query: the token features.
        narration: the narrations; None: there are none.
        narration_query: a second encoding of the sentences, which methods compare with narrations; None:
            there is none, and `query` serves for both.
        patches: the patch features, with as many clips as `video`; None: there are none.
        narration_dim: size of a narration vector; None without narrations.
        narration_query_dim: size of a token vector of `narration_query`; None without it.
        patch_dim: size of a patch vector; None without patches.
        patch_count: patches in a clip; None without patches.
        keep_clip_seconds: a clip of a video that is averaged to fewer clips (`overlong: mean_pool`) still
            counts as `clip_seconds` long, as in MESM's released code: moments are marked on wrong clips.
        joint_space: the name of a space of images and text, such as "open_clip ViT-B-32 openai", that holds
            the vector of a whole sentence and the first numbers of a clip vector, as many as a sentence has
            (other backbones may follow them); None: they are in no common space.
        packed: the folder with the packed `video` features; None: the original files are read.
    """

    name: str
    origin: str
    video_dim: int
    query_dim: int
    clip_seconds: float | None
    video: VideoSource
    query: QuerySource
    narration: NarrationSource | None = None
    patches: VideoSource | None = None
    narration_dim: int | None = None
    patch_dim: int | None = None
    patch_count: int | None = None
    narration_query: QuerySource | None = None
    narration_query_dim: int | None = None
    keep_clip_seconds: bool = False
    joint_space: str | None = None
    packed: InitVar[str | Path | None] = None

    def __post_init__(self, packed: str | Path | None) -> None:
        if self.origin not in ORIGINS:
            raise unknown("feature origin", self.origin, ORIGINS)
        for key, source in (
            ("video_dim", self.video),
            ("query_dim", self.query),
            ("narration_dim", self.narration),
            ("narration_query_dim", self.narration_query),
            ("patch_dim", self.patches),
        ):
            declared = getattr(self, key)
            found = None if source is None else source.dim
            if declared != found:
                raise VmrError(self._other_size(key, declared, found))
        if self.joint_space is not None and not (0 < (self.query.sentence_dim or 0) <= self.video_dim):
            raise VmrError(
                f"features={self.name} declares joint_space={self.joint_space}, but a clip vector has "
                f"{self.video_dim} numbers and a sentence vector {self.query.sentence_dim or 'none'}. Take "
                "both from one image-text model, or set features.joint_space=null."
            )
        if isinstance(self.video, VideoFiles) and self.video.max_clips is not None:
            pooled = self.video.overlong == "mean_pool"
            if pooled and self.clip_seconds is not None and not self.keep_clip_seconds:
                raise VmrError(
                    f"features={self.name} averages long videos (overlong=mean_pool), so a clip's length "
                    f"depends on the video; set features.clip_seconds=null instead of {self.clip_seconds}."
                )
            if not pooled and self.clip_seconds is None:
                raise VmrError(
                    f"features={self.name} cuts long videos to {self.video.max_clips} clips, after which "
                    "duration / clips is no clip's length; set features.clip_seconds, or overlong=mean_pool."
                )
        if self.video.content not in self.name:
            self.name = f"{self.name}_{self.video.content}"
        if packed is not None:
            self.video = PackedVideos(packed, self.video)
            if self.video.rounded is not None:  # other features: never in one table with the originals
                self.name = f"{self.name} in {self.video.rounded}"

    def _other_size(self, key: str, declared: int | None, found: int | None) -> str:
        return f"features={self.name} declares {key}={declared}, but its source yields {found}."

    def load_patches(self, video_id: str) -> Array:
        """Returns the (T, patch_count, patch_dim) patch features of a video.

        Raises:
            FeatureError: if the source cannot load them, or yields another number of patches.
        """
        assert self.patches is not None
        patches = self.patches.load(video_id)
        if self.patch_count not in (None, patches.shape[1]):
            message = self._other_size("patch_count", self.patch_count, patches.shape[1])
            raise FeatureError("dimension", f"{message} The video is '{video_id}'.")
        return patches

    def served(self) -> frozenset[str]:
        """Returns which of the needs that depend on the features these serve."""
        served = {
            "narration": self.narration is not None,
            "narration_query": self.narration_query is not None,
            "patches": self.patches is not None,
            "query_tokens": self.query.has_token_ids,
            "noun_mask": self.query.has_noun_masks,
            "sentence": self.joint_space is not None,
        }
        return frozenset(need for need, available in served.items() if available)

    def clip_length(self, duration: float, clips: int) -> float:
        """Returns the seconds per clip of a video with `clips` clips."""
        return duration / clips if self.clip_seconds is None else self.clip_seconds

    def sources(self, needs: Collection[str] | None = None) -> list[FeatureSource]:
        """Returns the sources that serve a method's needs; None: all."""
        optional: list[tuple[str, FeatureSource | None]] = [
            ("narration", self.narration),
            ("narration_query", self.narration_query),
            ("patches", self.patches),
        ]
        wanted = [
            source for need, source in optional if source is not None and (needs is None or need in needs)
        ]
        return [self.video, self.query, *wanted]

    def prepare(self, protocol: Protocol, needs: Collection[str] | None = None) -> None:
        """Prepares the sources and raises an error if anything is missing or broken.

        Reads the files of all splits, so a broken file stops the run before training.

        Args:
            protocol: the protocol whose splits will be read.
            needs: the method's needs; sources that are not needed are skipped. None: all.

        Raises:
            VmrError: with a list of all fatal problems.
        """
        for source in self.sources(needs):
            source.prepare(protocol)
        missing = self._missing(protocol, needs)
        self._refuse([*missing.videos, *missing.queries], protocol)
        problems = self._broken(protocol, missing, "all", needs)
        self._refuse(problems, protocol)
        for problem in problems:
            log.warning(f"features={self.name}: {problem} `vmr doctor` explains it.")

    def without_missing_videos(self, protocol: Protocol) -> Protocol:
        """Leaves out the sentences about videos without clip features, unless all videos lack them.

        With all of them missing, the check of the features explains why better than empty splits would.

        Raises:
            VmrError: if no sentence of a split is left.
        """
        videos = protocol.video_ids
        absent = {video_id for problem in self.video.missing(videos) for video_id in problem.ids}
        if not absent or len(absent) == len(videos):
            return protocol
        log.warning(
            f"{protocol.name}: sentences about {len(absent):,} videos without features are left out "
            f"(data.missing_videos=dropped): {abbreviate(sorted(absent))}."
        )
        kept = protocol.without(absent)
        empty = [
            name for name, split in kept.splits.items() if not split.queries and protocol.splits[name].queries
        ]
        if empty:
            raise VmrError(
                f"No video of the {', '.join(empty)} split of {protocol.name} has features in "
                f"features={self.name}: data.missing_videos=dropped leaves nothing. Extract or fetch them."
            )
        return kept

    def _refuse(self, problems: Sequence[Problem], protocol: Protocol) -> None:
        """Raises an error that lists the fatal problems, if there are any."""
        fatal = [problem for problem in problems if problem.fatal]
        if not fatal:
            return
        listed = "\n".join(f"- {problem}" for problem in fatal)
        advice = "`vmr doctor` with the same data and features lists everything that is wrong."
        videos = protocol.video_ids
        absent = {video_id for problem in self.video.missing(videos) for video_id in problem.ids}
        if 0 < len(absent) < len(videos):
            advice += " `vmr train data.missing_videos=dropped` leaves out sentences about absent videos."
        raise VmrError(f"features={self.name} cannot serve {protocol.name}:\n{listed}\n{advice}")

    def check(
        self, protocol: Protocol, depth: CheckDepth = "sample", needs: Collection[str] | None = None
    ) -> list[Problem]:
        """Finds missing ids, wrong dimensions, NaN, and lengths that contradict the durations.

        Call `prepare` of the sources first.

        Args:
            protocol: the protocol whose splits are checked.
            depth: how many files are read; reading 16,000 files takes about 20 s, listing them under 1 s.
            needs: the method's needs; None: all.

        Returns:
            The problems, fatal ones first.
        """
        if depth not in ("names", "sample", "all"):
            raise unknown("depth of a check", depth, ("names", "sample", "all"))
        missing = self._missing(protocol, needs)
        problems = [*missing.videos, *missing.queries]
        if depth != "names":
            problems += self._broken(protocol, missing, depth, needs)
        return sorted(problems, key=lambda problem: not problem.fatal)

    def _missing(self, protocol: Protocol, needs: Collection[str] | None) -> _Missing:
        """Finds missing ids; opens no feature file."""
        queries = protocol.queries
        videos = list(dict.fromkeys(query.video_id for query in queries))
        sources = self.sources(needs)
        of_queries = self.query.missing(queries)
        if self.narration_query is not None and self.narration_query in sources:
            lacking = self.narration_query.missing(queries)
            of_queries += [replace(p, part=f"narration {p.part}") for p in lacking]
        of_videos = self.video.missing(videos)
        if self.narration is not None and self.narration in sources:
            of_videos += self.narration.missing(videos)
        if self.patches is not None and self.patches in sources:
            of_videos += [replace(p, part=f"patches of {p.part}") for p in self.patches.missing(videos)]
        return _Missing(of_videos, of_queries)

    def _broken(
        self, protocol: Protocol, missing: _Missing, depth: CheckDepth, needs: Collection[str] | None
    ) -> list[Problem]:
        """Loads everything that is not missing, and groups the failures."""
        sources = self.sources(needs)
        queries = protocol.queries
        durations = {query.video_id: query.duration for query in queries}
        by_id = {query.query_id: query for query in queries}
        videos = _present(durations, missing.videos)
        lengths: dict[str, int] = {}

        def measure(video_id: str) -> None:
            lengths[video_id] = len(self.video.load(video_id))

        problems = _failures(self.video, "video", videos, depth, measure)
        problems += self._contradictions(lengths, durations)
        problems += self.video.uneven(sample(list(lengths)))
        present = _present(by_id, missing.queries)
        for part, words in (("query", self.query), ("narration query", self.narration_query)):
            if words is not None and words in sources:
                load_words = words.load

                def load(query_id: str, load_words: Callable[..., object] = load_words) -> object:
                    return load_words(by_id[query_id])

                problems += _failures(words, part, present, depth, load)
        if self.narration is not None and self.narration in sources:
            narrated = self.narration.load
            starts: dict[str, Array] = {}

            def note_starts(video_id: str) -> None:
                starts[video_id] = narrated(video_id)[1][:, 0]

            problems += _failures(self.narration, "narration", videos, depth, note_starts)
            problems += _late_narrations(starts, durations)
        if self.patches is not None and self.patches in sources:
            problems += _failures(self.patches, "patches", videos, depth, self.load_patches)
        return problems

    def _contradictions(self, lengths: Mapping[str, int], durations: Mapping[str, float]) -> list[Problem]:
        """Finds videos whose number of clips is off by more than two clips and more than 10 %.

        Fatal if most are: then the declared clip length is wrong, and moments map to the wrong clips.
        """
        if self.clip_seconds is None:
            return []
        most = self.video.max_clips
        off = {}
        for video_id, length in lengths.items():
            expected = durations[video_id] / self.clip_seconds
            if most is not None:
                expected = min(expected, most)
            if lengths_differ(length, expected):
                off[video_id] = (
                    f"'{video_id}' has {length} clips; about {expected:.0f} were expected "
                    f"({durations[video_id]:.1f} s at {self.clip_seconds} s per clip)."
                )
        advice = f"compare features.clip_seconds={self.clip_seconds} with the extraction."
        return length_problem(off, len(lengths), advice)

    def manifest(self) -> dict[str, Any]:
        """Returns the JSON-able description that a checkpoint stores; `compare_manifests` checks it."""
        return {
            "name": self.name,
            "origin": self.origin,
            "video_dim": self.video_dim,
            "query_dim": self.query_dim,
            "clip_seconds": self.clip_seconds,
            "joint_space": self.joint_space,
            "video": self.video.manifest(),
            "query": self.query.manifest(),
            "narration": None if self.narration is None else self.narration.manifest(),
            "narration_query": None if self.narration_query is None else self.narration_query.manifest(),
            "patches": None if self.patches is None else self.patches.manifest(),
        }


def _present(ids: Iterable[str], problems: Sequence[Problem]) -> list[str]:
    """Returns the ids without a fatal problem."""
    affected = {identifier for problem in problems if problem.fatal for identifier in problem.ids}
    return [identifier for identifier in ids if identifier not in affected]


def _failures(
    source: FeatureSource, part: str, ids: Sequence[str], depth: CheckDepth, load: Callable[[str], Any]
) -> list[Problem]:
    """Loads all ids, or a sample at equal intervals, and groups the failures by kind."""
    if depth == "sample" or source.computed:
        ids = sample(ids)
    failures: dict[str, list[tuple[str, str]]] = {}
    for identifier in progress(ids, f"Reading {part} features", SAMPLE + 1):
        try:
            load(identifier)
        except FeatureError as error:
            failures.setdefault(error.kind, []).append((identifier, str(error)))
    return [
        Problem(part, kind, tuple(identifier for identifier, _ in listed), listed[0][1])
        for kind, listed in failures.items()
    ]


def _late_narrations(starts: Mapping[str, Array], durations: Mapping[str, float]) -> list[Problem]:
    """Finds narrations whose times are in another unit than seconds: many start after their video ends."""
    late = {video_id: int((own >= durations[video_id]).sum()) for video_id, own in starts.items()}
    total, beyond = sum(map(len, starts.values())), sum(late.values())
    if beyond <= max(2, 0.25 * total):
        return []
    detail = (
        f"{beyond:,} of {total:,} narrations start after the end of their video. Times must be in seconds; "
        "these look like milliseconds or frames."
    )
    return [
        Problem("narration", "length", tuple(video_id for video_id, count in late.items() if count), detail)
    ]
