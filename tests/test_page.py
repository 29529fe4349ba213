"""The page of `vmr report html=true`: its text, and its behaviour in a browser if one is installed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict

import av
import numpy as np
import pytest
import yaml
from markupsafe import escape
from safetensors.numpy import save_file

from test_report import write
from vmr_zoo.cli import main
from vmr_zoo.data.narrations import MANIFEST_KEYS, Narration, write_narrations
from vmr_zoo.data.worlds.shapes.generate import world_folder
from vmr_zoo.data.worlds.shapes.world import WorldSettings
from vmr_zoo.runs.config_sections import rendered_videos

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
    write_video(tmp_path / "videos" / "v.webm")
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
    said = [Narration("v", 0.0, 2.0, EVIL), Narration("v", 25.0, 30.0, "nothing")]
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
    assert text.count("<svg") == 4  # in and out, recall, and moments of two splits; there are no curves
    assert ">54.28</td>" in text
    assert "Excluded, no results (1 failed): " in text
    (data,) = re.findall(r'<script type="application/json" class="data">(.*?)</script>', text, re.DOTALL)
    found = json.loads(data)
    queries = found["queries"]
    assert found["narrations"] == {"v": [[0.0, 2.0, EVIL], [25.0, 30.0, "nothing"]]}
    good = found["runs"].index("good")
    assert queries[0]["answers"][good]["curves"] == {"highlight": [0.25, 0.5]}
    assert not queries[1]["answers"][good]["curves"]
    assert {query["text"] for query in queries} == {EVIL}
    assert len(queries) == 400


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive (Debian package chromium)")
def test_sorting_filtering_and_browsing_in_a_browser(page):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page()
        errors = []
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.goto(page.as_uri())
        assert view.title() == "vmr_zoo report"

        names = view.locator("table.leaderboard tbody tr td:first-child")
        evil = f"_$x{EVIL}"
        assert names.all_inner_texts()[:3] == ["good", "bad", evil]
        assert view.locator(".conclusion li").first.inner_text().startswith("good is best on iid: 75.00")
        head = view.locator("th", has_text="iid").first
        head.locator("button").focus()
        view.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        view.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert names.all_inner_texts()[:3] == [evil, "bad", "good"]
        view.locator("input.filter").fill("Goo")
        assert view.locator("table.leaderboard tbody tr:visible").count() == 1

        assert view.locator(".count").inner_text() == "200 sentences"
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
        browser.close()


def test_rendered_videos_play_unasked_and_stored_results_stand_below(tmp_path, monkeypatch, capsys):
    write(tmp_path, "good", {"iid": 150, "ood": 75})
    settings = WorldSettings(train_videos=2, test_videos=1)
    video = world_folder(settings, tmp_path / "cache") / "videos" / "v.mp4"
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
    assert f"<td>{escape(EVIL)}†‡</td>" in page
    assert page.index("<td>emb</td>") < page.index("<td>71.0 ± 1.4</td>")
    assert "Stored results" in capsys.readouterr().out

    monkeypatch.setenv("VMR_CACHE", str(tmp_path / "elsewhere"))
    assert rendered_videos(run) is None
    results.write_text(results.read_text().replace("72.0", "72;0"))
    assert main.main(arguments) == 2
    assert "line 3" in capsys.readouterr().err
    results.write_text("name,seed\nemb,0\n")
    assert main.main(arguments) == 2
    assert "is not the results.csv of a study" in capsys.readouterr().err
