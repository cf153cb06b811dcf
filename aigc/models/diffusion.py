"""Diffusion: DDPM, EDM and flow matching as three settings of one model over a U-Net or a transformer.

Notable:
- What noise does, what the network predicts, samplers and guides live in `aigc/diffusion/`, a file each.
  Any process, any parametrisation, any weighting, any sampler and any guide go together; recipes are
  `conf/model/diffusion.yaml` (flow matching), `ddpm.yaml` and `edm.yaml`, and `dit.yaml` over a transformer (Peebles
  and Xie 2023).
- Training times are stratified over the batch, which quiets the loss.
- Inputs are scaled to unit variance with the data's own standard deviation, measured on the first images seen.
- Classifier-free guidance u + w (c - u) (Ho and Salimans 2022): w = 1 is off and costs one evaluation, w = 0 is
  unconditional. Optionally only between two noise levels (Kynkäänniemi et al. 2024).
- Autoguidance b + w (d - b) (Karras et al. 2024, eq. 3) without a condition: d is the averaged network, b the same
  network as it was early in training, which smooths over what it could not tell apart yet.
- With `first_stage` all of this happens in the latents of a trained autoencoder (Rombach et al. 2022).
- Samples come from the averaged weights, in float32, every image from its own seed.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.conditions import as_tensor, condition_for
from aigc.conditions.text import read_once
from aigc.config.functions import check_known, chosen, options_of
from aigc.diffusion.denoiser import Denoiser, Together
from aigc.diffusion.guides import GIVEN, Guide, acts, autoguidance, classifier_free, guided, guides_named
from aigc.diffusion.parametrisations import WEIGHTINGS, Parametrisation, loss_factor
from aigc.diffusion.resampling import OPTIONS, resampled
from aigc.diffusion.samplers import Denoise, Noise, sampler_named
from aigc.diffusion.schedules import build_process, evenly, path, stratified
from aigc.errors import UserError, choices
from aigc.models.denoisers import ConditionalDenoiser, optimizer_of
from aigc.models.family import Batch
from aigc.models.measured import Measured
from aigc.models.options import Average, Schedule, group, grouped
from aigc.models.parts import LatentSpace, Source
from aigc.networks.ema import EMA
from aigc.noise import SeededNoise, mix

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}
COMMON_OPTIONS = ("sampler", "steps", "spacing", "precision", "guide", "init", "skip", *OPTIONS)
OWN_GUIDES = (classifier_free, autoguidance)  # act by themselves where the model has what they need


@group()
class Objective:
    """What noise does (diffusion/schedules.py), what the network says and errors weigh (parametrisations.py)."""

    process: str                            # flow | ddpm | edm
    processes: dict[str, dict[str, float]]  # options of each process, by its name
    prediction: str                         # what the network says: flow | v | eps | x0 | edm
    weighting: str                          # what an error weighs: own | min_snr | name of a prediction
    min_snr: float                          # gamma of weighting=min_snr
    sigma_data: float | str                 # standard deviation of the images in [-1, 1], or auto
    sigma_images: int                       # auto: how many of the first images it is measured on; latents, too


@group()
class Optimizer:
    """AdamW, and Muon for kernels."""

    lr: float                               # AdamW
    betas: Sequence[float]                  # AdamW
    weight_decay: float                     # of both
    clip: float                             # largest gradient norm; 0: no clipping
    muon_lr: float = 0.0                    # of kernels, or a transformer's matrices, by Muon; 0: by AdamW as the rest


@group()
class Sampling:
    """The recipe's own sampling, each overridden by an option of `sample`."""

    sampler: dict[str, Any]                 # name, steps and options of the sampler and of further guides
    guidance: float                         # guidance scale w; only with a condition
    guidance_interval: Sequence[float] | None  # sigma / alpha between which guidance acts; null: everywhere
    text_sampling: dict[str, Any] | None = None  # with condition=text: other values of these three
    early: float = 0.0                      # condition=none: share of the budget after which b is kept; 0: no b
    autoguidance: float = 1.0               # weight w of autoguidance; 1 is off, and costs one evaluation
    autoguidance_interval: Sequence[float] | None = None  # sigma / alpha between which it acts


