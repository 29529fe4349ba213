"""Finds moments in a video file with a trained run, from Python.

    retriever = Retriever.from_run("runs/shapes-shapes/mesm-paper/seed0")
    video = retriever.encode("clip.mp4")                         # decoded and encoded once
    for moment in video.search("a person opens the door"):      # searched as often as you like
        print(moment.start, moment.end, moment.score)

The run's own configuration decides how the video and the sentences are encoded. For a run on published
feature files, `engine.encoders` does, if it knows their networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from vmr_zoo.config.compose import build
from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.batches.datamodule import FOR_DETAILS, TRAINING_ONLY
from vmr_zoo.data.batches.sampling import EpochBatchSampler
from vmr_zoo.data.batches.split_dataset import SplitDataset
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.manifest import compare_manifests
from vmr_zoo.data.features.source import NarrationSource, QuerySource, VideoSource
from vmr_zoo.data.narrations import NarrationFile, manifest_path
from vmr_zoo.engine.encoders import with_encoders
from vmr_zoo.engine.index import VideoIndex, encode_now
from vmr_zoo.engine.weights import load_weights
from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.per_query import is_window
from vmr_zoo.runs import directory
from vmr_zoo.runs.hub import local_run
from vmr_zoo.spans import nms
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import file_state
from vmr_zoo.utils.trees import differing
from vmr_zoo.video.decode import Note
from vmr_zoo.video.torch_models import find_device

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vmr_zoo.methods.base import Method

NMS_IOU = 0.5
"""If two moments from different windows overlap more than this, the lower-scored one is dropped."""

_NARRATOR_MAY_DIFFER = {"date", "seed", "dtype", "answers"}
"""Manifest keys that may differ between the narrations of training and those of a new video."""

_CLIP_SCORE_DETAILS = ("frame_probability", "highlight")
"""Details used as clip scores for methods without saliency, in order of preference."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A retrieved moment.

    Attributes:
        start: seconds.
        end: seconds.
        score: the method's confidence; comparable within one run only.
    """

    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The moments that a run retrieves for one sentence.

    Attributes:
        query: the sentence.
        moments: best first.
        clip_scores: (clips,) relevance of each clip: saliency, or the probability that a frame is inside the
            moment; None for a method that has neither.
    """

    query: str
    moments: list[Moment]
    clip_scores: Array | None


