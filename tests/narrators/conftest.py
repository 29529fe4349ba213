"""Tiny random models, saved as folders: the real loading, processing, prompting, generating and decoding."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WORDS = [
    "USER",
    ":",
    "ASSISTANT",
    "caption",
    "this",
    "frame",
    "describe",
    "summarize",
    "the",
    "video",
    "a",
    "walks",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"]
CHAT = """{% for message in messages %}USER :{% for part in message.content %}\
 {{ "<image>" if part.type == "image" else part.text }}{% endfor %}{% endfor %} ASSISTANT :"""
SIZE = {"height": 28, "width": 28}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TEXT = {
    "vocab_size": len(SPECIAL + WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )


def save(model: Any, processor: Any, folder: Path) -> Path:
    # With the usual, small initialisation every answer would be the same.
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.6)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION), text_config=tf.LlamaConfig(**TEXT), image_token_index=4
    )
    processor = tf.LlavaProcessor(
        tf.CLIPImageProcessor(size=SIZE, crop_size=SIZE),
        tokenizer(),
        chat_template=CHAT,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return save(tf.LlavaForConditionalGeneration(config), processor, tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = {k: v for k, v in TEXT.items() if k not in ("intermediate_size", "num_key_value_heads")}
    text = tf.OPTConfig(**shared, ffn_dim=32, word_embed_proj_dim=16)
    qformer = tf.Blip2QFormerConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        encoder_hidden_size=16,
    )
    config = tf.Blip2Config(
        vision_config=tf.Blip2VisionConfig(**VISION),
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=3,
        image_token_index=4,
    )
    processor = tf.Blip2Processor(tf.BlipImageProcessor(size=SIZE), tokenizer(), num_query_tokens=3)
    return save(tf.Blip2ForConditionalGeneration(config), processor, tmp_path_factory.mktemp("blip2"))


@pytest.fixture(scope="session")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pinpoints = [[28, 56], [56, 28]]  # a frame is seen whole and in tiles
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**VISION),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_index=4,
        image_grid_pinpoints=pinpoints,
    )
    processor = tf.LlavaNextProcessor(
        tf.LlavaNextImageProcessor(size=SIZE, crop_size=SIZE, image_grid_pinpoints=pinpoints),
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    folder = tmp_path_factory.mktemp("llava_next")
    return save(tf.LlavaNextForConditionalGeneration(config), processor, folder)


@pytest.fixture(scope="session")
def llava_next_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pinpoints = [[28, 28]]
    config = tf.LlavaNextVideoConfig(
        vision_config=tf.CLIPVisionConfig(**VISION),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_index=4,
        video_token_index=5,
        image_grid_pinpoints=pinpoints,
    )
    processor = tf.LlavaNextVideoProcessor(
        tf.LlavaNextVideoVideoProcessor(size=SIZE, crop_size=SIZE),
        tf.LlavaNextImageProcessor(size=SIZE, crop_size=SIZE, image_grid_pinpoints=pinpoints),
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
    )
    folder = tmp_path_factory.mktemp("llava_next_video")
    return save(tf.LlavaNextVideoForConditionalGeneration(config), processor, folder)


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the times of the frames into the prompt."""
    marks = ["image_pad", "video_pad", "vision_start", "vision_end"]
    special = ["<pad>", *(f"<|{mark}|>" for mark in marks)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    characters = Tokenizer(models.BPE({sign: i for i, sign in enumerate(special + alphabet)}, []))
    characters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    characters.decoder = decoders.ByteLevel()
    names = ["image_token", "video_token", "vision_start_token", "vision_end_token"]
    words = tf.PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        eos_token="<pad>",
        extra_special_tokens=dict(zip(names, special[1:], strict=True)),
    )
    turns = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    sizes = {
        "vocab_size": len(special + alphabet),
        "head_dim": 8,
        "rope_parameters": turns,
        "eos_token_id": 0,
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = tf.Qwen3VLConfig(
        text_config=TEXT | sizes | {"bos_token_id": None, "eos_token_id": 0},
        vision_config=vision,
        **{f"{name}_id": number for number, name in enumerate(names, 1)},
    )
    pictures: dict[str, Any] = {
        "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64},
        "patch_size": 14,
        "cap_pixels_per_frame": False,
    }
    processor = tf.Qwen3VLProcessor(
        tf.Qwen2VLImageProcessor(size=pictures["size"], patch_size=14),
        words,
        tf.Qwen3VLVideoProcessor(**pictures),
        chat_template="""{% for part in messages[0].content %}\
{{ "<|vision_start|><|video_pad|><|vision_end|>" if part.type == "video" else part.text }}{% endfor %}""",
    )
    folder = tmp_path_factory.mktemp("qwen3_vl")
    return save(tf.Qwen3VLForConditionalGeneration(config), processor, folder)


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """Writes a video; each frame has a grey left half and is shown from its time on, the last for 0.1 s."""

    def write(name: str, shown: dict[float, int]) -> Path:
        path = tmp_path / f"{name}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "1", "bf": "0"})
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
            for time, grey in shown.items():
                noise = np.random.default_rng(grey).integers(0, 256, (4, 2, 3), np.uint8)
                picture = np.concatenate(
                    [np.full((32, 16, 3), grey, np.uint8), noise.repeat(8, 0).repeat(8, 1)], 1
                )
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = round(time * 1000)
                frame.time_base = Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write
