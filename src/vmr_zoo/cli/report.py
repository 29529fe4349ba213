"""`vmr report`: collects run directories into tables, with mean and standard deviation over seeds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.report import runs as run_scan
from vmr_zoo.report import wandb_runs
from vmr_zoo.report.caveats import mark_caveats
from vmr_zoo.report.claim_tables import CLAIM_WRITERS, print_answers
from vmr_zoo.report.claims import read_claims
from vmr_zoo.report.leaderboard import Leaderboard, leaderboards
from vmr_zoo.report.page import browsing, write_page
from vmr_zoo.report.paper_matching import compare_with_papers
from vmr_zoo.report.paper_tables import is_requested
from vmr_zoo.report.query_scores import leaderboard_scores
from vmr_zoo.report.runs import UNREADABLE, Run, UnfinishedRun, filter_runs
from vmr_zoo.report.significance import mark_significance
from vmr_zoo.report.study import StudyTable, read_study
from vmr_zoo.report.terminal import print_leaderboards
from vmr_zoo.report.verdicts import Answer, answer_claims
from vmr_zoo.report.writers import LEADERBOARD_WRITERS, PAPER_TABLE_WRITERS, print_paper_tables
from vmr_zoo.utils.files import atomic_write

_CHOICES = {"format": tuple(LEADERBOARD_WRITERS), "source": ("runs", "wandb"), "log": (None, "wandb")}


def main(cfg: DictConfig) -> int:
    """Prints or writes the tables.

    Args:
        cfg: the configuration composed from `conf/report.yaml`.

    Returns:
        0; 1 if a run directory could not be read.

    Raises:
        VmrError: if there is nothing to report, or an argument is invalid.
    """
    choices = _CHOICES | ({"format": tuple(CLAIM_WRITERS)} if cfg.claims and not cfg.html else {})
    for key, valid in choices.items():
        if cfg[key] not in valid:
            raise unknown(key, cfg[key], [one for one in valid if one])
    _check_combinations(cfg)
    claims = read_claims(Path(cfg.claims)) if cfg.claims else []
    study = read_study(Path(cfg.study)) if cfg.study else None
    runs, unfinished = _find_runs(cfg)
    answers = answer_claims(claims, runs) if claims else []
    if answers and not cfg.html:
        text = CLAIM_WRITERS[cfg.format](answers)
        _deliver(cfg, lambda: print_answers(answers), text, 1)
    elif cfg.printed and not cfg.html:
        tables = [table for table in compare_with_papers(runs) if is_requested(table, cfg.printed)]
        text = PAPER_TABLE_WRITERS[cfg.format](tables)
        _deliver(cfg, lambda: print_paper_tables(tables), text, len(tables))
    else:
        boards = leaderboards(runs, list(cfg.columns), cfg.sort) if runs else []
        mark_caveats(boards)
        if cfg.html:
            _write_page(cfg, boards, runs, unfinished, answers, study)
        else:
            if cfg.significance:
                for board in boards:
                    mark_significance(board, leaderboard_scores(board))
            text = ""
            if cfg.format != "table" or cfg.out:
                text = LEADERBOARD_WRITERS[cfg.format](boards, cfg.costs)
            _deliver(cfg, lambda: print_leaderboards(boards, cfg.significance, cfg.costs), text, len(boards))
            if cfg.format == "table" and not cfg.out:
                print("Next: html=true for a page with charts and predictions, format=csv for data.")
        if cfg.log:
            _say(cfg, wandb_runs.log_leaderboards(boards, cfg.entity, cfg.project, Path(cfg.runs)))
    if unfinished:
        _say(cfg, run_scan.summarize_unfinished(unfinished))
    return 1 if any(one.state == UNREADABLE for one in unfinished) else 0


def _find_runs(cfg: DictConfig) -> tuple[list[Run], list[UnfinishedRun]]:
    """Reads and filters the runs; without any, only `printed=…` has something to show."""
    unfinished: list[UnfinishedRun] = []
    if cfg.source == "wandb":
        runs = wandb_runs.fetch_runs(cfg.entity, cfg.project)
    else:
        runs, unfinished = run_scan.scan_runs(Path(cfg.runs), cfg.evals)
    if not runs and not cfg.printed:
        raise run_scan.no_finished_run(Path(cfg.runs), unfinished)
    runs = filter_runs(runs, cfg.where or {}) if runs else []
    trials = [run for run in runs if run.header.get("search")]
    if not trials or cfg.trials:
        return runs, unfinished
    if len(trials) == len(runs):
        raise VmrError(
            f"Only trials of searches were found below '{cfg.runs}' ({len(trials)}), which no leaderboard "
            "lists. Show them with trials=true."
        )
    _say(cfg, f"{len(trials)} trial(s) of searches are not shown; add trials=true to see them.")
    return [run for run in runs if not run.header.get("search")], unfinished


def _write_page(
    cfg: DictConfig,
    boards: list[Leaderboard],
    runs: list[Run],
    unfinished: list[UnfinishedRun],
    answers: list[Answer],
    study: StudyTable | None,
) -> None:
    """Writes the page, with the papers' tables that concern the runs, and prints the leaderboards."""
    page = Path(cfg.out or Path(cfg.runs) / "report.html")
    tables = [
        table
        for table in compare_with_papers(runs)
        if (is_requested(table, cfg.printed) if cfg.printed else table.relevant)
    ]
    beside = browsing(cfg.browse, cfg.videos, cfg.narrations)
    write_page(boards, page, tables, unfinished, beside, cfg.significance, answers, study)
    print_leaderboards(boards, cfg.significance, cfg.costs)
    if study:
        study.print()
    print(f"Wrote {page}. Next: open it in a browser.")


def _check_combinations(cfg: DictConfig) -> None:
    """Refuses combinations in which an argument would be ignored or cannot work, before reading anything.

    Raises:
        VmrError: names both arguments.
    """
    online, papers = cfg.source == "wandb", cfg.printed and not cfg.html
    answered = cfg.claims and not cfg.html
    alone = "claims=… shows verdicts instead of leaderboards; drop one, or add html=true."
    lacking = "Weights & Biases stores no predictions or evaluations of the runs; use source=runs."
    instead = "printed=… shows the papers' tables instead of leaderboards; drop one, or add html=true."
    refused = {
        "source=wandb with significance=true": (online and cfg.significance, lacking),
        "source=wandb with html=true": (online and cfg.html, lacking),
        "source=wandb with evals=true": (online and cfg.evals, lacking),
        "source=wandb with claims=…": (online and cfg.claims, lacking),
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


def _say(cfg: DictConfig, line: str) -> None:
    """Prints a line that is not part of the tables, so in text formats to standard error."""
    print(line, file=sys.stdout if cfg.format == "table" else sys.stderr)
