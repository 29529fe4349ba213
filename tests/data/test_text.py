"""The sentence encoder: real embeddings, the same whether cached or not, in whatever company."""

from pathlib import Path

import numpy as np
import pytest

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.features.queries import EncodedQueries
from vmr_zoo.data.text.cache import EmbeddingCache
from vmr_zoo.data.text.sentence import SentenceEncoder
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.hashing import content_hash

TEXTS = [
    "person opens the door.",
    "a person is opening a door",
    "the man washes some dishes in the sink.",
    "person opens the door.",
    "She isn't re-tying her shoelaces",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def encoder(cache: Path) -> SentenceEncoder:
    return SentenceEncoder(cache)


def test_sentences_are_those_of_sentence_transformers(encoder: SentenceEncoder) -> None:
    ours = encoder.sentences(TEXTS)
    theirs = encoder._model.encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    similarity = ours @ ours.T
    assert similarity[0, 3] == pytest.approx(1, abs=1e-5)
    assert similarity[0, 1] > 0.8 > 0.3 > similarity[0, 2]


def test_tokens_are_words_with_ids_and_characters(encoder: SentenceEncoder) -> None:
    for text, vectors, words in zip(TEXTS, encoder.tokens(TEXTS), encoder.tokenise(TEXTS), strict=True):
        assert vectors.shape == (len(words.ids), 384)
        assert vectors.dtype == np.float32
        covered = [text[start:end] for start, end in words.offsets]
        assert "".join(covered) == text.replace(" ", "")
    theirs = encoder._model.encode(TEXTS, output_value="token_embeddings")
    np.testing.assert_allclose(encoder.tokens(TEXTS)[2], theirs[2].cpu().numpy()[1:-1], atol=2e-3)


def test_an_embedding_depends_on_its_sentence_alone(encoder: SentenceEncoder, tmp_path: Path) -> None:
    other = SentenceEncoder(tmp_path, batch_size=2, workers=1)
    other.tokens([f"person number {i} opens the door." for i in range(5)])
    for text, vectors in zip(TEXTS, encoder.tokens(TEXTS), strict=True):
        np.testing.assert_array_equal(other.tokens([text])[0], vectors)


def test_a_warm_cache_needs_no_model(
    encoder: SentenceEncoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encoder.sentences(TEXTS)
    files = sorted(cache.rglob("*.safetensors"))

    def refuse(*_: object) -> None:
        raise AssertionError("embedded although cached")

    monkeypatch.setattr(SentenceEncoder, "_embed", refuse)
    np.testing.assert_array_equal(SentenceEncoder(cache).sentences(TEXTS), before)
    assert sorted(cache.rglob("*.safetensors")) == files


def test_broken_cache_and_empty_sentence(encoder: SentenceEncoder, cache: Path, tmp_path: Path) -> None:
    encoder.sentences(TEXTS)
    for path in cache.rglob("*.safetensors"):
        copy = tmp_path / path.relative_to(cache)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VmrError, match="Delete the file"):
        SentenceEncoder(tmp_path).sentences(TEXTS)
    with pytest.raises(VmrError, match="at least one word"):
        encoder.sentences([""])


def test_numbers_beyond_half_precision_are_not_cached_as_infinite(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    with pytest.raises(VmrError, match=r"embeddings of tokens .* found 100000"):
        cache.add([b"k" * 32], [np.full((2, 3), 1e5)], np.ones((1, 3)))
    assert cache.missing([b"k" * 32])


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match="sentence-transformers model"):
        SentenceEncoder(tmp_path, model=tmp_path)


def test_queries(encoder: SentenceEncoder) -> None:
    source = EncodedQueries(encoder, normalise=True, max_tokens=4)
    query = Query("q", "v", TEXTS[0], ((0.0, 1.0),), 2.0)
    loaded = source.load(query)
    assert loaded.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(loaded, axis=1), 1, atol=1e-4)
    np.testing.assert_array_equal(source.token_ids(query), encoder.tokenise([TEXTS[0]])[0].ids[:4])


def test_hash_keeps_parts_apart() -> None:
    assert content_hash("ab", "c") != content_hash("a", "bc")