class Retriever:
    """A trained method with the encoders of its features."""

    def __init__(
        self,
        method: Method,
        features: FeatureSet,
        *,
        narrator: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        window_seconds: float | None = None,
        batch_size: int = 100,
        index: VideoIndex | None = None,
    ) -> None:
        """Stores the parts; `from_run` builds them.

        Args:
            method: with its weights.
            features: the features that it was trained on.
            narrator: manifest of the narrations that it was trained on; None: there were none.
            device: device of the method.
            window_seconds: a longer video is searched in windows of this length, each overlapping half of the
                next; None: never.
            batch_size: windows times queries per forward pass.
            index: keeps the features of videos; None: each `encode` computes them.

        Raises:
            VmrError: for a window that is not longer than 0 s.
        """
        if window_seconds is not None and not 0 < window_seconds < float("inf"):
            raise VmrError(f"Expected a window longer than 0 s, found {window_seconds}.")
        self.method = method.to(device).eval()
        self.features = features
        self.narrator = narrator
        self.device = torch.device(device)
        self.window_seconds = window_seconds
        self.batch_size = batch_size
        self.index = index
        self.needs = method.needs - TRAINING_ONLY - FOR_DETAILS
        self._narrated: dict[str, Path] = {}
        self._parsed: tuple[list[Any], NarrationFile] | None = None

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        *,
        device: str | torch.device | None = None,
        window_seconds: float | None = None,
        batch_size: int = 100,
        cache: str | Path | None = None,
        encoders: DictConfig | None = None,
    ) -> Retriever:
        """Rebuilds a method and its encoders from a run directory.

        Args:
            run: the directory, or hf://OWNER/NAME[@REVISION].
            device: device of the method; None: a GPU if there is one.
            window_seconds: length of search windows; None: that of the longest training video.
            batch_size: windows times queries per forward pass. MMN and VDI compute their video map once per
                batch.
            cache: folder for sentence embeddings and for the index of videos; None: that of the run for
                embeddings, and no index.
            encoders: for a run on published files, the encoder of each backbone, as `conf/encoders`; None: as
                there.

        Raises:
            VmrError: if the run is incomplete, or its features cannot be computed for a new video.
        """
        run = local_run(run, cache)
        stored = directory.load_config(run, paths={"cache": cache})
        header = directory.read_json(run / directory.METRICS)[directory.HEADER]
        features: FeatureSet = build(stored.features)
        method: Method = build(stored.method)
        used: dict[str, VideoSource | QuerySource] = {"video": features.video, "query": features.query}
        if "narration_query" in method.needs and features.narration_query is not None:
            used["narration_query"] = features.narration_query
        trained = directory.read_json(run / directory.MANIFEST)
        now = {"name": features.name} | {key: source.manifest() for key, source in used.items()}
        compare_manifests({key: trained.get(key) for key in now}, now)
        if not all(source.encodes for source in used.values()):
            features = with_encoders(features, run, encoders)
        load_weights(method, run / directory.WEIGHTS)
        if window_seconds is None:
            window_seconds = _longest_training_video(features, header.get("longest_training_video"))
        return cls(
            method,
            features,
            narrator=(trained["narration"] or {}).get("narrator"),
            device=find_device(None if device is None else str(device)),
            window_seconds=window_seconds,
            batch_size=batch_size,
            index=None if cache is None else VideoIndex(cache, features.video),
        )

    def encode(self, video: str | Path, narrations: str | Path | None = None) -> EncodedVideo:
        """Decodes and encodes a video, unless the index knows its content.

        Args:
            video: any file that PyAV decodes.
            narrations: a narration file that holds this video (by its file name without suffix), for a method
                that reads narrations; `vmr narrate` makes one.

        Raises:
            VideoError: if the file cannot be decoded.
            VmrError: if the method needs narrations and there are none, or those of another narrator.
        """
        path = Path(video)
        vectors = times = None
        if "narration" in self.needs:
            vectors, times = self._narrations(path, narrations)
        found = encode_now(self.features.video, path) if self.index is None else self.index.encode(path)
        line = found.timeline
        return EncodedVideo(self, path, line.seconds, found.clips, vectors, times, line.notes)

    def _narrations(self, path: Path, file: str | Path | None) -> tuple[Array, Array]:
        """Embeds the narrations of a video: (Ln, dim), and (Ln, 2) seconds."""
        source = self.features.narration
        if not isinstance(source, NarrationFile):
            raise VmrError("The method reads narrations, but the features of its run have none.")
        if file is None:
            raise VmrError(
                f"{type(self.method).__name__} reads narrations; found none for {path}. Make them with `vmr "
                f"narrate videos={path} out=FILE.jsonl` and the narrator of the training data, and add "
                "narrations=FILE.jsonl."
            )
        narrated = self._narration_file(Path(file).expanduser(), source)
        current, trained = narrated.narrator_manifest, self.narrator or {}
        keys = [key for key in differing(trained, current) if key not in _NARRATOR_MAY_DIFFER]
        if keys:
            listed = "; ".join(f"{key}: {trained.get(key)!r}, now {current.get(key)!r}" for key in keys)
            raise VmrError(f"{file} was made by another narrator than the narrations of training: {listed}.")
        other = self._narrated.setdefault(path.stem, path)
        if other.resolve() != path.resolve():
            raise VmrError(
                f"Narrations belong to a video by its name; found two named '{path.stem}': {other}, {path}. "
                "Search them one by one, or rename one and narrate it again."
            )
        return narrated.load(path.stem)

    def _narration_file(self, file: Path, source: NarrationFile) -> NarrationFile:
        """Returns a narration file, which is parsed once for all videos unless it changes."""
        state = [file, file_state(file), file_state(manifest_path(file))]
        known = self._parsed
        if known is None or known[0] != state:
            known = self._parsed = state, NarrationFile(file, source.encoder, source.normalise)
        return known[1]


