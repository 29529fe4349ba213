"""What `vmr gpu` measures about large models with random weights: extraction of features, and narration."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vmr_zoo.config.compose import build, compose
from vmr_zoo.engine.device import mean_seconds, peak_gb, reset_peak
from vmr_zoo.engine.gpu import Skipped
from vmr_zoo.errors import unknown

if TYPE_CHECKING:
    from vmr_zoo.narrators import VisionLanguageNarrator
    from vmr_zoo.video.encoder import VideoEncoder

_LLAVA: dict[str, tuple[int, int, int, int]] = {
    "7b": (4096, 32, 32, 11008),
    "13b": (5120, 40, 40, 13824),
    "tiny": (32, 2, 2, 64),
}
"""Language models of LLaVA-1.5: hidden size, layers, attention heads, size of the hidden layer between."""
_VISION: dict[str, tuple[int, int, int, int]] = {"tiny": (32, 2, 2, 64)}
_VIT_L_14 = (1024, 24, 16, 4096)
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_VOCABULARY = 32064


def extraction(cfg: DictConfig, name: str, dtype: str) -> dict[str, Any]:
    """Measures an encoder with random weights.

    Args:
        cfg: composed from `conf/gpu.yaml`.
        name: of a file of `conf/encoder`.
        dtype: precision of the computation.

    Returns:
        "clips_per_second" of prepared clips; for rendered videos, decoded by one thread, "videos_per_second"
        and "video_seconds_per_second"; "peak_gb".
    """
    from vmr_zoo.video.extraction import extract

    composed = compose(
        "extract",
        [
            f"encoder={name}",
            "encoder.random_weights=true",
            f"device={cfg.device}",
            f"dtype={dtype}",
            *cfg.encoder_overrides,
        ],
    )
    videos, seconds = _rendered(cfg)
    encoder: VideoEncoder = build(composed.encoder)
    reset_peak(cfg.device)
    with tempfile.TemporaryDirectory() as folder:
        clip = next(iter(encoder.clips(next(iter(videos.values())))))
        size = min(cfg.clips, 256 if cfg.device == "cuda" else 32)
        clips = [torch.rand_like(clip) for _ in range(size)]
        encoding = mean_seconds(lambda: encoder.encode(clips), -(-cfg.clips // size), cfg.device)
        started = time.perf_counter()
        failures = extract(videos, encoder, OmegaConf.to_container(composed.encoder), folder)  # type: ignore[arg-type]
        extracting = time.perf_counter() - started
    if failures:
        raise RuntimeError(f"{len(failures)} rendered videos failed: {failures[0]}")
    return {
        "batch": size,
        "clips_per_second": size / encoding,
        "videos_per_second": len(videos) / extracting,
        "video_seconds_per_second": seconds / extracting,
        "peak_gb": peak_gb(cfg.device) if cfg.device == "cuda" else None,
    }


def narration(cfg: DictConfig, size: str) -> dict[str, Any]:
    """Measures LLaVA-1.5 with random weights, prompted as `narrator=llava` prompts it.

    Random weights hardly ever end an answer, so every answer has the greatest length.

    Args:
        cfg: composed from `conf/gpu.yaml`.
        size: a key of `_LLAVA`.

    Raises:
        Skipped: if the weights do not fit into the memory of the GPU.
    """
    from vmr_zoo.narrators.segments import Segment

    if size not in _LLAVA:
        raise unknown("size of LLaVA", size, _LLAVA)
    narrator: VisionLanguageNarrator = instantiate(compose("narrate", ["narrator=llava"]).narrator)
    if size == "tiny":
        narrator = replace(narrator, dtype="float32", batch_size=2, max_new_tokens=4)
    reset_peak(cfg.device)
    processor, model = _llava(size, narrator, cfg.device)
    narrator.use(processor, model)
    draw = np.random.default_rng(0)
    frames = [draw.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(narrator.batch_size)]
    segments = [Segment("random", number, number, number, [frame]) for number, frame in enumerate(frames)]
    batch = mean_seconds(lambda: narrator.generate(segments), cfg.narrated_batches, cfg.device)
    rate = narrator.batch_size / batch
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "dtype": narrator.dtype,
        "batch": narrator.batch_size,
        "new_tokens": narrator.max_new_tokens,
        "segments_per_second": rate,
        "tokens_per_second": rate * narrator.max_new_tokens,
        "video_seconds_per_second": rate * narrator.seconds,
        "peak_gb": peak_gb(cfg.device) if cfg.device == "cuda" else None,
    }


def _rendered(cfg: DictConfig) -> tuple[dict[str, Path], float]:
    """Renders videos in the usual size of a data set, once; returns them and their length in seconds."""
    from vmr_zoo.data.worlds.shapes.generate import generate_world, scenes, video_path

    world = instantiate(compose("train", ["data=shapes"]).data.protocol.world)
    sizes = {"train_videos": cfg.videos, "selection_videos": 1, "test_videos": 1}
    world = replace(world, **sizes, fps=cfg.frame_rate, height=cfg.frame_height)
    folder = generate_world(world, Path(cfg.out).expanduser() / "rendered")
    found = [scene for group, scene in scenes(world) if group == "train"]
    return {s.video_id: video_path(folder, s.video_id) for s in found}, float(sum(s.duration for s in found))


def _llava(size: str, narrator: VisionLanguageNarrator, device: str) -> tuple[Any, Any]:
    """Builds processor and model."""
    import transformers as tf

    image, patch = (28 if size == "tiny" else 336), 14
    vision: dict[str, Any] = dict(zip(_SIZES, _VISION.get(size, _VIT_L_14), strict=True))
    text: dict[str, Any] = dict(zip(_SIZES, _LLAVA[size], strict=True))
    tokenizer = _tokenizer(narrator)
    text |= {"vocab_size": _VOCABULARY, "max_position_embeddings": 4096}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**vision, image_size=image, patch_size=patch),
        text_config=tf.LlamaConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    dtype = getattr(torch, narrator.dtype)
    _check_memory(config, dtype, device)
    with torch.device(device):
        model = tf.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    side = {"height": image, "width": image}
    processor = tf.LlavaProcessor(
        tf.CLIPImageProcessor(size=side, crop_size=side),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return processor, model


def _check_memory(config: Any, dtype: torch.dtype, device: str) -> None:
    """Skips a model whose weights would leave no memory for its activations."""
    import transformers as tf

    if device == "cpu":
        return
    with torch.device("meta"):
        model = tf.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    needed = 1.3 * sum(weight.numel() * weight.element_size() for weight in model.parameters())
    free, _ = torch.cuda.mem_get_info()
    if needed > free:
        raise Skipped(f"needs {needed / 1e9:.0f} GB of free GPU memory, found {free / 1e9:.0f} GB")


def _tokenizer(narrator: VisionLanguageNarrator) -> Any:
    """Returns a tokenizer with one token per word of the prompt. LLaMA's would give about as many."""
    import transformers as tf
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    template = narrator.template or ""
    words = sorted({*" ".join([template, *narrator.prompts]).replace(",", " , ").split()} - {*special})
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokens = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokens, **names, padding_side="left", extra_special_tokens={"image_token": "<image>"}
    )
