"""`vmr extract`: extracts features of videos, and lists the videos that failed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmr_zoo.config.compose import build
from vmr_zoo.config.values import plain
from vmr_zoo.data.annotations.video_files import match_videos
from vmr_zoo.data.worlds.shapes.features import features_folder
from vmr_zoo.data.worlds.shapes.generate import video_path, world_folder
from vmr_zoo.errors import VmrError, printable
from vmr_zoo.utils.console import print_notes
from vmr_zoo.utils.files import file_state
from vmr_zoo.video.decode import list_notes
from vmr_zoo.video.extraction import VIDEOS, Failure, extract, read_notes
from vmr_zoo.video.files import find_videos, shard
from vmr_zoo.video.manifest import MANIFEST_NAME, check_target

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vmr_zoo.data.annotations.records import Protocol
    from vmr_zoo.video.encoder import VideoEncoder

_LISTED = 50


def main(cfg: DictConfig) -> int:
    """Extracts the features of the videos of a configuration.

    Args:
        cfg: composed from `conf/extract.yaml`.

    Returns:
        1 if a video failed or is missing, else 0.

    Raises:
        VmrError: if no video is requested, the encoder cannot be built, or the folder was filled with other
            settings.
    """
    node = encoder_node(cfg.encoder)
    videos, failures, world = _videos(cfg)
    if cfg.shard is not None:
        ids = set(shard([*videos, *(failure.video_id for failure in failures)], cfg.shard))
        videos = {video_id: path for video_id, path in videos.items() if video_id in ids}
        failures = [failure for failure in failures if failure.video_id in ids]
    encoder: VideoEncoder = build(cfg.encoder)
    if cfg.out is not None:
        out = Path(cfg.out).expanduser()
    elif world is not None:
        out = features_folder(world, cfg.data.protocol.cache, encoder, cfg.storage)
    else:
        raise VmrError("Expected out=FOLDER for the features.")
    before = {video_id: file_state(out / f"{video_id}.npz") for video_id in videos}
    failures += extract(videos, encoder, node, out, cfg.storage, cfg.batch_size, cfg.processes, cfg.threads)
    after = {video_id: file_state(out / f"{video_id}.npz") for video_id in videos}
    existed = sum(bool(state) and before[video_id] == state for video_id, state in after.items())
    extracted = sum(map(bool, after.values())) - existed
    _print_summary(out, len(videos), extracted, existed)
    print_notes(list_notes(read_notes(out, videos)))
    _report(failures, Console())
    if extracted + existed and world is None:
        print(f"Next: vmr train data=NAME method=NAME features=extracted features.video.folders=[{out}]")
    return 1 if failures else 0


def _print_summary(out: Path, videos: int, extracted: int, existed: int) -> None:
    earlier = f", {existed} existed" if existed else ""
    print(
        f"{out}: extracted {extracted} of {videos} videos{earlier}; settings in {MANIFEST_NAME}, lengths in "
        f"{VIDEOS}."
    )


def encoder_node(cfg: DictConfig) -> dict[str, Any]:
    """Returns the node that rebuilds an encoder elsewhere: resolved and without its device.

    Raises:
        VmrError: if it names a class outside this package.
    """
    node: dict[str, Any] = plain(cfg)
    check_target(node.get("_target_"), "encoder._target_")
    node.pop("device", None)
    return node


def _videos(cfg: DictConfig) -> tuple[dict[str, Path], list[Failure], Any]:
    """Returns the requested videos, those without a file, and the world if they are rendered."""
    if cfg.get("data") is None:
        if cfg.videos is None:
            raise VmrError(
                "Expected videos=FOLDER (or a glob, a file, a .txt of paths, a list), or data=NAME."
            )
        return find_videos(plain(cfg.videos)), [], None
    protocol: Protocol = build(cfg.data.protocol)
    if "world" in cfg.data.protocol:
        if cfg.videos is not None:
            raise VmrError(f"data={cfg.data.name} renders its own videos. Leave out videos or data.")
        world = instantiate(cfg.data.protocol.world)
        folder = world_folder(world, cfg.data.protocol.cache)
        return {video_id: video_path(folder, video_id) for video_id in protocol.video_ids}, [], world
    if cfg.videos is None:
        raise VmrError(f"data={cfg.data.name} includes no videos: set videos=FOLDER.")
    found = find_videos(plain(cfg.videos))
    chosen, missing = match_videos(protocol, found)
    failures = [
        Failure(video_id, "missing", f"No file named {video_id}.* in videos={cfg.videos}.")
        for video_id in missing
    ]
    # A feature file keeps the name of the video file: readers try the same names.
    return {name: found[name] for name in chosen.values()}, failures, None


def _report(failures: list[Failure], console: Console) -> None:
    """Prints a table of the videos without features."""
    if not failures:
        return
    table = Table(title=f"{len(failures)} videos without features", box=SIMPLE_HEAD, title_justify="left")
    for heading in ("video", "kind", "reason"):
        table.add_column(heading, overflow="fold")
    for failure in failures[:_LISTED]:
        table.add_row(*(Text(printable(field)) for field in failure))
    console.print(table)
    if len(failures) > _LISTED:
        kinds = {kind: sum(failure.kind == kind for failure in failures) for _, kind, _ in failures}
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        console.print(Text(f"and {len(failures) - _LISTED} more; in all {counts}."))
