"""Searches many videos at once: moments of all of them are ranked together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.engine.retriever import Moment, Retriever
from vmr_zoo.utils.console import progress
from vmr_zoo.video.decode import VideoError

_MANY = 20
"""Videos from which on the search shows progress."""


class FoundMoment(NamedTuple):
    """A moment and its video.

    Attributes:
        video: the file.
        moment: in seconds of that file.
    """

    video: Path
    moment: Moment


class VideoSearch(NamedTuple):
    """What a search over many videos found.

    Attributes:
        moments: for each sentence, moments of all videos, best first.
        notes: for each video with something odd about it, the text by kind.
        failed: for each video that cannot be searched, the reason.
        indexed: number of files that were read because they are new or have changed.
    """

    moments: list[list[FoundMoment]]
    notes: dict[Path, dict[str, str]]
    failed: dict[Path, str]
    indexed: int


def search_videos(
    retriever: Retriever,
    videos: Sequence[Path],
    queries: Sequence[str],
    narrations: str | Path | None = None,
    top_k: int = 5,
) -> VideoSearch:
    """Ranks the moments of many videos by score, for each sentence.

    A file that cannot be decoded, or has no narrations, is skipped. After an interruption, the same call
    encodes only the files that are not in the retriever's index yet.

    Args:
        retriever: a trained run, or zero-shot.
        videos: the files.
        queries: the sentences.
        narrations: as for `Retriever.encode`.
        top_k: the most moments for each sentence.

    Raises:
        VmrError: as `Retriever.encode` and `EncodedVideo.answer`.
    """
    failed: dict[Path, str] = {}
    new: list[Path] = []
    if retriever.index is not None:
        new = retriever.index.missing(videos)
        failed = retriever.index.add(new)
    found: list[list[FoundMoment]] = [[] for _ in queries]
    notes: dict[Path, dict[str, str]] = {}
    left = [path for path in videos if path not in failed]
    for path in progress(left, "Searching", _MANY):
        try:
            video = retriever.encode(path, narrations)
        except (VideoError, FeatureError) as error:
            failed[path] = str(error)
            continue
        if video.notes:
            notes[path] = dict(video.notes)
        for number, answer in enumerate(video.answer(queries, top_k)):
            moments = found[number] + [FoundMoment(path, moment) for moment in answer.moments]
            found[number] = sorted(moments, key=lambda one: -one.moment.score)[:top_k]
    return VideoSearch(found, notes, failed, len(new) - len(failed.keys() & set(new)))
