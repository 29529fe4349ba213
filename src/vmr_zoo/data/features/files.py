"""Video and query features that are stored on disk.

A `FileFeatures` reads one backbone's arrays from a store, casts them to float32 and L2-normalises them.
`VideoFiles` concatenates several of them; `QueryFiles` reads one file per query.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.features.problems import FeatureError, Problem, length_problem, lengths_differ
from vmr_zoo.data.features.source import QuerySource, VideoSource
from vmr_zoo.data.features.store import ArrayStore
from vmr_zoo.data.text.clip_tokenizer import BytePairs
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.utils.arrays import Array, Epsilon, l2_normalise
from vmr_zoo.utils.files import json_objects
from vmr_zoo.utils.switches import check_switches

_CONTEXT = 77
"""Positions of CLIP's text encoder."""


@check_switches
class FileFeatures:
    """One backbone's features on disk."""

    def __init__(
        self,
        backbone: str,
        dim: int,
        store: ArrayStore,
        normalise: bool,
        layer: int | None = None,
        part: Literal["vector", "global", "patches"] = "vector",
        epsilon: Epsilon = "added",
    ) -> None:
        """Stores the content of the files and how to use it.

        Args:
            backbone: the network that computed them; part of the manifest.
            dim: size of one vector.
            store: the files.
            normalise: whether to L2-normalise each vector.
            layer: the layer to read, for files with several layers on the second axis.
            part: "vector" reads (T, dim). "global" and "patches" read the first token and the P other tokens
                of (T, 1 + P, dim).
            epsilon: as in `l2_normalise`.
        """
        self.backbone = backbone
        self.dim = dim
        self.store = store
        self.normalise = normalise
        self.layer = layer
        self.part = part
        self.epsilon: Epsilon = epsilon

    def read(self, identifier: str) -> Array:
        """Reads one id's features.

        Returns:
            (T, dim) float32, or (T, P, dim) for the part "patches".

        Raises:
            FeatureError: if they are missing, unreadable, empty, not finite or of another dimension.
        """
        array, where = self.store.read(identifier)
        shape = array.shape
        axes = 2 + (self.layer is not None) + (self.part != "vector")
        if len(shape) != axes or shape[-1] != self.dim:
            expected = "(T, {}{}{})".format(
                "layers, " * (self.layer is not None), "tokens, " * (self.part != "vector"), self.dim
            )
            raise FeatureError("dimension", f"{where} has shape {shape}; expected {expected}.")
        if self.layer is not None:
            if not -shape[1] <= self.layer < shape[1]:
                raise FeatureError(
                    "dimension", f"{where} has {shape[1]} layers; layer={self.layer} requested."
                )
            array = array[:, self.layer]
        if self.part != "vector":
            array = array[:, 0] if self.part == "global" else array[:, 1:]
        if 0 in array.shape:
            raise FeatureError("empty", f"{where} has shape {shape}.")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise FeatureError(
                "not finite", f"{where} holds {int((~np.isfinite(array)).sum())} NaN or infinite values."
            )
        return l2_normalise(array, self.epsilon) if self.normalise else array

    def manifest(self) -> dict[str, Any]:
        """Returns what identifies the features; their location does not."""
        manifest: dict[str, Any] = {"backbone": self.backbone, "dim": self.dim, "normalise": self.normalise}
        if self.layer is not None:
            manifest["layer"] = self.layer
        if self.part != "vector":
            manifest["part"] = self.part
        if self.normalise and self.epsilon != "added":
            manifest["epsilon"] = self.epsilon
        return manifest


def _not_found(part: str, store: ArrayStore, wanted: Mapping[str, str]) -> list[Problem]:
    """Finds the ids that a store lacks.

    Args:
        part: the name of the part in the problem.
        store: the store to search.
        wanted: the id in the store by the id to report.

    Returns:
        At most one problem.
    """
    try:
        lacking = tuple(reported for reported, identifier in wanted.items() if store.find(identifier) is None)
    except FeatureError as error:  # the whole folder or file
        return [Problem(part, error.kind, tuple(wanted), str(error))]
    if not lacking:
        return []
    tried = " or ".join(store.where(name) for name in store.names)
    spelled = next(filter(None, (store.other_spelling(wanted[reported]) for reported in lacking)), "")
    return [Problem(part, "missing", lacking, f"Looked for {tried}.{spelled}")]


