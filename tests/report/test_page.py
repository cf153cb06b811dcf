"""The page in a real browser: headless Chromium, without a network."""

import csv
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
from aigc.report.page import check_libraries, check_place, content, script_json, write
from aigc.runs.reading import find_runs, read_run, read_runs
from aigc.training.fit import fit

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
    evaluate(quick, "recipe", 2.0, 1, seconds=48.0)
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

    def said(label):
        return shown.locator("#figures figure", has_text=label).locator("small").inner_text()

    assert shown.inner_text("#at") == "1.0 minutes of training"         # the slider follows the axis of the charts
    assert said("made/gan") == "digits, 12,800 images, 1.0 minutes, fd_classifier 2"
    shown.locator("#progress").focus()
    shown.keyboard.press("ArrowLeft")
    assert shown.inner_text("#at") == "0.5 minutes of training"
    assert said("made/gan") == "digits, 6,400 images, 0.5 minutes, fd_classifier 4"
    shown.keyboard.press("End")
    shown.select_option("#axis", "images")
    shown.wait_for_function("document.getElementById('at').textContent === '12,800 images seen'")
    assert said("made/gan") == "digits, 12,800 images, fd_classifier 2"
    shown.locator("#progress").focus()
    shown.keyboard.press("Home")
    assert shown.inner_text("#at") == "0 images seen"
    assert set(shown.locator("#figures small").all_inner_texts()) == {"digits, 0 images", "0 images"}
    first = shown.locator("#figures img").first.get_attribute("src")
    shown.keyboard.press("End")
    assert shown.locator("#figures img").first.get_attribute("src") != first
    assert shown.evaluate("[...document.querySelectorAll('#figures img')].every(image => image.naturalWidth > 0)")

    minutes = data(shown.locator("#minutes"))
    assert [t["x"] for t in minutes if t["mode"] == "markers"] == [[1.0, 0.8], [1.0]]            # protocols A and B
    sampling = data(shown.locator("#sampling"))
    front = next(trace for trace in sampling if trace["mode"] == "lines")
    assert list(zip(front["x"], front["y"], strict=True)) == [(1, 2.0), (10, 1.0), (40, 0.5)]
    shown.select_option("#cost", "2")
    shown.wait_for_function("document.getElementById('sampling').layout.xaxis.title.text.startsWith('seconds')")
    assert sorted(data(shown.locator("#sampling"))[1]["x"]) == [0.01, 0.1, 0.4]

    names = chart("fd_classifier").evaluate("node => node.data.map(trace => trace.name)")
    assert names[:3] == ["made/diffusion", "made/gan", "made/other (protocol B)"]
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


@pytest.mark.slow
def test_names_wrap_on_a_phone_and_a_thinned_picture_says_so(opened, tmp_path):
    names = ["2026-11-21_04-18-24_diffusion_mnist", "2026-11-21_04-16-14_gan_mnist"]
    for k, name in enumerate(names):
        make_run(tmp_path / "runs" / name, lines=20 - 10 * k)
    page = write(Comparison(read_runs(tmp_path / "runs")), tmp_path / "r.html", **{**OPTIONS, "grids": 0})
    shown = opened(page, width=390)
    for cell in shown.locator("#table tbody td.wide:nth-child(2)").all():
        assert cell.evaluate("node => node.scrollWidth <= node.clientWidth")
        assert cell.locator("[title]").get_attribute("title") in names
    shown.locator("#progress").focus()
    shown.keyboard.press("Home")                            # 6,400 images, where only the second has a picture
    assert [said.split(" images")[1] for said in shown.locator("#figures small").all_inner_texts()] == [
        ", fd_classifier 1", ", fd_classifier 2 (its only one)"]


