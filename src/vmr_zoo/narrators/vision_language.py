"""Narration by an image or video language model out of `transformers`.

TEA asks an image model about one frame a second (section 3.2, Eq. 1 and 2), LMR a video model about each clip
(section III-B). Both are the same work: cut a video into stretches of equal length, show the model one frame
or several of each, and keep the answer with its times. Model code always comes out of `transformers`
(`trust_remote_code` is off) and weights out of safetensors, so that a model is data and never runs anything.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.narrations import Narration
from vmr_zoo.data.text.cache import Array
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.narrators.base import Narrated, Narrator
from vmr_zoo.video.decode import VideoError, sample

DTYPES = ("float32", "float16", "bfloat16")

_PROMPT = "{prompt}"
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What a model consists of: settings, weights, tokenizer, chat template. No pickled weights, no code."""


@dataclass(frozen=True, slots=True)
class Look:
    """One stretch of a video, as the model sees it.

    Attributes:
        video_id: the video.
        number: which of the video's stretches, from 0.
        start: of the narration, seconds.
        end: of the narration, seconds.
        frames: (H, W, 3) uint8 each, RGB.
    """

    video_id: str
    number: int
    start: float
    end: float
    frames: list[Array]


@dataclass(slots=True)
class _Telling:
    """A video that is being narrated: what was seen of it and what was said so far."""

    video_id: str
    looks: int = 0
    said: list[Narration] = field(default_factory=list)
    empty: int = 0
    error: VideoError | None = None
    watched: bool = False

    @property
    def done(self) -> bool:
        return self.watched and (self.error is not None or len(self.said) + self.empty == self.looks)

    def result(self) -> Narrated:
        if self.error is not None:
            return Narrated(self.video_id, error=self.error)
        return Narrated(self.video_id, tuple(self.said), self.empty)


