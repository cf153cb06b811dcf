"""The study of a search: in a database, with a sampler and a pruner, and for one command only."""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aigc.config.targets import instantiate
from aigc.errors import UserError
from aigc.multirun.search.space import Space, grid_of

GRID = "optuna.samplers.GridSampler"


def open_study(plugin: Any, storage: str, space: Space, objectives: Mapping[str, Any]) -> tuple[Any, int]:
    """The study of this command, made or found again, and how many trials it is to have.

    Args:
        plugin: the sweeper.
        storage: URL of the database.
        space: what is searched.
        objectives: with their directions.

    Raises:
        UserError: the database, sampler or pruner is not available, or the study is another search's.
    """
    import optuna

    options, multirun, hydra = plugin.options, plugin.multirun, plugin.config.hydra
    name = options["study_name"] or multirun.folder.name
    with opening(storage):
        known = {s.study_name: s.n_trials for s in optuna.get_all_study_summaries(storage)}
    sampler, n_trials = proposer(options, hydra, space, known.get(name, 0))
    pruner = built(options["pruner"], "pruner", hydra) if options["pruner"] else optuna.pruners.NopPruner()
    with opening(storage):
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, sampler=sampler,
                                    pruner=pruner, directions=list(objectives.values()))
    claim(study, multirun.command, space, objectives)
    return study, n_trials


@contextlib.contextmanager
def opening(storage: str) -> Iterator[None]:
    """Inside, whatever the driver of a database raises becomes a sentence of a UserError."""
    try:
        yield
    except Exception as error:
        reason = hidden((str(error).strip() or type(error).__name__).splitlines()[0])
        sentence = f"the study in '{hidden(storage)}' cannot be opened ({reason}): check hydra.sweeper.storage"
        raise UserError(sentence) from error


def hidden(url: str) -> str:
    """The URL of a database without its password."""
    return re.sub(r"(://[^:/@]*:).*@", r"\1***@", url)


def claim(study: Any, command: Mapping[str, Any], space: Space, objectives: Mapping[str, str]) -> None:
    """Notes in the study who owns it: this command, which several machines may give, and of its objectives.

    Raises:
        UserError: it is another search's, or has trials with values of other objectives.
    """
    from optuna.trial import TrialState

    other = "choose another hydra.sweep.dir or hydra.sweeper.study_name"
    asked = {**command, "space": {key: str(one) for key, one in space.items()}}
    held = study.user_attrs.get("search", asked)
    if held != asked:
        words = " ".join(held["overrides"])
        raise UserError(f"the study '{study.study_name}' holds trials of another search ({words}): {other}")
    goals = [list(pair) for pair in objectives.items()]
    directions = [direction.name.lower() for direction in study.directions]
    held = study.user_attrs.get("objectives", [[goal, d] for (goal, _), d in zip(goals, directions, strict=False)])
    if directions != [direction for _, direction in goals] or (
        held != goals and study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ):
        named = ", ".join(f"{goal} ({direction})" for goal, direction in held)
        raise UserError(f"the study '{study.study_name}' holds trials for {named}: {other}")
    study.set_user_attr("search", asked)
    study.set_user_attr("objectives", goals)


def built(node: Any, name: str, hydra: Any, **given: Any) -> Any:
    """Optuna's object of `hydra.sweeper.<name>`.

    Raises:
        UserError: the class or its options are not there.
    """
    where = f"hydra.sweeper.{name}"
    if not isinstance(node, Mapping):
        raise UserError(f"{where}={node} names no class: give {where}._target_=optuna.{name}s.<class>")
    try:
        return instantiate(node, where, **given)
    except UserError as error:
        if any(f"{where}._target_=" in str(word) for word in hydra.overrides.hydra):
            raise UserError(f"{error}; the options of a preset stay, and hparams_search=random has none") from error
        raise


def proposer(options: Mapping[str, Any], hydra: Any, space: Space, there: int) -> tuple[Any, int]:
    """The sampler, and how many trials there are to be.

    A sampler with a seed draws other numbers when a search with `there` trials is resumed.

    Raises:
        UserError: it is not a sampler, or would never end.
    """
    node, n_trials = options["sampler"], options["n_trials"]
    given: dict[str, Any] = {}
    if isinstance(node, Mapping) and node.get("_target_") == GRID:
        grid = given["search_space"] = grid_of(space)
        count = math.prod(map(len, grid.values()))
        n_trials = count if n_trials is None else min(n_trials, count)
    elif isinstance(node, Mapping) and isinstance(node.get("seed"), int):
        node = {**node, "seed": node["seed"] + there}
    if n_trials is None:
        raise UserError("hydra.sweeper.n_trials is needed: only a grid has an end of its own")
    return built(node, "sampler", hydra, **given), n_trials
