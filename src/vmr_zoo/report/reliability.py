"""Reliability diagrams: how often the best window is right, against its score; on the page or as a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.calibration import BINS, RIGHT_FROM, Bin, reliability
from vmr_zoo.report.charts import COLOURS, STYLE, LineStyle, Palette, plain_label, split_panels, to_svg
from vmr_zoo.report.derived import Confidence, confidences
from vmr_zoo.report.elsewhere import has_scores
from vmr_zoo.report.leaderboard import Leaderboard
from vmr_zoo.report.query_scores import RowsBySplit, read_predictions, reading
from vmr_zoo.report.runs import Run
from vmr_zoo.utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PRINTED = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The colours of a picture, as those of the page after Okabe and Ito."""

LEAST = 10
"""Queries of a bin that is drawn. The share of fewer jumps; the error (ECE) counts all bins."""

TITLE = (
    f"Reliability: how often the first moment has IoU >= {RIGHT_FROM:g}, against its score; "
    f"those of {BINS} bins with {LEAST} or more queries"
)

_ROWS = 7
"""Rows of a picture: as many as there are colours."""


class Reliability:
    """Collects the scores of the first windows of the runs of a table.

    Attributes:
        board: the table.
    """

    def __init__(self, board: Leaderboard) -> None:
        self.board = board
        self._found: dict[int, list[Mapping[str, Confidence]]] = defaultdict(list)

    def add(self, number: int, run: Run, rows: RowsBySplit) -> None:
        """Adds a run, unless its scores are outside [0, 1] or state an order alone: no probabilities.

        Args:
            number: of its row in the table.
            run: the run.
            rows: its predictions by split.
        """
        found = confidences(rows) if has_scores(run) else {}
        if found and all(one.in_range for one in found.values()):
            self._found[number].append(found)

    def bins(self, number: int, split: str) -> list[Bin]:
        """Returns the bins of one row, all seeds together; empty without probabilities."""
        parts = [found[split] for found in self._found.get(number, ()) if split in found]
        if not parts:
            return []
        scores = np.concatenate([one.scores for one in parts])
        return reliability(scores, np.concatenate([one.right for one in parts]))

    def charts(self, styles: Mapping[int, LineStyle]) -> list[dict[str, Any]]:
        """Draws the chart of the page.

        Args:
            styles: of the rows to draw, by number.

        Returns:
            `title` and `svg`; empty if no row has probabilities.
        """
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(STYLE):  # type: ignore[arg-type]
            figure = Figure(figsize=(11, 2.9 * self._lines), layout="constrained")
            drawn = self._draw(figure, styles, COLOURS)
            return [{"title": TITLE, "svg": to_svg(figure, TITLE)}] if drawn else []

    def save(self, file: Path) -> None:
        """Draws the first rows of the table into a picture.

        Args:
            file: .png, .svg or .pdf.

        Raises:
            VmrError: if no row has probabilities.
        """
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        drawn = [number for number in range(len(self.board.rows)) if number in self._found][:_ROWS]
        figure = Figure(figsize=(11, 2.9 * self._lines), layout="constrained")
        styles = dict(
            zip(drawn, Palette().styles([self.board.rows[number] for number in drawn]), strict=True)
        )
        with rc_context({"svg.hashsalt": "vmr"}):
            if not self._draw(figure, styles, _PRINTED):
                raise VmrError(
                    "No reliability diagram: no row has scores in [0, 1] that are its model's own. "
                    "columns=[ECE-iso] measures the calibration of any scores, after isotonic regression."
                )
            labels = [plain_label(self.board.rows[number].label) for number in drawn]
            figure.legend(figure.axes[0].get_lines()[1:], labels, loc="outside lower center", ncols=4)
            figure.suptitle(TITLE, fontsize=10)
            with atomic_path(file) as temporary:
                figure.savefig(temporary, format=file.suffix.removeprefix("."), dpi=150)

    @property
    def _splits(self) -> list[str]:
        return self.board.test_splits or self.board.splits

    @property
    def _lines(self) -> int:
        return -(-len(self._splits) // 3)

    def _draw(self, figure: Figure, styles: Mapping[int, LineStyle], colours: Sequence[str]) -> bool:
        """Draws a panel per split; the area of a marker is the share of the queries in its bin."""
        drawn = False
        axes = split_panels(figure, self._splits, sharex=True)
        for axis, split in zip(axes, self._splits, strict=True):
            axis.plot([0, 1], [0, 100], color="grey", linewidth=0.8, linestyle="--")
            for number, style in styles.items():
                every = self.bins(number, split)
                total = sum(one.queries for one in every)
                bins = [one for one in every if one.queries >= LEAST]
                drawn = drawn or bool(bins)
                colour = colours[style.series]
                look = {**style.line, "color": colour, "markerfacecolor": (colour, style.fill)}
                x, y = [one.score for one in bins], [100 * one.right for one in bins]
                axis.plot(x, y, linewidth=0.8, markersize=3, **look)
                area = [160 * one.queries / total for one in bins]
                axis.scatter(x, y, s=area, color=colour, alpha=0.5, linewidths=0)
            axis.set_xlabel("score")
        axes[0].set_ylabel(f"IoU >= {RIGHT_FROM:g}, per cent")
        return drawn


def save_reliability(boards: Sequence[Leaderboard], file: Path) -> list[Path]:
    """Writes one picture per table: FILE, then FILE with -2, -3 and so on before its suffix.

    Args:
        boards: the tables.
        file: .png, .svg or .pdf.

    Returns:
        The written files.

    Raises:
        VmrError: without predictions, or if no row of a table has probabilities.
    """
    written = []
    for place, board in enumerate(boards, start=1):
        diagram = Reliability(board)
        for number, row in enumerate(board.rows):
            for run in row.runs:
                with reading(run):
                    rows = read_predictions(run.predictions)
                diagram.add(number, run, rows)
        target = file if place == 1 else file.with_stem(f"{file.stem}-{place}")
        diagram.save(target)
        written.append(target)
    return written
