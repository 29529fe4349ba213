"""`vmr doctor`: what a data set's annotations and features hold, and what would fail in training.

`inspect` gathers everything as plain values (what `out=FILE.json` writes), `show` prints it as tables.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmr_zoo.config.compose import build
from vmr_zoo.data.annotations.protocols import PUBLISHED_PROTOCOLS, unheard
from vmr_zoo.data.annotations.readers import MissingFile
from vmr_zoo.data.annotations.records import HELD_OUT, SELECTION, TRAIN, Protocol, Split, shared_videos
from vmr_zoo.errors import VmrError, some
from vmr_zoo.utils.files import atomic_write

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vmr_zoo.data.annotations.download import Outcome
    from vmr_zoo.data.features.store import FeatureSet

BINS = 10
_LISTED = 10

_MENDS = {
    "clipped": "ends after the video: now ends with it",
    "swapped": "ends before it starts: start and end exchanged",
    "dropped_zero_length": "has no extent: not trained on",
    "dropped_outside": "starts after the video's end: not trained on",
    "unanswerable_zero_length": "has no extent: stays, and counts as a miss",
    "unanswerable_outside": "starts after the video's end: stays, and counts as a miss",
    "repeated": "same sentence and moment as an earlier one: stays",
}


def main(cfg: DictConfig) -> int:
    """Inspects the data set of a configuration and prints what it finds.

    Args:
        cfg: composed from `conf/doctor.yaml`; reads `data`, `features`, `paths.annotations`,
            `paths.features`, `out`, and for downloads `download`, `accept_licence`, `sources`, `network`.

    Returns:
        1 if something would fail in training, or `download=true` met a file that is not as published;
        else 0.

    Raises:
        VmrError: if the annotations themselves cannot be read or fetched, or `out` cannot be written.
    """
    downloaded = _download(cfg) if cfg.get("download") else None
    protocol: Protocol = build(cfg.data.protocol)
    report = inspect(protocol, cfg.paths.annotations)
    report["features"] = _features(cfg, protocol)
    report["ok"] = not any(problem["fatal"] for problem in report["features"].get("problems", ()))
    if downloaded is not None:
        report["download"] = asdict(downloaded)
        report["ok"] = report["ok"] and not downloaded.different
    show(report, Console())
    if cfg.get("out"):
        try:
            atomic_write(cfg.out, json.dumps(report, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise VmrError(f"Cannot write out={cfg.out}: {error.strerror}. Choose another file.") from error
    return 0 if report["ok"] else 1


def _download(cfg: DictConfig) -> Outcome:
    """Fetches what is missing of the published annotation files."""
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


# --- annotations


def inspect(protocol: Protocol, annotations: str | Path | None) -> dict[str, Any]:
    """Measures a protocol's annotations.

    Args:
        protocol: what was read.
        annotations: the directory of published files, in which other protocols with the same videos are
            looked for; None skips that.

    Returns:
        JSON-able: `protocol`, `selection_origin`, `splits` (by name, sizes as published), `shared_videos`
        (with splits of other protocols), `warnings` (sentences about leaks).
    """
    splits = {name: _measure(split) for name, split in protocol.published.items()}
    splits[TRAIN]["trained_on"] = {
        "videos": len({query.video_id for query in protocol.train.queries}),
        "sentences": len(protocol.train.queries),
    }
    shared, skipped = _other_protocols(protocol, annotations)
    return {
        "protocol": protocol.name,
        "selection_origin": protocol.selection_origin,
        "splits": splits,
        "shared_videos": shared,
        "protocols_not_compared": skipped,
        "warnings": [*_leaks_within(protocol), *_leaks_between(protocol.name, shared)],
    }


def _measure(split: Split) -> dict[str, Any]:
    """Returns a split's sizes and the statistics of its durations and moments."""
    durations = np.array(list({query.video_id: query.duration for query in split.queries}.values()))
    bounds = np.array([moment for query in split.queries for moment in query.moments]).reshape(-1, 2)
    lengths_of_video = np.array([query.duration for query in split.queries for _ in query.moments])
    shares = bounds / lengths_of_video[:, None]
    words = np.array([len(query.text.split()) for query in split.queries])
    return {
        "source": split.source,
        "videos": split.videos,
        "sentences": split.sentences,
        "moments": len(bounds),
        "words_per_sentence": _mean(words),
        "duration_seconds": {
            "min": float(durations.min()) if durations.size else None,
            "median": float(np.median(durations)) if durations.size else None,
            "mean": _mean(durations),
            "max": float(durations.max()) if durations.size else None,
        },
        "moment": {
            "mean_seconds": _mean(bounds[:, 1] - bounds[:, 0]),
            "mean_share": _mean(shares[:, 1] - shares[:, 0]),
            "mean_start": _mean(shares[:, 0]),
            "mean_centre": _mean(shares.mean(1)),
            "start_histogram": _histogram(shares[:, 0]),
            "centre_histogram": _histogram(shares.mean(1)),
            "share_histogram": _histogram(shares[:, 1] - shares[:, 0]),
        },
        "counts": dict(sorted(split.counts.items())),
        "dropped": [row._asdict() for row in split.dropped],
    }


