"""`vmr pack`: read a data set's video features once and write them as one flat array."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import track

from vmr_zoo.data.packed import PackedVideos, pack
from vmr_zoo.errors import some

if TYPE_CHECKING:
    from vmr_zoo.data.datamodule import VMRDataModule


def main(cfg: DictConfig) -> int:
    """Packs the videos of every split, and checks what was written.

    Args:
        cfg: what `conf/pack.yaml` composes.

    Returns:
        0, or 1 if the checksums of some videos do not hold.

    Raises:
        VmrError: if features are missing or broken, or `out` holds others.
    """
    data: VMRDataModule = instantiate(cfg.data)
    source = data.features.video
    source.prepare(data.protocol)
    videos = [query.video_id for split in data.protocol.splits.values() for query in split.queries]
    distinct = list(dict.fromkeys(videos))
    worst = pack(source, track(distinct, "Packing", transient=True), cfg.out, cfg.dtype)
    packed = PackedVideos(cfg.out, source.dim)
    corrupt = packed.corrupt()
    clips = sum(len(packed.load(video)) for video in distinct)
    print(f"{Path(cfg.out)}: {len(distinct):,} videos, {clips:,} clips of {source.dim}, {cfg.dtype}")
    print(f"largest absolute difference of those packed now: {worst:.2e}")
    if corrupt:
        print(f"checksums do not hold for {some(corrupt)}: delete {cfg.out} and pack anew")
        return 1
    return 0
