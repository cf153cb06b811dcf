"""Loggers: metrics.jsonl, always, and Weights & Biases, offline unless logged in. Both log images seen and time."""

import json
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from aigc.errors import RunError, UserError, choices
from aigc.files import atomic
from aigc.runs.progress import Progress
from aigc.runs.protocol import measured

MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")        # W&B's values of WANDB_MODE


def progress_of(metrics: Mapping[str, float], progress: Progress | None) -> dict[str, float]:
    """`metrics`, preceded by the images seen and the training seconds."""
    if progress is None:
        return dict(metrics)
    return {"images": progress.images, "seconds": round(progress.seconds, 3), **metrics}


class JsonLines(Logger):
    """`<run>/metrics.jsonl`: one object per line with step, images (seen), seconds (of training) and the scalars."""

    def __init__(self, folder: str | Path):
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"
        self.progress: Progress | None = None
        self.rewind_to: int | None = None  # images of a resumed run: later lines are written again

    name = "jsonl"
    version = ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one line."""
        self.rewind()
        line = json.dumps({"step": step, **progress_of(metrics, self.progress)})
        try:
            with open(self.path, "a") as file:
                file.write(line + "\n")
        except OSError as error:
            sentence = f"{self.path} could not be written ({error.strerror}): make room and resume the run"
            raise RunError(sentence) from error

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration is in .hydra/."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Also rewinds for a resumed run with nothing left to do; a refused one changes nothing."""
        if status == "success":
            self.rewind()

    def rewind(self) -> None:
        """Drops, once, the lines after `rewind_to` images: when training continues, after it may have been refused.

        Raises:
            RunError: the folder does not take the file; the lines are as they were.
        """
        images, self.rewind_to = self.rewind_to, None
        if images is None or not self.path.exists():
            return
        try:
            kept = [line for line in self.path.read_text().splitlines() if _images(line) <= images]
            atomic.write(self.path, "".join(line + "\n" for line in kept))
        except OSError as error:
            raise RunError(f"{self.path} could not be cut back to the {images:,} images that the run resumes from "
                           f"({error.strerror}), and is as it was: make room and resume the run") from error


def _images(line: str) -> float:
    try:
        return json.loads(line).get("images", 0)
    except json.JSONDecodeError:  # a line truncated by a kill
        return float("inf")