BinEdges = Literal["floor", "half_even"]
"""How `mean_pool` rounds the edges of its bins."""


def mean_pool(video: Array, bins: int, edges: BinEdges) -> Array:
    """Averages the clips of a long video into bins of (nearly) equal length.

    Args:
        video: (T, …) with T >= bins.
        bins: number of bins.
        edges: where bin i begins, i / bins * T as a whole number. "floor" rounds it down, and every clip is
            in one bin. "half_even" follows MESM's released code: float32 numbers are rounded to the nearest
            whole one, halves to the even one, and none is above T - 1. The last clip is then in a bin of its
            own or in none, and a bin without clips holds the clip at its edge.

    Returns:
        (bins, …) float32.
    """
    if edges == "floor":
        first = np.arange(bins + 1) * len(video) // bins
    else:
        exact = np.arange(bins + 1, dtype=np.float32) / np.float32(bins) * np.float32(len(video))
        first = np.minimum(np.rint(exact).astype(np.int64), len(video) - 1)
    count = np.maximum(np.diff(first), 1)
    # reduceat takes the clip at an edge alone if the next edge is not larger.
    sums = np.add.reduceat(video, first[first < len(video)], axis=0)[:bins]
    return sums / count.reshape(-1, *(1,) * (video.ndim - 1)).astype(np.float32)


@check_switches
class VideoFiles(VideoSource):
    """The files of several backbones, concatenated in the declared order, cut to the shortest.

    Each source is normalised separately before concatenation. The order is part of the manifest, because
    features in another order have the same size but silently ruin a checkpoint.
    """

    def __init__(
        self,
        sources: Sequence[FileFeatures],
        max_clips: int | None = None,
        overlong: Literal["truncate", "mean_pool"] = "truncate",
        bin_edges: BinEdges = "floor",
    ) -> None:
        """Stores the sources.

        Args:
            sources: in the order of concatenation.
            max_clips: longest video in clips; None: no limit.
            overlong: "truncate" keeps the first `max_clips` clips of a longer video; "mean_pool" averages all
                clips into `max_clips` bins of (nearly) equal length, duration / max_clips seconds each.
            bin_edges: rule of these bins, as in `mean_pool`.
        """
        if not sources:
            raise VmrError("VideoFiles needs at least one source.")
        if len(sources) > 1 and any(source.part == "patches" for source in sources):
            raise VmrError("Patch features come from one source; a concatenation of several is not defined.")
        self.sources = list(sources)
        self.dim = sum(source.dim for source in sources)
        self.max_clips = max_clips
        self.overlong = overlong
        self.bin_edges: BinEdges = bin_edges

    def load(self, video_id: str) -> Array:
        """Returns (T, dim) float32; T is the shortest source's length, at most `max_clips`.

        Raises:
            FeatureError: if a file is missing or cannot be used.
        """
        video = self.concatenate([source.read(video_id) for source in self.sources])
        if self.max_clips is not None and self.overlong == "truncate":
            return np.ascontiguousarray(video[: self.max_clips])
        return video

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Concatenates the arrays of one video, one per source, and pools an overlong video."""
        shortest = min(map(len, arrays))
        video = (
            arrays[0] if len(arrays) == 1 else np.concatenate([array[:shortest] for array in arrays], axis=-1)
        )
        if self.max_clips is not None and self.overlong == "mean_pool" and len(video) > self.max_clips:
            video = mean_pool(video, self.max_clips, self.bin_edges)
        return video

    def state(self, video_id: str) -> list[int]:
        """Returns size and time of the files with a video's features; empty if one of them is gone."""
        states = [source.store.state(video_id) for source in self.sources]
        return list(itertools.chain.from_iterable(states)) if all(states) else []

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that a source lacks."""
        wanted = {video_id: video_id for video_id in video_ids}
        found = (_not_found(f"video {source.backbone}", source.store, wanted) for source in self.sources)
        return list(itertools.chain.from_iterable(found))

    def uneven(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos whose sources differ by more than two clips and more than 10 %.

        Fatal if most do: then a clip of one source is not as long as one of another, and the vectors that
        are concatenated are of different seconds.
        """
        if len(self.sources) == 1:
            return []
        found = {}
        for video_id in video_ids:
            clips = {source.backbone: len(source.read(video_id)) for source in self.sources}
            if lengths_differ(min(clips.values()), max(clips.values())):
                counts = ", ".join(f"{count} clips of {name}" for name, count in clips.items())
                found[video_id] = f"'{video_id}' has {counts}; sources are cut to the shortest."
        return length_problem(found, len(video_ids), "give all sources clips of the same length.")

    def manifest(self) -> dict[str, Any]:
        """Returns the sources in order, and the treatment of long videos."""
        manifest = {
            "order": [source.backbone for source in self.sources],
            "sources": [source.manifest() for source in self.sources],
            "max_clips": self.max_clips,
            "overlong": self.overlong if self.max_clips is not None else None,
        }
        if self.max_clips is not None and self.bin_edges != "floor":
            manifest["bin_edges"] = self.bin_edges
        return manifest


