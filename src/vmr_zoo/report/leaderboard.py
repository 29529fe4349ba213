"""`vmr report`: collect run directories into leaderboards, mean and standard deviation over seeds."""

from __future__ import annotations

import os
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from omegaconf import DictConfig, ListConfig

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.report.significance import FIRST_IOU, Scores, average, query_scores, split_rows, worse_than_best
from vmr_zoo.runs.directory import ENVIRONMENT, HEADER, METRICS, PREDICTIONS, STATUS, read_json
from vmr_zoo.utils.files import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

    from vmr_zoo.engine.scoring import Row as Prediction
    from vmr_zoo.report.paper_tables import PrintedTable

FORMATS = ("table", "markdown", "csv", "latex")

SAME_TABLE = ("protocol", "features", "origin", "selection", "rounding")
"""What two rows must share to stand in one table."""

NEEDED = (*SAME_TABLE, "name", "method", "variant", "seed", "parameters")
"""What a header must hold for a row."""

REFERENCES = ("iid", "trivial")
"""The test split that resembles training, where a protocol has one; the others are out of distribution."""

DROP = "drop"
"""The column that says how much worse a row is out of distribution: the reference split less the mean of the
other test splits, in points."""

BEST, WORSE = "*", "↓"
"""Marks of the best row, and of rows that are worse by more than chance explains."""

_MEASURED = {
    "train_seconds": ("train s", 0),
    "step_ms": ("step ms", 1),
    "inference_ms": ("inference ms", 1),
    "peak_memory_mb": ("peak MB", 0),
}
"""What a header may say of cost: the column's head, and how many decimals it shows."""

_NO_RUNS = ("wandb", "checkpoints")
"""Folders in which no run is looked for."""


@dataclass(frozen=True)
class Run:
    """One finished run, or what `vmr eval` found of one under other circumstances.

    Attributes:
        path: its directory; None: it was read from Weights & Biases.
        header: what was run.
        metrics: percentages by split and metric.
        evals: the folders below `path` that hold the predictions; empty: `path` itself does.
    """

    path: Path | None
    header: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    evals: tuple[Path, ...] = ()

    @property
    def directory(self) -> Path:
        """Its directory.

        Raises:
            VmrError: if it has none here.
        """
        if self.path is None:
            raise VmrError(
                f"The run {self.header['name']} was read from Weights & Biases, which has no predictions: "
                "significance=true and html=true need run directories (source=runs)."
            )
        return self.path

    @property
    def predictions(self) -> list[Path]:
        """The files with its predictions."""
        return [folder / PREDICTIONS for folder in self.evals or (self.directory,)]


@dataclass(frozen=True)
class Unfinished:
    """A run directory without results.

    Attributes:
        path: the directory.
        state: "running", "interrupted", "failed" and the like; "unreadable" if a file of it is broken.
        message: why.
    """

    path: Path
    state: str
    message: str


@dataclass
class Row:
    """One run name, averaged over seeds.

    Attributes:
        name: method, variant and what else sets the runs apart.
        runs: one for each seed.
        values: percentages of each seed by (column, metric), a column being a split or `DROP`.
        marks: `BEST` or `WORSE` by (column, metric), where rows were compared.
    """

    name: str
    runs: list[Run]
    values: dict[tuple[str, str], list[float]]
    marks: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[str, str]:
        """Method and variant."""
        header = self.runs[0].header
        return str(header["method"]), str(header["variant"])

    def cell(self, key: tuple[str, str]) -> str:
        """Formats mean ± sample standard deviation over seeds, which one seed does not have."""
        values = self.values.get(key)
        return f"{spread(values)}{self.marks.get(key, '')}" if values else ""

    def measured(self, key: str, decimals: int) -> str:
        """Formats the mean over the runs whose header has a number; "" if none has."""
        values = [run.header[key] for run in self.runs if run.header.get(key) is not None]
        return f"{statistics.fmean(values):,.{decimals}f}" if values else ""


