"""Finds runs and reads what they record; a broken file costs nothing but itself and is named in a warning."""

import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from aigc.errors import UserError
from aigc.runs.entry import Run, wandb_file
from aigc.wording import counted

# Hydra's own part of the folder alone can be another program's: what training composes is told by its keys.
TRAINING = re.compile(r"^model:", re.MULTILINE)


def find_runs(spec: Any) -> list[Path]:
    """Run folders in the order of their paths, each once.

    Args:
        spec: a run folder, a folder with runs in it at any depth, a glob of such (`**` goes through subfolders), or a
            list of these.

    Raises:
        UserError: an entry matches nothing, or contains no run.
    """
    entries = [str(entry) for entry in (spec if isinstance(spec, list | tuple) else [spec]) if entry is not None]
    if not entries:
        raise UserError("runs= names nothing: give a folder with runs in it, a run, a list or a glob")
    found: dict[Path, None] = {}
    for entry in entries:
        pattern = str(Path(entry).expanduser())
        starts = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        runs = [run for start in starts for run in _runs_below(Path(start))]
        if not runs:
            what = "holds no run" if starts else "does not exist"
            raise UserError(f"runs='{entry}' {what}: give a folder with runs in it, a run, a list or a glob")
        found |= dict.fromkeys(runs)
    return sorted(found)


def read_runs(spec: Any) -> list[Run]:
    """Reads all runs of `find_runs(spec)`, and after them the jobs of their multiruns that have left no run.

    Raises:
        UserError: see `find_runs`.
    """
    folders = find_runs(spec)
    return read_all(folders) + absent_jobs(folders)


def read_all(folders: Iterable[Path]) -> list[Run]:
    """Each folder's run; W&B's are read by processes of their own, several at a time."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(read_run, folders))


def absent_jobs(folders: Sequence[Path]) -> list[Run]:
    """Jobs that wait or failed before they began, of every multirun of which a job is among `folders`."""
    found = []
    for sweep in dict.fromkeys(folder.parent for folder in folders):
        for job in jobs_of(sweep):
            folder = sweep / str(job.get("folder"))
            if folder in folders or not job.get("folder"):
                continue
            overrides = [str(override) for override in job.get("overrides") or ()]
            chosen = dict(override.split("=", 1) for override in overrides if "=" in override)
            found.append(Run(
                folder, f"{sweep.name}/{folder.name}", study=sweep.parent.name, family=chosen.get("model", ""),
                data=chosen.get("data", ""), status=str(job.get("status") or "unknown"), overrides=overrides,
                summary={"reason": job.get("reason")},
            ))
    return found


def jobs_of(sweep: Path) -> list[dict[str, Any]]:
    """What `<sweep>/jobs.json` says of a multirun's jobs; empty where there is none, or it is being written."""
    try:
        jobs = json.loads((sweep / "jobs.json").read_text())["jobs"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else []


def _runs_below(start: Path) -> list[Path]:
    if start.suffix == ".wandb":
        return [start.parent.resolve()]
    if not start.is_dir():
        return []
    found: list[Path] = []
    seen: set[Path] = set()
    for name, below, _ in os.walk(start, followlinks=True):
        folder = Path(name).resolve()
        if folder in seen:                          # by a link: W&B's `latest-run`, or one back up
            below.clear()
            continue
        seen.add(folder)
        if is_run(folder):
            found.append(folder)
            below.clear()                           # also W&B's copy of the same run
    return found


def is_run(folder: Path) -> bool:
    """Whether the folder is a run: of `aigc.train`, begun or done, or W&B's own."""
    if any((folder / name).is_file() for name in ("metrics.jsonl", "summary.json")) or wandb_file(folder):
        return True
    try:
        return bool(TRAINING.search((folder / ".hydra" / "config.yaml").read_text()))
    except (OSError, UnicodeDecodeError):
        return False


def read_run(folder: str | Path) -> Run:
    """Reads a folder that `find_runs` found; what cannot be read is left out and named in `warnings`."""
    folder = Path(folder)
    if wandb_file(folder):
        from aigc.runs.wandb_files import read_wandb_run

        return read_wandb_run(folder)
    multirun = (folder.parent / "multirun.yaml").is_file()
    run = Run(folder, f"{folder.parent.name}/{folder.name}" if multirun else folder.name)
    run.summary = _read(run, "summary.json", json.loads, dict)
    run.config = _read(run, ".hydra/config.yaml", _yaml, dict)
    if run.config.get("condition") == "auto" and run.summary.get("condition"):  # what it came to
        run.config["condition"] = run.summary["condition"]
    run.overrides = [str(override) for override in _read(run, ".hydra/overrides.yaml", _yaml, list)]
    run.history = _read(run, "metrics.jsonl", lambda text: _lines(run, text), list)
    chosen = _choices(_read(run, ".hydra/hydra.yaml", _yaml, dict))
    protocol = run.summary.get("protocol")
    measured = protocol.get("data") if isinstance(protocol, dict) else None
    run.study = str(run.summary.get("study") or run.config.get("study") or folder.parent.name)
    run.family = str(run.summary.get("family") or chosen.get("model") or "")
    run.data = str(chosen.get("data") or measured or "")
    run.status = str(run.summary.get("status") or "unknown")
    run.samples = _samples(folder / "samples")
    for path in sorted((folder / "evaluations").glob("*.json")):
        record = _read(run, f"evaluations/{path.name}", json.loads, dict)
        run.evaluations += [record] if record else []
    run.evaluations.sort(key=lambda record: str(record.get("made", "")))
    _count_stages(run)
    return run


def _count_stages(run: Run) -> None:
    """Adds the training of the runs that it stands on to all of its seconds: else equal minutes were not equal."""
    stages = run.summary.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        seconds = stage.get("seconds") if isinstance(stage, dict) else None
        if isinstance(seconds, int | float):
            run.stages[str(name)] = float(seconds)
    earlier = sum(run.stages.values())
    targets = [record.get("target") for record in run.evaluations]
    for place in (run.summary, *run.history, *targets) if earlier else ():
        if isinstance(place, dict) and isinstance(place.get("seconds"), int | float):
            place["seconds"] += earlier


def _yaml(text: str) -> Any:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)     # the C one is ten times as fast
    return yaml.load(text, Loader=loader)


