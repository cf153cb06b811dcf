"""Runs on captions: resumed exactly, refused without captions, and prompts as they are typed in a shell."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aigc.config.schema import to_plain
from aigc.config.words import quoted
from aigc.data.preparing import prepare_data
from aigc.errors import UserError
from aigc.files.written import RECORD
from aigc.images.grids import GAP, LINE, TONE
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.models.requests import labels_of, prompts_of
from aigc.multirun.jobs import Job
from aigc.runs.resume import AUTOMATIC
from aigc.runs.summary import read_summary, signature, write_summary
from aigc.training.compatibility import check_compatible
from aigc.training.fit import fit, settle_condition

from . import forked
from .conftest import compose_train, environment
from .families import READER
from .families import words as smallest
from .test_resume import assert_same

DATA = ["data=shapes", "data.size=16", "data.train=64", "data.validation=8", "data.test=8", "data.heldout=8"]
QUICK = ["trainer=cpu", "trainer.precision=32", "logger=none", "batch_size=16", "metrics=none", "~callbacks.samples",
         "budget.minutes=null"]


def configuration(family: str, *more: str):
    words = [*smallest(family), *DATA, *READER, *QUICK, "condition=text", *more]
    return compose_train(*words, common=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run on captions of both families that read them, and one on labels."""
    made = {}
    for family in ("diffusion", "gan"):
        made[family] = tmp_path_factory.mktemp(family)
        fit(configuration(family, "budget.images=320"), made[family])
    made["labels"] = tmp_path_factory.mktemp("labels")
    fit(configuration("gan", "budget.images=64", "condition=label"), made["labels"])
    return made


@pytest.mark.parametrize("family", ["diffusion", "gan", "biggan", "stylegan2"])
def test_resumed_equals_uninterrupted(family, tmp_path):
    steady = "model.decay_from=1.0"  # the rate does not ask how long the run will be
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(configuration(family, "budget.images=320", steady), whole)
    fit(configuration(family, "budget.images=160", steady), broken)
    fit(configuration(family, "budget.images=320", steady), broken, resumed=True)
    assert_same(*(read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (whole, broken)))


def test_a_checkpoint_knows_the_words_of_its_training(runs):
    for family in ("diffusion", "gan"):
        vocabulary = load_family(runs[family]).hparams.vocabulary
        assert {"red", "triangle", "large"} <= set(vocabulary) and vocabulary[0] == "<unknown>"


def test_captions_are_needed_and_a_family_that_reads_them(tmp_path):
    with pytest.raises(UserError, match=r"condition=text needs captions, and digits has none: choose data=shapes"):
        fit(compose_train(*smallest("gan"), *QUICK, "condition=text"), tmp_path)
    with pytest.raises(UserError, match="VAE has no condition 'text'"):
        fit(compose_train(*smallest("vae"), *DATA, *QUICK, "condition=text", common=False), tmp_path)


# ---- prompts ----


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a, b", "a, b"), ("it's", "it's"), ('say "hi"', 'say "hi"'), ("a=b: {c} [d]", "a=b: {c} [d]"), ("7", "7"),
        ("C:\\new\\", "C:\\new\\"), ("50% ${off}", "50% ${off}"), ("(a) \\'b", "(a) \\'b"), ("true", "true"),
        ("'a, b'", "a, b"), ('["a, b", c]', ["a, b", "c"]), ("", ""), ("null", None), ("größer – 大", "größer – 大"),
    ],
)
def test_prompts_reach_the_program_as_typed(typed, read):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from aigc.config.schema import CONFIG_DIR, register_schemas

    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("generate", overrides=["run=x", quoted(f"text={typed}")])
    assert OmegaConf.to_container(cfg, resolve=True)["text"] == read
    assert quoted("label=[1,2]") == "label=[1,2]"
    assert quoted(quoted(f"text={typed}")) == quoted(f"text={typed}")  # children get it once more


def test_prompts_are_gone_through_in_turn(runs, tmp_path):
    family = load_family(runs["gan"])
    assert prompts_of(family, None, 2) == (["", ""], [])
    assert prompts_of(family, ["a red star", "a blue star"], 3)[0] == ["a red star", "a blue star", "a red star"]
    (tmp_path / "prompts.txt").write_text("a red star\n\n a blue star \n")
    told = prompts_of(family, f"@{tmp_path / 'prompts.txt'}", 3)
    assert told == (["a red star", "a blue star", "a red star"], [])
    assert prompts_of(family, "a mauve star", 1)[1] == ["not in the training captions, so meaningless to the model: "
                                                        "mauve"]
    with pytest.raises(UserError, match="was not trained with condition=text"):
        prompts_of(load_family(runs["labels"]), "a star", 1)