def spread(values: Sequence[float]) -> str:
    """Formats mean ± sample standard deviation, which one value does not have."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


@dataclass(frozen=True)
class Leaderboard:
    """One table: rows that may be compared.

    Attributes:
        title: what the rows share; says so when the features are simulated.
        columns: the splits, and `DROP` where there is a reference split.
        metrics: what was measured.
        rows: the runs.
    """

    title: str
    columns: list[str]
    metrics: list[str]
    rows: list[Row]

    @property
    def splits(self) -> list[str]:
        """The columns that are splits."""
        return [column for column in self.columns if column != DROP]

    def cost(self) -> tuple[list[str], list[list[str]]]:
        """Returns what the runs cost: heads, and the cells of each row; no column that no row has."""
        heads = {key: head for key, head in _MEASURED.items() if any(r.measured(key, 0) for r in self.rows)}
        cells = [
            [
                str(len(row.runs)),
                f"{row.runs[0].header['parameters']:,}",
                *(row.measured(key, decimals) for key, (_, decimals) in heads.items()),
            ]
            for row in self.rows
        ]
        return ["seeds", "parameters", *(head for head, _ in heads.values())], cells

    def frame(self) -> pd.DataFrame:
        """Returns a row per run and a column for each split and metric, as text."""
        keys = [(column, metric) for column in self.columns for metric in self.metrics]
        heads, costs = self.cost()
        cells = [
            [row.name, *row.kind, *map(row.cell, keys), *cost]
            for row, cost in zip(self.rows, costs, strict=True)
        ]
        return pd.DataFrame(
            cells, columns=["run", "method", "variant", *(" ".join(key) for key in keys), *heads]
        )


def main(cfg: DictConfig) -> int:
    """Prints or writes the tables.

    Args:
        cfg: what `conf/report.yaml` composes.

    Returns:
        0; 1 if a run directory could not be read.

    Raises:
        VmrError: if there is nothing to report, or an argument names nothing that there is.
    """
    if cfg.format not in FORMATS:
        raise unknown("format", cfg.format, FORMATS)
    if cfg.source not in ("runs", "wandb"):
        raise unknown("source", cfg.source, ("runs", "wandb"))
    if cfg.log not in (None, "wandb"):
        raise unknown("log", cfg.log, ("wandb",))
    _check_together(cfg)
    root = Path(cfg.runs)
    unfinished: list[Unfinished] = []
    if cfg.source == "wandb":
        from vmr_zoo.report import wandb_runs

        runs = wandb_runs.collect(cfg.entity, cfg.project)
    else:
        runs, unfinished = scan(root, cfg.evals)
    if not runs and not cfg.printed:
        raise _no_run(root, unfinished)
    runs = chosen(runs, cfg.where or {}) if runs else []
    from vmr_zoo.report.paper_tables import asked, printed_tables, touched

    if cfg.printed and not cfg.html:
        tables = [table for table in printed_tables(runs) if asked(table, cfg.printed)]
        _deliver(cfg, lambda: _print_frames(tables), _PRINTED_WRITERS[cfg.format](tables), len(tables))
    else:
        boards = leaderboards(runs, list(cfg.columns), cfg.sort) if runs else []
        if cfg.html:
            from vmr_zoo.report.page import write_page

            page = Path(cfg.out or root / "report.html")
            tables = [
                t for t in printed_tables(runs) if (asked(t, cfg.printed) if cfg.printed else touched(t))
            ]
            videos = None if cfg.videos is None else Path(cfg.videos)
            write_page(boards, page, tables, unfinished, videos, cfg.browse, cfg.significance)
            _print(boards, compared=cfg.significance)
            print(f"The report as a page: {page}")
        else:
            if cfg.significance:
                for board in boards:
                    compare(board, board_scores(board))
            text = _WRITERS[cfg.format](boards) if cfg.format != "table" or cfg.out else ""
            _deliver(cfg, lambda: _print(boards, compared=cfg.significance), text, len(boards))
        if cfg.log:
            from vmr_zoo.report.wandb_runs import log_leaderboards

            said = log_leaderboards(boards, cfg.entity, cfg.project, root)
            print(said, file=sys.stdout if cfg.format == "table" else sys.stderr)
    if unfinished:
        print(remark(unfinished), file=sys.stdout if cfg.format == "table" else sys.stderr)
    return 1 if any(one.state == _UNREADABLE for one in unfinished) else 0


def _check_together(cfg: DictConfig) -> None:
    """Refuses arguments of which one would be ignored or cannot work, before anything is read.

    Raises:
        VmrError: names both.
    """
    online, papers = cfg.source == "wandb", cfg.printed and not cfg.html
    lacking = "Weights & Biases has no predictions and no evaluations of the runs; take source=runs."
    instead = "printed=… shows the papers' tables in place of leaderboards; leave one out, or add html=true."
    refused = {
        "source=wandb with significance=true": (online and cfg.significance, lacking),
        "source=wandb with html=true": (online and cfg.html, lacking),
        "source=wandb with evals=true": (online and cfg.evals, lacking),
        "printed=… with log=wandb": (papers and cfg.log, instead),
        "printed=… with significance=true": (papers and cfg.significance, instead),
        "printed=… with sort=…": (papers and cfg.sort, instead),
        "html=true with format=…": (
            cfg.html and cfg.format != "table",
            "out=… is the page's then; write the tables by a command of their own.",
        ),
        "videos=… without html=true": (cfg.videos and not cfg.html, "The page plays them; add html=true."),
    }
    for asked, (wrong, reason) in refused.items():
        if wrong:
            raise VmrError(f"Found {asked}. {reason}")


def _deliver(cfg: DictConfig, show: Callable[[], None], text: str, count: int) -> None:
    """Shows tables in the terminal, prints them as text, or writes them to a file."""
    if cfg.out is not None:
        atomic_write(cfg.out, text)
        print(f"{count} table(s) written to {cfg.out}")
    elif cfg.format == "table":
        show()
    else:
        print(text, end="")


_UNREADABLE = "unreadable"


def scan(root: Path, evals: bool = False) -> tuple[list[Run], list[Unfinished]]:
    """Reads every run directory below a directory.

    Args:
        root: a directory of run directories, at any depth.
        evals: whether what `vmr eval` added to a run under other circumstances becomes a run of its own.

    Returns:
        The finished runs and the others, in order of path. A directory without scores, such as an imported
        checkpoint, is neither.
    """
    runs: list[Run] = []
    unfinished: list[Unfinished] = []
    for folder, names in _run_dirs(root):
        try:
            status = read_json(folder / STATUS) if STATUS in names else {"state": "finished"}
            if status["state"] != "finished":
                unfinished.append(Unfinished(folder, status["state"], status.get("message") or ""))
                continue
            run = _read_run(folder) if METRICS in names else None
            added = _read_evals(folder) if evals and "eval" in names else []
        except (VmrError, KeyError, TypeError) as error:
            unfinished.append(Unfinished(folder, _UNREADABLE, str(error)))
            continue
        if run is not None and run.metrics:
            runs.append(run)
        # A plain evaluation repeats what the run's own metrics say, unless it has none.
        runs += [
            one for one in added if run is None or not run.metrics or one.header["name"] != run.header["name"]
        ]
    return runs, unfinished


def collect(root: Path) -> list[Run]:
    """Returns the finished runs below a directory, as `scan` does.

    Raises:
        VmrError: if there is none.
    """
    runs, unfinished = scan(root)
    if not runs:
        raise _no_run(root, unfinished)
    return runs


def _no_run(root: Path, unfinished: Sequence[Unfinished]) -> VmrError:
    """Builds the error for a directory without a finished run."""
    return VmrError(
        f"No finished run below '{root}'. Expected {METRICS} files that `vmr train` wrote; say runs=DIR."
        + (f" {remark(unfinished)}" if unfinished else "")
    )


def _run_dirs(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yields each run directory and the names in it; nothing is looked for inside one."""
    try:
        with os.scandir(folder) as listing:
            entries = {entry.name: entry.is_dir(follow_symlinks=False) for entry in listing}
    except OSError:
        return
    if METRICS in entries or STATUS in entries:
        yield folder, set(entries)
        return
    for name in sorted(name for name, is_folder in entries.items() if is_folder):
        if name not in _NO_RUNS and not name.startswith("."):
            yield from _run_dirs(folder / name)


