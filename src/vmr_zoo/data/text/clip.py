"""CLIP's tokenizer, and CLIP's text tower as a text encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmr_zoo.data.text.encoder import TextEncoder, Tokens
from vmr_zoo.data.text.lost_words import LostWords, count_lost
from vmr_zoo.errors import VmrError, nearest, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.hashing import content_hash, file_hash
from vmr_zoo.utils.packaged import PACKAGED, open_clip_folder, open_clip_name


def clip_tokens(tokenizer: Any, text: str) -> Tokens:
    """Splits a sentence as CLIP does, without the start and the end token.

    Args:
        tokenizer: open_clip's `SimpleTokenizer`.
        text: the sentence.

    Returns:
        The ids; for each id the characters of its word; and the text that these characters index: cleaned and
        in lower case.
    """
    cleaned = tokenizer.clean_fn(text)
    ids, offsets = [], []
    for word in tokenizer.pat.finditer(cleaned):
        symbols = "".join(tokenizer.byte_encoder[byte] for byte in word.group().encode())
        for piece in tokenizer.bpe(symbols).split(" "):
            ids.append(tokenizer.encoder[piece])
            offsets.append(word.span())
    return Tokens(np.array(ids, np.int64), np.array(offsets, np.int64).reshape(-1, 2), cleaned)


class _BytePairs:
    """CLIP's own tokenizer: the byte pairs that open_clip ships."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._tokenizer = SimpleTokenizer()
        self.ends = (self._tokenizer.sot_token_id, self._tokenizer.eot_token_id)
        self.unknown: int | None = None

    def split(self, text: str) -> Tokens:
        """Splits a sentence, without start and end token."""
        return clip_tokens(self._tokenizer, text)

    def word(self, number: int) -> str:
        """Returns the text of an id."""
        return str(self._tokenizer.decoder[number]).removesuffix("</w>")


class _OwnTokens:
    """The tokenizer in the folder of a model, `tokenizer.json` of the tokenizers library."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self.ends = (ends := self._tokenizer.encode("").ids)[0], ends[-1]
        self.unknown: int | None = self._tokenizer.token_to_id("[UNK]")

    def split(self, text: str) -> Tokens:
        """Splits a sentence, without start and end token."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return Tokens(np.array(found.ids, np.int64), np.array(found.offsets, np.int64).reshape(-1, 2), text)

    def word(self, number: int) -> str:
        """Returns the text of an id."""
        return str(self._tokenizer.id_to_token(number))


