"""What Hydra and OmegaConf refuse, in one sentence for the user."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from aigc.config.schema import CONFIG_DIR
from aigc.errors import choices

Error = TypeVar("Error", bound=BaseException)
EXTRAS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}  # launchers from other packages
UNRESOLVED = r"interpolation '\$\{(\w+)\}_\$\{size\}'|Interpolation key '([\w.]+)' not found"


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

    chosen = [word for word in argv if re.fullmatch(r"\w+(@[\w.]+)?=\w+", word)      # data@data.source=mnist, too
              and (CONFIG_DIR / re.split("[@=]", word)[0]).is_dir()]
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