def shell(line: str, folder: Path) -> subprocess.CompletedProcess:
    """A command line as a user types it, its words as a real shell divides them."""
    words = subprocess.run(f"printf '%s\\0' {line}", shell=True, capture_output=True, text=True, check=True).stdout
    command = [sys.executable, "-m", "aigc.generate", *words.split("\0")[:-1]]
    return forked.run(command, env=environment(), cwd=folder)


def test_a_prompt_with_commas_and_quotes_from_a_shell(runs, tmp_path):
    words = 'text="a large red circle, left of Bob\'s \\"small\\" blue square" n=3 format=npy out=one'
    done = shell(f"run={runs['diffusion']} {words}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not in the training captions" in done.stderr and "bob" in done.stderr
    assert np.load(tmp_path / "one" / "images.npy").shape == (3, 16, 16, 3)
    prompts = (tmp_path / "one" / "prompts.txt").read_text().splitlines()
    assert prompts == ['a large red circle, left of Bob\'s "small" blue square'] * 3


def test_a_file_of_prompts_from_a_shell(runs, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star\na blue star\n")
    done = shell(f"run={runs['gan']} text=@prompts.txt n=5 out=two", tmp_path)
    assert done.returncode == 0, done.stderr
    expected = ["a red star", "a blue star", "a red star", "a blue star", "a red star"]
    assert (tmp_path / "two" / "prompts.txt").read_text().splitlines() == expected
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        *(f"{k:05}.png" for k in range(5)), RECORD, "grid.png", "prompts.txt"
    ]
    with Image.open(tmp_path / "two" / "grid.png") as picture:  # a row for each prompt, with the prompt above it
        assert picture.size == (3 * (64 + GAP) - GAP, 2 * (64 + GAP) - GAP + 2 * LINE)
        rows = np.asarray(picture.convert("L"))
    assert (rows[:LINE] != TONE).any() and (rows[LINE + 64 + GAP :][:LINE] != TONE).any()


def test_a_prompt_for_a_model_of_labels_is_one_sentence(runs, tmp_path):
    done = shell(f"run={runs['labels']} text='a, b'", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(
        "aigc: text='a, b', but this GAN was not trained with condition=text"
    )
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_a_label_for_a_model_of_texts_and_a_missing_file_are_refused(runs):
    family = load_family(runs["gan"])
    with pytest.raises(UserError, match=r"label=3, but this GAN takes no labels: give text=<prompt>"):
        labels_of(family, 3, 1)
    with pytest.raises(UserError, match=r"'nowhere\.txt' cannot be read"):
        prompts_of(family, "@nowhere.txt", 1)


def test_a_template_of_captions_is_taken_as_typed():
    line = "--cfg job data=huggingface data.path=x data.text=\"{style} emoji of {text}, big\" condition=text"
    python = f"{shlex.quote(sys.executable)} -m aigc.train {line}"           # it imports no torch
    done = subprocess.run(python, shell=True, env=environment(), capture_output=True, text=True)
    assert "text: '{style} emoji of {text}, big'" in done.stdout, done.stderr


@pytest.mark.parametrize(("words", "settled"), [
    (["model=diffusion", *DATA], "text"), (["model=gan", *DATA], "text"), (["model=vae", *DATA], "none"),
    (["model=diffusion", "data=digits"], "none"), (["model=pix2pix", "data=shapes_paired", "data.size=16"], "none"),
    (["model=diffusion", *DATA, "condition=none"], "none"), (["model=gan", *DATA, "condition=label"], "label"),
])
def test_auto_is_text_where_there_are_captions_and_who_reads_them(words, settled):
    cfg = compose_train(*words, common=False)
    family = check_compatible(cfg)
    data = prepare_data(cfg, family.accepts)
    settle_condition(cfg, family, data, {})
    assert cfg.condition == settled


def test_a_resumed_run_keeps_the_condition_it_began_with(runs):
    cfg = compose_train("model=diffusion", *DATA, common=False)
    family = check_compatible(cfg)
    settle_condition(cfg, family, prepare_data(cfg, family.accepts), {"condition": "none"})
    assert cfg.condition == "none"
    summary = read_summary(runs["diffusion"])
    assert summary["condition"] == "text" and summary["prompt"].startswith("a ")


def test_a_multirun_finds_its_finished_runs_under_auto(tmp_path):
    """The summary signs what auto came to, the job what was typed."""
    cfg = to_plain(compose_train("model=diffusion", *DATA, common=False))
    job = Job(0, [], tmp_path, signature(cfg), {}, cfg["budget"],
              settled=frozenset(signature({**cfg, "condition": one}) for one in AUTOMATIC))
    write_summary(tmp_path, status="finished", signature=signature({**cfg, "condition": "text"}))
    assert job.finished
    write_summary(tmp_path, signature=signature({**cfg, "condition": "label"}))
    with pytest.raises(UserError, match="configuration has changed"):
        assert job.finished
