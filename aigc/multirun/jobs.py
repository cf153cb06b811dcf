"""Jobs of a multirun: each a `python -m aigc.train` with exactly its own overrides, in its own folder."""

import copy
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from aigc.config.schema import TrainConfig, check_closed, to_plain
from aigc.config.untrusted import read_config
from aigc.config.words import as_typed, override
from aigc.errors import UserError
from aigc.multirun.ledger import Ledger
from aigc.runs.resume import AUTOMATIC
from aigc.runs.summary import read_summary, signature
from aigc.training import launch

NOT_FOR_JOBS = ("hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher", "hydra.mode", "hydra.run",
                "hydra.output_subdir")  # what concerns the multirun as a whole
UNSAVED = ("metrics.jsonl", "summary.json", "samples", "wandb", ".hydra")  # of a run that never came to a checkpoint


@dataclass
class Job:
    """One job: `overrides` as Hydra writes them, `words` what else its command line needs (hydra.*, --config-dir),
    `trainer` and `budget` its options of those names, `shown` the overrides that tell it from the others.
    """

    number: int
    overrides: list[str]
    folder: Path
    signature: str
    trainer: dict[str, Any]
    budget: dict[str, Any] = field(default_factory=dict)
    shown: str = ""
    words: list[str] = field(default_factory=list)
    settled: frozenset[str] = frozenset()           # signatures that condition=auto may have come to

    @classmethod
    def of(cls, config: Any, hydra: Any, *, shared: frozenset[str] = frozenset()) -> "Job":
        """The job of a composed configuration; Hydra's own configuration is that of the job meanwhile.

        Args:
            config: without `hydra`.
            hydra: the `hydra` node.
            shared: overrides that all jobs have, which need not be shown.

        Raises:
            UserError: it has an option that does not exist.
        """
        check_closed(config, TrainConfig)
        plain = to_plain(config)
        words = [str(word) for word in hydra.overrides.hydra if not str(word).lstrip("+~").startswith(NOT_FOR_JOBS)]
        overrides = [str(word) for word in hydra.overrides.task]
        return cls(
            number=hydra.job.num,
            overrides=overrides,
            folder=(Path(hydra.sweep.dir) / hydra.sweep.subdir).resolve(),
            signature=signature(plain),
            settled=frozenset(signature({**plain, "condition": c}) for c in AUTOMATIC if plain["condition"] == "auto"),
            trainer=plain["trainer"],
            budget=plain["budget"],
            shown=" ".join(word for word in overrides if word not in shared),
            words=[*words, *launch.config_dirs(hydra)],
        )

    @property
    def finished(self) -> bool:
        """Whether its run is complete.

        Raises:
            UserError: its folder holds a run with another configuration.
        """
        summary = read_summary(self.folder)
        finished = summary.get("status") == "finished"
        if not finished and not self.checkpoint.is_file():  # nothing of it is kept
            return False
        saved = self.folder / ".hydra" / "config.yaml"
        budget = to_plain(read_config(saved), resolve=False).get("budget") if saved.is_file() else self.budget
        if summary.get("signature", self.signature) not in (self.signature, *self.settled) or budget != self.budget:
            raise UserError(
                f"'{self.folder}' holds a run whose configuration has changed since: choose another "
                "hydra.sweep.dir"
            )
        return finished

    @property
    def checkpoint(self) -> Path:
        """The checkpoint its run resumes from."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of a job before it runs."""
        return {"folder": self.folder.name, "overrides": self.overrides, "shown": self.shown}

    def command(self) -> list[str]:
        """The command line: of a new run, or of one that resumes from its last checkpoint."""
        start = [sys.executable, "-m", "aigc.train", *self.words, "hydra.mode=RUN"]
        if self.checkpoint.is_file() and (self.folder / ".hydra" / "config.yaml").is_file():
            return [*start, f"resume={self.folder}"]
        for name in UNSAVED:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        typed = [as_typed(word) for word in self.overrides]
        return [*start, *typed, override("hydra.run.dir", str(self.folder))]


def compose_batch(loader: Any, config: DictConfig, batch: Sequence[Sequence[str]], number: int) -> list[Job]:
    """The jobs of a batch of overrides, numbered from `number`; `config` is the multirun's."""
    shared = frozenset.intersection(*map(frozenset, batch)) if len(batch) > 1 else frozenset()
    return [compose_job(loader, config, words, k, shared) for k, words in enumerate(batch, number)]


def compose_job(loader: Any, config: DictConfig, words: Sequence[str], number: int, shared: frozenset[str]) -> Job:
    """The job of some overrides, composed as Hydra's own launchers do it."""
    composed = loader.load_sweep_config(config, list(words))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)
    try:
        task = copy.deepcopy(composed)
        with open_dict(task):
            del task["hydra"]
        return Job.of(task, composed.hydra, shared=shared)
    finally:
        HydraConfig.instance().cfg = before


def note_waiting(jobs: Sequence[Job], record: Ledger) -> None:
    """Notes jobs that are still to come.

    Raises:
        UserError: a folder holds a run with another configuration; nothing is noted then.
    """
    for job in [job for job in jobs if not job.finished]:
        record.note(job.number, status="waiting", **job.facts)
