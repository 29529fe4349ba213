"""Words of the Penn Treebank, tables of word vectors, and the count of what is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.features.queries import WordVectorQueries
from vmr_zoo.data.text.lost_words import count_lost
from vmr_zoo.data.text.treebank import treebank_words

WORDS = ["person", "'s", "dog", "does", "n't", "walk-in", ".", "mr."]


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("the person's dog doesn't.", "the person 's dog does n't ."),
        ("they're in a walk-in he/she left", "they 're in a walk-in he/she left"),
        ("a dog, then: two (or 1,000) at 3:30!?", "a dog , then : two ( or 1,000 ) at 3:30 ! ?"),
        ('it says "go".', "it says `` go '' ."),
        ("the dogs' owner can't, cannot...", "the dogs ' owner ca n't , can not ..."),
        ("the 'perfect' shave", "the ' perfect ' shave"),
        ("mr. Smith sits. he leaves", "mr. Smith sits. he leaves"),
        ("", ""),
    ],
)
def test_treebank_words(sentence: str, words: str) -> None:
    split = treebank_words(sentence)
    assert [word.text for word in split] == words.split()
    assert all(sentence[w.start : w.end] == w.text for w in split if w.text not in ("``", "''"))


def table(folder: Path, **options: object) -> WordVectorQueries:
    vectors = np.eye(len(WORDS), dtype=np.float32) * 2
    np.savez(folder / "table.npz", words=np.array(WORDS), vectors=vectors)
    return WordVectorQueries(folder / "table.npz", len(WORDS), normalise=False, **options)


def query(text: str) -> Query:
    return Query("q", "v", text, ((0.0, 1.0),), 2.0)


def test_words_are_split_as_the_table_has_them(tmp_path: Path) -> None:
    source = table(tmp_path)
    split = source.table.split("Mr. Person's dog. Doesn't xyz")
    assert [(word.text, word.row) for word in split] == [
        ("mr.", 7),
        ("person", 0),
        ("'s", 1),
        ("dog", 2),
        (".", 6),  # a period within the text
        ("does", 3),
        ("n't", 4),
        ("xyz", None),
    ]
    assert source.token_ids(query("person's xyz dog")).tolist() == [0, 1, 2]


def test_unknown_words_may_be_zeros(tmp_path: Path) -> None:
    source = table(tmp_path, unknown="zero", max_tokens=3)
    loaded = source.load(query("person xyz dog does"))
    assert loaded.tolist() == (2 * np.eye(len(WORDS))[[0, 0, 2]] * [[1], [0], [1]]).tolist()
    assert source.token_ids(query("person xyz dog")).tolist() == [0, len(WORDS), 2]
    assert not source.load(query("xyz")).any()
    with pytest.raises(FeatureError, match="knows no word of 'xyz'"):
        table(tmp_path).load(query("xyz"))


def test_lost_words_are_counted(tmp_path: Path) -> None:
    lost = table(tmp_path, max_tokens=2).lost_words(["person xyz dog does", "person, dog", "xyz abc"])
    assert (lost.sentences, lost.tokens, lost.unknown.total()) == (3, 8, 3)  # the comma is no loss
    assert lost.unknown.most_common(1) == [("xyz", 2)]
    assert (lost.sentences_with_unknown, lost.cut, lost.sentences_cut) == (2, 1, 1)
    assert count_lost([[None] * 5]).cut == 0


def test_lines_of_another_length_are_skipped_but_not_most(tmp_path: Path) -> None:
    file = tmp_path / "glove.txt"
    file.write_text("short 1\nperson 1 2 3\na b 1 2 3\ndog 4 5 6\nruns 7 8 9\n")
    source = WordVectorQueries(file, 3, normalise=False)
    assert set(source.table.rows) == {"person", "dog", "runs"}
    assert source.load(query("dog runs")).tolist() == [[4, 5, 6], [7, 8, 9]]
    with pytest.raises(FeatureError, match="expected lines of 4 numbers, line 1 has 1"):
        WordVectorQueries(file, 4, normalise=False).load(query("dog"))


def test_a_byte_order_mark_is_not_part_of_the_first_word(tmp_path: Path) -> None:
    file = tmp_path / "glove.txt"
    file.write_text("dog 4 5 6\nruns 7 8 9\n", encoding="utf-8-sig")
    source = WordVectorQueries(file, 3, normalise=False)
    assert source.load(query("dog runs")).tolist() == [[4, 5, 6], [7, 8, 9]]
