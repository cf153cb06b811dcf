"""What all entry points share: Hydra's command line, and errors as one sentence with exit code 2."""

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from aigc.config import words
from aigc.config.schema import CONFIG_DIR, SCHEMAS, check_closed, register_schemas
from aigc.config.untrusted import checked_loading
from aigc.errors import RunError, UserError, choices
from aigc.runs import verdict
from aigc.wording import Report

Task = Callable[[Any], Any]
Error = TypeVar("Error", bound=BaseException)

EXTRAS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}  # launchers from other packages

UNRESOLVED = r"interpolation '\$\{(\w+)\}_\$\{size\}'|Interpolation key '([\w.]+)' not found"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR,
        errno.ENAMETOOLONG, errno.EIO)  # errors of a disk that refuses, wherever they occur


def run(task: Task, config_name: str) -> None:
    """Runs `task(cfg)` with the command line composed over `conf/<config_name>.yaml`; exits if anything failed.

    Paths and free text are taken as typed (config/words.py). In a multirun, commas separate jobs; a job that fails is
    reported and the others run.
    Exit codes: 1 a run failed after it had started, 2 a mistake in the command, 130/143 interrupted.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    register_schemas()
    codes: list[int] = []

    def job(cfg: Any) -> Any:
        try:
            check_closed(cfg, SCHEMAS[config_name])
            return task(cfg)
        except UserError as error:
            codes.append(say(error))
            return None
        except OmegaConfBaseException as error:  # a mandatory option is missing; Hydra would print a line of its own
            codes.append(say(UserError(explain(error, sys.argv[1:], config_name))))
            return None

    try:
        refuse_flags(sys.argv[1:])
        multirun = bool({"-m", "--multirun"} & set(sys.argv))
        sys.argv[1:] = words.read(sys.argv[1:], multirun=multirun, optional=optional_groups(config_name))
        with checked_loading():
            hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(job)()
    except UserError as error:
        codes.append(say(error))
    except (HydraException, OmegaConfBaseException) as error:
        codes.append(say(UserError(explain(error, sys.argv[1:], config_name))))
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f"'{error.filename}'" if error.filename else "the disk"
        codes.append(say(UserError(f"{where} cannot be written to ({error.strerror}): make room or choose another")))
    except KeyboardInterrupt as interruption:
        codes.append(say(UserError("; ".join(["interrupted", *getattr(interruption, "__notes__", [])]))))
        codes.append(130)
    if codes:
        sys.exit(max(codes))


def optional_groups(config_name: str) -> list[str]:
    """Groups for which `conf/<config_name>.yaml` chooses nothing."""
    whole: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml"))
    pairs = [pair for entry in whole["defaults"] if isinstance(entry, dict) for pair in entry.items()]
    return [group for group, name in pairs if name is None]


def refuse_flags(typed: Sequence[str]) -> None:
    """Refuses Hydra flags that cannot be combined (Hydra would print a traceback) or that load a pickle.

    Raises:
        UserError: says which.
    """
    flags = {word.split("=", 1)[0] for word in typed if word.startswith("-")}
    if any(flag.startswith("--e") for flag in flags):   # argparse accepts any prefix of it
        raise UserError("--experimental-rerun would run whatever its file holds: give the options again instead")
    groups = [("--cfg", "-c"), ("--multirun", "-m"), ("--run", "-r"), ("--info", "-i"), ("--shell-completion", "-sc")]
    given = [long for long, short in groups if {long, short} & flags]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} cannot be combined: give one of them")
    if "--resolve" in flags and not {"--cfg", "-c", "--help", "-h"} & flags:
        raise UserError("--resolve shows values instead of interpolations: give it with --cfg job")
    if "--shell-completion" in given or "-sc" in flags:
        wanted = [word for word in typed if word.partition("=")[0] in ("install", "uninstall", "query")]
        if len(wanted) != 1:
            raise UserError("--shell-completion needs one of install=<shell>, uninstall=<shell>, query=<shell>")


def bars(unit: str = "B") -> Report:
    """Draws a bar for each long work that it is told of, in bytes or in another unit."""
    from tqdm import tqdm

    drawn: dict[str, Any] = {}

    def progress(done: int, total: int, name: str) -> None:
        if name not in drawn:
            drawn[name] = tqdm(total=total, unit=unit, unit_scale=unit == "B", desc=name or None, disable=None)
        drawn[name].update(done - drawn[name].n)
        if done >= total:
            drawn.pop(name).close()

    return progress


def say(error: UserError) -> int:
    """Prints the message, unless another rank does; returns the exit code."""
    code, aloud = verdict.give(1 if isinstance(error, RunError) else 2)
    if aloud:
        print(f"aigc: {error}", file=sys.stderr, flush=True)
    return code


def explain(error: Exception, argv: list[str], config_name: str) -> str:
    """One sentence for an error of Hydra or OmegaConf, with the nearest existing option."""
    chain: list[BaseException] = [error]
    while len(chain) < 5 and (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    if (absent := _first(chain, MissingConfigException)) and absent.missing_cfg_file:
        group, _, name = absent.missing_cfg_file.rpartition("/")
        if name in EXTRAS:
            return f"'{group}={name}' needs an extra package: pip install 'aigc[{EXTRAS[name]}]'"
        return f"'{group}={name}' does not exist: {choices(name, absent.options or _files(group))}"
    if unread := _first(chain, OverrideParseException):
        if "missing EQUAL" in unread.message:
            return f"'{unread.override}' sets nothing: give <option>=<value>"
        return (f"'{unread.override}' cannot be read as <option>=<value>: check the option's name, and put the value "
                "in quotes")
    if (key := _unknown(chain)) is not None:
        typed = [a.lstrip("+~").split("=")[0] for a in argv if not a.startswith("-")]
        if not key:
            return "there is no option before the '=': give <option>=<value>"
        key = next((one for one in typed if one == key or one.endswith(f".{key}")), key)
        if key in (known := known_keys(argv, config_name)):
            return f"'{key}' is required and cannot be removed: drop the '~'"
        return f"there is no option '{key}': {choices(key, _beside(key, known))}"
    if found := re.search(UNRESOLVED, _text(chain)):       # these name it in words alone
        return f"'{found[1] or found[2]}' is needed by other options but is missing: drop the '~', or check its name"
    if missing := _first(chain, MissingMandatoryValue):
        return f"the option '{missing.full_key or '?'}' is needed: give it as <option>=<value>"
    if wrong := _first(chain, ValidationError):
        reason = str(wrong.msg or wrong).split("\n")[0]
        if reason.startswith("Value "):
            return f"{wrong.full_key}: {reason}"
        word = next((a for a in argv if a.lstrip("+").split("=")[0] == wrong.full_key), str(wrong.full_key))
        return f"'{word}' does not fit ({reason.split('. value: ')[0].rstrip('. ')}): give another value"
    return " ".join(line.strip() for line in str(error).strip().split("\n")[:2])


def _first(chain: Sequence[BaseException], kind: type[Error]) -> Error | None:
    return next((link for link in chain if isinstance(link, kind)), None)


def _text(chain: Sequence[BaseException]) -> str:
    return "\n".join(map(str, chain))


def _unknown(chain: Sequence[BaseException]) -> str | None:
    """The option that does not exist, as far as an error says; Hydra names some in words alone."""
    for link in chain:
        if isinstance(link, ConfigKeyError | ConfigAttributeError) and link.full_key:
            return link.full_key
    found = re.search(r"Could not override '([^']*)'|Could not delete from config. '([^']+)'", _text(chain))
    return next((name for name in found.groups() if name is not None), None) if found else None


def _beside(key: str, known: Sequence[str]) -> list[str]:
    """The options that `key` may have meant: similar ones anywhere, else those of its group, not all."""
    if "." not in key:                                     # `task.direction` is set by `direction`
        known = [one for one in known if "." not in one or one.rpartition(".")[2] not in known]
    if get_close_matches(key, known, n=1, cutoff=0.6):
        return list(known)
    group = key.rpartition(".")[0]
    inside = [one for one in known if one.rpartition(".")[0] == group]
    return inside or [one for one in known if "." not in one]


def _files(group: str) -> list[str]:
    return [path.stem for path in (CONFIG_DIR / group).glob("*.yaml")]


def known_keys(argv: list[str], config_name: str) -> list[str]:
    """All options under the groups that `argv` chooses: `model`, `budget.minutes`, ..."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    chosen = [a for a in argv if re.fullmatch(r"\w+=\w+", a) and (CONFIG_DIR / a.split("=")[0]).is_dir()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        for overrides in (chosen, []):
            try:
                cfg = compose(config_name, overrides=overrides)
                break
            except (HydraException, OmegaConfBaseException):
                continue
        else:
            return []
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items():
            keys.append(prefix + str(name))
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    return [key for key in keys if not key.endswith("_target_")]

