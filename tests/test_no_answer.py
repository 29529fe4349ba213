"""`vmr eval no_answer=…`, from predictions to the table of `vmr report`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import toy

WORDS = "no_answer.encoder={_target_:toy.WordCounts}"
IN_DOMAIN = ["no_answer=in_domain", "~no_answer.encoder", "+" + WORDS, "no_answer.share=1"]


@pytest.fixture
def run(trained_toy, tmp_path):
    """A run of one's own."""
    return Path(shutil.copytree(trained_toy, tmp_path / "run"))


@pytest.fixture
def scored(monkeypatch):
    """The score of a query is the number in its sentence: 0 to 8 in units of a clip."""

    def start(self, prediction, batch):
        return batch["query"][:, 0, 0]

    monkeypatch.setattr(toy.ToyMethod, "answer_score", start)


def read(folder):
    content = json.loads((folder / "metrics.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return content["header"], content, rows


def test_the_threshold_comes_from_selection_and_never_from_a_test_split(run, vmr, capsys, scored):
    assert vmr("eval", f"run={run}", "split=[iid,ood]", *IN_DOMAIN) == 0
    assert "Rejection-Acc" in capsys.readouterr().out
    assert vmr("eval", f"run={run}", "split=ood", *IN_DOMAIN) == 0
    header, content, rows = read(run / "eval/iid-no_answer_in_domain-001")
    facts = header["no_answer"]
    assert facts["no_answer"] == "presumed"
    assert facts["similarity"] == {"encoder": "word counts"}
    assert facts["threshold_from"] == "selection"
    again = read(run / "eval/ood-no_answer_in_domain-002")[0]["no_answer"]
    assert again["threshold"] == facts["threshold"]
    assert header["protocol"] == "toy, in-domain sentences without an answer"
    assert header["name"] == json.loads((run / "metrics.json").read_text())["header"]["name"]
    assert (
        read(run / "eval/ood-no_answer_in_domain-001")[1]["ood"]
        == read(run / "eval/ood-no_answer_in_domain-002")[1]["ood"]
    )

    # The file repeats the metrics.
    answered = [row for row in rows if row["moments"]]
    others = [row for row in rows if not row["moments"]]
    assert len(answered) == len(others) == facts["sentences"] == 6
    wins = [
        (a["answer_score"] > b["answer_score"]) + (a["answer_score"] == b["answer_score"]) / 2
        for a in answered
        for b in others
    ]
    assert content["iid"]["AUROC"] == pytest.approx(100 * sum(wins) / len(wins))
    assert content["iid"]["Rejection-Acc"] == pytest.approx(100 * sum(row["rejected"] for row in others) / 6)
    texts = {row["query_id"]: row["query"] for row in answered}
    assert all(texts[row["sentence_of"]] == row["query"] for row in others)
    assert all(row["split"] == "iid_no_answer" for row in others)


def test_the_score_follows_the_replaced_sentence(run, vmr, scored):
    assert vmr("eval", f"run={run}", "split=iid", *IN_DOMAIN, "no_answer.threshold=0.3") == 0
    header, _, rows = read(run / "eval/iid-no_answer_in_domain-001")
    assert header["no_answer"]["threshold"] == 0.3
    assert header["no_answer"]["threshold_from"] == "the command line"
    for row in rows:
        start = float(row["query"].split()[-1]) / toy.CLIPS
        assert row["answer_score"] == pytest.approx(start, rel=1e-5)
        assert row["rejected"] == (row["answer_score"] < 0.3)


def test_constant_scores_reject_nothing(run, vmr):
    assert vmr("eval", f"run={run}", "split=iid", *IN_DOMAIN) == 0
    header, content, _ = read(run / "eval/iid-no_answer_in_domain-001")
    assert header["no_answer"]["threshold"] is None
    assert header["no_answer"]["score"] == "score of the best moment"
    assert content["iid"]["AUROC"] == 50
    assert content["iid"]["R1@0.5/kept"] == json.loads((run / "metrics.json").read_text())["iid"]["R1@0.5"]


def test_report_shows_a_table_of_its_own(run, vmr, capsys, scored):
    assert vmr("report", f"runs={run}", "format=markdown") == 0
    before = capsys.readouterr().out
    assert vmr("eval", f"run={run}", "split=iid", *IN_DOMAIN) == 0
    capsys.readouterr()
    assert vmr("report", f"runs={run}", "format=markdown") == 0
    after = capsys.readouterr().out
    assert after.startswith(before.rstrip()), "the run's own table stays"
    assert "in-domain sentences without an answer" in after
    assert "Rejection-Acc" in after
    assert vmr("report", f"runs={run}", "columns=[AUROC]") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "AUROC" in shown
    assert "R1@0.5" not in shown.replace("/", "")
    assert "a threshold from selection" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_answer=out_of_domain"], "Name it, such as data=charades_sta"),
        (["no_answer=in_domain", "data=toy", toy.SEARCH], "leave out data"),
        (["no_answer=out_of_domain", "data=toy", toy.SEARCH], "not out of the domain"),
        (["no_answer=in_domain", "probe=other_query"], "two commands"),
        ([*IN_DOMAIN, "split=selection"], "no_answer.threshold=0.5"),
        ([*IN_DOMAIN, "no_answer.share=0"], "in (0, 1]"),
    ],
)
def test_contradictions_are_refused(trained_toy, vmr, capsys, arguments, message):
    split = [] if "split=selection" in arguments else ["split=iid"]
    assert vmr("eval", f"run={trained_toy}", *split, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_threshold_is_not_chosen_on_a_test_split(train_toy, vmr, capsys):
    code, run = train_toy("data.selection=iid")
    assert code == 0
    capsys.readouterr()
    assert vmr("eval", f"run={run}", "split=ood", *IN_DOMAIN) == 2
    assert "chosen on the selection split, which is a test split" in capsys.readouterr().err
