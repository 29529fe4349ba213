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
    put(tmp_path, "bm_detr-paper", 50.0, ("slowfast", "clip_vit_b32"), **both)
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
