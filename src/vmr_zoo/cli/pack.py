"""`vmr pack`: read a data set's video features once and write them as one flat array."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import track

from vmr_zoo.data.features.packed import PackedVideos, pack
from vmr_zoo.errors import VmrError, some

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule


def main(cfg: DictConfig) -> int:
    """Packs the videos of every split, and checks what was written.

    Args:
        cfg: what `conf/pack.yaml` composes.

    Returns:
        0, or 1 if the checksums of some videos do not hold.

    Raises:
        VmrError: if features are missing, broken or rendered, or `out` holds others.
    """
    data: VMRDataModule = instantiate(cfg.data)
    source = data.features.video
    if isinstance(source, PackedVideos):
        raise VmrError("features.packed is read, not packed. Leave it out.")
    if data.features.origin == "rendered":
        raise VmrError(
            f"features={data.features.name} are rendered: in another world a name is another video, so that "
            "a pack could be taken for another one's. They are kept under paths.cache anyway."
        )
    source.prepare(data.protocol)
    videos = [query.video_id for split in data.protocol.splits.values() for query in split.queries]
    distinct = list(dict.fromkeys(videos))
    worst = pack(source, track(distinct, "Packing", transient=True), cfg.out, cfg.dtype)
    packed = PackedVideos(cfg.out, source)
    corrupt = packed.corrupt()
    clips = sum(packed.length(video) for video in distinct)
    print(f"{Path(cfg.out)}: {len(distinct):,} videos, {clips:,} clips of {source.dim}, {cfg.dtype}")
    same = "the same features" if worst == 0 else f"other features, marked as {cfg.dtype}"
    print(f"largest absolute difference: {worst:.2e}; for a run these are {same}")
    if corrupt:
        print(f"checksums do not hold for {some(corrupt)}: delete {cfg.out} and pack anew")
        return 1
    return 0