class ClipTextEncoder(TextEncoder):
    """The text tower of a CLIP model, by open_clip.

    Token vectors are the states after the final LayerNorm, before the projection: `last_hidden_state` in the
    files of the Moment-DETR family. The sentence vector is the state of the end token, projected into the
    joint space with images: `pooler_output` in those files, `encode_text` in open_clip.
    """

    def __init__(
        self,
        cache: str | Path,
        model: str = "ViT-B-32-quickgelu",
        pretrained: str | None = "openai",
        special_tokens: bool = False,
        longest: int | None = None,
        device: str = "cpu",
        batch_size: int = 64,
        workers: int = 2,
    ) -> None:
        """Stores the options; the weights are loaded when the first sentence is not in the cache.

        Args:
            cache: the project's cache folder (`paths.cache`).
            model: open_clip's name of the architecture; OpenAI's weights need a "-quickgelu" one. Or a model
                that includes weights: "shapes_clip" (part of this package), or "local-dir:FOLDER" with
                open_clip_config.json, open_clip_model.safetensors and perhaps a tokenizer.json of its own.
            pretrained: a file of weights (safetensors, or a state dict that `torch.load` reads with
                weights_only), or open_clip's tag of published weights, downloaded once; None if `model`
                includes weights.
            special_tokens: whether token vectors include the start and the end token, as in the files of the
                Moment-DETR family.
            longest: only the first byte pairs of a sentence are read, so the end token follows them; None: as
                many as the model has positions for.
            device: such as "cpu" or "cuda".
            batch_size: sentences per batch.
            workers: batches computed in parallel.

        Raises:
            VmrError: if open_clip knows no such model, or its text tower is not CLIP's own.
        """
        super().__init__(cache, batch_size, workers)
        self._folder = open_clip_folder(model)
        config = _configuration(model)
        text = config["text_cfg"]
        foreign = [key for key in _FOREIGN if text.get(key)]
        if self._own_tokens is not None:
            foreign = [key for key in foreign if key != "hf_tokenizer_name"]
        if text.get("pool_type", "argmax") != "argmax":
            foreign.append("pool_type")
        if foreign or "multimodal_cfg" in config:
            raise VmrError(
                f"Expected a model with CLIP's own text tower and byte pairs (text_encoder.model), found "
                f"{model} with {', '.join(foreign) or 'multimodal_cfg'}. Choose another, such as ViT-B-32."
            )
        self.name = model if self._folder is None else self._folder.name
        self.model_name = model
        self.pretrained = pretrained
        self.special_tokens = special_tokens
        self.longest = longest
        self.device = device
        self.token_dim: int = text["width"]
        self.dim: int = config["embed_dim"]
        self._config = config
        self._room = text.get("context_length", 77) - 2
        if longest is not None:
            self._room = min(longest, self._room)

    @cached_property
    def _weights(self) -> Path:
        """The file of weights, downloaded if `pretrained` is a tag."""
        if self._folder is not None:
            return self._folder / "open_clip_model.safetensors"
        if self.pretrained is None:
            raise VmrError(
                f"Expected weights of {self.name}. Set text_encoder.pretrained to a file or an open_clip tag."
            )
        file = Path(self.pretrained).expanduser()
        if file.is_file():
            return file
        from open_clip import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

        published = get_pretrained_cfg(self.name, self.pretrained)
        if not published:
            tags = list_pretrained_tags_by_model(self.name)
            raise VmrError(
                f"Expected text_encoder.pretrained to be a file or a tag of {self.name} "
                f"({', '.join(tags) or 'which has none'}), found '{self.pretrained}'."
            )
        if published.get("quick_gelu", False) != self._config.get("quick_gelu", False):
            twin = self.name.removesuffix("-quickgelu")
            twin = twin if twin != self.name else f"{self.name}-quickgelu"
            raise VmrError(
                f"The weights '{self.pretrained}' were trained with another activation than {self.name} has. "
                f"Set text_encoder.model={twin}."
            )
        try:
            return Path(download_pretrained(published))
        except Exception as error:  # no network, disk full, …: many types
            raise VmrError(
                f"The weights '{self.pretrained}' of {self.name} cannot be downloaded ({error!s:.200}). "
                "Without network: copy the file here and set text_encoder.pretrained=FILE."
            ) from error

    @cached_property
    def revision(self) -> str:
        """The hash of the architecture, of the weights, and of a limit on the length."""
        limit = [] if self.longest is None else [f"first {self.longest}"]
        config = json.dumps(self._config, sort_keys=True)
        own = [] if self._own_tokens is None else [self._own_tokens.read_bytes()]
        return content_hash(config, file_hash(self._weights), *own, *limit).hex()

    def manifest(self) -> dict[str, Any]:
        """Returns the model, its weights, and the definition of a token vector."""
        return {
            **super().manifest(),
            "token_dim": self.token_dim,
            "tokens": "after the final LayerNorm, before the projection",
            "special_tokens": self.special_tokens,
        }

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids of the start and the end token, if `tokens` has rows for them."""
        return self._tokenizer.ends if self.special_tokens else ()

    def token_text(self, text: str) -> list[str]:
        """Returns the text of each byte pair, "" for the start and the end token."""
        ids = self.tokenise([text])[0].ids.tolist()
        return ["" if one in self.end_ids else self._tokenizer.word(one) for one in ids]

    def lost_words(self, texts: Sequence[str], max_tokens: int | None = None) -> LostWords:
        """Counts the words that the vocabulary lacks (byte pairs: none), and those past the longest query."""
        return count_lost(
            (
                [
                    tokens.text[start:end] if number == self._tokenizer.unknown else None
                    for number, (start, end) in zip(tokens.ids.tolist(), tokens.offsets.tolist(), strict=True)
                ]
                for tokens in self.tokenise(texts)
            ),
            max_tokens,
        )

    @property
    def _own_tokens(self) -> Path | None:
        """The tokenizer of the model's own, if it has one."""
        file = None if self._folder is None else self._folder / "tokenizer.json"
        return file if file is not None and file.is_file() else None

    @cached_property
    def _tokenizer(self) -> _BytePairs | _OwnTokens:
        return _BytePairs() if self._own_tokens is None else _OwnTokens(self._own_tokens)

    def _pieces(self, text: str) -> Tokens:
        """Splits a sentence, with room for the start and the end token."""
        tokens = self._tokenizer.split(text)
        room = slice(self._room)
        return Tokens(tokens.ids[room], tokens.offsets[room], tokens.text)

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Splits sentences into CLIP's byte pairs or the model's own tokens; rows are those of `tokens`.

        Args:
            texts: N sentences.

        Returns:
            N token lists, of at most 75 pieces for the usual context of 77.
        """
        split = [self._pieces(text) for text in texts]
        if not self.special_tokens:
            return split
        nothing = np.zeros((1, 2), np.int64)
        return [
            Tokens(
                np.array(self._with_ends(tokens), np.int64),
                np.concatenate([nothing, tokens.offsets, nothing]),
                tokens.text,
            )
            if len(tokens.ids)
            else tokens
            for tokens in split
        ]

    def _with_ends(self, tokens: Tokens) -> list[int]:
        start, end = self._tokenizer.ends
        return [start, *tokens.ids.tolist(), end]

    def tokens(self, texts: Sequence[str]) -> list[Array]:
        """Embeds sentences token by token.

        Args:
            texts: N sentences.

        Returns:
            N arrays (L, token_dim) float32, not normalised; with `special_tokens`, including the rows of the
            start and the end token.

        Raises:
            VmrError: if a sentence has no token.
        """
        states = self.states(texts)
        return states if self.special_tokens else [rows[1:-1] for rows in states]

    def _inputs(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._with_ends(self._pieces(text)) for text in texts]

    @cached_property
    def _model(self) -> Any:
        """The text tower; the image tower is built to load the file, then deleted."""
        import open_clip

        file = self._weights
        try:
            # Pickle is never executed: torch.load with weights_only, or safetensors.
            model = open_clip.create_model(
                open_clip_name(self.model_name),
                pretrained=None if self._folder is not None else str(file),
                precision="fp32",
                weights_only=True,
            )
        except Exception as error:  # RuntimeError, UnpicklingError, SafetensorError, KeyError, …
            raise VmrError(
                f"{file} does not hold weights of {self.name} that can be read without running code "
                f"({error!s:.300}). Expected safetensors or a plain state dict; OpenAI's own .pt files are "
                "programs (TorchScript): use the tag or another copy."
            ) from error
        tower = getattr(model, "text", model)
        if hasattr(tower, "visual"):
            del tower.visual
        return tower.eval().to(self.device)

    def _forward(self, ids: list[list[int]]) -> tuple[Array, Array]:
        tower = self._model
        tokens = torch.tensor(ids, device=self.device)
        length = tokens.shape[1]
        # Attention is causal, so the padding to 77 tokens that open_clip adds need not be computed.
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
        pooled = x[:, -1]
        if isinstance(tower.text_projection, torch.nn.Linear):
            pooled = tower.text_projection(pooled)
        elif tower.text_projection is not None:
            pooled = pooled @ tower.text_projection
        return x.half().cpu().numpy(), pooled.half().cpu().numpy()


def _configuration(model: str) -> dict[str, Any]:
    """Returns open_clip's configuration of a model.

    Raises:
        VmrError: if there is no such model, or its folder cannot be read.
    """
    import open_clip  # takes seconds

    try:
        config = open_clip.get_model_config(open_clip_name(model))
    except (OSError, ValueError) as error:
        raise VmrError(
            f"Expected a model of open_clip at {model} (open_clip_config.json, open_clip_model.safetensors), "
            f"found: {error}."
        ) from error
    if config is None:
        close = nearest(model, (*PACKAGED, *open_clip.list_models())) or open_clip.list_models()[:5]
        raise unknown("CLIP model", model, close)
    return dict(config)


_FOREIGN = ("hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs", "no_causal_mask", "embed_cls")
"""Keys of a configuration whose text tower is not CLIP's own: BERT, SigLIP, CoCa."""