def _read_run(folder: Path) -> Run:
    content = read_json(folder / METRICS)
    header = content[HEADER]
    missing = [key for key in NEEDED if key not in header]
    if missing:
        raise VmrError(f"{folder / METRICS} has no {', '.join(missing)} in its header.")
    return Run(folder, header, {split: values for split, values in content.items() if split != HEADER})


def _read_evals(folder: Path) -> list[Run]:
    """Gathers what `vmr eval` left split by split: one run per name; of a split the latest counts."""
    found: dict[str, dict[str, Run]] = defaultdict(dict)
    for path in sorted((folder / "eval").iterdir(), key=lambda path: path.name):
        if (path / METRICS).is_file():
            one = _read_run(path)
            for split in one.metrics:
                found[str(one.header["name"])][split] = one
    return [
        Run(
            folder,
            next(iter(parts.values())).header,
            {split: one.metrics[split] for split, one in parts.items()},
            tuple(dict.fromkeys(one.directory for one in parts.values())),
        )
        for parts in found.values()
    ]


def remark(unfinished: Sequence[Unfinished], shown: int = 3) -> str:
    """Says in one line how many runs are not finished, with the messages of the first few."""
    counts = ", ".join(f"{n} {state}" for state, n in Counter(one.state for one in unfinished).items())
    # Those that say why come first.
    first = sorted(unfinished, key=lambda one: not one.message)[:shown]
    named = "; ".join(f"{one.path}{f' ({_short(one.message)})' if one.message else ''}" for one in first)
    more = ", …" if len(unfinished) > shown else ""
    return f"Not in any table, for want of results: {counts}: {named}{more}"


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 200 else f"{line[:199]}…"


