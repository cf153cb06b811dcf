"""What all entry points share: Hydra's command line, and errors as one sentence with exit code 2."""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import (
    OmegaConfBaseException,
)

from aigc.config import words
from aigc.config.explain import explain
from aigc.config.schema import CONFIG_DIR, SCHEMAS, check_closed, register_schemas
from aigc.config.untrusted import checked_loading
from aigc.errors import RunError, UserError
from aigc.runs import verdict
from aigc.wording import Report

Task = Callable[[Any], Any]

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


@contextmanager
def bars(unit: str = "B") -> Iterator[Report]:
    """A report that draws a bar for each long work that it is told of, in bytes or in another unit."""
    drawn: dict[str, Any] = {}

    def progress(done: int, total: int, name: str) -> None:
        from tqdm import tqdm

        if name not in drawn:
            drawn[name] = tqdm(total=total, unit=unit, unit_scale=unit == "B", desc=name or None, disable=None)
        drawn[name].update(done - drawn[name].n)
        if done >= total:
            drawn.pop(name).close()

    try:
        yield progress
    finally:
        for bar in drawn.values():
            bar.close()


def say(error: UserError) -> int:
    """Prints the message, unless another rank does; returns the exit code."""
    code, aloud = verdict.give(1 if isinstance(error, RunError) else 2)
    if aloud:
        print(f"aigc: {error}", file=sys.stderr, flush=True)
    return code

