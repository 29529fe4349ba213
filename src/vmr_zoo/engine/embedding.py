"""Computes text features once: into the cache that training reads, or into files.

All sentences go through the cache, some thousand at a time, so an interrupted call continues where it
stopped. Files have the layout of the Moment-DETR family, which `features/query=clip_text` reads:
`qid{qid}.npz` with `last_hidden_state` (L, D), including start and end token, and `pooler_output` (D,).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console

from vmr_zoo.config.compose import build
from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.data.annotations.validation import safe_id
from vmr_zoo.data.features.queries import EncodedQueries
from vmr_zoo.data.narrations import read_narrations
from vmr_zoo.data.text.encoder import EmbeddingWork, TextEncoder
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.utils.arrays import half
from vmr_zoo.utils.console import progress
from vmr_zoo.utils.files import atomic_path, json_objects, write_json

if TYPE_CHECKING:
    from omegaconf import DictConfig

IDS = ("qid", "query_id", "id")
TEXTS = ("query", "sentence", "text")
_AT_ONCE = 512
"""Sentences whose features are in memory at a time while files are written."""


class Sentence(NamedTuple):
    """One sentence of a file of queries.

    Attributes:
        query_id: the name of its feature file.
        text: the sentence.
    """

    query_id: str
    text: str


def embed(cfg: DictConfig, console: Console) -> list[str]:
    """Embeds the sentences of a data set, of a file of queries, or of a narration file.

    Args:
        cfg: composed from `conf/embed.yaml`; reads `data`, `features`, `text_encoder`, `queries`,
            `narrations`, `out`.
        console: prints what was computed.

    Returns:
        The sentences that the encoder cannot embed.

    Raises:
        VmrError: if there is nothing to embed, or something cannot be read or written.
    """
    if not (cfg.get("data") or cfg.get("queries") or cfg.get("narrations")):
        raise VmrError(
            "vmr embed needs sentences: data=NAME (such as data=shapes), queries=FILE (.csv, .jsonl or .txt) "
            "or narrations=FILE.jsonl."
        )
    if cfg.get("out") and not cfg.get("queries"):
        raise VmrError("out=FOLDER is for the features of queries=FILE; data and narrations are cached.")
    encoder = build(cfg.text_encoder) if cfg.get("text_encoder") else None
    failed: list[str] = []
    if cfg.get("data"):
        failed += _embed_data_set(cfg, encoder, console)
    if cfg.get("queries") or cfg.get("narrations"):
        if encoder is None:
            raise VmrError(
                "Sentences of a file need text_encoder=NAME: minilm, clip_vit_b32, sentence, glove, llama."
            )
        if cfg.get("queries"):
            failed += _embed_queries(Path(cfg.queries).expanduser(), cfg.get("out"), encoder, console)
        if cfg.get("narrations"):
            by_video, _ = read_narrations(cfg.narrations)
            texts = [narration.text for narrations in by_video.values() for narration in narrations]
            failed += _embed_texts(encoder, texts, "narrations", console)
    return failed


def _embed_data_set(cfg: DictConfig, encoder: TextEncoder | None, console: Console) -> list[str]:
    """Embeds the sentences and narrations of a protocol with `encoder`, else with those of the features."""
    name = cfg.features.name
    protocol: Protocol = build(cfg.data.protocol)
    texts = [query.text for query in protocol.queries]
    if encoder is None:
        failed = _embed_sentences(cfg, texts, console)
    else:
        failed = _embed_texts(encoder, texts, "sentences", console)
    node = cfg.features.get("narration")
    if not node:
        return failed
    if encoder is not None:
        if "encoder" not in node:
            console.print(f"narrations: features={name} embeds its own; skipped.")
            return failed
        node.encoder = cfg.text_encoder
    narration = build(node)
    narration.prepare(protocol)
    if isinstance(used := getattr(narration, "encoder", None), TextEncoder):
        _print_work("narrations", used.work, "the others, if any, were in the cache", used, console)
    return failed


def _embed_sentences(cfg: DictConfig, texts: list[str], console: Console) -> list[str]:
    """Embeds sentences with each encoder of the features, that of the words for the narrations included.

    Raises:
        VmrError: if the features read all of them from files.
    """
    nodes = {"sentences": cfg.features.query, "words for narrations": cfg.features.get("narration_query")}
    sources = {what: build(node) for what, node in nodes.items() if node}
    encoders = {what: one.encoder for what, one in sources.items() if isinstance(one, EncodedQueries)}
    if not encoders:
        raise VmrError(
            f"features={cfg.features.name} reads sentence features from files: there is nothing to compute. "
            "Choose an encoder (text_encoder=clip_vit_b32) or features that compute (features/query=clip)."
        )
    for what in sources.keys() - encoders.keys():
        console.print(f"{what}: features={cfg.features.name} reads them from files; skipped.")
    failed = [bad for what, one in encoders.items() for bad in _embed_texts(one, texts, what, console)]
    return list(dict.fromkeys(failed))


def _embed_texts(encoder: TextEncoder, texts: Iterable[str], what: str, console: Console) -> list[str]:
    """Embeds sentences and prints their number and the speed.

    Returns:
        The sentences without a token.
    """
    distinct = list(dict.fromkeys(texts))
    good, bad = _split_by_tokens(encoder, distinct)
    before = replace(encoder.work)
    encoder.embed(good)
    done = EmbeddingWork(encoder.work.computed - before.computed, encoder.work.seconds - before.seconds)
    cached = len(good) - done.computed
    _print_work(what, done, f"{cached:,} of {len(good):,} were in the cache", encoder, console)
    return bad


def _split_by_tokens(encoder: TextEncoder, texts: list[str]) -> tuple[list[str], list[str]]:
    """Returns the sentences with tokens and those without."""
    split = encoder.tokenise(texts) if texts else []
    good = [text for text, tokens in zip(texts, split, strict=True) if len(tokens.ids)]
    return good, [text for text, tokens in zip(texts, split, strict=True) if not len(tokens.ids)]


def _print_work(what: str, work: EmbeddingWork, cached: str, encoder: TextEncoder, console: Console) -> None:
    """Prints one line about the computed sentences."""
    pace = f" in {work.seconds:.1f} s, {work.computed / work.seconds:,.0f} a second" if work.computed else ""
    console.print(f"{what} by {encoder.name}: {work.computed:,} computed{pace}; {cached}.", soft_wrap=True)


# --- files


def _embed_queries(file: Path, out: str | None, encoder: TextEncoder, console: Console) -> list[str]:
    """Embeds a file of sentences; with `out`, writes a feature file each."""
    rows = read_queries(file)
    bad = set(_embed_texts(encoder, [row.text for row in rows], "queries", console))
    if out:
        folder = Path(out).expanduser()
        good = [row for row in rows if row.text not in bad]
        write_features(folder, good, encoder)
        console.print(f"Wrote {len(good):,} files to {folder}.", soft_wrap=True)
    return [f"{row.query_id} '{row.text}'" for row in rows if row.text in bad]


def write_features(folder: Path, rows: list[Sentence], encoder: TextEncoder) -> None:
    """Writes features in the layout of the Moment-DETR family, float16, and a manifest.json beside them.

    Args:
        folder: the target folder of one encoder.
        rows: the sentences, each with at least one token.
        encoder: the text encoder.

    Raises:
        VmrError: if the folder holds features of another encoder, or cannot be written.
    """
    manifest = {**encoder.manifest(), "layout": "qid{qid}.npz: last_hidden_state, pooler_output"}
    beside = folder / "manifest.json"
    try:
        stored = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
    except (OSError, ValueError) as error:
        raise VmrError(f"{beside} cannot be read ({error}). Choose another out=.") from error
    if stored is None and folder.is_dir() and any(folder.glob("qid*.npz")):
        raise VmrError(f"{folder} holds features of unknown origin (no {beside.name}). Choose another out=.")
    if stored not in (None, manifest):
        raise VmrError(f"{folder} holds features of another encoder ({beside}). Choose another out=.")
    write_json(beside, manifest)
    starts = range(0, len(rows), _AT_ONCE)
    for start in progress(starts, "Writing"):
        part = rows[start : start + _AT_ONCE]
        texts = [row.text for row in part]
        for row, states, pooled in zip(part, encoder.states(texts), encoder.pooled(texts), strict=True):
            with atomic_path(folder / f"qid{row.query_id}.npz") as path:
                np.savez(
                    path,
                    last_hidden_state=half(states, f"token states of '{row.text}'"),
                    pooler_output=half(pooled, f"an embedding of '{row.text}'"),
                )


def read_queries(file: Path) -> list[Sentence]:
    """Reads sentences and their ids.

    Args:
        file: a .csv with a header or a .jsonl of objects, in which the id is `qid`, `query_id` or `id` and
            the sentence `query`, `sentence` or `text`; or a .txt with one sentence per line. Without ids,
            sentences are numbered from 0.

    Returns:
        The sentences in the order of the file; ids are unique and safe as file names.

    Raises:
        VmrError: for an invalid line, with its number.
    """
    readers: dict[str, Callable[[str, Path], Iterable[tuple[str, dict[str, Any]]]]] = {
        ".csv": _csv,
        ".jsonl": json_objects,
        ".txt": _txt,
    }
    if file.suffix not in readers:
        raise unknown("type of query file", file.suffix, readers)
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise VmrError(f"Expected sentences in UTF-8 at {file}: {error}.") from error
    rows: dict[str, str] = {}
    for number, (where, row) in enumerate(readers[file.suffix](content, file)):
        text = next((row[key] for key in TEXTS if row.get(key)), None)
        if not isinstance(text, str):
            raise VmrError(f"{where}: expected a sentence under {', '.join(TEXTS)}; found {sorted(row)}.")
        identifier = next((row[key] for key in IDS if row.get(key) is not None), number)
        query_id = safe_id(str(identifier) if type(identifier) is int else identifier, where)
        if query_id in rows:
            raise VmrError(f"{where}: the id '{query_id}' was used before. Each sentence needs its own.")
        rows[query_id] = text.strip()
    if not rows:
        raise VmrError(f"{file} holds no sentence.")
    return [Sentence(*row) for row in rows.items()]


def _csv(content: str, file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                raise VmrError(
                    f"{where}: expected {len(reader.fieldnames or ())} fields, found "
                    f"{'more' if None in row else 'fewer'}. Quote a sentence that contains a comma."
                )
            yield where, dict(row)
    except csv.Error as error:
        raise VmrError(f"{file}, line {reader.line_num}: not valid CSV ({error}).") from error


def _txt(content: str, file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield f"{file}, line {number}", {"text": line}
