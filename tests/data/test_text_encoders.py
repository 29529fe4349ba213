"""The other text encoders, on tiny random models: each number is what the library itself computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.features.queries import EncodedQueries, WordVectorQueries
from vmr_zoo.data.text.clip import ClipTextEncoder
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.data.text.llama import LlamaEmbeddings
from vmr_zoo.data.text.noun_chunks import NounChunks
from vmr_zoo.data.text.sentence import SentenceEncoder
from vmr_zoo.data.text.word_vectors import WordVectorEncoder
from vmr_zoo.errors import VmrError

TEXTS = ["A person opens the door.", "the unflappable dog runs", "a person runs"]
TINY = "tiny-clip"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A CLIP of 12 text dimensions and a joint space of 8, and the file of its weights."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 12, "heads": 2, "layers": 2},
    }
    (folder / f"{TINY}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(TINY).eval()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return model, folder / "weights.safetensors"


def test_clip_is_encode_text_and_its_token_states(clip: tuple[Any, Path], tmp_path: Path) -> None:
    import open_clip

    model, weights = clip
    encoder = ClipTextEncoder(tmp_path, TINY, str(weights))
    assert (encoder.token_dim, encoder.dim) == (12, 8)
    ids = open_clip.get_tokenizer(TINY)(TEXTS)
    with torch.inference_mode():
        theirs = model.encode_text(ids).numpy()
        states = model.forward_intermediates(text=ids, text_indices=1, normalize_intermediates=True)
    np.testing.assert_allclose(encoder.pooled(TEXTS), theirs, atol=2e-3)
    np.testing.assert_allclose(
        encoder.sentences(TEXTS), theirs / np.linalg.norm(theirs, axis=1)[:, None], atol=2e-3
    )
    hidden = states["text_intermediates"][0].numpy()
    for row, (mine, words) in enumerate(zip(encoder.states(TEXTS), encoder.tokenise(TEXTS), strict=True)):
        count = len(words.ids)
        assert words.ids.tolist() == ids[row, 1 : count + 1].tolist()
        np.testing.assert_allclose(mine, hidden[row, : count + 2], atol=2e-3)
        np.testing.assert_array_equal(encoder.tokens([TEXTS[row]])[0], mine[1:-1])
        # The end token's state, projected, is the sentence.
        end = mine[-1] @ model.text_projection.detach().numpy()
        np.testing.assert_allclose(end, theirs[row], atol=5e-3)


def test_clip_cuts_long_sentences_as_clip_does(clip: tuple[Any, Path], tmp_path: Path) -> None:
    import open_clip

    model, weights = clip
    encoder = ClipTextEncoder(tmp_path, TINY, str(weights))
    long = "a person opens the door " * 30
    assert len(encoder.tokenise([long])[0].ids) == len(encoder.tokens([long])[0]) == 75
    with torch.inference_mode():
        theirs = model.encode_text(open_clip.get_tokenizer(TINY)([long])).numpy()
    np.testing.assert_allclose(encoder.pooled([long]), theirs, atol=2e-3)


def test_clip_queries_with_noun_masks_and_special_tokens(clip: tuple[Any, Path], tmp_path: Path) -> None:
    query = Query("q", "v", "  The person  OPENS an unflappable door.", ((0.0, 1.0),), 2.0)
    encoder = ClipTextEncoder(tmp_path, TINY, str(clip[1]))
    source = EncodedQueries(encoder, normalise=True, nouns=NounChunks())
    assert source.dim == 12
    assert source.load(query).shape == (len(source.token_ids(query)), 12)
    mask = source.noun_mask(query)
    # the person / opens / an unflappable (in pieces) door / .
    assert mask.tolist() == [True, True, False, *[True] * (len(mask) - 4), False]
    assert len(mask) > 7

    ends = EncodedQueries(
        ClipTextEncoder(tmp_path, TINY, str(clip[1]), special_tokens=True), normalise=True, nouns=NounChunks()
    )
    assert ends.encoder.work.computed == 0
    np.testing.assert_array_equal(ends.load(query)[1:-1], source.load(query))
    assert ends.token_ids(query)[[0, -1]].tolist() == [49406, 49407]
    assert ends.noun_mask(query).tolist() == [False, *mask, False]
    assert ends.manifest() != source.manifest()


def test_clip_weights_that_cannot_be_used(clip: tuple[Any, Path], tmp_path: Path) -> None:
    with pytest.raises(VmrError, match="Did you mean tiny-clip"):
        ClipTextEncoder(tmp_path, "tiny-clop", "x")
    with pytest.raises(VmrError, match="to be a file or a tag"):
        ClipTextEncoder(tmp_path, TINY, str(tmp_path / "no.safetensors")).tokens(TEXTS)
    with pytest.raises(VmrError, match="model=ViT-B-32-quickgelu"):
        ClipTextEncoder(tmp_path, "ViT-B-32", "openai").tokens(TEXTS)

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(VmrError, match="without running code"):
        ClipTextEncoder(tmp_path, TINY, str(tmp_path / "evil.pt")).tokens(TEXTS)
    assert not (tmp_path / "ran").exists()


def tokenizer(words: list[str], **options: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **options)


WORDS = ["<unk>", "<s>", "</s>", "a", "A", "the", "person", "door", "opens", "runs", "dog", "."]


@pytest.mark.parametrize("shards", [False, True])
def test_llama_is_its_embedding_table(tmp_path: Path, shards: bool) -> None:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = LlamaModel(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "llama", max_shard_size=700 if shards else "1GB")
    assert (tmp_path / "llama" / "model.safetensors").exists() is not shards
    tokenizer(WORDS, bos_token="<s>").save_pretrained(tmp_path / "llama")

    encoder = LlamaEmbeddings(tmp_path / "cache", tmp_path / "llama")
    table = model.get_input_embeddings().weight.detach().float().numpy()
    ids = [4, 6, 8, 5, 7, 11]
    assert encoder.tokenise(TEXTS[:1])[0].ids.tolist() == ids
    np.testing.assert_allclose(encoder.tokens(TEXTS[:1])[0], table[ids], atol=1e-3)
    np.testing.assert_allclose(encoder.pooled(TEXTS[:1])[0], table[ids].mean(0), atol=1e-3)
    source = EncodedQueries(encoder, normalise=True, nouns=NounChunks())
    query = Query("q", "v", TEXTS[0], ((0.0, 1.0),), 2.0)
    assert source.noun_mask(query).tolist() == [True, True, False, True, True, False]


def test_llama_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VmrError, match=r"it has no config\.json"):
        LlamaEmbeddings(tmp_path, tmp_path)

    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(VmrError, match=r"it has no model\.safetensors\.$"):
        _ = LlamaEmbeddings(tmp_path, tmp_path).revision

    def refuse(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(VmrError, match="is not a local folder, and the hub"):
        LlamaEmbeddings(tmp_path, "meta/llama")


def glove(folder: Path) -> tuple[Path, Path]:
    """The same three words as GloVe publishes them, one word with a blank in it, and as npz."""
    vectors = np.array([[3.0, 4.0], [0.5, -0.25], [1.0, 0.0]], np.float32)
    lines = ["person 3 4", ". . . 9 9", "runs 0.5 -0.25", "dog 1.0 0"]
    (folder / "glove.txt").write_text("\n".join(lines) + "\n")
    np.savez(folder / "glove.npz", words=np.array(["person", "runs", "dog"]), vectors=vectors)
    return folder / "glove.txt", folder / "glove.npz"


def test_glove_as_published_serves_what_its_npz_does(tmp_path: Path) -> None:
    text, packed = glove(tmp_path)
    query = Query("q", "v", "A Person runs, runs!", ((0.0, 1.0),), 2.0)
    a, b = (WordVectorQueries(file, 2, normalise=True, name="glove") for file in (text, packed))
    np.testing.assert_array_equal(a.load(query), b.load(query))
    np.testing.assert_allclose(a.load(query)[0], [0.6, 0.8], atol=1e-5)
    assert a.missing([query])[0].ids == ("q",)
    with pytest.raises(FeatureError, match="expected lines of 3 numbers, line 1 has 2"):
        WordVectorQueries(text, 3, normalise=True).load(query)
    with pytest.raises(FeatureError, match=r"of 3 numbers at .*glove\.npz; its vectors have 2 numbers"):
        WordVectorQueries(packed, 3, normalise=True).load(query)
    with pytest.raises(VmrError, match=r"of 3 numbers at .*glove\.npz .*: its vectors have 2 numbers"):
        WordVectorEncoder(tmp_path / "cache", packed, "glove", dim=3).tokens([query.text])

    encoder = WordVectorEncoder(tmp_path / "cache", text, "glove", dim=2)
    np.testing.assert_allclose(encoder.pooled([query.text]), [[4 / 3, 3.5 / 3]], atol=1e-3)
    found = encoder.tokenise([query.text])[0]
    assert [found.text[a:b] for a, b in found.offsets] == ["person", "runs", "runs"]
    with pytest.raises(VmrError, match="at least one word that glove knows"):
        encoder.tokens(["Zebras!"])


def test_another_sentence_model_from_a_folder_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with one special token, at the end, and a projection of the sentence vector."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path / "bert")
    fast = tokenizer(WORDS, eos_token="</s>", pad_token="<unk>", model_max_length=32)
    fast.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    fast.save_pretrained(tmp_path / "bert")
    tower = modules.Transformer(str(tmp_path / "bert"))
    theirs = SentenceTransformer(modules=[tower, modules.Pooling(8), modules.Dense(8, 5)], device="cpu")
    folder = tmp_path / "own-model"
    theirs.save(str(folder))

    encoder: TextEncoder = SentenceEncoder(tmp_path / "cache", folder)
    assert (encoder.name, encoder.token_dim, encoder.dim) == ("own-model", 8, 5)
    np.testing.assert_allclose(encoder.pooled(TEXTS), theirs.encode(TEXTS), atol=2e-3)
    states = theirs.encode(TEXTS[:1], output_value="token_embeddings")[0].numpy()
    np.testing.assert_allclose(encoder.tokens(TEXTS[:1])[0], states[:-1], atol=2e-3)

    def download(name: str, **_: object) -> str:
        assert name == "someone/own-model"
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    named = SentenceEncoder(tmp_path / "cache", "someone/own-model")
    assert named.manifest() == encoder.manifest()
