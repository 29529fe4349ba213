import pytest
from hydra.utils import instantiate
from open_clip.tokenizer import SimpleTokenizer
from test_datamodule import features, protocol

from vmr_zoo.config.compose import compose
from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.features.queries import ClipTokens
from vmr_zoo.data.text.clip_tokenizer import BytePairs
from vmr_zoo.data.text.noun_chunks import NounChunks
from vmr_zoo.errors import VmrError


def query(text: str) -> Query:
    return Query("q", "v", text, ((0.0, 5.0),), 10.0)


@pytest.mark.parametrize("text", ["A person's unflappable  dog runs &amp; sits.", "Two éclairs are eaten!"])
def test_ids_are_those_of_clip(text):
    tokens = BytePairs().split(text)
    assert tokens.ids.tolist() == SimpleTokenizer().encode(text)
    assert ClipTokens(NounChunks()).token_ids(query(text)).tolist() == tokens.ids.tolist()
    assert len(tokens.offsets) == len(tokens.ids)
    assert (tokens.offsets[:, 1] <= len(tokens.text)).all()


def test_nouns_follow_the_tokens():
    text = "The unflappable dog runs."
    source = ClipTokens(NounChunks(), max_tokens=5)
    ids = source.token_ids(query(text))
    assert source.load(query(text)).shape == (len(ids), 0) == (5, 0)
    words = [SimpleTokenizer().decoder[i] for i in ids]
    assert words[0] == "the</w>"
    mask = source.noun_mask(query(text))
    assert mask.tolist() == [word != "runs</w>" and word != ".</w>" for word in words]


def test_a_method_that_embeds_tokens_needs_no_text_files():
    cfg = compose("train", ["experiment=vdi/charades_sta"])
    source = instantiate(cfg.features.query)
    assert source.missing([query("a dog runs")]) == []
    whole = features(query=source, query_dim=0, joint_space=None)
    needs = {"query_tokens", "noun_mask"}
    data = VMRDataModule("tiny", protocol(), whole, needs=needs, batch_size=4)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["query"].shape == (*batch["query_tokens"].shape, 0)
    assert (batch["query_tokens"] > 0).equal(batch["query_mask"])
    with pytest.raises(VmrError, match="reads a vector per word"):
        VMRDataModule("tiny", protocol(), whole, needs={"narration"}).setup("fit")
