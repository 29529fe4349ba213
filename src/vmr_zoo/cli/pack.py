"""`vmr pack`: writes the video features of a data set as one flat array."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

from vmr_zoo.cli.next_step import next_command
from vmr_zoo.data.features.packed import PackedVideos, pack
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.utils.console import progress

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule


def main(cfg: DictConfig) -> int:
    """Packs the videos of all splits and verifies the result.

    Args:
        cfg: composed from `conf/pack.yaml`.

    Returns:
        0, or 1 if some checksums are wrong.

    Raises:
        VmrError: if features are missing, broken or rendered, their sources have clips of different
            lengths, or `out` holds other features.
    """
    data: VMRDataModule = instantiate(cfg.data)
    source = data.features.video
    if isinstance(source, PackedVideos):
        raise VmrError("The features are packed already. Remove features.packed.")
    if data.features.origin == "rendered":
        raise VmrError(
            f"features={data.features.name} are rendered: another world has other videos under the same "
            "names, so a pack could be confused with that of another world. Rendered features are cached "
            "under paths.cache anyway."
        )
    source.prepare(data.protocol)
    distinct = list(dict.fromkeys(query.video_id for query in data.protocol.queries))
    worst = pack(source, progress(distinct, "Packing"), cfg.out, cfg.dtype)
    packed = PackedVideos(cfg.out, source)
    corrupt = packed.corrupt()
    clips = sum(packed.length(video) for video in distinct)
    print(f"{Path(cfg.out)}: {len(distinct):,} videos, {clips:,} clips of {source.dim}, {cfg.dtype}")
    same = "the same features" if worst == 0 else f"other features, marked as {cfg.dtype}"
    print(f"largest absolute difference: {worst:.2e}; a run treats them as {same}")
    if corrupt:
        print(f"wrong checksums for {abbreviate(corrupt)}: delete {cfg.out} and pack again")
        return 1
    print(next_command("train", "method=NAME", f"features.packed={cfg.out}"))
    return 0