def _mean(values: np.ndarray[Any, Any]) -> float | None:
    return float(values.mean()) if values.size else None


def _histogram(shares: np.ndarray[Any, Any]) -> list[int]:
    return [int(count) for count in np.histogram(shares, bins=BINS, range=(0, 1))[0]]


def _family(name: str) -> str:
    """Returns the data set that a protocol deals: charades_cd and charades_sta are both "charades"."""
    return name.split("_")[0]


def _other_protocols(
    protocol: Protocol, annotations: str | Path | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Counts the videos shared with each split of the other protocols on the same data set.

    Returns:
        Rows, and why a protocol could not be compared, by name.
    """
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for read in PUBLISHED_PROTOCOLS if annotations is not None else ():
        name = read.__name__
        if name == protocol.name or _family(name) != _family(protocol.name):
            continue
        try:
            with unheard():
                other = read(annotations)
        except VmrError as error:
            skipped[name] = "its files are not there" if isinstance(error, MissingFile) else str(error)
            continue
        for mine, split in _without_held_out(protocol).items():
            for theirs, their_split in _without_held_out(other).items():
                if count := len(shared_videos([split], [their_split])):
                    row = {"split": mine, "protocol": name, "other_split": theirs, "videos": count}
                    rows.append(row | {"of": split.videos, "of_other": their_split.videos})
    return rows, skipped


def _without_held_out(protocol: Protocol) -> dict[str, Split]:
    """Returns the published splits: a selection split that is part of another one is left out."""
    splits = protocol.published
    if protocol.selection_origin == HELD_OUT or protocol.selected_on_test:
        del splits[SELECTION]
    return splits


def _leaks_within(protocol: Protocol) -> list[str]:
    warnings = []
    if protocol.selected_on_test:
        warnings.append(
            f"Checkpoints are selected on test data ({protocol.selection_origin}); every number is marked so."
        )
    for name, split in protocol.tests.items():
        if count := len(shared_videos([protocol.train], [split])):
            warnings.append(f"train and {name} share {count:,} videos: {name} measures training data.")
        if not protocol.selected_on_test and (count := len(shared_videos([protocol.selection], [split]))):
            warnings.append(f"selection and {name} share {count:,} videos, though no sentence.")
    return warnings


def _leaks_between(name: str, shared: list[dict[str, Any]]) -> list[str]:
    seen: dict[tuple[str, str], list[str]] = {}
    for row in shared:
        ends = (name, row["split"], row["of"]), (row["protocol"], row["other_split"], row["of_other"])
        for (trained, split, _), (asked, test, size) in (ends, ends[::-1]):
            if split == TRAIN and test not in (TRAIN, SELECTION):
                seen.setdefault((trained, asked), []).append(f"{test} {row['videos']:,} of {size:,}")
    return [
        f"A checkpoint of {trained} is refused under {asked}: trained on test videos ({', '.join(counts)})."
        for (trained, asked), counts in seen.items()
    ]


# --- features


def _features(cfg: DictConfig, protocol: Protocol) -> dict[str, Any]:
    """Checks the configured features against the protocol, reading everything that training would read.

    Returns:
        JSON-able: `checked`; if False `reason`, if True `name`, `origin` and `problems` (part, kind, count,
        ids, detail, fatal), fatal ones first.
    """
    if not cfg.get("features"):
        return {"checked": False, "reason": "no features are configured (features=NAME names some)"}
    root = cfg.paths.get("features")
    there = bool(root) and Path(root).expanduser().is_dir()
    if cfg.features.get("origin") == "real" and not there and not _asked_for_features():
        return {
            "checked": False,
            "reason": f"there is no feature directory {root}; point paths.features (or the environment "
            "variable VMR_FEATURES) at one to have it checked",
        }
    name, origin = cfg.features.get("name"), cfg.features.get("origin")
    try:
        features: FeatureSet = build(cfg.features)
        for source in (features.video, features.query, features.narration, features.patches):
            if source is not None:
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
            for problem in features.check(protocol, read="all")
        ]
    except VmrError as error:
        broken = {"part": "features", "kind": "unusable", "count": 0, "ids": [], "fatal": True}
        problems = [broken | {"detail": str(error)}]
    return {"checked": True, "name": name, "origin": origin, "problems": problems}


def _asked_for_features() -> bool:
    """Returns whether the user named features or their place, so that their absence is an error."""
    if os.environ.get("VMR_FEATURES"):
        return True
    if not HydraConfig.initialized():
        return False
    return any(o.startswith(("features", "paths.features")) for o in HydraConfig.get().overrides.task)


# --- printing


def show(report: dict[str, Any], console: Console) -> None:
    """Prints what `main` gathered."""
    splits = report["splits"]
    console.print(_sizes(report["protocol"], report["selection_origin"], splits))
    console.print(_moments(splits))
    if any(entry["counts"] for entry in splits.values()):
        console.print(_mended(splits))
    if report["shared_videos"]:
        console.print(_shared(report["protocol"], report["shared_videos"]))
    for name, reason in report["protocols_not_compared"].items():
        console.print(Text(f"Not compared with {name}: {reason}"))
    for warning in report["warnings"]:
        console.print(Text.assemble(("warning: ", "yellow"), warning))

    features = report["features"]
    if not features["checked"]:
        console.print(Text(f"Features were not checked: {features['reason']}."))
        return
    console.print(Text(f"Features {features['name']} (origin: {features['origin']})"), end=": ")
    console.print("no problem found." if not features["problems"] else "")
    for problem in features["problems"]:
        label = ("error: ", "bold red") if problem["fatal"] else ("warning: ", "yellow")
        what = f"{problem['part']}: {problem['kind']}"
        if problem["count"]:
            what += f" for {problem['count']:,} ids: {some(problem['ids'])}"
            what += ", …" if problem["count"] > len(problem["ids"]) else ""
        console.print(Text.assemble(label, f"{what}. {problem['detail']}"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
    return table


def _sizes(protocol: str, selection_origin: str, splits: dict[str, Any]) -> Table:
    columns = ("split", "videos", "sentences", "moments", "words")
    table = _table(f"{protocol} (selection: {selection_origin})", *columns)
    table.add_column("from", overflow="fold")
    for name, entry in splits.items():
        sizes = (f"{entry[key]:,}" for key in ("videos", "sentences", "moments"))
        table.add_row(name, *sizes, _format(entry["words_per_sentence"], ".1f"), entry["source"])
        trained = entry.get("trained_on")
        if trained and trained["sentences"] != entry["sentences"]:
            table.add_row("  trained on", f"{trained['videos']:,}", f"{trained['sentences']:,}")
    return table


def _moments(splits: dict[str, Any]) -> Table:
    title = (
        "Mean seconds; moments' mean length and centre, histograms of starts and lengths: shares of the video"
    )
    table = _table(title, "split", "video (range)", "moment", "length", "centre")
    for column in ("starts", "lengths"):
        table.add_column(column, no_wrap=True)
    for name, entry in splits.items():
        moment, video = entry["moment"], entry["duration_seconds"]
        mean, least, most = (_format(video[key], ".0f") for key in ("mean", "min", "max"))
        table.add_row(
            name,
            f"{mean} ({least}-{most})",
            _format(moment["mean_seconds"], ".1f"),
            *(_format(moment[key], ".2f") for key in ("mean_share", "mean_centre")),
            *(_bars(moment[f"{key}_histogram"]) for key in ("start", "share")),
        )
    return table


def _mended(splits: dict[str, Any]) -> Table:
    kinds = [kind for kind in _MENDS if any(kind in entry["counts"] for entry in splits.values())]
    kinds += sorted({kind for entry in splits.values() for kind in entry["counts"]} - set(_MENDS))
    table = _table("Mended on reading", "a moment that …", *splits)
    table.columns[0].no_wrap = False
    for kind in kinds:
        counts = (entry["counts"].get(kind, 0) for entry in splits.values())
        table.add_row(_MENDS.get(kind, kind), *(f"{count:,}" for count in counts))
    return table


def _shared(protocol: str, rows: list[dict[str, Any]]) -> Table:
    others = list(dict.fromkeys((row["protocol"], row["other_split"]) for row in rows))
    mine = list(dict.fromkeys(row["split"] for row in rows))
    counts = {(row["split"], row["protocol"], row["other_split"]): row["videos"] for row in rows}
    table = _table(f"Videos that {protocol} shares with other protocols", "", *mine)
    for other, split in others:
        table.add_row(f"{other} {split}", *(f"{counts.get((name, other, split), 0):,}" for name in mine))
    return table


def _format(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _bars(counts: list[int]) -> str:
    top = max(counts) or 1
    return "".join("▁▂▃▄▅▆▇█"[round(7 * count / top)] for count in counts)
