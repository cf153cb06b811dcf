"""Small runs that older versions trained, kept in tests/data/runs, and what those versions made of them.

`<name>/` is the run; `<name>.safetensors` holds its images at fixed seeds (for translators also their inputs) and
`<name>.json` its evaluation; compare.json has the rows of the comparison of all of them. A new family adds its own:
train a run as small as the others, keep .hydra, summary.json, metrics.jsonl, checkpoints/last.ckpt and the last grid,
and say `python -m tests.runs.kept <name> ...`, which writes what is expected of the names given, by today's code.
What an older version wrote is never written again.
"""

import json
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from aigc.models.checkpoints import load_family
from aigc.models.family import Translator

from .. import forked
from ..conftest import environment

FOLDER = Path(__file__).resolve().parents[1] / "data" / "runs"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
TABLE = FOLDER / "compare.json"
PROMPTS = ["a small red circle", "a large blue square", "", "a star"]
EVALUATED = ["checkpoint=last", "resamples=10", "second=null", "kd_subset_size=16", "attribute_samples=8",
             "batch_size=32", "lpips=null", "device=cpu", "num_reals=64"]
RESUMED = ("gan", "diffusion")          # one with two optimizers in turn, one with a single one
IMAGES = 480                            # of the resumed runs' budget; the kept ones have seen 320
SCORES = ("fd_classifier", "a2b/fd_classifier")
CLOCK = ("seconds", "images_per_second")
PARTS = ("scores", "protocol", "notes", "scores_missing")  # of the record of an evaluation


def machine() -> dict[str, Any]:
    """What has to be equal for bits to be equal: torch, its instructions, and the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines[:10] if ":" in line)
    processor = [named.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    return {"torch": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability(),
            "processor": " ".join(processor).strip() or platform.machine()}


def inputs() -> torch.Tensor:
    """Two pictures for translators, `(2, 3, 16, 16)` in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1


def images(run: Path, given: torch.Tensor) -> dict[str, torch.Tensor]:
    """Four samples `(4, c, h, w)`, or the translations of `given` in each direction, float32."""
    family = load_family(run, "last")
    if isinstance(family, Translator):
        return {way: family.translate(given, direction=way, seeds=[0, 1]).contiguous() for way in family.directions}
    condition = {"label": [0, 1, 2, 3], "text": PROMPTS}.get(family.hparams.get("condition"))
    return {"samples": family.sample(4, condition=condition, seeds=[0, 1, 2, 3]).contiguous()}


def command(*words: str, cwd: Path) -> str:
    """Runs `python -m <words>` and returns what it printed."""
    done = forked.run([sys.executable, "-m", *words], env=environment(), cwd=cwd)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout


def evaluation(run: Path) -> dict[str, Any]:
    """The record of a tiny evaluation; writes beside the run."""
    out = run.with_name(f"{run.name}_record.json")
    command("aigc.evaluate", f"run={run}", *EVALUATED, "num_samples=64", f"out={out}", cwd=run.parent)
    record = json.loads(out.read_text())
    return {part: record[part] for part in PARTS if part in record}


def resumed(run: Path) -> list[dict[str, Any]]:
    """Goes on with a run, in its own folder, up to IMAGES; the lines that this logged, without clocks."""
    before = (run / "metrics.jsonl").read_text().splitlines()
    command("aigc.train", f"resume={run}", f"budget.images={IMAGES}", cwd=run.parent)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert lines[: len(before)] == before
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK}
            for line in lines[len(before):]]


def compared(folder: Path, score: str) -> dict[str, list[str]]:
    """Of the comparison of NAMES by a score: each run's row as far as the score, and its protocol where it has one."""
    runs = ",".join(str(folder / name) for name in NAMES)
    lines = command("aigc.compare", f"runs=[{runs}]", f"score={score}", cwd=folder).splitlines()
    head = next(line for line in lines if line.split()[:1] == ["run"])
    end = head.index(" minutes")
    rows = {line.split()[0]: line[:end].split() for line in lines if line.split() and line.split()[0] in NAMES}
    protocols = dict(line.strip().split("  ", 1) for line in lines if re.match(r"  [A-Z]  ", line))
    assert len(protocols) > 1, "with a single one, rows have no letter"
    return {name: [*row[:-1], protocols[row[-1]]] if row[-1] in protocols else row for name, row in rows.items()}


def main(names: list[str]) -> None:
    """Writes what is expected of these runs, and the comparison of all."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            run = Path(shutil.copytree(FOLDER / name, Path(work, name)))
            given = inputs()
            made = images(run, given)
            save_file(made if "samples" in made else {**made, "inputs": given}, FOLDER / f"{name}.safetensors")
            told = {"machine": machine(), "evaluation": evaluation(run)}
            told |= {"resumed": resumed(run)} if name in RESUMED else {}
            (FOLDER / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    for score in SCORES:
        rows = compared(FOLDER, score)
        table[score] = {**table.get(score, {}), **{name: rows[name] for name in names}}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


def expected(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What was written of a run: numbers, and images."""
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
