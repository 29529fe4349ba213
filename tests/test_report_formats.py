"""Tables of `vmr report`: text from runs is escaped, terminals cut nothing, CSV is data, rows carry marks."""

from __future__ import annotations

import csv
import io
import json
import re

import pandas as pd
import pytest

from test_report import write
from vmr_zoo.cli import main
from vmr_zoo.errors import VmrError
from vmr_zoo.report import escape
from vmr_zoo.report.caveats import BLIND, RISING, find_caveats, mark_caveats
from vmr_zoo.report.leaderboard import DROP, leaderboards
from vmr_zoo.report.run_settings import filter_runs
from vmr_zoo.report.runs import finished_runs
from vmr_zoo.report.terminal import print_leaderboards
from vmr_zoo.report.writers import LEADERBOARD_WRITERS

METHODS = ("emb", "tea", "mmn", "vdi", "lmr", "moment_detr", "bm_detr", "qd_detr", "mesm")
SPLITS = ("iid", "ood_time", "novel_word", "novel_composition", "complex", "selection")

ATTACKS = (
    r"\input{/etc/passwd}",
    r"\write18{id}",
    "50% of $x_1^2$ & ~#{}",
    "[2em] a\\\\*",
    "a|b|c",
    "line\nbreak\r\n| x |",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:x) `code` **b** ~~c~~",
    "=HYPERLINK(1)",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\x1b[31mred",
    "＝1+1",
)


def write_named(root, folder, name, hits, **header):
    """Writes a run whose name is not that of its directory."""
    write(root, folder, hits, **header)
    file = root / folder / "seed0" / "metrics.json"
    content = json.loads(file.read_text())
    content["header"]["name"] = name
    file.write_text(json.dumps(content))


def board_of(tmp_path, name, **header):
    write_named(tmp_path, "run", name, {"iid": 100}, **header)
    boards = leaderboards(finished_runs(tmp_path), ["R1@0.5"])
    mark_caveats(boards)
    return boards


@pytest.mark.parametrize("text", ATTACKS)
def test_text_of_a_run_is_escaped_in_every_format(tmp_path, text):
    boards = board_of(tmp_path, text, protocol=text, overrides={"method.note": text})
    written = {name: write_(boards, False) for name, write_ in LEADERBOARD_WRITERS.items()}

    # LaTeX: every command is one of ours, and special signs occur only escaped.
    ours = (
        r"\\(?:begin|end|caption|centering|toprule|midrule|bottomrule|pm|approx|rlap|char34|dag|ddag|S|P|dots"
    )
    ours += r"|text[a-z]+)(?![a-zA-Z])|\\[&%$#_{}]|\\\\|\$\\[a-z]+\$"
    head, _, tables = written["latex"].partition("\n\n")
    assert all(line.startswith("%") for line in head.splitlines())
    rest = re.sub(ours, "", tables)
    assert not re.search(r"[\\^~%#$_]", rest), rest
    # Markdown: the table has as many lines and cells as without the text.
    lines = written["markdown"].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert "<img" not in written["markdown"]
    # CSV: no cell is a formula, and the scores are numbers.
    for name in ("csv", "long"):
        for row in csv.reader(io.StringIO(written[name])):
            assert not [cell for cell in row if re.match(r"\s*[=+@＝]|\s*-[^\d.]", cell)]
        assert pd.read_csv(io.StringIO(written[name]))["iid R1@0.5"].tolist() == [50.0]


def test_numbers_stay_numbers_in_csv():
    assert [escape.csv_cell(cell) for cell in ("-2.5", "+1e-3", -2.5, None)] == ["-2.5", "+1e-3", -2.5, None]


