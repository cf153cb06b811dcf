"""The page in a real browser: headless Chromium, without a network."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from aigc.errors import UserError
from aigc.report import page as page_module
from aigc.report.comparison import Comparison
from aigc.report.page import check_libraries, content, script_json, write
from aigc.report.runs import find_runs, read_run, read_runs
from aigc.training import fit

from ..conftest import TINY, compose_train, environment
from .made import evaluate, make_run

OPTIONS = {"grids": 300, "thumbnail": 280, "points": 40000, "shown": 12}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}) is on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # parallel coordinates are drawn by WebGL, which a machine without a GPU does in software
        arguments = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        yield playwright.chromium.launch(executable_path=path, args=arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two real runs, and three as training leaves them: one measured otherwise, two evaluated."""
    root = tmp_path_factory.mktemp("runs")
    for family in ("gan", "vae"):
        folder = root / "real" / family
        (folder / ".hydra").mkdir(parents=True)
        cfg = compose_train(*TINY[family], "metrics=losses", "budget.images=640", "callbacks.samples.n=4",
                            "callbacks.samples.every_images=320", "log_every=10")
        (folder / ".hydra" / "config.yaml").write_text("model: {}\n")
        fit(cfg, folder)
    slow = make_run(root / "made" / "diffusion", family="Diffusion", fd=0.5, overrides=("model.rate=0.001",))
    quick = make_run(root / "made" / "gan", fd=2.0, rate=0.1, overrides=("model.rate=0.1",))
    make_run(root / "made" / "other", fd=1.0, num_samples=10000, rate=0.2, overrides=("model.rate=0.2",))
    evaluate(slow, "recipe", 0.5, 40)
    evaluate(slow, "short", 1.0, 10, {"steps": 5})
    evaluate(quick, "recipe", 2.0, 1)
    return root


@pytest.fixture
def opened(browser, runs, tmp_path):
    """Opens the page of the runs; fails if the console says an error or anything asks for the network."""
    contexts = []

    def open_page(path=None, *, width=1300, dark=False):
        path = path or write(Comparison(read_runs(runs)), tmp_path / "report.html", **OPTIONS)
        context = browser.new_context(viewport={"width": width, "height": 900},
                                      color_scheme="dark" if dark else "light")
        shown = context.new_page()
        shown.set_default_timeout(20_000)
        said, asked = [], []
        shown.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: asked.append(request.url))
        contexts.append((context, said, asked))
        shown.goto(Path(path).as_uri())
        shown.wait_for_selector("#charts .main-svg")
        return shown

    yield open_page
    for context, said, asked in contexts:
        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
        context.close()


def rows(shown):
    return [row.split("\t")[1] for row in shown.locator("#table tbody tr").all_inner_texts()]


def settle(shown, text):
    """Waits until the page says `text` about what the charts show."""
    shown.wait_for_function("text => document.getElementById('showing').textContent.startsWith(text)", arg=text)


@pytest.mark.slow
def test_the_table_sorts_filters_and_says_which_runs_the_charts_show(opened):
    shown = opened()
    assert rows(shown) == ["made/diffusion", "made/gan", "made/other", "real/gan", "real/vae"]   # A, then B, then none
    assert "A and B were not measured alike" in shown.inner_text("#warnings")
    assert "images generated (2000 and 10000)" in shown.inner_text("#warnings")
    settle(shown, "5 of 5 runs")
    shown.get_by_role("button", name="minutes: Activate to sort", exact=True).focus()
    shown.keyboard.press("Enter")
    shown.wait_for_function("document.querySelector('#table tbody tr').textContent.startsWith('real/')")
    shown.get_by_role("searchbox").fill("gan")
    settle(shown, "3 of 5 runs")
    assert sorted(rows(shown)) == ["made/gan", "made/other", "real/gan"]
    assert shown.locator("#legend li").all_inner_texts() == rows(shown) and shown.locator("#figures img").count() == 3
    shown.get_by_role("searchbox").fill("")
    settle(shown, "5 of 5 runs")
    shown.locator("#table tbody tr", has_text="made/gan").get_by_role("checkbox").focus()
    shown.keyboard.press("Space")
    settle(shown, "1 of 5 runs in the charts: those ticked")
    assert shown.locator("#charts .chart").first.evaluate("node => node.data.map(trace => trace.name)") == ["made/gan"]
    shown.get_by_role("button", name="Filter family").click()
    shown.locator(".dtcc-search input").fill("Diffusion")
    settle(shown, "1 of 5 runs in the charts: all that pass")
    assert rows(shown) == ["made/diffusion"]


