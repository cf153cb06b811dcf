"""The documentation is true: links lead somewhere, commands are understood, the tutorial's code works."""

import importlib
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict
from PIL import Image

from aigc.config.schema import CONFIG_DIR, SCHEMAS, check_closed, register_schemas
from aigc.config.words import quoted
from aigc.edit import edit
from aigc.evaluate import spelled_out
from aigc.generate import generate
from aigc.models.checkpoints import load_family
from aigc.runs.resume import over_saved
from aigc.training.compatibility import check_compatible
from aigc.training.fit import fit

from .conftest import COMMON, TINY
from .documents import DOCS, PAGES, ROOT, anchors, blocks, commands, links, name
from .families import READER
from .families import words as smallest

COMMANDS = [(page, verb, words) for page in PAGES for verb, words in commands(page)]
MEANT = {"run": "runs/some", "images": "photos", "out": "out", "against": "photos", "resume": "runs/some"}
TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT) and target.exists(), f"{name(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{name(page)} links to {link}, a heading that is not there"


def test_the_first_page_leads_to_every_other():
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert set(DOCS) <= reached
    studies = {(page.parent / link).resolve() for page in DOCS for link in links(page)}
    assert set(PAGES) - set(DOCS) - {ROOT / "README.md"} <= studies


def test_extras_and_targets_of_make_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    extras = set(re.findall(r"aigc\[([\w,]+)\]", text))
    declared = (ROOT / "pyproject.toml").read_text()
    assert extras and all(f"\n{extra} = [" in declared for group in extras for extra in group.split(","))
    targets = set(re.findall(r"^make (\w+)", text, re.MULTILINE)) | set(re.findall(r"`make (\w+)`", text))
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"train", "test"} <= targets <= set(rules)


