"""The words of a command line: paths and texts arrive as they were typed, and no path option is forgotten."""

import random
import re
import shlex

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from aigc.config import words
from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.errors import UserError

NAMES = [
    "plain", "my runs (1)", "a=b", "a,b", "d'été", 'say "hi"', "#1", "[x]", "[x", "{x}", "{", "$HOME", "a$b", "${x}",
    "日本", "end\\", "\\\\", "a\\'b", " blank ", "null", "true", "007", "1e3", "3", "choice(1,2)", "a:b", "*", "?",
    "%", "'quoted'", '"quoted"', "~", "~nobody", "@file", "a;b", "a&b|c", "!", "é", "tab\there", "-", "...", "???x",
]


def value(word: str) -> str:
    """What the program gets to see of an override."""
    parsed = OverridesParser.create().parse_override(word)
    assert not parsed.is_sweep_override(), word
    return OmegaConf.to_container(OmegaConf.create({"value": parsed.value()}), resolve=True)["value"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_taken_as_typed_in_every_option_and_multirun(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    name = f"./{name}" * name.startswith("~") or name
    for option in (pattern.replace("*", "inception") for pattern in words.PATHS):
        for multirun in (False, True):
            for sign in ("", "+", "++"):
                word = words.quoted(f"{sign}{option}={name}", multirun=multirun)
                assert value(word) == name, (option, multirun)
        assert value(words.quoted(words.quoted(f"{option}={name}"))) == name, "a child process reads it once more"
        assert value(words.as_typed(words.quoted(f"{option}={name}"))) == name


MEANT = ("null", "${x}", "'quoted'", '"quoted"', "~", "~nobody")  # something else, unless it exists


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MEANT])
def test_a_path_that_is_still_to_be_made_is_taken_as_typed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("out", "hydra.run.dir", "data.path"):
        assert value(words.quoted(f"{option}={name}")) == name


def test_what_stays_what_it_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert value(words.quoted("out=null")) is None
    assert value(words.quoted("out='a b'")) == "a b"
    assert value(words.quoted("out=~/x (1)")) == "/home/me/x (1)"
    assert value(words.quoted("runs=[a,b c (1)]")) == ["a", "b c (1)"]
    assert value(words.quoted("out=[a,b]")) == "[a,b]", "out is never a list"
    study = words.quoted("hydra.run.dir=my runs (1)/${study}")
    assert OverridesParser.create().parse_override(study).value() == "my runs (1)/${study}", "interpolations count"
    assert words.quoted("model.widths=[8,16]") == "model.widths=[8,16]"
    assert words.quoted("seed=3") == "seed=3"
    assert words.quoted("~callbacks.bar") == "~callbacks.bar"
    assert words.quoted("--config-dir=my conf (1)") == "--config-dir=my conf (1)"
    assert value(words.quoted("data.mine=a (1)")) == "a (1)", "what Hydra cannot read is a text"
    assert value(words.quoted("label=7")) == 7
    assert value(words.quoted("label=T-shirt/top, red")) == "T-shirt/top, red"
    for option in ("out", "data.path", "hydra.run.dir", "resume"):
        with pytest.raises(UserError, match=f"{re.escape(option)}= is empty"):
            words.quoted(f"{option}=")


def test_options_that_only_a_run_knows_need_no_sign():
    for word in ("options.eta=0.5", "options={guide: mine.f, strength: 2}", "options.guide=[a.b,c.d]"):
        assert words.quoted(word) == f"++{word}"
        assert words.quoted(f"++{word}") == f"++{word}"
    assert words.quoted("optionset=1") == "optionset=1"


def test_commas_separate_the_jobs_of_a_multirun_unless_the_whole_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def jobs(word: str) -> list[str]:
        parsed = OverridesParser.create().parse_override(words.quoted(word, multirun=True))
        return [str(getattr(one, "text", one)) for one in parsed.sweep_iterator()] if parsed.is_sweep_override() else [
            parsed.value()]

    assert jobs("data.path=a (1),b=2") == ["a (1)", "b=2"]
    assert jobs("data.path='a, b','c'") == ["a, b", "c"]
    assert jobs("data.path=choice(a,b)") == ["a", "b"]
    assert jobs("data.text=one {x},two") == ["one {x}", "two"]
    (tmp_path / "a (1),b=2").mkdir()
    assert jobs("data.path=a (1),b=2") == ["a (1),b=2"]


