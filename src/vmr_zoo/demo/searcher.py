"""Answers the sentences of the page: loaded models, and the videos that they have encoded."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.text import one_line
from vmr_zoo.video.container import VideoError, check_file, open_video
from vmr_zoo.video.encoder import reporting
from vmr_zoo.video.picture import first_picture

if TYPE_CHECKING:
    from vmr_zoo.demo.library import Video
    from vmr_zoo.engine.retriever import EncodedVideo, Retriever

LONGEST_QUERY = 500
"""Characters of a sentence."""

_ENCODED = 64
"""Encoded videos kept in memory."""

Report = Callable[[dict[str, Any]], None]
"""Shows an event on the page; what it raises ends the search."""


class Searcher:
    """Searches videos with one or several retrievers, one search at a time."""

    def __init__(
        self, retrievers: Mapping[str, Retriever], *, narrations: str | Path | None = None, top_k: int = 5
    ) -> None:
        """Stores the parts.

        Args:
            retrievers: by the name that the page shows.
            narrations: a narration file, for methods that read narrations.
            top_k: moments per sentence.
        """
        self.retrievers = dict(retrievers)
        self.narrations = narrations
        self.top_k = top_k
        self._encoded: OrderedDict[tuple[str, Path, int], EncodedVideo] = OrderedDict()
        self._turn = threading.Lock()
        self._stopping = threading.Event()

    def search(self, video: Video, query: str, report: Report) -> dict[str, Any]:
        """Searches a video with every retriever.

        Args:
            video: the video.
            query: the sentence.
            report: gets `{"waiting": true}` while another search runs, and `{"run", "seconds", "of"}` while a
                video is encoded.

        Returns:
            JSON-able: `duration`, `offset` (when a player shows the first picture), `notes`, and `results`:
            of each retriever `moments` and `clip_scores`, or `error`.

        Raises:
            VmrError: if there is no sentence, or the video cannot be decoded.
        """
        query = one_line(query).strip()
        if not query:
            raise VmrError("Type a sentence to search for, such as: a person opens the door.")
        if len(query) > LONGEST_QUERY:
            raise VmrError(
                f"Expected a sentence of at most {LONGEST_QUERY} characters, found {len(query):,}."
            )
        with video.naming(), self._in_turn(report):
            return self._search(video, query, report)

    def close(self) -> None:
        """Ends a search that is running, and waits for its end."""
        self._stopping.set()
        self._turn.acquire(timeout=10)

    def _search(self, video: Video, query: str, report: Report) -> dict[str, Any]:
        results: list[dict[str, Any]] = []
        found: EncodedVideo | None = None
        for name in self.retrievers:
            try:
                found = self._encode(name, video, report)
                answer = found.answer([query], self.top_k)[0]
            except VideoError:
                raise  # with any other retriever, too
            except VmrError as error:
                results.append({"run": name, "error": video.named(error)})
                continue
            scores = answer.clip_scores
            results.append(
                {
                    "run": name,
                    "moments": [[moment.start, moment.end, moment.score] for moment in answer.moments],
                    "clip_scores": None if scores is None else scores.tolist(),
                }
            )
        if found is None:
            raise VmrError(" ".join(dict.fromkeys(result["error"] for result in results)))
        return {
            "duration": found.duration,
            "offset": first_picture(video.path),
            "notes": [f"{note.kind}: {note.text}" for note in found.notes],
            "results": results,
        }

    def _encode(self, name: str, video: Video, report: Report) -> EncodedVideo:
        """Encodes a video, unless this retriever has done so."""
        check_file(video.path)
        key = name, video.path, video.path.stat().st_mtime_ns
        if key not in self._encoded:
            length = _declared_length(video.path)

            def listen(seconds: float) -> None:
                if self._stopping.is_set():
                    raise VmrError("The page was closed.")
                report({"run": name, "seconds": seconds, "of": length})

            listen(0.0)
            with reporting(listen):
                self._encoded[key] = self.retrievers[name].encode(video.path, self.narrations)
            while len(self._encoded) > _ENCODED:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return self._encoded[key]

    @contextlib.contextmanager
    def _in_turn(self, report: Report) -> Iterator[None]:
        """Waits for the search that is running; methods and encoders are not made for several threads."""
        while not self._turn.acquire(timeout=1):
            report({"waiting": True})
        try:
            yield
        finally:
            self._turn.release()


def _declared_length(path: Path) -> float | None:
    """Returns the seconds that a file declares, for the progress alone; None: unknown."""
    with open_video(path) as opened:
        declared = opened.container.duration
    return None if declared is None else declared / av.time_base
