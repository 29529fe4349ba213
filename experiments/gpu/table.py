"""Turns a gpu.json of `vmr gpu` into the tables of docs/gpu.md.

python experiments/gpu/table.py [runs/gpu/gpu.json]                        prints them
python experiments/gpu/table.py [runs/gpu/gpu.json] --write docs/gpu.md    replaces those of the page

Rows of a dry run, and rows of a CPU, are refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmr_zoo.engine.gpu import DONE, stored_rows
from vmr_zoo.report.escape import markdown_table
from vmr_zoo.utils.files import atomic_write

START, END = "<!-- made by experiments/gpu/table.py -->", "<!-- end -->"

Row = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, default=Path("runs/gpu/gpu.json"))
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_args(argv)
    rows = stored_rows(args.file)
    if not rows:
        parser.error(f"{args.file} has no rows. Run vmr gpu first.")
    simulated = sum(row["dry_run"] or row["machine"]["device"] != "cuda" for row in rows)
    if simulated:
        parser.error(
            f"{simulated} rows of {args.file} are a dry run or of a CPU. They are no results of a GPU."
        )
    text = page(rows)
    if args.write is None:
        print(text)
        return
    before, start, rest = args.write.read_text("utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        parser.error(f"{args.write} lacks the lines {START} and {END}.")
    atomic_write(args.write, f"{before}{START}\n\n{text}\n{END}{after}")


def page(rows: Sequence[Row]) -> str:
    """Returns the tables, one section per GPU."""
    machines = {row["machine"]["hardware"]: row["machine"] for row in rows}
    parts = []
    for name, machine in machines.items():
        own = [row for row in rows if row["machine"]["hardware"] == name]
        parts += [f"### {name}\n", describe(machine, own)]
        done = [row for row in own if row["status"] == DONE]
        for stage, table in TABLES.items():
            if found := [row for row in done if row["item"].startswith(f"{stage}/")]:
                parts += ["", table(found)]
        if rest := [row for row in own if row["status"] != DONE]:
            lines = (
                (f"`{row['item']}`", row["status"], row["reason"].partition("\n")[0].replace("|", "/"))
                for row in rest
            )
            parts += ["", "Without a result:", "", markdown(["item", "state", "reason"], lines)]
        parts.append("")
    return "\n".join(parts)


def describe(machine: Row, rows: Sequence[Row]) -> str:
    """Names hardware, software, code and dates."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    codes = sorted({_code(row["machine"]) for row in rows})
    days = sorted({row["started"][:10] for row in rows})
    return (
        f"{machine['memory_gb']:.0f} GB, driver {machine['driver']}, CUDA {machine['cuda']}, cuDNN "
        f"{machine['cudnn']}; {machine['cpu']}; Python {machine['python']}, {packages}. "
        f"Code: {', '.join(codes)}. Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}."
    )


def _code(machine: Row) -> str:
    """Names the code by its revision, and by the digest of its files."""
    git = machine["git"] or {}
    revision = git.get("revision") or machine["revision"] or "revision unknown"
    return f"{revision[:12]}{' with changes' if git.get('dirty') else ''} (files {machine['code']})"


