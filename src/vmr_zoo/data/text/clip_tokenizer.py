"""The tokenizers of open_clip's models: CLIP's byte pairs, or one of the tokenizers library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.text.encoder import Tokens
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.packaged import open_clip_name


class BytePairs:
    """CLIP's own tokenizer: the byte pairs that open_clip ships.

    Attributes:
        before: ids of the special tokens before a sentence.
        after: ids of those after it.
        padding: id that fills the context of towers that read all of it.
        unknown: id of unknown words; None if there are none.
        content: what determines the ids, of a tokenizer that open_clip does not ship.
    """

    unknown: int | None = None
    padding = 0
    content = b""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._tokenizer = SimpleTokenizer()
        self.before, self.after = (self._tokenizer.sot_token_id,), (self._tokenizer.eot_token_id,)

    def split(self, text: str) -> Tokens:
        """Splits a sentence, without special tokens.

        Returns:
            The ids; for each id the characters of its word; and the text that these characters index: cleaned
            and in lower case.
        """
        tokenizer = self._tokenizer
        cleaned = tokenizer.clean_fn(text)
        ids, offsets = [], []
        for word in tokenizer.pat.finditer(cleaned):
            symbols = "".join(tokenizer.byte_encoder[byte] for byte in word.group().encode())
            for piece in tokenizer.bpe(symbols).split(" "):
                ids.append(tokenizer.encoder[piece])
                offsets.append(word.span())
        return Tokens(np.array(ids, np.int64), np.array(offsets, np.int64).reshape(-1, 2), cleaned)

    def word(self, number: int) -> str:
        """Returns the text of an id."""
        return str(self._tokenizer.decoder[number]).removesuffix("</w>")


class OwnTokens:
    """A tokenizer of the tokenizers library; attributes as `BytePairs`."""

    def __init__(
        self,
        tokenizer: Any,
        content: bytes,
        clean: Callable[[str], str] = lambda text: text,
        padding: int = 0,
        dropped: int | None = None,
    ) -> None:
        """Reads the special tokens.

        Args:
            tokenizer: a `tokenizers.Tokenizer`.
            content: what determines the ids.
            clean: applied to a sentence first.
            padding: id of the padding.
            dropped: id of a special token that models see as 0.
        """
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.content = content
        self._clean = clean
        self.padding = padding
        one = self._tokenizer.encode("a")
        mask = one.special_tokens_mask
        ids = [0 if number == dropped else number for number in one.ids]
        self.before = tuple(ids[: mask.index(0)])
        self.after = tuple(ids[len(mask) - mask[::-1].index(0) :])
        self.unknown: int | None = self._tokenizer.token_to_id("[UNK]")

    def split(self, text: str) -> Tokens:
        """Splits a sentence, without special tokens."""
        text = self._clean(text)
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return Tokens(np.array(found.ids, np.int64), np.array(found.offsets, np.int64).reshape(-1, 2), text)

    def word(self, number: int) -> str:
        """Returns the text of an id."""
        return str(self._tokenizer.id_to_token(number))


def read_tokenizer(file: Path) -> OwnTokens:
    """Reads the `tokenizer.json` of a model's folder."""
    from tokenizers import Tokenizer

    return OwnTokens(Tokenizer.from_file(str(file)), file.read_bytes())


def hub_tokenizer(model: str, text: Mapping[str, Any]) -> OwnTokens:
    """Loads the tokenizer that a model's configuration names, as open_clip does: from the hub or a folder.

    Args:
        model: name of the model.
        text: `text_cfg` of its configuration.

    Raises:
        VmrError: if it cannot be loaded, or splits sentences in a way that is not supported.
    """
    import open_clip

    name = text["hf_tokenizer_name"]
    if text.get("tokenizer_mode"):
        raise VmrError(f"{model} reads sentences in tokenizer_mode={text['tokenizer_mode']}: not supported.")
    try:
        found = open_clip.get_tokenizer(open_clip_name(model))
        inner = found.tokenizer.backend_tokenizer
    except Exception as error:  # no network, files missing, a library missing: many types
        raise VmrError(needs_files(model, "tokenizer", name, "tokenizer.json", error)) from error
    dropped = found.tokenizer.sep_token_id if found.strip_sep_token else None
    return OwnTokens(inner, inner.to_str().encode(), found.clean_fn, found.tokenizer.pad_token_id, dropped)


def needs_files(model: str, what: str, name: str, files: str, error: Exception) -> str:
    """Returns the message for a part of a model that open_clip does not ship and that cannot be loaded."""
    return (
        f"The text tower of {model} needs the {what} '{name}' ({files}), which is downloaded once from the "
        f"Hugging Face hub and cannot be loaded ({error!s:.200}). Without network: copy the cache of the hub "
        "(HF_HOME) from a machine that has it, or set text_encoder.model=local-dir:FOLDER with "
        "open_clip_config.json, weights and tokenizer files."
    )
