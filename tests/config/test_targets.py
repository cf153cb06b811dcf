"""What may stand in which place, and that nothing else is imported, called or built."""

import sys

import pytest

from aigc.config.targets import PLACES, check_targets, instantiate, locate
from aigc.errors import UserError
from tests.conftest import compose_train

GOOD = {
    "model": "aigc.models.gan.GAN",
    "data": "aigc.data.digits.Digits",
    "callbacks.x": "lightning.pytorch.callbacks.LearningRateMonitor",
    "metrics": "aigc.training.callbacks.scores.Scores",
    "logger.x": "aigc.training.loggers.Wandb",
    "trainer": "lightning.Trainer",
    "hydra.sweeper.sampler": "optuna.samplers.TPESampler",
    "hydra.sweeper.pruner": "optuna.pruners.MedianPruner",
}
HOSTILE = [  # each loads, writes, runs or leads elsewhere, many of them in a package that is allowed somewhere
    "lightning.fabric.utilities.cloud_io._load",
    "torchvision.datasets.utils.extract_archive",
    "torchvision.datasets.utils.download_url",
    "torch.load",
    "torch.hub.load",
    "torch.nn.modules.module.os.system",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.cli.SaveConfigCallback",
    "lightning.pytorch.callbacks.LambdaCallback",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.loggers.MLFlowLogger",
    "lightning.pytorch.plugins.io.TorchCheckpointIO",
    "optuna.storages.RDBStorage",
    "optuna.samplers.nsgaii._sampler.warnings.warn",
    "aigc.training.launch.subprocess.run",
    "aigc.models.gan.torch.load",
    "aigc.data.download.fetch",
    "aigc.data.download.shutil.rmtree",
    "aigc.runs.machine.os.remove",
    "aigc.multirun.lock.FolderLock",
    "builtins.eval",
    "os.system",
    "subprocess.Popen",
    "_io.FileIO",
    "aigc.data.folder.ImageFolder.__init__",
    "aigc.models._hidden.Family",
    "aigc.data.datamodule.ImageData",
    "aigc.models.family.Family",
    "",
    "GAN",
    "aigc",
    "aigc..models.gan.GAN",
    "aigc/models/gan.GAN",
    None,
    5,
    ["aigc.models.gan.GAN"],
    {"_target_": "aigc.models.gan.GAN"},
]


@pytest.mark.parametrize("where", GOOD)
def test_each_place_takes_its_own_classes_and_refuses_those_of_every_other(where):
    found = locate(GOOD[where], where)
    assert found.__name__ == GOOD[where].rpartition(".")[2]
    for other, target in GOOD.items():
        if {where, other} != {"callbacks.x", "metrics"} and where != other:
            with pytest.raises(UserError, match=r"_target_=[\w.]+ is not allowed there: give .*AIGC_ALLOW_TARGETS"):
                locate(target, where)


@pytest.mark.parametrize("target", HOSTILE, ids=str)
def test_what_is_no_public_class_of_the_place_is_refused_in_a_sentence(target):
    for where in GOOD:
        with pytest.raises(UserError, match=r"_target_=.*: (give|name|did you mean|choose) ") as caught:
            locate(target, where)
        assert "\n" not in str(caught.value)


def test_a_re_export_is_refused_and_a_missing_class_names_the_nearest():
    with pytest.raises(UserError, match=r"model._target_=aigc.models.vae.Tensor leads to torch.Tensor: name"):
        locate("aigc.models.vae.Tensor", "model")
    with pytest.raises(UserError, match=r"model._target_=aigc.models.vae.gaussian_log_density is not a class"):
        locate("aigc.models.vae.gaussian_log_density", "model")
    with pytest.raises(UserError, match=r"model._target_=aigc.models.gan.GAM does not exist: did you mean .*'GAN'"):
        locate("aigc.models.gan.GAM", "model")
    with pytest.raises(UserError, match=r"model._target_=aigc.models.gam.GAN cannot be imported \(ModuleNotFound"):
        locate("aigc.models.gam.GAN", "model")
    with pytest.raises(UserError, match=r"is not a family of generators"):
        locate("aigc.models.gan.Generator", "model")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's own that leaves a mark when it is imported."""
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nimport os\nPath(__file__).with_name('imported').touch()\n"
        "from aigc.models.vae import VAE\nfrom lightning.pytorch import LightningModule\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class Mine(VAE): pass\nclass Plain(LightningModule): pass\n"
        "class Note(Callback):\n    def __init__(self, limit: int, on: Callback | None = None, other=None):\n"
        "        self.limit, self.on = limit, on\n"
        "class Broken(Callback):\n    def __init__(self): raise KeyError('its own mistake')\n"
    )
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "imported"
    sys.modules.pop("mine", None)


