import html
import subprocess
import sys

import pytest

from . import forked
from .conftest import environment
from .report.made import make_run


def compare(folder, *words):
    return forked.run([sys.executable, "-m", "aigc.compare", *words], cwd=folder, env=environment())


def test_the_table_needs_no_torch_and_no_libraries_of_the_page(tmp_path):
    for k in range(3):
        make_run(tmp_path / "runs" / f"run{k}", fd=3.0 - k)
    command = [sys.executable, "-X", "importtime", "-m", "aigc.compare", "runs=runs"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[3:6]] == ["run2", "run1", "run0"]
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not {"torch", "lightning", "wandb", "plotly", "itables", "numpy", "matplotlib"} & imported
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]         # Hydra leaves nothing behind


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["runs=nowhere"], "runs='nowhere' does not exist: give a folder with runs in it, a run, a list or a glob"),
        (["score=fid"], "no run has a score 'fid': choose from fd_classifier, label_accuracy, val/loss"),
        (["out=report.pdf"], "out='report.pdf' is not an .html file: give e.g. out=report.html"),
        (["out=r.html", "serve=true"], "serve=true shows the page without writing it: drop out= or serve=true"),
        (["points=1"], "points=1 must be at least 2"),
        (["refresh_seconds=nan"], "refresh_seconds=nan must be at least 0.1"),
        (["runs=null"], "runs= names nothing: give a folder with runs in it, a run, a list or a glob"),
        (["runs=2024"], "runs='2024' does not exist: give a folder with runs in it, a run, a list or a glob"),
        (["at_images=5", "at_minutes=5"], "at_images= and at_minutes= name two points: give one of them"),
        (["at_images=0"], "at_images=0 must be at least 1"),
        (["rnus=runs"], "there is no option 'rnus': did you mean 'runs'?"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, tmp_path):
    make_run(tmp_path / "runs" / "one")
    done = compare(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"aigc: {sentence}"


def test_the_table_at_equal_minutes(tmp_path):
    make_run(tmp_path / "runs" / "one", fd=2.0)
    done = compare(tmp_path, "runs=runs", "at_minutes=0.5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("/runs/one at 0.5 minutes")
    assert done.stdout.splitlines()[3].split()[:7] == ["one", "GAN", "digits", "finished", "4", "0.5", "6,400"]


@pytest.mark.parametrize("title", ["GAN, VAE", "GAN vs VAE: 5 minutes (MNIST)", "what is 'best'?"])
def test_a_title_may_be_any_words(tmp_path, title):
    make_run(tmp_path / "runs" / "one")
    done = compare(tmp_path, "runs=runs", "out=report.html", f"title={title}")
    assert done.returncode == 0, done.stderr
    assert f"<title>{html.escape(title)}</title>" in (tmp_path / "report.html").read_text()


def test_a_page_of_a_list_of_globs(tmp_path):
    for name in ("a1", "a2", "b1"):
        make_run(tmp_path / "runs" / name)
    done = compare(tmp_path, "runs=[runs/a*,runs/b1]", "out=sub/report.html", "title=mine")
    assert (done.returncode, done.stdout) == (0, "3 runs in sub/report.html\n")
    text = (tmp_path / "sub" / "report.html").read_text()
    assert "<title>mine</title>" in text and "{{" not in text.split("<script type=\"importmap\">")[0]
    assert [entry.name for entry in (tmp_path / "sub").iterdir()] == ["report.html"]
