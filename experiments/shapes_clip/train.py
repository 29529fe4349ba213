"""Trains the tiny CLIP of the world of shapes with open_clip, and writes it as a folder that open_clip loads.

    python experiments/shapes_clip/train.py [--out FOLDER] [--seed 0]

It sees pictures and captions of `vmr_zoo.data.worlds.shapes.stills`, never a frame of a video. One core needs
less than ten minutes. Equal seeds give equal weights on one machine. `accuracy.py` measures the result.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save as serialise
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vmr_zoo.data.text.sentence import SentenceEncoder
from vmr_zoo.data.worlds.shapes import WorldSettings, stills
from vmr_zoo.data.worlds.shapes.render import frames

OUT = Path(__file__).parents[2] / "src" / "vmr_zoo" / "weights" / "shapes_clip"
WIDTH = 64
CONTEXT = 42
MODEL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "timm_model_name": "test_byobnet",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": [96, 128],
    },
    "text_cfg": {"context_length": CONTEXT, "width": WIDTH, "heads": 4, "layers": 3},
}
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
SPECIAL = ("[PAD]", "[UNK]", "[START]", "[END]")
WORLD_SEED = 20_000
"""Seed of the pictures, far from that of any world in use."""

TOURS = 250
WINDOW = 64
"""Pixels of a close-up."""

Rows = NDArray[np.int64]


class Stage(NamedTuple):
    """A stretch of training, on close-ups of one thing or on whole pictures, with its own learning rates."""

    close: bool
    steps: int
    batch: int
    rate: float


STAGES = (Stage(True, 2000, 96, 3e-3), Stage(False, 1500, 64, 2e-3))


def tokenizer() -> Tokenizer:
    """Builds the word-level tokenizer; the end token has the largest id, as CLIP's pooling expects."""
    pad, unknown, start, end = SPECIAL
    words = [pad, unknown, start, ".", ",", *stills.vocabulary(), end]
    table = {word: number for number, word in enumerate(words)}
    built = Tokenizer(models.WordLevel(table, unk_token=unknown))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, table[start]), (end, table[end])]
    )
    built.enable_truncation(CONTEXT)
    return built


