import numpy as np
import pytest

from vmr_zoo.data.text.noun_chunks import NounChunks
from vmr_zoo.errors import VmrError

CHUNKS = [
    ("A person is putting a book on the shelf.", ["A person", "a book", "the shelf"]),
    ("he laughs while the woman washes dishes", ["he", "the woman", "dishes"]),
    ("two small red circles grow", ["two small red circles"]),
    ("She closes the kitchen sink's door", ["She", "the kitchen sink's door"]),
]


@pytest.mark.parametrize(("text", "chunks"), CHUNKS)
def test_a_chunk_is_a_noun_and_what_describes_it(text, chunks):
    assert [text[a:b] for a, b in NounChunks().spans(text)] == chunks


def test_tokens_follow_the_characters_of_the_chunks():
    offsets = np.array(
        [[0, 1], [2, 5], [5, 8], [9, 13], [14, 19]]
    )  # "per" and "son" are two pieces of one word
    mask = NounChunks().mask("A person runs away", offsets[:4])
    assert mask.tolist() == [True, True, True, False]


def test_an_unknown_parser_is_named():
    with pytest.raises(VmrError, match="hanta"):
        NounChunks(parser="hanto")
