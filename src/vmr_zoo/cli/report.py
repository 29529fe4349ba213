"""`vmr report`: collects run directories into tables, with mean and standard deviation over seeds."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.report import runs as run_scan
from vmr_zoo.report import wandb_runs
from vmr_zoo.report.breakdown import break_down, read_kinds
from vmr_zoo.report.breakdown_tables import BREAKDOWN_WRITERS, page_tables, print_breakdowns
from vmr_zoo.report.caveats import mark_caveats
from vmr_zoo.report.claim_tables import CLAIM_WRITERS, print_answers
from vmr_zoo.report.claims import read_claims
from vmr_zoo.report.derived import with_derived
from vmr_zoo.report.leaderboard import DERIVED_METRICS, Leaderboard, leaderboards
from vmr_zoo.report.no_answer import rejection_boards, without_rejection
from vmr_zoo.report.notes import table_warnings
from vmr_zoo.report.page import write_page
from vmr_zoo.report.paper_matching import compare_with_papers
from vmr_zoo.report.paper_tables import is_requested
from vmr_zoo.report.prediction_browser import browsing
from vmr_zoo.report.query_scores import DamagedRun, leaderboard_scores
from vmr_zoo.report.reliability import save_reliability
from vmr_zoo.report.run_settings import filter_runs
from vmr_zoo.report.runs import UNREADABLE, Run, UnfinishedRun
from vmr_zoo.report.significance import mark_significance
from vmr_zoo.report.study import StudyTable, read_study, with_comparison
from vmr_zoo.report.terminal import print_leaderboards
from vmr_zoo.report.transfer import transfer_boards
from vmr_zoo.report.verdicts import ClaimAnswer, answer_claims
from vmr_zoo.report.writers import LEADERBOARD_WRITERS, PAPER_TABLE_WRITERS, print_paper_tables
from vmr_zoo.utils.browser import open_page
from vmr_zoo.utils.files import atomic_write, check_picture

_PRINTED_ROWS = 50
"""Rows of a table that the terminal shows beside a page, which has all of them."""


def main(cfg: DictConfig) -> int:
    """Prints or writes the tables.

    Args:
        cfg: the configuration composed from `conf/report.yaml`.

    Returns:
        0; 1 if a run directory could not be read.

    Raises:
        VmrError: if there is nothing to report, or an argument is invalid.
    """
    formats: Iterable[str] = LEADERBOARD_WRITERS
    if not cfg.html and (cfg.by or cfg.claims):
        formats = BREAKDOWN_WRITERS if cfg.by else CLAIM_WRITERS
    if cfg.format not in formats:
        raise unknown("format", cfg.format, formats)
    _check_combinations(cfg)
    if isinstance(cfg.columns, str):
        cfg.columns = [cfg.columns]
    if cfg.reliability:
        check_picture(cfg.reliability, "reliability")
    damaged: list[UnfinishedRun] = []
    while True:  # what a damaged run has to do with the tables is known when it is read
        try:
            return _report(cfg, damaged)
        except DamagedRun as error:
            if set(error.folders) <= {one.path for one in damaged}:
                raise
            damaged += [UnfinishedRun(folder, UNREADABLE, str(error)) for folder in error.folders]


def _report(cfg: DictConfig, damaged: list[UnfinishedRun]) -> int:
    """Prints or writes the tables without the runs that were found damaged; returns the exit code.

    Raises:
        DamagedRun: if another run is damaged; no table was printed or written then.
    """
    claims = read_claims(Path(cfg.claims)) if cfg.claims else []
    study = read_study(Path(cfg.study)) if cfg.study else []
    runs, unfinished = _find_runs(cfg, damaged)
    answers = answer_claims(claims, runs) if claims else []
    if answers and not cfg.html:
        text = CLAIM_WRITERS[cfg.format](answers)
        _deliver(cfg, lambda: print_answers(answers), text, 1)
    elif cfg.by and not cfg.html:
        _report_by_kind(cfg, runs)
    elif cfg.printed and not cfg.html:
        tables = [table for table in compare_with_papers(runs) if is_requested(table, cfg.printed)]
        text = PAPER_TABLE_WRITERS[cfg.format](tables)
        _deliver(cfg, lambda: print_paper_tables(tables), text, len(tables))
    else:
        boards, transfers = _tables(cfg, with_derived(runs, list(cfg.columns)))
        pictures = save_reliability(boards, Path(cfg.reliability)) if cfg.reliability else []
        if cfg.html:
            _write_page(cfg, boards, transfers, runs, unfinished, answers, study)
        else:
            if cfg.significance:
                for board in boards:
                    mark_significance(board, leaderboard_scores(board))
            boards += transfers
            text = ""
            if cfg.format != "table" or cfg.out:
                text = LEADERBOARD_WRITERS[cfg.format](boards, cfg.costs)
            _deliver(cfg, lambda: print_leaderboards(boards, cfg.costs), text, len(boards))
            if cfg.format in ("csv", "long"):  # the others have it below the table
                _warn(cfg, boards)
            if cfg.format == "table" and not cfg.out:
                print("Next: html=true for a page with charts and predictions, format=csv for data.")
        if pictures:
            _say(cfg, f"Wrote {', '.join(map(str, pictures))}.")
        if cfg.log:
            _say(cfg, wandb_runs.log_leaderboards(boards, cfg.entity, cfg.project, _folders(cfg)[0]))
    if unfinished:
        _say(cfg, run_scan.summarize_unfinished(unfinished))
    return 1 if any(one.state == UNREADABLE for one in unfinished) else 0


def _tables(cfg: DictConfig, runs: list[Run]) -> tuple[list[Leaderboard], list[Leaderboard]]:
    """Returns leaderboards, and the tables of tests on other data and of sentences without an answer."""
    columns = without_rejection(runs, list(cfg.columns))
    boards = leaderboards(runs, columns, cfg.sort) if runs and columns else []
    further = transfer_boards(runs, columns, cfg.evals)
    for board in further if cfg.significance else ():
        mark_significance(board, leaderboard_scores(board))
    further += rejection_boards(runs, list(cfg.columns), cfg.evals)
    mark_caveats([*boards, *further])
    return boards, further


def _folders(cfg: DictConfig) -> list[Path]:
    """Returns the folders of runs=…; pages and tables logged offline go to the first."""
    return [Path(folder) for folder in ([cfg.runs] if isinstance(cfg.runs, str) else cfg.runs)]


def _find_runs(cfg: DictConfig, damaged: list[UnfinishedRun]) -> tuple[list[Run], list[UnfinishedRun]]:
    """Reads and filters the runs; without any, only `printed=…` has something to show."""
    unfinished: list[UnfinishedRun] = []
    folders, broken = _folders(cfg), [one.path for one in damaged]
    if cfg.source == "wandb":
        runs = wandb_runs.fetch_runs(cfg.entity, cfg.project)
    else:
        runs, unfinished = run_scan.scan_runs(*folders, evals=cfg.evals)
        runs = run_scan.undamaged(runs, broken)
    unfinished += damaged
    listed = ", ".join(map(str, folders))
    if not runs and not cfg.printed:
        raise run_scan.no_finished_run(listed, unfinished)
    runs = filter_runs(runs, cfg.where or {}) if runs else []
    trials = [run for run in runs if run.header.get("search")]
    if trials and not cfg.trials:
        if len(trials) == len(runs):
            raise VmrError(
                f"Only trials of searches were found below '{listed}' ({len(trials)}), which no "
                "leaderboard lists. Show them with trials=true."
            )
        if not damaged:  # else it was said before
            _say(cfg, f"{len(trials)} trial(s) of searches are not shown; add trials=true to see them.")
        runs = [run for run in runs if not run.header.get("search")]
    if cfg.source == "wandb" and _needs_predictions(cfg):
        runs = run_scan.undamaged(wandb_runs.with_files(runs), broken)
    return runs, unfinished


def _needs_predictions(cfg: DictConfig) -> bool:
    """Returns whether the tables need more of a run than its header and metrics."""
    derived = set(DERIVED_METRICS).intersection(cfg.columns)
    return bool(cfg.significance or cfg.html or cfg.by or cfg.reliability or cfg.claims or derived)


def _report_by_kind(cfg: DictConfig, runs: list[Run]) -> None:
    """Shows or writes scores by kind of query: CSV in all metrics, tables in the leading one."""
    boards = leaderboards(with_derived(runs, list(cfg.columns)), list(cfg.columns), cfg.sort)
    mark_caveats(boards)
    if cfg.format != "csv":
        boards = _leading(boards)
    tables = break_down(boards, read_kinds(cfg.by))
    text = BREAKDOWN_WRITERS[cfg.format](tables)
    _deliver(cfg, lambda: print_breakdowns(tables), text, len(tables))
    _warn(cfg, boards)


def _leading(boards: list[Leaderboard]) -> list[Leaderboard]:
    """Returns the leaderboards with their leading metric alone: each metric would add a table per split."""
    return [replace(board, metrics=[board.leading_metric]) for board in boards]


def _write_page(
    cfg: DictConfig,
    boards: list[Leaderboard],
    transfers: list[Leaderboard],
    runs: list[Run],
    unfinished: list[UnfinishedRun],
    answers: list[ClaimAnswer],
    study: list[StudyTable],
) -> None:
    """Writes the page, with the papers' tables that concern the runs, and prints the leaderboards."""
    page = Path(cfg.out or _folders(cfg)[0] / "report.html")
    tables = [
        table
        for table in compare_with_papers(runs)
        if (is_requested(table, cfg.printed) if cfg.printed else table.relevant)
    ]
    beside = browsing(cfg.browse, cfg.videos, cfg.narrations)
    groups = page_tables(break_down(_leading(boards), read_kinds(cfg.by))) if cfg.by else []
    study = [with_comparison(table, boards) for table in study]
    write_page(boards, page, tables, unfinished, beside, cfg.significance, answers, study, transfers, groups)
    print_leaderboards([*boards, *transfers], cfg.costs, _PRINTED_ROWS)
    for table in study:
        table.print()
    opened = cfg.open and open_page(page.resolve().as_uri())
    print(f"Wrote {page}{', and opened it' if opened else '. Next: open it in a browser'}.")


