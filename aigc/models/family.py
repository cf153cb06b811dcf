"""What all families of generators share: the contract that metrics, samples, resume and generate rely on."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities.parsing import save_hyperparameters
from torch import Tensor, nn

from aigc.errors import UserError, choices
from aigc.models.options import flat_options
from aigc.networks.ema import EMA
from aigc.networks.pretrained import Pretrained
from aigc.runs.progress import Progress
from aigc.wording import counted

Batch = dict[str, Any]
CAPABILITIES = {                                           # methods that tools ask for, and what a family then does
    "sample": "makes images from noise",
    "translate": "turns images into images",
    "restore": "restores degraded images",
    "upscale": "makes small images larger",
    "encode": "turns images into latents",
    "decode": "turns latents into images",
    "tokenize": "turns images into codes",
    "score_text": "tells how well texts fit images",       # and has `embed_images` and `embed_texts`: unit vectors
    "classify": "tells the class of noisy images",
    "denoise": "tells the expected image behind a noisy one",
    "complete": "draws codes of images anew",
    "describe": "says what images show",
}


class Family(L.LightningModule):
    """A generator family.

    A subclass keeps its hyper-parameters plain (`save_hyperparameters()`), so that its checkpoint loads with
    `weights_only=True`, and defines

    - `training_step(batch, batch_idx) -> dict`: scalars by name; every entry is averaged and logged. With automatic
      optimization the entry `loss` is minimized; the others are detached.
    - `validation_step(batch, batch_idx) -> dict`: scalars on held-out images, averaged by the scores callback; also
      vectors, which `held_out(means)` turns into scalars once they are averaged over all images.
    - what it can do: methods of the names in `CAPABILITIES`, such as
      `sample(n, *, condition, seeds, **options) -> Tensor`: images `(n, c, h, w)` in [-1, 1].
    """

    accepts: ClassVar[tuple[str, ...]] = ("images",)       # kinds of batches it can learn from
    conditions: ClassVar[tuple[str, ...]] = ("none", "label")  # what its images can be conditioned on
    find_unused_parameters: ClassVar[bool] = False         # DDP: a step leaves parameters out (adversarial families)
    parts: ClassVar[dict[str, tuple[str, ...]]] = {}       # options that are trained runs (models/parts.py), each with
                                                           # the options that count only where there is one
    required: ClassVar[dict[str, str]] = {}                # those of `parts` that there must be: how to train one
    reconstructs: ClassVar[bool] = False                   # `fakes` are held-out images again, not samples: scored
                                                           # as reconstruction/<score>, pair by pair too
    encodes_by_search: ClassVar[bool] = False              # `encode` optimizes for each image, for seconds: no first
                                                           # stage
    sharded: ClassVar[tuple[str, ...]] = ()                # networks that trainer=fsdp may shard (training/sharded.py)
    least_batch: int = 1                                   # smallest batch per device
    hparams: Any                                           # Lightning's, readable as attributes

    def __init__(self) -> None:
        super().__init__()
        self.progress = Progress()
        self.class_names: list[str] | None = None          # of the labels it was trained on; None: not known
        self.learned_through: dict[str, str] = {}          # SHA-256 of pretrained networks, by name
        self._rates: list[tuple[dict, float]] | None = None

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's; in a constructor marked `@grouped` it keeps the flat options of the configuration."""
        caller, options = inspect.currentframe(), flat_options(self)
        kwargs.setdefault("frame", caller.f_back if caller is not None else None)
        if options is None:
            super().save_hyperparameters(*args, **kwargs)
        else:
            self._log_hyperparams = kwargs.pop("logger", True)
            save_hyperparameters(self, *args, given_hparams=options, **kwargs)

    # ---- what it can do ----

    @classmethod
    def can(cls, capability: str) -> bool:
        """Whether the family has a capability: whether its class defines the method of this name."""
        assert capability in CAPABILITIES, capability
        method = getattr(cls, capability, None)
        return method is not None and method is not getattr(Family, capability, None)

    @classmethod
    def capabilities(cls) -> list[str]:
        """The capabilities that the family has."""
        return [name for name in CAPABILITIES if cls.can(name)]

    @classmethod
    def score_prefix(cls) -> str:
        """What stands before the names of its scores: those of reconstructions are not those of samples."""
        return "reconstruction/" if cls.reconstructs else ""

    @classmethod
    def does(cls) -> str:
        """What it does first of all, in words that follow its name."""
        return next((CAPABILITIES[name] for name in cls.capabilities()), "makes no images")

    @classmethod
    def makes_images(cls) -> bool:
        """Whether there are images to show and to score; a family without any has its losses alone."""
        return cls.can("sample") or cls.fakes is not Family.fakes

    @property
    def condition(self) -> str:
        """What its images are conditioned on: none, label or text."""
        return self.hparams.get("condition", "none")

    # ---- what the metrics compare ----

    def sample(
        self, n: int, *, condition: Any = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1]; image k depends on `seeds[k]`, `condition[k]` and `options` alone."""
        raise UserError(f"{type(self).__name__} {self.does()}: it cannot make them from noise")

    def condition_of(self, batch: Batch) -> Any:
        """The part of a batch that conditions this family, or None."""
        return None if self.condition == "none" else batch[self.condition]

    def fakes(self, batch: Batch, *, seeds: Sequence[int] | None = None) -> Tensor:
        """Generated images for a batch, `(n, c, h, w)` in [-1, 1]; by default samples for the batch's conditions."""
        return self.sample(len(self.reals(batch)), condition=self.condition_of(batch), seeds=seeds)

    def reals(self, batch: Batch) -> Tensor:
        """What `fakes(batch)` should look like, `(n, c, h, w)` in [-1, 1]."""
        return batch["image"]

    def panels(self, batch: Batch) -> dict[str, Any]:
        """Further pictures to draw as grids, by name, e.g. reconstructions beside their inputs; none by default.

        Images `(n, c, h, w)` in [-1, 1], or a pair of them and options of `images.grids.grid`, such as its captions.
        """
        return {}

    def held_out(self, means: dict[str, Any]) -> dict[str, float]:
        """The scores that means over held-out images of what `validation_step` returns come to, e.g. a perplexity."""
        return means

    @classmethod
    def check_parts(cls, options: Mapping[str, Any]) -> None:
        """Refuses options of `model` without a trained run that the family cannot do without.

        Raises:
            UserError: says how to train one.
        """
        for name, how in cls.required.items():
            if options.get(name) is None:
                raise UserError(f"{cls.__name__} stands on a trained run, and model.{name} names none: {how}")

    @classmethod
    def texts_read(cls, options: dict[str, Any], captions: Sequence[str]) -> Sequence[str]:
        """The texts that it reads in training with these options of `model`, for its vocabulary: the captions."""
        return captions

    def check_options(self, options: dict[str, Any], known: Sequence[str]) -> None:
        """Refuses an option that `sample` does not know.

        Raises:
            UserError: names the nearest known options.
        """
        for name in options:
            if name not in known:
                raise UserError(f"{type(self).__name__} has no sampling option '{name}': {choices(name, known)}")

    # ---- a step: backward, rates and averages ----

    def setup(self, stage: str) -> None:
        """Loads the pretrained networks that it learns through, before any work; runs inside learned through theirs.

        Raises:
            UserError: the weights of one are not there.
        """
        for module in self.modules():
            if isinstance(module, Pretrained):
                module.load()
                self.learned_through[module.network] = str(module.sha256)
        for name in self.parts:
            inside = getattr(getattr(self, name, None), "family", None)
            self.learned_through |= {} if inside is None else inside.learned_through

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, outside autocast, which would lower float32 parts of a backward pass (PyTorch's AMP recipe)."""
        with torch.autocast(self.device.type, enabled=False):
            super().manual_backward(loss, *args, **kwargs)

    def rate_factor(self) -> float:
        """The current factor of all learning rates: linear warm-up in images, then linear decay to 0 by the budget.

        Reads the hyper-parameters `warmup_images` (0: none) and `decay_from` (share of the budget after which the
        rate falls linearly to zero; 1: constant).
        """
        warmup, decay_from = self.hparams.get("warmup_images", 0), self.hparams.get("decay_from", 1.0)
        rise = min(1.0, (self.progress.images + 1) / warmup) if warmup else 1.0
        fall = (1 - self.progress.fraction) / (1 - decay_from) if decay_from < 1 else 1.0
        return rise * min(1.0, max(0.0, fall))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets every optimizer's learning rate for this step."""
        if self._rates is None:
            groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
            for group in groups:
                group.setdefault("initial_lr", group["lr"])
            self._rates = [(group, group["initial_lr"]) for group in groups]
        factor = self.rate_factor()
        for group, rate in self._rates:
            group["lr"] = rate * factor

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """With automatic optimization: clips the norm of all gradients at the recipe's `clip`, where it has one."""
        limit = self.hparams.get("clip")
        if not limit:
            return
        scaler = getattr(getattr(self._trainer, "precision_plugin", None), "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            limit *= scaler.get_scale()                    # fp16: a fused step unscales gradients later, by itself
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, limit, foreach=True)

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """Pairs (average, averaged network); the EMA callback updates them after every step."""
        return []

    def learned_images(self) -> list[int | None]:
        """Images that the network of each of `averages` has learned from; None: none of the last step's."""
        return [self.progress.images] * len(self.averages())

    def sampling_networks(self) -> list[nn.Module]:
        """The networks whose evaluations count as the cost of a sample; by default the first averaged one."""
        return [average.network for average, _ in self.averages()[:1]]

    def judges(self) -> list[nn.Module]:
        """The networks that training alone needs: a later run that uses this one keeps none of them."""
        return []

    # ---- checkpoints ----

    def fingerprints(self) -> dict[str, str | None]:
        """SHA-256 of the weights of each trained run inside, by its option; None: an option that does not count."""
        found: dict[str, str | None] = {}
        for name, further in self.parts.items():
            part = getattr(self, name)
            found |= dict.fromkeys((name, *further)) if part is None else {name: part.fingerprint}
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a reader without the config needs: the family, the names of its classes and its progress."""
        checkpoint["family"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["progress"] = self.progress.state_dict()
        checkpoint["learned_through"] = self.learned_through
        checkpoint["class_names"] = None if self.class_names is None else [str(name) for name in self.class_names]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continues the counts of images and seconds from the checkpoint; older checkpoints name no classes.

        Raises:
            UserError: the number of classes that it names is not the model's.
        """
        self.progress.load_state_dict(checkpoint["progress"])
        self.learned_through = dict(checkpoint.get("learned_through", {}))
        names, classes = checkpoint.get("class_names"), self.hparams.get("classes")
        if names is None:
            return
        if not isinstance(names, list) or len(names) != classes:
            raise UserError(f"the checkpoint does not name {counted(classes or 0, 'class')}, as many as its "
                            f"{type(self).__name__} knows: give one that training wrote")
        self.class_names = [str(name) for name in names]

    @staticmethod
    def seeds_or_fresh(n: int, seeds: Sequence[int] | None) -> list[int]:
        """`seeds`, checked to number n, or n fresh ones from torch's global generator."""
        if seeds is None:
            return torch.randint(2**62, (n,)).tolist()
        assert len(seeds) == n, f"{len(seeds)} seeds for {n} images"
        return list(seeds)


class Translator(Family):
    """A family that turns images into images of another domain (unpaired data) or into their targets (paired).

    A subclass declares its `directions`; `averages` holds their generators in the same order. `a2b` reads the
    batch's first image and predicts its second: `a` and `b` of unpaired data, `source` and `target` of paired data.
    """

    accepts: ClassVar[tuple[str, ...]] = ("unpaired",)
    conditions: ClassVar[tuple[str, ...]] = ("none",)
    directions: ClassVar[tuple[str, ...]] = ("a2b", "b2a")

    @torch.no_grad()
    def translate(self, images: Tensor, *, direction: str = "a2b", seeds: Sequence[int] | None = None) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1], of any size, translated by the averaged generator of `direction`.

        In float32. The translation of an image depends on no other image and on no seed.

        Raises:
            UserError: a direction that this family was not trained for.
        """
        self.check_direction(direction)
        average = self.averages()[self.directions.index(direction)][0]
        with torch.autocast(self.device.type, enabled=False):
            return average(images.to(self.device, torch.float32))

    def check_direction(self, direction: str) -> None:
        """Refuses a direction that this family does not translate in.

        Raises:
            UserError: names the known directions.
        """
        if direction not in self.directions:
            known = choices(direction, self.directions)
            raise UserError(f"{type(self).__name__} was not trained for direction={direction}: {known}")

    @staticmethod
    def sides(batch: Batch, direction: str = "a2b") -> tuple[Tensor, Tensor]:
        """The input and the wanted output of an unpaired or a paired batch."""
        first, second = (batch["a"], batch["b"]) if "a" in batch else (batch["source"], batch["target"])
        return (first, second) if direction == "a2b" else (second, first)

    def beside(self, batch: Batch) -> dict[str, Any]:
        """What of a batch `translate` reads besides the images, `(n, ...)` each, by keyword; nothing by default."""
        return {}

    def fakes(self, batch: Batch, *, seeds: Sequence[int] | None = None) -> Tensor:
        """The first side of a batch, translated."""
        return self.translate(self.sides(batch)[0], seeds=seeds, **self.beside(batch))

    def reals(self, batch: Batch) -> Tensor:
        """The second side of a batch."""
        return self.sides(batch)[1]