@dataclass(frozen=True)
class EncodedVideo:
    """A video that has been decoded and encoded, ready to be searched many times.

    Attributes:
        retriever: the retriever that encoded it.
        path: the file.
        duration: seconds.
        clips: (T, dim) float32.
        narration: (Ln, dim) float32, None for a method that reads none.
        narration_seconds: (Ln, 2) float32 start and end.
        notes: what is odd about the file, and how it was understood.
    """

    retriever: Retriever
    path: Path
    duration: float
    clips: Array
    narration: Array | None = None
    narration_seconds: Array | None = None
    notes: tuple[Note, ...] = ()

    def search(self, query: str, top_k: int = 5) -> list[Moment]:
        """Finds the moments that a sentence describes.

        Args:
            query: the sentence.
            top_k: the most moments to return.

        Returns:
            Moments in seconds, best first.
        """
        return self.answer([query], top_k)[0].moments

    @torch.inference_mode()
    def answer(self, queries: Sequence[str], top_k: int = 5) -> list[Answer]:
        """Answers several sentences, each independently of the others.

        Args:
            queries: N sentences.
            top_k: the most moments to return for each.

        Returns:
            N answers. Moments of all windows are ranked together.

        Raises:
            VmrError: if a sentence has no words.
        """
        if top_k < 1:
            raise VmrError(f"Expected top_k of at least 1, found {top_k}.")
        if not queries:
            return []
        retriever, windows = self.retriever, self._windows()
        rows = [
            Query(f"{number}-{window}", str(window), text, (), windows[window].seconds)
            for number, text in enumerate(queries)
            for window in range(len(windows))
        ]
        retriever.features.query.encode(queries)
        if "narration_query" in retriever.needs:
            assert retriever.features.narration_query is not None
            retriever.features.narration_query.encode(queries)
        split = Split("query", tuple(rows))
        data = SplitDataset(split, self._features(windows), retriever.needs)
        found: list[list[Moment]] = [[] for _ in queries]
        sums = np.zeros((len(queries), len(self.clips)), np.float32)
        counts = np.zeros(len(self.clips), np.float32)
        for window in windows:
            counts[window.first : window.last] += 1
        scored = False
        sampler = EpochBatchSampler(
            list(np.arange(len(rows))[:, None]), data.clips.numpy(), retriever.batch_size
        )
        for chosen in sampler:
            batch = move_data_to_device(data[chosen], retriever.device)
            prediction = retriever.method.predict(batch, details=True)
            spans, scores = prediction["spans"].float().cpu(), prediction["scores"].float().cpu()
            curve = _clip_scores(prediction)
            for place, row in enumerate(chosen.rows.tolist()):
                number, window = row // len(windows), windows[row % len(windows)]
                found[number] += _to_moments(spans[place], scores[place], window)
                if curve is not None:
                    scored = True
                    values = curve[place, : len(window)]
                    if len(values) < len(window):  # the method pooled neighbouring clips
                        places = np.linspace(0, len(values) - 1, len(window))
                        values = np.interp(places, np.arange(len(values)), values)
                    sums[number, window.first : window.last] += values
        return [
            Answer(text, _rank(moments, top_k, len(windows)), sums[number] / counts if scored else None)
            for number, (text, moments) in enumerate(zip(queries, found, strict=True))
        ]

    def _windows(self) -> list[_Window]:
        """Cuts the video into windows that overlap by half, the last one flush with the end."""
        count = len(self.clips)
        seconds = self.retriever.features.clip_length(self.duration, count)
        most = self.retriever.window_seconds
        size = count if most is None else max(1, int(np.ceil(most / seconds)))
        if size >= count:
            return [_Window(0, count, 0.0, self.duration)]
        starts = [*range(0, count - size, max(1, size // 2)), count - size]
        return [
            _Window(
                first, first + size, first * seconds, min(size * seconds, self.duration - first * seconds)
            )
            for first in starts
        ]

    def _features(self, windows: Sequence[_Window]) -> FeatureSet:
        """Serves the windows as videos named "0", "1" and so on."""
        features = self.retriever.features
        clips = {str(i): self.clips[w.first : w.last] for i, w in enumerate(windows)}
        narrations = None
        if self.narration is not None and self.narration_seconds is not None:
            by_window = {}
            for i, window in enumerate(windows):
                times = self.narration_seconds - window.offset
                inside = (times[:, 1] >= 0) & (times[:, 0] <= window.seconds)
                by_window[str(i)] = (self.narration[inside], times[inside].clip(0, window.seconds))
            narrations = _WindowNarrations(by_window, self.narration.shape[1])
        return replace(
            features,
            video=_WindowClips(clips, features.video_dim),
            narration=narrations,
            narration_dim=None if narrations is None else narrations.dim,
            patches=None,
            patch_dim=None,
        )


@dataclass(frozen=True, slots=True)
class _Window:
    """Clips `first` to `last` - 1 of a video, from `offset`, of `seconds` length."""

    first: int
    last: int
    offset: float
    seconds: float

    def __len__(self) -> int:
        return self.last - self.first


class _WindowClips(VideoSource):
    """The clips of windows, in memory."""

    def __init__(self, clips: dict[str, Array], dim: int) -> None:
        self.clips = clips
        self.dim = dim

    def load(self, video_id: str) -> Array:
        return self.clips[video_id]

    def manifest(self) -> dict[str, Any]:
        return {}


class _WindowNarrations(NarrationSource):
    """The narrations of windows, in memory."""

    def __init__(self, narrations: dict[str, tuple[Array, Array]], dim: int) -> None:
        self.narrations = narrations
        self.dim = dim

    def load(self, video_id: str) -> tuple[Array, Array]:
        return self.narrations[video_id]

    def manifest(self) -> dict[str, Any]:
        return {}


def _longest_training_video(features: FeatureSet, longest_video: float | None) -> float | None:
    """Returns the seconds of the longest video in training; None if that is not recorded."""
    most = features.video.max_clips
    if most is None or features.clip_seconds is None:
        return longest_video
    cut = most * features.clip_seconds
    return cut if longest_video is None else min(cut, longest_video)


def _clip_scores(prediction: Any) -> Array | None:
    """Returns one score per clip, (B, Lv or fewer), if the method has clip scores."""
    details = prediction.get("details", {})
    for curve in (prediction.get("saliency"), *(details.get(name) for name in _CLIP_SCORE_DETAILS)):
        if curve is not None:
            values: Array = curve.float().cpu().numpy()
            return values
    return None


def _to_moments(spans: Tensor, scores: Tensor, window: _Window) -> list[Moment]:
    """Converts fractions of a window into seconds of the video; drops the padding of short lists."""
    return [
        Moment(window.offset + start * window.seconds, window.offset + end * window.seconds, score)
        for (start, end), score in zip(spans.tolist(), scores.tolist(), strict=True)
        if is_window(start, end, score)
    ]


def _rank(moments: Iterable[Moment], top_k: int, windows: int) -> list[Moment]:
    """Ranks the moments of all windows together."""
    ranked = sorted(moments, key=lambda moment: -moment.score)
    if windows > 1 and ranked:
        # A moment in the overlap of two windows is found twice.
        spans = torch.tensor([[[moment.start, moment.end] for moment in ranked]])
        scores = torch.tensor([[moment.score for moment in ranked]])
        kept, kept_scores = nms(spans, scores, NMS_IOU, keep=min(top_k, len(ranked)))
        ranked = [
            Moment(start, end, score)
            for (start, end), score in zip(kept[0].tolist(), kept_scores[0].tolist(), strict=True)
            if is_window(start, end, score)
        ]
    return ranked[:top_k]
