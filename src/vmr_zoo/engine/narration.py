"""`vmr narrate`: videos in, narrations out, as JSON Lines with a manifest beside them (docs/narrate.md).

    OUT.jsonl.parts/manifest.json    what narrates here; another narrator is refused
    OUT.jsonl.parts/VIDEO.part       one finished video each: what was said, or why it could not be watched
    OUT.jsonl, OUT.manifest.json     all of them merged, written by whichever process finishes the last one

Every file appears whole or not at all, so a part that is there is finished, whoever wrote it and whenever.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track

from vmr_zoo.data.narrations import Narration, write_narrations
from vmr_zoo.errors import VmrError, some
from vmr_zoo.narrators import Narrated, Narrator, ShapesNarrator
from vmr_zoo.utils.files import atomic_write
from vmr_zoo.video.files import find_videos, shard, videos_of

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True, slots=True)
class Part:
    """What is known of one video.

    Attributes:
        narrations: in order of time.
        empty: how often the narrator was asked and said nothing.
        error: why the video could not be watched; None: it could.
    """

    narrations: tuple[Narration, ...]
    empty: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run found and wrote. Counts and ids are those of all shards.

    Attributes:
        videos: how many were asked for.
        unfinished: how many other shards still have to narrate.
        sentences: how many narrations there are.
        empty: how often the narrator was asked and said nothing.
        failed: why, by id of each video that could not be watched.
        silent: videos that were watched without a word.
        merged: whether the file was written.
    """

    videos: int
    unfinished: int
    sentences: int
    empty: int
    failed: dict[str, str]
    silent: tuple[str, ...]
    merged: bool


