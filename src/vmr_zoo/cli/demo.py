"""`vmr demo`: a local page that finds moments in videos."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from vmr_zoo.cli.predict import check_source, load_retriever
from vmr_zoo.errors import abbreviate, printable
from vmr_zoo.utils.browser import open_page

if TYPE_CHECKING:
    from vmr_zoo.engine.retriever import Retriever


def main(cfg: DictConfig) -> int:
    """Serves the page until Ctrl-C.

    Args:
        cfg: composed from `conf/demo.yaml`.

    Returns:
        0.

    Raises:
        VmrError: if no video is found, the port is taken, or a model cannot be loaded.
    """
    from vmr_zoo.demo.library import Library
    from vmr_zoo.demo.searcher import Searcher
    from vmr_zoo.demo.server import DemoServer

    check_source(cfg)
    with _sigterm_as_interrupt(), Library(cfg.videos, cfg.upload_mb * 10**6) as library:
        if library.outside:
            _say(f"Note: links that lead out of the folder are left out: {abbreviate(library.outside)}")
        # A port that is taken shows before the seconds that loading takes.
        with DemoServer(cfg.host, cfg.port) as server:
            searcher = Searcher(_retrievers(cfg), narrations=cfg.narrations, top_k=cfg.top_k)
            _say(f"Serving {len(library.videos)} videos at {server.address}. Ctrl-C ends it.")
            if not server.is_local:
                _say("Everybody who reaches this machine can open the page: there is no password.")
            if cfg.open:
                open_page(server.address)
            try:
                server.serve(library, searcher, _about(cfg, list(searcher.retrievers)))
            except KeyboardInterrupt:
                searcher.close()
    _say("Ended. Dropped files are deleted.")
    return 0


def _retrievers(cfg: DictConfig) -> dict[str, Retriever]:
    """Loads the models, by the name that the page shows."""
    found = {}
    for run in cfg.run if isinstance(cfg.run, ListConfig) else [cfg.run]:
        name = f"{cfg.zero_shot.name}, zero-shot" if run is None else str(run)
        _say(f"Loading {name} …")
        found[name] = load_retriever(cfg, run)
    return found


def _about(cfg: DictConfig, names: Sequence[str]) -> str:
    """Returns the sentence of the page about its models."""
    if cfg.run is None:
        return f"Searched by {cfg.zero_shot.name}, an image-text model, without any training."
    return f"Searched by {' and '.join(names)}."


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Ends the page at SIGTERM as at Ctrl-C, so dropped files are deleted."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    """Prints a line at once; names of files are no markup."""
    Console(soft_wrap=True, highlight=False).print(printable(text), markup=False)
