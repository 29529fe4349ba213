"""`vmr predict`: finds moments in your own videos with a trained run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from hashlib import file_digest
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmr_zoo.errors import VmrError, printable
from vmr_zoo.video.container import check_file
from vmr_zoo.video.decode import list_notes

if TYPE_CHECKING:
    from vmr_zoo.engine.retriever import Answer, EncodedVideo, Retriever

_PICTURES = (".png", ".pdf", ".svg")


def main(cfg: DictConfig) -> int:
    """Answers the queries of the command line or of a CSV file.

    Args:
        cfg: composed from `conf/predict.yaml`.

    Returns:
        0, or 1 if some videos of the CSV file could not be decoded.

    Raises:
        VmrError: for contradicting arguments, and as `Retriever` and its encoders raise.
    """
    _check_arguments(cfg)
    return _answer_csv(cfg) if cfg.csv is not None else _answer_video(cfg)


def _check_arguments(cfg: DictConfig) -> None:
    """Checks what can be checked before seconds of imports: contradictions, and files that do not exist."""
    if (cfg.csv is None) == (cfg.video is None):
        raise VmrError(
            "Expected either video=FILE with query=SENTENCE, or csv=FILE with the columns video, query."
        )
    if cfg.narrations is not None and not Path(cfg.narrations).is_file():
        raise VmrError(f"Expected a narration file at narrations={cfg.narrations}; there is none.")
    if cfg.csv is None:
        if not cfg.query:
            raise VmrError('Expected a sentence to search for: query="a person opens the door".')
        check_file(Path(cfg.video))
    elif cfg.query or cfg.picture:
        raise VmrError("csv=FILE holds the sentences and draws no pictures: leave out query and picture.")
    elif cfg.out is None:
        raise VmrError("Expected out=FILE.jsonl for the answers to the rows of the CSV file.")
    elif Path(cfg.out).is_dir():
        raise VmrError(f"Expected out=FILE.jsonl, found the folder {cfg.out}.")
    if cfg.picture and Path(cfg.picture).suffix.lower() not in _PICTURES:
        raise VmrError(f"Cannot write picture={cfg.picture}. Name a .png, .pdf or .svg file.")


def _answer_video(cfg: DictConfig) -> int:
    from vmr_zoo.engine.timeline import draw

    queries = [str(text) for text in (cfg.query if isinstance(cfg.query, ListConfig) else [cfg.query])]
    # Libraries print when they are imported: nothing but JSON goes to the standard output of --json.
    with redirect_stdout(StringIO()) if cfg.json else nullcontext():
        video = _retriever(cfg).encode(cfg.video, cfg.narrations)
        answers = video.answer(queries, cfg.top_k)
    if cfg.json:
        print(json.dumps(_as_json(cfg.run, video, answers), ensure_ascii=False, indent=2))
    else:
        _print_notes({video.path.name: dict(video.notes)})
        Console().print(_answer_table(video, answers))
    if cfg.picture:
        draw(video, answers, cfg.picture)
        if not cfg.json:
            print(f"Written: {cfg.picture}")
    elif not cfg.json:
        print("Draw the moments on a timeline with picture=moments.png; print JSON with --json.")
    return 0


def _retriever(cfg: DictConfig) -> Retriever:
    from vmr_zoo.engine.retriever import Retriever

    return Retriever.from_run(cfg.run, device=cfg.device, window_seconds=cfg.window, cache=cfg.paths.cache)


def _answer_csv(cfg: DictConfig) -> int:
    from vmr_zoo.engine.query_file import answer_file, read_query_file

    file = Path(cfg.csv)
    queries = read_query_file(file)
    retriever = _retriever(cfg)
    failed = answer_file(
        retriever, queries, file.parent, Path(cfg.out), cfg.narrations, cfg.top_k, _settings(cfg)
    )
    answered = sum(row["video"] not in failed for row in queries)
    print(f"{cfg.out}: {answered} of {len(queries)} sentences answered")
    with Path(cfg.out).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    _print_notes({row["video"]: row["notes"] for row in rows if "notes" in row})
    if failed:
        Console(stderr=True).print(_failure_table(failed))
        print(f"The same command tries them again; {cfg.out}.partial keeps the other answers.")
    return 1 if failed else 0


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """Returns what determines the answers beside the videos and sentences."""
    from vmr_zoo.runs import directory

    files = {"run": Path(cfg.run) / directory.WEIGHTS, "narrations": cfg.narrations}
    settings: dict[str, Any] = {"window": cfg.window}
    for name, path in files.items():
        if path is not None:
            with Path(path).open("rb") as file:
                settings[name] = file_digest(file, "sha256").hexdigest()
    return settings


def _print_notes(notes: Mapping[str, Mapping[str, str]]) -> None:
    """Prints what is odd about the videos to standard error."""
    for line in list_notes(notes):
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"Note: {line}", markup=False)


def _failure_table(failed: Mapping[str, str]) -> Table:
    table = Table("video", "reason", title="Not decoded", title_justify="left")
    for name, reason in failed.items():
        table.add_row(Text(printable(name)), Text(reason))
    return table


def _as_json(run: str, video: EncodedVideo, answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "run": str(run),
        "video": printable(video.path),
        "duration": video.duration,
        "notes": dict(video.notes),
        "answers": [
            {
                "query": answer.query,
                "moments": [asdict(moment) for moment in answer.moments],
                "clip_scores": None if answer.clip_scores is None else answer.clip_scores.tolist(),
            }
            for answer in answers
        ],
    }


def _answer_table(video: EncodedVideo, answers: Sequence[Answer]) -> Table:
    table = Table(
        title=Text(printable(f"{video.path.name}, {_clock_time(video.duration)}")),
        caption="Scores rank moments within one run. A high score does not mean that the sentence occurs.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("query", overflow="fold")
    for name in ("rank", "start", "end", "score"):
        table.add_column(name, justify="right")
    for answer in answers:
        for rank, moment in enumerate(answer.moments, 1):
            text = Text(answer.query) if rank == 1 else ""
            times = _clock_time(moment.start), _clock_time(moment.end)
            table.add_row(text, str(rank), *times, f"{moment.score:.4g}")
        table.add_section()
    return table


def _clock_time(seconds: float) -> str:
    """Formats seconds as 1:02:03.4, without hours below one hour."""
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
