"""The papers' tables beside ours: which runs are comparable, and why the others are not."""

from __future__ import annotations

import json

import pytest

from test_report import write
from vmr_zoo.cli import main
from vmr_zoo.errors import VmrError
from vmr_zoo.report.paper_matching import compare_with_papers
from vmr_zoo.report.paper_tables import is_requested
from vmr_zoo.report.runs import finished_runs


def put(root, name, value, backbones=(), seed=0, **header):
    """Writes a run with one result and features of the given backbones."""
    metrics = {"R1@0.5": value, "R1@0.7": 1.0, "mIoU": 2.0}
    write(root, name, {}, seed, **{"protocol": "charades_sta", "method": "bm_detr"} | header)
    run = root / name / f"seed{seed}"
    content = json.loads((run / "metrics.json").read_text()) | {header.get("split", "test"): metrics}
    (run / "metrics.json").write_text(json.dumps(content))
    video = {"parts": [{"backbone": one} for one in backbones]}
    (run / "manifest.json").write_text(json.dumps({"video": video}))


def find(tables, paper, table):
    return next(one for one in tables if (one.paper, one.table) == (paper, table))


def our(table, metric="R1@0.5"):
    """Returns our numbers as (kind of column, text), by features and name of the row."""
    return {
        (row.labels[2], row.labels[3]): [
            (c.kind, str(cell)) for (c, m), cell in row.ours.items() if m == metric
        ]
        for row in table.rows
        if any(m == metric for _, m in row.ours)
    }


def test_a_run_is_matched_with_the_rows_of_its_backbones(tmp_path):
    both = {"features": "slowfast_clip_1s", "experiment": "bm_detr/charades_sta", "ablation": None}
    put(tmp_path, "bm_detr-paper", 50.0, ("slowfast_r50", "clip_vit_b32"), **both)
    put(tmp_path, "bm_detr-paper", 52.0, ("clip", "slowfast"), seed=1, **both)
    put(tmp_path, "bm_detr-sim", 90.0, ("labels",), origin="simulated", features="action_labels")
    table = find(compare_with_papers(finished_runs(tmp_path)), "bm_detr", "Table 2")
    ours = our(table)
    assert ours["SF+C", "BM-DETR (ours)"] == [("", "51.00 ± 1.41"), ("SIMULATED", "90.00")]
    assert ours["VGG", "BM-DETR (ours)"] == [("SIMULATED", "90.00")]
    assert len(ours) == 3
    titles = [column.title for column in table.columns]
    assert titles[0] == "features slowfast_clip_1s"
    assert titles[1].startswith("features action_labels (SIMULATED: no number here comes from pixels)")
    why = {(row.labels[2], row.labels[3]): row.why for row in table.rows}
    assert why["SF+C", "BM-DETR (ours)"] == ""
    assert why["SF+C", "QD-DETR"] == "not run"
    assert why["VGG", "BM-DETR (ours)"] == "no run on the features VGG of charades_sta"
    assert why["C3D", "2D-TAN"] == "method not in this package"
    assert {row.labels[3]: row.paper["R1@0.5"] for row in table.rows if row.labels[2] == "SF+C"}[
        "BM-DETR (ours)"
    ] == "59.48"


def test_runs_on_weak_training_moments_stand_beside_no_printed_number(tmp_path):
    made = {
        "protocol": "shapes",
        "origin": "rendered",
        "features": "shapes",
        "split": "iid",
        "ablation": None,
    }
    put(tmp_path, "bm_detr-paper", 60.0, **made)
    weak = made | {"overrides": {"data.protocol.weak": "{partial:0.5}"}}
    put(tmp_path, "bm_detr-paper+weak-_partial_0.5_", 50.0, **weak)
    ours = our(find(compare_with_papers(finished_runs(tmp_path)), "bm_detr", "Table 2"))
    assert ours["SF+C", "BM-DETR (ours)"] == [("rendered", "60.00 [iid]")]


def test_an_ablation_row_takes_only_runs_of_its_ablation(tmp_path):
    whole = {"features": "f", "experiment": "bm_detr/charades_sta", "ablation": None}
    put(tmp_path, "bm_detr-paper", 60.0, ("clip", "slowfast"), **whole)
    put(tmp_path, "bm_detr-ls", 50.0, ("clip", "slowfast"), **whole | {"ablation": "bm_detr/table7_ls"})
    # An older run on other data: its header lacks the ablation, config.yaml has it.
    put(
        tmp_path, "bm_detr-ts", 40.0, (), protocol="shapes", origin="rendered", features="shapes", split="iid"
    )
    with (tmp_path / "bm_detr-ts" / "seed0" / "config.yaml").open("a") as file:
        file.write(
            "choices:\n  method: bm_detr\n  experiment: null\n  ablation: bm_detr/table7_ts\nname: x\n"
        )
    tables = compare_with_papers(finished_runs(tmp_path))
    assert our(find(tables, "bm_detr", "Table 7")) == {
        ("SF+C", "LS"): [("", "50.00")],
        ("SF+C", "TS"): [("rendered", "40.00 [iid]")],
        ("SF+C", "BMD+FS+LS+TS"): [("", "60.00")],
    }
    assert "SF+C" not in [key[0] for key in our(find(tables, "bm_detr", "Table 9"))]
    assert find(tables, "bm_detr", "Table 7").relevant
    assert not find(tables, "tea", "Table 4").relevant


