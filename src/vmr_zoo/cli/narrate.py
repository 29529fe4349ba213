"""`vmr narrate`: narrates videos and prints what was written and which videos failed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console

from vmr_zoo.config.values import plain
from vmr_zoo.data.annotations.video_files import match_videos
from vmr_zoo.engine.narration import Summary, narrate
from vmr_zoo.errors import VmrError, abbreviate, printable
from vmr_zoo.narrators import Narrator, ShapesNarrator
from vmr_zoo.utils.console import print_notes
from vmr_zoo.video.decode import list_notes
from vmr_zoo.video.files import find_videos

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    """Narrates the videos of a configuration.

    Args:
        cfg: composed from `conf/narrate.yaml`.

    Returns:
        1 if a video is missing, failed or got no narration, else 0.

    Raises:
        VmrError: if the configuration, the videos and the existing files at `out` do not match.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    shapes = cfg.narrator.get("_target_") == "vmr_zoo.narrators.ShapesNarrator"
    if shapes and OmegaConf.select(cfg, "data.name") != "shapes":
        raise VmrError("narrator=shapes narrates data=shapes only: add data=shapes.")
    narrator: Narrator = instantiate(cfg.narrator)
    if isinstance(narrator, ShapesNarrator) and cfg.out is None:
        from vmr_zoo.data.worlds.shapes.features import narrate_world

        file = narrate_world(narrator.world, cfg.paths.cache, narrator.narrator)
        console.print(f"Written: {file}. `vmr train data=shapes` reads it, with the same settings.")
        return 0
    if cfg.out is None:
        raise VmrError("vmr narrate needs a file to write: add out=FILE.jsonl.")
    videos, missing = _find_videos(cfg)
    summary = narrate(narrator, videos, cfg.out, cfg.shard)
    _print_summary(summary, missing, cfg.out, console)
    return 1 if missing or summary.failed or summary.silent else 0


def _find_videos(cfg: DictConfig) -> tuple[dict[str, Path], list[str]]:
    """Returns the path by video id, and, with a data set, the ids without a file."""
    protocol = None if cfg.get("data") is None else instantiate(cfg.data.protocol)
    if cfg.videos is not None:
        found = find_videos(plain(cfg.videos))
    elif protocol is not None and protocol.name == "shapes":
        from vmr_zoo.data.worlds.shapes.generate import generate_world

        found = find_videos(generate_world(instantiate(cfg.data.protocol.world), cfg.paths.cache) / "videos")
    else:
        raise VmrError("vmr narrate needs videos: add videos=FOLDER, a glob, a file, or a list of these.")
    if protocol is None:
        return found, []
    matched, missing = match_videos(protocol, found)
    return {video_id: found[name] for video_id, name in matched.items()}, missing


def _print_summary(summary: Summary, missing: list[str], out: str, console: Console) -> None:
    """Prints what was done, then what failed."""
    done = summary.videos - summary.unfinished - len(summary.failed)
    sentences = "" if summary.unfinished else f", {summary.sentences} sentences"
    console.print(f"{done} of {summary.videos} videos narrated{sentences}.")
    if summary.merged:
        console.print(f"Written: {out}")
        console.print(
            f"Next: vmr train method=tea data=NAME features/narration=jsonl features.narration.file={out}"
        )
    elif summary.unfinished:
        console.print(
            f"{summary.unfinished} videos are left to other shards; the one that finishes last writes {out}."
        )
    else:
        console.print(f"The narrator produced no sentence, so {out} was not written.")
    if summary.empty:
        console.print(f"{summary.empty} answers of the narrator were empty; they leave no narration.")
    if summary.unread:
        console.print(
            f"{summary.unread} of {summary.answers} answers ({summary.unread / summary.answers:.1%}) had no "
            "times that could be read; they leave no narration. One of them:"
        )
        console.print(printable(f"  {summary.example}"), markup=False)
    if summary.left_out:
        console.print(
            f"{summary.left_out} moments had no text, or times outside of their segment; they were left out."
        )
    if summary.silent:
        console.print(f"No narration at all for {len(summary.silent)}: {abbreviate(summary.silent)}")
    if missing:
        console.print(f"No file for {len(missing)} videos of the data set: {abbreviate(missing)}")
    print_notes(list_notes(summary.notes))
    if summary.failed:
        console.print(f"{len(summary.failed)} videos failed; the next run tries them again:")
        for video, error in summary.failed.items():
            console.print(printable(f"  {video}: {error}"), markup=False)