def token_ids(words: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Returns (N, CONTEXT) ids, padded with 0."""
    ids = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, encoded in zip(ids, words.encode_batch(texts), strict=True):
        row[: len(encoded.ids)] = torch.tensor(encoded.ids)
    return ids


class Pictures:
    """Pictures of tours, kept as JPEG files: their artefacts resemble those of the videos."""

    def __init__(self, tours: int) -> None:
        settings = WorldSettings(seed=WORLD_SEED)
        self.files: list[bytes] = []
        self.seen: list[list[stills.Seen]] = []
        for index in range(tours):
            scene = stills.tour(settings, index)
            listed = stills.seen(scene, np.arange(scene.duration, dtype=np.float64))
            for picture, content in zip(frames(scene, 1, settings.height), listed, strict=True):
                file = io.BytesIO()
                Image.fromarray(picture).save(file, "JPEG", quality=60)
                self.files.append(file.getvalue())
                assert content is not None
                self.seen.append(content)

    def __len__(self) -> int:
        return len(self.files)

    def whole(self, rows: Rows, rng: np.random.Generator) -> tuple[torch.Tensor, list[str]]:
        """Returns whole pictures (B, 3, H, W) and a caption of each."""
        return _scale([self._open(row) for row in rows]), [
            stills.caption(self.seen[row], rng) for row in rows
        ]

    def close_ups(self, rows: Rows, rng: np.random.Generator) -> tuple[torch.Tensor, list[str]]:
        """Returns windows (B, 3, WINDOW, WINDOW) around the thing in front, and a caption of this thing."""
        windows, texts = [], []
        for row in rows:
            picture, thing = self._open(row), self.seen[row][-1]
            height, width, _ = picture.shape
            left, top = (
                int(np.clip(centre * height - WINDOW / 2 + rng.uniform(-12, 12), 0, size - WINDOW))
                for centre, size in ((thing.x, width), (thing.y, height))
            )
            windows.append(picture[top : top + WINDOW, left : left + WINDOW])
            texts.append(stills.close_up(thing, rng))
        return _scale(windows), texts

    def _open(self, row: int) -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(self.files[row])))


def _scale(pictures: list[NDArray[np.uint8]]) -> torch.Tensor:
    """Returns (B, 3, H, W) as `PREPROCESS` scales pictures."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return (pixels - PREPROCESS["mean"][0]) / PREPROCESS["std"][0]


def embed_words(words: Tokenizer, width: int, cache: str | Path) -> torch.Tensor:
    """Places words by the principal components of their MiniLM vectors: what text alone says of them."""
    listed = [words.id_to_token(number) for number in range(words.get_vocab_size())]
    vectors = SentenceEncoder(cache).sentences(listed)
    vectors -= vectors.mean(0)
    reduced = vectors @ np.linalg.svd(vectors, full_matrices=False)[2][:width].T
    return torch.from_numpy(0.02 * reduced / reduced.std()).float()


def read_text(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns token states (B, L, WIDTH) and the sentence vectors of `encode_text`, without its padding."""
    length = int((ids > 0).sum(1).max())
    ids = ids[:, :length]
    states = model.token_embedding(ids) + model.positional_embedding[:length]
    states = model.ln_final(model.transformer(states, attn_mask=model.attn_mask[:length, :length]))
    return states, states[torch.arange(len(ids)), ids.argmax(1)] @ model.text_projection


def word_loss(states: torch.Tensor, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Asks each token state for its own word, so verbs, which no picture explains, remain distinct."""
    ids = ids[:, : states.shape[1]]
    words = (ids > SPECIAL.index("[START]")) & (ids < len(table) - 1)
    scores = 10 * F.normalize(states[words], dim=1) @ F.normalize(table, dim=1).T
    return F.cross_entropy(scores, ids[words])


def rarity(pictures: Pictures, words: Tokenizer) -> torch.Tensor:
    """Returns -log of the share of close-ups whose caption contains each word, (V,); 0 for those in all."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(pictures), 5000)
    ids = token_ids(words, [stills.close_up(pictures.seen[row][-1], rng) for row in rows])
    found = torch.zeros(len(ids), words.get_vocab_size()).scatter_(1, ids, 1.0).sum(0)
    return -torch.log((found + 1) / (len(ids) + 1))


def picture_loss(scores: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Asks each picture for the words of its caption: with CLIP's loss alone it learns no shape.

    Args:
        scores: (B, V) of a picture for each word.
        ids: (B, L) of its caption.
        weights: (V,), from `rarity`.
    """
    said = torch.zeros_like(scores).scatter_(1, ids, 1.0) * weights
    return F.cross_entropy(scores, said / said.sum(1, keepdim=True))


def train(
    pictures: Pictures, words: Tokenizer, table: torch.Tensor, *, seed: int, stages: Sequence[Stage]
) -> torch.nn.Module:
    """Trains a model with CLIP's loss; the table of words stays as it is."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = json.loads(json.dumps(MODEL))
    config["text_cfg"]["vocab_size"] = words.get_vocab_size()
    model = open_clip.CLIP(**config)
    model.visual.to(memory_format=torch.channels_last)
    model.token_embedding.weight = torch.nn.Parameter(table, requires_grad=False)
    loss_of, weights = open_clip.ClipLoss(), rarity(pictures, words)
    named = torch.nn.Linear(MODEL["embed_dim"], len(table))  # in training only
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n]
    matrices += named.parameters()
    others = [p for n, p in model.named_parameters() if not (p.ndim > 1 and "embedding" not in n)]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    start, mean, done = time.process_time(), 0.0, 0
    for stage in stages:
        optimizer = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98), eps=1e-6)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, stage.rate, total_steps=stage.steps, pct_start=0.1, cycle_momentum=False
        )
        for _ in range(stage.steps):
            rows = rng.integers(0, len(pictures), stage.batch)
            images, texts = (pictures.close_ups if stage.close else pictures.whole)(rows, rng)
            ids = token_ids(words, texts)
            states, sentences = read_text(model, ids)
            seen = model.encode_image(images.contiguous(memory_format=torch.channels_last))
            said = picture_loss(named(seen), ids, weights)
            loss = loss_of(F.normalize(seen, dim=1), F.normalize(sentences, dim=1), model.logit_scale.exp())
            optimizer.zero_grad()
            (loss + 4 * said + 0.2 * word_loss(states, ids, table)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            done += 1
            mean += (loss.item() - mean) / min(done, 25)
            if done % 25 == 0:
                seconds = time.process_time() - start
                print(f"step {done}: loss {mean:.3f}, {seconds:.0f} s of CPU time", flush=True)
    return model.eval()


@torch.no_grad()
def save(model: torch.nn.Module, words: Tokenizer, pictures: Pictures, out: Path) -> None:
    """Writes the folder: configuration, float16 weights, tokenizer.

    Both projections are scaled: a number of a feature then varies by about 1. Cosines do not change.
    """
    rows = np.arange(0, len(pictures), max(1, len(pictures) // 256))
    images, texts = pictures.whole(rows, np.random.default_rng(0))
    model.visual.head.proj.weight /= model.encode_image(images).square().mean().sqrt()
    model.text_projection /= model.encode_text(token_ids(words, texts)).square().mean().sqrt()
    config = json.loads(json.dumps(MODEL))
    config["text_cfg"] |= {"vocab_size": words.get_vocab_size(), "hf_tokenizer_name": "shapes_clip"}
    described = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        **dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True)),
    }
    out.mkdir(parents=True, exist_ok=True)
    words.no_truncation()
    words.save(str(out / "tokenizer.json"))
    for name, content in ("open_clip_config.json", described), ("tokenizer_config.json", named):
        (out / name).write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    (out / "open_clip_model.safetensors").write_bytes(serialise(state))


def main() -> None:
    """Trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pictures, words = Pictures(TOURS), tokenizer()
    print(f"{len(pictures):,} pictures, {words.get_vocab_size()} words", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        table = embed_words(words, WIDTH, cache)
    model = train(pictures, words, table, seed=args.seed, stages=STAGES)
    save(model, words, pictures, args.out)
    print(f"{args.out}: wrote the model. Next: python experiments/shapes_clip/accuracy.py")


if __name__ == "__main__":
    main()