def _check_combinations(cfg: DictConfig) -> None:
    """Refuses combinations in which an argument would be ignored or cannot work, before reading anything.

    Raises:
        VmrError: names both arguments.
    """
    online, papers = cfg.source == "wandb", cfg.printed and not cfg.html
    answered = cfg.claims and not cfg.html
    alone = "claims=… shows verdicts instead of leaderboards; drop one, or add html=true."
    lacking = "Evaluations of the runs are not uploaded to Weights & Biases; use source=runs."
    instead = "printed=… shows the papers' tables instead of leaderboards; drop one, or add html=true."
    groups = cfg.by and not cfg.html
    grouped = "by=… shows scores by kind of query instead of leaderboards; drop one, or add html=true."
    refused = {
        "by=… with reliability=…": (groups and cfg.reliability, grouped),
        "by=… with claims=…": (groups and cfg.claims, grouped),
        "by=… with printed=…": (groups and cfg.printed, grouped),
        "by=… with significance=true": (groups and cfg.significance, grouped),
        "by=… with log=wandb": (groups and cfg.log, grouped),
        "source=wandb with evals=true": (online and cfg.evals, lacking),
        "claims=… with printed=…": (answered and cfg.printed, alone),
        "claims=… with significance=true": (answered and cfg.significance, alone),
        "claims=… with sort=…": (answered and cfg.sort, alone),
        "claims=… with log=wandb": (answered and cfg.log, alone),
        "printed=… with log=wandb": (papers and cfg.log, instead),
        "printed=… with significance=true": (papers and cfg.significance, instead),
        "printed=… with sort=…": (papers and cfg.sort, instead),
        "html=true with format=…": (
            cfg.html and cfg.format != "table",
            "out=… then names the page; write the tables with a separate command.",
        ),
        "videos=… without html=true": (
            cfg.videos and not cfg.html,
            "Only the page plays them; add html=true.",
        ),
        "open=true without html=true": (
            cfg.open and not cfg.html,
            "Only a page opens in a browser; add html=true.",
        ),
        "study=… without html=true": (
            cfg.study and not cfg.html,
            "It stands below the tables of a page; add html=true.",
        ),
        "narrations=… without html=true": (
            cfg.narrations and not cfg.html,
            "Only the page shows them; add html=true.",
        ),
    }
    for combination, (wrong, reason) in refused.items():
        if wrong:
            raise VmrError(f"Found {combination}. {reason}")


def _deliver(cfg: DictConfig, show: Callable[[], None], text: str, count: int) -> None:
    """Writes tables to a file, shows them in the terminal, or prints them as text."""
    if cfg.out is not None:
        atomic_write(cfg.out, text)
        print(f"Wrote {count} table{'s' * (count != 1)} to {cfg.out}.")
    elif cfg.format == "table":
        show()
    else:
        print(text, end="")


def _warn(cfg: DictConfig, boards: Iterable[Leaderboard]) -> None:
    """Prints what makes a number of the tables wrong."""
    for warning in itertools.chain.from_iterable(map(table_warnings, boards)):
        _say(cfg, warning)


def _say(cfg: DictConfig, line: str) -> None:
    """Prints a line that is not part of the tables, so in text formats to standard error."""
    print(line, file=sys.stdout if cfg.format == "table" else sys.stderr)
