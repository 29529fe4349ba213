"""Narration by an image or video language model from `transformers`.

TEA prompts an image model with one frame per second (section 3.2, Eq. 1 and 2), LMR a video model with each
clip (section III-B, Eq. 1-3); `segments` cuts the video. Model code always comes from `transformers`
(`trust_remote_code` is off) and weights from safetensors: a model is data and never runs code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vmr_zoo.errors import VmrError, first_line
from vmr_zoo.narrators.segments import Segment, SegmentNarrator, draw
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.hashing import sha256_of
from vmr_zoo.utils.switches import check_switches

_PROMPT = "{prompt}"
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""Files of a model: settings, weights, tokenizer, chat template. No pickled weights, no code."""


@check_switches
@dataclass(eq=False)
class VisionLanguageNarrator(SegmentNarrator):
    """Prompts a model with every segment of a video; the model is loaded for the first answer.

    Decoding is greedy unless `temperature` is set, and batches are padded on the left: in exact arithmetic an
    answer does not depend on its batch. In float16 or bfloat16 a near tie between two words may resolve
    differently in another batch. With a temperature, segments are processed one at a time, which makes an
    answer independent of its neighbours.

    Attributes:
        model: a name on the Hugging Face hub, or a folder with such a model.
        template: the text around the prompt, with the model's placeholder for the image, as in
            `conf/narrator/llava.yaml`; None: the model's own chat template.
        revision: branch, tag or commit on the hub; None: the newest. The manifest records the commit.
        num_beams: beams of the search; 1: greedy.
        dtype: type of weights and activations: "float32", "float16" or "bfloat16".
        device: "cuda", "cpu" and the like; None: a GPU if available.
        batch_size: segments per forward pass.

    Raises:
        VmrError: for settings that contradict each other.
    """

    model: str
    template: str | None = field(kw_only=True)
    revision: str | None = None
    num_beams: int = 1
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    device: str | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise VmrError(f"Expected narrator.batch_size of at least 1, found {self.batch_size}.")
        if self.template is not None and (_PROMPT not in self.template or not self.prompts):
            raise VmrError(
                f"Expected narrator.template to contain {_PROMPT} and narrator.prompt to replace it; found "
                f"template {self.template!r}, prompt {self.prompt!r}. For a captioner, set both to null."
            )

    # --- narrating

    @property
    def at_once(self) -> int:
        """The batch size; 1 with a temperature."""
        return self.batch_size if self.temperature is None else 1

    def answers(self, segments: Iterator[Segment]) -> Generator[tuple[Segment, str | VmrError]]:
        """Generates in batches of segments with equal numbers of frames, possibly of several videos."""
        for _, equal in groupby(segments, key=lambda segment: len(segment.frames)):
            while batch := list(islice(equal, self.at_once)):
                yield from zip(batch, self.generate(batch), strict=True)

    def generate(self, segments: Sequence[Segment]) -> list[str]:
        """Generates the model's answers.

        Args:
            segments: N >= 1 segments with equal numbers of frames.

        Returns:
            N answers without the prompt; "" for an empty one.

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
            videos, metadata = zip(*map(self._clip, segments), strict=True)
            given |= {"videos": list(videos), "video_metadata": list(metadata), "do_sample_frames": False}
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
            torch.manual_seed(draw("words", self.seed, segments[0].video_id, segments[0].number))
        with self._answering("generate an answer"), torch.inference_mode():
            out = model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, num_beams=self.num_beams, **drawing
            )
        # Decoder-only models repeat the prompt before the answer, encoder-decoder models do not.
        ids = inputs.get("input_ids")
        if ids is not None and out.shape[1] >= ids.shape[1] and torch.equal(out[:, : ids.shape[1]], ids):
            out = out[:, ids.shape[1] :]
        answers: list[str] = processor.tokenizer.batch_decode(out, skip_special_tokens=True)
        return answers

    def _clip(self, segment: Segment) -> tuple[Array, dict[str, Any]]:
        """Returns (T, H, W, 3) frames, and when they are shown; several models write this into the prompt.

        A frame is shown in the middle of its interval: it is an odd frame of a video of twice as many frames.
        A single frame is given twice, since video models expect two.
        """
        frames, step = segment.frames, self.seconds / (self.frames or 1)
        numbers = list(range(1, 2 * len(frames), 2))
        if len(frames) == 1:
            frames, numbers = frames * 2, numbers * 2
        length = segment.end - segment.start
        metadata = {
            "total_num_frames": round(2 * length / step),
            "fps": 2 / step,
            "frames_indices": numbers,
            "duration": length,
        }
        return np.stack(frames), metadata

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
                f"{self.model} cannot {what}: {first_line(error)}\nIts files do not go together, or "
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
                f"Hugging Face hub ({first_line(error)}). Without a network, copy the folder of the model "
                "and set its path."
            ) from error

    @cached_property
    def exact_revision(self) -> str:
        """The commit on the hub, or the SHA-256 of the files of a folder."""
        if not self._is_local:
            return self._folder.name  # …/snapshots/COMMIT
        hashed = hashlib.sha256()
        for path in sorted(path for pattern in _FILES for path in self._folder.glob(pattern)):
            hashed.update(f"{path.name} {sha256_of(path)}\n".encode())
        return hashed.hexdigest()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Loads processor and model."""
        # Imported here: it takes seconds, and reading the configuration does not need it.
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from vmr_zoo.video.torch_models import find_device

        device = find_device(self.device)
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = AutoProcessor.from_pretrained(self._folder, **local)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self._folder, dtype=getattr(torch, self.dtype), use_safetensors=True, **local
            )
        except Exception as error:  # of damaged or mismatched files: any
            raise VmrError(
                f"Expected an image or video language model of transformers, with weights as safetensors, in "
                f"{self._folder}; loading it failed: {first_line(error)}"
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
                f"{self.model} cannot be moved to narrator.device={device}: {first_line(error)} Choose "
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
            **super().manifest(),
            "template": self.template,
            "num_beams": self.num_beams,
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


def _image(frame: Array) -> Any:
    """Returns a frame as a Pillow image; its axes are unambiguous to processors."""
    from PIL import Image

    return Image.fromarray(frame)