class Wandb(WandbLogger):
    """Weights & Biases: charts over images seen or training minutes, sample grids, scores, and the checkpoint.

    Runs of a study share a group and are tagged with the recipe (`model=`) and the data's name. At the end, the run's
    status and best score become columns of W&B's table of runs, and the scores with their protocol a table.

    Args:
        folder: the run folder; W&B's own files go to `<folder>/wandb`.
        offline: `auto` is offline unless there is an API key or a login; WANDB_MODE, if set, decides. Never prompts.
        checkpoint: whether to upload best.ckpt and the model card as an artifact at the end; online only.
        run_id: the W&B run to continue, or None for a new one.
        recipe: the name of the recipe, as in `model=`.
        data: the data's name.

    Raises:
        UserError: WANDB_MODE is not a mode of W&B.
    """

    def __init__(
        self,
        folder: str,
        *,
        project: str = "aigc",
        group: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        offline: bool | str = "auto",
        checkpoint: bool = True,
        run_id: str | None = None,
        recipe: str | None = None,
        data: str | None = None,
    ):
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("offline" if not logged_in() else "online")
        if mode not in MODES:
            raise UserError(f"WANDB_MODE={mode} is not a W&B mode: {choices(mode, MODES)}")
        if offline != "auto":
            mode = "offline" if offline else "online"
        super().__init__(
            name=name or Path(folder).name,
            save_dir=folder,
            project=project,
            id=run_id,
            group=group,
            tags=[tag[:64] for tag in dict.fromkeys([recipe, data, *(tags or [])]) if tag],  # W&B's limit
            mode=mode,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._wandb_init.pop("anonymous", None)  # Lightning still passes it, but W&B has removed it and warns
        self.folder = Path(folder)
        self.facts = {"recipe": recipe, "dataset": data}  # columns to group W&B's table of runs by
        self.keeps_checkpoint = checkpoint and mode == "online"
        self.progress: Progress | None = None

    @property
    def experiment(self) -> Any:
        """The W&B run; the x axis of its charts is images seen, and can be changed to minutes.

        Raises:
            UserError: W&B refuses the run.
        """
        import wandb

        fresh = self._experiment is None
        try:
            run = super().experiment
        except wandb.errors.Error as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            advice = "change what it names" if not isinstance(error, wandb.errors.CommError) else (
                "give logger.wandb.offline=true and use wandb sync later")
            raise UserError(f"W&B refused the run ({reason}): {advice}") from error
        if fresh:
            for axis in ("images", "minutes", "seconds", "trainer/global_step"):
                run.define_metric(axis, hidden=True)  # an axis of other charts, not a chart itself
            run.define_metric("*", step_metric="images")
        return run

    @rank_zero_only
    def begin(self, config: Mapping[str, Any]) -> str:
        """Opens the run with its configuration, `recipe` and `dataset`; returns its W&B id.

        Raises:
            UserError: W&B refuses the run.
        """
        self.experiment.config.update({**config, **self.facts}, allow_val_change=True)  # a budget may change
        return str(self.experiment.id)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: Lightning passes the model's options, which the configuration already holds."""

    def _stand(self) -> dict[str, float]:
        """Images seen, and training time in seconds and minutes."""
        stand = progress_of({}, self.progress)
        return {**stand, "minutes": round(stand["seconds"] / 60, 4)} if stand else {}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs scalars beside images, seconds and minutes."""
        super().log_metrics({**self._stand(), **metrics}, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Logs pictures beside images, seconds and minutes; `images` are paths or arrays."""
        import wandb

        stand = self._stand()
        caption = f"{stand['images']:,} images, {stand['minutes']:.1f} minutes" if stand else None
        self.experiment.log({**stand, key: [wandb.Image(image, caption=caption) for image in images]})

    @rank_zero_only
    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Closes the W&B run, so that the next job of this process starts its own.

        Args:
            summary: the run's end, as in summary.json; None if the run was refused and nothing should be added.
        """
        if self._experiment is None:
            return
        if summary is not None:
            self._add_outcome(self._experiment, summary)
        self._experiment.finish(exit_code=int(summary is None or summary["status"] == "failed"))
        self._experiment = None

    def _add_outcome(self, run: Any, summary: Mapping[str, Any]) -> None:
        import wandb

        scores = summary.get("scores") or {}
        columns = ("status", "reason", "images_per_second", "parameters", "peak_memory_mb")
        facts = {name: summary[name] for name in columns if summary.get(name) is not None}
        if scores.get("best") is not None:
            facts[f"best/{scores['monitor']}"] = scores["best"]
        rows = score_rows(scores.get("last") or {}, summary.get("protocol") or {})
        if rows:
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            run.log({**self._stand(), "scores": table})
        run.summary.update(facts)
        best = self.folder / "checkpoints" / "best.ckpt"
        if self.keeps_checkpoint and best.is_file():
            facts["images"] = summary["images"]
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=facts)
            for file in (best, self.folder / "README.md"):
                if file.is_file():
                    artifact.add_file(str(file))
            run.log_artifact(artifact, aliases=["latest", "best"])


def score_rows(scores: Mapping[str, float], protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per score: its value, its floor if it is the distance that has one, and how it was measured."""
    keys = ("network", "network_sha256", "num_samples", "num_reals", "resizer", "data", "split")
    rows = []
    for name, value in scores.items():
        own = measured(name, protocol)
        floor = {own.get("metric"): "floor", f"final/{own.get('metric')}": "floor_final"}.get(name, "")
        rows.append({"score": name, "value": value, "floor": own.get(floor), **{key: own.get(key) for key in keys}})
    return rows


def logged_in() -> bool:
    """Whether W&B would find credentials: an API key in the environment or a login in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if path and Path(path).expanduser().is_file():
            try:
                return netrc.netrc(str(Path(path).expanduser())).authenticators(host) is not None
            except (netrc.NetrcParseError, OSError):
                return False
    return False
