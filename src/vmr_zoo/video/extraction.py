"""Extracts the features of many video files, resumably, and reports the videos that fail.

    OUT/manifest.json     settings, see `vmr_zoo.video.manifest`
    OUT/<video id>.npz    features (T, dim), and patches (T, P, patch_dim) float16 if the encoder has any
    OUT/videos.jsonl      per extracted video: its length, its stream, what is odd about it, its file

Files are written atomically: every existing file is complete. An interrupted run continues, and several
processes may fill one folder with a shard each. A video that was replaced since is extracted again.

Memory does not grow with the number of videos. Only the features of the videos in progress grow with their
length; decoded clips wait in bounded queues.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from joblib import cpu_count

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.console import progress
from vmr_zoo.utils.files import append_row, atomic_path, file_state, read_appended
from vmr_zoo.utils.hashing import sha256_of
from vmr_zoo.utils.parallel import in_parallel
from vmr_zoo.video.ahead import MOST_AT_ONCE, ahead_of_all
from vmr_zoo.video.decode import VideoError, remembered
from vmr_zoo.video.encoder import VideoEncoder
from vmr_zoo.video.manifest import STORAGE, feature_settings, write_or_compare_manifest

VIDEOS = "videos.jsonl"

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """A video without features.

    Attributes:
        video_id: id of the video.
        kind: kind of a `VideoError`, or "not finite".
        message: what was expected and found, where, and what to do.
    """

    video_id: str
    kind: str
    message: str


def extract(
    videos: Mapping[str, Path],
    encoder: VideoEncoder,
    node: Mapping[str, Any],
    out: str | Path,
    storage: str = "float32",
    batch_size: int = 32,
    processes: int | None = None,
    threads: int | None = None,
) -> list[Failure]:
    """Extracts the features of videos without a file, or whose file is of another video of the same name.

    Args:
        videos: path by video id.
        encoder: encodes the clips.
        node: configuration node that rebuilds the encoder.
        out: the folder to fill.
        storage: type of the clip vectors, "float32" or "float16". Patches are float16.
        batch_size: clips per forward pass, of one or several videos.
        processes: number of parallel processes, for encoders with `one_process_per_core`; None: one per core.
        threads: number of videos that are decoded at the same time, ahead of other encoders; None: one per
            core, at most `MOST_AT_ONCE`. Features do not depend on it, up to rounding.

    Returns:
        The videos that failed, in the given order; each other video has a file.

    Raises:
        VmrError: if the folder was filled with other settings.
    """
    if storage not in STORAGE:
        raise unknown("storage", storage, STORAGE)
    if batch_size < 1:
        raise VmrError(f"Expected batch_size of at least 1, found {batch_size}.")
    if processes is not None and not encoder.one_process_per_core:
        raise VmrError(
            f"{type(encoder).__name__} encodes in one process, which uses all cores or the GPU: set "
            "processes=null. To use several GPUs or machines, run one shard=i/n on each."
        )
    if threads is not None and encoder.one_process_per_core:
        raise VmrError(f"{type(encoder).__name__} decodes and encodes in processes: set threads=null.")
    if threads is not None and threads < 1:
        raise VmrError(f"Expected threads of at least 1, found {threads}.")
    out = Path(out).expanduser()
    write_or_compare_manifest(out, feature_settings(encoder, storage), node)
    _remove_outdated(out, videos)
    jobs = [
        _Job(video_id, path, target)
        for video_id, path in videos.items()
        if not (target := out / f"{video_id}.npz").exists()
    ]
    if encoder.one_process_per_core:
        work = [(job, encoder, storage, batch_size) for job in jobs]
        done = in_parallel(_extract_one, work, "Extracting features", processes)
        return [failure for failure in done if failure is not None]
    failed = {}
    results = _batched(jobs, encoder, storage, batch_size, threads or min(cpu_count(), MOST_AT_ONCE))
    for failure in progress(results, "Extracting features", total=len(jobs)):
        if failure is not None:
            failed[failure.video_id] = failure
    return [failed[job.video_id] for job in jobs if job.video_id in failed]


def _remove_outdated(out: Path, videos: Mapping[str, Path]) -> None:
    """Removes the features of videos that were replaced by others of the same name.

    A file of the same size and time, or else of the same content, is the same video. A video that is gone, or
    whose file was not recorded (by vmr_zoo 0.2), keeps its features.
    """
    for video_id, row in _rows(out).items():
        path, target = videos.get(video_id), out / f"{video_id}.npz"
        if path is None or not path.is_file() or not target.exists() or "sha256" not in row:
            continue
        if file_state(path) != row.get("state") and sha256_of(path) != row["sha256"]:
            log.warning("%s has changed since it was extracted: extracting it again.", path)
            target.unlink()


class _Job(NamedTuple):
    video_id: str
    path: Path
    target: Path


def _extract_one(work: tuple[_Job, VideoEncoder, str, int]) -> Failure | None:
    """Extracts one video."""
    job, encoder, storage, batch_size = work
    (failure,) = _encoded(((job, clip) for clip in _clips(job, encoder)), encoder, storage, batch_size)
    return failure


@dataclass
class _End:
    """Marks the end of the clips of a video."""

    failure: Failure | None = None
    row: dict[str, Any] | None = None


@dataclass
class _Unfinished:
    """Features of a video whose remaining clips are not encoded yet."""

    features: list[Array] = field(default_factory=list)
    patches: list[Array] = field(default_factory=list)


def _clips(job: _Job, encoder: VideoEncoder) -> Iterator[Any]:
    """Yields the clips of a video and an `_End`."""
    count, state = 0, file_state(job.path)
    try:
        for count, clip in enumerate(encoder.clips(job.path), 1):  # noqa: B007, used below
            yield clip
    except VideoError as error:
        yield _End(Failure(job.video_id, error.kind, str(error)))
    except av.FFmpegError as error:  # a frame that decodes but cannot be converted
        yield _End(Failure(job.video_id, "corrupt", f"{job.path} cannot be converted ({error})."))
    else:
        too_short = Failure(job.video_id, "empty", f"{job.path} is too short for one clip. Leave it out.")
        row = None
        if (timeline := remembered(job.path)) is not None:
            row = timeline.as_json() | {"state": state, "sha256": sha256_of(job.path)}
        yield _End(None if count else too_short, row)


def _encoded(
    stream: Iterator[tuple[_Job, Any]], encoder: VideoEncoder, storage: str, batch_size: int
) -> Iterator[Failure | None]:
    """Encodes a stream of clips, with an `_End` after those of each video, and writes the files.

    Yields:
        For each finished video its failure, or None.
    """
    videos: dict[str, _Unfinished] = {}
    batch: list[tuple[_Unfinished, Any]] = []
    ended: list[tuple[_Job, _End]] = []

    def flush() -> Iterator[Failure | None]:
        if batch:
            features, patches = encoder.encode([clip for _, clip in batch])
            for row, (video, _) in enumerate(batch):
                # Copied: a view would keep the arrays of the whole batch alive.
                with np.errstate(over="ignore"):  # `_write` reports overflow
                    video.features.append(features[row].astype(storage))
                    if patches is not None:
                        video.patches.append(patches[row].astype(np.float16))
            batch.clear()
        for job, end in ended:
            video = videos.pop(job.video_id, _Unfinished())
            yield end.failure or _write(job, video, end.row)
        ended.clear()

    for job, item in stream:
        if isinstance(item, _End):
            ended.append((job, item))
            if not batch:
                yield from flush()
            continue
        batch.append((videos.setdefault(job.video_id, _Unfinished()), item))
        if len(batch) == batch_size:
            yield from flush()
    yield from flush()


def _batched(
    jobs: Sequence[_Job], encoder: VideoEncoder, storage: str, batch_size: int, threads: int
) -> Iterator[Failure | None]:
    """Extracts videos in shared batches, while threads decode ahead."""
    sources = [zip(itertools.repeat(job), _clips(job, encoder)) for job in jobs]
    with closing(ahead_of_all(sources, batch_size, threads)) as stream:
        yield from _encoded(stream, encoder, storage, batch_size)


def read_notes(out: Path, video_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """Reads what is odd about the extracted videos of a folder: by id, the text by kind."""
    rows = _rows(out)
    return {video_id: rows[video_id]["notes"] for video_id in video_ids if video_id in rows}


def _rows(out: Path) -> dict[str, dict[str, Any]]:
    """Reads what is known of the extracted videos of a folder, by id; the last line of a video counts."""
    rows = {}
    for row in read_appended(out / VIDEOS):
        with suppress(KeyError, TypeError):  # another program's line
            _ = row["notes"]
            rows[row["video_id"]] = row
    return rows


def _write(job: _Job, video: _Unfinished, row: dict[str, Any] | None) -> Failure | None:
    """Writes the file of one video, unless its features are not finite."""
    arrays = {"features": np.stack(video.features)}
    if video.patches:
        arrays["patches"] = np.stack(video.patches)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            return Failure(
                job.video_id,
                "not finite",
                f"The {name} of {job.path} are not finite as {array.dtype}. Use dtype=float32 or bfloat16 "
                "and storage=float32.",
            )
    if row is not None:  # first: whatever has features has its line
        clips = {"video_id": job.video_id, "clips": len(video.features)}
        append_row(job.target.parent / VIDEOS, clips | row)
    with atomic_path(job.target) as path:
        np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's own stub
    return None
