"""The page of `vmr report html=true`, looked at as text and driven in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from test_report import write
from vmr_zoo import cli

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
EVIL = "</script><script>document.title='broken'</script><img src=x onerror=document.title='broken'>"


@pytest.fixture
def page(tmp_path, capsys):
    """Two runs; in the first the sentences are an attack."""
    for name, right in {"good": 150, "bad": 50}.items():
        write(tmp_path, name, {"iid": right, "ood": right // 2})
        run = tmp_path / name / "seed0"
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        for row in rows:
            row |= {"query": EVIL, "pred_saliency_scores": [0.0, 1.0, 0.5]}
        (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["report", f"runs={tmp_path}", "columns=[R1@0.5]", "html=true", "significance=true"]) == 0
    out = capsys.readouterr().out
    assert "report.html" in out
    return tmp_path / "report.html"


def test_the_page_is_whole_and_text_from_data_is_escaped(page):
    text = page.read_text()
    assert "<img src=x" not in text
    assert "document.title='broken'</script>" not in text
    assert not re.search(r"""(src|href)=["']https?://""", text)  # opens without a network
    assert text.count("<svg") >= 3
    (data,) = re.findall(r'<script type="application/json" class="data">(.*?)</script>', text, re.DOTALL)
    queries = json.loads(data)["queries"]
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
        assert names.all_inner_texts() == ["bad", "good"]
        view.locator("th", has_text="iid").first.click()
        assert names.all_inner_texts() == ["good", "bad"]
        view.locator("th", has_text="iid").first.click()
        assert names.all_inner_texts() == ["bad", "good"]
        view.locator("input.filter").fill("goo")
        assert view.locator("table.leaderboard tbody tr:visible").count() == 1

        assert view.locator(".count").inner_text() == "200 sentences"
        view.locator("select.right").select_option(label="good")
        view.locator("select.wrong").select_option(label="bad")
        assert view.locator(".count").inner_text() == "100 sentences"  # 150 right against 50
        assert view.locator(".view p").inner_text() == EVIL
        assert view.locator(".view .truth").count() == 1
        assert view.locator(".view .first").count() == 2
        assert view.locator(".view svg.scores").count() == 2
        assert (errors, view.title()) == ([], "vmr_zoo report")
        browser.close()
