import sys

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from aigc.config.explain import explain
from aigc.config.schema import CONFIG_DIR, TrainConfig, check_closed
from aigc.config.targets import instantiate, locate
from aigc.data.datamodule import ImageData
from aigc.errors import UserError
from aigc.models.family import Family
from aigc.training.compatibility import check_compatible
from tests.conftest import compose_train
from tests.families import STAGES, words

MODELS = sorted(p.stem for p in (CONFIG_DIR / "model").glob("*.yaml"))
DATA = sorted(p.stem for p in (CONFIG_DIR / "data").glob("*.yaml"))


NEEDED = {"image_folder": ["data.path=."], "huggingface": ["data.path=."], "unpaired_folder": ["data.root=."],
          "paired_folder": ["data.root=."]}


@pytest.mark.parametrize("model", MODELS)
def test_every_family_composes_with_its_own_data_at_both_sizes(model):
    facts = {"channels": 3, "size": (32, 32), "classes": None, "condition": "none"}
    option, stage = STAGES.get(model, (None, None))
    named = [f"model.{option}=runs/first"] if option else []
    for size in ("gpu", "cpu"):
        cfg = compose_train(f"model={model}", f"size={size}", *named, common=False)
        family = check_compatible(cfg)
    assert instantiate(cfg.data, "data").batch_size == cfg.batch_size
    if option:                             # as a checkpoint keeps it, so that none must be trained
        first = instantiate(compose_train(*words(stage), common=False).model, "model", **facts)
        cfg.model[option] = {"family": f"{type(first).__module__}.{type(first).__qualname__}", "sha256": "untrained",
                             "hyper_parameters": dict(first.hparams)}
    if family.conditions == ("text",):
        facts |= {"condition": "text", "vocabulary": ["<unknown>", "red", "star"]}
    if family.conditions == ("label",):
        facts |= {"condition": "label", "classes": 10}
    built = instantiate(cfg.model, "model", **facts)
    assert isinstance(built, Family) and type(built) is family
    assert sum(p.numel() for p in built.parameters()) > 1000


@pytest.mark.parametrize("data", DATA)
def test_every_data_set_composes_with_what_fits_it_and_is_refused_elsewhere(data):
    kind = locate(compose_train(f"data={data}", *NEEDED.get(data, []), common=False).data["_target_"], "data").kind
    fitting = {"unpaired": ("cyclegan", "cut"), "paired": ("cyclegan", "pix2pix")}.get(kind, ("gan", "diffusion"))
    for model in (*fitting, "pix2pix" if kind == "unpaired" else "vae" if kind == "paired" else "cut"):
        cfg = compose_train(f"model={model}", f"data={data}", *NEEDED.get(data, []), common=False)
        if model in fitting:
            check_compatible(cfg)
            module = instantiate(cfg.data, "data")
            assert isinstance(module, ImageData) and module.batch_size == cfg.batch_size
        else:
            with pytest.raises(UserError, match=rf"gives {kind}: choose data=.*shapes"):
                check_compatible(cfg)


