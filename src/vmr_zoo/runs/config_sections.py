"""Single sections of a run's config.yaml, read without parsing the whole file."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from vmr_zoo.metrics.settings import MAP_THRESHOLDS, MetricSettings, Rounding
from vmr_zoo.runs.directory import CONFIG, load_config


def config_section(run: Path, key: str) -> str:
    """Returns the lines of one top-level key of config.yaml; "" if the file or the key is absent.

    Parsing the whole file of 1,000 runs takes a minute.
    """
    text = (run / CONFIG).read_text(encoding="utf-8") if (run / CONFIG).is_file() else ""
    found = re.search(rf"^{key}:.*\n?(?:[ \-#].*\n?)*", text, re.MULTILINE)
    return found.group() if found else ""


def metric_settings(run: Path) -> MetricSettings:
    """Reads which metrics a run was scored with; the predictions in the directory are already rounded.

    Raises:
        VmrError: if the directory has no config.yaml.
    """
    if not (run / CONFIG).is_file():
        load_config(run)  # raises the error that names the missing file
    return _parse_metrics(config_section(run, "metrics"))


@functools.lru_cache(maxsize=64)
def _parse_metrics(text: str) -> MetricSettings:
    node = OmegaConf.create(text).metrics
    return MetricSettings(
        r1_thresholds=list(node.r1_thresholds),
        r5_thresholds=list(node.r5_thresholds),
        map_thresholds=list(node.get("map_thresholds", MAP_THRESHOLDS)),  # runs before this key
        windows=node.windows,
        rounding=instantiate(node.rounding) if node.get("rounding") else Rounding(),
    )
