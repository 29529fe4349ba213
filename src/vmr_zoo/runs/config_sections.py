"""Single sections of a run's config.yaml, read without parsing the whole file."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.settings import MAP_THRESHOLDS, MetricSettings, Rounding
from vmr_zoo.runs.directory import CONFIG, load_config, parse_config, read_config

_WORLD = "vmr_zoo.data.worlds.shapes.WorldSettings"
_ROUNDING = f"{Rounding.__module__}.{Rounding.__qualname__}"


def config_section(run: Path, key: str) -> str:
    """Returns the lines of one top-level key of config.yaml; "" if the file or the key is absent.

    Parsing the whole file of 1,000 runs takes a minute.
    """
    text = read_config(run) if (run / CONFIG).is_file() else ""
    found = re.search(rf"^{re.escape(key)}:.*\n?(?:[ \-#].*\n?)*", text, re.MULTILINE)
    return found.group() if found else ""


def metric_settings(run: Path) -> MetricSettings:
    """Reads which metrics a run was scored with; the predictions in the directory are already rounded.

    Raises:
        VmrError: if the directory has no config.yaml.
    """
    if not (run / CONFIG).is_file():
        load_config(run, build=False)  # raises the error that names the missing file
    return _parse_metrics(config_section(run, "metrics"), run / CONFIG)


def rendered_videos(run: Path) -> Path | None:
    """Finds the videos that this machine rendered for a run on the world of shapes.

    Returns:
        The folder with VIDEO_ID.mp4; None for other data, and where the videos are not on this machine.

    Raises:
        VmrError: if config.yaml is broken.
    """
    from vmr_zoo.data.worlds.shapes.generate import world_folder
    from vmr_zoo.data.worlds.shapes.world import WorldSettings

    world: Any = OmegaConf.select(
        parse_config(config_section(run, "data"), run / CONFIG), "data.protocol.world"
    )
    if world is None or world.get("_target_") != _WORLD:
        return None
    paths = parse_config(config_section(run, "paths"), run / CONFIG)["paths"]
    try:
        settings = WorldSettings(**{str(key): world[key] for key in world if key != "_target_"})
    except TypeError:  # of a version with other settings
        return None
    videos = world_folder(settings, os.environ.get("VMR_CACHE") or str(paths.cache)) / "videos"
    return videos if videos.is_dir() else None


@functools.lru_cache(maxsize=64)
def _parse_metrics(text: str, source: Path) -> MetricSettings:
    try:
        node: Any = OmegaConf.to_container(parse_config(text, source)["metrics"])
        rounding = dict(node.get("rounding") or {})
        named = rounding.pop("_target_", _ROUNDING)
        if named != _ROUNDING:
            raise VmrError(f"rounding names {named}, expected {_ROUNDING}")
        return MetricSettings(
            r1_thresholds=list(node["r1_thresholds"]),
            r5_thresholds=list(node["r5_thresholds"]),
            map_thresholds=list(node.get("map_thresholds", MAP_THRESHOLDS)),  # runs before this key
            windows=node["windows"],
            rounding=Rounding(**rounding),
            sets=node.get("sets"),
        )
    except (VmrError, AttributeError, KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
        raise VmrError(f"The metrics in {source} are broken ({error}). Copy the run again.") from error
