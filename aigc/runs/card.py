"""The model card of a run: README.md in its folder, which says what the model is, how it was made and how to use it.

It is made only from the run's files, so it can be rewritten whenever they change: at the end of training, also of
resumed training, and after an evaluation. The front matter follows the Hugging Face Hub's model cards.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aigc.config.words import shown
from aigc.files import atomic
from aigc.runs.entry import Run
from aigc.runs.markdown import commands, number, table
from aigc.runs.protocol import Score, by_reason, describe, measured, missing_of, notes_of, scores_of
from aigc.runs.reading import read_run
from aigc.runs.summary import capabilities_of
from aigc.wording import counted

NAME = "README.md"
MARK = "<!-- written by aigc, and written again when the run changes; what you add below stays -->"
LISTED = 50                                                # most classes named
TASKS = {"text": "text-to-image", "translate": "image-to-image", "none": "unconditional-image-generation",
         "label": "unconditional-image-generation", "neither": "feature-extraction"}  # the Hub has none for labels


def write(folder: str | Path) -> Path:
    """Writes `<folder>/README.md` from the files in the folder, atomically, and returns its path.

    Text that users added below `MARK` is kept. A README.md without that mark is not a card and stays as it is, and so
    does a folder that is not a run.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(folder) / NAME
    before = path.read_text(encoding="utf-8") if path.is_file() else MARK + "\n"
    _, mark, own = before.partition(MARK)
    if mark and (path.parent / "summary.json").is_file():
        atomic.write(path, f"{card(read_run(folder))}\n{MARK}{own}")
    return path


