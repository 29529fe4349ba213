"""The page of `vmr report html=true`: its text, and its behaviour in a browser if one is installed."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from markupsafe import escape
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from test_report import write
from test_report_formats import page_rows
from vmr_zoo.cli import main
from vmr_zoo.data.narrations import MANIFEST_KEYS, Narration, write_narrations
from vmr_zoo.data.worlds.shapes.generate import world_folder
from vmr_zoo.data.worlds.shapes.world import WorldSettings
from vmr_zoo.errors import VmrError
from vmr_zoo.report import charts
from vmr_zoo.report.caveats import mark_caveats
from vmr_zoo.report.claims import Cell, Claim
from vmr_zoo.report.leaderboard import LeaderboardRow, leaderboards
from vmr_zoo.report.page import write_page
from vmr_zoo.report.prediction_browser import Browsing
from vmr_zoo.report.runs import Run, finished_runs
from vmr_zoo.report.study import StudyTable, read_study
from vmr_zoo.report.verdicts import ClaimAnswer, Effect
from vmr_zoo.runs.config_sections import rendered_videos

ROOT = Path(__file__).parents[1]
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
EVIL = "</script><script>document.title='broken'</script><img src=x onerror=document.title='broken'>"


def write_video(path):
    """Writes a video of 30 s."""
    path.parent.mkdir()
    with av.open(path, "w") as container:
        stream = container.add_stream("libvpx", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for second in range(30):
            picture = np.full((48, 64, 3), 8 * second, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def page(tmp_path, capsys):
    """Two runs with two seeds; sentences, the name of a run and an error message attack the page."""
    write_video(tmp_path / "videos" / "v50.webm")
    for name, right in {"good": 150, "bad": 50}.items():
        for seed in (0, 1):
            write(tmp_path, name, {"iid": right, "ood": right // 2}, seed)
    write(tmp_path, "evil", {"iid": 10, "ood": 5})
    metrics = tmp_path / "evil" / "seed0" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"name": "evil"', f'"name": "_$x{EVIL}"'))
    write(tmp_path, "failed", {"iid": 10})
    (tmp_path / "failed" / "seed0" / "status.json").write_text(
        json.dumps({"state": "failed", "message": EVIL})
    )
    for name in ("evil", "good", "bad"):
        run = tmp_path / name / "seed0"
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        for row in rows:
            row |= {"query": EVIL, "pred_saliency_scores": [0.0, 1.0, 0.5]}
        (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "good" / "seed0" / "eval" / "iid-002"
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "good" / "seed0" / "predictions.jsonl", folder)
    shutil.copy(tmp_path / "good" / "seed0" / "metrics.json", folder)
    curve, word = np.array([0.25, 0.5], np.float32), np.array([1.0], np.float32)
    save_file({"0/highlight": curve, "0/word_probability": word}, folder / "details.safetensors")
    said = [Narration("v50", 0.0, 2.0, EVIL), Narration("v50", 25.0, 30.0, "nothing")]
    write_narrations(tmp_path / "said.jsonl", said, dict.fromkeys(MANIFEST_KEYS))
    arguments = [
        f"narrations={tmp_path / 'said.jsonl'}",
        "columns=[R1@0.5]",
        "html=true",
        "significance=true",
        "printed=[tea/table4]",
    ]
    assert main.main(["report", f"runs={tmp_path}", f"videos={tmp_path / 'videos'}", *arguments]) == 0
    out = capsys.readouterr().out
    assert "report.html" in out
    return tmp_path / "report.html"


def test_the_page_is_complete_and_escapes_text_from_data(page):
    text = page.read_text()
    assert "<img src=x" not in text
    assert "document.title='broken'</script>" not in text
    assert not re.search(r"""(src|href)=["']https?://""", text)  # opens without a network
    assert text.count('<svg role="img"') == 5  # no learning curves, which need metrics by epoch
    assert ">54.28</td>" in text  # a printed number beside ours
    rows = page_rows(text)
    assert [row["label"] for row in rows["rows"]] == ["good", "bad", f"_$x{EVIL}"]
    assert rows["rows"][0]["means"] == [[75.0, 37.5, 37.5]]  # R1@0.5 on iid and ood, and the drop
    assert rows["best"] == [[0, 0, None]]
    assert "Excluded, no results (1 failed): " in text
    (data,) = re.findall(r'<script type="application/json" class="data">(.*?)</script>', text, re.DOTALL)
    found = json.loads(data)
    queries = found["queries"]
    assert found["narrations"] == {"v50": [[0.0, 2.0, EVIL], [25.0, 30.0, "nothing"]]}
    good = found["runs"].index("good")
    assert queries[0]["answers"][good]["curves"] == {"highlight": [0.25, 0.5]}
    assert not queries[1]["answers"][good]["curves"]
    assert {query["text"] for query in queries} == {EVIL}
    assert len(queries) == 400