def markdown(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Returns a table; a cell without a value is empty."""
    rows = [["" if cell is None else str(cell) for cell in line] for line in lines]
    return markdown_table(heads, rows, escaped=True)


def milliseconds(times: Row) -> str:
    """Formats a median with its quartiles."""
    return f"{1e3 * times['median']:.1f} [{1e3 * times['low']:.1f}, {1e3 * times['high']:.1f}]"


def tests(rows: Sequence[Row]) -> str:
    (row,) = rows
    counts = row["numbers"]
    return f"Tests marked gpu: {counts['passed']} passed, {counts['skipped']} skipped."


def sync(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for setting, found in row["numbers"].items():
            waits = {wait for step in found["waits"] for wait in step}
            most = max(map(len, found["waits"]))
            where = "; ".join(f"`{wait}`" for wait in sorted(waits)) or "none"
            lines.append((f"`{_part(row, 1)}`", setting, most, where, max(found["operators"])))
    heads = ("method", "precision and batch", "waits per step", "where", "operators per step")
    return "Operators of a training step that make the host wait for the GPU:\n\n" + markdown(heads, lines)


def bench(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        size = row["settings"]["recipe"].rpartition("/")[2]
        for setting, found in row["numbers"].items():
            against = found["comparison"]
            faster = {part: f"{against[part]['median']:.2f}" for part in ("step", "inference")}
            spread = f"[{against['step']['low']:.2f}, {against['step']['high']:.2f}]"
            compiled = found["compilation"]
            lines.append(
                (
                    f"`{_part(row, 1)}` ({size})",
                    f"{found['batch']['query']:.0f} x {found['batch']['clips']:.0f}",
                    setting,
                    milliseconds(found["step"]),
                    f"{faster['step']}x {spread}",
                    milliseconds(found["loader"]),
                    f"{1e3 * found['step_per_query']['median']:.2f}",
                    f"{1e3 * found['inference_per_query']['median']:.2f}",
                    f"{faster['inference']}x",
                    f"{found['peak_training_gb']:.2f} / {found['peak_inference_gb']:.2f}",
                    f"{found['efficiency']:.0%}",
                    None if compiled is None else f"{compiled['training']:.0f}",
                )
            )
    heads = ("method (recipe)", "queries x clips", "setting", "step, ms [quartiles]", "speed-up over fp32")
    heads += ("loader, ms", "training per query, ms", "inference per query, ms", "speed-up over fp32")
    heads += ("peak GB", "efficiency", "compilation, s")
    return "Training steps and inference in published sizes, in turns:\n\n" + markdown(heads, lines)


def profile(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for precision, found in row["numbers"].items():
            longest = ", ".join(
                f"{_short(name)} {share:.0%}" for name, share in list(found["top"].items())[:4]
            )
            step, kernels = f"{1e3 * found['step']:.1f}", f"{found['kernels']:.0f}"
            lines.append((f"`{_part(row, 1)}`", precision, step, kernels, f"{found['busy']:.0%}", longest))
    heads = ("method", "precision", "profiled step, ms", "kernels per step", "GPU busy", "longest operators")
    return "Kernels of a training step:\n\n" + markdown(heads, lines)


def residency(rows: Sequence[Row]) -> str:
    lines = [
        (
            f"`{_part(row, 1)}`",
            place,
            milliseconds(found["loader"]),
            milliseconds(found["step"]),
            f"{found['peak_training_gb']:.2f}",
        )
        for row in rows
        for place, found in row["numbers"].items()
    ]
    heads = ("method", "`data.residency`", "loader, ms", "step, ms", "peak GB")
    return "Where video features reside:\n\n" + markdown(heads, lines)


def extract(rows: Sequence[Row]) -> str:
    lines = [
        (
            f"`{_part(row, 1)}`",
            _part(row, 2),
            f"{row['numbers']['clips_per_second']:,.0f}",
            f"{row['numbers']['videos_per_second']:.1f}",
            f"{row['numbers']['video_seconds_per_second']:,.0f}",
            f"{row['numbers']['peak_gb']:.1f}",
        )
        for row in rows
    ]
    heads = ("encoder, random weights", "precision", "prepared clips per second")
    heads += ("videos per second, decoded", "seconds of video per second, decoded", "peak GB")
    return "Extraction of features:\n\n" + markdown(heads, lines)


def narrate(rows: Sequence[Row]) -> str:
    lines = [
        (
            _part(row, 1),
            f"{row['numbers']['parameters'] / 1e9:.1f} B, {row['numbers']['dtype']}",
            row["numbers"]["batch"],
            row["numbers"]["new_tokens"],
            f"{row['numbers']['segments_per_second']:.2f}",
            f"{row['numbers']['tokens_per_second']:.0f}",
            f"{row['numbers']['peak_gb']:.1f}",
        )
        for row in rows
    ]
    heads = ("model, random weights", "parameters", "frames per batch", "tokens per answer")
    heads += ("frames per second", "tokens per second", "peak GB")
    return "Narration:\n\n" + markdown(heads, lines)


def train(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        found = row["numbers"]
        whole = found["epochs"] == found["recipe_epochs"]
        used = found["load"].get("utilisation")
        lines.append(
            (
                _part(row, 1),
                f"`{_part(row, 2)}`",
                found["epochs"],
                f"{found['epoch']:.1f}",
                found["recipe_epochs"],
                f"{found['estimated'] / 60:.1f}{'' if whole else ' (estimated)'}",
                None if used is None else f"{used:.0%}",
            )
        )
    heads = ("data", "method", "epochs trained", "seconds per epoch", "epochs of the recipe")
    heads += ("minutes of training", "GPU busy")
    return "Time to train, with validation:\n\n" + markdown(heads, lines)


def _part(row: Row, number: int) -> str:
    """Returns a part of the name of an item."""
    return row["item"].split("/")[number]


def _short(name: str) -> str:
    """Shortens the name of a kernel."""
    return name if len(name) <= 40 else f"{name[:37]}..."


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "tests": tests,
    "sync": sync,
    "bench": bench,
    "profile": profile,
    "residency": residency,
    "extract": extract,
    "narrate": narrate,
    "train": train,
}

if __name__ == "__main__":
    main()