@pytest.mark.slow
def test_scores_sort_both_ways_export_raw_and_keep_their_protocols(opened, tmp_path):
    for name, fd, samples in (("a", 0.123456789, 2000), ("b", 3.0, 500), ("c", float("nan"), 2000)):
        folder = make_run(tmp_path / "runs" / name, fd=fd, num_samples=samples)
        summary = json.loads((folder / "summary.json").read_text())
        if name == "b":
            del summary["scores"]["last"]["label_accuracy"]
            (folder / "summary.json").write_text(json.dumps(summary))
    make_run(tmp_path / "runs" / "d", fd=2.0)
    shown = opened(write(Comparison(read_runs(tmp_path / "runs")), tmp_path / "r.html", **OPTIONS))
    assert rows(shown) == ["a", "d", "b", "c"]          # A, then B, then what is no number
    head = shown.get_by_role("button", name=re.compile(r"^fd_classifier: Activate"))
    for expected in (["a", "d", "b", "c"], ["b", "d", "a", "c"]):       # c has none: last, up and down
        head.click()
        shown.wait_for_function(
            "names => [...document.querySelectorAll('#table tbody td:nth-child(2)')].map(n => n.textContent).join() "
            "=== names", arg=",".join(expected))
    with shown.expect_download() as file:
        shown.get_by_role("button", name="CSV").click()
    table = list(csv.DictReader(Path(file.value.path()).read_text(encoding="utf-8-sig").splitlines()))
    line = next(line for line in table if line["run"] == "a")
    assert line["fd_classifier"] == "0.123456789" and line["protocol"] == "A" and line["images"] == "12800"
    assert next(line for line in table if line["run"] == "b")["protocol"] == "B"
    shown.select_option("#score", "label_accuracy")
    shown.wait_for_function("document.getElementById('minutes').layout.title.text.startsWith('label_accuracy')")
    with shown.expect_download() as file:
        shown.get_by_role("button", name="CSV").click()
    table = csv.DictReader(Path(file.value.path()).read_text(encoding="utf-8-sig").splitlines())
    assert {line["run"]: line["protocol"] for line in table} == {"a": "A", "b": "", "c": "A", "d": "A"}


def test_a_score_has_the_sampling_cost_that_another_of_the_same_sampler_paid(tmp_path):
    """An evaluation of the last checkpoint, or one with more images, says what training's score cost as well."""
    for name in "abc":
        make_run(tmp_path / name, fd=1.0)
    evaluate(tmp_path / "a", "other", 3.0, 40, checkpoint="last")
    record = tmp_path / "a" / "evaluations" / "other.json"
    record.write_text(record.read_text().replace('"num_samples": 2000', '"num_samples": 5000'))
    evaluate(tmp_path / "b", "fewer", 4.0, 8, options={"sampler.steps": 4})
    data = content(Comparison(read_runs(tmp_path)), **OPTIONS)
    assert data["scores"]["fd_classifier"]["costs"] == [
        [1, 8, 0.08, 4.0, 3.9, 4.1, "A"], [0, 40, 0.4, 1.0, None, None, "A"]]


def test_every_run_of_the_first_charts_has_several_pictures(tmp_path):
    folders = [make_run(tmp_path / f"{k:02d}", fd=1.0 + k, grids=6) for k in range(12)]
    data = content(Comparison([read_run(folder) for folder in folders]), **{**OPTIONS, "grids": 12, "shown": 3})
    counts = [len(run["grids"]["samples"]) for run in data["runs"]]
    assert counts == [4] * 3 + [1] * 9
    images, minutes, _ = data["runs"][0]["grids"]["samples"][1]
    assert minutes == pytest.approx(images / 640 * 3 / 60)
    bare = content(Comparison([read_run(folder) for folder in folders]), **{**OPTIONS, "grids": 0})
    assert {len(run["grids"]["samples"]) for run in bare["runs"]} == {1}


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
    assert [images for images, *_ in data["runs"][0]["grids"]["samples"]] == [0, 12800]
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


