"""The sweeper of searches.

Hydra accepts sweepers from the namespace `hydra_plugins` only, and imports this file in every command, so
`vmr_zoo.runs.search` does the work.
"""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Runs a search; `conf/hydra/sweeper/search.yaml` describes the settings."""

    def __init__(self, **settings: Any) -> None:
        """Accepts the settings, which `sweep` reads from the configuration."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the search; `arguments` are the overrides of the command line."""
        from vmr_zoo.runs.search import search

        assert self.config is not None
        search(self.config, arguments, self.validate_batch_is_legal, self._launch)

    def _launch(self, jobs: list[list[str]], first: int) -> None:
        assert self.launcher is not None
        for job in self.launcher.launch(jobs, initial_job_idx=first):
            _ = job.return_value  # raises what the launcher caught