def test_without_a_named_backbone_the_experiment_decides(tmp_path):
    tea = {"protocol": "charades_cd", "method": "tea", "split": "ood", "experiment": "tea/charades_cd"}
    put(tmp_path, "tea-emb", 54.0, ("i3d",), features="emb", **tea)
    put(tmp_path, "tea-other", 10.0, ("c3d",), features="c3d", **tea)
    ours = our(find(compare_with_papers(finished_runs(tmp_path)), "tea", "Table 2"))
    assert ours == {("", "TEA (Ours)"): [("", "54.00"), ("other features", "10.00")]}


def test_val_is_the_selection_split_where_that_is_the_published_one(tmp_path):
    lmr = {"protocol": "qvhighlights", "method": "lmr", "features": "slowfast_clip", "split": "selection"}
    lmr |= {"experiment": "lmr/qvhighlights", "ablation": None}
    backbones = ("slowfast", "clip")
    put(tmp_path, "lmr-full", 65.0, backbones, **lmr)
    put(tmp_path, "lmr-k1", 60.0, backbones, **lmr | {"ablation": "lmr/table7_k1"})
    put(
        tmp_path,
        "lmr-vce",
        9.0,
        backbones,
        **lmr | {"ablation": "lmr/table5_without_vce", "selection": "held"},
    )
    tables = compare_with_papers(finished_runs(tmp_path))
    seventh = find(tables, "lmr", "Table VII")
    assert our(seventh) == {
        ("SlowFast+CLIP", "k=1"): [("", "60.00")],
        ("SlowFast+CLIP", "k=10"): [("", "65.00")],
    }
    # Another selection split is not val; and Table II is about test.
    fifth = find(tables, "lmr", "Table V")
    assert our(fifth) == {("SlowFast+CLIP", "Full Model"): [("", "65.00")]}
    why = {row.labels[3]: row.why for row in fifth.rows}
    assert why["w/o VCE"] == "run, but not scored on val in these metrics"
    assert our(find(tables, "lmr", "Table II")) == {}


def test_vdis_rows_take_clip_from_files_or_extracted_here_with_the_papers_weights(tmp_path):
    vdi = {"method": "vdi", "experiment": "vdi/charades_sta", "ablation": None}
    put(tmp_path, "vdi-files", 40.0, ("clip_vit_b32",), features="r2_tuning", **vdi)
    for weights, value in (("openai", 45.0), ("laion2b_s34b_b79k", 50.0)):
        put(tmp_path, f"vdi-{weights}", value, (), features="extracted", **vdi)
        part = {"backbone": "open_clip ViT-B-32-quickgelu", "pretrained": weights}
        file = tmp_path / f"vdi-{weights}" / "seed0" / "manifest.json"
        file.write_text(json.dumps({"video": {"encoders": [part]}}))
    table = find(compare_with_papers(finished_runs(tmp_path)), "vdi", "Table 2")
    (row,) = (row for row in table.rows if row.labels[0] == "charades_sta" and row.labels[3] == "VDI (Ours)")
    found = sorted(
        (column.kind, str(cell)) for (column, metric), cell in row.ours.items() if metric == "R1@0.5"
    )
    assert found == [("", "40.00"), ("", "45.00"), ("other features", "50.00")]


def test_subsets_by_another_parser_stand_beside_the_papers(tmp_path):
    lmr = {"method": "lmr", "features": "slowfast_clip", "split": "c1_w8", "ablation": None}
    lmr |= {"experiment": "lmr/qvhighlights"}
    for protocol, value in (("cqval", 1.0), ("cqval_hanta", 2.0)):
        put(tmp_path, f"lmr-{protocol}", value, ("slowfast", "clip"), protocol=protocol, **lmr)
    fourth = find(compare_with_papers(finished_runs(tmp_path)), "lmr", "Table IV")
    (row,) = (row for row in fourth.rows if row.labels[1] == "c1_w8" and row.labels[3] == "LMR")
    assert sorted(column.kind for column, metric in row.ours if metric == "R1@0.7") == ["", "other data"]
    assert any(column.title.startswith("other data, cqval_hanta") for column in fourth.columns)


def add(root, name, header, **splits):
    """Adds keys to the header of a run and metrics to its splits."""
    path = root / name / "seed0" / "metrics.json"
    content = json.loads(path.read_text())
    content["header"] |= header
    for split, metrics in splits.items():
        content[split] = content.get(split, {}) | metrics
    path.write_text(json.dumps(content))


