"""Narration by a server that speaks OpenAI's chat API: vLLM, SGLang, Ollama, or a commercial one.

The server runs the model. This process decodes the videos and sends the frames as pictures, with many
requests under way at once. The frames go to the server that `base_url` names and to no other.
"""

from __future__ import annotations

import base64
import io
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import PurePath
from typing import Any

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.narrators.chat_server import ChatServer, ServerError
from vmr_zoo.narrators.segments import Segment, SegmentNarrator, draw
from vmr_zoo.utils.arrays import Array

FORMATS = ("jpeg", "png")

_MOST_CHARACTERS = 50_000
"""Length of an answer; longer ones are refused."""
_OURS = ("model", "messages", "stream", "n")
"""Fields of a request that `extra` cannot change."""


@dataclass(eq=False)
class ServerNarrator(SegmentNarrator):
    """Prompts the model of a server with every segment of a video.

    A video on which the server fails for good is listed and tried again by the next run.

    Attributes:
        model: the name under which the server offers the model.
        base_url: see `ChatServer`.
        key_variable: see `ChatServer`.
        concurrency: requests under way at once.
        timeout: see `ChatServer`.
        retries: see `ChatServer`.
        image_format: "jpeg" or "png".
        image_quality: quality of JPEG, 1 to 95.
        extra: further fields of a request, such as `top_p`; null removes a field.

    Raises:
        VmrError: for settings that contradict each other.
    """

    model: str
    base_url: str
    key_variable: str | None = None
    concurrency: int = 16
    timeout: float = 300.0
    retries: int = 6
    image_format: str = "jpeg"
    image_quality: int = 90
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts:
            raise VmrError("narrator=server needs narrator.prompt, or narrator/prompt=tea.")
        if self.image_format not in FORMATS:
            raise unknown("narrator.image_format", self.image_format, FORMATS)
        if self.concurrency < 1 or self.timeout <= 0 or self.retries < 0 or not 1 <= self.image_quality <= 95:
            raise VmrError(
                "Expected narrator.concurrency of at least 1, timeout above 0, retries of at least 0 and "
                f"image_quality from 1 to 95; found {self.concurrency}, {self.timeout}, {self.retries}, "
                f"{self.image_quality}."
            )
        if clash := sorted({*self.extra} & {*_OURS}):
            raise VmrError(f"narrator.extra cannot set {', '.join(clash)}. Leave it out.")
        self._server = ChatServer(
            self.base_url, self.key_variable, self.timeout, self.retries, self.concurrency
        )

    @property
    def at_once(self) -> int:
        """The number of requests under way at once."""
        return self.concurrency

    def answers(self, segments: Iterator[Segment]) -> Generator[tuple[Segment, str | VmrError]]:
        """Sends segments, many at once, and yields the answers in order.

        Raises:
            VmrError: if the server would refuse every request, or another model answers.
        """
        sent: deque[tuple[Segment, AsyncResult[str | VmrError]]] = deque()
        # The threads of this pool do not keep the process alive while a server does not answer.
        with ThreadPool(self.concurrency) as pool:
            for segment in chain(segments, [None]):
                if segment is not None:
                    sent.append((segment, pool.apply_async(self._answer, (segment,))))
                while sent and (segment is None or len(sent) >= 2 * self.concurrency):
                    first, answer = sent.popleft()
                    yield first, answer.get()

    def _answer(self, segment: Segment) -> str | VmrError:
        try:
            return self._read(self._server.post("chat/completions", self.request(segment)))
        except ServerError as error:
            return error

    def request(self, segment: Segment) -> dict[str, Any]:
        """Returns the request about a segment: its frames, with their times if `timed`, then the prompt."""
        content: list[dict[str, Any]] = []
        for time, frame in zip(self.frame_times(segment), segment.frames, strict=True):
            if self.timed:
                content.append({"type": "text", "text": f"<{time:.1f} seconds>"})
            content.append({"type": "image_url", "image_url": {"url": self._data_url(frame)}})
        content.append({"type": "text", "text": self.prompt_for(segment.video_id, segment.number)})
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature or 0,
            "stream": False,
        }
        if self.temperature is not None:
            fields["seed"] = draw("words", self.seed, segment.video_id, segment.number) >> 32
        return {key: value for key, value in {**fields, **self.extra}.items() if value is not None}

    def _data_url(self, frame: Array) -> str:
        from PIL import Image

        file = io.BytesIO()
        options = {"quality": self.image_quality} if self.image_format == "jpeg" else {}
        Image.fromarray(frame).save(file, self.image_format, **options)
        return f"data:image/{self.image_format};base64,{base64.b64encode(file.getvalue()).decode()}"

    def _read(self, reply: Any) -> str:
        """Returns the model's answer in a reply.

        Raises:
            ServerError: if the reply holds none.
            VmrError: if another model answered.
        """
        public = self._server.public
        try:
            model, answer = reply["model"], reply["choices"][0]["message"]["content"] or ""
        except (TypeError, KeyError, IndexError):
            raise ServerError(public(f"Expected a model and its answer, found {reply!s:.200}")) from None
        if model != self.model:
            raise VmrError(
                f"The server answers as the model {public(str(model), 100)!r}, expected narrator.model="
                f"{self.model}. Serve that model, or set the name of the other one if it is the one you want."
            )
        if not isinstance(answer, str) or len(answer) > _MOST_CHARACTERS:
            raise ServerError(
                f"Expected a text of at most {_MOST_CHARACTERS} characters as the answer, found "
                f"{type(answer).__name__} of {len(str(answer))}."
            )
        return self._server.without_key(answer)

    @cached_property
    def _listed(self) -> dict[str, Any]:
        """What the server says about the model in its list of models."""
        public = self._server.public
        reply = self._server.get("models")
        entries = reply.get("data") if isinstance(reply, dict) else None
        listed = {
            str(entry["id"]): entry
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and "id" in entry
        }
        if not listed:
            raise VmrError(public(f"Expected models at {self.base_url}/models, found {reply!s:.200}"))
        if self.model not in listed:
            raise unknown(f"narrator.model of {self.base_url}:", self.model, map(public, listed))
        return listed[self.model]

    def manifest(self) -> dict[str, Any]:
        """Returns the model, what the server says about it, and how it is prompted, but not the address."""
        about = {key: self._listed.get(key) for key in ("owned_by", "root")}
        if isinstance(about["root"], str) and about["root"].startswith("/"):
            about["root"] = PurePath(about["root"]).name  # a path says something about the server's machine
        return {
            "model": self.model,
            "revision": None,
            **super().manifest(),
            "server": {
                key: self._server.public(str(value)) for key, value in about.items() if value is not None
            },
            "image_format": self.image_format,
            "image_quality": self.image_quality if self.image_format == "jpeg" else None,
            "extra": dict(self.extra),
        }
