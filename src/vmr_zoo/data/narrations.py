"""Narration files: sentences about a video with time spans.

A file `NAME.jsonl` holds JSON Lines, one object per sentence:

    {"video_id": "AO8RW", "start": 4.0, "end": 4.0, "text": "A person walks to a shelf."}

`start` and `end` are seconds, equal for the caption of one frame. The manifest `NAME.manifest.json` beside it
describes the narrator: model, revision, prompt, sampling rate, seed, date.

`read_narrations` reads a file, `write_narrations` writes one. `NarrationFile` serves a file as features: it
embeds the sentences with a text encoder and caches the vectors, so another encoder needs no new narrations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.data.features.problems import FeatureError, Problem
from vmr_zoo.data.features.source import NarrationSource
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.data.text.lost_words import LostWords
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import atomic_path, json_objects, write_json

MANIFEST_KEYS = ("model", "revision", "prompt", "sampling_rate", "seed", "date")
"""Required keys of a narration manifest; null where not applicable. `prompt` may be a list."""


@dataclass(frozen=True, slots=True)
class Narration:
    """One sentence about a time span or a frame of a video.

    Attributes:
        video_id: the video.
        start: seconds.
        end: seconds, at least `start`.
        text: the sentence.
    """

    video_id: str
    start: float
    end: float
    text: str


def manifest_path(path: str | Path) -> Path:
    """Returns the path of the manifest of a narration file."""
    return Path(path).with_suffix(".manifest.json")


def write_narrations(path: str | Path, narrations: Iterable[Narration], manifest: Mapping[str, Any]) -> None:
    """Writes narrations and their manifest, each under a temporary name first.

    Args:
        path: the .jsonl file.
        narrations: the sentences, in the order of the file.
        manifest: has at least `MANIFEST_KEYS`.

    Raises:
        VmrError: if the manifest lacks a key.
    """
    _check_manifest(manifest, str(path))
    # Line by line: a large data set has millions of sentences. asdict() would take most of the time.
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for one in narrations:
            row = {"video_id": one.video_id, "start": one.start, "end": one.end, "text": one.text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_json(manifest_path(path), dict(manifest))


def read_narrations(path: str | Path) -> tuple[dict[str, list[Narration]], dict[str, Any]]:
    """Reads narrations and their manifest.

    Args:
        path: the .jsonl file.

    Returns:
        The narrations by video id, each list sorted by start and end, and the manifest.

    Raises:
        VmrError: if a file is missing or a line is invalid, with the line number.
    """
    path = Path(path).expanduser()
    by_video: dict[str, list[Narration]] = {}
    for where, row in json_objects(_text(path), path):
        narration = _parse(row, where)
        by_video.setdefault(narration.video_id, []).append(narration)
    if not by_video:
        raise VmrError(f"{path} holds no narrations.")
    for narrations in by_video.values():
        narrations.sort(key=lambda narration: (narration.start, narration.end))
    beside = manifest_path(path)
    try:
        manifest = json.loads(_text(beside))
    except (ValueError, RecursionError) as error:
        raise VmrError(f"{beside} is not valid JSON ({error}).") from error
    if not isinstance(manifest, dict):
        raise VmrError(f"Expected a JSON object in {beside}, found {type(manifest).__name__}.")
    _check_manifest(manifest, str(beside))
    return by_video, manifest


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError as error:
        raise VmrError(
            f"Expected narrations at {path}, found no such file. Narrations are a .jsonl file with its "
            ".manifest.json beside it."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise VmrError(f"{path} cannot be read as UTF-8 text ({error}).") from error


def _parse(row: Mapping[str, Any], where: str) -> Narration:
    """Checks one line."""
    if not {"video_id", "start", "end", "text"} <= row.keys():
        raise VmrError(f"{where}: expected an object with video_id, start, end, text; found {row!r:.80}.")
    start, end, text, video_id = row["start"], row["end"], row["text"], row["video_id"]
    if not (isinstance(video_id, str) and isinstance(text, str) and video_id and text.strip()):
        raise VmrError(
            f"{where}: expected video_id and text as strings that are not empty; found {row!r:.80}."
        )
    if re.search(r"[\ud800-\udfff]", video_id + text):
        raise VmrError(
            f"{where}: expected text, found half of a surrogate pair: {row!r:.80}. Write the text again."
        )
    # No video is 1e9 s long, and a JSON integer may be too large for a float.
    if not all(type(value) in (int, float) for value in (start, end)) or not 0 <= start <= end <= 1e9:
        raise VmrError(f"{where}: expected 0 <= start <= end in seconds, found start={start!r}, end={end!r}.")
    return Narration(video_id, float(start), float(end), text.strip())


def _check_manifest(manifest: Mapping[str, Any], where: str) -> None:
    lacking = [key for key in MANIFEST_KEYS if key not in manifest]
    if lacking:
        raise VmrError(
            f"The narration manifest of {where} lacks {', '.join(lacking)} (null where not applicable)."
        )


class NarrationFile(NarrationSource):
    """Features of a narration file: the sentence vectors of a text encoder."""

    computed = True

    def __init__(self, file: str | Path, encoder: TextEncoder, normalise: bool) -> None:
        """Stores the path; the file is read on first use.

        Args:
            file: the .jsonl file.
            encoder: the text encoder.
            normalise: whether a sentence is the encoder's sentence vector with unit length; otherwise it is
                the mean of its token vectors as they are (TEA).
        """
        self.file = Path(file).expanduser()
        self.encoder = encoder
        self.normalise = normalise
        self.dim = encoder.dim if normalise else encoder.token_dim

    @cached_property
    def _narrations(self) -> tuple[dict[str, list[Narration]], dict[str, Any]]:
        return read_narrations(self.file)

    @property
    def narrator_manifest(self) -> dict[str, Any]:
        """The manifest of the file."""
        return self._narrations[1]

    def prepare(self, protocol: Protocol) -> None:
        """Embeds all sentences about the protocol's videos that are not cached yet."""
        videos = {query.video_id for query in protocol.queries}
        self.encoder.embed(text for video in sorted(videos) for text in self.texts(video))

    def load(self, video_id: str) -> tuple[Array, Array]:
        """Returns (Ln, dim) float32 sentence vectors and (Ln, 2) float32 start and end in seconds.

        Raises:
            FeatureError: if the file has no narration of the video.
        """
        narrations = self._narrations[0].get(video_id)
        if not narrations:
            raise FeatureError("missing", f"{self.file} holds no narration of video '{video_id}'.")
        times = np.array([(narration.start, narration.end) for narration in narrations], np.float32)
        texts = self.texts(video_id)
        return self.encoder.sentences(texts) if self.normalise else self.encoder.means(texts), times

    def texts(self, video_id: str) -> list[str]:
        """Returns the sentences about a video, in the order of `load`."""
        return [narration.text for narration in self._narrations[0].get(video_id, ())]

    def lost_words(self, video_ids: Sequence[str]) -> LostWords:
        """Counts the words of the videos' narrations that the encoder has no vector for."""
        return self.encoder.lost_words([text for video in video_ids for text in self.texts(video)])

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos without a narration."""
        try:
            lacking = tuple(video_id for video_id in video_ids if video_id not in self._narrations[0])
        except VmrError as error:
            return [Problem("narration", "unreadable", tuple(video_ids), str(error))]
        detail = f"{self.file} holds no narration of them."
        return [Problem("narration", "missing", lacking, detail)] if lacking else []

    def manifest(self) -> dict[str, Any]:
        """Returns the manifest of the file, the encoder and the normalisation."""
        return {
            "narrator": self.narrator_manifest,
            **self.encoder.manifest(),
            "dim": self.dim,
            "normalise": self.normalise,
        }
