"""Narration by an image or video language model from `transformers`.

TEA prompts an image model with one frame per second (section 3.2, Eq. 1 and 2), LMR a video model with each
clip (section III-B). Both cut a video into segments of equal length, show one or several frames of each to
the model, and keep the answer with its times. Model code always comes from `transformers`
(`trust_remote_code` is off) and weights from safetensors: a model is data and never runs code.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.narrations import Narration
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.narrators.base import Narrated, Narrator
from vmr_zoo.utils.arrays import Array
from vmr_zoo.video.decode import Timeline, VideoError, remembered, sample

DTYPES = ("float32", "float16", "bfloat16")

_PROMPT = "{prompt}"
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""Files of a model: settings, weights, tokenizer, chat template. No pickled weights, no code."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a video, as shown to the model.

    Attributes:
        video_id: the video.
        number: index of the segment in the video, from 0.
        start: start of the narration in seconds.
        end: end of the narration in seconds.
        frames: (H, W, 3) uint8 each, RGB.
    """

    video_id: str
    number: int
    start: float
    end: float
    frames: list[Array]


@dataclass(slots=True)
class _PendingVideo:
    """A video in progress: its segments so far, and the answers to them."""

    video_id: str
    segments: int = 0
    narrations: list[Narration] = field(default_factory=list)
    empty: int = 0
    error: VideoError | None = None
    decoded: bool = False
    timeline: Timeline | None = None

    @property
    def finished(self) -> bool:
        answered = len(self.narrations) + self.empty == self.segments
        return self.decoded and (self.error is not None or answered)

    def result(self) -> Narrated:
        if self.error is not None:
            return Narrated(self.video_id, error=self.error)
        return Narrated(self.video_id, tuple(self.narrations), self.empty, timeline=self.timeline)