@pytest.mark.slow
def test_curves_grids_tradeoffs_and_settings(opened):
    shown = opened()

    def chart(name):
        return shown.locator(f"#charts .chart[data-name='{name}']")

    def data(node):
        return node.evaluate("node => node.data.map(t => ({name: t.name, x: [...t.x], y: [...t.y], mode: t.mode}))")

    curve = next(trace for trace in data(chart("fd_classifier")) if trace["name"] == "made/gan")
    assert curve["x"] == [6400, 12800] and curve["y"] == [4.0, 2.0]
    shown.select_option("#axis", "minutes")
    shown.wait_for_function("document.querySelector('#charts .chart').layout.xaxis.title.text === 'minutes'")
    assert next(t for t in data(chart("fd_classifier")) if t["name"] == "made/gan")["x"] == [0.5, 1.0]
    assert {trace["name"] for trace in data(chart("loss"))} >= {"made/gan", "real/vae"}
    shown.locator("#names summary").click()
    shown.locator("#choices").get_by_label("rate", exact=True).check()
    shown.wait_for_selector("#charts .chart[data-name='rate'] .main-svg")

    assert shown.inner_text("#at") == "12,800 images seen"
    shown.locator("#progress").focus()
    shown.keyboard.press("Home")
    assert shown.inner_text("#at") == "0 images seen"
    assert set(shown.locator("#figures small").all_inner_texts()) == {"digits, 0 images", "0 images"}
    first = shown.locator("#figures img").first.get_attribute("src")
    shown.keyboard.press("End")
    assert shown.locator("#figures img").first.get_attribute("src") != first
    assert shown.evaluate("[...document.querySelectorAll('#figures img')].every(image => image.naturalWidth > 0)")

    minutes = data(shown.locator("#minutes"))
    assert [t["x"] for t in minutes if t["mode"] == "markers"] == [[1.0, 1.0], [1.0]]            # protocols A and B
    sampling = data(shown.locator("#sampling"))
    front = next(trace for trace in sampling if trace["mode"] == "lines")
    assert list(zip(front["x"], front["y"], strict=True)) == [(1, 2.0), (10, 1.0), (40, 0.5)]
    shown.select_option("#cost", "2")
    shown.wait_for_function("document.getElementById('sampling').layout.xaxis.title.text.startsWith('seconds')")
    assert sorted(data(shown.locator("#sampling"))[1]["x"]) == [0.01, 0.1, 0.4]

    lines = shown.locator("#coordinates")
    axes = dict(lines.evaluate("node => node.data[0].dimensions.map(axis => [axis.label, [...axis.values]])"))
    assert axes["model.rate"] == [0.001, 0.1, 0.2] and axes["fd_classifier"] == [0.5, 2.0, 1.0]
    settings = shown.locator("#settings tbody tr", has_text="model.rate").inner_text().split("\t")
    assert settings[:4] == ["model.rate", "0.001", "0.1", "0.2"]
    shown.select_option("#score", "label_accuracy")
    shown.wait_for_function("document.getElementById('minutes').layout.title.text.startsWith('label_accuracy (more')")


@pytest.mark.slow
def test_narrow_and_dark(opened):
    shown = opened(width=380, dark=True)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 380
    assert shown.locator("#charts .chart").first.bounding_box()["width"] <= 380
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert shown.evaluate("document.documentElement.classList.contains('dark')")
    assert shown.evaluate("document.querySelector('#charts .chart').layout.font.color") == "#e4e8ec"
    bright = opened(width=1300)
    assert bright.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_what_runs_say_cannot_become_markup(opened, tmp_path):
    nasty = "<img src=x onerror=console.error(1)>"
    folder = make_run(tmp_path / "runs" / "a", overrides=(f"data={nasty}",))
    make_run(tmp_path / "runs" / "b", fd=float("nan"))
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"family": nasty, "reason": "</script><script>console.error(2)</script>", "status": "stopped"}
    summary["scores"]["last"]["a<b>c</b>"] = 1.0
    (folder / "summary.json").write_text(json.dumps(summary))
    shown = opened(write(Comparison(read_runs(tmp_path / "runs")), tmp_path / "r.html", title=nasty, **OPTIONS))
    assert shown.inner_text("h1") == nasty and nasty in shown.inner_text("#table")
    assert "</script><script>" in shown.inner_text("#table")
    assert shown.locator("img[src=x]").count() == 0


