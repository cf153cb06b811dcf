"""The frame around every entry point: Hydra's command line, and errors as one sentence with exit code 2."""

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from aigc.config import CONFIG_DIR, SCHEMAS, check_closed, register_schemas
from aigc.errors import RunError, UserError, choices

Task = Callable[[Any], Any]
FREE_TEXT = ("text", "data.text", "resume", "title", "runs")  # options whose value is taken as it was typed

EXTRAS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}  # launchers of other packages


def run(task: Task, config_name: str) -> None:
    """Runs `task(cfg)` with the command line composed over `conf/<config_name>.yaml`; exits unless all went well.

    In a multirun, a job that fails is reported and the others go on, and commas in free text separate its jobs.
    Exit codes: 1 a run failed after it had started, 2 a mistake in what was asked, 130/143 interrupted.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
    register_schemas()
    if not {"-m", "--multirun"} & set(sys.argv):
        sys.argv[1:] = [quoted(argument) for argument in sys.argv[1:]]
    codes: list[int] = []

    def job(cfg: Any) -> Any:
        try:
            check_closed(cfg, SCHEMAS[config_name])
            return task(cfg)
        except UserError as error:
            codes.append(_say(error))
            return None
        except OmegaConfBaseException as error:  # a mandatory option is missing; Hydra would announce it by a line
            codes.append(_say(UserError(explain(error, sys.argv[1:], config_name))))
            return None

    try:
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(job)()
    except UserError as error:
        codes.append(_say(error))
    except (HydraException, OmegaConfBaseException) as error:
        codes.append(_say(UserError(explain(error, sys.argv[1:], config_name))))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:  # from making the run folder
        sentence = f"the folder '{error.filename}' cannot be made ({error.strerror}): choose another hydra.run.dir"
        codes.append(_say(UserError(sentence)))
    except KeyboardInterrupt:
        codes.append(_say(UserError("interrupted")))
        codes.append(130)
    if codes:
        sys.exit(max(codes))


def quoted(argument: str) -> str:
    """`text=a, {b}` so that Hydra reads the value as it was typed; lists, quoted values and other options stay."""
    key, equals, value = argument.partition("=")
    listed = value.startswith("[") and value.endswith("]")
    plain = not value or value == "null" or listed or re.fullmatch(r"""(['"]).*\1""", value, re.DOTALL)
    if key not in FREE_TEXT or plain:
        return argument
    value = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}{equals}'{value.replace('${', chr(92) + '${')}'"


def plain(value: str) -> str:
    """A value without the quotes that Hydra would take away."""
    found = re.fullmatch(r"""(['"])(.*)\1""", value, re.DOTALL)
    return found[2].replace("\\" + found[1], found[1]) if found else value


def override(key: str, value: str | None) -> str:
    """`key=value` as Hydra reads it back, whatever is in the value."""
    return f"{key}=" + ("null" if value is None else QuotedString(value, Quote.single).with_quotes())


def _say(error: UserError) -> int:
    """Prints the sentence; returns the exit code that belongs to it."""
    print(f"aigc: {error}", file=sys.stderr, flush=True)
    return 1 if isinstance(error, RunError) else 2


def explain(error: Exception, argv: list[str], config_name: str) -> str:
    """One sentence for an error of Hydra's or OmegaConf's, with the nearest option that exists."""
    chain: list[BaseException] = [error]
    while len(chain) < 5 and (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    text = "\n".join(str(link) for link in chain)
    if found := re.search(r"Could not find '([\w/]+)/([^'/]+)'", text):
        group, name = found.groups()
        if name in EXTRAS:
            return f"'{group}={name}' comes with a package of its own: pip install 'aigc[{EXTRAS[name]}]'"
        return f"'{group}={name}' does not exist: {choices(name, _options(group, text))}"
    if found := re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' (?:is )?not in", text):
        key = found.group(1)
        if full := re.search(r"full_key: (\S+)", text):
            key = full.group(1)
        key = next((a.lstrip("+~").split("=")[0] for a in argv if a.lstrip("+~").split("=")[0].endswith(key)), key)
        return f"there is no option '{key}': {choices(key, known_keys(argv, config_name))}"
    if "MissingMandatoryValue" in text or "Missing mandatory value" in text:
        key = re.search(r"(?:value: |full_key: )(\S+)", text)
        return f"the option '{key.group(1) if key else '?'}' is needed: give it as <option>=<value>"
    first = str(error).strip().split("\n")
    place = re.search(r"full_key: (\S+)", text)
    problem = re.search(r"Value '.*", text)
    sentence = problem.group(0) if problem else " ".join(line.strip() for line in first[:2])
    return f"{place.group(1)}: {sentence}" if place and place.group(1) not in sentence else sentence


def _options(group: str, text: str) -> list[str]:
    listed = text.split("Available options", 1)
    if len(listed) == 2:
        names = re.findall(r"^\t(\S+)", listed[1], flags=re.MULTILINE)
        if names:
            return names
    return [path.stem for path in (CONFIG_DIR / group).glob("*.yaml")]


def known_keys(argv: list[str], config_name: str) -> list[str]:
    """Every option there is with the groups that `argv` chooses: `model`, `budget.minutes`, ..."""
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

