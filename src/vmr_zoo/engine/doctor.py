"""Inspects the data set of a configuration and checks its features: the work of `vmr doctor`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from rich.console import Console

from vmr_zoo.config.compose import build
from vmr_zoo.data.annotations.building import without_warnings
from vmr_zoo.data.annotations.inspection import inspect_protocol
from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.data.features.word_loss import too_many_lost, word_losses
from vmr_zoo.errors import VmrError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vmr_zoo.data.annotations.download import DownloadResult
    from vmr_zoo.data.features.feature_set import FeatureSet

_LISTED = 10
"""Ids listed per problem."""


def diagnose(cfg: DictConfig) -> dict[str, Any]:
    """Inspects annotations and features, after downloading missing annotation files if requested.

    Args:
        cfg: composed from `conf/doctor.yaml`; reads `data`, `features`, `paths.annotations`,
            `paths.features`, and for downloads `download`, `accept_licence`, `sources` and `network`.

    Returns:
        JSON-able: the keys of `inspect_protocol`; `features`; `download`, if requested; `ok`, False if
        training would fail or a downloaded file differs from the published one.

    Raises:
        VmrError: if annotations cannot be read or downloaded.
    """
    downloaded = _download(cfg) if cfg.get("download") else None
    with without_warnings():  # the report says all of it
        protocol: Protocol = build(cfg.data.protocol)
    report = inspect_protocol(protocol, cfg.paths.annotations)
    report["features"] = _check_features(cfg, protocol)
    found = (*report["features"].get("problems", ()), *report["features"].get("words", ()))
    report["ok"] = not any(problem["fatal"] for problem in found)
    if downloaded is not None:
        report["download"] = asdict(downloaded)
        report["ok"] = report["ok"] and not downloaded.different
    return report


def _download(cfg: DictConfig) -> DownloadResult:
    """Downloads missing annotation files."""
    from vmr_zoo.data.annotations.download import download

    names = [cfg.data.name, *([cfg.features.name] if cfg.get("features") else [])]
    return download(
        names,
        instantiate(cfg.sources, _convert_="all"),
        Path(cfg.paths.annotations).expanduser(),
        instantiate(cfg.network),
        cfg.accept_licence,
        Console(soft_wrap=True),
    )


def _check_features(cfg: DictConfig, protocol: Protocol) -> dict[str, Any]:
    """Checks the configured features against the protocol; reads everything that training would read.

    Returns:
        JSON-able: `checked`; if False `reason`, if True `name`, `origin`, `problems` (part, kind, count, ids,
        detail, fatal), fatal ones first, and `words`, what is lost of them (`WordLoss.as_json`, and fatal).
    """
    if not cfg.get("features"):
        return {"checked": False, "reason": "no features are configured (set features=NAME)"}
    root = cfg.paths.get("features")
    exists = bool(root) and Path(root).expanduser().is_dir()
    if cfg.features.get("origin") == "real" and not exists and not _features_requested():
        return {
            "checked": False,
            "reason": f"there is no feature directory {root}; to check one, set paths.features (or the "
            "environment variable VMR_FEATURES)",
        }
    name, origin = cfg.features.get("name"), cfg.features.get("origin")
    try:
        features: FeatureSet = build(cfg.features)
        if cfg.data.get("missing_videos") == "dropped":
            protocol = features.without_missing_videos(protocol)
        for source in features.sources():
            source.prepare(protocol)
        problems = [
            {
                "part": problem.part,
                "kind": problem.kind,
                "count": len(problem.ids),
                "ids": list(problem.ids[:_LISTED]),
                "detail": problem.detail,
                "fatal": problem.fatal,
            }
            for problem in features.check(protocol, depth="all")
        ]
        losses = word_losses(features, protocol)
    except VmrError as error:
        unusable = {"part": "features", "kind": "unusable", "count": 0, "ids": [], "fatal": True}
        problems, losses = [unusable | {"detail": str(error)}], []
    too_many = too_many_lost(losses, cfg.data.get("max_lost_words"))
    words = [loss.as_json() | {"fatal": loss in too_many} for loss in losses]
    return {"checked": True, "name": name, "origin": origin, "problems": problems, "words": words}


def _features_requested() -> bool:
    """Returns whether the user named features or their folder; missing features are then an error."""
    if os.environ.get("VMR_FEATURES"):
        return True
    if not HydraConfig.initialized():
        return False
    return any(o.startswith(("features", "paths.features")) for o in HydraConfig.get().overrides.task)