def understood(verb: str, words: list[str], folder: Path):
    """The configuration that a command composes; of several jobs the first. Placeholders stand for what is meant."""
    chosen, search = [], []
    words = [word for word in words if word not in ("-m", "--multirun")]
    while "--config-dir" in words:
        at = words.index("--config-dir")
        search += [str((folder / words[at + 1]).resolve())] if (folder / words[at + 1]).is_dir() else []
        del words[at : at + 2]
    for word in words:
        key, _, value = word.partition("=")
        if "<" in value:
            word = re.sub("<[^>]*>", MEANT.get(key, "some"), word)
        if word == "model=some":
            word = "model=cyclegan" if "unpaired" in " ".join(words) else "model=gan"
        chosen.append(quoted(spelled_out(word) if verb == "evaluate" else word))
    chosen = over_saved(chosen)
    single = []
    for one in OverridesParser.create().parse_overrides(chosen):
        if one.is_interval_sweep():
            single.append(f"{one.get_key_element()}={one.value().start}")
        else:
            single.append(f"{one.get_key_element()}={next(one.sweep_string_iterator())}" if one.is_sweep_override()
                          else str(one.input_line))
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        extra = [f"hydra.searchpath=[{','.join(f'file://{path}' for path in search)}]"] if search else []
        cfg = compose(verb, overrides=[*extra, *single], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    check_closed(cfg, SCHEMAS[verb])
    return cfg


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """What the tutorial makes, in a folder: the family, its recipe and its test."""
    folder = tmp_path_factory.mktemp("tutorial")
    family, test = blocks(TUTORIAL, "python")
    (folder / "mine" / "model").mkdir(parents=True)
    (folder / "mine" / "realnvp.py").write_text(family)
    (folder / "mine" / "model" / "realnvp.yaml").write_text(blocks(TUTORIAL, "yaml")[0])
    (folder / "test_realnvp.py").write_text(test)
    yield folder
    for module in [one for one in sys.modules if one.partition(".")[0] == "mine"]:
        del sys.modules[module]                              # another test's package may have the same name


@pytest.mark.parametrize(("page", "verb", "words"), COMMANDS,
                         ids=[f"{name(page)}: {verb} {' '.join(words)}"[:150] for page, verb, words in COMMANDS])
def test_a_command_is_understood(page, verb, words, mine):
    assert (ROOT / "aigc" / f"{verb.replace('.', '/')}.py").is_file()
    if "--help" in words or verb not in SCHEMAS:
        return
    if any(word.startswith("experiment=best") for word in words):      # what a search wrote
        words = [word for word in words if not word.startswith("experiment=best")]
    with allowed(mine):
        cfg = understood(verb, words, mine)
        if verb == "train" and cfg.resume is None:
            check_compatible(cfg)


@contextmanager
def allowed(mine):
    """The tutorial's package can be imported and may be named by a configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(mine)
        patch.setenv("AIGC_ALLOW_TARGETS", "mine")
        yield


def test_the_tutorials_own_tests_pass(mine):
    space: dict = {}
    with allowed(mine):
        exec(compile((mine / "test_realnvp.py").read_text(), "test_realnvp.py", "exec"), space)
    tests = [value for key, value in space.items() if key.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_tutorials_family_trains_and_samples_as_any_other(mine, tmp_path):
    small = [*COMMON, "model.layers=2", "model.hidden=16", "metrics=losses", "budget.minutes=null",
             "budget.images=6400", "metrics.every_images=3200"]
    with allowed(mine):
        summary = fit(understood("train", ["--config-dir", "mine", "model=realnvp", *small], mine), tmp_path / "run")
        family = load_family(tmp_path / "run", "last")
    assert summary["status"] == "finished" and summary["images"] == 6400
    assert summary["scores"]["last"]["val/bits_per_dim"] < 8       # uniform noise of 256 levels takes 8 bits
    whole = family.sample(5, seeds=range(5), temperature=0.8)
    assert torch.allclose(whole[3:], family.sample(2, seeds=[3, 4], temperature=0.8), atol=1e-5)


# ---- what works on runs, for real ----

SHAPES = ["data=shapes", "data.size=16", "data.train=64", "data.validation=16", "data.test=16", "data.heldout=16"]
RUNS = {                                                     # what a documented command is tried on
    "labels": [*TINY["diffusion"], "condition=label"],
    "styles": [*smallest("stylegan2"), *SHAPES],
    "tokens": [*smallest("vqvae"), *SHAPES],
    "codes": [*smallest("dalle"), *SHAPES, "model.tokenizer=runs/tokens"],
    "text": [*TINY["diffusion"], "data=shapes", "data.size=16", "data.train=64", "data.validation=16", "data.test=40",
             "data.heldout=16", "condition=text", "model.text.width=16", "model.text.layers=1", "model.text.heads=2"],
    "larger": [*smallest("imagen_sr"), *SHAPES, "condition=text", *READER],
    "restorer": [*smallest("restorer"), "data=degraded",
                 *(word.replace("data.", "data.source.") for word in SHAPES[1:])],
    "cascade": [*smallest("imagen"), *SHAPES, "condition=text", *READER, "model.factors=[2,2]", "model.shares=[1,1,1]",
                "model.upscalers=[{},{}]"],
    "translation": ["model=cyclegan", "data=shapes_unpaired", "data.size=16", "data.train=16", "data.validation=8",
                    "data.test=8", "model.width=8", "model.blocks=1", "model.discriminator_width=8"],
    "tutorial": ["model=realnvp", "model.layers=2", "model.hidden=16"],
    "told": [*smallest("classifier")],
    "clip": [*smallest("clip"), "data=shapes", "data.size=16", "data.train=64", "data.validation=16", "data.test=16",
             "data.heldout=16"],
}
OF_TEXT = ("text=", "clip=", "rerank=")                                  # options that only a run on captions takes
SMALL_SHAPES = ["data=shapes", "data.train=200", "data.validation=40", "data.test=40", "data.heldout=16"]
TINY_RUN = ["metrics=none", "~callbacks.samples", "budget.images=64"]
QUICK = {"generate": ["n=3"], "evaluate": ["num_samples=40", "second=null", "resamples=2", "memorisation=false",
                                          "kd_subset_size=20"],
         "edit": [], "compare": ["thumbnail=40"], "search": [], "describe": []}
ELSEWHERE = ("inception", "dinov2", "serve=true", "at_minutes", "score=")    # weights or runs that are not at hand
TRIED = [(page, verb, words) for page, verb, words in COMMANDS if page in (ROOT / "README.md", *DOCS) and verb in QUICK
         and not any(part in word for word in words for part in ELSEWHERE)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, mine):
    """A folder in which the commands are typed: runs of several kinds, pictures and prompts."""
    folder = tmp_path_factory.mktemp("desk")
    for kind, words in RUNS.items():
        words = [word.replace("=runs/", f"={folder}/runs/") for word in words]
        with allowed(mine):
            cfg = understood("train", ["--config-dir", "mine", *COMMON, *words, *TINY_RUN], mine)
            fit(cfg, folder / "runs" / kind)
        (folder / "runs" / kind / ".hydra").mkdir()
        OmegaConf.save(cfg, folder / "runs" / kind / ".hydra" / "config.yaml")
    (folder / "photos").mkdir()
    for k in range(24):
        Image.effect_noise((20, 16), 30 + k).convert("RGB").save(folder / "photos" / f"{k}.jpg")
    (folder / "prompts.txt").write_text("a red star\na blue circle\n")
    (folder / "masks").mkdir()
    for k in range(24):
        Image.fromarray(np.tri(16, 20, k - 8, dtype=np.uint8) * 255).save(folder / "masks" / f"{k}.png")
    Image.effect_noise((20, 16), 30).save(folder / "photo.png")
    with allowed(mine):
        run = f"run={folder}/runs/labels"
        generate(understood("generate", [run, "n=4", f"out={folder}/images"], mine))
        edit(understood("edit", ["task=inpaint", run, f"images={folder}/photo.png", f"out={folder}/edited",
                                 f"mask.path={folder}/masks/0.png"], mine))
    return folder


@pytest.mark.parametrize(("page", "verb", "words"), TRIED,
                         ids=[f"{name(page)}: {verb} {' '.join(words)}"[:150] for page, verb, words in TRIED])
def test_a_command_does_what_it_says(page, verb, words, desk, mine, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(desk)
    of_text = any(word.startswith(OF_TEXT) for word in words)
    kind = {"describe": "clip", "edit": "translation"}.get(verb, "text" if of_text else "labels")
    of_codes = ("top_p", "=complete", "=vary", "<DALLE_run>")
    kind = "codes" if any(part in word for word in words for part in of_codes) else kind
    kind = "cascade" if verb == "generate" and any("level" in word for word in words) else kind
    by_diffusion = ("task=inpaint", "task=outpaint", "run=<diffusion_run>")
    kind = "labels" if any(word.startswith(by_diffusion) for word in words) else kind
    kind = "larger" if {"task=upscale", "run=runs/larger"} & {*words} else kind
    kind = "restorer" if any(word.startswith(("task=restore", "methods=")) for word in words) else kind
    kind = "tutorial" if page == TUTORIAL else "styles" if any("psi" in word for word in words) else kind
    folder_of_images = "run=<folder_of_images>" in words
    words = [f"run={'photos' if folder_of_images else f'runs/{kind}'}" if w.startswith("run=") else w for w in words]
    words = ["runs=runs" if w.startswith("runs=") else f"out={tmp_path / 'made'}" + ".html" * (verb == "compare")
             if w.startswith("out=") else "images=photos" if w.startswith("images=") else w for w in words]
    words = [re.sub("<classifier_run>", "runs/told", re.sub("<CLIP_run>", "runs/clip", word)) for word in words]
    keys = {word.split("=")[0] for word in words}
    quick = [w for w in QUICK[verb] if verb == "generate" or w.split("=")[0] not in keys]
    again = "recipe" in keys and "n" not in keys
    quick = [] if again else quick
    words = [w for w in words if not (verb == "generate" and w.startswith(("n=", "animation.frames=")))]
    quick = [*quick, "animation.frames=3"] if any(w.startswith("video=") for w in words) else quick
    if verb != "compare" and "out" not in keys:
        quick = [*quick, f"out={tmp_path / 'made'}" + ".json" * (verb == "evaluate")]
    if folder_of_images and "data=mnist" in words:
        words = [word for w in words for word in (SMALL_SHAPES if w == "data=mnist" else [w])]
    words = [re.sub("cat|dog", "3", w) if w.startswith("label=") else w for w in words]     # a class of digits
    cfg = understood(verb, [*words, *quick], mine)
    with allowed(mine):
        getattr(importlib.import_module(f"aigc.{verb}"), verb)(cfg)
    said = capsys.readouterr().out
    if verb == "generate" and cfg.video:
        assert len([path for path in (tmp_path / "made").iterdir() if path.stem.isdecimal()]) == 3
    elif verb == "generate":
        made = list((tmp_path / "made").glob("*.png" if cfg.format == "png" else "*.npy"))
        images = [path for path in made if path.stem.isdecimal()]
        assert len(images) == (1 if again else 3) or (cfg.format == "npy" and made)
    elif verb == "edit":
        made = [path for path in (tmp_path / "made").iterdir() if path.suffix in (".png", ".jpg")]
        assert len([path for path in made if path.stem not in ("comparison",)]) == (1 if again else 24)
    elif verb in ("search", "describe"):
        made = (tmp_path / "made" / {"search": "found.csv", "describe": "described.csv"}[verb]).read_text()
        assert "photos" in made and len(made.splitlines()) > 4
    elif verb == "evaluate":
        assert (tmp_path / "made.json").is_file() and "fd_classifier" in said
    else:
        shown = said if cfg.out is None else (tmp_path / "made.html").read_text()
        assert all(kind in shown for kind in RUNS)