class ModelNarrator(Narrator):
    """Asks a model about every stretch of a video.

    Decoding is greedy unless `temperature` says otherwise, and batches are padded on the left, so in exact
    arithmetic an answer does not depend on the batch that it was made in. In float16 or bfloat16 a near tie
    between two words may fall differently in another batch.
    """

    def __init__(
        self,
        model: str,
        seconds: float,
        frames: int | None,
        prompt: str | Sequence[str] | None,
        template: str | None,
        max_new_tokens: int,
        revision: str | None = None,
        num_beams: int = 1,
        temperature: float | None = None,
        seed: int = 0,
        dtype: str = "float16",
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        """Stores the settings; the model is loaded when the first answer is wanted.

        Args:
            model: a name on the Hugging Face hub, or a folder with such a model.
            seconds: length of a stretch.
            frames: how many frames of a stretch a video model sees, evenly spaced; None: an image model sees
                the one in the middle, and the narration starts and ends at its time.
            prompt: what the model is asked; of several, each stretch gets one drawn by seed, video id and
                number of the stretch; None for a captioner, which is asked nothing.
            template: the text around the prompt, with the model's mark for the picture, see
                `conf/narrator/llava.yaml`; None: the model's own chat template.
            max_new_tokens: longest answer.
            revision: branch, tag or commit on the hub; None: the newest. The manifest says which it was.
            num_beams: beams of the search; 1 is greedy.
            temperature: None: never draw words. Else words are drawn, seeded per stretch, and stretches are
                asked about one at a time, so that an answer does not depend on its neighbours.
            seed: of the choice of prompts and, with a temperature, of words.
            dtype: of weights and activations: "float32", "float16" or "bfloat16".
            device: such as "cuda" or "cpu"; None: a GPU if there is one.
            batch_size: stretches per forward pass.

        Raises:
            VmrError: for settings that contradict each other.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        if seconds <= 0 or (frames is not None and frames < 1) or batch_size < 1 or max_new_tokens < 1:
            raise VmrError(
                "Expected narrator.seconds above 0 and narrator.frames, batch_size and max_new_tokens of at "
                f"least 1; found {seconds}, {frames}, {batch_size}, {max_new_tokens}."
            )
        if dtype not in DTYPES:
            raise unknown("narrator.dtype", dtype, DTYPES)
        if template is not None and (_PROMPT not in template or not prompts):
            raise VmrError(
                f"Expected narrator.template to hold {_PROMPT} and narrator.prompt to say what goes there; "
                f"found template {template!r}, prompt {prompt!r}. A captioner takes neither: set both null."
            )
        if temperature is not None and temperature <= 0:
            raise VmrError(
                f"Expected narrator.temperature above 0, found {temperature}. Null is greedy decoding."
            )
        self.model = model
        self.wanted_revision = revision
        self.seconds = float(seconds)
        self.frames = frames
        self.prompts = prompts
        self.template = template
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        self.temperature = temperature
        self.seed = seed
        self.dtype = dtype
        self.device = device
        self.batch_size = batch_size if temperature is None else 1

    # --- narrating

    def stream(self, videos: Iterable[tuple[str, Path]]) -> Iterator[Narrated]:
        """Narrates videos in batches of stretches, which may stem from several videos."""
        waiting: deque[_Telling] = deque()
        batch: list[tuple[_Telling, Look]] = []
        for video_id, path in videos:
            telling = _Telling(video_id)
            waiting.append(telling)
            try:
                for look in self.looks(video_id, path):
                    telling.looks += 1
                    batch.append((telling, look))
                    if len(batch) == self.batch_size:
                        self._answer(batch)
                        batch = []
            except VideoError as error:
                telling.error = error
                batch = [entry for entry in batch if entry[0] is not telling]
            telling.watched = True
            while waiting and waiting[0].done:
                yield waiting.popleft().result()
        self._answer(batch)
        for telling in waiting:
            yield telling.result()

    def looks(self, video_id: str, path: Path) -> Iterator[Look]:
        """Decodes a video stretch by stretch.

        Frames are spread evenly over a stretch and taken by presentation time. A last stretch that is cut off
        by the end of the video repeats its last frame, and its narration ends where its frames do.

        Args:
            video_id: the video.
            path: its file.

        Yields:
            Stretches in order of time.

        Raises:
            VideoError: if the file holds no usable video, at the start or later.
        """
        count = self.frames or 1
        step = self.seconds / count
        number, frames = 0, list[Array]()
        for frame in sample(path, step):
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == count:
                yield self._look(video_id, number, frames, count)
                number, frames = number + 1, []
        if frames:
            yield self._look(video_id, number, frames, count)

    def _look(self, video_id: str, number: int, frames: list[Array], count: int) -> Look:
        if self.frames is None:
            time = (number + 0.5) * self.seconds
            return Look(video_id, number, time, time, frames)
        start = number * self.seconds
        end = start + len(frames) / count * self.seconds
        return Look(video_id, number, start, end, frames + frames[-1:] * (count - len(frames)))

    def _answer(self, batch: Sequence[tuple[_Telling, Look]]) -> None:
        """Asks about a batch and hands each answer to its video."""
        texts = self.tell([look for _, look in batch]) if batch else []
        for (telling, look), text in zip(batch, texts, strict=True):
            if text:
                telling.said.append(Narration(look.video_id, look.start, look.end, text))
            else:
                telling.empty += 1

    def asked(self, video_id: str, number: int) -> str | None:
        """Returns the prompt for one stretch, decided by seed, video id and number; None for a captioner."""
        if not self.prompts:
            return None
        return self.prompts[_draw("prompt", self.seed, video_id, number) % len(self.prompts)]

    def tell(self, looks: Sequence[Look]) -> list[str]:
        """Asks the model.

        Args:
            looks: N >= 1 stretches with equally many frames.

        Returns:
            N answers on one line each, without the prompt; "" where there was none.

        Raises:
            VmrError: if the model cannot be loaded or the device's memory does not suffice.
        """
        import torch

        processor, model = self._loaded
        given: dict[str, Any] = {"return_tensors": "pt"}
        if self.frames is None:
            given["images"] = [_picture(look.frames[0]) for look in looks]
        else:
            # The frames were chosen here; some processors would thin them out again.
            given |= {"videos": [np.stack(look.frames) for look in looks], "do_sample_frames": False}
        if self.prompts:
            texts = [self._text(self.asked(look.video_id, look.number) or "") for look in looks]
            start = processor.tokenizer.bos_token
            # A chat template may have written the mark of the beginning already.
            given |= {"text": texts, "padding": True}
            given["add_special_tokens"] = not (start and texts[0].startswith(start))
        inputs = processor(**given).to(model.device, model.dtype)
        drawing: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self.temperature is not None:
            drawing = {"do_sample": True, "temperature": self.temperature, "top_p": None, "top_k": None}
            torch.manual_seed(_draw("words", self.seed, looks[0].video_id, looks[0].number))
        try:
            with torch.inference_mode():
                out = model.generate(
                    **inputs, max_new_tokens=self.max_new_tokens, num_beams=self.num_beams, **drawing
                )
        except torch.cuda.OutOfMemoryError as error:
            raise VmrError(
                f"{self.model} does not fit into the memory of {model.device} with narrator.batch_size="
                f"{self.batch_size} and narrator.dtype={self.dtype}: make the batch smaller. Finished videos "
                "are kept."
            ) from error
        # Decoder-only models give the prompt back in front of the answer, encoder-decoder models do not.
        ids = inputs.get("input_ids")
        if ids is not None and out.shape[1] >= ids.shape[1] and torch.equal(out[:, : ids.shape[1]], ids):
            out = out[:, ids.shape[1] :]
        answers = processor.tokenizer.batch_decode(out, skip_special_tokens=True)
        return [" ".join(answer.split()) for answer in answers]

    def _text(self, prompt: str) -> str:
        """Puts a prompt into the template."""
        if self.template is not None:
            return self.template.replace(_PROMPT, prompt)
        content = [{"type": "image" if self.frames is None else "video"}, {"type": "text", "text": prompt}]
        processor: Any = self._loaded[0]
        if not processor.chat_template:
            raise VmrError(
                f"{self.model} has no chat template. Set narrator.template as its model card says, for "
                f"example 'USER: <image>\\n{_PROMPT} ASSISTANT:'."
            )
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text

    # --- the model

    @property
    def _is_local(self) -> bool:
        return Path(self.model).expanduser().is_dir()

    @cached_property
    def _folder(self) -> Path:
        """Finds the model's files, downloading them first if it is not a folder."""
        if self._is_local:
            if self.wanted_revision is not None:
                raise VmrError(
                    f"narrator.model={self.model} is a folder and has no revisions, found narrator.revision="
                    f"{self.wanted_revision}. Leave that out: the manifest records a hash of the files."
                )
            return Path(self.model).expanduser()
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError

        try:
            return Path(
                huggingface_hub.snapshot_download(
                    self.model,
                    revision=self.wanted_revision,
                    allow_patterns=list(_FILES),
                    ignore_patterns=["*/*"],  # other formats of the same weights lie in folders
                )
            )
        # Network errors are OSErrors, refusals of the hub too.
        except (OSError, HFValidationError, ValueError) as error:
            raise VmrError(
                f"narrator.model={self.model} is neither a folder nor a model that could be fetched from the "
                f"Hugging Face hub ({_first_line(error)}). Without a network, copy the model's folder and "
                "give its path."
            ) from error

    @cached_property
    def revision(self) -> str:
        """The commit on the hub, or for a folder the SHA-256 of its files."""
        if not self._is_local:
            return self._folder.name  # …/snapshots/COMMIT
        hashed = hashlib.sha256()
        for path in sorted(path for pattern in _FILES for path in self._folder.glob(pattern)):
            with path.open("rb") as file:
                hashed.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return hashed.hexdigest()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Loads processor and model."""
        # Imported here: it takes seconds, and reading a configuration needs none of it.
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = AutoProcessor.from_pretrained(self._folder, **local)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self._folder, dtype=getattr(torch, self.dtype), use_safetensors=True, **local
            )
        except (OSError, ValueError, KeyError) as error:
            raise VmrError(
                f"Expected an image or video language model of transformers, weights as safetensors, in "
                f"{self._folder}; loading it failed: {_first_line(error)}"
            ) from error
        if self.frames is not None and getattr(processor, "video_processor", None) is None:
            raise VmrError(
                f"{self.model} ({type(model).__name__}) takes images, not videos. Set narrator.frames=null "
                "or choose a video model."
            )
        # The answer is appended to the prompt, so the padding has to be in front of it.
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        try:
            return processor, model.to(device).eval()
        except (RuntimeError, AssertionError) as error:
            raise VmrError(
                f"{self.model} cannot be put on narrator.device={device}: {_first_line(error)} Choose "
                "another device, or a smaller model or narrator.dtype."
            ) from error

    def manifest(self) -> dict[str, Any]:
        """Returns model, revision, questions, sampling and decoding; device and batch size are left out."""
        return {
            "model": self._folder.resolve().name if self._is_local else self.model,
            "revision": self.revision,
            "prompt": self.prompts[0] if len(self.prompts) == 1 else self.prompts or None,
            "template": self.template,
            "sampling_rate": 1 / self.seconds,
            "frames": self.frames,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "temperature": self.temperature,
            "dtype": self.dtype,
        }


def _draw(purpose: str, seed: int, video_id: str, number: int) -> int:
    """Returns 63 bits that depend on nothing else, so that neither order nor shards matter."""
    hashed = hashlib.sha256(json.dumps([purpose, seed, video_id, number]).encode())
    return int.from_bytes(hashed.digest()[:8], "big") >> 1


def _picture(frame: Array) -> Any:
    """Returns a frame as a Pillow image, whose axes no processor has to guess."""
    from PIL import Image

    return Image.fromarray(frame)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
