"""Configurations that somebody else may have written: checks of what they may do, before anything acts on them.

They arrive in two ways. Experiment files and other groups (`--config-dir`) are composed by Hydra, which calls anything
that its own part of the configuration names: `CheckedLoader` checks that part first. The `.hydra/config.yaml` of a run
folder is read by `read_config` and resolved by `settled`: it may read a few environment variables, and download only
our own data sets to their usual places.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from aigc.config.schema import CONFIG_DIR, TrainConfig
from aigc.config.targets import ALLOW_VARIABLE, own_packages, within
from aigc.errors import UserError

log = logging.getLogger(__name__)

PLUGINS = ("hydra_plugins", "hydra._internal.core_plugins")      # Hydra's own sources of launchers and sweepers
OUR_CALLBACK = {"_target_": "aigc.training.launch.RunFolder"}              # in conf/train.yaml
COMMANDS = ("additional_parameters", "init", "python", "ray", "setup", "srun_args", "stderr_to_stdout")
LOG_CLASSES = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter",
               "colorlog.ColoredFormatter")
VARIABLES = ("HOME", "PWD", "SCRATCH", "TMPDIR", "USER", "WORK")  # that a run folder's configuration may read ...
PREFIXES = ("AIGC_", "SLURM_")                                    # ... besides those with these prefixes


# ---- what Hydra composes ----


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader, which also refuses what Hydra's own part must not name, and reports mistakes in a sentence."""

    def load_configuration(self, config_name: Any, overrides: list[str], *args: Any, **kwargs: Any) -> DictConfig:
        """The composed configuration.

        Raises:
            UserError: a file is broken, or names something that is not allowed.
        """
        try:
            cfg = super().load_configuration(config_name, overrides, *args, **kwargs)
        except (HydraException, OmegaConfBaseException):
            raise
        except yaml.YAMLError as error:
            raise UserError(f"a configuration file cannot be read ({in_words(error)}): fix it") from error
        except Exception as error:      # Hydra fails in many ways on odd files and words
            said = str(error).splitlines() or [""]
            reason = said[0].rstrip(". ") or type(error).__name__
            raise UserError(f"the configuration cannot be composed ({reason}): check the options and files") from error
        check_hydra(cfg.hydra)
        return cfg

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Names in a group; Hydra copies all its sources for this, a hundred times for `--help` (half of its time)."""
        if config_name is None and not overrides:    # nothing that could change the search path
            return self.repository.get_group_options(group_name, results_filter)
        return super().get_group_options(group_name, results_filter, config_name, overrides)


def in_words(error: yaml.YAMLError) -> str:
    """The mistake in a YAML file and its position, on one line."""
    mark = getattr(error, "problem_mark", None)
    place = f" in {mark.name}, line {mark.line + 1}" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or str(error).splitlines()[0]}{place}"


@contextmanager
def checked_loading() -> Iterator[None]:
    """Inside, Hydra composes with `CheckedLoader`: it has no other hook between composing and acting."""
    import hydra._internal.hydra as program

    before: Any = program.ConfigLoaderImpl
    program.ConfigLoaderImpl = CheckedLoader  # type: ignore[misc]
    try:
        yield
    finally:
        program.ConfigLoaderImpl = before  # type: ignore[misc]


def check_hydra(node: Any) -> None:
    """Refuses entries by which Hydra's part of a configuration could run, set or write something elsewhere.

    Raises:
        UserError: names the key.
    """
    plain: Any = OmegaConf.to_container(node, resolve=False)
    for name, callback in (plain.get("callbacks") or {}).items():
        if callback != OUR_CALLBACK:
            _refuse(f"hydra.callbacks.{name}", "Hydra would run it", callback)
    for name in ("launcher", "sweeper"):
        _check_plugin(plain.get(name) or {}, f"hydra.{name}", plain["overrides"]["hydra"])
    for name in ("job_logging", "hydra_logging"):
        _check_logging(plain.get(name) or {}, f"hydra.{name}")
    copied = plain["job"]["env_copy"]
    if variables := [name for name in plain["job"]["env_set"] if name not in copied]:
        raise UserError(f"hydra.job.env_set.{variables[0]} is not supported: set it in the shell")
    subdir = plain["output_subdir"]
    if subdir is not None and Path(str(subdir)).name != subdir:
        raise UserError(f"hydra.output_subdir={subdir} lies outside the run folder: leave it out")


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        yield from (str(node[key]) for key in ("_target_", "()", "class") if key in node)
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _targets(item)


def _refuse(key: str, why: str, node: Any) -> None:
    own = own_packages()
    if all(within(target, own) for target in _targets(node)):
        return
    raise UserError(f"{key} may not name {next(iter(_targets(node)), 'that')}, because {why}: leave it out, or name a "
                    f"package that you trust in the environment variable {ALLOW_VARIABLE}")


def _check_plugin(node: Mapping[str, Any], key: str, typed: Sequence[str]) -> None:
    """Checks a launcher or sweeper; those of other packages run commands that their options name."""
    target = str(node.get("_target_", PLUGINS[0]))
    if not within(target, PLUGINS):
        _refuse(f"{key}._target_", "it is not a Hydra plugin", {"_target_": target})
    for name, value in node.items():
        if name in ("sampler", "pruner") and target == "hydra_plugins.aigc_multirun.Search":
            continue                    # checked by aigc.config.targets when they are built
        if any(_targets(value)):
            _refuse(f"{key}.{name}", "Hydra would call it", value)
    if within(target, own_packages()) or target.startswith(("hydra_plugins.aigc_multirun.", PLUGINS[1])):
        return
    group = key.replace(".", "/")
    if not any(word.lstrip("+").startswith(f"{group}=") for word in typed):
        raise UserError(f"{group} is chosen by a file, and {target} runs commands that its options name: give "
                        f"{group}=<name> on the command line")
    for name in COMMANDS:
        if node.get(name) and not any(word.lstrip("+").startswith(f"{key}.{name}") for word in typed) and (
            name != "ray" or "setup_commands" in str(node[name])
        ):
            raise UserError(f"{key}.{name} names commands: give it on the command line, or allow your files to by the "
                            f"environment variable {ALLOW_VARIABLE}={target.rpartition('.')[0]}")


def _check_logging(node: Mapping[str, Any], key: str) -> None:
    for target in _targets(node):
        if target not in LOG_CLASSES:
            _refuse(key, "it would be called", {"_target_": target})
    for handler in (node.get("handlers") or {}).values():
        for value in (handler or {}).values():      # dictConfig imports names after ext://
            if str(value).startswith("ext://") and value not in ("ext://sys.stdout", "ext://sys.stderr"):
                raise UserError(f"{key} names {value}: give ext://sys.stdout or ext://sys.stderr")
        file = str((handler or {}).get("filename", "${hydra.runtime.output_dir}/"))
        if not file.startswith("${hydra.runtime.output_dir}/") or ".." in file:
            raise UserError(f"{key} writes to {file!s}: let it write into ${{hydra.runtime.output_dir}}/")


# ---- configurations of run folders ----


def read_config(path: Path) -> DictConfig:
    """A training configuration as saved in a run folder, with unresolved interpolations.

    Raises:
        UserError: it is broken, or not a training configuration.
    """
    try:
        saved = OmegaConf.load(path)
        if not isinstance(saved, DictConfig):
            raise ValueError("it is not a mapping")
        known = OmegaConf.to_container(OmegaConf.structured(TrainConfig))
        assert isinstance(known, dict)
        for name in (str(name) for name, value in known.items() if isinstance(value, dict)):
            if name in saved and not isinstance(saved.get(name), DictConfig):
                raise ValueError(f"'{name}' is not a mapping")
        return saved
    except yaml.YAMLError as error:
        reason = in_words(error)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    raise UserError(f"'{path}' cannot be read ({reason}): give a run folder that training wrote")


def settled(config: DictConfig, path: Path, **changes: Any) -> DictConfig:
    """`config`, read from `path`, with interpolations resolved; it downloads data only as our own recipes do.

    `changes` replace options at its top level, also in interpolations that refer to them.

    Raises:
        UserError: it reads an environment variable that it must not, or refers to something missing.
    """
    for name, value in changes.items():
        config[name] = value
    with _guarded_environment(path):
        try:
            OmegaConf.resolve(config)
        except OmegaConfBaseException as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__ or cause.__context__
            reason = " ".join(str(error).splitlines()[:1])
            raise cause or UserError(f"'{path}' cannot be used ({reason}): give a run folder that training wrote") \
                from error
    data = config.get("data")
    while isinstance(data, DictConfig) and data:           # and data inside it
        _fetch_only_ours(data, path)
        data = data.get("source")
    return config


@contextmanager
def _guarded_environment(path: Path) -> Iterator[None]:
    """Inside, `${oc.env:...}` reads only the variables that a stranger's file may know."""
    def guarded(name: str, *default: Any) -> Any:
        if name not in VARIABLES and not name.startswith(PREFIXES):
            raise UserError(f"'{path}' reads the environment variable {name}, which may be a secret: replace it there "
                            "by its value")
        return oc.env(name, *default)

    OmegaConf.register_new_resolver("oc.env", guarded, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _fetch_only_ours(data: DictConfig, path: Path) -> None:
    """Disables downloads that none of our data sets makes: from another address, or to another folder."""
    root = Path(os.path.expanduser(str(data.get("root"))))
    fetches = data.get("archive") is not None or data.get("download") not in (None, False)
    if fetches and _download(data) not in [_download(OmegaConf.load(file)) for file in
                                           sorted((CONFIG_DIR / "data").glob("*.yaml"))]:
        data.download = False
        if not root.exists():
            log.info("'%s' would fetch its data into %s, which is allowed only for built-in data sets, in their own "
                     "folder", path, root)
    where = data.get("path")
    if str(data.get("_target_")).endswith(".HuggingFace") and where and not Path(str(where)).expanduser().exists():
        log.info("'%s' takes its data from the Hugging Face Hub: %s", path, where)


def _download(data: Any) -> tuple[Any, ...]:
    """The source and the destination of a download."""
    archive: Any = data.get("archive")
    address = (archive.get("url"), archive.get("sha256")) if isinstance(archive, DictConfig) else archive
    return data.get("_target_"), data.get("source"), str(data.get("root")), address