class Diffusion(Measured):
    """Denoising diffusion in pixels or latents; the recipe's numbers are in `conf/model/diffusion.yaml`."""

    conditions: ClassVar[tuple[str, ...]] = ("none", "label", "text")
    parts: ClassVar[dict[str, tuple[str, ...]]] = {"first_stage": ("latent_network", "vector_network")}
    sharded: ClassVar[tuple[str, ...]] = ("network",)
    early_kept: Tensor                      # whether `early` holds what it is for

    @grouped
    def __init__(
        self,
        channels: int,                      # image channels
        size: Sequence[int],                # (height, width)
        *,
        classes: int | None = None,         # classes of the data, for condition=label
        vocabulary: list[str] | None = None,  # of the training captions, for condition=text
        condition: str = "none",            # none | label | text
        first_stage: Source | None = None,  # a trained autoencoder's run, whose latents take the images' place
        objective: Objective,
        denoiser: str = "unet",             # unet | dit
        network: dict[str, Any],            # arguments of `UNet`
        dit: dict[str, Any] | None = None,  # arguments of `DiT`
        text: dict[str, Any] | None = None,  # arguments of `TextEncoder`
        text_network: dict[str, Any] | None = None,  # arguments of `UNet` that are others with condition=text
        latent_network: dict[str, Any] | None = None,  # arguments of `UNet` that are others with first_stage
        vector_network: dict[str, Any] | None = None,  # and further ones where its latents are vectors
        drop: float,                        # share of conditions dropped in training, for guidance
        optimizer: Optimizer,
        schedule: Schedule,
        average: Average,
        sampling: Sampling,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.check_parts({"first_stage": first_stage})
        weighting, sampler = objective.weighting, sampling.sampler
        if weighting not in WEIGHTINGS:
            raise UserError(f"There is no model.weighting '{weighting}': {choices(weighting, WEIGHTINGS)}")
        self.process = build_process(
            objective.process, objective.prediction, objective.processes.get(objective.process, {})
        )
        self.check_sampler(sampler.get("name"), {k: v for k, v in sampler.items() if k not in ("name", "steps")})
        if condition == "text":
            network = {**network, **(text_network or {})}
        self.shape = (channels, *size)      # of what is noised and denoised
        first: LatentSpace | None = None
        if first_stage is not None:
            first = LatentSpace(first_stage, channels, size, images=objective.sigma_images)
            self.hparams["first_stage"] = first.description()
            self.shape = first.shape
            vectors = vector_network if self.shape[1:] == (1, 1) else None
            network = {**network, **(latent_network or {}), **(vectors or {})}
        facts = {"classes": classes, "vocabulary": vocabulary}
        self.network = self.told(ConditionalDenoiser(
            denoiser, self.shape, condition=condition, facts=facts, text=text or {},
            network=network if denoiser == "unet" else dit or {},
        ))
        self.first_stage = first            # after the network: training/sharded.py counts parameters from there
        self.ema = EMA(self.network, **vars(average))
        early, autoguidance = sampling.early, sampling.autoguidance
        if not (0 <= early < 1 and (early > 0 or autoguidance == 1)):
            raise UserError(f"model.early={early} does not go with model.autoguidance={autoguidance}: keep the early "
                            "network after a share of the budget between 0 and 1, or set model.autoguidance=1")
        self.early = deepcopy(self.ema.network) if condition == "none" and early else None
        if self.early is not None:
            self.register_buffer("early_kept", torch.tensor(False))  # in the checkpoint: a resumed run keeps its own
        self._keeping = self.early is not None
        self.begin_measuring()

    def told(self, denoiser: ConditionalDenoiser) -> Any:
        """The network that is trained: the denoiser, which a subclass tells more."""
        return denoiser

    def fingerprints(self) -> dict[str, str | None]:
        """Also the options of the denoiser that is not there: they do not count."""
        dit = self.hparams.get("denoiser") == "dit"
        others = ("network", "text_network", "latent_network", "vector_network") if dit else ("denoiser", "dit")
        return super().fingerprints() | dict.fromkeys(others)

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged network."""
        return [(self.ema, self.network)]

    def sampling_networks(self) -> list[nn.Module]:
        """The averaged network and, where it is guided by it, the early one."""
        return [self.ema.network, *([] if self.early is None else [self.early])]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, and Muon for matrices between stem and output."""
        return optimizer_of([self.network], self.hparams)

    # ---- training ----

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the rates, and keeps the early network."""
        super().on_train_batch_start(batch, batch_idx)
        self.keep_early()

    def keep_early(self) -> None:
        """Keeps the averaged network as it is early in training, for autoguidance."""
        if self._keeping and self.progress.fraction >= self.hparams.early:
            self._keeping = False
            if self.early is not None and not self.early_kept:
                self.early.load_state_dict(self.ema.network.state_dict())
                self.early_kept.fill_(True)

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None, drop: Tensor | None = None,
        *further: Tensor,
    ) -> Tensor:
        """The network's output for x_t at times t `(n,)`, float32; its input has unit variance."""
        alpha, sigma = (c[:, None, None, None] for c in self.process.scales(t))
        scale = ((alpha * self.sigma_data()) ** 2 + sigma**2).rsqrt()  # c_in of Karras et al. 2022
        return network(x_t * scale, self.process.clock(t), labels, drop, *further).float()

    def errors(
        self, network: nn.Module, images: Tensor, labels: Tensor | None, *, u: Tensor, noise: Tensor,
        drop: Tensor | None = None,
    ) -> Tensor:
        """Weighted squared errors `(n,)` at the quantiles `u` `(n,)` of the training times, for given noise."""
        h, t = self.hparams, self.process.quantile(u)
        alpha, sigma = (c[:, None, None, None] for c in self.process.scales(t))
        parametrisation = Parametrisation(h.prediction, self.sigma_data())
        prediction = self.predict(network, alpha * images + sigma * noise, t, labels, drop)
        target = parametrisation.target(images, noise, alpha, sigma)
        factor = loss_factor(h.weighting, parametrisation, alpha, sigma, min_snr=h.min_snr)
        return (factor * F.mse_loss(prediction, target, reduction="none")).mean((1, 2, 3))

    def noised(self, batch: Batch, *, measure: bool = False) -> Tensor:
        """What noise is added to `(n, *shape)`: the images, or their latents; `measure` as of `LatentSpace.encode`."""
        images = batch["image"]
        return images if self.first_stage is None else self.first_stage.encode(images, measure=measure)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One denoising step; `loss` is the weighted squared error of the prediction."""
        images, labels = self.noised(batch, measure=True), as_tensor(self.condition_of(batch), self.network.encoder)
        n, device = len(images), images.device
        self.measure(images)
        u = stratified(n, device)
        drop = None if labels is None else torch.rand(n, device=device) < self.hparams.drop
        loss = self.errors(self.network, images, labels, u=u, noise=torch.randn_like(images), drop=drop).mean()
        return {"loss": loss}

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The averaged network's loss; every image has its own fixed time and noise, so that scores compare."""
        images, index = self.noised(batch), batch["index"]
        noise = SeededNoise([mix(int(i)) for i in index], images.device)(*images.shape[1:])
        labels = as_tensor(self.condition_of(batch), self.network.encoder)
        return {"loss": self.errors(self.ema, images, labels, u=evenly(index), noise=noise).mean()}

    # ---- sampling ----

    def check_sampler(self, name: Any, options: dict[str, Any]) -> None:
        """Refuses a sampler that does not exist, or an option that neither it nor a guide takes.

        Raises:
            UserError: names the nearest known ones.
        """
        known = [*options_of(sampler_named(name), given=("noise",)), *COMMON_OPTIONS]
        for guide in (*OWN_GUIDES, *guides_named(options.get("guide"))):
            known += options_of(guide, given=GIVEN)
        check_known(options, known, f"The sampler '{name}'")

    def settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """The recipe's sampling options under `options`; those of the recipe's sampler only for that one.

        Raises:
            UserError: they do not exist, or do not fit a model without a condition or an early network.
        """
        h, recipe = self.hparams, dict(self.hparams.sampler)
        name = options.get("sampler", recipe["name"])
        if name != recipe["name"]:
            recipe = {k: v for k, v in recipe.items() if k not in options_of(sampler_named(recipe["name"]))}
        self.check_sampler(name, {"guide": recipe.get("guide"), **options})
        if self.condition == "none" and options.get("guidance", 1) != 1:
            raise UserError("This model was trained with condition=none: leave guidance out, or train with a label")
        if self.early is None and options.get("autoguidance", 1) != 1:
            raise UserError("This model kept no early network to be guided by: leave autoguidance out, or train with "
                            "condition=none and model.early above 0")
        guidance = {"guidance": h.guidance, "guidance_interval": h.guidance_interval,
                    "autoguidance": h.autoguidance, "autoguidance_interval": h.autoguidance_interval}
        texts = (self.condition == "text" and h.text_sampling) or {}
        settings = {"precision": "float32", "spacing": "own", **guidance, **recipe, **texts, **options}
        if (precision := settings["precision"]) not in PRECISIONS:
            raise UserError(f"There is no sampling precision '{precision}': {choices(precision, PRECISIONS)}")
        return {**settings, "sampler": name}

    @torch.inference_mode(False)  # guides may record gradients
    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        condition: Tensor | Sequence[int] | Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] from the averaged weights.

        Options, each by default the recipe's: `sampler` (ddim, ancestral, euler, heun, dpmpp_2m, or a function by its
        dotted name), `steps`, `spacing` (own, karras, logsnr), `precision` (float32, bf16, float16), `guide` (names of
        further guides), `init` (an image `(c, h, w)` in [-1, 1], or one for each, to start from), `skip` (how many of
        the steps to it are left out, by default half), and the keyword parameters of the sampler and of every guide:
        those of `classifier_free` with a condition, of `autoguidance` without one, e.g. `eta` for ddim, `churn` for
        euler and heun. Image k depends on `seeds[k]`, `condition[k]` and the options alone.

        Raises:
            UserError: an unknown sampler, guide or option, or guidance without a condition.
        """
        settings, seeds = self.settings(options), self.seeds_or_fresh(n, seeds)
        return self.drawn(self.shape, seeds, self.labels(condition, seeds), settings)

    def labels(self, condition: Any, seeds: Sequence[int]) -> Tensor | None:
        """What `condition_for` makes of a condition, on the device."""
        kind, encoder = self.condition, self.network.encoder
        found = condition_for(condition, kind=kind, classes=self.hparams.classes, seeds=seeds, encoder=encoder)
        return None if found is None else found.to(self.device).clone()

    def drawn(
        self, shape: Sequence[int], seeds: Sequence[int], labels: Tensor | None, settings: dict[str, Any],
        *further: Tensor,
    ) -> Tensor:
        """Images in [-1, 1] from noise `(len(seeds), *shape)`; `further`: what the network is told besides."""
        sampler, noise = sampler_named(settings["sampler"]), SeededNoise(seeds, self.device)
        x, points = self.started(noise(*shape), self.points(settings), settings)
        denoise = self.guided(labels, settings, *further, noise=noise)
        special = chosen(sampler, settings, f"The sampler '{settings['sampler']}'", noise=noise)
        reduced = PRECISIONS[settings["precision"]]
        lowered = torch.autocast(self.device.type, dtype=reduced if reduced != torch.float32 else torch.bfloat16,
                                 enabled=reduced != torch.float32)
        with lowered, read_once(self.ema):
            x = resampled(sampler, settings)(denoise, x, points, **special)
        return (x.float() if self.first_stage is None else self.first_stage.decode(x.float())).clamp(-1, 1)

    def started(self, noise: Tensor, points: Tensor, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What sampling starts from, `(n, *shape)`, and its path: noise, or an image in it, and the steps from there.

        Raises:
            UserError: the image is of another shape, or `skip` leaves nothing of it, or nothing to do.
        """
        image, steps = settings.get("init"), len(points) - 1
        skip = settings.get("skip", steps // 2 if image is not None else 0)
        if image is None:
            if skip:
                raise UserError(f"skip={skip} skips steps to a picture that is there already: give init=<picture>")
            return points[0, 1] * noise, points
        if not 0 < skip < steps:
            raise UserError(f"skip={skip} of {steps} steps: give at least 1, or nothing is left of the image to start "
                            f"from, and at most {steps - 1}, or it is left as it is")
        image = image.to(self.device, torch.float32).expand(len(noise), -1, -1, -1).clone()
        image = image if self.first_stage is None else self.first_stage.encode(image)
        if image.shape != noise.shape:
            raise UserError(f"init is an image of shape {tuple(image.shape[1:])}, and this model makes "
                            f"{tuple(noise.shape[1:])}: give one of that shape")
        return points[skip, 0] * image + points[skip, 1] * noise, points[skip:]

    def points(self, settings: dict[str, Any]) -> Tensor:
        """The sampler's path, `(steps + 1, 2)` pairs (alpha, sigma)."""
        return path(self.process, settings["steps"], spacing=settings["spacing"])

    def guided(self, labels: Tensor | None, settings: dict[str, Any], *further: Tensor, noise: Noise) -> Denoise:
        """The denoiser under the model's own guides and those that `settings` name."""
        own: list[Guide] = []
        w, interval = settings.get("guidance", 1.0), settings.get("guidance_interval")
        if labels is not None and w != 1:
            own = [classifier_free]
        elif self.early is not None and settings.get("autoguidance", 1) != 1 and bool(self.early_kept):
            own = [autoguidance]

        def together(alpha: Tensor, sigma: Tensor) -> Sequence[str]:
            if classifier_free not in own or not acts(interval, alpha, sigma):
                return ("conditional",)
            return ("unconditional",) if w == 0 else ("conditional", "unconditional")

        denoiser = self.build_denoiser(labels, together, *further)
        named = guides_named(settings.get("guide"), latent=self.first_stage is not None)
        return guided(denoiser, [*own, *(one for one in named if one not in OWN_GUIDES)], settings, noise=noise)

    def build_denoiser(self, labels: Tensor | None, together: Together, *further: Tensor) -> Denoiser:
        """The networks as guides ask them."""
        parametrisation = Parametrisation(self.hparams.prediction, self.sigma_data())
        return Denoiser(
            self.process, parametrisation, lambda names, x, t: self.answers(names, x, t, labels, *further), together
        )

    def answers(
        self, names: Sequence[str], x: Tensor, t: Tensor, labels: Tensor | None, *further: Tensor
    ) -> list[Tensor]:
        """Predictions of the averaged network with the condition and without it, or of the early network."""
        if len(names) == 1:
            network = self.early if names[0] == "early" else self.ema
            assert network is not None
            return [self.predict(network, x, t, None if names[0] == "unconditional" else labels, None, *further)]
        assert labels is not None and list(names) == ["conditional", "unconditional"]
        drop = torch.arange(2 * len(x), device=x.device) >= len(x)
        twice = [torch.cat([one, one]) for one in (t, *further)]
        made = self.predict(self.ema, x.repeat(2, 1, 1, 1), twice[0], torch.cat([labels, labels]), drop, *twice[1:])
        return list(made.chunk(2))

    def denoise(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, *, labels: Tensor | None = None, **options: Any
    ) -> Tensor:
        """The image `(n, c, h, w)` that the averaged network expects behind x = alpha x_0 + sigma eps.

        alpha and sigma are scalar tensors in any frame, see `Denoiser`; `options` are those of guides.
        """
        return self.guided(labels, options, noise=torch.randn)(x, alpha, sigma)
