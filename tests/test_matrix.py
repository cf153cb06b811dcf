"""Every family on every data set of conf/: trains two steps, scores, draws, is evaluated, makes pictures, resumes.

Of the conditions that a pair knows, each takes one in turn; every family and every data set has all of its own.
"""

import copy
import json
import re
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.config.targets import locate
from aigc.data.preparing import prepare_data
from aigc.edit import edit
from aigc.errors import UserError
from aigc.evaluate import evaluate
from aigc.generate import generate
from aigc.models.family import Translator
from aigc.runs.resume import resumed_config
from aigc.scoring.networks import classifier, oracle
from aigc.training.compatibility import check_compatible
from aigc.training.fit import fit

from .conftest import compose_train
from .families import READER, SMALLEST, staged, words
from .stand_ins import CONDITIONS, DATA, kind_of, picture, stand_in, write

MODELS = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))
SIDES = {"cyclegan": ("unpaired", "paired"), "cut": ("unpaired", "paired"), "pix2pix": ("paired",),
         "restorer": ("paired",), "palette": ("paired",)}
RESTORE = {"restorer": ("degraded", "shapes_paired"), "palette": ("degraded",)}     # on these of them
AGAIN = ("vqvae", "vqgan", "autoencoder")                     # reconstruct, and know no condition
MATCHING = ("clip",)                                          # tell how well texts fit images, and make none
TELLING = ("classifier",)                                     # tell the class of noisy images, and make none
TEXT_ALONE = ("dalle",)                                       # know no other condition, and have no text encoder
ENLARGE = ("imagen_sr",)                                      # reconstruct too, from small images, under any condition
READERS = ("gan", "dcgan", "r3gan", "biggan", "stylegan2", "diffusion", "ddpm", "edm", "dit", "latent_diffusion",
           "imagen_sr", "imagen", "few_step", "prior", *TEXT_ALONE)     # of captions
FITTING = [(model, data) for model in MODELS for data in RESTORE.get(model, DATA)
           if kind_of(data) in SIDES.get(model, ("images",))]
RUNS = [(model, data, condition) for model, data in FITTING for condition in ("none", *CONDITIONS.get(data, ()))
        if (condition != "text" or model in READERS) and (condition == "none" or model not in AGAIN)
        and (condition == "text" or model not in TEXT_ALONE) and model not in (*MATCHING, *TELLING)]
RUNS += [(model, data, condition) for data, models, conditions in (     # the same data in other layouts
    ("huggingface:parquet", ("gan",), ("label", "text")), ("paired_folder:names", ("cyclegan", "pix2pix"), ("none",)),
    ("paired_folder:beside", ("cut", "pix2pix"), ("none",))) for model in models for condition in conditions]


