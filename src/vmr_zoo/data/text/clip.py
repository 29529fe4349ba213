"""Text towers of open_clip as text encoders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmr_zoo.data.text.clip_tokenizer import BytePairs, OwnTokens, hub_tokenizer, needs_files, read_tokenizer
from vmr_zoo.data.text.encoder import TextEncoder, Tokens
from vmr_zoo.data.text.lost_words import LostWords, count_lost
from vmr_zoo.errors import VmrError, nearest, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.hashing import content_hash, file_hash
from vmr_zoo.utils.packaged import PACKAGED, open_clip_folder, open_clip_name, quiet


class ClipTextEncoder(TextEncoder):
    """The text tower of a CLIP model, by open_clip: CLIP's own, SigLIP's, CoCa's, BERT's and others.

    Token vectors are the states after the final LayerNorm, before the projection: `last_hidden_state` in the
    files of the Moment-DETR family. The sentence vector is the pooled state, CLIP's the one of the end token,
    projected into the joint space with images: `pooler_output` in those files, `encode_text` in open_clip.
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
            special_tokens: whether token vectors include the special tokens, such as the start and the end
                token in the files of the Moment-DETR family.
            longest: only the first byte pairs of a sentence are read, so the end token follows them; None: as
                many as the model has positions for.
            device: such as "cpu" or "cuda".
            batch_size: sentences per batch.
            workers: batches computed in parallel.

        Raises:
            VmrError: if open_clip knows no such model, or the configuration of its text tower cannot be
                loaded.
        """
        super().__init__(cache, batch_size, workers)
        self._folder = open_clip_folder(model)
        config = _configuration(model)
        text = config["text_cfg"]
        self.name = model if self._folder is None else self._folder.name
        self.model_name = model
        self.pretrained = pretrained
        self.special_tokens = special_tokens
        self.longest = longest
        self.device = device
        self._transformers = "hf_model_name" in text  # a tower of the transformers library
        # CLIP's own tower is causal: what follows the end token changes nothing. Others see the padding.
        self._padded = not self._transformers and (
            any(text.get(key) for key in ("no_causal_mask", "embed_cls"))
            or text.get("pool_type", "argmax") != "argmax"
        )
        self._context: int = text.get("context_length", 77)
        self._longest = self._context if longest is None else longest
        self.token_dim: int = _hidden_size(model, text) if self._transformers else text["width"]
        self.dim: int = config["embed_dim"]
        self._config = config

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
        own = [content] if (content := self._tokenizer.content) else []
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
        """The ids of the special tokens before and after a sentence, if `tokens` has rows for them."""
        return (*self._tokenizer.before, *self._tokenizer.after) if self.special_tokens else ()

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

    @cached_property
    def _tokenizer(self) -> BytePairs | OwnTokens:
        """The tokenizer in the model's folder, the one that its configuration names, or CLIP's own."""
        file = None if self._folder is None else self._folder / "tokenizer.json"
        text = self._config["text_cfg"]
        if file is not None and file.is_file() and not (self._padded or self._transformers):
            return read_tokenizer(file)
        return hub_tokenizer(self.model_name, text) if "hf_tokenizer_name" in text else BytePairs()

    def _pieces(self, text: str) -> Tokens:
        """Splits a sentence, with room for the special tokens."""
        tokens = self._tokenizer.split(text)
        specials = len(self._tokenizer.before) + len(self._tokenizer.after)
        room = slice(min(self._longest, self._context - specials))
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
        before, after = (np.zeros((len(ids), 2), np.int64) for ids in self._specials)
        return [
            Tokens(
                np.array(self._with_ends(tokens), np.int64),
                np.concatenate([before, tokens.offsets, after]),
                tokens.text,
            )
            if len(tokens.ids)
            else tokens
            for tokens in split
        ]

    @property
    def _specials(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._tokenizer.before, self._tokenizer.after

    def _with_ends(self, tokens: Tokens) -> list[int]:
        before, after = self._specials
        return [*before, *tokens.ids.tolist(), *after]

    def tokens(self, texts: Sequence[str]) -> list[Array]:
        """Embeds sentences token by token.

        Args:
            texts: N sentences.

        Returns:
            N arrays (L, token_dim) float32, not normalised; with `special_tokens`, including their rows.

        Raises:
            VmrError: if a sentence has no token.
        """
        states = self.states(texts)
        if self.special_tokens:
            return states
        before, after = map(len, self._specials)
        return [rows[before : len(rows) - after] for rows in states]

    def _inputs(self, texts: Sequence[str]) -> list[list[int]]:
        ids = [self._with_ends(self._pieces(text)) for text in texts]
        if not self._padded:
            return ids
        return [[*row, *[self._tokenizer.padding] * (self._context - len(row))] for row in ids]

    def _length(self, ids: list[int]) -> int:
        """Returns the length of a padded input without its padding."""
        after = self._tokenizer.after
        end = len(ids)
        while end and ids[end - 1] in (self._tokenizer.padding, *after):
            end -= 1
        return end + len(after)

    @cached_property
    def _model(self) -> Any:
        """The text tower; the image tower is built to load the file, then deleted."""
        import open_clip

        file = self._weights
        try:
            # Pickle is never executed: torch.load with weights_only, or safetensors.
            with quiet():
                model = open_clip.create_model(
                    open_clip_name(self.model_name),
                    pretrained=None if self._folder is not None else str(file),
                    precision="fp32",
                    force_custom_text=True,  # the text tower is a module of its own
                    weights_only=True,
                )
        except Exception as error:  # RuntimeError, UnpicklingError, SafetensorError, KeyError, …
            raise VmrError(
                f"{file} does not hold weights of {self.name} that can be read without running code "
                f"({error!s:.300}). Expected safetensors or a plain state dict; OpenAI's own .pt files are "
                "programs (TorchScript): use the tag or another copy."
            ) from error
        tower = model.text.eval().to(self.device)
        tower.output_tokens = True
        return tower

    def _forward(self, ids: list[list[int]]) -> tuple[Iterable[Array], Array]:
        tower = self._model
        tokens = torch.tensor(ids, device=self.device)
        if self._transformers:
            mask = (tokens != tower.config.pad_token_id).long()
            found = tower.transformer(input_ids=tokens, attention_mask=mask)
            pooled = tower.proj(tower.pooler(found, mask))
            return found.last_hidden_state.half().cpu().numpy(), pooled.half().cpu().numpy()
        if self._padded:
            pooled, x = tower(tokens)
            if tower.cls_emb is not None:  # CoCa normalises the pooled state only
                x = tower.ln_final(x)
            rows = x.half().cpu().numpy()
            lengths = map(self._length, ids)
            return [row[:length].copy() for row, length in zip(rows, lengths, strict=True)], (
                pooled.half().cpu().numpy()
            )
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


def _hidden_size(model: str, text: dict[str, Any]) -> int:
    """Returns the size of the states of a tower of the transformers library.

    Raises:
        VmrError: if its configuration cannot be loaded.
    """
    from open_clip.hf_configs import arch_dict
    from transformers import AutoConfig

    name = text["hf_model_name"]
    try:
        config = AutoConfig.from_pretrained(name)
        return int(getattr(config, arch_dict[config.model_type]["config_names"]["width"]))
    except Exception as error:  # no network, no such model, an architecture that open_clip does not know
        raise VmrError(needs_files(model, "configuration", name, "config.json", error)) from error