def test_a_package_of_ones_own_is_imported_after_it_was_allowed_and_must_hold_the_right_class(package, monkeypatch):
    with pytest.raises(UserError, match="AIGC_ALLOW_TARGETS"):
        locate("mine.Mine", "model")
    assert not package.exists(), "it was imported before it was allowed"
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "other, mine.")
    assert locate("mine.Mine", "model").__name__ == "Mine"
    for target, what in {"mine.Plain": "a family of generators", "mine.Note": "a family"}.items():
        with pytest.raises(UserError, match=f"model._target_={target} is not {what}"):
            locate(target, "model")
    with pytest.raises(UserError, match="is not a class"):
        locate("mine.os", "model")
    with pytest.raises(UserError, match="leads to"):
        locate("mine.Path", "callbacks.x")
    assert instantiate({"_target_": "mine.Note", "limit": 3}, "callbacks.x").limit == 3
    with pytest.raises(KeyError, match="its own mistake"):     # its author sees where
        instantiate({"_target_": "mine.Broken"}, "callbacks.x")


def test_nodes_inside_are_decided_by_the_parameter_that_takes_them(package, monkeypatch):
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "mine")
    inner = {"_target_": "mine.Note", "limit": 1}
    built = instantiate({"_target_": "mine.Note", "limit": 2, "on": inner}, "callbacks.x")
    assert (built.limit, built.on.limit) == (2, 1)
    with pytest.raises(UserError, match=r"'callbacks.x.other' takes no object, so _target_ is not allowed there"):
        instantiate({"_target_": "mine.Note", "limit": 2, "other": inner}, "callbacks.x")
    with pytest.raises(UserError, match=r"callbacks.x.on._target_=mine.Mine is not a Callback"):
        instantiate({"_target_": "mine.Note", "limit": 2, "on": {"_target_": "mine.Mine"}}, "callbacks.x")


@pytest.mark.parametrize(
    ("where", "node"),
    [
        ("data", {"_target_": "aigc.data.digits.Digits", "validation": {"_target_": "os.getcwd"}}),
        ("data", {"_target_": "aigc.data.pair_folders.PairedFolder", "archive": {"_target_": "os.system"}}),
        ("data", {"_target_": "aigc.data.pair_folders.PairedFolder",
                  "archive": {"_target_": "aigc.data.download.fetch"}}),
        ("model", {"_target_": "aigc.models.gan.GAN", "widths": [{"_target_": "os.getcwd"}]}),
        ("trainer", {"_target_": "lightning.Trainer",
                     "strategy": {"_target_": "lightning.pytorch.strategies.DeepSpeedStrategy", "config": "x"}}),
        ("callbacks.x", {"_target_": "lightning.pytorch.callbacks.StochasticWeightAveraging", "swa_lrs": 0.1,
                         "avg_fn": {"_target_": "os.system"}}),
        ("hydra.sweeper.sampler", {"_target_": "optuna.samplers.TPESampler", "gamma": {"_target_": "os.system"}}),
    ],
)
def test_a_hostile_node_inside_is_refused_before_anything_is_built(where, node):
    with pytest.raises(UserError, match="_target_"):
        instantiate(node, where)


def test_nested_nodes_that_belong_there_are_built():
    given = {"_target_": "aigc.data.pair_folders.PairedFolder", "root": "x", "batch_size": 1,
             "archive": {"_target_": "aigc.data.download.Archive", "url": "https://example.org/x.zip"}}
    assert instantiate(given, "data").archive.url == "https://example.org/x.zip"
    fixed = {"_target_": "optuna.samplers.PartialFixedSampler", "fixed_params": {"x": 1},
             "base_sampler": {"_target_": "optuna.samplers.RandomSampler", "seed": 0}}
    assert type(instantiate(fixed, "hydra.sweeper.sampler")).__name__ == "PartialFixedSampler"