def in_turn(runs: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """One run of each family and data set, and those in which either side has its only one of a condition."""
    kept: list[tuple[str, str, str]] = []
    for number, (model, data) in enumerate(dict.fromkeys(run[:2] for run in runs)):
        conditions = [condition for *pair, condition in runs if pair == [model, data]]
        kept.append((model, data, conditions[(number + MODELS.index(model)) % len(conditions)]))
    for run in runs:
        if not all(any((one[side], one[2]) == (run[side], run[2]) for one in kept) for side in (0, 1)):
            kept.append(run)
    return kept


BRIEF = ["trainer=cpu", "trainer.precision=32", "logger=none", "batch_size=4", "budget.minutes=null",
         "budget.images=8"]
QUICK = [*BRIEF, "metrics.every_images=4", "metrics.validation_images=4", "metrics.batch_size=8",
         "metrics.kd_subsets=2", "metrics.second=null", "callbacks.samples.n=4"]
SCORED = ["metrics.num_samples=8", "metrics.num_reals=8", "metrics.attribute_samples=4"]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory):
    """The overrides of a data set's stand-in, made when it is first asked for; networks that score are untrained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_DATA", str(tmp_path_factory.mktemp("downloaded")))
        patch.setattr(classifier, "_train", lambda *args, **options: None)
        patch.setattr(oracle, "train_oracle", lambda size, **options: oracle.ShapesOracle(size).eval())
        served, made = tmp_path_factory.mktemp("served"), {}

        def choose(name: str) -> list[str]:
            if name not in made:
                made[name] = stand_in(name, served, patch)
            return made[name]

        yield choose


@cache
def defaults(verb: str, *words: str) -> DictConfig:
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(verb, overrides=list(words))


def asked(verb: str, *words: str, **values: object) -> DictConfig:
    """The configuration of a verb with these values; composing it anew for each takes as long as a run."""
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    return OmegaConf.merge(defaults(verb, *words), plain)


def test_the_table_of_families_is_that_of_conf() -> None:
    assert sorted(SMALLEST) == MODELS and set(CONDITIONS) == {name for name in DATA if kind_of(name) == "images"}


def test_every_pair_and_every_condition_of_either_side_has_a_run() -> None:
    kept = in_turn(RUNS)
    for sides in ((0, 1), (0, 2), (1, 2)):
        assert {tuple(run[k] for k in sides) for run in kept} == {tuple(run[k] for k in sides) for run in RUNS}
    assert set(kept) <= set(RUNS) and len(kept) < 0.65 * len(RUNS)


@pytest.mark.parametrize(("model", "data", "condition"), in_turn(RUNS))
def test_what_composes_works_to_the_end(chosen, tmp_path: Path, model: str, data: str, condition: str) -> None:
    translates = model in SIDES
    run = tmp_path / "run"
    text = READER if condition == "text" and model not in TEXT_ALONE else []
    named = staged(model, tmp_path / "stage", *chosen(data), *BRIEF)
    cfg = compose_train(*named, *chosen(data), *QUICK, *text, *([] if translates else SCORED),
                        f"condition={condition}", common=False)
    (run / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, run / ".hydra" / "config.yaml")
    summary = fit(cfg, run)
    assert (summary["status"], summary["images"]) == ("finished", 8)
    assert summary["data"]["kind"] in (("paired" if SIDES[model] == ("paired",) else "unpaired",) if translates else
                                       ("images", "captioned"))
    monitor = summary["scores"]["monitor"]
    assert summary["scores"]["last"][monitor] >= 0 and any("singular" in note for note in summary["scores_notes"])
    assert any(name.startswith("val/") for name in summary["scores"]["last"])
    grids = sorted(path.name for path in (run / "samples").iterdir())
    assert any(name.startswith("000000008") for name in grids), grids
    record = tmp_path / "record.json"
    evaluate(asked("evaluate", run=run, out=record, num_samples=8, num_reals=8, resamples=4, neighbours=2,
                   kd_subsets=2, attribute_samples=4, device="cpu",
                   **({"methods": {"tv": {"sigma": 0.2}}} if model in RESTORE else {})))
    found = json.loads(record.read_text())
    if model in RESTORE:
        assert found["scores"]["a2b/tv/psnr"]["value"] > 0 and found["protocol"]["a2b/tv/psnr"]["method"] == "tv"
    assert found["scores"][monitor]["value"] >= 0 and found["target"]["images"] in (4, 8)
    out = tmp_path / "out"
    if translates:
        photos = write(tmp_path / "photos", {"1.png": picture(ending="PNG")})
        edit(asked("edit", run=run, images=photos, out=out, device="cpu"))
        assert (out / "1.png").is_file()
    elif model in ENLARGE:
        assert monitor.startswith("reconstruction/") and found["scores"]["reconstruction/psnr"]["value"] > 0
        photos = write(tmp_path / "photos", {"1.png": picture(ending="PNG")})
        edit(asked("edit", "task=upscale", "task.level=0.3", "task.options={steps: 1}", run=run, images=photos,
                   out=out, device="cpu"))
        before, after = (Image.open(path / "1.png").size for path in (photos, out))
        assert after == (2 * before[0], 2 * before[1])
        with pytest.raises(UserError, match=f"makes small images larger: .* needs a run of .*{'gan'}"):
            generate(asked("generate", run=run, n=2, out=tmp_path / "none", device="cpu"))
    elif model in AGAIN:
        assert monitor.startswith("reconstruction/") and found["scores"]["reconstruction/psnr"]["value"] > 0
        with pytest.raises(UserError, match=f"turns images into latents: .* needs a run of .*{'gan'}"):
            generate(asked("generate", run=run, n=2, out=out, device="cpu"))
    else:
        prompt = {"text": "a picture"} if condition == "text" else {}
        generate(asked("generate", run=run, n=2, out=out, device="cpu", **prompt))
        assert len(list(out.glob("0*.png"))) == 2
    typed = copy.deepcopy(cfg)
    typed.budget.images = 16
    summary = fit(resumed_config(typed, run, ["budget.images=16"]), run, resumed=True)
    assert (summary["status"], summary["images"], len(summary["resumes"])) == ("finished", 16, 1)


@pytest.mark.parametrize("data", [name for name in sorted(CONDITIONS) if "text" in CONDITIONS[name]])
@pytest.mark.parametrize("model", MATCHING)
def test_what_matches_texts_and_images_works_to_the_end(chosen, tmp_path: Path, model: str, data: str) -> None:
    run, record = tmp_path / "run", tmp_path / "record.json"
    cfg = compose_train(*words(model), *chosen(data), *BRIEF, "metrics.every_images=4", "metrics.validation_images=4",
                        "metrics.batch_size=3", "callbacks.samples.n=4", *READER, common=False)     # condition=auto
    (run / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, run / ".hydra" / "config.yaml")
    summary = fit(cfg, run)
    assert (summary["status"], summary["images"], summary["condition"]) == ("finished", 8, "text")
    assert (summary["capabilities"], summary["scores"]["monitor"]) == (["score_text"], "val/loss")
    last = summary["scores"]["last"]
    found = {name for name in last if name.startswith("retrieval/validation/")}
    assert {name.split("/")[-1] for name in found} == {
        f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)}
    assert all(0 <= last[name] <= 1 for name in found) and "zero_shot/validation/accuracy" in last
    (told,) = [other for other in summary["protocol"]["others"] if other["split"] == "validation"]
    assert found < set(told["scores"]) and told["captions"] >= 1 and summary["catalogue"]["val/loss"]
    assert (run / "samples" / "000000008_retrieval.png").is_file()
    evaluate(asked("evaluate", run=run, out=record, device="cpu"))
    scores = json.loads(record.read_text())["scores"]
    assert found < set(scores) and {"val/loss", "test/val/loss", "retrieval/test/image_to_text_r1"} < set(scores)
    photos, out = write(tmp_path / "photos", {"1.png": picture(ending="PNG")}), tmp_path / "out"
    for verb, more in ((generate, {"n": 2}), (edit, {"images": photos})):
        with pytest.raises(UserError, match=r"CLIP, which tells how well texts fit images: .* needs a run of "):
            verb(asked(verb.__name__, run=run, out=out, device="cpu", **more))
    typed = copy.deepcopy(cfg)
    typed.budget.images = 16
    summary = fit(resumed_config(typed, run, ["budget.images=16"]), run, resumed=True)
    assert (summary["status"], summary["images"], len(summary["resumes"])) == ("finished", 16, 1)


@pytest.mark.parametrize("model", MATCHING)
def test_what_matches_texts_needs_some(chosen, tmp_path: Path, model: str) -> None:
    cfg = compose_train(*words(model), *chosen("digits"), *BRIEF, common=False)
    with pytest.raises(UserError, match="CLIP needs captions, and digits has none: choose data=shapes, data=hugg"):
        fit(cfg, tmp_path)
    cfg.condition = "label"
    with pytest.raises(UserError, match="CLIP has no condition 'label': choose from text"):
        check_compatible(cfg)


@pytest.mark.parametrize("data", ["digits", "shapes"])
@pytest.mark.parametrize("model", TELLING)
def test_what_tells_classes_works_to_the_end(chosen, tmp_path: Path, model: str, data: str) -> None:
    run, record = tmp_path / "run", tmp_path / "record.json"
    cfg = compose_train(*words(model), *chosen(data), *BRIEF, "metrics.every_images=4", "metrics.validation_images=4",
                        "callbacks.samples.n=4", common=False)             # condition=label
    (run / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, run / ".hydra" / "config.yaml")
    summary = fit(cfg, run)
    assert (summary["status"], summary["images"], summary["condition"]) == ("finished", 8, "label")
    assert (summary["capabilities"], summary["scores"]["monitor"]) == (["classify"], "val/loss")
    names = {"val/loss", "val/accuracy", "val/accuracy_at_0.5", "val/accuracy_at_2"}
    assert set(summary["scores"]["last"]) == names and summary["catalogue"]["val/accuracy_at_*"]["better"] == "more"
    assert "tells the class of noisy images" in (run / "README.md").read_text()
    evaluate(asked("evaluate", run=run, out=record, device="cpu"))
    assert names | {f"test/{name}" for name in names} == set(json.loads(record.read_text())["scores"])
    with pytest.raises(UserError, match="Classifier, which tells the class of noisy images: generate needs a run of "):
        generate(asked("generate", run=run, out=tmp_path / "none", device="cpu", n=2))
    typed = copy.deepcopy(cfg)
    typed.budget.images = 16
    summary = fit(resumed_config(typed, run, ["budget.images=16"]), run, resumed=True)
    assert (summary["status"], summary["images"], len(summary["resumes"])) == ("finished", 16, 1)


def named(model: str) -> DictConfig:
    """The recipe that names the class of a family: its own, or the one that it changes."""
    recipe = OmegaConf.load(CONFIG_DIR / "model" / f"{model}.yaml")
    return recipe if "_target_" in recipe.model else named(recipe.defaults[0])


@pytest.mark.parametrize("model", MODELS)
def test_what_does_not_fit_is_refused_in_a_sentence_that_names_what_does(model: str) -> None:
    recipe = named(model)
    family = locate(recipe.model["_target_"], "model")
    assert issubclass(family, Translator) == (model in SIDES)
    fitting = {name for name in DATA if kind_of(name) in SIDES.get(model, ("images",))}
    assert fitting < set(DATA)
    for data in sorted(set(DATA) - fitting):
        target = OmegaConf.load(CONFIG_DIR / "data" / f"{data}.yaml")["_target_"]
        cfg = OmegaConf.create({"model": {"_target_": recipe.model["_target_"]}, "data": {"_target_": target},
                                "trainer": {"_target_": "lightning.Trainer"}, "callbacks": {}, "logger": {},
                                "metrics": None, "condition": "none"})
        with pytest.raises(UserError) as error:
            check_compatible(cfg)
        said = re.fullmatch(rf"{family.__name__} learns from .* data, \w+ gives (\w+): choose data=(\S+?)"
                            r"(?:, or one of (\d+) more \(--help lists all data\))?", str(error.value))
        assert said is not None, (data, error.value)
        assert said[1] == ("captioned" if data == "shapes" else kind_of(data)), data
        choices = said[2].split("|")
        assert set(choices) <= fitting, data
        assert len(choices) == min(8, len(fitting)) == len(fitting) - int(said[3] or 0), data
        assert {name for name in fitting if "shapes" in name or "folder" in name} <= set(choices)  # what is at hand


@pytest.mark.parametrize("data", [name for name in sorted(CONDITIONS) if "text" not in CONDITIONS[name]])
def test_captions_are_missed_in_a_sentence(chosen, data: str) -> None:
    cfg = compose_train(*words("gan"), *chosen(data), *QUICK, "condition=text", common=False)
    with pytest.raises(UserError, match=rf"condition=text needs captions, and {data} has none: choose data=shapes"):
        prepare_data(cfg, check_compatible(cfg).accepts)