@check_switches
class QueryFiles(QuerySource):
    """Token features on disk, one file per query."""

    def __init__(
        self,
        source: FileFeatures,
        max_tokens: int | None = 32,
        index: Sequence[str | Path] = (),
        after_end: Literal["dropped", "kept"] = "kept",
    ) -> None:
        """Stores the source.

        Args:
            source: the files.
            max_tokens: only the first tokens are kept; None: all.
            index: JSON Lines files with `qid`, `vid` and `query`, for stores that do not use the ids of the
                published annotations. A query's file is then found by video and text, not by query id.
            after_end: what is done with the positions after CLIP's end token in files that have all 77:
                "dropped", or "kept" as if they were words. Shorter files have no such positions.
        """
        self.after_end = after_end
        self.source = source
        self.dim = source.dim
        self.max_tokens = max_tokens
        self.index = [Path(path).expanduser() for path in index]

    @cached_property
    def _tokenizer(self) -> BytePairs:
        return BytePairs()

    @cached_property
    def _qids(self) -> dict[tuple[str, str], str]:
        qids: dict[tuple[str, str], str] = {}
        for path in self.index:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeError) as error:
                raise VmrError(
                    f"Expected JSON Lines with qid, vid and query in UTF-8 at {path}; {error}."
                ) from error
            for where, row in json_objects(text, path):
                try:
                    qids[row["vid"], row["query"].strip()] = str(row["qid"])
                except (KeyError, TypeError, AttributeError) as error:
                    raise VmrError(f"{where}: expected an object with qid, vid, query.") from error
        return qids

    def _file_id(self, query: Query) -> str:
        if not self.index:
            return query.query_id
        try:
            return self._qids[query.video_id, query.text]
        except KeyError:
            raise FeatureError(
                "missing",
                f"{abbreviate(map(str, self.index))} lacks a row with vid {query.video_id}, "
                f"query '{query.text}'.",
            ) from None

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32, L at most `max_tokens`.

        Raises:
            FeatureError: if a file is missing or cannot be used.
        """
        rows = self.source.read(self._file_id(query))
        if self.after_end == "dropped" and len(rows) == _CONTEXT:
            rows = rows[: len(self._tokenizer.split(query.text).ids) + 2]  # with start and end
        return rows[: self.max_tokens]

    def missing(self, queries: Sequence[Query]) -> list[Problem]:
        """Finds queries without a file."""
        part = f"query {self.source.backbone}"
        unlisted: list[str] = []
        wanted: dict[str, str] = {}
        for query in queries:
            try:
                wanted[query.query_id] = self._file_id(query)
            except FeatureError:
                unlisted.append(query.query_id)
        problems = _not_found(part, self.source.store, wanted)
        if unlisted:
            detail = f"No row with their vid and query in {abbreviate(map(str, self.index))}."
            problems.append(Problem(part, "missing", tuple(unlisted), detail))
        return problems

    def manifest(self) -> dict[str, Any]:
        """Returns the source, the maximum number of tokens, and what is dropped."""
        manifest = {**self.source.manifest(), "max_tokens": self.max_tokens}
        return manifest | ({"after_end": self.after_end} if self.after_end != "kept" else {})