def main(cfg: DictConfig) -> int:
    """Narrates the videos of a configuration.

    Args:
        cfg: composed from `conf/narrate.yaml`.

    Returns:
        0; 1 if a video is missing, cannot be watched or got no narration.

    Raises:
        VmrError: if the configuration, the videos or what lies at `out` do not fit together.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    shapes = cfg.narrator.get("_target_") == "vmr_zoo.narrators.ShapesNarrator"
    if shapes and OmegaConf.select(cfg, "data.name") != "shapes":
        raise VmrError("narrator=shapes narrates data=shapes only: add data=shapes.")
    narrator: Narrator = instantiate(cfg.narrator)
    if isinstance(narrator, ShapesNarrator) and cfg.out is None:
        from vmr_zoo.data.worlds.shapes.features import narrate_world

        file = narrate_world(narrator.world, cfg.paths.cache, narrator.narrator)
        console.print(f"{file}: where vmr train data=shapes reads it, with the same settings.")
        return 0
    if cfg.out is None:
        raise VmrError("vmr narrate needs a file to write: add out=FILE.jsonl.")
    videos, missing = _videos(cfg)
    summary = narrate(narrator, videos, cfg.out, cfg.shard)
    _show(summary, missing, cfg.out, console)
    return 1 if missing or summary.failed or summary.silent else 0


def _videos(cfg: DictConfig) -> tuple[dict[str, Path], list[str]]:
    """Finds the videos; with a data set, those of its protocol, and the ids that have none."""
    protocol = None if cfg.get("data") is None else instantiate(cfg.data.protocol)
    if cfg.videos is not None:
        listed = OmegaConf.to_container(cfg.videos) if OmegaConf.is_config(cfg.videos) else str(cfg.videos)
        found = find_videos(listed)  # type: ignore[arg-type]
    elif protocol is not None and protocol.name == "shapes":
        from vmr_zoo.data.worlds.shapes.generate import generate_world

        found = find_videos(generate_world(instantiate(cfg.data.protocol.world), cfg.paths.cache) / "videos")
    else:
        raise VmrError("vmr narrate needs videos: add videos=FOLDER, a glob, a file, or a list of these.")
    if protocol is None:
        return found, []
    chosen, missing = videos_of(protocol, found)
    return {video_id: found[name] for video_id, name in chosen.items()}, missing


def narrate(
    narrator: Narrator, videos: Mapping[str, Path], out: str | Path, share: str | None = None
) -> Summary:
    """Narrates videos into a file, continuing what an earlier or another process began.

    Args:
        narrator: who narrates.
        videos: path by video id: all of them, whatever the share.
        out: the .jsonl file.
        share: "i/n": this process narrates every n-th video only; None: all.

    Returns:
        What is there now.

    Raises:
        VmrError: if something else lies at `out`, or it cannot be written.
    """
    out = Path(out).expanduser()
    parts = out.with_name(f"{out.name}.parts")
    mine = shard(list(videos), share or "1/1")
    manifest = _agree(out, parts, narrator.manifest())
    # What failed is tried again: the file may have been mended since.
    todo = [video for video in mine if (part := _read(parts, video)) is None or part.error is not None]
    told = narrator.stream((video, videos[video]) for video in todo)
    for narrated in track(told, "Narrating", len(todo), console=Console(stderr=True), transient=True):
        _write(parts, narrated)

    failed: dict[str, str] = {}
    silent = []
    unfinished = sentences = empty = 0
    for video in videos:
        part = _read(parts, video)
        if part is None:
            unfinished += 1
        elif part.error is not None:
            failed[video] = part.error
        else:
            sentences += len(part.narrations)
            empty += part.empty
            if not part.narrations:
                silent.append(video)
    merged = not unfinished and sentences > 0
    if merged:
        # Another process may have begun with other settings at the same moment.
        _agree(out, parts, narrator.manifest())
        write_narrations(out, _all(parts, videos), manifest)
    return Summary(len(videos), unfinished, sentences, empty, failed, tuple(silent), merged)


def _agree(out: Path, parts: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Checks that what lies in a place stems from this narrator, or marks an empty place as its own.

    Returns:
        The place's manifest: the narrator's, and the date of the first narration.
    """
    if out.suffix != ".jsonl":
        raise VmrError(f"Expected out=FILE.jsonl, found out={out}.")
    beside = parts / "manifest.json"
    # As JSON has it: tuples become lists.
    manifest = json.loads(json.dumps({"date": date.today().isoformat(), **manifest}))
    if not beside.exists():
        if out.exists():
            raise VmrError(
                f"{out} exists, but not {parts}, which would say how to continue it. Choose another out=, or "
                "delete it."
            )
        try:
            atomic_write(beside, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise VmrError(f"Cannot write {beside}: {error.strerror}. Choose another out=.") from error
    try:
        there: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VmrError(f"{beside} cannot be read ({error}). Delete {parts} to start anew.") from error
    differing = [
        f"{key}: {json.dumps(there.get(key))} there, {json.dumps(manifest.get(key))} now"
        for key in sorted(there.keys() | manifest.keys())
        if key != "date" and there.get(key) != manifest.get(key)
    ]
    if differing:
        raise VmrError(
            f"{parts} holds narrations that were made otherwise:\n  " + "\n  ".join(differing) + "\n"
            "Choose another out=, or go back to the settings there."
        )
    return there


def _part(parts: Path, video_id: str) -> Path:
    """Returns where a video's part lies; a video id is a file's stem and holds no separator."""
    return parts / f"{video_id}.part"


def _write(parts: Path, narrated: Narrated) -> None:
    part = Part(narrated.narrations, narrated.empty, None if narrated.error is None else str(narrated.error))
    atomic_write(_part(parts, narrated.video_id), json.dumps(asdict(part), ensure_ascii=False) + "\n")


def _read(parts: Path, video_id: str) -> Part | None:
    """Reads a video's part; None if there is none."""
    path = _part(parts, video_id)
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        return Part(tuple(Narration(**row) for row in part["narrations"]), part["empty"], part["error"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VmrError(
            f"{path} cannot be read ({error}). Delete it, and the video is narrated anew."
        ) from error


def _all(parts: Path, videos: Iterable[str]) -> Iterator[Narration]:
    for video in videos:
        part = _read(parts, video)
        yield from part.narrations if part is not None else ()


def _show(summary: Summary, missing: list[str], out: str, console: Console) -> None:
    """Prints what was done, and last what is wrong."""
    done = summary.videos - summary.unfinished - len(summary.failed)
    console.print(f"{done} of {summary.videos} videos narrated, {summary.sentences} sentences.")
    if summary.merged:
        console.print(f"Written: {out}")
    elif summary.unfinished:
        console.print(
            f"{summary.unfinished} videos are left to other shards; whichever finishes last writes {out}."
        )
    else:
        console.print(f"Nothing was said, so {out} was not written.")
    if summary.empty:
        console.print(
            f"{summary.empty} times the narrator was asked and said nothing; no sentence stands there."
        )
    if summary.silent:
        console.print(f"No narration at all for {len(summary.silent)}: {some(summary.silent)}")
    if missing:
        console.print(f"No file for {len(missing)} videos of the data set: {some(missing)}")
    if summary.failed:
        console.print(f"{len(summary.failed)} videos could not be watched; the next run tries them again:")
        for video, error in summary.failed.items():
            console.print(f"  {video}: {error}", markup=False)
