"""`vmr predict`: finds moments in your own videos, with a trained run or without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from vmr_zoo.cli import predict_output as output
from vmr_zoo.config.values import plain
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.console import print_notes
from vmr_zoo.utils.files import check_picture, read_appended
from vmr_zoo.utils.hashing import sha256_of
from vmr_zoo.video.container import check_file
from vmr_zoo.video.decode import list_notes
from vmr_zoo.video.files import LISTS, list_videos

if TYPE_CHECKING:
    from vmr_zoo.engine.retriever import Retriever
    from vmr_zoo.engine.video_search import FoundMoment


def main(cfg: DictConfig) -> int:
    """Answers the queries of the command line or of a CSV file.

    Args:
        cfg: composed from `conf/predict.yaml`.

    Returns:
        0, or 1 if some of several videos could not be decoded.

    Raises:
        VmrError: for contradicting arguments, and as `Retriever` and its encoders raise.
    """
    _check_arguments(cfg)
    if cfg.csv is not None:
        return _answer_csv(cfg)
    return _answer_video(cfg) if _is_one_file(cfg.video) else _answer_videos(cfg)


def _check_arguments(cfg: DictConfig) -> None:
    """Checks what can be checked before seconds of imports: contradictions, and files that do not exist."""
    if (cfg.csv is None) == (cfg.video is None):
        raise VmrError(
            "Expected either video=FILE with query=SENTENCE, or csv=FILE with the columns video, query."
        )
    check_source(cfg)
    if cfg.csv is None:
        if not cfg.query:
            raise VmrError('Expected a sentence to search for: query="a person opens the door".')
        _check_video(cfg)
    elif cfg.query or cfg.picture or cfg.cut:
        raise VmrError(
            "csv=FILE holds the sentences, draws no pictures, cuts no clips: leave out query, picture, cut."
        )
    elif cfg.out is None:
        raise VmrError("Expected out=FILE.jsonl for the answers to the rows of the CSV file.")
    elif Path(cfg.out).is_dir():
        raise VmrError(f"Expected out=FILE.jsonl, found the folder {cfg.out}.")
    if cfg.picture:
        check_picture(cfg.picture, "picture")
    if cfg.cut and Path(cfg.cut).is_file():
        raise VmrError(f"Expected cut=FOLDER for the clips, found the file {cfg.cut}.")


def check_source(cfg: DictConfig) -> None:
    """Checks what encodes and searches: a run or an image-text model."""
    from hydra.core.hydra_config import HydraConfig

    typed = [text.partition("=")[0].lstrip("+~") for text in HydraConfig.get().overrides.task]
    if cfg.run is not None:
        named = [key for key in typed if key.split(".")[0] == "zero_shot"]
        if named:
            raise VmrError(f"run=DIR has its own encoders and searches with them: leave out {named[0]}.")
    elif cfg.narrations is not None:
        raise VmrError(
            "narrations=FILE is for a trained run that reads narrations: add run=DIR, or leave it out."
        )


def _check_video(cfg: DictConfig) -> None:
    """Checks what video= names."""
    if isinstance(cfg.video, str) and Path(cfg.video).exists() and not Path(cfg.video).is_dir():
        check_file(Path(cfg.video))
    if not _is_one_file(cfg.video) and cfg.picture:
        raise VmrError(
            "picture=FILE draws the moments of one video: name a file, not several, or leave it out."
        )


def _is_one_file(video: Any) -> bool:
    return isinstance(video, str) and Path(video).is_file() and Path(video).suffix.lower() not in LISTS


def load_retriever(cfg: DictConfig, run: str | None) -> Retriever:
    """Loads what searches: a trained run, or without one the image-text model of the configuration."""
    if run is None:
        from vmr_zoo.engine.zero_shot import build_zero_shot

        return build_zero_shot(cfg.zero_shot, cfg.window)
    from vmr_zoo.engine.retriever import Retriever

    return Retriever.from_run(
        run,
        device=cfg.device,
        window_seconds=cfg.window,
        cache=cfg.paths.cache,
        encoders=cfg.encoders,
    )


def _queries(cfg: DictConfig) -> list[str]:
    return [str(text) for text in (cfg.query if isinstance(cfg.query, ListConfig) else [cfg.query])]


def _quiet(cfg: DictConfig) -> Any:
    """Libraries print when they are imported: nothing but JSON goes to the standard output of --json."""
    return redirect_stdout(StringIO()) if cfg.json else nullcontext()


def _answer_video(cfg: DictConfig) -> int:
    """Answers sentences about one file."""
    from vmr_zoo.engine.timeline import draw
    from vmr_zoo.engine.video_search import FoundMoment

    queries = _queries(cfg)
    with _quiet(cfg):
        video = load_retriever(cfg, cfg.run).encode(cfg.video, cfg.narrations)
        answers = video.answer(queries, cfg.top_k)
        found = [[FoundMoment(video.path, moment) for moment in answer.moments] for answer in answers]
        clips = _cut(cfg, queries, found)
        if cfg.picture:
            draw(video, answers, cfg.picture)
    if cfg.json:
        print(output.as_json(_source(cfg) | output.video_json(video, answers, clips)))
        return 0
    print_notes(list_notes({video.path.name: dict(video.notes)}))
    Console().print(output.video_table(video, answers, cfg.run is None))
    _print_end(cfg, [cfg.picture] if cfg.picture else [], clips)
    return 0


def _answer_videos(cfg: DictConfig) -> int:
    """Answers sentences about several files, whose moments are ranked together."""
    from vmr_zoo.engine.video_search import search_videos

    queries = _queries(cfg)
    videos = list_videos(plain(cfg.video), "video")
    with _quiet(cfg):
        search = search_videos(load_retriever(cfg, cfg.run), videos, queries, cfg.narrations, cfg.top_k)
        clips = _cut(cfg, queries, search.moments)
    if cfg.json:
        print(output.as_json(_source(cfg) | output.search_json(len(videos), queries, search, clips)))
    else:
        print_notes(list_notes({str(path): notes for path, notes in search.notes.items()}))
        Console().print(output.search_table(len(videos), queries, search, cfg.run is None))
        print(f"{search.indexed} new or changed of {len(videos)} videos indexed, in {cfg.paths.cache}/index.")
        _print_end(cfg, [], clips)
    if search.failed:
        failed = {str(path): reason for path, reason in search.failed.items()}
        Console(stderr=True).print(output.failure_table(failed))
    return 1 if search.failed else 0


def _source(cfg: DictConfig) -> dict[str, Any]:
    """Returns what searched, for JSON."""
    return {"run": str(cfg.run)} if cfg.run is not None else {"run": None, "zero_shot": cfg.zero_shot.name}


def _cut(
    cfg: DictConfig, queries: Sequence[str], found: Sequence[Sequence[FoundMoment]]
) -> list[list[Path | None]] | None:
    """Writes the clips, and a line about each that lacks something."""
    if not cfg.cut:
        return None
    from vmr_zoo.cli.predict_clips import clip_paths, write_clips

    clips, notes = write_clips(clip_paths(Path(cfg.cut), queries, found), found)
    print_notes(notes)
    return clips


def _print_end(cfg: DictConfig, written: Sequence[str], clips: output.Clips) -> None:
    """Says what was written, or what could be."""
    for name in written:
        print(f"Written: {name}")
    if clips is not None:
        count = sum(path is not None for paths in clips for path in paths)
        print(f"Written: {count} clips in {cfg.cut}")
    if not written and clips is None:
        drawn = "" if not _is_one_file(cfg.video) else " Draw them on a timeline with picture=moments.png."
        print(f"Write the moments as clips with cut=FOLDER.{drawn} Print JSON with --json.")


def _answer_csv(cfg: DictConfig) -> int:
    from vmr_zoo.engine.query_file import answer_file, read_query_file

    file = Path(cfg.csv)
    queries = read_query_file(file)
    retriever = load_retriever(cfg, cfg.run)
    failed = answer_file(
        retriever, queries, file.parent, Path(cfg.out), cfg.narrations, cfg.top_k, _settings(cfg, retriever)
    )
    rows = read_appended(Path(cfg.out))
    print(f"{cfg.out}: {len(rows)} of {len(queries)} sentences answered")
    print_notes(list_notes({row["video"]: row["notes"] for row in rows if "notes" in row}))
    if failed:
        Console(stderr=True).print(output.failure_table(failed))
        print(f"The same command tries them again; {cfg.out}.partial keeps the other answers.")
    return 1 if failed else 0


def _settings(cfg: DictConfig, retriever: Retriever) -> dict[str, Any]:
    """Returns what determines the answers beside the videos and sentences."""
    from vmr_zoo.runs import directory

    settings: dict[str, Any] = {"window": cfg.window}
    files: Mapping[str, Any] = {"narrations": cfg.narrations}
    if cfg.run is None:
        chosen = {key: value for key, value in cfg.zero_shot.items() if key != "retriever"}
        settings["zero_shot"] = {**chosen, "encoders": retriever.features.manifest()}
    else:
        settings["encoders"] = retriever.features.video.encoding()  # weights may be given here
        files = {"run": Path(cfg.run) / directory.WEIGHTS, **files}
    for name, path in files.items():
        if path is not None:
            settings[name] = sha256_of(Path(path))
    return settings