def test_a_page_replaces_its_own_earlier_one_and_no_other_file(tmp_path):
    path = tmp_path / "report.html"
    for mine in ("<html>the user's own report</html>", "connect-src 'self'"):
        path.write_text(mine)
        with pytest.raises(UserError, match=r"report\.html' exists and was not written by this program: choose"):
            check_place(path)
    template = (Path(page_module.__file__).parent / "page.html").read_text()
    for ours in (template, template.replace('<meta name="generator" content="aigc compare">\n', "")):    # of before
        path.write_text(ours)
        check_place(path)
    with pytest.raises(UserError, match="is a folder: give the name of a page"):
        check_place(tmp_path)
    (tmp_path / "empty.html").touch()
    for name in ("new.html", "empty.html"):
        check_place(tmp_path / name)



@pytest.mark.slow
def test_serving_follows_the_runs_and_ends_cleanly(browser, tmp_path):
    made = make_run(tmp_path / "runs" / "one", fd=3.0)
    command = [sys.executable, "-m", "aigc.compare", "runs=runs", "serve=true", "refresh_seconds=0.3"]
    server = subprocess.Popen(command, cwd=tmp_path, env=environment(PYTHONUNBUFFERED="1"), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        url = re.fullmatch(r"1 run at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends\)\n", server.stdout.readline())[1]
        shown = browser.new_page()
        shown.goto(url)
        shown.wait_for_selector("#charts .main-svg")
        assert rows(shown) == ["one"]
        shown.locator("#table tbody").get_by_role("checkbox").check()
        make_run(tmp_path / "runs" / "two", fd=1.0, rate=0.5, overrides=("model.rate=0.5",))
        shown.wait_for_function("document.querySelectorAll('#table tbody tr').length === 2")
        assert rows(shown) == ["two", "one"]
        settle(shown, "1 of 2 runs in the charts: those ticked")
        own = "document.querySelector('#charts .chart').data.map(trace => [trace.name, trace.line.color])"
        before = shown.evaluate(own)
        shown.get_by_role("button", name="Filter family").click()
        shown.locator(".dtcc-search input").fill("GAN")
        shown.keyboard.press("Escape")
        shown.locator(".dt-length select").select_option("10")
        make_run(tmp_path / "runs" / "a", fd=0.5, family="VAE", overrides=("model.width=3",))       # one more column
        text = (tmp_path / "runs" / "a" / ".hydra" / "config.yaml").read_text()
        (tmp_path / "runs" / "a" / ".hydra" / "config.yaml").write_text(f"{text}  width: 3\n")
        shown.wait_for_function("document.querySelector('#made').textContent.includes('3 runs')")
        shown.wait_for_function("document.querySelector('#settings').textContent.includes('model.width')"
                                "|| document.querySelector('#table').textContent.includes('model.width')")
        assert rows(shown) == ["two", "one"] and shown.locator(".dt-length select").input_value() == "10"
        settle(shown, "1 of 3 runs in the charts: those ticked")
        assert shown.evaluate(own) == before                            # colours belong to runs, not to their places
        with open(made / "metrics.jsonl", "a") as file:
            file.write('{"step": 210, "images": 13440, "seconds": 63.0, "loss": 77.0}\n')
        shown.wait_for_function(
            "[...document.querySelectorAll('#charts .chart')].some(node => node.data?.[0]?.y.includes(77))")
        with pytest.raises(urllib.error.HTTPError, match="403"):        # another site's name for this machine
            urllib.request.urlopen(urllib.request.Request(url, headers={"Host": "elsewhere.example"}))
        taken = subprocess.run([*command, f"port={url.rsplit(':', 1)[1]}"], cwd=tmp_path, env=environment(),
                               capture_output=True, text=True)
        assert taken.returncode == 2
        assert "is not available (Address already in use): choose another port=" in taken.stderr
    finally:
        os.kill(server.pid, signal.SIGINT)
        out, error = server.communicate(timeout=20)
    assert (server.returncode, out, error) == (0, "ended\n", "")
    shown.wait_for_function("document.getElementById('made').textContent.startsWith('The server has ended')")
