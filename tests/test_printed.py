"""The papers' tables beside ours: what counts as the same, and what is said of the rest."""

from __future__ import annotations

import json

import pytest

from test_report import write
from vmr_zoo.cli import main
from vmr_zoo.errors import VmrError
from vmr_zoo.report.leaderboard import collect
from vmr_zoo.report.paper_tables import asked, printed_tables, touched


def put(root, name, value, backbones=(), seed=0, **header):
    """Writes a run with one number and features of these backbones."""
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
    """Returns (kind of column, text) of our numbers by name of the row."""
    return {
        (row.labels[2], row.labels[3]): [
            (c.kind, str(cell)) for (c, m), cell in row.ours.items() if m == metric
        ]
        for row in table.rows
        if any(m == metric for _, m in row.ours)
    }


def test_a_run_stands_beside_the_row_of_its_backbones(tmp_path):
    both = {"features": "slowfast_clip_1s", "experiment": "bm_detr/charades_sta", "ablation": None}
    put(tmp_path, "bm_detr-paper", 50.0, ("slowfast", "clip_vit_b32"), **both)
    put(tmp_path, "bm_detr-paper", 52.0, ("clip", "slowfast"), seed=1, **both)
    put(tmp_path, "bm_detr-sim", 90.0, ("labels",), origin="simulated", features="action_labels")
    table = find(printed_tables(collect(tmp_path)), "bm_detr", "Table 2")
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
    assert why["VGG", "BM-DETR (ours)"] == "needs features VGG of charades_sta that no run used"
    assert why["C3D", "2D-TAN"] == "no method of this package"
    assert {row.labels[3]: row.paper["R1@0.5"] for row in table.rows if row.labels[2] == "SF+C"}[
        "BM-DETR (ours)"
    ] == "59.48"


def test_an_ablation_row_takes_the_runs_of_its_overlay_alone(tmp_path):
    whole = {"features": "f", "experiment": "bm_detr/charades_sta", "ablation": None}
    put(tmp_path, "bm_detr-paper", 60.0, ("clip", "slowfast"), **whole)
    put(tmp_path, "bm_detr-ls", 50.0, ("clip", "slowfast"), **whole | {"ablation": "bm_detr/table7_ls"})
    # A run from before headers said so, on other data: config.yaml knows its overlay.
    put(
        tmp_path, "bm_detr-ts", 40.0, (), protocol="shapes", origin="rendered", features="shapes", split="iid"
    )
    with (tmp_path / "bm_detr-ts" / "seed0" / "config.yaml").open("a") as file:
        file.write(
            "choices:\n  method: bm_detr\n  experiment: null\n  ablation: bm_detr/table7_ts\nname: x\n"
        )
    tables = printed_tables(collect(tmp_path))
    assert our(find(tables, "bm_detr", "Table 7")) == {
        ("SF+C", "LS"): [("", "50.00")],
        ("SF+C", "TS"): [("rendered", "40.00 [iid]")],
        ("SF+C", "BMD+FS+LS+TS"): [("", "60.00")],
    }
    assert "SF+C" not in [key[0] for key in our(find(tables, "bm_detr", "Table 9"))]
    assert touched(find(tables, "bm_detr", "Table 7"))
    assert not touched(find(tables, "tea", "Table 4"))


def test_where_a_paper_names_no_backbone_the_experiment_decides(tmp_path):
    tea = {"protocol": "charades_cd", "method": "tea", "split": "ood", "experiment": "tea/charades_cd"}
    put(tmp_path, "tea-emb", 54.0, ("i3d",), features="emb", **tea)
    put(tmp_path, "tea-other", 10.0, ("c3d",), features="c3d", **tea)
    ours = our(find(printed_tables(collect(tmp_path)), "tea", "Table 2"))
    assert ours == {("", "TEA (Ours)"): [("", "54.00"), ("other features", "10.00")]}


def test_tables_are_asked_for_by_name():
    tables = printed_tables([])
    assert len(tables) == 29
    named = {
        name: sum(asked(table, name) for table in tables) for name in ("tea", "lmr/tableIV", "lmr/4", "all")
    }
    assert named == {"tea": 4, "lmr/tableIV": 1, "lmr/4": 1, "all": 29}
    assert sum(asked(table, "tea/table2,bm_detr/table10") for table in tables) == 2
    with pytest.raises(VmrError, match="Did you mean tea"):
        asked(tables[0], "te")
    with pytest.raises(VmrError, match="Unknown table of tea 'table9'"):
        asked(tables[0], "tea/table9")


def test_the_command_prints_a_papers_table_without_any_run(tmp_path, capsys):
    for kind in ("table", "markdown", "csv", "latex"):
        assert main.main(["report", f"runs={tmp_path}", "printed=tea/table4", f"format={kind}"]) == 0
        shown = capsys.readouterr().out
        assert "54.28" in shown
        assert "needs features emb of charades" in shown