def test_a_pair_that_does_not_fit_is_refused_with_the_right_choices(monkeypatch):
    from aigc.models.gan import GAN

    monkeypatch.setattr(GAN, "accepts", ("unpaired",))
    with pytest.raises(UserError, match=r"GAN learns from paired or unpaired data, .* gives images: choose data="):
        check_compatible(compose_train("model=gan"))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model=gann", "'model=gann' does not exist: did you mean 'gan'"),
        ("data=mnits", "'data=mnits' does not exist: did you mean 'mnist'"),
        ("budjet.minutes=3", "there is no option 'budjet': did you mean 'budget'"),
        ("budget.minuts=3", "there is no option 'budget.minuts': did you mean 'budget.minutes'"),
        ("model.latnt=3", "there is no option 'model.latnt': "),
        ("model=", "'model=' does not exist: choose from autoencoder, "),
        ("=x", "there is no option before the '=': give <option>=<value>"),
        ("seed", "'seed' sets nothing: give <option>=<value>"),
        ("~model", "'model' is needed by other options but is missing"),
        ("~x", "there is no option 'x': choose from batch_size, budget, callbacks"),
        ("budget=5", "'budget=5' does not fit (Invalid type assigned: int"),
        ("seed=null", "'seed=null' does not fit (field 'seed' is not Optional): give another value"),
        ("foo/bar=1", "there is no option 'foo/bar': choose from batch_size, budget, callbacks, condition, data"),
        ("model..lr=1", "'model..lr=1' cannot be read as <option>=<value>"),
        ("é=1", "'é=1' cannot be read as <option>=<value>"),
        ("seed=abc", "seed: Value 'abc' of type 'str' could not be converted to Integer"),
    ],
)
def test_hydra_errors_become_one_sentence(override, sentence):
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        compose_train(override, common=False)
    said = explain(caught.value, [override], "train")
    assert said.startswith(sentence), said
    assert "\n" not in said


def test_added_top_level_keys_are_refused():
    with pytest.raises(UserError, match=r"there is no option 'sed': did you mean 'seed'\?"):
        check_closed(compose_train("+sed=3"), TrainConfig)
    with pytest.raises(UserError, match=r"there is no option 'budget.minute': did you mean 'budget.minutes'"):
        check_closed(compose_train("+budget.minute=3"), TrainConfig)
    check_closed(compose_train("+trainer.profiler=simple"), TrainConfig)


REFUSED = {  # how a command line is mistyped, and what is said; each was a traceback or half of one
    "--cfg job -m": "--cfg and --multirun cannot be combined: give one of them",
    "--resolve": "--resolve shows values instead of interpolations: give it with --cfg job",
    "--shell-completion": "--shell-completion needs one of install=<shell>",
    "--experimental-rerun x": "--experimental-rerun would run whatever its file holds",
    "model=null": "'model=null' does not exist: choose from autoencoder, ",
    "trainer=null": "'trainer=null' does not exist: choose from auto, cpu",
    "metrics=5": "'metrics=5' does not exist: choose from classifier",
    "trainer.devices=foo": "trainer.devices=foo is not a number of devices",
    "trainer.devices=[]": "trainer.devices=[] is not a number of devices",
    "trainer.num_nodes=x": "trainer.num_nodes=x must be a whole number of at least 1",
    "resume=": "resume= is empty: give a path, or leave it out",
    "--config-dir nowhere": "Additional config directory",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_mistyped_command_line_is_one_sentence(line, tmp_path, monkeypatch, capsys):
    from aigc import train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["aigc.train", "data=digits", "logger=none", *line.split(" ")])
    with pytest.raises(SystemExit) as end:
        train.main()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and said.startswith(f"aigc: {REFUSED[line]}"), said
    assert not (tmp_path / "runs").exists(), "a refused start leaves nothing"


def test_no_experiment_is_the_default_and_a_lightning_callback_may_be_added(tmp_path, monkeypatch):
    from aigc import train
    from aigc.report import closing
    from aigc.training import fit as training

    seen = []

    def fit(cfg, folder, **_):
        seen.append(cfg)
        (folder / "summary.json").write_text("{}")                  # it has begun: its folder stays
        return {"status": "finished"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(closing, "closing", lambda *_: [])
    monitor = "lightning.pytorch.callbacks.LearningRateMonitor"
    words = ["data=digits", "experiment=quick_check", "experiment=null", f"+callbacks.x._target_={monitor}"]
    monkeypatch.setattr(sys, "argv", ["aigc.train", *words, "hydra.run.dir=my runs (1), d'été = [x] #日本"])
    train.main()
    assert seen[0].study == "default"
    assert type(instantiate(seen[0].callbacks.x, "callbacks.x")).__name__ == "LearningRateMonitor"
    assert (tmp_path / "my runs (1), d'été = [x] #日本" / ".hydra" / "config.yaml").is_file()
