"""Clause counts, and LMR's 12 subsets of the val split of QVHighlights, which match their thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.utils import instantiate

from vmr_zoo.config.compose import compose
from vmr_zoo.data.annotations import protocols
from vmr_zoo.data.annotations.inspection import inspect_protocol
from vmr_zoo.data.annotations.records import HELD_OUT
from vmr_zoo.data.text.parsing import ClauseCounts, count_words
from vmr_zoo.errors import VmrError

ROOT = Path(__file__).parents[3] / "shared" / "data"

CLAUSES = [
    ("A woman opens the door.", 0),
    ("A man walks in and sits down.", 0),
    ("Two friends start laughing at the table.", 0),
    ("A man wearing a red hat is cooking.", 1),
    ("A woman talks to the camera while she drives.", 1),
    ("The man who is holding a cup explains what he bought.", 2),
]


@pytest.fixture(scope="module")
def hanta() -> ClauseCounts:
    return ClauseCounts()


@pytest.mark.parametrize(("text", "count"), CLAUSES)
def test_clauses_below_the_main_one(hanta: ClauseCounts, text: str, count: int) -> None:
    assert hanta.count(text) == count


def test_spacy_counts_dependency_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Word:
        def __init__(self, dep: str) -> None:
            self.dep_ = dep

    counts = ClauseCounts(parser="spacy")
    monkeypatch.setitem(counts.__dict__, "_spacy", lambda text: [Word(dep) for dep in text.split()])
    assert counts.count("nsubj ROOT relcl xcomp advcl conj") == 2


@pytest.mark.parametrize(
    ("installed", "parser"), [(set(), "hanta"), ({"spacy"}, "hanta"), ({"spacy", "en_core_web_sm"}, "spacy")]
)
def test_spacy_is_the_parser_where_it_and_its_model_are_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], parser: str
) -> None:
    monkeypatch.setattr(
        "vmr_zoo.data.text.parsing.find_spec", lambda name: name if name in installed else None
    )
    assert instantiate(compose("train", ["data=cqval"]).data.protocol.clauses).parser == parser


def test_the_parser_of_the_paper_gives_the_protocol_of_the_paper(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path)
    counts = ClauseCounts("spacy")
    monkeypatch.setattr(counts, "count", lambda text: 1)
    monkeypatch.setattr(counts, "manifest", lambda: {"parser": "spacy"})
    assert protocols.cqval(tmp_path, counts).name == "cqval"


def write(root: Path) -> None:
    """A train split of 20 videos, and a val split of sentences of 4, 9 and 16 words."""
    long = "The man who is holding a cup explains what he bought at the market on Sunday"
    texts = {
        "train": ["a dog"] * 20,
        "val": ["A woman opens it.", "A man wearing a red hat is cooking food."],
    }
    texts["val"].append(long)
    (root / "qvhighlights").mkdir()
    for split, sentences in texts.items():
        rows = [
            {
                "qid": number,
                "query": text,
                "vid": f"{split}{number}",
                "duration": 150,
                "relevant_windows": [[0, 10]],
                "relevant_clip_ids": [0],
                "saliency_scores": [[1, 2, 3]],
            }
            for number, text in enumerate(sentences, start=0 if split == "val" else 100)
        ]
        path = root / "qvhighlights" / f"highlight_{split}_release.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def test_subsets_and_what_they_are_selected_on(tmp_path: Path, hanta: ClauseCounts) -> None:
    write(tmp_path)
    protocol = protocols.cqval(tmp_path, hanta)
    sizes = {name: [query.query_id for query in split.queries] for name, split in protocol.tests.items()}
    assert sizes["c1_w8"] == sizes["c1_w9"] == ["1", "2"]
    assert sizes["c1_w10"] == sizes["c1_w16"] == sizes["c2_w8"] == ["2"]
    assert len(sizes) == 12
    assert len(protocol.selection.queries) == 3
    assert protocol.name == "cqval_hanta"  # not the paper's subsets: no table compares them
    assert "hanta" in protocol.tests["c1_w8"].source
    assert "implies 388" in protocol.tests["c1_w8"].source
    # The tests are part of the selection split: every number is marked.
    assert protocol.selected_on_test
    assert any("selected on test data" in warning for warning in inspect_protocol(protocol, None)["warnings"])

    clean = protocols.cqval(tmp_path, hanta, "heldout")
    assert clean.selection_origin == HELD_OUT
    assert (len(clean.train.queries), len(clean.selection.queries)) == (18, 2)
    with pytest.raises(VmrError, match="Unknown selection"):
        protocols.cqval(tmp_path, hanta, "test")


@pytest.mark.parametrize("selection", ["val", "heldout"])
def test_the_data_module_takes_both_selections(tmp_path: Path, selection: str) -> None:
    write(tmp_path)
    cfg = compose("train", ["data=cqval", f"data.selection={selection}", f"paths.annotations={tmp_path}"])
    del cfg.data.features  # no files here
    module = instantiate(cfg.data, features=None)
    assert module.protocol.selected_on_test is (selection == "val")


def test_words() -> None:
    assert count_words("A man's red-haired dog, running!") == 7


@pytest.mark.skipif(not ROOT.is_dir(), reason="../shared/data (published annotations) is not there")
def test_published_sizes_by_hanta(hanta: ClauseCounts) -> None:
    tests = protocols.cqval(ROOT, hanta).tests
    sizes = [len(split.queries) for split in tests.values()]
    assert sizes == [438, 396, 340, 278, 247, 204, 166, 139, 111, 62, 57, 54]