def page_rows(page):
    """Returns the data of the first leaderboard of a page."""
    return json.loads(re.search(r'class="rows">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture
def many(tmp_path):
    """Nine methods, six splits, three seeds."""
    for number, method in enumerate(METHODS):
        for seed in range(3):
            hits = {split: 12 * number + 7 * seed + place for place, split in enumerate(SPLITS)}
            write(tmp_path, f"{method}-paper+max_epochs-2", hits, seed, method=method)
    return tmp_path


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_leaderboard_fits_the_terminal_and_loses_no_digit(many, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    (board,) = leaderboards(finished_runs(many), ["R1@0.5"])
    print_leaderboards([board])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in shown
    rows = [line for line in lines if line.startswith(METHODS)]
    assert [row.split()[0] for row in rows] == list(reversed(METHODS))  # best first, one line each
    for row, line in zip(board.rows, rows, strict=True):
        means = [f"{row.mean((column, 'R1@0.5')):.2f}" for column in board.columns]
        assert [cell for cell in re.findall(r"-?\d+\.\d\d", line) if cell in means][:1] == means[:1]
        assert set(means) <= set(re.findall(r"-?\d+\.\d\d", line))
    assert "composition" in shown  # in a title of two lines, or in the legend
    assert "All rows: max_epochs-2" in " ".join(shown.split())
    assert "parameters" not in shown


def test_more_columns_than_fit_continue_in_another_table_and_long_names_in_a_legend(
    tmp_path, monkeypatch, capsys
):
    splits = [f"a_very_long_name_of_split_{number}" for number in range(14)]
    name = "tea-paper+" + "x" * 100
    write_named(tmp_path, "one", name, dict.fromkeys(splits, 77), method="tea")
    write_named(tmp_path, "two", "emb-paper", dict.fromkeys(splits, 55), method="emb")
    monkeypatch.setenv("COLUMNS", "80")
    print_leaderboards(leaderboards(finished_runs(tmp_path), ["R1@0.5"]), costs=True)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert (shown.count("38.50"), shown.count("27.50")) == (14, 14)
    assert "x" * 60 in shown  # the legend has the whole name
    for run in (tmp_path / "one", tmp_path / "two"):
        file = run / "seed0" / "metrics.json"
        file.write_text(file.read_text().replace('{"R1@0.5":', '{"R1@0.7": 1.0, "mIoU": 2.0, "R1@0.5":'))
    print_leaderboards(leaderboards(finished_runs(tmp_path), ["R1@0.5", "R1@0.7", "mIoU"]))
    three = capsys.readouterr().out
    assert three.count("1.00") > 14
    assert three.count("x" * 60) == 1  # once for all metrics
    assert "parameters" in shown


def test_csv_has_a_column_per_override_and_a_row_per_run(tmp_path):
    for rate, hits in (("0.001", 100), ("1e-4", 60)):
        for seed in (0, 1):
            name = f"tea-paper+lr-{rate}"
            write(tmp_path, name, {"iid": hits + seed}, seed, method="tea", overrides={"m.lr": rate})
    runs = finished_runs(tmp_path)
    boards = leaderboards(runs, ["R1@0.5"])
    means = pd.read_csv(io.StringIO(LEADERBOARD_WRITERS["csv"](boards, False)))
    assert means["m.lr"].tolist() == [0.001, 0.0001]
    assert means["iid R1@0.5 n"].tolist() == [2, 2]
    long = pd.read_csv(io.StringIO(LEADERBOARD_WRITERS["long"](boards, False)))
    assert long.pivot_table("iid R1@0.5", "m.lr", "seed").loc[0.001].tolist() == [50.0, 50.5]
    assert {run.header["seed"] for run in filter_runs(runs, {"m.lr": 1e-3})} == {0, 1}
    assert len(filter_runs(runs, {"m.lr": 0.0001})) == 2
    # A key of config.yaml filters too.
    assert len(filter_runs(runs, {"metrics.windows": 10})) == 4
    with pytest.raises(VmrError, match=r"Did you mean m\.lr"):
        filter_runs(runs, {"m.lrr": 1})


def test_rows_are_marked_in_every_output(tmp_path, capsys, monkeypatch):
    write(tmp_path, "rising", {"iid": 100}, plateau=False, parameters=5)
    write(tmp_path, "blind", {"iid": 90}, plateau=True)
    write(tmp_path, "unknown", {"iid": 80})
    probe = tmp_path / "blind" / "seed0" / "eval" / "iid-other_query-001"
    probe.mkdir(parents=True)
    header = json.loads((tmp_path / "blind" / "seed0" / "metrics.json").read_text())["header"]
    content = {"header": header | {"probe": "other_query"}, "iid": {"R1@0.5": 40.0}}
    (probe / "metrics.json").write_text(json.dumps(content))
    by_name = {run.header["name"]: find_caveats([run]) for run in finished_runs(tmp_path)}
    assert by_name["rising"][RISING.key]
    assert not by_name["blind"][RISING.key]
    assert by_name["blind"][BLIND.key]
    assert RISING.key not in by_name["unknown"]

    arguments = ["report", f"runs={tmp_path}", "columns=[R1@0.5]"]
    assert main.main([*arguments, "html=true"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("rising†", "blind‡", "† still improving"))
    page = (tmp_path / "report.html").read_text()
    assert {row["label"]: row["signs"] for row in page_rows(page)["rows"]} == {
        "rising": RISING.sign,
        "blind": BLIND.sign,
        "unknown": "",
    }
    assert page.index("is best on iid") < page.index("<table")
    assert main.main([*arguments, "format=markdown"]) == 0
    assert "rising†" in capsys.readouterr().out
    assert main.main([*arguments, "format=csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out), keep_default_na=False).set_index("run")
    assert table[RISING.key].to_dict() == {"rising": "yes", "blind": "no", "unknown": ""}
    assert table[BLIND.key].to_dict() == {"rising": "", "blind": "yes", "unknown": ""}


def test_trials_of_a_search_are_no_rows(tmp_path, capsys):
    write(tmp_path, "tea", {"iid": 100})
    write(tmp_path, "trial", {"iid": 150}, search="tea")
    arguments = ["report", f"runs={tmp_path}", "columns=[R1@0.5]", "format=csv"]
    assert main.main(arguments) == 0
    printed = capsys.readouterr()
    assert pd.read_csv(io.StringIO(printed.out))["run"].tolist() == ["tea"]
    assert "1 trial(s) of searches are not shown" in printed.err
    assert main.main([*arguments, "trials=true"]) == 0
    assert pd.read_csv(io.StringIO(capsys.readouterr().out))["run"].tolist() == ["trial", "tea"]


def test_families_come_from_headers_or_methods_with_baselines_and_others_last(tmp_path):
    write(tmp_path, "guess", {"iid": 180})
    write(tmp_path, "stranger", {"iid": 170})
    write(tmp_path, "other", {"iid": 160}, family="Elsewhere")
    write(tmp_path, "first", {"iid": 150}, family="DETR")
    write(tmp_path, "second", {"iid": 10}, family="DETR")
    targets = {"guess": "vmr_zoo.methods.predict_all.PredictAll", "stranger": "os.system"}
    for name, target in targets.items():  # runs before the key: only our own classes are imported
        with (tmp_path / name / "seed0" / "config.yaml").open("a") as file:
            file.write(f"method: {{_target_: {target}}}\n")
    boards = leaderboards(finished_runs(tmp_path), ["R1@0.5"])
    found = {name: [row.name for row in rows] for name, rows in boards[0].families.items()}
    assert found == {
        "": ["stranger"],
        "DETR": ["first", "second"],
        "Baselines": ["guess"],
        "Elsewhere": ["other"],
    }
    assert list(found) == ["", "DETR", "Baselines", "Elsewhere"]
    latex = LEADERBOARD_WRITERS["latex"](boards, False)
    order = [latex.index(rf"\textit{{{name}}}") for name in ("Other", "DETR", "Baselines", "Elsewhere")]
    assert order == sorted(order)


def test_a_drop_is_no_reason_for_bold(many):
    (board,) = leaderboards(finished_runs(many), ["R1@0.5"], f"{DROP} R1@0.5")
    assert board.best((DROP, "R1@0.5")) is None
    drops = [row.mean((DROP, "R1@0.5")) for row in board.rows]
    assert drops == sorted(drops)
