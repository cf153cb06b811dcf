"""A recipe followed: its options under those typed beside it, its checkpoint, and what the picture was made from."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from aigc.errors import UserError
from aigc.files.written import RECORD, is_run, read_record
from aigc.images.output import sha256_of
from aigc.images.recipes import APART, Recipe, defaults_of
from aigc.wording import shown

PLACES = ("classifier", "clip", "rerank", "secondary")     # options that may name another run
FILES = ("init",)                                          # and a file, which no recipe makes be read


def overlaid(recipe: Recipe, typed: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The options of a call: those of the recipe, except those that were `given` beside it.

    Args:
        recipe: what to follow.
        typed: all options of the call.
        given: the keys of those that were typed, such as `seed` or `sampler.steps`; a group's choice gives all of it.

    Raises:
        UserError: an option of the recipe names a run that is not here.
    """
    options = {**defaults_of(recipe.verb), **recipe.options}
    roots = {key.partition(".")[0] for key in given}
    result = dict(typed)
    for name, value in options.items():
        if name in APART or name in given:
            continue
        result[name] = _under(value, typed[name], [key for key in given if key.startswith(f"{name}.")]) \
            if name in roots else value
        if name in FILES and value is not None:
            raise UserError(f"recipe='{recipe.source}' was made with {name}={shown(value)}, and no recipe makes a "
                            f"file be read: give {name}= beside it")
        if name in PLACES:
            _check_here(name, result[name], recipe)
    if "seed" not in given:
        result["seed"] = recipe.seed
    return result


def _under(value: Any, typed: Any, keys: Sequence[str]) -> Any:
    """A nested option of a recipe, with those entries that were typed."""
    result = dict(value) if isinstance(value, Mapping) else {}
    for key in keys:
        _, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        result[name] = typed[name]
    return result


def _check_here(name: str, value: Any, recipe: Recipe) -> None:
    """Refuses a run that an option of a recipe names and that is not here: it might be a hub's, and is not fetched."""
    if isinstance(value, str) and not (Path(value).expanduser().is_dir() or Path(value).expanduser().is_file()):
        raise UserError(f"recipe='{recipe.source}' was made with {name}={shown(value)}, which is not here: give "
                        f"{name}= beside it")


def checkpoint_for(recipe: Recipe, run: str | None) -> Path:
    """The checkpoint that a recipe needs: in `run`, if that is given, or where the picture or its folder says.

    Raises:
        UserError: the run is not here, or its checkpoint is another one by now.
    """
    places = [Path(run).expanduser()] if run is not None else _places(recipe)
    files = [file for place in places for file in _checkpoints(place, recipe.checkpoint)]
    for file in files:
        if sha256_of(file) == recipe.sha256:
            return file
    made = f"recipe='{recipe.source}' was made by the run '{shown(recipe.run)}'"
    if files:
        raise UserError(f"{made} with a {shown(recipe.checkpoint)}.ckpt of sha256 {recipe.sha256[:12]}, and "
                        f"'{files[0]}' is another one by now ({sha256_of(files[0])[:12]}): give run= of a copy, or "
                        "make pictures anew without recipe=")
    where = f", and '{run}' has no checkpoint" if run is not None else ", which is not here"
    raise UserError(f"{made}{where}: give run=<its folder>")


def _places(recipe: Recipe) -> list[Path]:
    """Folders that may be the run of a recipe: the record beside the picture, those around it, and `runs/`."""
    folder = recipe.source.resolve().parent
    found = []
    for above in (folder, *folder.parents):
        record = read_record(above) if (above / RECORD).is_file() else None
        if record is not None:
            found += [Path(str(record.facts[key])) for key in ("checkpoint", "run") if key in record.facts]
        if is_run(above):
            found.append(above)
    parts = [part for part in Path(recipe.run).parts if part not in ("..", ".", "/")][-2:]
    return [*found, *(base.joinpath(*parts) for base in (Path("runs"), Path()) if parts)]


def _checkpoints(place: Path, stem: str) -> list[Path]:
    """The checkpoint files of a place, that of the recipe's name first."""
    if place.is_file():
        return [place]
    folder = place / "checkpoints"
    files = sorted(folder.glob("*.ckpt"), key=lambda file: (file.stem != stem, file.name)) if folder.is_dir() else []
    return [file for file in files if file.is_file()]


def parent_of(recipe: Recipe, role: str | None = None) -> Path | None:
    """The file of a parent, as the record of the picture's folder names it; None: it is not there, or another by now.

    `role` is that of the parent: None for the picture that was edited, or `mask`.
    """
    wanted = next((one for one in recipe.parents if one.get("role") == role), None)
    if wanted is None:
        return None
    folder = recipe.source.resolve().parent
    for above in (folder, *folder.parents):
        record = read_record(above) if (above / RECORD).is_file() else None
        key = "source" if role is None else role
        for file in (Path(str(facts[key])) for facts in (record.files.values() if record else ()) if key in facts):
            if file.name == Path(wanted["name"]).name and file.is_file() and sha256_of(file) == wanted["sha256"]:
                return file
        beside_it = above / Path(wanted["name"]).name
        if beside_it.is_file() and sha256_of(beside_it) == wanted["sha256"]:
            return beside_it
        if record is not None:
            break
    return None
