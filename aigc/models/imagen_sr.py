"""Imagen's super-resolution (Saharia et al. 2022, section 2.3): diffusion that enlarges a picture.

Notable:
- The U-Net also sees the small picture, enlarged and joined over channels. In training it is the image itself, made
  small by the one antialiased resize that sampling, too, has.
- Noise-conditioning augmentation (Ho et al. 2022): noise of a level drawn for each image is added to the small
  picture, and a second clock tells the network the level. In sampling the level is an option: more of it invents more
  detail, and forgives more faults of a small picture that another model made.
- The network says what linear estimation from the noisy image and the small one lacks, in units of its error: EDM's
  preconditioning (Karras et al. 2022) with a second observation, and our own. So it starts as bicubic enlargement.
- Trained on crops, it samples whole pictures of any size: the U-Net has no place of its own for any pixel.
- It makes no samples from noise alone: it is shown and scored by held-out images, made small and enlarged again.
- Everything else is `Diffusion`: processes, samplers, guides (`dynamic_threshold`), conditions, the averaged weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.conditions import as_tensor
from aigc.diffusion.parametrisations import Parametrisation
from aigc.diffusion.schedules import evenly, stratified
from aigc.errors import UserError, check_count
from aigc.models.denoisers import ConditionalDenoiser, Upscaler
from aigc.models.diffusion import Diffusion
from aigc.models.family import Batch, Family
from aigc.models.options import grouped_over
from aigc.networks.ranks import sum_over_ranks
from aigc.networks.resample import resize
from aigc.noise import SeededNoise, mix

STREAM = 0x10A5                                            # separates the noise on the small picture from the sample's


class SuperResolution(Diffusion):
    """Enlarges pictures by a whole factor; the recipe's numbers are in `conf/model/imagen_sr.yaml`.

    Raises:
        UserError: see `Diffusion`; images that are too small for the factor, or levels out of range.
    """

    parts: ClassVar[dict[str, tuple[str, ...]]] = {}
    reconstructs: ClassVar[bool] = True
    lacking: Tensor
    sample: Any = Family.sample                            # there is nothing to enlarge in noise,
    denoise: Any = None                                    # and no expected image without a small one

    @grouped_over(Diffusion)
    def __init__(
        self,
        channels: int,                      # image channels
        size: Sequence[int],                # (height, width) of the enlarged images
        *,
        factor: int,                        # of enlargement, in each direction
        crop: int,                          # side of the crops that it learns from, in pixels; 0: whole images
        augmentation: float,                # highest level of the noise on the small picture, at most 1; 0: none
        level: float,                       # of it in sampling, at most `augmentation`
        levels: Sequence[float],            # levels that the grid `upscaled` shows beside each other
        detail: float | str,                # standard deviation of what enlarging a small image lacks, or auto
        **rest: Any,                        # what `Diffusion` takes
    ):
        check_count("model.factor", factor, least=2)
        check_count("model.crop", crop, least=0)
        if min(size) < 2 * factor:
            raise UserError(f"model.factor={factor} leaves less than 2 pixels of images of {size[0]} x {size[1]}: "
                            "choose a smaller factor, or larger images")
        if not 0 <= augmentation <= 1:
            raise UserError(f"model.augmentation={augmentation} is no level of noise: give a number between 0 and 1")
        if not (detail == "auto" or (isinstance(detail, int | float) and detail > 0)):
            raise UserError(f"model.detail={detail} is neither a positive number nor auto: give one of them")
        for name, only in (("denoiser", "unet"), ("first_stage", None), ("weighting", "own")):
            if rest.get(name) != only:
                raise UserError(f"model.{name}={rest.get(name)} has no place in imagen_sr, which enlarges pixels by a "
                                "U-Net and weighs errors in its own way: leave it out")
        self.most = augmentation
        for one in (level, *levels):
            self.check_level(one)
        super().__init__(channels, size, **{**rest, "network": {**rest["network"], "joined": channels}})
        self.factor = factor
        self.grid = math.lcm(factor, self.network.denoiser.denoiser.multiple)    # corners of crops
        self.register_buffer("lacking", torch.zeros(2))    # images measured, sum of their mean squares
        self._seeking = detail == "auto"

    def told(self, denoiser: ConditionalDenoiser) -> Upscaler:
        """The denoiser, which also sees the small picture and is told how noisy it is."""
        return Upscaler(denoiser)

    def check_level(self, level: Any) -> float:
        """A level of noise on the small picture, as it was given.

        Raises:
            UserError: the network did not learn from as much.
        """
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= self.most:
            raise UserError(f"level={level} is no level of noise that this model learned from: give a number between "
                            f"0 and {self.most} (model.augmentation)")
        return float(level)

    # ---- training ----

    def small(self, images: Tensor) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1], made smaller by the factor."""
        h, w = images.shape[2:]
        return resize(images, (-(-h // self.factor), -(-w // self.factor))).clamp(-1, 1)

    def seen(self, small: Tensor, level: Tensor, noise: Tensor, size: Sequence[int]) -> Tensor:
        """Small pictures z with noise, cos(a) z + sin(a) noise for a = pi / 2 level, enlarged to `size`."""
        angle = math.pi / 2 * level[:, None, None, None]
        return resize(angle.cos() * small + angle.sin() * noise, size)

    def measure(self, images: Tensor) -> None:
        """As of `Diffusion`, also for `detail`."""
        super().measure(images)
        if self._seeking:
            self._seeking = float(self.lacking[0]) < self.hparams.sigma_images
        if self._seeking:
            apart = (resize(self.small(images), images.shape[2:]) - images).square().flatten(1).mean(1)
            self.lacking += sum_over_ranks(torch.stack([apart.new_tensor(len(apart)), apart.sum()]))

    def detail(self) -> Tensor:
        """Standard deviation of what enlarging a small image lacks, a scalar; measured so far where it is `auto`."""
        if self.hparams.detail != "auto":
            return torch.tensor(float(self.hparams.detail), device=self.lacking.device)
        count, squares = self.lacking
        return torch.where(count > 0, (squares / count.clamp(min=1)).clamp(min=1e-4).sqrt(), 0.1)

    def estimate(self, x_t: Tensor, t: Tensor, level: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        """The image by linear estimation from x_t and the noisy picture, and the standard deviation of its error.

        As if pixels were independent and Gaussian: x_0 = z + N(0, detail^2), z of variance sigma_data^2 behind the
        noise of the picture.
        """
        alpha, sigma = (c[:, None, None, None] for c in self.process.scales(t))
        angle, spread = math.pi / 2 * level[:, None, None, None], self.sigma_data() ** 2
        gain = spread / ((angle.cos() ** 2 * spread) + angle.sin() ** 2)
        expected = gain * angle.cos() * picture
        variance = self.detail() ** 2 + gain * angle.sin() ** 2        # of x_0 around it
        total = alpha**2 * variance + sigma**2
        mean = (alpha * variance * x_t + sigma**2 * expected) / total
        return mean, (sigma * (variance / total).sqrt()).clamp(min=1e-4)

    def correction(
        self, network: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None, drop: Tensor | None, level: Tensor,
        picture: Tensor,
    ) -> Tensor:
        """The network's output: what `estimate` lacks, over its deviation. The picture is of unit variance for it."""
        angle = math.pi / 2 * level[:, None, None, None]
        scale = ((angle.cos() * self.sigma_data()) ** 2 + angle.sin() ** 2).rsqrt()
        return super().predict(network, x_t, t, labels, drop, level, scale * picture)

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None, drop: Tensor | None = None,
        *further: Tensor,
    ) -> Tensor:
        """What samplers ask for, as of `Diffusion`; `further` are the levels and the noisy pictures."""
        mean, deviation = self.estimate(x_t, t, *further)
        image = mean + deviation * self.correction(network, x_t, t, labels, drop, *further)
        alpha, sigma = (c[:, None, None, None] for c in self.process.scales(t))
        parametrisation = Parametrisation(self.hparams.prediction, self.sigma_data())
        return parametrisation.target(image, (x_t - alpha * image) / sigma, alpha, sigma)

    def cropped(self, *pictures: Tensor) -> list[Tensor]:
        """The same random crop of each image in several batches `(n, c, h, w)` of equal size."""
        (n, _, h, w), side = pictures[0].shape, self.hparams.crop
        if not side or (side >= h and side >= w):
            return list(pictures)
        high, wide = min(side, h), min(side, w)
        corners = torch.stack([torch.randint((edge - inner) // self.grid + 1, (n,)) * self.grid
                               for edge, inner in ((h, high), (w, wide))], dim=1).tolist()
        return [torch.stack([one[:, top : top + high, left : left + wide]
                             for one, (top, left) in zip(batch, corners, strict=True)]) for batch in pictures]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One denoising step on crops; `loss` is the squared error of the correction."""
        images, labels = batch["image"], as_tensor(self.condition_of(batch), self.network.encoder)
        (n, _, *size), device = images.shape, images.device
        self.measure(images)
        small = self.small(images)
        level = self.most * torch.rand(n, device=device)
        images, picture = self.cropped(images, self.seen(small, level, torch.randn_like(small), size))
        u = stratified(n, device)
        drop = None if labels is None else torch.rand(n, device=device) < self.hparams.drop
        noise = torch.randn_like(images)
        return {"loss": self.errors(self.network, images, labels, u=u, noise=noise, drop=drop, level=level,
                                    picture=picture).mean()}

    def errors(
        self, network: nn.Module, images: Tensor, labels: Tensor | None, *, u: Tensor, noise: Tensor,
        drop: Tensor | None = None, level: Tensor | None = None, picture: Tensor | None = None,
    ) -> Tensor:
        """Squared errors `(n,)` of the correction, at quantiles `u`, for pictures `(n, c, h, w)` of these levels."""
        assert level is not None and picture is not None
        t = self.process.quantile(u)
        alpha, sigma = (c[:, None, None, None] for c in self.process.scales(t))
        x_t = alpha * images + sigma * noise
        mean, deviation = self.estimate(x_t, t, level, picture)
        made = self.correction(network, x_t, t, labels, drop, level, picture)
        return F.mse_loss(made, (images - mean) / deviation, reduction="none").mean((1, 2, 3))

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The averaged network's loss on whole images, and the PSNR of bicubic enlargement, in dB, to be beaten."""
        images, index = batch["image"], batch["index"]
        small, size = self.small(images), images.shape[2:]
        noise = SeededNoise([mix(int(i)) for i in index], images.device)
        fresh, level = noise(*images.shape[1:]), self.most * evenly(index**2)        # evenly at every time, too
        picture = self.seen(small, level, noise(*small.shape[1:]), size)
        labels = as_tensor(self.condition_of(batch), self.network.encoder)
        errors = self.errors(self.ema, images, labels, u=evenly(index), noise=fresh, level=level, picture=picture)
        apart = (resize(small, size).clamp(-1, 1) - images).square().mean((1, 2, 3))
        return {"loss": errors.mean(), "bicubic_psnr": (10 * (4 / apart.clamp(min=1e-10)).log10()).mean()}

    # ---- sampling ----

    def asked(self, options: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        """The level of noise and the settings of sampling that options of `upscale` come to.

        Raises:
            UserError: see `upscale`.
        """
        level = self.check_level(options.get("level", self.hparams.level))
        return level, self.settings({name: value for name, value in options.items() if name != "level"})

    @torch.inference_mode(False)  # guides may record gradients
    @torch.no_grad()
    def upscale(
        self,
        images: Tensor,
        *,
        condition: Tensor | Sequence[int] | Sequence[str] | None = None,
        size: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Pictures `(n, c, h, w)` in [-1, 1] of any size, `factor` times as high and wide, or at `size`.

        From the averaged weights. Options: `level`, of the noise on the pictures, and those of `Diffusion.sample`.
        Image k depends on picture k, `seeds[k]`, `condition[k]` and the options alone; without a condition it is
        unconditional.

        Raises:
            UserError: an unknown sampler, guide or option, or a level that it did not learn from.
        """
        level, settings = self.asked(options)
        seeds = self.seeds_or_fresh(len(images), seeds)
        images = images.to(self.device, torch.float32).clone()
        size = [self.factor * side for side in images.shape[2:]] if size is None else list(size)
        levels = torch.full((len(images),), level, device=self.device)
        noise = SeededNoise([mix(int(seed), STREAM) for seed in seeds], self.device)(*images.shape[1:])
        picture = self.seen(images, levels, noise, size)
        labels = None if condition is None else self.labels(condition, seeds)
        return self.drawn((images.shape[1], *size), seeds, labels, settings, levels, picture)

    def fakes(self, batch: Batch, *, seeds: Sequence[int] | None = None, **options: Any) -> Tensor:
        """A batch's images, made small and enlarged again, `(n, c, h, w)` in [-1, 1]."""
        images = self.reals(batch)
        return self.upscale(self.small(images), condition=self.condition_of(batch), size=images.shape[2:],
                            seeds=seeds, **options)

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Bicubic enlargement, its own at each of `levels`, and the image, beside each other: `(n, c, h, k w)`."""
        images = batch["image"]
        seeds, size = range(len(images)), images.shape[2:]
        made = [self.fakes(batch, seeds=seeds, level=level).to(images.device) for level in self.hparams.levels]
        return {"upscaled": torch.cat([resize(self.small(images), size).clamp(-1, 1), *made, images], dim=3)}
