"""Updates the table of ood_shapes/README.md on who acts: do methods read more than the action?

python experiments/who_acts.py [RUNS …]      # with RUNS, prints their table and leaves the page as it is

For half of the sentences the video shows the action at another time, too: "the red square grows", and
something else grows later. A method that reads only the action has to guess there. The table has R1@0.5 on
the other sentences ("one time") and on these ("several times"), in per cent, mean over seeds.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from collect import HERE, update_own_page

from vmr_zoo.data.worlds.shapes.generate import annotate, scenes
from vmr_zoo.data.worlds.shapes.world import Scene, WorldSettings
from vmr_zoo.report.caveats import signs_of
from vmr_zoo.report.escape import markdown_table
from vmr_zoo.report.leaderboard import LEADING_METRIC
from vmr_zoo.report.query_scores import load_scores
from vmr_zoo.report.runs import Run, scan_runs, summarize_unfinished
from vmr_zoo.report.stored_scores import VIDEO
from vmr_zoo.spans import iou

STUDY = HERE / "ood_shapes"
SPLITS = ("iid", "ood_time")
Scores = Mapping[str, pd.Series]
GUESS = "a guess among the events"
TITLES = tuple(f"{split}, {which}" for split in SPLITS for which in ("one time", "several times"))


def chances() -> dict[str, pd.Series]:
    """Returns for every query of a split how likely a random event with the asked action answers it.

    0 for the few queries with "and then" whose moments are more than twice as long as their events: the table
    leaves them out.
    """
    world = WorldSettings(train_videos=1)  # test videos do not depend on it
    videos = {scene.video_id: scene for _, scene in scenes(world)}
    rows = annotate(world)
    return {
        split: pd.Series(
            {
                row["query_id"]: _chance(videos[row["video_id"]], row["clauses"][0]["action"], row["moments"])
                for row in rows[split]
            }
        )
        for split in SPLITS
    }


def _chance(scene: Scene, action: str, moments: Sequence[Sequence[float]]) -> float:
    events = torch.tensor([(event.start, event.end) for event in scene.events if event.action == action])
    return float((iou(events[:, None], torch.tensor(moments)).amax(1) >= 0.5).float().mean())


def mean_cells(
    folders: Sequence[Path], splits: Sequence[str], cells: Callable[[str, Scores], list[float]]
) -> dict[tuple[str, str], list[float]]:
    """Averages the cells of finished runs over seeds.

    Args:
        folders: where the runs are.
        splits: the splits whose scores `cells` needs.
        cells: makes the cells of a run from its name and `LEADING_METRIC` of its queries by split.

    Returns:
        The means by the row's name, with its marks, and its number of seeds.

    Raises:
        SystemExit: for a run on other data than shapes.
    """
    rows: dict[str, list[tuple[Run, list[float]]]] = defaultdict(list)
    for folder in folders:
        finished, unfinished = scan_runs(folder)
        if unfinished:
            print(summarize_unfinished(unfinished), file=sys.stderr)
        for run in finished:
            header = run.header
            if header["protocol"] != "shapes":
                raise SystemExit(f"Expected runs on shapes, found {header['protocol']} in {run.directory}.")
            _, loaded = load_scores(run, splits, [LEADING_METRIC])
            name = header["name"].replace("-paper", "")
            if header["features"] != "shapes":
                name += f", {header['features']}"
            scores = {split: loaded[split][LEADING_METRIC].droplevel(VIDEO) for split in splits}
            rows[name].append((run, cells(name, scores)))
    means = {}
    for name, found in rows.items():
        runs, seeds = zip(*found, strict=True)
        means[f"{name}{signs_of(runs)}", str(len(runs))] = np.mean(seeds, axis=0).tolist()
    return means


def table(folders: Sequence[Path]) -> str:
    """Returns a row per method, best first, and one for guessing among the events with the asked action."""
    guess = chances()

    def cells(name: str, scores: Scores) -> list[float]:
        if any(not own.index.isin(scores[split].index).all() for split, own in guess.items()):
            raise SystemExit(
                f"A run of {name} lacks sentences of today's test splits: train or test it again."
            )
        return [
            100 * scores[split][own.index[which]].mean()
            for split, own in guess.items()
            for which in (own == 1, own.between(0, 1, "neither"))
        ]

    means = mean_cells(folders, SPLITS, cells) | {(GUESS, ""): cells(GUESS, guess)}
    return best_first(TITLES, means)


def best_first(columns: Sequence[str], means: Mapping[tuple[str, str], Sequence[float]]) -> str:
    """Returns a table of `mean_cells`, ordered by the second column."""
    ordered = sorted(means.items(), key=lambda row: -row[1][1])
    rows = [(*row, *(f"{cell:.1f}" for cell in own)) for row, own in ordered]
    return markdown_table(("run", "n", *columns), rows)


def main(folders: Sequence[Path]) -> None:
    """Prints the table; without folders also updates the page."""
    shown = table(folders or [STUDY / "runs"])
    print(shown)
    if not folders:
        update_own_page(STUDY / "README.md", {"who acts": shown})


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