@pytest.fixture(scope="module")
def chromium():
    """A Chromium, if there is one."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to drive (Debian package chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_sorting_filtering_and_browsing_in_a_browser(page, chromium):
    view = chromium.new_page()
    errors = []
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.goto(page.as_uri())
    assert view.title() == "vmr_zoo report"

    names = view.locator("table.leaderboard tbody th[scope=row]")
    evil = f"_$x{EVIL}"
    assert names.all_inner_texts() == ["1 good", "2 bad", f"3 {evil}"]
    assert view.locator(".conclusion li").first.inner_text().startswith("good is best on iid: 75.00")
    head = view.locator("th", has_text="iid").first
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").focus()
    view.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert names.all_inner_texts() == [evil, "bad", "good"]
    assert head.locator("xpath=preceding-sibling::th").all_inner_texts() == ["run", "n"]  # the rows differ
    seeds = view.locator("table.leaderboard tbody td:nth-child(2)")
    assert seeds.all_inner_texts() == ["1", "2", "2"]
    view.keyboard.press("Escape")
    view.keyboard.press("/")
    view.keyboard.type("Goo")
    assert names.all_inner_texts() == ["good"]

    view.locator(".browser").scroll_into_view_if_needed()
    view.wait_for_function("document.querySelector('.count').textContent === '200 sentences'")
    view.locator("select.right").select_option(label="good")
    view.locator("select.wrong").select_option(label="bad")
    assert view.locator(".count").inner_text() == "100 sentences"  # 150 right against 50
    assert view.locator(".view p").first.inner_text() == EVIL
    assert view.locator(".view .truth").count() == 1
    assert view.locator(".view .first").count() == 3
    assert view.locator(".view svg.scores").count() == 3
    assert view.locator(".view .said").count() == 2
    assert view.locator(".narrations li").last.inner_text() == "25.0 to 30.0 snothing"
    assert view.locator(".view output").all_inner_texts() == ["1.00", "0.00", "0.00"]

    # A click on a moment seeks: the wrong answers start at 20 s.
    view.wait_for_function("document.querySelector('video').readyState > 0")
    view.locator(".view .first").last.click()
    view.wait_for_function("document.querySelector('video').currentTime >= 20")
    view.wait_for_function("parseFloat(document.querySelector('.cursor').style.left) >= 66")

    view.locator("input.words").fill("no such sentence")
    assert view.locator(".count").inner_text() == "0 sentences"
    assert view.locator(".view").inner_text() == ""
    assert (errors, view.title()) == ([], "vmr_zoo report")
    view.close()


def drawn_in_and_out(root):
    """Draws the chart of results in and out of distribution of the runs below a folder."""
    (board,) = leaderboards(finished_runs(root), ["R1@0.5"])
    mark_caveats([board])
    figure = Figure()
    charted = charts._Charted(board.rows, [], charts.Palette().styles(board.rows), board.splits, "R1@0.5")
    assert charts._draw_in_and_out(figure, charted)
    return figure.axes


def test_rows_with_several_seeds_have_whiskers_on_both_axes(tmp_path):
    write(tmp_path, "single", {"iid": 80, "ood": 60})
    for seed in (0, 1):
        write(tmp_path, "double", {"iid": 100 + 10 * seed, "ood": 60, "far": 40 + 20 * seed}, seed)
    write(tmp_path, "double", {"iid": 150}, 2)  # lacks the other splits, so it has no point
    write(tmp_path, "single", {"iid": 90, "ood": 60, "far": 60}, 1)
    left, _ = drawn_in_and_out(tmp_path)
    double, single = left.containers
    assert [(one.has_xerr, one.has_yerr) for one in (double, single)] == [(True, True), (False, False)]
    (point,) = double.lines[0].get_xydata()
    assert point == pytest.approx([52.5, 27.5])
    vertical = double.lines[2][1].get_segments()[0][:, 1]
    assert vertical == pytest.approx([27.5 - 5 / 2**0.5, 27.5 + 5 / 2**0.5])


def test_rows_that_ignore_their_sentences_are_last_among_drops(tmp_path):
    for name, hits, own in (("good", 160, 20.0), ("fair", 150, 20.0), ("blind", 80, 39.0)):
        write(tmp_path, name, {"iid": hits, "ood": hits // 2})
        run = tmp_path / name / "seed0"
        header = json.loads((run / "metrics.json").read_text())["header"] | {"probe": "other_query"}
        probe = run / "eval" / "iid-other_query-001"
        probe.mkdir(parents=True)
        (probe / "metrics.json").write_text(json.dumps({"header": header, "iid": {"R1@0.5": own}}))
    _, right = drawn_in_and_out(tmp_path)
    assert [label.get_text() for label in right.get_yticklabels()] == ["blind‡", "good", "fair"]  # upwards
    assert [bar.get_width() for bar in right.patches] == [20.0, 40.0, 37.5]
    assert "a weaker row has less to lose" in right.get_xlabel()


def test_a_method_has_one_colour_on_the_page_and_its_rows_differ_in_fill():
    def rows(*methods):
        return [LeaderboardRow(name, [Run(None, {"method": name}, {})], {}) for name in methods]

    palette = charts.Palette()
    first = palette.styles(rows("tea", "lmr", "tea", "emb"))
    second = palette.styles(rows("vdi", "emb", "tea"))
    assert [one.method for one in first] == [0, 1, 0, 2]
    assert [one.fill for one in first] == [1.0, 1.0, 0.0, 1.0]
    assert [one.method for one in second] == [3, 2, 0]
    assert [one.number for one in second] == [0, 1, 2]

    def looks(styles):
        return {(one.series, one.marker, one.fill) for one in styles}

    assert len(looks(charts.Palette().styles(rows(*["tea"] * 20)))) == 20  # a sweep
    many = charts.Palette().styles(rows(*"abcdefghijklmn"))
    assert len(looks(many)) == 14
    assert all(a.dash != b.dash for a, b in zip(many[:7], many[7:], strict=True))
    entries = charts.legend_entries(["x", "y", "z", "w"], first)
    assert entries[0]["marker"] == entries[2]["marker"] != entries[1]["marker"]
    assert [one["fill"] for one in entries] == [1.0, 1.0, 0.0, 1.0]


def test_git_ignores_the_page_beside_stored_runs():
    done = subprocess.run(["git", "check-ignore", "experiments/report.html"], cwd=ROOT, check=False)
    if done.returncode == 128:
        pytest.skip("not a git repository")
    assert done.returncode == 0


def several(root):
    """Writes runs of three families with two metrics: rows of the best group, worse ones, and a baseline."""
    families = {"first": "DETR", "close": "Span prediction", "worse": "DETR", "guess": "Baselines"}
    for name, hits in {"first": 160, "close": 159, "worse": 60, "guess": 20}.items():
        for seed in (0, 1):
            splits = {
                "iid": hits + 2 * seed,
                "a_split_with_a_very_long_name": hits,
                "another_long_name": hits,
            }
            write(root, name, splits, seed, family=families[name], step_ms=1000.0 / hits)
            file = root / name / f"seed{seed}" / "metrics.json"
            content = json.loads(file.read_text())
            for own in splits:
                content[own]["EtF1"] = 100 - content[own]["R1@0.5"]  # the other way round
            file.write_text(json.dumps(content))


def test_one_table_with_a_switch_shows_families_and_the_best_group(tmp_path, chromium):
    several(tmp_path)
    arguments = ["report", f"runs={tmp_path}", "columns=[R1@0.5,EtF1]", "html=true", "significance=true"]
    assert main.main([*arguments, "browse=0"]) == 0
    view = chromium.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    view.goto((tmp_path / "report.html").as_uri())
    body = "table.leaderboard tbody"
    rows, cells = view.locator(f"{body} th[scope=row]"), view.locator(f"{body} tr:has(td) td:nth-child(2)")
    assert view.locator("table").count() == 1
    assert view.locator(f"{body} th[scope=rowgroup]").all_inner_texts() == [
        "DETR",
        "Span prediction",
        "Baselines",
    ]
    assert rows.all_inner_texts() == ["first", "worse", "close", "guess"]  # a phone has no room for ranks
    numbers = " ".join(text.strip() for text in cells.all_inner_texts())
    assert numbers == "80.50 ± 0.71 30.50 ± 0.71 80.00 ± 0.71≈ 10.50 ± 0.71"
    assert view.locator(f"{body} td:nth-child(2) b").all_inner_texts() == ["80.50"]
    assert cells.evaluate_all("cells => cells.map(cell => cell.classList.contains('group'))") == [
        *(True, False),
        *(True, False),
    ]
    assert view.locator("p.key").inner_text().count("≈: no row is significantly better") == 1

    # The page does not scroll sideways; its table does, and the names stay.
    assert view.evaluate("document.documentElement.scrollWidth") == 390
    box = view.locator(".box").first
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    cut = "document.querySelector('.box').classList.contains('cut')"
    view.wait_for_function(cut)  # its right edge fades
    box.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    view.wait_for_function(f"!{cut}")
    assert rows.first.bounding_box()["x"] == box.bounding_box()["x"]

    # With the keyboard: the skip link comes first, arrows switch the metric, costs are a view of the table.
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.className") == "skip"
    view.locator(".switch input").first.focus()
    view.keyboard.press("ArrowRight")
    assert view.locator(".switch label:has(:checked)").inner_text() == "EtF1"
    assert rows.all_inner_texts() == ["worse", "first", "close", "guess"]
    view.locator(".grouped").press("Space")
    assert rows.all_inner_texts() == ["guess", "worse", "close", "first"]
    view.locator(".switch input").last.check(force=True)
    assert view.locator("thead th").all_inner_texts() == ["run", "seeds", "parameters", "train s", "step ms"]

    background = "getComputedStyle(document.body).backgroundColor"
    dark = view.evaluate(background)
    view.locator(".theme").click()
    assert view.evaluate(background) == dark  # "dark", as the system already was
    view.locator(".theme").click()
    assert view.evaluate(background) == "rgb(255, 255, 255)"
    view.close()


def test_on_a_phone_the_numbers_of_a_claim_stand_below_it(tmp_path, chromium):
    claim = Claim("one", "X", "1", "a beats b.", "rows", "R1@0.5", 1, 2.0, 2, (Cell(1, "a", {}, "iid"),))
    effect = Effect(12.9, 11.3, 14.6, {0: 12.0, 1: 13.8}, {"iid": 9}, 1.0, 300, frozenset())
    write_page([], tmp_path / "page.html", claims=[ClaimAnswer(claim, effect, 0.01, 1.0)])
    view = chromium.new_page(viewport={"width": 400, "height": 800})
    view.goto((tmp_path / "page.html").as_uri())
    cells = [cell.bounding_box() for cell in view.locator(".claims tbody tr > *").all()]
    assert len(cells) == 6
    assert all(one["y"] < other["y"] for one, other in itertools.pairwise(cells))
    assert all(one["x"] + one["width"] <= 400 for one in cells)
    view.close()


def test_rows_are_drawn_a_hundred_at_a_time(tmp_path, chromium):
    for number in range(130):
        write(tmp_path, f"run{number:03d}", {"iid": number})
    arguments = ["report", f"runs={tmp_path}", "columns=[R1@0.5]", "html=true", "browse=0"]
    assert main.main(arguments) == 0
    view = chromium.new_page()
    view.goto((tmp_path / "report.html").as_uri())
    rows = view.locator("table.leaderboard tbody tr")
    assert rows.count() == 100
    view.locator(".more button", has_text="all").click()
    assert rows.count() == 130
    assert not view.locator(".more").is_visible()
    view.close()


def test_rendered_videos_play_unasked_and_stored_results_stand_below(tmp_path, monkeypatch, capsys):
    write(tmp_path, "good", {"iid": 150, "ood": 75})
    settings = WorldSettings(train_videos=2, selection_videos=1, test_videos=1)
    video = world_folder(settings, tmp_path / "cache") / "videos" / "v0.mp4"
    video.parent.mkdir(parents=True)
    video.touch()
    world = {"_target_": "vmr_zoo.data.worlds.shapes.WorldSettings", **asdict(settings)}
    config = {"data": {"protocol": {"world": world}}, "paths": {"cache": str(tmp_path / "cache")}}
    run = tmp_path / "good" / "seed0"
    with (run / "config.yaml").open("a") as file:
        yaml.safe_dump(config, file)
    results = tmp_path / "results.csv"
    results.write_text(
        "name,seed,steps,best_epoch,plateau,revision,iid R1@0.5,other iid R1@0.5\n"
        f'"{EVIL}",0,9,4,False,abc,70.0,60.0\n"{EVIL}",1,9,6,True,abc,72.0,60.0\nemb-paper,0,9,3,True,abc,80.0,30\n'
    )
    arguments = ["report", f"runs={tmp_path}", "columns=[R1@0.5]", "html=true", f"study={results}"]
    assert main.main(arguments) == 0
    page = (tmp_path / "report.html").read_text()
    assert video.as_uri() in page
    assert "<td>71.0 ± 1.4</td>" in page
    assert f">{escape(EVIL)}†‡</td>" in page
    assert page.index(">emb</td>") < page.index("<td>71.0 ± 1.4</td>")
    shown = capsys.readouterr().out
    assert "Stored results" in shown
    assert "R1@0.5 on iid, here and in the study" not in shown, "other data"

    same = tmp_path / "same.csv"
    same.write_text(
        "name,protocol,features,origin,seed,steps,best_epoch,plateau,revision,iid R1@0.5,other iid R1@0.5\n"
        "good-paper,p,f_1,real,0,9,4,True,abc,70.0,30.0\ngood-paper,p,f_1,real,1,9,4,True,abc,72.0,\n"
        "emb-paper,p,f_1,real,0,9,4,True,abc,80.0,30.0\n"
    )
    monkeypatch.setattr("vmr_zoo.cli.report.open_page", lambda address: address.endswith("/report.html"))
    assert main.main([*arguments[:-1], f"study={same}", "open=true"]) == 0
    shown = capsys.readouterr().out
    assert f"Wrote {tmp_path / 'report.html'}, and opened it." in shown
    assert "R1@0.5 on iid, here and in the study: good 75.0 and 71.0 ± 1.4" in shown
    assert "Only in the study: emb" in shown
    assert "30.0 (n=1)" in shown

    two = tmp_path / "two.csv"
    two.write_text(
        "name,protocol,seed,steps,best_epoch,plateau,revision,"
        "iid R1@0.5,ood R1@0.5,trivial R1@0.5,other trivial R1@0.5\n"
        "emb,cd,0,9,4,True,abc,70.0,60.0,,\ntea,cg,0,9,6,True,abc,,40.0,50.0,45.0\n"
    )
    cd, cg = read_study(two)
    assert cd.rows == [("emb", "1", "70.0", "60.0", "", "4")]
    assert (cg.columns[2:4], cg.rows) == (("trivial", "ood"), [("tea‡", "1", "50.0", "40.0", "45.0", "6")])

    monkeypatch.setenv("VMR_CACHE", str(tmp_path / "elsewhere"))
    assert rendered_videos(run) is None
    results.write_text(results.read_text().replace("72.0", "72;0"))
    assert main.main(arguments) == 2
    assert "line 3" in capsys.readouterr().err
    results.write_text("name,seed\nemb,0\n")
    assert main.main(arguments) == 2
    assert "is not the results.csv of a study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("45.0", "abc"), "line 3 of .* found 'abc' as other iid R1@0.5"),
        (("45.0", "nan"), "found 'nan' as other iid R1@0.5"),
        (("tea,1", "emb,0"), "found seed 0 of emb again, after line 2"),
        ((",50.0,45.0", ",50.0"), "fewer cells than columns"),
        ((",50.0,45.0", ",50.0,45.0,1"), "more cells than columns"),
        (("tea,1", "te\xff,1"), "is not a readable CSV file"),
    ],
)
def test_results_of_a_study_with_a_mistake_are_refused(tmp_path, change, message):
    text = (
        "name,seed,steps,best_epoch,plateau,revision,iid R1@0.5,other iid R1@0.5\n"
        "emb,0,9,4,True,abc,70.0,30.0\ntea,1,9,4,True,abc,50.0,45.0\n"
    )
    file = tmp_path / "results.csv"
    file.write_bytes(text.encode("utf-8-sig"))
    assert len(read_study(file)[0].rows) == 2
    file.write_bytes(text.replace(*change).encode("latin-1"))
    with pytest.raises(VmrError, match=message):
        read_study(file)


def test_a_study_fits_80_columns_and_loses_no_digit(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    splits = ("iid", "ood_time", "novel_word", "novel_composition", "paraphrase", "complex")
    row = ("a_method+with_a_long_name+and_more", "3", *("84.9 ± 18.1" for _ in splits), "24.5 ± 1.7", "35")
    StudyTable("title", ("run", "n", *splits, "other", "epoch"), [row], ()).print()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("± 18.1") == len(splits)
    assert row[0] in shown  # below the table


def test_tables_of_transfer_and_by_kind_are_on_the_page(tmp_path):
    write(tmp_path, "good", {"iid": 150})
    boards = leaderboards(finished_runs(tmp_path), ["R1@0.5"])
    by_kind = {"title": EVIL, "note": "points", "columns": ["run", "short"], "rows": [[EVIL, "61.50"]]}
    out = tmp_path / "page.html"
    write_page(boards, out, shown_beside=Browsing(0), transfers=boards, breakdowns=[by_kind])
    text = out.read_text()
    assert text.count('class="rows"') == 2
    assert ">61.50</td>" in text
    assert EVIL not in text
