"""Loggers: metrics.jsonl, always, and Weights & Biases, offline unless logged in. Both carry images and seconds."""

import json
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from aigc.errors import RunError
from aigc.progress import Progress


def progress_of(metrics: Mapping[str, float], progress: Progress | None) -> dict[str, float]:
    """`metrics` with the images seen and the training seconds in front."""
    if progress is None:
        return dict(metrics)
    return {"images": progress.images, "seconds": round(progress.seconds, 3), **metrics}


class JsonLines(Logger):
    """`<run>/metrics.jsonl`: one object a line with step, images (seen), seconds (of training) and the scalars."""

    def __init__(self, folder: str | Path):
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"
        self.progress: Progress | None = None

    name = "jsonl"
    version = ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one line."""
        line = json.dumps({"step": step, **progress_of(metrics, self.progress)})
        try:
            with open(self.path, "a") as file:
                file.write(line + "\n")
        except OSError as error:
            sentence = f"{self.path} could not be written ({error.strerror}): make room and resume the run"
            raise RunError(sentence) from error

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration stands in .hydra/."""

    @rank_zero_only
    def rewind(self, images: int) -> None:
        """Drops the lines after `images`, which a resumed run writes again."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _images(line) <= images]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, self.path)


def _images(line: str) -> float:
    try:
        return json.loads(line).get("images", 0)
    except json.JSONDecodeError:  # the line that a kill cut off
        return float("inf")


class Wandb(WandbLogger):
    """Weights & Biases with images seen as the x axis.

    Args:
        folder: the run folder; W&B's own files go to `<folder>/wandb`.
        offline: `auto` is offline unless an API key or a login is there; WANDB_MODE, if set, decides. Never a prompt.
        run_id: the W&B run to go on with, or None for a new one.
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
        run_id: str | None = None,
    ):
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("offline" if not logged_in() else "online")
        if offline != "auto":
            mode = "offline" if offline else "online"
        super().__init__(
            name=name or Path(folder).name,
            save_dir=folder,
            project=project,
            id=run_id,
            group=group,
            tags=tags,
            mode=mode,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._wandb_init.pop("anonymous", None)  # Lightning still passes it, and W&B warns that it is gone
        self.progress: Progress | None = None

    @property
    def experiment(self) -> Any:
        """The W&B run; its charts are drawn over the images seen."""
        fresh = self._experiment is None
        run = super().experiment
        if fresh:
            run.define_metric("images")
            run.define_metric("*", step_metric="images")
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs scalars beside images and seconds."""
        super().log_metrics(progress_of(metrics, self.progress), step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Logs pictures beside images and seconds; `images` are paths or arrays."""
        import wandb

        self.experiment.log({**progress_of({}, self.progress), key: [wandb.Image(image) for image in images]})

    @rank_zero_only
    def finish(self, failed: bool) -> None:
        """Closes the W&B run, so that the next job of this process starts its own."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None


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
