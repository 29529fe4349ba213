import numpy as np
import pytest

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.features.files import FileFeatures, QueryFiles
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.features.queries import ClipTokenFiles
from vmr_zoo.data.features.store import FileStore
from vmr_zoo.data.text.noun_chunks import NounChunks


def tokens(folder, **options) -> ClipTokenFiles:
    files = FileFeatures("clip_text", 4, FileStore(folder, ".npy", names=["qid{id}"]), normalise=False)
    return ClipTokenFiles(QueryFiles(files, max_tokens=None), NounChunks(), **options)


def query(text: str) -> Query:
    return Query("q", "v", text, 10.0, ((0.0, 5.0),))


@pytest.mark.parametrize("text", ["A person's unflappable  dog runs &amp; sits.", "Two éclairs are eaten!"])
def test_ids_are_those_of_clip(tmp_path, text):
    source = tokens(tmp_path)
    ids, offsets, cleaned = source.tokenise(text)
    assert ids.tolist() == source._tokenizer.encode(text)
    assert len(offsets) == len(ids)
    assert (offsets[:, 1] <= len(cleaned)).all()


def test_features_and_nouns_follow_the_tokens(tmp_path):
    text = "The unflappable dog runs."
    source = tokens(tmp_path, max_tokens=5)
    pieces = len(source.tokenise(text)[0])
    assert pieces == 5
    rows = np.arange(8 * 4, dtype=np.float32).reshape(8, 4)
    np.save(tmp_path / "qidq.npy", rows)
    assert np.array_equal(source.load(query(text)), rows[1:6])
    ids = source.token_ids(query(text))
    words = [source._tokenizer.decoder[i] for i in ids]
    assert words[0] == "the</w>"
    mask = source.noun_mask(query(text))
    assert mask.tolist() == [word != "runs</w>" and word != ".</w>" for word in words]


def test_a_file_of_another_sentence_is_refused(tmp_path):
    np.save(tmp_path / "qidq.npy", np.ones((3, 4), np.float32))
    with pytest.raises(FeatureError, match="expected at least 5"):
        tokens(tmp_path).load(query("the dog runs"))