@dataclass(eq=False)
class VisionLanguageNarrator(Narrator):
    """Prompts a model with every segment of a video; the model is loaded for the first answer.

    Decoding is greedy unless `temperature` is set, and batches are padded on the left: in exact arithmetic an
    answer does not depend on its batch. In float16 or bfloat16 a near tie between two words may resolve
    differently in another batch.

    Attributes:
        model: a name on the Hugging Face hub, or a folder with such a model.
        seconds: length of a segment.
        frames: number of frames per segment that a video model sees, evenly spaced; None: an image model sees
            the middle frame, and the narration starts and ends at its time.
        prompt: the prompt; of several, one per segment is drawn by seed, video id and index of the segment;
            None for a captioner, which takes no prompt.
        template: the text around the prompt, with the model's placeholder for the image, as in
            `conf/narrator/llava.yaml`; None: the model's own chat template.
        max_new_tokens: maximum length of an answer.
        revision: branch, tag or commit on the hub; None: the newest. The manifest records the commit.
        num_beams: beams of the search; 1: greedy.
        temperature: None: no sampling. Otherwise words are sampled with a seed per segment, and segments are
            processed one at a time, which makes an answer independent of its neighbours.
        seed: seed of the choice of prompts and, with a temperature, of words.
        dtype: type of weights and activations: "float32", "float16" or "bfloat16".
        device: "cuda", "cpu" and the like; None: a GPU if available.
        batch_size: segments per forward pass.

    Raises:
        VmrError: for settings that contradict each other.
    """

    model: str
    seconds: float
    frames: int | None
    prompt: str | Sequence[str] | None
    template: str | None
    max_new_tokens: int
    revision: str | None = None
    num_beams: int = 1
    temperature: float | None = None
    seed: int = 0
    dtype: str = "float16"
    device: str | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        self.seconds = float(self.seconds)
        self.prompts = [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or ())
        smallest_count = min(self.batch_size, self.max_new_tokens, 1 if self.frames is None else self.frames)
        if self.seconds <= 0 or smallest_count < 1:
            raise VmrError(
                "Expected narrator.seconds above 0 and narrator.frames, batch_size and max_new_tokens of at "
                f"least 1; found {self.seconds}, {self.frames}, {self.batch_size}, {self.max_new_tokens}."
            )
        if self.dtype not in DTYPES:
            raise unknown("narrator.dtype", self.dtype, DTYPES)
        if self.template is not None and (_PROMPT not in self.template or not self.prompts):
            raise VmrError(
                f"Expected narrator.template to contain {_PROMPT} and narrator.prompt to replace it; found "
                f"template {self.template!r}, prompt {self.prompt!r}. For a captioner, set both to null."
            )
        if self.temperature is not None:
            if self.temperature <= 0:
                raise VmrError(
                    f"Expected narrator.temperature above 0, found {self.temperature}. Null: greedy decoding."
                )
            self.batch_size = 1

    # --- narrating

    def stream(self, videos: Iterable[tuple[str, Path]]) -> Iterator[Narrated]:
        """Narrates videos in batches of segments, possibly of several videos."""
        pending: deque[_PendingVideo] = deque()
        batch: list[tuple[_PendingVideo, Segment]] = []
        for video_id, path in videos:
            video = _PendingVideo(video_id)
            pending.append(video)
            try:
                for segment in self.segments(video_id, path):
                    video.segments += 1
                    batch.append((video, segment))
                    if len(batch) == self.batch_size:
                        self._narrate_batch(batch)
                        batch = []
            except VideoError as error:
                video.error = error
                batch = [entry for entry in batch if entry[0] is not video]
            video.decoded, video.timeline = True, remembered(path)
            while pending and pending[0].finished:
                yield pending.popleft().result()
        self._narrate_batch(batch)
        for video in pending:
            yield video.result()

    def segments(self, video_id: str, path: Path) -> Iterator[Segment]:
        """Decodes a video segment by segment.

        Frames are evenly spaced in presentation time. A partial last segment repeats its last frame, and its
        narration ends where its frames end.

        Args:
            video_id: the video.
            path: its file.

        Yields:
            Segments in order of time.

        Raises:
            VideoError: if the file holds no usable video, at the start or later.
        """
        count = self.frames or 1
        step = self.seconds / count
        number, frames = 0, list[Array]()
        for frame in sample(path, step):
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == count:
                yield self._segment(video_id, number, frames, count)
                number, frames = number + 1, []
        if frames:
            yield self._segment(video_id, number, frames, count)

    def _segment(self, video_id: str, number: int, frames: list[Array], count: int) -> Segment:
        if self.frames is None:
            time = (number + 0.5) * self.seconds
            return Segment(video_id, number, time, time, frames)
        start = number * self.seconds
        end = start + len(frames) / count * self.seconds
        return Segment(video_id, number, start, end, frames + frames[-1:] * (count - len(frames)))

    def _narrate_batch(self, batch: Sequence[tuple[_PendingVideo, Segment]]) -> None:
        """Generates the answers to a batch and adds each to its video."""
        texts = self.generate([segment for _, segment in batch]) if batch else []
        for (video, segment), text in zip(batch, texts, strict=True):
            if text:
                video.narrations.append(Narration(segment.video_id, segment.start, segment.end, text))
            else:
                video.empty += 1

    def prompt_for(self, video_id: str, number: int) -> str | None:
        """Returns the prompt of a segment, drawn by seed, video id and index; None for a captioner."""
        if not self.prompts:
            return None
        return self.prompts[_draw("prompt", self.seed, video_id, number) % len(self.prompts)]

    def generate(self, segments: Sequence[Segment]) -> list[str]:
        """Generates the model's answers.

        Args:
            segments: N >= 1 segments with equal numbers of frames.

        Returns:
            N answers on one line each, without the prompt; "" for an empty one.

        Raises:
            VmrError: if the model cannot be loaded or the device runs out of memory.
        """
        import torch

        processor, model = self._loaded
        given: dict[str, Any] = {"return_tensors": "pt"}
        if self.frames is None:
            given["images"] = [_image(segment.frames[0]) for segment in segments]
        else:
            # The frames are sampled already; some processors would sample them again.
            given |= {"videos": [np.stack(segment.frames) for segment in segments], "do_sample_frames": False}
        if self.prompts:
            texts = [self._text(self.prompt_for(s.video_id, s.number) or "") for s in segments]
            start = processor.tokenizer.bos_token
            # A chat template may contain the BOS token already.
            given |= {"text": texts, "padding": True}
            given["add_special_tokens"] = not (start and texts[0].startswith(start))
        with self._answering("prepare the prompt and the frames"):
            inputs = processor(**given).to(model.device, model.dtype)
        drawing: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self.temperature is not None:
            drawing = {"do_sample": True, "temperature": self.temperature, "top_p": None, "top_k": None}
            torch.manual_seed(_draw("words", self.seed, segments[0].video_id, segments[0].number))
        with self._answering("generate an answer"), torch.inference_mode():
            out = model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, num_beams=self.num_beams, **drawing
            )
        # Decoder-only models repeat the prompt before the answer, encoder-decoder models do not.
        ids = inputs.get("input_ids")
        if ids is not None and out.shape[1] >= ids.shape[1] and torch.equal(out[:, : ids.shape[1]], ids):
            out = out[:, ids.shape[1] :]
        answers = processor.tokenizer.batch_decode(out, skip_special_tokens=True)
        return [" ".join(answer.split()) for answer in answers]

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        """Turns the errors of a model whose files do not go together into one that says so."""
        import torch

        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            raise VmrError(
                f"{self.model} does not fit into the memory of the device with narrator.batch_size="
                f"{self.batch_size} and narrator.dtype={self.dtype}: use a smaller batch. Finished videos "
                "are kept."
            ) from error
        except VmrError:
            raise
        except Exception as error:  # processors and models of transformers raise any
            raise VmrError(
                f"{self.model} cannot {what}: {_first_line(error)}\nIts files do not go together, or "
                "narrator.template lacks the model's placeholder for the image. Compare config.json, "
                "processor_config.json, preprocessor_config.json and tokenizer_config.json with the model's "
                "newest revision. HYDRA_FULL_ERROR=1 shows the traceback."
            ) from error

    def _text(self, prompt: str) -> str:
        """Inserts a prompt into the template."""
        if self.template is not None:
            return self.template.replace(_PROMPT, prompt)
        content = [{"type": "image" if self.frames is None else "video"}, {"type": "text", "text": prompt}]
        processor: Any = self._loaded[0]
        if not processor.chat_template:
            raise VmrError(
                f"{self.model} has no chat template. Set narrator.template as in its model card, for "
                f"example 'USER: <image>\\n{_PROMPT} ASSISTANT:'."
            )
        with self._answering("apply its chat template"):
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
        """Folder with the files of the model, downloaded if necessary."""
        if self._is_local:
            if self.revision is not None:
                raise VmrError(
                    f"narrator.model={self.model} is a folder and has no revisions; found narrator.revision="
                    f"{self.revision}. Leave it out: the manifest records a hash of the files."
                )
            return Path(self.model).expanduser()
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError

        try:
            return Path(
                huggingface_hub.snapshot_download(
                    self.model,
                    revision=self.revision,
                    allow_patterns=list(_FILES),
                    ignore_patterns=["*/*"],  # subfolders hold other formats of the same weights
                )
            )
        # Network errors and refusals of the hub are OSErrors.
        except (OSError, HFValidationError, ValueError) as error:
            raise VmrError(
                f"narrator.model={self.model} is neither a folder nor a model that could be fetched from the "
                f"Hugging Face hub ({_first_line(error)}). Without a network, copy the folder of the model "
                "and set its path."
            ) from error

    @cached_property
    def exact_revision(self) -> str:
        """The commit on the hub, or the SHA-256 of the files of a folder."""
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
        # Imported here: it takes seconds, and reading the configuration does not need it.
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = AutoProcessor.from_pretrained(self._folder, **local)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self._folder, dtype=getattr(torch, self.dtype), use_safetensors=True, **local
            )
        except Exception as error:  # of damaged or mismatched files: any
            raise VmrError(
                f"Expected an image or video language model of transformers, with weights as safetensors, in "
                f"{self._folder}; loading it failed: {_first_line(error)}"
            ) from error
        _check_processor(processor, model, self._folder)
        if self.frames is not None and getattr(processor, "video_processor", None) is None:
            raise VmrError(
                f"{self.model} ({type(model).__name__}) takes images, not videos. Set narrator.frames=null "
                "or choose a video model."
            )
        # The answer follows the prompt, so padding must precede it.
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        try:
            return processor, model.to(device).eval()
        except (RuntimeError, AssertionError) as error:
            raise VmrError(
                f"{self.model} cannot be moved to narrator.device={device}: {_first_line(error)} Choose "
                "another device, a smaller model or a smaller narrator.dtype."
            ) from error

    def use(self, processor: Any, model: Any) -> None:
        """Narrates with a model that is built already, in place of the named one, for measurements."""
        self._loaded = (processor, model)

    def manifest(self) -> dict[str, Any]:
        """Returns model, revision, prompts, sampling and decoding, but not device and batch size."""
        return {
            "model": self._folder.resolve().name if self._is_local else self.model,
            "revision": self.exact_revision,
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


def _check_processor(processor: Any, model: Any, folder: Path) -> None:
    """Refuses a processor without a setting that it needs; folders made by older versions lack some.

    Raises:
        VmrError: if it lacks a tokenizer, or settings of the image tokens; with the model's values of them.
    """
    if getattr(processor, "tokenizer", None) is None:
        raise VmrError(
            f"Expected a processor with a tokenizer in {folder}, found {type(processor).__name__}. Copy "
            "tokenizer.json and tokenizer_config.json of the model there."
        )
    vision = getattr(model.config, "vision_config", None)
    known = {
        "patch_size": getattr(vision, "patch_size", None),
        "vision_feature_select_strategy": getattr(model.config, "vision_feature_select_strategy", None),
    }
    lacking = {
        key: value
        for key, value in known.items()
        if value is not None and getattr(processor, key, value) is None
    }
    if lacking:
        if hasattr(processor, "num_additional_image_tokens"):  # the class token of CLIP
            lacking["num_additional_image_tokens"] = int(
                getattr(vision, "model_type", None) == "clip_vision_model"
            )
        settings = json.dumps({"processor_class": type(processor).__name__, **lacking})
        raise VmrError(
            f"The processor in {folder} lacks {', '.join(lacking)}, as older versions of transformers wrote "
            f"it. Write the model's values into {folder / 'processor_config.json'}: {settings} Or download "
            "the model's newest revision."
        )


def _draw(purpose: str, seed: int, video_id: str, number: int) -> int:
    """Returns 63 bits determined by the arguments alone, independent of order and shards."""
    hashed = hashlib.sha256(json.dumps([purpose, seed, video_id, number]).encode())
    return int.from_bytes(hashed.digest()[:8], "big") >> 1


def _image(frame: Array) -> Any:
    """Returns a frame as a Pillow image; its axes are unambiguous to processors."""
    from PIL import Image

    return Image.fromarray(frame)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
