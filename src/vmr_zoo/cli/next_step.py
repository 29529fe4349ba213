"""The last line of a verb: a command for what comes next, with the data that were typed."""

from __future__ import annotations

import shlex

_DATA = (
    *("data", "train=", "selection=", "test=", "features", "paths.", "hydra.searchpath="),
    *("max_query_tokens", "normalise_features", "variant"),
)


def next_command(verb: str, *more: str) -> str:
    """Returns "Next: vmr VERB …" with the overrides of the current job that choose data and features.

    Args:
        verb: what comes next.
        more: further arguments.
    """
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides if HydraConfig.initialized() else None
    given = [] if overrides is None else [*overrides.hydra, *overrides.task]
    typed = [text for text in given if text.lstrip("+~").startswith(_DATA)]
    return f"Next: vmr {verb} {' '.join(map(shlex.quote, (*typed, *more)))}".rstrip()
