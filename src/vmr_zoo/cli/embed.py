"""`vmr embed`: computes the text features of sentences and narrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vmr_zoo.cli.next_step import next_command
from vmr_zoo.engine.embedding import embed
from vmr_zoo.errors import abbreviate

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    """Runs the verb on the configuration composed from `conf/embed.yaml`; returns 1 if a sentence failed."""
    console = Console()
    failed = embed(cfg, console)
    if failed:
        console.print(
            f"{len(failed):,} sentences have no word that the encoder knows: {abbreviate(failed)}",
            soft_wrap=True,
        )
    elif cfg.get("data"):
        console.print(Text(next_command("train", "method=NAME")), soft_wrap=True)
    elif cfg.get("out"):
        read = ("data=NAME", "features/query=clip_text", f"features.query.source.store.folder={cfg.out}")
        console.print(Text(next_command("train", "method=NAME", *read)), soft_wrap=True)
    return 1 if failed else 0
