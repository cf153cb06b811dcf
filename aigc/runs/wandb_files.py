"""Reads an offline W&B run of any program through W&B's own reader, without an account."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from aigc.runs.entry import Run, wandb_file

PICTURES = 4        # of a list that is logged under one key; each is a key of its own
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_wandb_run(folder: Path) -> Run:
    """The run of `offline-run-<time>_<id>/`; what cannot be read is named in `warnings`.

    Images seen are the logged `images`, if any; seconds are W&B's `_runtime`; the step is the trainer's
    (`trainer/global_step`), else W&B's own.
    """
    run = Run(folder, folder.name, source="wandb", status="running")
    path = wandb_file(folder)
    assert path is not None, folder
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=300)
    except subprocess.TimeoutExpired:
        run.warnings.append(f"W&B could not read {path.name} in five minutes")
        return run
    for line in found.stdout.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        _take(run, record.get("type"), record.get(record.get("type")) or {})
    if found.returncode or not found.stdout:
        reason = found.stderr.strip()[-200:] or "it is empty"
        run.warnings.append(f"W&B could not read {path.name} to its end ({reason})")
    run.family = _first(run.config, "family", "model", "architecture", "arch")
    run.data = _first(run.config, "data", "dataset")
    return run


def _take(run: Run, kind: str | None, content: dict[str, Any]) -> None:
    if kind == "run":
        run.name = content.get("display_name") or run.name
        run.study = content.get("run_group") or content.get("project") or ""
        _update(run, content.get("config") or {})
    elif kind == "config":
        _update(run, content)
    elif kind == "history":
        _log(run, content.get("item") or {})
    elif kind == "summary":
        run.summary |= {key: value for key, value in (content.get("update") or {}).items() if not key.startswith("_")}
    elif kind == "exit":
        run.status = "failed" if content.get("exit_code") else "finished"


def _update(run: Run, change: dict[str, Any]) -> None:
    run.config |= {key: value for key, value in (change.get("update") or {}).items() if key != "_wandb"}
    for key in change.get("remove") or ():
        run.config.pop(key, None)


def _log(run: Run, item: dict[str, Any]) -> None:
    """One logged step: its numbers become a line of the history, its pictures samples."""
    step = item.get("trainer/global_step", item.get("_step"))
    line: dict[str, Any] = {"step": step, "seconds": item.get("_runtime")}
    rich = tuple(f"{key.removesuffix('._type')}." for key in item if key.endswith("._type"))
    for key, value in item.items():
        if key.startswith("_") or key.startswith(rich):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            line[key] = value
        elif value in ("NaN", "Infinity", "-Infinity"):
            line[key] = math.nan
    run.history.append(line)
    seen = line.get("images", step)
    for prefix in rich:
        one, several = item.get(f"{prefix}path"), item.get(f"{prefix}filenames")
        for k, path in enumerate(several[:PICTURES] if isinstance(several, list) else [one] if one else []):
            file = run.folder / "files" / str(path)
            if isinstance(seen, int | float) and file.suffix in SUFFIXES and file.is_file():
                run.samples.setdefault(f"{prefix[:-1]} {k + 1}" if k else prefix[:-1], {})[int(seen)] = file


def _first(config: dict[str, Any], *names: str) -> str:
    """The first of the named values that is a word."""
    return next((config[name] for name in names if isinstance(config.get(name), str)), "")