def card(run: Run) -> str:
    """The card of a run, as Markdown with YAML front matter."""
    parts = [front_matter(run), f"# {run.name}", introduction(run), pictures(run), "## Training", training(run)]
    parts += last_scores(run)
    measured = [score for found in scores_of(run).values() for score in found]
    for record in run.evaluations:
        parts += evaluation(record, [score for score in measured if score.evaluation is record])
    parts += ["## Use", usage(run), "## Licence", licence(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def recipe_of(run: Run) -> str:
    """The name of the recipe, as in `model=`."""
    return str(run.summary.get("recipe") or run.family.lower() or "model")


def data_of(run: Run) -> str:
    """The name of the data."""
    facts = run.summary.get("data")
    return str(facts.get("name") if isinstance(facts, dict) else run.data or "unknown data")


def front_matter(run: Run) -> str:
    """The part that the Hub reads: task, tags, data, and the last scores."""
    able = capabilities_of(run.summary)
    pictures = {"translate", "upscale"} & {*able}          # in and out
    task = TASKS["translate" if pictures else condition_of(run) if "sample" in able else "neither"]
    scores = (run.summary.get("scores") or {}).get("last") or {}
    split = (run.summary.get("protocol") or {}).get("split")
    facts: dict[str, Any] = {
        "library_name": "aigc",
        "pipeline_tag": task,
        "tags": list(dict.fromkeys([recipe_of(run), data_of(run), "image-generation"])),
        "datasets": [data_of(run)],
    }
    if run.status == "finished" and scores:
        dataset = {"name": data_of(run), "type": data_of(run), **({"split": split} if split else {})}
        metrics = [{"type": name, "value": round(value, 6)} for name, value in scores.items()]
        result = {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
        facts["model-index"] = [{"name": run.name, "results": [result]}]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def condition_of(run: Run) -> str:
    """none, label or text."""
    return str(run.summary.get("condition") or run.config.get("condition") or "none")


def introduction(run: Run) -> str:
    """What the model is, in a sentence or two, and how the run ended if it did not finish."""
    conditions = {"label": ", conditioned on class labels", "text": ", conditioned on captions"}
    size = f" with {run.summary['parameters']:,} parameters" if "parameters" in run.summary else ""
    able = capabilities_of(run.summary)
    what = "makes images" if "sample" in able else "makes no images"
    what = "turns images into latents and back" if {"encode", "decode"} <= {*able} and "sample" not in able else what
    what = "tells how well texts fit images" if "score_text" in able and "sample" not in able else what
    what = "tells the class of noisy images, to guide diffusion runs" if "classify" in able else what
    what = "makes small images larger" if "upscale" in able else what
    what = "turns images of one side of the data into the other" if "translate" in able else what
    told = (f"`{recipe_of(run)}` ({run.family}){size}, trained on `{data_of(run)}`"
            f"{conditions.get(condition_of(run), '')}: it {what}. Made with aigc, study `{run.study}`.")
    if run.status == "finished":
        return told
    ended = {"stopped": "was stopped before its budget was spent", "failed": "failed",
             "running": "had not finished when this was written"}.get(run.status, "left no record of how it ended")
    reason = f" ({str(run.summary['reason']).splitlines()[0]})" if run.summary.get("reason") else ""
    return f"{told}\n\n**This run {ended}{reason}.** What follows is how far it got."


def pictures(run: Run) -> str:
    """The last of each kind of sample grid, as links into the folder."""
    rows = []
    for key, found in run.samples.items():
        images = max(found)
        title = "Samples" if key == "samples" else f"`{key}`"
        rows.append(f"{title} after {counted(images, 'image')}:\n\n![{key}](samples/{found[images].name})")
    return "\n\n".join(rows)


def training(run: Run) -> str:
    """The command as typed, and a table of facts about the training."""
    summary = run.summary
    lines = [command("train", run.overrides)]
    for again in summary.get("resumes", []):
        lines.append(f"{command('train', again['overrides'])}  # after {counted(again['images'], 'image')}")
    budget = {name: value for name, value in (summary.get("budget") or {}).items() if value is not None}
    versions = ", ".join(f"{name} {version}" for name, version in (summary.get("versions") or {}).items())
    speed, memory = summary.get("images_per_second"), summary.get("peak_memory_mb")
    facts = facts_of(summary.get("data"))
    rows = {
        "budget": " or ".join(f"{value:,} {name}" for name, value in budget.items()),
        "images seen": f"{summary['images']:,}" if "images" in summary else "",
        "minutes of training": f"{summary['seconds'] / 60:.2f}" if "seconds" in summary else "",
        "of these for stages": ", ".join(f"{name} {seconds / 60:.2f}" for name, seconds in run.stages.items()),
        "images a second": f"{speed:,}" if speed else "",
        "training images": facts,
        "classes": names_of(summary.get("data")),
        "images a step": str(summary.get("global_batch", "")),
        "peak memory": f"{memory:,.0f} MiB" if memory else "",
        "precision": str(summary.get("precision", "")),
        "devices": str(summary.get("devices", "")),
        "machine": str(summary.get("machine", "")),
        "seed": str(summary.get("seed", "")),
        "versions": versions,
        "commit": str(summary.get("git_commit") or ""),
        "started": str(summary.get("started", "")),
        "configuration": f"`.hydra/config.yaml`, signature `{summary['signature']}`" if "signature" in summary else "",
    }
    return f"{commands(lines)}\n\n{table(['', ''], [[name, value] for name, value in rows.items() if value])}"


def facts_of(data: Any) -> str:
    """Number, size and kind of the training images."""
    if not isinstance(data, Mapping):
        return ""
    height, width = data["size"]
    held = ", ".join(f"{n:,} {name}" for name, n in data["images"].items() if name != "train")
    held = f" ({held})" if held else ""
    classes = f", {counted(data['classes'], 'class')}" if data["classes"] else ""
    return f"{data['images']['train']:,}{held}, {height} x {width}, {counted(data['channels'], 'channel')}{classes}"


def names_of(data: Any) -> str:
    """The class names by number; of many, the first ones."""
    names = data.get("class_names") if isinstance(data, Mapping) else None
    names = [str(name) for name in names or []]
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")


def last_scores(run: Run) -> list[str]:
    """The scores at the end of training, how they were measured, and the best one; empty without scores."""
    scores, protocol = run.summary.get("scores") or {}, run.summary.get("protocol") or {}
    more = remarks(run.summary)
    if not scores.get("last"):
        return ["## Scores", more] if more else []
    second: Any = protocol.get("second")
    said = f"At the end of training. Measured with: {describe(protocol)}."
    if protocol.get("floor"):
        floor = number(protocol["floor"])
        said += f" The floor, the distance of as many real test images to the same reference: {floor}."
    if isinstance(second, Mapping) and second.get("metric"):
        said += f" `{second['metric']}` and its like: {describe(measured(second['metric'], protocol))}"
        said += f"; the floor: {number(second['floor'])}." if second.get("floor") else "."
    if scores.get("best") is not None:
        said += f" Best `{scores['monitor']}` on the way: {number(scores['best'])} (`checkpoints/best.ckpt`)."
    idle = {name.replace("identity/", ""): value for name, value in scores["last"].items() if "identity/" in name}
    rows = [[f"`{name}`", number(value), *([number(idle[name]) if name in idle else ""] if idle else [])]
            for name, value in scores["last"].items() if "identity/" not in name]
    return ["## Scores", table(["score", "value", *(["without translation"] if idle else [])], rows), said,
            *([more] if more else [])]


def remarks(record: Mapping[str, Any]) -> str:
    """What to think of the scores of a record, and why it lacks others, as a list; empty where it says nothing."""
    lines = [f"- {note}" for note in notes_of(record)]
    lines += [f"- No {', '.join(f'`{name}`' for name in names)}: {reason}"
              for reason, names in by_reason(missing_of(record)).items()]
    return "\n".join(lines)


def evaluation(record: Mapping[str, Any], scores: Sequence[Score]) -> list[str]:
    """Heading, table and protocol of one record of `aigc.evaluate`."""
    target, interval, sampling = (record.get(key) or {} for key in ("target", "interval", "sampling"))
    entries, rows = record.get("scores") or {}, []
    for score in scores:
        known = score.low is not None and score.high is not None
        span = f"{number(score.low)} to {number(score.high)}" if known else ""  # type: ignore[arg-type]
        floor = entries[score.name].get("floor")
        rows.append([f"`{score.name}`", number(score.value), span, number(floor) if floor is not None else "",
                     describe(score.shown)])
    said = []
    if interval.get("method"):
        said.append(f"Intervals: {interval['method']}, level {interval.get('level')}.")
    evaluations = sampling.get("evaluations")
    if sampling.get("seconds_per_image") is not None:
        said.append(f"Sampling: {evaluations} network evaluation{'s' * (evaluations != 1)} and "
                    f"{sampling['seconds_per_image']:.4g} seconds an image.")
    seen = f" after {counted(target['images'], 'image')}" if target.get("images") else ""
    head = ["score", "value", "interval", "floor", "measured with"]
    return [f"## Evaluation of {target.get('checkpoint')}{seen}", table(head, rows), " ".join(said), remarks(record)]


def usage(run: Run) -> str:
    """Commands that work as written, from the folder where the run was started."""
    folder, here = run.folder.resolve(), Path.cwd()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    lines = [f"run={shlex.quote(str(shown))}    # this folder"]
    able = capabilities_of(run.summary)
    if "translate" in able:
        lines.append('python -m aigc.edit task=translate run="$run" images=photos out=translated')
    elif "upscale" in able and "sample" not in able:
        lines.append('python -m aigc.edit task=upscale run="$run" images=photos out=upscaled')
    elif "sample" in able:
        names = (run.summary.get("data") or {}).get("class_names") or ["0"]
        label = f" label={shlex.quote(str(names[0]))}"
        condition = {"label": label, "text": ' text="..."'}.get(condition_of(run), "")
        lines.append(f'python -m aigc.generate run="$run" n=64 out=images seed=0{condition}')
    elif "score_text" in able:
        lines.append('python -m aigc.search clip="$run" images=photos text="..."')
    elif "classify" in able:
        lines.append('python -m aigc.generate run="$diffusion" classifier="$run" label=0    # a run on the same data')
    budget = {name: value for name, value in (run.summary.get("budget") or {}).items() if value}
    spent = run.status == "finished"
    more = "".join(f" budget.{name}={2 * value}" for name, value in budget.items() if spent)
    lines += ['python -m aigc.evaluate run="$run"', f'python -m aigc.train resume="$run"{more}']
    return commands(lines)


def licence(run: Run) -> str:
    """The data's licence, as far as it is known."""
    data = run.summary.get("data")
    stated = data.get("licence") if isinstance(data, Mapping) else None
    said = f"Training data `{data_of(run)}`: {stated or 'licence not known here'}."
    return f"{said} No licence is set for the weights: whoever trained them decides, within the data's licence."


def command(verb: str, overrides: Sequence[str]) -> str:
    """A command line, quoted for a shell."""
    return " ".join(["python -m", f"aigc.{verb}", *(shlex.quote(shown(override)) for override in overrides)])