def test_any_text_arrives_as_it_was_typed_and_is_shown_so_again():
    draw = random.Random(0)
    letters = "ab(1)=,'\"#[]{}$ \\é日~:;*?!&|<>%@^`\t\n.-+/"
    for _ in range(300):
        text = "".join(draw.choice(letters) for _ in range(draw.randint(1, 9)))
        word = f"title={words.literal(text)}"
        assert value(word) == text, word
        assert words.quoted(word) == word, "idempotent"
        if "${" not in text:
            assert words.plain(words.literal(text)) == text
            shown = words.shown(word)
            assert words.quoted(shlex.split(shlex.quote(shown))[0]) == word, "what is shown can be pasted"


@pytest.mark.parametrize("group", ["experiment"])
def test_a_group_of_which_nothing_need_be_chosen_takes_null(group):
    assert words.read([f"{group}=x", "seed=1", f"{group}=null"], optional=[group]) == ["seed=1"]
    assert words.read([f"{group}=null", f"{group}=x"], optional=[group]) == [f"{group}=x"]


NO_PATH = {  # their comments speak of files or folders, and they name none
    "candidates", "checkpoint", "data.download", "data.archive.bytes", "data.archive.sha256", "data.labels",
    "data.validation", "data.test", "data.direction", "format", "metrics.preprocessing", "preprocessing.inception",
    "text", "side",
    "serve", "title", "lpips", "preprocessing.squeezenet", "logger.wandb.name", "callbacks.run_folder", "data.source",
    "data.subset", "data.skip_broken", "data.margins", "data.archive", "experiment", "metrics.lpips",
    "num_samples", "weights", "resume.sweep", "data.range", "range", "data.layout", "resume.callbacks.run_folder",
}
SPEAKS = re.compile(r"\b(files?|folders?|paths?|\.zip|weights of|hub name|glob)\b", re.IGNORECASE)


def options_with_comments():
    """Every option of conf/ that has a comment, as it is typed."""
    line = re.compile(r"^( *)([\w.]+):([^#]*?)(?:#(.*))?$")
    for path in sorted(CONFIG_DIR.rglob("*.yaml")):
        group = path.relative_to(CONFIG_DIR).parts[0] if path.parent != CONFIG_DIR else ""
        if group in ("hydra", "hparams_search", "experiment", "size", "sampler"):
            continue
        top = "" if not group or "# @package _global_" in path.read_text() else f"{group}."
        stack: list[tuple[int, str]] = []
        for text in path.read_text().splitlines():
            if not (found := line.match(text)) or found[2] in ("defaults", "hydra", "dir"):
                continue
            depth = len(found[1])
            stack = [entry for entry in stack if entry[0] < depth] + [(depth, found[2])]
            yield top + ".".join(name for _, name in stack), found[3].strip(), found[4] or ""


def test_every_option_whose_comment_speaks_of_a_file_or_folder_is_declared_as_a_path():
    forgotten = {
        key for key, given, comment in options_with_comments()
        if SPEAKS.search(comment) and not words.is_path(key) and key not in NO_PATH
        and given not in ("true", "false") and not re.fullmatch(r"[\d.]+", given)
    }
    assert not forgotten, f"declare them in aigc/config/words.py, or say in NO_PATH that they are none: {forgotten}"


def test_every_declared_path_is_an_option_that_exists():
    known = {key for key, _, _ in options_with_comments()}
    known |= {f"callbacks.scores.{key.removeprefix('metrics.')}" for key in known if key.startswith("metrics.")}
    known |= {"hydra.run.dir", "hydra.sweep.dir"}
    lost = [pattern for pattern in words.PATHS if not any(words.fnmatchcase(key, pattern) for key in known)]
    assert not lost, lost


@pytest.mark.parametrize(("verb", "options"), {
    "generate": ["run", "out", "rerank", "recipe", "classifier", "clip", "secondary", "init"],
    "search": ["clip", "images", "image", "out"],
    "describe": ["run", "images", "out"], "lineage": ["images", "out"],
    "edit": ["run", "images", "out", "recipe"], "compare": ["runs", "out"],
    "evaluate": ["run", "against", "out", "clip", "classifier", "lpips_weights", "weights.inception"],
    "train": ["resume", "hydra.run.dir"],
}.items())
def test_each_verb_composes_with_an_odd_path(verb, options):
    odd = "my runs (1), d'été = [x] #日本\\"
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        typed = words.read([f"{option}={odd}" for option in options])
        cfg = compose(verb, overrides=typed, return_hydra_config=True)
    for option in options:
        assert OmegaConf.select(cfg, option) == odd
    assert yaml.safe_load(OmegaConf.to_yaml(cfg))
