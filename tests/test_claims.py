"""Claims on small predictions files with known effects: every verdict, and what keeps a claim open."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.data.worlds.shapes.generate import SPLITS
from vmr_zoo.errors import VmrError
from vmr_zoo.report.claims import ANY, read_claims, select_runs
from vmr_zoo.report.query_scores import load_scores, read_predictions
from vmr_zoo.report.run_settings import setting
from vmr_zoo.report.runs import Run, scan_runs
from vmr_zoo.report.sentence_probe import probe_row
from vmr_zoo.report.significance import least_p
from vmr_zoo.report.store import store_run
from vmr_zoo.report.stored_scores import read_scores, write_scores
from vmr_zoo.report.verdicts import (
    FAILS,
    HOLDS,
    OPEN,
    ClaimAnswer,
    Effect,
    Spread,
    answer_claims,
    holm,
    with_common_spread,
)

CONF = config_dir()
STUDIES = Path(__file__).parents[1] / "experiments"
CHARADES = {"charades_cd": {"iid", "ood"}, "charades_cg": {"trivial", "novel_composition", "novel_word"}}
QUERIES = 200


def write_run(
    root: Path, method: str, scores: dict[str, float], seed: int = 0, *, blind: str | None = None, **header
) -> Path:
    """A run whose first `share` of the queries of each split is answered right, the others wrong."""
    name = f"{method}-paper" + (f"+blind-{blind}" if blind else "") + header.pop("suffix", "")
    run = root / name / f"seed{seed}"
    run.mkdir(parents=True)
    metrics = {split: {"R1@0.5": 100 * share} for split, share in scores.items()}
    identity = {
        **dict.fromkeys(("protocol", "features", "origin", "selection", "rounding"), "toy"),
        **{"name": name, "method": method, "variant": "paper", "seed": seed, "parameters": 7, **header},
    }
    (run / "metrics.json").write_text(json.dumps({"header": identity, **metrics}))
    config = {
        "metrics": {"r1_thresholds": [0.5], "r5_thresholds": [0.5], "windows": 10, "rounding": None},
        "features": {"video": {"blind": blind, "noise": 0.0}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = []
    for split, share in scores.items():
        for number in range(QUERIES):
            # Seeds differ in which queries they answer right, by a few.
            right = (number + seed) % QUERIES < round(share * QUERIES)
            rows.append(
                {
                    "query_id": f"{split}{number}",
                    "video_id": f"v{number}",
                    "query": "what",
                    "split": split,
                    "duration": 10.0,
                    "moments": [[2.0, 6.0]],
                    "pred_relevant_windows": [[2.0, 6.0, 1.0] if right else [7.0, 9.0, 1.0]],
                }
            )
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def answer(tmp_path: Path, **content: object) -> ClaimAnswer:
    """Answers one claim about the runs in `tmp_path/runs`."""
    claims = tmp_path / "claims"
    claims.mkdir(exist_ok=True)
    whole = {
        "paper": "X",
        "section": "1",
        "claim": "a beats b.",
        "a": {"method": "good"},
        "b": {"method": "bad"},
    }
    whole |= {"kind": "rows", "split": "iid"} if "kind" not in content else {}
    (claims / "one.yaml").write_text(yaml.safe_dump(whole | content))
    return answer_claims(read_claims(claims), scan_runs(tmp_path / "runs")[0])[0]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1, 2):
        write_run(tmp_path / "runs", "good", {"iid": 0.8, "ood": 0.7}, seed)
        write_run(tmp_path / "runs", "bad", {"iid": 0.6, "ood": 0.3}, seed)
    return tmp_path


def test_each_kind_of_claim_has_the_effect_of_its_cells(runs):
    rows = answer(runs)
    assert rows.verdict == HOLDS
    assert rows.effect.mean == pytest.approx(20)
    assert rows.effect.low < 20 < rows.effect.high
    assert rows.effect.queries == {"iid": QUERIES}
    drop = answer(runs, kind="drop", **{"from": "iid", "to": "ood"})
    assert (drop.effect.mean, drop.verdict) == (pytest.approx(20), HOLDS)  # good loses 10, bad 30
    for seed in (0, 1, 2):
        write_run(runs / "runs", "good", {"iid": 0.8}, seed, blind="colour")
        write_run(runs / "runs", "bad", {"iid": 0.3}, seed, blind="colour")
    settings = {"from": {"features.video.blind": None}, "to": {"features.video.blind": "colour"}}
    interaction = answer(runs, kind="interaction", split="iid", **settings)
    assert (interaction.effect.mean, interaction.verdict) == (pytest.approx(30), HOLDS)  # 50 - 20
    # Without `where`, a row has two settings, and none is chosen silently.
    assert answer(runs).verdict == OPEN
    assert "several settings" in answer(runs).reason
    unblinded = {"where": {"features.video.blind": None}}
    assert answer(runs, **unblinded).verdict == HOLDS
    write_run(runs / "runs/again", "good", {"iid": 0.8, "ood": 0.7})  # an equal run of another study
    assert answer(runs, **unblinded).verdict == HOLDS
    other = write_run(runs / "runs/other", "good", {"iid": 0.7}, seed=3, protocol="other data")
    assert "good-paper on other data, good-paper on toy" in answer(runs, **unblinded).reason
    shutil.rmtree(other)
    write_run(runs / "runs/other", "good", {"iid": 0.7, "ood": 0.7})
    assert "a seed twice, with different results" in answer(runs, **unblinded).reason


def test_a_claim_can_be_about_listed_queries(runs):
    """`good` answers the first 160 of `iid` right, `bad` the first 120."""
    (runs / "claims").mkdir()
    listed = runs / "claims/some.txt"
    listed.write_text("\n".join(f"iid{number}" for number in range(100, 150)))
    some = answer(runs, queries="some.txt")
    assert some.effect.queries == {"iid": 50}
    assert some.effect.mean == pytest.approx(60, abs=5)  # seeds differ in a query or two
    listed.write_text("iid1\niid2\nother1")
    assert answer(runs, queries="some.txt").reason == "1 of 3 listed queries lack a score in one of the rows"
    listed.write_text(" \n")
    with pytest.raises(VmrError, match=r"one query id per line in .*some\.txt"):
        answer(runs, queries="some.txt")
    with pytest.raises(VmrError, match=r"absent\.txt"):
        answer(runs, queries="absent.txt")


def test_a_claim_is_refuted_by_the_opposite_or_by_an_effect_below_its_margin(runs):
    assert answer(runs, direction="lower").verdict == FAILS
    assert answer(runs, a={"method": "bad"}, b={"method": "good"}).verdict == FAILS
    for seed in (0, 1, 2):
        write_run(runs / "runs", "same", {"iid": 0.8}, seed)
    equal = {"b": {"method": "same"}}
    assert answer(runs, **equal).verdict == OPEN  # no difference, and no margin that would make it a result
    assert answer(runs, margin=2.0, **equal).verdict == FAILS


def test_an_effect_within_the_noise_of_seeds_is_open(tmp_path):
    for seed, (good, bad) in enumerate(((0.9, 0.5), (0.5, 0.7), (0.8, 0.6))):
        write_run(tmp_path / "runs", "good", {"iid": good}, seed)
        write_run(tmp_path / "runs", "bad", {"iid": bad}, seed)
    found = answer(tmp_path)
    assert found.effect.low > 0  # over queries alone it would be significant
    assert found.effect.seed_interval[0] < 0
    assert (found.verdict, found.effect.by_seed[1]) == (OPEN, pytest.approx(-20))
    assert "too uncertain" in found.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"margin": 2.0, "direction": "lower"}, "no effect of more than 2 points in the claimed direction"),
        ({"direction": "lower"}, "no effect in the claimed direction was seen, but it is not ruled out"),
        ({"margin": 30.0}, "no effect of more than 30 points in the claimed direction"),
        ({"margin": 2.0}, "the effect is too uncertain"),
    ],
)
def test_an_open_claim_says_whether_an_effect_was_seen(tmp_path, content, reason):
    for seed, (good, bad) in enumerate(((0.9, 0.5), (0.5, 0.7), (0.8, 0.6))):
        write_run(tmp_path / "runs", "good", {"iid": good}, seed)
        write_run(tmp_path / "runs", "bad", {"iid": bad}, seed)
    found = answer(tmp_path, **content)
    assert found.verdict == OPEN
    assert found.reason.startswith(reason)


def test_an_answer_names_the_data_and_what_of_it_is_made_up(tmp_path):
    for method, origin in (("good", "simulated"), ("bad", "real")):
        for seed in (0, 1):
            run = write_run(
                tmp_path / "runs", method, {"iid": 0.5}, seed, origin=origin, protocol="charades_cd"
            )
            if method == "good":
                target = "vmr_zoo.data.worlds.action_labels.ActionLabelNarrations"
                config = (run / "config.yaml").read_text()
                narrated = yaml.safe_load(config)["features"] | {"narration": {"_target_": target}}
                (run / "config.yaml").write_text(
                    yaml.safe_dump(yaml.safe_load(config) | {"features": narrated})
                )
    assert answer(tmp_path).data == ("charades_cd (SIMULATED features, SIMULATED narrations)", "charades_cd")
    assert answer(tmp_path, b={"method": "absent"}).data == ()


def test_rows_that_cannot_decide_keep_a_claim_open(runs):
    assert "no run with R1@0.5: method=absent on iid" in answer(runs, b={"method": "absent"}).reason
    assert "no run with mAP" in answer(runs, metric="mAP").reason
    blnd = {"method": "good", "features.video.blnd": None}
    assert answer(runs, a=blnd).reason.startswith("no run has the setting features.video.blnd")
    assert answer(runs, seeds=4).reason == "3 of at least 4 seeds"
    root = runs / "runs"
    write_run(root, "rising", {"iid": 0.2}, 0, plateau=False)
    write_run(root, "rising", {"iid": 0.2}, 1, plateau=True)
    found = answer(runs, b={"method": "rising"})
    assert (found.verdict, found.effect.mean) == (OPEN, pytest.approx(60))
    assert found.reason == "rising-paper: still improving when training ended"
    write_run(root, "debugging", {"iid": 0.2}, 0, debug="fast_dev_run")
    assert "debugging-paper: debugging run" in answer(runs, b={"method": "debugging"}, seeds=1).reason
    (root / "bad-paper/seed1/predictions.jsonl").unlink()
    assert "predictions" in answer(runs).reason


def test_seeds_with_other_settings_or_annotations_keep_a_claim_open(runs):
    bad = runs / "runs/bad-paper"
    for seed, digest in enumerate("aab"):
        split = {"sentences": QUERIES, "sha256": digest}
        (bad / f"seed{seed}/annotations.json").write_text(json.dumps({"iid": split}))
    good = runs / "runs/good-paper/seed1/config.yaml"
    for seed, lr in enumerate((0.1, 0.2, 0.1)):
        config = good.parents[1] / f"seed{seed}/config.yaml"
        narrations = (
            f"data:\n  features:\n    narration:\n      every_seconds: {lr}\n"  # which it does not read
        )
        config.write_text(f"{config.read_text()}{narrations}method:\n  lr: {lr}\n")
    found = answer(runs)
    assert (found.verdict, found.effect.mean) == (OPEN, pytest.approx(20))
    settings = "the runs of good-paper differ in method.lr (0.1, 0.2)"
    annotations = f"the annotations of iid differ: bad-paper ({QUERIES} sentences) | bad-paper"
    assert found.reason.startswith(f"{settings}; {annotations}")


def write_probe(run: Path, split: str, score: float, probe: str = "other_query", number: int = 1) -> None:
    folder = run / "eval" / f"{split}-{probe}-{number:03d}"
    folder.mkdir(parents=True)
    header = json.loads((run / "metrics.json").read_text())["header"] | {"probe": probe}
    (folder / "metrics.json").write_text(json.dumps({"header": header, split: {"R1@0.5": score}}))


@pytest.mark.parametrize("ends", [(None, "colour"), ("colour", None)])
def test_a_mark_keeps_a_claim_open_at_either_end_of_an_interaction(tmp_path, ends):
    for seed in (0, 1, 2):
        for method, score in (("good", 0.8), ("bad", 0.6)):
            write_run(tmp_path / "runs/full", method, {"iid": 0.7}, seed, plateau=method == "bad")
            write_run(tmp_path / "runs/blind", method, {"iid": score}, seed, blind="colour", plateau=True)
    for file in (tmp_path / "runs/blind").rglob("metrics.json"):  # a run's name omits its features
        file.write_text(file.read_text().replace("+blind-colour", ""))
    settings = {name: {"features.video.blind": end} for name, end in zip(("from", "to"), ends, strict=True)}
    direction = "lower" if ends[0] else "higher"
    found = answer(tmp_path, kind="interaction", split="iid", direction=direction, **settings)
    assert found.verdict == OPEN
    assert found.reason == "good-paper, features.video.blind=null: still improving when training ended"


def test_scores_of_queries_that_a_stored_run_lacks_keep_only_their_claim_open(runs):
    for run in scan_runs(runs / "runs")[0]:
        write_scores(run.directory / "scores.npz", load_scores(run, ["iid"], ["R1@0.5"])[1])
        (run.directory / "predictions.jsonl").unlink()
        whole = {"header": run.header, **run.metrics, "iid": run.metrics["iid"] | {"mAP": 50.0}}
        (run.directory / "metrics.json").write_text(json.dumps(whole))
    stored = scan_runs(runs / "runs")[0]
    whole = {"paper": "X", "section": "1", "claim": "c.", "kind": "rows", "split": "iid"}
    rows = {"a": {"method": "good"}, "b": {"method": "bad"}}
    (runs / "claims").mkdir()
    for metric in ("mAP", "R1@0.5"):
        (runs / f"claims/{metric}.yaml").write_text(yaml.safe_dump(whole | rows | {"metric": metric}))
    found = {one.claim.metric: one for one in answer_claims(read_claims(runs / "claims"), stored)}
    assert found["R1@0.5"].verdict == HOLDS
    assert found["mAP"].reason == "good-paper has no scores of single queries for mAP on iid"


def test_a_query_that_stands_twice_in_stored_scores_is_refused(tmp_path):
    index = pd.MultiIndex.from_arrays([["v", "v"], ["q", "q"]], names=("video", "query"))
    write_scores(tmp_path / "scores.npz", {"iid": pd.DataFrame({"R1@0.5": [1.0, 0.0]}, index=index)})
    with pytest.raises(VmrError, match="a query of iid stands in it twice"):
        read_scores(tmp_path / "scores.npz", {})


@pytest.mark.parametrize("content", [{"iid": 5}, {"iid": {"R1@0.5": "x"}}, {"header": {}}, "{"])
def test_a_broken_probe_is_unreadable_and_its_run_is_not(runs, content):
    run = runs / "runs/good-paper/seed0"
    write_probe(run, "iid", 5.0)
    file = run / "eval/iid-other_query-001/metrics.json"
    whole = content if isinstance(content, str) else json.dumps(json.loads(file.read_text()) | content)
    file.write_text(whole)
    found, unfinished = scan_runs(runs / "runs")
    assert len(found) == 6
    assert [(one.path, one.state) for one in unfinished] == [(file.parent, "unreadable")]


def test_an_evaluation_of_other_weights_than_the_run_has_now_does_not_count(runs):
    run = runs / "runs/good-paper/seed0"
    write_probe(run, "iid", 5.0)
    for file, digest in ((run / "metrics.json", "new"), (next(run.glob("eval/*/metrics.json")), "old")):
        content = json.loads(file.read_text())
        content["header"]["weights_sha256"] = digest
        file.write_text(json.dumps(content))
    found, unfinished = scan_runs(runs / "runs")
    assert not any(one.probes for one in found)
    assert [one.state for one in unfinished] == ["of other weights"]


def test_one_seed_that_ignores_its_sentences_marks_the_row(runs):
    for seed, score in ((0, 0.0), (1, 79.0)):
        write_probe(runs / f"runs/good-paper/seed{seed}", "iid", score)
    row = [run for run in scan_runs(runs / "runs")[0] if run.header["method"] == "good"]
    assert not probe_row(row).reads_sentence


def test_a_row_that_loses_little_with_other_sentences_is_marked(runs):
    root = runs / "runs"
    for seed, score in ((0, 65.0), (1, 67.0)):
        write_probe(root / f"good-paper/seed{seed}", "ood", 10.0)
        write_probe(root / f"good-paper/seed{seed}", "iid", 5.0)
        write_probe(root / f"good-paper/seed{seed}", "iid", score, number=2)  # a later one counts
    write_probe(root / "bad-paper/seed0", "iid", 30.0)
    write_probe(root / "bad-paper/seed0", "iid", 34.0, probe="other_query_1")  # another draw
    write_probe(root / "bad-paper/seed0", "iid", 1.0, probe="blank_query")
    rows: dict[str, list[Run]] = {}
    for run in scan_runs(root)[0]:
        rows.setdefault(run.header["method"], []).append(run)
    good, bad = probe_row(rows["good"]), probe_row(rows["bad"])
    assert (good.split, good.own, good.other, good.least_loss) == ("iid", 80.0, 66.0, pytest.approx(13))
    assert not good.reads_sentence
    assert (bad.other, bad.reads_sentence) == (32.0, True)
    assert probe_row(scan_runs(root / "none")[0]) is None
    found = answer(runs)
    assert found.verdict == OPEN
    assert found.reason == "good-paper: loses less than 20 points of R1@0.5 with sentences about other videos"


def test_the_error_adds_queries_and_seeds_and_p_is_corrected_for_the_number_of_claims(runs):
    error = np.sqrt(40 / 41)  # of 41 videos: their variance as a sample is 1
    effect = Effect(3.0, 1.0, 5.0, {0: 2.0, 1: 3.0, 2: 4.0}, {"iid": 9}, error, 41, frozenset())
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert effect.seed_interval == pytest.approx((3 - half, 3 + half))
    total = np.sqrt(1 + 1 / 3)
    freedom = (4 / 3) ** 2 / (1 / 40 + (1 / 3) ** 2 / 2)
    assert effect.p_above(0) == pytest.approx(2 * stats.t.sf(3 / total, freedom))
    shared = replace(effect, common=Spread(2.0, 8))  # the larger variance, the mean of 2 and 8
    total = np.sqrt(1 + 2 / 3)
    more = (5 / 3) ** 2 / (1 / 40 + (2 / 3) ** 2 / 5)
    assert shared.p_above(0) == pytest.approx(2 * stats.t.sf(3 / total, more))
    assert effect.p_above(4) == 1
    assert effect.flipped().p_above(-4) == pytest.approx(2 * stats.t.sf(1 / np.sqrt(4 / 3), freedom))
    certain = replace(effect, by_seed={0: 3.0, 1: 3.0}, error=0.0, videos=7)
    assert certain.p_above(0) == least_p(7), "seven videos cannot say more than seven signs"
    assert holm([0.02, 0.001, 0.04]) == pytest.approx([0.04, 0.003, 0.04])
    # Seven points over 200 queries convince alone, not among twenty.
    for seed in (0, 1, 2):
        write_run(runs / "runs", "near", {"iid": 0.77}, seed)
    claims, found = runs / "many", scan_runs(runs / "runs")[0]
    claims.mkdir()
    shared = {"paper": "X", "section": "1", "claim": "c.", "kind": "rows", "split": "iid"}
    rows = {"a": {"method": "good"}, "b": {"method": "near"}}
    (claims / "near.yaml").write_text(yaml.safe_dump(shared | rows))
    assert answer_claims(read_claims(claims), found)[0].verdict == HOLDS
    for number in range(19):  # the first has no effect and does not count
        method = "near" if number else "absent"
        more = {"a": {"method": method}, "b": {"method": method}}
        (claims / f"other{number}.yaml").write_text(yaml.safe_dump(shared | more))
    answers = {one.claim.name: one for one in answer_claims(read_claims(claims), found)}
    assert answers["near"].verdict == OPEN
    assert answers["other0"].p is None


def test_splits_about_the_same_videos_share_their_draws(tmp_path):
    # Both splits have the same difference for each video, so the drop has no error.
    write_run(tmp_path / "runs", "good", {"iid": 0.75, "ood": 0.75}, 0)
    write_run(tmp_path / "runs", "bad", {"iid": 0.5, "ood": 0.5}, 0)
    effect = answer(tmp_path, **{"kind": "drop", "from": "iid", "to": "ood", "seeds": 1}).effect
    assert effect is not None
    assert (effect.mean, effect.low, effect.high, effect.error) == (0, 0, 0, 0)


def test_claims_about_the_same_runs_count_once_for_the_spread_of_a_paper():
    claim = read_claims(STUDIES / "claims")[0]
    first, second = frozenset({Path("a")}), frozenset({Path("b")})
    answers = [
        ClaimAnswer(claim, Effect(1.0, 0.0, 2.0, {0: 1.0 - half, 1: 1.0 + half}, {"iid": 9}, 1.0, 300, runs))
        for half, runs in ((1.0, first), (2.0, first), (3.0, second))
    ]
    common = [answer.effect.common for answer in with_common_spread(answers)]
    assert common == [Spread(pytest.approx((2 + 8 + 18) / 3), 2)] * 3


def test_a_gain_that_is_surely_too_small_does_not_hold():
    claim = replace(read_claims(STUDIES / "claims")[0], margin=2.0)
    assert ClaimAnswer(claim, p=0.001, p_fails=0.001).verdict == FAILS
    assert ClaimAnswer(claim, p=0.001, p_fails=0.2).verdict == HOLDS


def test_sets_of_claims_without_effects_rarely_have_a_verdict():
    """Seeds differ by 1 to 12 points, queries by 1.4. With one spread for all papers, 14 % of sets err."""
    generator = np.random.default_rng(0)
    claim = read_claims(STUDIES / "claims")[0]
    wrong, sets = 0, 400
    for _ in range(sets):
        answers = []
        for number, deviation in enumerate([1.0, 1.5, 2.0, 2.0, 2.5, 3.0, 2.0, 1.0, 1.5, 12.0, 12.0, 12.0]):
            seeds = generator.normal(0, deviation, 2) + generator.normal(0, 1.4)
            runs = frozenset({Path(str(number))})
            effect = Effect(seeds.mean(), 0.0, 0.0, dict(enumerate(seeds)), {"iid": 9}, 1.4, 300, runs)
            answers.append(ClaimAnswer(replace(claim, paper=f"paper {number // 3}"), effect))
        effects = [answer.effect for answer in with_common_spread(answers)]
        p = holm([one.p_above(0) if one.mean > 0 else one.flipped().p_above(0) for one in effects])
        wrong += min(p) < 0.05
    assert wrong / sets < 0.09


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "row"}, "Unknown kind in .* Did you mean rows"),
        ({"splt": "iid"}, "Unknown key in .*'splt'"),
        ({"split": None}, "split: a text, found None"),
        ({"split": 3}, "split: a text, found 3"),
        ({"a": "tea"}, "a: settings by key"),
        ({"margin": -1.0}, "margin >= 0"),
        ({"margin": True}, "margin: a number"),
        ({"margin": float("nan")}, "margin >= 0"),
        ({"margin": float("inf")}, "margin >= 0"),
        ({"a": {1: "tea"}}, "a: settings by key"),
        ({"where": "abc"}, "where: settings by key"),
        ({"seeds": 0}, "seeds >= 1"),
        ({"direction": "better"}, "Unknown direction"),
        ({"from": "iid"}, "Unknown key"),
    ],
)
def test_mistakes_in_a_claim_are_errors(tmp_path, content, message):
    whole = {"paper": "X", "section": "1", "claim": "c.", "kind": "rows", "split": "iid", "a": {}, "b": {}}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(whole | content))
    with pytest.raises(VmrError, match=message):
        read_claims(tmp_path)


def test_broken_or_absent_claims_are_errors(tmp_path):
    (tmp_path / "defaults.yaml").write_text("where: [a]\n")
    (tmp_path / "one.yaml").write_text("kind: rows\n")
    with pytest.raises(VmrError, match=r"defaults\.yaml to have where: settings by key"):
        read_claims(tmp_path)
    (tmp_path / "defaults.yaml").unlink()
    (tmp_path / "one.yaml").unlink()
    with pytest.raises(VmrError, match="no claim"):
        read_claims(tmp_path)
    for text in ("- a\n", "a: [\n", "\x00"):
        (tmp_path / "one.yaml").write_text(text)
        with pytest.raises(VmrError, match=r"one\.yaml"):
            read_claims(tmp_path)


@pytest.mark.parametrize(
    ("folder", "splits"), [("claims", {"shapes": set(SPLITS)}), ("claims_charades", CHARADES)]
)
def test_the_shipped_claims_name_settings_splits_and_methods_that_exist(folder, splits):
    claims = read_claims(STUDIES / folder)
    assert len(claims) >= 12
    assert {claim.paper for claim in claims} == {"TEA", "MESM", "VDI", "BM-DETR", "LMR"}
    header = {"protocol", "variant", "ablation", "method", "features"}
    cells = [cell for claim in claims for cell in claim.cells]
    assert all(cell.split in splits[cell.where["protocol"]] for cell in cells)
    choices = {(cell.where["method"], cell.where["ablation"]) for cell in cells}
    for method in {method for method, _ in choices}:
        assert (CONF / "method" / f"{method}.yaml").is_file()
    for ablation in {ablation for _, ablation in choices if ablation}:
        assert (CONF / "ablation" / f"{ablation}.yaml").is_file()
    composed = {method: compose("train", [f"method={method}", "data=shapes"]) for method, _ in choices}
    for method, key in {(cell.where["method"], key) for cell in cells for key in cell.where.keys() - header}:
        node = composed[method]
        for part in key.split("."):
            assert part in node, (method, key, part)
            node = node[part]


def test_the_command_prints_and_writes_verdicts(runs, vmr, capsys):
    answer(runs, claim="a | b *beats* `c` <script>.")
    args = ["report", f"runs={runs / 'runs'}", f"claims={runs / 'claims'}"]
    assert vmr(*args) == 0
    shown = capsys.readouterr().out
    assert "holds" in shown
    assert "iid," in shown  # a cell wraps
    assert "R1@0.5" in shown
    assert shown.startswith("What the papers claim, tested on toy (toy features)\n")
    assert "the claim's method minus what it is compared with" in shown  # no rows a and b are shown
    assert "Verdicts on 1 claims: 1 holds, 0 does not hold, 0 not settled" in shown
    table = [line for line in shown.splitlines() if line[:1] in "┏┃┡│├└"]
    assert max(map(len, table)) <= 80
    assert vmr(*args, "format=json") == 0
    [record] = json.loads(capsys.readouterr().out)
    assert (record["verdict"], record["effect"], record["seeds"]) == ("holds", pytest.approx(20), 3)
    assert vmr(*args, "format=markdown") == 0
    assert r"a \| b \*beats\* \`c\` &lt;script&gt;." in capsys.readouterr().out
    assert vmr(*args, "html=true", "columns=[R1@0.5]", f"out={runs / 'page.html'}") == 0
    page = (runs / "page.html").read_text()
    assert "<h2>What the papers claim, tested on toy (toy features)</h2>" in page
    assert "<small>X, iid, R1@0.5</small>" in page
    assert "&lt;script&gt;." in page
    capsys.readouterr()
    assert vmr(*args, "format=latex") == 2
    assert vmr(*args, "significance=true") == 2
    assert "claims=" in capsys.readouterr().err
    assert select_runs(scan_runs(runs / "runs")[0], {"method": ANY, "features.video.noise": 0})


def test_stored_runs_give_the_same_verdict_and_scores_without_predictions(trained_toy: Path, tmp_path: Path):
    (run,), _ = scan_runs(trained_toy)
    shutil.copytree(trained_toy, tmp_path / "again")
    probe = tmp_path / "again" / "eval" / "iid-other_query-001"
    probe.mkdir(parents=True)
    metrics = json.loads((trained_toy / "metrics.json").read_text())
    metrics["header"]["probe"] = "other_query"
    (probe / "metrics.json").write_text(json.dumps(metrics))
    (probed,), _ = scan_runs(tmp_path / "again")
    target = store_run(probed, tmp_path / "stored")
    files = {str(path.relative_to(target)): path for path in target.rglob("*") if path.is_file()}
    assert set(files) == {
        "config.yaml",
        "metrics.json",
        "scores.npz",
        "eval/iid-other_query-001/metrics.json",
    }
    assert not [name for name, path in files.items() if str(tmp_path).encode() in path.read_bytes()]
    (stored,), _ = scan_runs(tmp_path / "stored")
    assert stored.metrics == run.metrics
    assert probe_row([stored]) == probe_row([probed])
    where = {"method": run.header["method"], "data.batch_size": setting(run, "data.batch_size")}
    assert select_runs([stored], where)
    names = ["R1@0.5", "R1@0.7", "mIoU"]
    rows, scores = load_scores(stored, ["iid"], names)
    _, expected = load_scores(run, ["iid"], names)
    assert rows == {}
    pd.testing.assert_frame_equal(scores["iid"], expected["iid"], atol=5e-4, check_exact=False)
    assert (scores["iid"]["R1@0.5"] == expected["iid"]["R1@0.5"]).all()
    with pytest.raises(VmrError, match="keeps its metrics and the scores of its queries only"):
        read_predictions(stored.predictions)

    for name in ("../../elsewhere", "/elsewhere"):
        with pytest.raises(VmrError, match="it leaves"):
            store_run(replace(probed, header=probed.header | {"protocol": name}), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()

    changed = json.loads((target / "metrics.json").read_text())
    changed["iid"]["R1@0.5"] += 1
    (target / "metrics.json").write_text(json.dumps(changed))
    with pytest.raises(VmrError, match="belongs to another run"):
        load_scores(scan_runs(tmp_path / "stored")[0][0], ["iid"], names)
    np.savez(target / "scores.npz", **{"iid/ids": np.array([{}], dtype=object)})
    with pytest.raises(VmrError, match="not a file of stored scores"):
        load_scores(stored, ["iid"], names)

    shutil.rmtree(probe)  # trained again, and not probed since
    (again,), _ = scan_runs(tmp_path / "again")
    assert probe_row(scan_runs(store_run(again, tmp_path / "stored"))[0]) is None
