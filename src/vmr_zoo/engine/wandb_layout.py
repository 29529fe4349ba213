"""Where the parts of a run are on Weights & Biases; writers and readers import it, so it imports little."""

from __future__ import annotations

import os

from vmr_zoo.runs.directory import ANNOTATIONS, CONFIG, ENVIRONMENT, MANIFEST, METRICS, PREDICTIONS

FINAL = "final"
"""Prefix of the test results, which separates them from the last values of the curves."""

SPLITS = "splits"
"""Key of a run's configuration that lists the splits in order."""

UPLOADED = "files"
"""Key of a run's configuration: the SHA-256 of each file of the artifact."""

FILES = (CONFIG, METRICS, PREDICTIONS, MANIFEST, ANNOTATIONS, ENVIRONMENT, "metrics.csv")
"""What the artifact of a run holds, as far as the run has it."""

ARTIFACT_TYPE = "results"


def artifact_name(run_id: str) -> str:
    """Returns the name of the artifact with the files of a run."""
    return f"run-{run_id}-results"


def wandb_offline() -> bool:
    """Returns whether wandb must stay offline: its settings say so, or no API key is found."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
        return False  # it logs nothing at all
    return not wandb.login(prompt=False, verify=False)