def test_numbers_that_json_does_not_have_become_null():
    assert script_json({"a": [float("nan"), 1.5, float("inf")], "b": "</script>"}) == (
        '{"a":[null,1.5,null],"b":"\\u003c/script>"}')


@pytest.mark.slow
def test_fifty_long_runs_make_a_small_page_soon(tmp_path, opened):
    """Written within ten times what reading their jsonl takes, under 15 MB, without an error in the console."""
    source = make_run(tmp_path / "runs" / "0", lines=2000, grids=12)
    whole = (source / "metrics.jsonl").read_text()
    for k in range(1, 50):
        shutil.copytree(source, tmp_path / "runs" / str(k))
        (tmp_path / "runs" / str(k) / "metrics.jsonl").write_text(whole.replace('"loss": ', f'"loss": {k}'))
    folders = find_runs(tmp_path / "runs")
    started = time.perf_counter()
    read = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in folders]
    reading = time.perf_counter() - started
    assert len(read) == 50 and len(read[0]) == 2002
    started = time.perf_counter()
    path = write(Comparison([read_run(folder) for folder in folders]), tmp_path / "r.html", **OPTIONS)
    writing = time.perf_counter() - started
    assert writing < 10 * reading, (writing, reading)
    assert path.stat().st_size < 15e6
    shown = opened(path)
    settle(shown, "12 of 50 runs in the charts: the first as filtered and sorted")


def test_broken_pictures_are_left_out_with_a_warning(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "samples" / "000006400.png").write_bytes(b"no picture")
    data = content(Comparison([read_run(folder)]), **OPTIONS)
    assert [images for images, _ in data["runs"][0]["grids"]["samples"]] == [0, 12800]
    assert data["warnings"] == ["a: the picture 000006400.png could not be read"]


def test_a_missing_library_and_an_unwritable_place_are_said(tmp_path, monkeypatch):
    assert all(path.is_file() for path in check_libraries().values())
    (tmp_path / "file").touch()
    comparison = Comparison([read_run(make_run(tmp_path / "a"))])
    with pytest.raises(UserError, match=r"r\.html' could not be written \(.*\): choose another out="):
        write(comparison, tmp_path / "file" / "r.html", **OPTIONS)
    monkeypatch.setitem(page_module.LIBRARIES, "plotly.js", ("plotly_is_gone", "x.js"))
    with pytest.raises(UserError, match=r"'plotly_is_gone': pip install 'aigc\[compare\]'"):
        check_libraries()


@pytest.mark.slow
def test_serving_follows_the_runs_and_ends_cleanly(browser, tmp_path):
    made = make_run(tmp_path / "runs" / "one", fd=3.0)
    command = [sys.executable, "-m", "aigc.compare", "runs=runs", "serve=true", "refresh_seconds=0.3"]
    server = subprocess.Popen(command, cwd=tmp_path, env=environment(PYTHONUNBUFFERED="1"), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        url = re.fullmatch(r"1 runs at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends\)\n", server.stdout.readline())[1]
        shown = browser.new_page()
        shown.goto(url)
        shown.wait_for_selector("#charts .main-svg")
        assert rows(shown) == ["one"]
        shown.locator("#table tbody").get_by_role("checkbox").check()
        make_run(tmp_path / "runs" / "two", fd=1.0, rate=0.5, overrides=("model.rate=0.5",))
        shown.wait_for_function("document.querySelectorAll('#table tbody tr').length === 2")
        assert rows(shown) == ["two", "one"]
        settle(shown, "1 of 2 runs in the charts: those ticked")
        with open(made / "metrics.jsonl", "a") as file:
            file.write('{"step": 210, "images": 13440, "seconds": 63.0, "loss": 77.0}\n')
        shown.wait_for_function(
            "[...document.querySelectorAll('#charts .chart')].some(node => node.data?.[0]?.y.includes(77))")
        with pytest.raises(urllib.error.HTTPError, match="403"):        # another site's name for this machine
            urllib.request.urlopen(urllib.request.Request(url, headers={"Host": "elsewhere.example"}))
        taken = subprocess.run([*command, f"port={url.rsplit(':', 1)[1]}"], cwd=tmp_path, env=environment(),
                               capture_output=True, text=True)
        assert taken.returncode == 2 and "cannot be had (Address already in use): choose another port=" in taken.stderr
    finally:
        os.kill(server.pid, signal.SIGINT)
        out, error = server.communicate(timeout=20)
    assert (server.returncode, out, error) == (0, "ended\n", "")
    shown.wait_for_function("document.getElementById('made').textContent.startsWith('The server has ended')")