def _read(run: Run, name: str, parse: Callable[[str], Any], kind: type) -> Any:
    """The parsed content of a file of the run; empty where it is absent or broken."""
    path = run.folder / name
    try:
        content = parse(path.read_text(errors="replace"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).split("\n")[0]
        run.warnings.append(f"{name} could not be read ({reason})")
        return kind()
    if not isinstance(content, kind):
        run.warnings.append(f"{name} holds no {'list' if kind is list else 'mapping'}")
        return kind()
    return content


def _lines(run: Run, text: str) -> list[dict[str, Any]]:
    """The objects of a jsonl text; its last line may still be incomplete, any other broken one is counted."""
    lines = text.split("\n")
    whole, open_line = lines[:-1], lines[-1]
    found, broken = [], 0
    for line in [*whole, open_line]:
        try:
            entry = json.loads(line) if line else None
        except ValueError:
            entry = None
            broken += line is not open_line
        if isinstance(entry, dict):
            found.append(entry)
    if broken:
        be = "is" if broken == 1 else "are"
        run.warnings.append(f"{broken} of {counted(len(whole), 'line')} of metrics.jsonl {be} broken and left out")
    return found


def _choices(hydra: dict[str, Any]) -> dict[str, Any]:
    """What was chosen for each config group, from Hydra's own record."""
    node: Any = hydra
    for key in ("hydra", "runtime", "choices"):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _samples(folder: Path) -> dict[str, dict[int, Path]]:
    """`<images>.png` under the key `samples`, `<images>_<key>.png` under its own."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        if named := re.fullmatch(r"(\d+)(?:_(.+))?", path.stem):
            found.setdefault(named[2] or "samples", {})[int(named[1])] = path
    return found