def test_what_the_program_sets_cannot_be_set_and_foreign_loggers_write_into_the_run_folder(tmp_path):
    for name in PLACES["trainer"].given:
        with pytest.raises(UserError, match=f"'trainer.{name}' is set by the program"):
            instantiate({"_target_": "lightning.Trainer", name: "x"}, "trainer")
    csv = {"_target_": "lightning.pytorch.loggers.CSVLogger"}
    with pytest.raises(UserError, match=r"'logger.csv.save_dir' is set by the program"):
        instantiate({**csv, "save_dir": "/"}, "logger.csv")
    for bad in ("../../x", "/etc", "..", "a\\b"):
        with pytest.raises(UserError, match=r"'logger.csv.name' is '.*', which is a path"):
            instantiate({**csv, "name": bad}, "logger.csv", save_dir=str(tmp_path))
    made = instantiate({**csv, "name": "curves"}, "logger.csv", save_dir=str(tmp_path), folder="not taken")
    assert made.log_dir == str(tmp_path / "curves" / "version_0")


def test_wrong_options_are_a_sentence():
    stopping = {"_target_": "lightning.pytorch.callbacks.EarlyStopping"}
    node = {"_target_": "aigc.training.callbacks.budget.Budget", "minuts": 3}
    with pytest.raises(UserError, match=r"'callbacks.budget' has no option 'minuts': did you mean 'minutes'\?"):
        instantiate(node, "callbacks.budget")
    with pytest.raises(UserError, match=r"'callbacks.bar.plain_seconds' is 'many', which does not fit float"):
        instantiate({"_target_": "aigc.training.callbacks.bar.Bar", "plain_seconds": "many"}, "callbacks.bar")
    with pytest.raises(UserError, match=r"'callbacks.x' needs the option 'monitor': add callbacks.x.monitor=<value>"):
        instantiate(stopping, "callbacks.x")
    with pytest.raises(UserError, match=r"'callbacks.x' cannot be built with these options \(.*mode.*\): change them"):
        instantiate({**stopping, "monitor": "x", "mode": "up"}, "callbacks.x")
    with pytest.raises(UserError, match=r"'logger.x' names no _target_"):
        instantiate(5, "logger.x")
    with pytest.raises(UserError, match=r"'model._partial_' is not supported"):
        instantiate({"_target_": "aigc.models.gan.GAN", "_partial_": True}, "model")


def test_a_wrong_callback_is_refused_before_the_data_are_touched(monkeypatch, tmp_path):
    from aigc.training import fit as training

    monkeypatch.setattr(training, "prepare_data", lambda cfg: pytest.fail("the data were prepared first"))
    for override, sentence in {
        "+callbacks.x._target_=aigc.models.gan.GAN": "callbacks.x._target_=aigc.models.gan.GAN is not allowed there",
        "+callbacks.x=5": "'callbacks.x' names no _target_",
        "+logger.x._target_=lightning.pytorch.callbacks.Timer": "logger.x._target_=.* is not allowed there",
        "trainer._target_=aigc.models.gan.GAN": "trainer._target_=.* is not allowed there: give Lightning's Trainer",
        "model._target_=lightning.LightningModule": "model._target_=lightning.LightningModule is not allowed there",
        "data._target_=lightning.LightningDataModule": "data._target_=lightning.LightningDataModule is not allowed",
        "+trainer.plugins=[]": "'trainer.plugins' is set by the program",
    }.items():
        with pytest.raises(UserError, match=sentence):
            training.fit(compose_train(override), tmp_path)
    check_targets({"metrics": compose_train("metrics=inception").metrics})


def test_every_target_in_our_own_configuration_may_stand_where_it_does():
    for model in ("gan", "cut", "pix2pix"):
        for metrics in ("classifier", "losses", "translation"):
            cfg = compose_train(f"model={model}", f"metrics={metrics}", "logger=default", common=False)
            nodes = {key: cfg[key] for key in ("model", "data", "metrics", "trainer")}
            nodes |= {f"callbacks.{name}": node for name, node in cfg.callbacks.items()}
            check_targets({**nodes, **{f"logger.{name}": node for name, node in cfg.logger.items()}})