def test_frame_probability_and_total_inference_stand_beside_bm_detrs_tables(tmp_path):
    both = {"features": "slowfast_clip_1s", "experiment": "bm_detr/charades_sta", "ablation": None}
    put(tmp_path, "bm_detr", 50.0, ("clip", "slowfast"), **both)
    measured = {"p_inside": 0.6, "p_outside": 0.2, "p_difference": 0.4}
    add(tmp_path, "bm_detr", {"inference_seconds": 12.5}, test=measured)
    tables = compare_with_papers(finished_runs(tmp_path))
    (row,) = [
        one
        for one in find(tables, "bm_detr", "Table 9").rows
        if (one.labels[0], one.labels[3]) == ("charades_sta", "Neg")
    ]
    assert {m: str(cell) for (_, m), cell in row.ours.items()} == {
        "GT": "0.60",
        "Non-GT": "0.20",
        "delta": "0.40",
    }
    total = our(find(tables, "bm_detr", "Table 10"), "Total Inference (s)")
    assert [text for cells in total.values() for _, text in cells] == ["12.50"]


def test_the_average_of_lmrs_table_iv_is_the_mean_over_the_test_splits(tmp_path):
    lmr = {"method": "lmr", "protocol": "cqval", "experiment": "lmr/qvhighlights", "ablation": None}
    put(tmp_path, "lmr", 1.0, ("clip", "slowfast"), features="slowfast_clip", split="c1_w8", **lmr)
    scores = {"c1_w8": {"mAP@0.7": 10.0}, "c1_w9": {"mAP@0.7": 30.0}, "selection": {"mAP@0.7": 99.0}}
    path = tmp_path / "lmr" / "seed0" / "metrics.json"
    header = json.loads(path.read_text())["header"]
    path.write_text(json.dumps({"header": header, **scores}))
    table = find(compare_with_papers(finished_runs(tmp_path)), "lmr", "Table IV")
    found = {
        row.labels[1]: str(cell)
        for row in table.rows
        if row.labels[3] == "LMR"
        for (_, metric), cell in row.ours.items()
        if metric == "mAP@0.7"
    }
    assert found == {"c1_w8": "10.00", "c1_w9": "30.00", "Avg": "20.00"}


def test_tables_are_requested_by_name():
    tables = compare_with_papers([])
    assert len(tables) == 29
    named = {
        name: sum(is_requested(table, name) for table in tables)
        for name in ("tea", "lmr/tableIV", "lmr/4", "all")
    }
    assert named == {"tea": 4, "lmr/tableIV": 1, "lmr/4": 1, "all": 29}
    assert sum(is_requested(table, "tea/table2,bm_detr/table10") for table in tables) == 2
    with pytest.raises(VmrError, match="Did you mean tea"):
        is_requested(tables[0], "te")
    with pytest.raises(VmrError, match="Unknown table of tea 'table9'"):
        is_requested(tables[0], "tea/table9")


def test_the_command_prints_a_paper_table_without_any_run(tmp_path, capsys):
    for kind in ("table", "markdown", "csv", "latex"):
        assert main.main(["report", f"runs={tmp_path}", "printed=tea/table4", f"format={kind}"]) == 0
        shown = capsys.readouterr().out
        assert "54.28" in shown
        assert "no run on the features emb of charades" in shown


def test_runs_of_other_settings_or_studies_are_not_averaged_as_seeds(tmp_path):
    whole = {"features": "f", "experiment": "bm_detr/charades_sta", "ablation": None, "variant": "paper"}
    backbones = ("clip", "slowfast")
    put(tmp_path / "one", "bm_detr-paper", 60.0, backbones, **whole)
    put(tmp_path / "two", "bm_detr-paper", 50.0, backbones, **whole, plateau=False)
    put(tmp_path, "trial", 10.0, backbones, **whole, overrides={"method.training.optimizer.lr": "1"})
    table = find(compare_with_papers(finished_runs(tmp_path)), "bm_detr", "Table 2")
    assert sorted(our(table)["SF+C", "BM-DETR (ours)"]) == [("", "10.00"), ("", "50.00†"), ("", "60.00")]
    titles = {column.title for column in table.columns}
    assert titles == {"features f (one)", "features f (two)", "features f, method.training.optimizer.lr=1"}
    assert "† still improving when training ended" in table.notes


def test_seeds_of_unlike_settings_are_named(tmp_path):
    whole = {"features": "f", "experiment": "bm_detr/charades_sta", "ablation": None}
    for seed in (0, 1):
        put(tmp_path, "bm_detr-paper", 60.0, ("clip", "slowfast"), seed, **whole)
        with (tmp_path / "bm_detr-paper" / f"seed{seed}" / "config.yaml").open("a") as file:
            file.write(f"method:\n  dropout: 0.{seed}\n")
    table = find(compare_with_papers(finished_runs(tmp_path)), "bm_detr", "Table 2")
    assert "WARNING: the runs of ours 1 differ in method.dropout (0.0, 0.1)." in table.notes