def chosen(runs: Sequence[Run], where: Mapping[str, Any]) -> list[Run]:
    """Keeps the runs whose headers hold what is asked for.

    Args:
        runs: what `collect` returned.
        where: one allowed value or several, by key of the header, such as {"method": ["tea", "mesm"]}.

    Raises:
        VmrError: if there is no such key, or nothing is left.
    """
    known = {key for run in runs for key in run.header}
    for key in where:
        if key not in known:
            raise unknown("key of where", str(key), known)
    allowed = {
        key: {str(one) for one in (value if isinstance(value, list | ListConfig) else [value])}
        for key, value in where.items()
    }
    kept = [run for run in runs if all(str(run.header.get(key)) in values for key, values in allowed.items())]
    if not kept:
        there = "; ".join(
            f"{key}: {', '.join(sorted({str(run.header.get(key)) for run in runs}))}" for key in where
        )
        raise VmrError(f"No run is left by where={dict(where)}. There is {there}.")
    return kept


def leaderboards(runs: Sequence[Run], metrics: Sequence[str], sort: str | None = None) -> list[Leaderboard]:
    """Groups runs into tables and averages over seeds.

    Args:
        runs: what `collect` returned.
        metrics: which metrics become columns.
        sort: "SPLIT METRIC", best first; None: by name.

    Returns:
        One table per protocol, features, origin, selection rule and rounding; in it one row per run name.

    Raises:
        VmrError: if no run has one of the metrics, or no table the column to sort by.
    """
    known = {name for run in runs for values in run.metrics.values() for name in values}
    for name in metrics:
        if name not in known:
            raise unknown("metric", name, known)
    tables: dict[tuple[str, ...], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        tables[tuple(str(run.header[key]) for key in SAME_TABLE)][run.header["name"]].append(run)
    boards = [
        _leaderboard(dict(zip(SAME_TABLE, key, strict=True)), _apart(rows), metrics)
        for key, rows in sorted(tables.items())
    ]
    if sort is not None:
        keys = {" ".join(key): key for board in boards for row in board.rows for key in row.values}
        if sort not in keys:
            raise unknown("column to sort by", sort, keys)
        for board in boards:
            board.rows.sort(key=lambda row: -statistics.fmean(row.values.get(keys[sort]) or [-1.0]))
    return boards


def _apart(rows: Mapping[str, list[Run]]) -> dict[str, list[Run]]:
    """Splits rows in which a seed occurs twice, as in two studies, by where the runs lie."""
    found = {}
    for name, runs in rows.items():
        if len({run.header["seed"] for run in runs}) == len(runs):
            found[name] = runs
            continue
        places: dict[Path | None, list[Run]] = defaultdict(list)
        for run in runs:
            places[run.path and run.path.parent].append(run)
        for place, there in places.items():
            if len({run.header["seed"] for run in there}) == len(there):
                found[f"{name} ({place})"] = there
            else:
                found |= {f"{name} ({run.path})": [run] for run in there}
    return found


def _leaderboard(shared: dict[str, str], rows: dict[str, list[Run]], metrics: Sequence[str]) -> Leaderboard:
    columns = list(dict.fromkeys(split for runs in rows.values() for run in runs for split in run.metrics))
    columns.sort(key=lambda split: split == "selection")
    reference = next((split for split in REFERENCES if split in columns), None)
    others = [split for split in columns if split not in (reference, "selection")]
    averaged = []
    for name, runs in sorted(rows.items()):
        values: dict[tuple[str, str], list[float]] = {}
        for metric in metrics:
            for split in columns:
                found = [run.metrics.get(split, {}).get(metric) for run in runs]
                values[split, metric] = [value for value in found if value is not None]
            if reference is not None and others:
                values[DROP, metric] = [
                    run.metrics[reference][metric] - statistics.fmean(run.metrics[s][metric] for s in others)
                    for run in runs
                    if all(run.metrics.get(s, {}).get(metric) is not None for s in (reference, *others))
                ]
        averaged.append(Row(name, runs, {key: found for key, found in values.items() if found}))
    title = (
        f"{shared['protocol']}, {features_title(shared)}; selected on: {shared['selection']}; "
        f"rounding: {shared['rounding']}"
    )
    if reference is not None and others:
        columns.append(DROP)
    return Leaderboard(title, columns, list(metrics), averaged)


def features_title(header: Mapping[str, Any]) -> str:
    """Names the features of a run, and says so where no camera was involved."""
    title = f"features {header['features']}"
    if header["origin"] == "simulated":
        return f"{title} (SIMULATED: no number here comes from pixels)"
    return title if header["origin"] == "real" else f"{title} ({header['origin']})"


def board_scores(
    board: Leaderboard, visit: Callable[[int, Run, Mapping[str, Sequence[Prediction]]], None] | None = None
) -> list[list[Scores]]:
    """Reads the predictions of every run of a table, each once and no two at a time.

    Args:
        board: the table.
        visit: gets the number of a row, one of its runs, and the run's predictions by split.

    Returns:
        For each row and each of its runs, the score of every query in the metrics of the table, and the IoU
        of its first moment.

    Raises:
        VmrError: if a run has no predictions, or its predictions lack the ground truth.
    """
    from rich.console import Console
    from rich.progress import track

    everything = [(number, run) for number, row in enumerate(board.rows) for run in row.runs]
    scores: list[list[Scores]] = [[] for _ in board.rows]
    indexes: dict[str, list[pd.Index]] = {}
    for number, run in track(
        everything,
        "Reading predictions",
        transient=True,
        console=Console(stderr=True),
        disable=len(everything) < 4,
    ):
        rows = split_rows(run.predictions)
        scores[number].append(
            query_scores(rows, run.directory, board.splits, [*board.metrics, FIRST_IOU], indexes)
        )
        if visit is not None:
            visit(number, run, rows)
    return scores


def compare(board: Leaderboard, scores: Sequence[Sequence[Scores]]) -> None:
    """Marks, for each split and metric, the best row and those that are worse by more than chance explains.

    Query by query, scores are averaged over seeds, and the differences to the best row are bootstrapped.

    Args:
        board: its rows get marks.
        scores: what `board_scores` returned.
    """
    for split in board.splits:
        rows = [
            average([seed[split] for seed in seeds])
            if seeds and all(split in seed for seed in seeds)
            else None
            for seeds in scores
        ]
        best: dict[str, int] = {}
        for metric in board.metrics:
            key = split, metric
            there = [
                number
                for number, frame in enumerate(rows)
                if frame is not None and metric in frame and key in board.rows[number].values
            ]
            if len(there) > 1:
                best[metric] = max(there, key=lambda n: statistics.fmean(board.rows[n].values[key]))
                board.rows[best[metric]].marks[key] = BEST
        for (number, metric), difference in worse_than_best(rows, best).items():
            if difference.significant:
                board.rows[number].marks[split, metric] = WORSE


def wide_console() -> Console:
    """Returns a console that cuts nothing off where there is no terminal with an edge."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=1000)


def _print(boards: Sequence[Leaderboard], compared: bool) -> None:
    """Prints each table, its metrics one below the other, so that many splits fit a terminal."""
    from rich.table import Table
    from rich.text import Text

    console = wide_console()
    for board in boards:
        table = Table()
        table.add_column("metric")
        table.add_column("run", overflow="fold")
        heads, costs = board.cost()
        for column in (*board.columns, *heads):
            table.add_column(column, justify="right")
        for metric in board.metrics:
            for row, cost in zip(board.rows, costs, strict=True):
                cells = [row.cell((column, metric)) for column in board.columns]
                table.add_row(metric, Text(row.name), *cells, *cost)
            table.add_section()
        console.print(Text(board.title), soft_wrap=True)
        console.print(table)
        notes = ["per cent; mean ± sample standard deviation over seeds"]
        if DROP in board.columns:
            notes.append(f"{DROP}: the first split less the mean of the other test splits, points")
        if compared:
            notes.append(f"{BEST} best; {WORSE} worse than it (paired bootstrap over queries, 95 %)")
        console.print("\n".join(notes) + "\n", style="dim")


def _markdown(boards: Sequence[Leaderboard]) -> str:
    return "\n".join(
        f"### {board.title}\n\n{board.frame().to_markdown(index=False, disable_numparse=True)}\n"
        for board in boards
    )


def _csv(boards: Sequence[Leaderboard]) -> str:
    frames = []
    for board in boards:
        frame = board.frame()
        frame.insert(0, "table", board.title)
        frame["revision"] = [" ".join(sorted({_revision(run) for run in row.runs})) for row in board.rows]
        frames.append(frame)
    return pd.concat(frames).to_csv(index=False, lineterminator="\n")


def _revision(run: Run) -> str:
    """Returns the git revision that made a run, marked where the checkout had changes; "?" if unknown."""
    file = None if run.path is None else run.path / ENVIRONMENT
    git = read_json(file).get("git") if file is not None and file.is_file() else None
    if not git or not git.get("revision"):
        return "?"
    return f"{git['revision'][:10]}{'+changes' if git.get('dirty') else ''}"


def _latex(tables: Sequence[Leaderboard] | Sequence[PrintedTable]) -> str:
    return "\n".join(_latex_table(table.frame(), table.title) for table in tables)


def _latex_table(frame: pd.DataFrame, title: str) -> str:
    frame = frame.apply(lambda column: column.str.replace(WORSE, "@down@"))
    style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    text = style.to_latex(caption=_escaped(title), hrules=True, position="t")
    return text.replace("@down@", r"$\downarrow$").replace("±", r"$\pm$")


def _escaped(text: str) -> str:
    for sign in "_%&#":
        text = text.replace(sign, "\\" + sign)
    return text


def _print_frames(tables: Sequence[PrintedTable]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = wide_console()
    for one in tables:
        frame = one.frame()
        table = Table(show_lines=False)
        for column in frame.columns:
            table.add_column(
                Text(column), justify="left" if column in one.labels else "right", overflow="fold"
            )
        for cells in frame.itertuples(index=False):
            table.add_row(*map(Text, cells))
        console.print(Text(one.title), soft_wrap=True)
        console.print(table)
        console.print(Text("\n".join(one.notes), "dim"), "\n", soft_wrap=True, sep="")


def _printed_markdown(tables: Sequence[PrintedTable]) -> str:
    return "\n".join(
        f"### {one.title}\n\n{one.frame().to_markdown(index=False, disable_numparse=True)}\n\n"
        + "".join(f"- {note}\n" for note in one.notes)
        for one in tables
    )


def _printed_csv(tables: Sequence[PrintedTable]) -> str:
    frames = []
    for one in tables:
        frame = one.frame(in_full=True)
        frame.insert(0, "table", one.title)
        frames.append(frame.to_csv(index=False, lineterminator="\n"))
    return "".join(frames)


_PRINTED_WRITERS: dict[str, Callable[[Sequence[PrintedTable]], str]] = {
    "table": _printed_markdown,
    "markdown": _printed_markdown,
    "csv": _printed_csv,
    "latex": _latex,
}
_WRITERS = {"table": _markdown, "markdown": _markdown, "csv": _csv, "latex": _latex}
