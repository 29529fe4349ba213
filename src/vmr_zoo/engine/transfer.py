"""Scores a run on other data than it was trained on: what is rebuilt from what, and what is refused.

The method and the settings of its batches are those of the run; sentences, moments and metrics are those of
the other data. The features are the run's own, of the other videos, unless the command names features.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vmr_zoo.config.compose import build
from vmr_zoo.config.values import plain
from vmr_zoo.data.annotations.protocols import refuse_shared_videos
from vmr_zoo.data.annotations.records import Protocol, shared_videos
from vmr_zoo.errors import VmrError
from vmr_zoo.runs import directory

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule
    from vmr_zoo.methods.base import Method

ARROW = " -> "

_OF_THE_RUN = ("variant", "seed", "normalise_features", "max_query_tokens")
_OF_THE_DATA = ("name", "protocol", "selection", "missing_videos", "rated_clip_seconds")
_OPTIONAL = ("narration", "narration_query", "patches")
CLIP_SECONDS = "clip_seconds"
_METRICS = "method.training.metrics"


@dataclass(frozen=True)
class Transfer:
    """A run and the other data to test it on.

    Attributes:
        config: the configuration of the run, with the other data in place of its own.
        trained: the protocol that the run was trained for.
        tested: the protocol to test it under.
    """

    config: DictConfig
    trained: Protocol
    tested: Protocol

    @property
    def title(self) -> str:
        """Stands for the protocol in the header of the results: "shapes -> shapes seed=1"."""
        return f"{self.trained.label}{ARROW}{self.tested.label}"

    @property
    def folder(self) -> str:
        """The part of a folder's name that says what the run was tested on."""
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.tested.label.replace("=", "-"))
        return f"{directory.ELSEWHERE}{name}"

    def free(self, data: VMRDataModule) -> frozenset[str]:
        """Returns the keys of the manifest of features that may differ from those of the run.

        They describe what the method does not read, and the length of a clip: batches say how long it is.
        """
        return frozenset(key for key in _OPTIONAL if key not in data.needs) | {CLIP_SECONDS}

    def prepare(
        self, run: Path, data: VMRDataModule, method: Method, splits: Collection[str], details: bool
    ) -> dict[str, Any]:
        """Checks the requested splits and prepares the data for them alone.

        Args:
            run: the run directory.
            data: the other data.
            method: the method, with the metrics of the other data.
            splits: the requested splits.
            details: whether details are computed.

        Returns:
            What the header of the results says instead of that of the run.

        Raises:
            VmrError: if a split shares videos with the training data, features are missing, or details
                depend on the training data.
        """
        refuse_shared_videos(self.trained, self.tested, splits)
        if details and "query_words" in method.needs:
            raise VmrError(
                "details=true ranks the words of this method by their frequency in the training data, which "
                "is not read for data=OTHER. Leave out details=true."
            )
        data.protocol = data.protocol.only(splits)
        data.prepare_data(splits)
        facts = {
            "trained_on": self.trained.label,
            "tested_on": self.tested.label,
            "videos": {name: data.split(name).videos for name in splits},
        }
        warnings = [
            *dict.fromkeys((*self.trained.doubts, *self.tested.doubts)),
            *self._warnings(directory.read_json(run / directory.MANIFEST), data, splits),
        ]
        return {
            "protocol": self.title,
            "features": data.features.name,
            "origin": data.features.origin,
            "rounding": method.metrics.settings.rounding.description,
            directory.TRANSFER: facts,
            **({"warnings": warnings} if warnings else {}),
        }

    def _warnings(
        self, manifest: Mapping[str, Any], data: VMRDataModule, splits: Collection[str]
    ) -> Iterator[str]:
        """Yields what readers of the numbers have to know."""
        before, now = manifest.get(CLIP_SECONDS), data.features.clip_seconds
        if before != now:
            yield f"a clip has {_seconds(before)} in training and {_seconds(now)} in {self.tested.label}"
        for split in map(data.split, splits):
            if split.dropped:
                yield f"{len(split.dropped):,} sentences of the {split.name} split are left out"
            if count := len(shared_videos([self.trained.selection], [split])) * self._may_share:
                yield (
                    f"{count:,} videos of the {split.name} split are among those that selected the "
                    "checkpoint, with other sentences or moments"
                )

    @property
    def _may_share(self) -> bool:
        """Whether equal ids stand for one video."""
        pools = {self.trained.pool, self.tested.pool}
        return len(pools) == 1 or "" in pools


def find_transfer(stored: DictConfig, cfg: DictConfig) -> Transfer | None:
    """Returns the transfer that `data=` of `vmr eval` asks for.

    Args:
        stored: the configuration of the run, resolved.
        cfg: composed from `conf/eval.yaml`.

    Returns:
        None if `data=` is absent, or names the data that the run was trained on.

    Raises:
        VmrError: if the annotations of either cannot be read, or features or metrics are given for the run's
            own data.
    """
    if cfg.get("data") is None:
        _refuse_unread()
        return None
    other = command_for_run(stored, cfg)
    trained: Protocol = build(stored.data.protocol)
    tested: Protocol = build(other.data.protocol)
    if trained.label == tested.label:
        _refuse_unread()
        return None
    config = stored.copy()
    own: Any = OmegaConf.to_container(stored.data)
    asked: Any = {key: _resolved(other, f"data.{key}") for key in _OF_THE_DATA if key in other.data}
    if _names("features"):
        features = _resolved(other, "features")
    else:
        features = _for_other_world(own["features"], own["protocol"], asked["protocol"])
    config.data = {**own, **asked, "features": features}
    if OmegaConf.select(config, _METRICS) is not None:
        OmegaConf.update(config, _METRICS, _resolved(other, "metrics"), merge=False)
    return Transfer(config, trained, tested)


def command_for_run(stored: DictConfig, cfg: DictConfig) -> DictConfig:
    """Returns the configuration of a command with the paths and the settings of the run that it names.

    Args:
        stored: the configuration of the run, resolved.
        cfg: composed from `conf/eval.yaml`.
    """
    given = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(given, dict)
    own = {key: stored[key] for key in (*_OF_THE_RUN, "paths") if key in stored}
    return OmegaConf.create({**given, **own})


def _resolved(config: DictConfig, key: str) -> Any:
    """Returns a value of a configuration as a plain tree."""
    return plain(OmegaConf.select(config, key))


def _names(group: str) -> bool:
    """Returns whether the command names a choice or a key of a group; the usual ones are always composed."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(re.match(rf"[+~]*{group}\b", text) for text in typed)


def _refuse_unread() -> None:
    for group in ("features", "metrics"):
        if _names(group):
            raise VmrError(
                f"{group}=… is for data=OTHER: on its own data, a run is scored with its own {group}. "
                "Leave it out."
            )


def _for_other_world(features: Any, own: Mapping[str, Any], asked: Mapping[str, Any]) -> Any:
    """Replaces what the features of a generated world say about that world.

    Args:
        features: the features of the run, a plain tree.
        own: the protocol of the run.
        asked: the other protocol.
    """
    if isinstance(features, list):
        return [_for_other_world(one, own, asked) for one in features]
    if not isinstance(features, dict):
        return features
    for key, node in own.items():
        if isinstance(node, dict) and node == features and isinstance(asked.get(key), dict):
            return asked[key]
    return {key: _for_other_world(node, own, asked) for key, node in features.items()}


def _seconds(length: float | None) -> str:
    return "a fraction of the video" if length is None else f"{length:g} s"
