"""`vmr doctor`: prints what annotations and features contain, and what would fail in training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmr_zoo.cli.next_step import next_command
from vmr_zoo.engine.doctor import diagnose
from vmr_zoo.errors import abbreviate
from vmr_zoo.utils.files import write_json

if TYPE_CHECKING:
    from omegaconf import DictConfig

_FIXES = {
    "clipped": "ends after the video: now ends with it",
    "swapped": "ends before it starts: start and end exchanged",
    "dropped_zero_length": "has zero length: dropped",
    "dropped_outside": "starts after the end of the video: dropped",
    "unanswerable_zero_length": "has zero length: kept, counts as a miss",
    "unanswerable_outside": "starts after the end of the video: kept, counts as a miss",
    "repeated": "repeats an earlier sentence and moment: kept",
}

_TOO_MANY_LOST = (
    "words: the splits with an ! lose more than data.max_lost_words. Give features.query.file (or "
    "text_encoder.file of the narrations) a table that has the words, raise max_query_tokens, or raise "
    "data.max_lost_words."
)


def main(cfg: DictConfig) -> int:
    """Inspects the data set of a configuration and prints the result.

    Args:
        cfg: composed from `conf/doctor.yaml`.

    Returns:
        1 if training would fail or a downloaded file differs from the published one, else 0.

    Raises:
        VmrError: if annotations cannot be read or downloaded, or `out` cannot be written.
    """
    report = diagnose(cfg)
    console = Console()
    show(report, console)
    if cfg.get("out"):
        write_json(Path(cfg.out), report)
        console.print(Text(f"Wrote {cfg.out}."), soft_wrap=True)
    console.print(Text(_next(report)), soft_wrap=True)
    return 0 if report["ok"] else 1


def _next(report: dict[str, Any]) -> str:
    if not report["ok"]:
        return "Next: fix the errors above, then run the same command again."
    if not report["features"]["checked"]:
        return next_command("doctor", "features=NAME")
    return next_command("train", "method=NAME")


def show(report: dict[str, Any], console: Console) -> None:
    """Prints the report of `diagnose` as tables."""
    splits = report["splits"]
    console.print(_sizes(report["protocol"], report["selection_origin"], splits))
    console.print(f"Vocabulary of all splits: {report['vocabulary']:,} words.")
    console.print(_moments(splits))
    if any(entry["counts"] for entry in splits.values()):
        console.print(_fixes_table(splits))
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
    if features["words"]:
        console.print(_lost(features["words"]))
    if any(row["fatal"] for row in features["words"]):
        console.print(Text.assemble(("error: ", "bold red"), _TOO_MANY_LOST))
    console.print(Text(f"Features {features['name']} (origin: {features['origin']})"), end=": ")
    console.print("no problem found." if not features["problems"] else "")
    for problem in features["problems"]:
        label = ("error: ", "bold red") if problem["fatal"] else ("warning: ", "yellow")
        what = f"{problem['part']}: {problem['kind']}"
        if problem["count"]:
            what += f" for {problem['count']:,} ids: {abbreviate(problem['ids'])}"
            what += ", …" if problem["count"] > len(problem["ids"]) else ""
        console.print(Text.assemble(label, f"{what}. {problem['detail']}"))


def _lost(rows: list[dict[str, Any]]) -> Table:
    columns = ("sentences of", "tokens", "unknown", "past the end", "sentences with a loss", "unknown words")
    table = _table("Words that the features leave out", *columns)
    table.columns[-1].no_wrap, table.columns[-1].justify = False, "left"
    for row in rows:
        tokens, sentences = max(1, row["tokens"]), max(1, row["sentences"])
        with_loss = (f"{row[key] / sentences:.1%}" for key in ("sentences_with_unknown", "sentences_cut"))
        table.add_row(
            Text(f"{'! ' * row['fatal']}{row['part']}, {row['split']}", style="bold red" * row["fatal"]),
            f"{row['tokens']:,}",
            *(f"{row[key] / tokens:.1%}" for key in ("unknown", "cut")),
            " + ".join(with_loss),
            ", ".join(row["frequent"]),
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
    return table


def _sizes(protocol: str, selection_origin: str, splits: dict[str, Any]) -> Table:
    columns = ("split", "videos", "sentences", "moments", "words", "vocabulary")
    table = _table(f"{protocol} (selection: {selection_origin})", *columns)
    table.add_column("from", overflow="fold")
    for name, entry in splits.items():
        sizes = (f"{entry[key]:,}" for key in ("videos", "sentences", "moments"))
        words = _format(entry["words_per_sentence"], ".1f"), f"{entry['vocabulary']:,}"
        table.add_row(name, *sizes, *words, entry["source"])
        trained = entry.get("trained_on")
        if trained and trained["sentences"] != entry["sentences"]:
            table.add_row("  trained on", f"{trained['videos']:,}", f"{trained['sentences']:,}")
    return table


def _moments(splits: dict[str, Any]) -> Table:
    title = "Mean seconds; moments, as shares of the video: mean length and centre, histograms"
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


def _fixes_table(splits: dict[str, Any]) -> Table:
    kinds = [kind for kind in _FIXES if any(kind in entry["counts"] for entry in splits.values())]
    kinds += sorted({kind for entry in splits.values() for kind in entry["counts"]} - set(_FIXES))
    table = _table("Fixed on reading", "a moment that …", *splits)
    table.columns[0].no_wrap = False
    for kind in kinds:
        counts = (entry["counts"].get(kind, 0) for entry in splits.values())
        table.add_row(_FIXES.get(kind, kind), *(f"{count:,}" for count in counts))
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
