"""Variational autoencoder and beta-VAE (Kingma and Welling 2014, Higgins et al. 2017).

Notable here:
- the objective is a true evidence lower bound in nats per image: log-likelihood summed over pixels minus KL
- Gaussian likelihood with a learned or fixed scale, a density on the continuous scale [-1, 1], or Bernoulli on [0, 1]
- the likelihood sees grey levels as they are, dequantised, or binarised
- samples come from the prior, or from a Gaussian mixture fitted to the latents of the last training images, which
  are part of the checkpoint: it samples without data
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from math import ceil, log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.conditions import build_encoder, labels_for
from aigc.errors import UserError, check_choices, choices
from aigc.losses.likelihood import bernoulli_log_likelihood, gaussian_log_density, kl_to_standard_normal
from aigc.models.family import Batch, Family
from aigc.models.options import Adam, Average, Schedule, group, grouped, option
from aigc.networks.ema import EMA
from aigc.networks.ranks import distributed
from aigc.noise import SeededNoise

GRID = 8                                                   # images are halved until no side exceeds this
GREY_LEVEL = 2 / 255                                       # distance between two grey levels on [-1, 1]


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution zero at first: deep stacks start as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, width, h, w)` to the same shape."""
        return x + self.second(F.silu(self.first(F.silu(x))))


@group()
class Layers:
    """Of the autoencoder."""

    latent: int                                            # length of the latent vector
    widths: list[int]                                      # feature maps of the halvings, the first at half the size
    blocks: int                                            # residual blocks after each halving and doubling
    hidden: int                                            # units between the last grid and the latent vector
    embedding: int                                         # length of a label's vector


@group()
class Likelihood:
    """Of the pixels, given the decoder's output."""

    kind: str = option("likelihood")                       # gaussian or bernoulli
    observe: str                                           # its input: grey, dequantised or binarised images
    scale: float                                           # of the Gaussian, on [-1, 1]; initial, or fixed
    scale_rate: float                                      # learning rate of log scale, 0: fixed


@group()
class Prior:
    """What samples come from."""

    kind: str = option("prior")                            # normal or mixture
    components: int = option("mixture_components")         # over all classes together
    images: int = option("mixture_images")                 # last training images, whose latents it is fitted to


class Autoencoder(nn.Module):
    """Encoder, decoder and the likelihood's scale: everything that is averaged and that sampling needs."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        layers: Layers,
        *,
        condition: str,                                    # none or label
        classes: int | None,
        scale: float,                                      # initial scale of the Gaussian likelihood
    ):
        super().__init__()
        latent, widths, blocks, hidden, embedding = astuple(layers)
        while ceil(max(size) / 2 ** len(widths)) > GRID:
            widths.append(widths[-1])
        self.size = tuple(size)
        grid = tuple(ceil(side / 2 ** len(widths)) for side in size)
        flat = widths[-1] * grid[0] * grid[1]
        self.labels = build_encoder(condition, classes=classes, width=embedding)
        joined = embedding if self.labels is not None else 0

        steps: list[nn.Module] = []
        for before, after in zip([channels, *widths[:-1]], widths, strict=True):
            steps += [nn.Conv2d(before, after, 3, 2, 1), *(Residual(after) for _ in range(blocks)), nn.SiLU()]
        self.down = nn.Sequential(*steps, nn.Flatten())
        self.narrow = nn.Sequential(nn.Linear(flat + joined, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent))

        self.widen = nn.Sequential(
            nn.Linear(latent + joined, hidden), nn.SiLU(), nn.Linear(hidden, flat), nn.Unflatten(1, (-1, *grid))
        )
        steps = []
        for before, after in zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True):
            steps += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
            steps += [Residual(after) for _ in range(blocks)]
        self.up = nn.Sequential(*steps, nn.SiLU(), nn.Conv2d(widths[0], channels, 3, 1, 1))
        self.log_scale = nn.Parameter(torch.tensor(log(scale)))

    def encode(
        self, images: Tensor, labels: Tensor | None = None, drop: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | images), both `(n, latent)`, float32."""
        x = self.down(images)
        if self.labels is not None:
            x = torch.cat([x, self.labels(labels, n=len(x), drop=drop)], dim=1)
        mean, log_deviation = self.narrow(x).float().chunk(2, dim=1)
        return mean, log_deviation.clamp(-10, 10).exp()

    def decode(self, z: Tensor, labels: Tensor | None = None, drop: Tensor | None = None) -> Tensor:
        """The likelihood's parameters `(n, c, h, w)`, float32, before tanh (Gaussian mean) or sigmoid (Bernoulli)."""
        if self.labels is not None:
            z = torch.cat([z, self.labels(labels, n=len(z), drop=drop)], dim=1)
        return self.up(self.widen(z))[:, :, : self.size[0], : self.size[1]].float()

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the Gaussian likelihood, on [-1, 1], never below one grey level."""
        return self.log_scale.clamp(min=log(GREY_LEVEL)).exp()


@dataclass
class Mixture:
    """A Gaussian mixture over latents."""

    shares: Tensor                                         # (k,) float64, cumulative
    means: Tensor                                          # (k, latent)
    factors: Tensor                                        # (k, latent, latent) lower Cholesky factors

    def __call__(self, normals: Tensor, temperature: float) -> Tensor:
        """Latents `(n, latent)` from standard normal numbers `(n, 1 + latent)`; the first picks the component."""
        picked = torch.searchsorted(self.shares, torch.special.ndtr(normals[:, 0].double()))
        picked = picked.clamp(max=len(self.shares) - 1)
        return self.means[picked] + temperature * torch.einsum("nij,nj->ni", self.factors[picked], normals[:, 1:])


def fit_mixture(latents: Tensor, components: int) -> Mixture:
    """Expectation maximization (scikit-learn) on `latents` `(n, latent)`, at least 2 x latent of them per component.

    The same latents give the same mixture.
    """
    from sklearn.mixture import GaussianMixture

    n, width = latents.shape
    fit = GaussianMixture(max(1, min(components, n // (2 * width))), reg_covar=1e-3, max_iter=50, random_state=0)
    fit.fit(latents.double().cpu().numpy())
    return Mixture(
        torch.from_numpy(fit.weights_).cumsum(0),
        torch.from_numpy(fit.means_).float(),
        torch.linalg.cholesky(torch.from_numpy(fit.covariances_)).float(),
    )


class VAE(Family):
    """An autoencoder with a normal prior on its latents, trained on the evidence lower bound.

    Raises:
        UserError: an option's value is unknown, or two of them contradict each other.
    """

    latents: Tensor
    latent_labels: Tensor
    latents_seen: Tensor

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        condition: str = "none",                           # none or label
        condition_drop: float,                             # share of images trained on without their label
        layers: Layers,
        likelihood: Likelihood,
        beta: float,                                       # weight of the KL term; 1: the bound itself
        kl_warmup_images: float,                           # images over which this weight rises from 0
        prior: Prior,
        importance_samples: int,                           # for the tighter IWAE bound in validation, 0: none
        optimizer: Adam,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        seen = {"gaussian": ("grey", "dequantised"), "bernoulli": ("grey", "binarised")}
        check_choices((
            ("likelihood", likelihood.kind, tuple(seen)),
            ("observe", likelihood.observe, ("grey", "dequantised", "binarised")),
            ("prior", prior.kind, ("normal", "mixture")),
        ))
        if likelihood.observe not in seen[likelihood.kind]:
            fit = " or ".join(seen[likelihood.kind])
            raise UserError(f"model.observe={likelihood.observe} does not fit model.likelihood={likelihood.kind}: "
                            f"set it to {fit}")
        if likelihood.scale <= 0:
            raise UserError(f"model.scale={likelihood.scale} is not a standard deviation: give a positive number, "
                            "e.g. 0.5")
        self.network = Autoencoder(
            channels, size, layers, condition=condition, classes=classes, scale=likelihood.scale
        )
        if likelihood.kind == "bernoulli" or not likelihood.scale_rate:
            self.network.log_scale.requires_grad_(False)
        self.ema = EMA(self.network, **vars(average))
        self.register_buffer("latents", torch.zeros(prior.images, layers.latent))       # of the last training images
        self.register_buffer("latent_labels", torch.zeros(prior.images, dtype=torch.int64))
        self.register_buffer("latents_seen", torch.zeros((), dtype=torch.int64))
        self._mixtures: tuple[int, list[Mixture | None]] = (-1, [])                   # latents seen at the fit

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; the likelihood's scale has its own rate."""
        weights = [p for name, p in self.network.named_parameters() if name != "log_scale"]
        groups: list[dict[str, Any]] = [{"params": weights, "lr": self.hparams.rate}]
        if self.network.log_scale.requires_grad:
            groups.append({"params": [self.network.log_scale], "lr": self.hparams.scale_rate})
        return torch.optim.Adam(groups, betas=tuple(self.hparams.betas), fused=True)

    # ---- training ----

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Minus the bound, KL weighted by beta and its warm-up; the logged terms are unweighted, nats per image."""
        images, labels = batch["image"], self.condition_of(batch)
        n = len(images)
        drop = None if labels is None else torch.rand(n, device=images.device) < self.hparams.condition_drop
        x = self.observed(images, lambda: torch.rand_like(images))
        mean, deviation = self.network.encode(x, labels, drop)
        z = torch.addcmul(mean, deviation, torch.randn_like(mean))
        reconstruction = self.log_likelihood(self.network, x, self.network.decode(z, labels, drop)).mean()
        kl = kl_to_standard_normal(mean, deviation).mean()
        self.remember(z.detach(), labels)
        warmup = self.hparams.kl_warmup_images
        weight = self.hparams.beta * (min(1.0, self.progress.images / warmup) if warmup else 1.0)
        logs = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        if self.hparams.likelihood == "gaussian":
            logs["scale"] = self.network.scale
        return {"loss": weight * kl - reconstruction} | {name: value.detach() for name, value in logs.items()}

    def observed(self, images: Tensor, uniform: Callable[[], Tensor]) -> Tensor:
        """What the likelihood sees of images `(n, c, h, w)` in [-1, 1]; `uniform()` draws numbers of their shape."""
        if self.hparams.observe == "binarised":
            return torch.where(uniform() < (images + 1) / 2, 1.0, -1.0)
        if self.hparams.observe == "dequantised":
            return images + (uniform() - 0.5) * GREY_LEVEL
        return images

    def log_likelihood(self, network: Autoencoder, x: Tensor, parameters: Tensor) -> Tensor:
        """Log p(x | z) in nats, `(n,)`, float32, from the decoder's output."""
        with torch.autocast(x.device.type, enabled=False):
            if self.hparams.likelihood == "bernoulli":
                return bernoulli_log_likelihood(x, parameters)
            return gaussian_log_density(x, parameters.tanh(), network.scale)

    @torch.no_grad()
    def remember(self, z: Tensor, labels: Tensor | None) -> None:
        """Keeps the latents of the last training images of all ranks, for the mixture."""
        kept = torch.zeros(len(z), dtype=torch.int64, device=z.device) if labels is None else labels
        if distributed():
            every: Any = self.all_gather((z, kept))        # `(ranks, n, ...)`
            z, kept = every[0].flatten(0, -2), every[1].flatten()
        z, kept = z[-len(self.latents) :], kept[-len(self.latents) :]
        place = (self.latents_seen + torch.arange(len(z), device=z.device)) % len(self.latents)
        self.latents[place], self.latent_labels[place] = z, kept
        self.latents_seen += len(z)

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged autoencoder."""
        return [(self.ema, self.network)]

    # ---- evaluation, always with the averaged weights ----

    @property
    def averaged(self) -> Autoencoder:
        """The autoencoder used for samples, reconstructions and scores."""
        return self.ema.network  # type: ignore[return-value]

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The bound and its two terms on held-out images, nats per image; each image has its own fixed noise.

        With `importance_samples` k, also `iwae`, the tighter bound over k samples (Burda et al. 2016, equation 8);
        for dequantised images, also `bits_per_dim`, an upper bound at 256 grey levels.
        """
        images, labels = batch["image"], self.condition_of(batch)
        noise = SeededNoise(batch.get("index", torch.arange(len(images))).tolist(), images.device)
        network = self.averaged
        pixels = noise(*images.shape[1:])
        x = self.observed(images, lambda: torch.special.ndtr(pixels))
        mean, deviation = network.encode(x, labels)
        kl = kl_to_standard_normal(mean, deviation)
        ratios = []                                        # log p(x | z) p(z) / q(z | x), one (n,) per sample
        draws = noise(max(1, self.hparams.importance_samples), self.hparams.latent)
        for k, epsilon in enumerate(draws.unbind(1)):
            z = mean + deviation * epsilon
            likelihood = self.log_likelihood(network, x, network.decode(z, labels))
            if k == 0:
                reconstruction = likelihood
            ratios.append(likelihood + (0.5 * (epsilon.square() - z.square()) + deviation.log()).sum(1))
        scores = {"elbo": (reconstruction - kl).mean(), "reconstruction": reconstruction.mean(), "kl": kl.mean()}
        if self.hparams.importance_samples:
            scores["iwae"] = (torch.stack(ratios).logsumexp(0) - log(len(ratios))).mean()
        if self.hparams.observe == "dequantised":          # density per grey level, not per unit
            scores["bits_per_dim"] = -(scores["elbo"] / images[0].numel() + log(GREY_LEVEL)) / log(2)
        return scores

    @torch.no_grad()
    def encode(self, images: Tensor, *, condition: Any = None) -> Tensor:
        """Latents `(n, latent)`: the means of q(z | images) for `images` `(n, c, h, w)` in [-1, 1]."""
        with torch.autocast(self.device.type, enabled=False):
            return self.averaged.encode(images.to(self.device), self._labels(condition, len(images)))[0]

    def decode(self, latents: Tensor, *, condition: Any = None) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1]: the likelihood's mean for `latents` `(n, latent)`.

        Gradients are recorded where the latents ask for them.
        """
        recorded = torch.is_grad_enabled() and latents.requires_grad
        with torch.set_grad_enabled(recorded), torch.autocast(self.device.type, enabled=False):
            parameters = self.averaged.decode(latents.to(self.device), self._labels(condition, len(latents)))
            return 2 * parameters.sigmoid() - 1 if self.hparams.likelihood == "bernoulli" else parameters.tanh()

    @torch.no_grad()
    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Reconstructions, each beside its input: `(n, c, h, 2 w)`."""
        images, labels = batch["image"], self.condition_of(batch)
        again = self.decode(self.encode(images, condition=labels), condition=labels)
        return {"reconstructions": torch.cat([images, again.to(images.device)], dim=3)}

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Any = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1], the likelihood's mean; labels are random where `condition` is None.

        Options: `prior` (normal, or mixture: fitted to the latents of the last training images, one per class; with
        too few of them, the normal prior), `temperature` (scales the deviations; 1 is the model itself).

        Raises:
            UserError: an option is unknown, or the labels are out of range.
        """
        self.check_options(options, ("prior", "temperature"))
        prior, temperature = options.get("prior") or self.hparams.prior, options.get("temperature", 1.0)
        if prior not in ("normal", "mixture"):
            raise UserError(f"prior={prior} is unknown: {choices(prior, ('normal', 'mixture'))}")
        seeds = self.seeds_or_fresh(n, seeds)
        labels = labels_for(condition, kind=self.condition, classes=self.hparams.classes, seeds=seeds)
        normals = SeededNoise(seeds)(1 + self.hparams.latent)
        z = temperature * normals[:, 1:]
        if prior == "mixture":
            for label, mixture in enumerate(self.mixtures()):
                chosen = slice(None) if labels is None else labels == label
                if mixture is not None:
                    z[chosen] = mixture(normals[chosen], temperature)
        return self.decode(z, condition=labels)

    def mixtures(self) -> list[Mixture | None]:
        """One mixture per class, or a single one; None where fewer than two latents per dimension are known."""
        seen = int(self.latents_seen)
        if self._mixtures[0] != seen:
            known, labels = self.latents[:seen], self.latent_labels[:seen]
            groups = self.hparams.classes if self.condition == "label" else 1
            components = max(1, self.hparams.mixture_components // groups)
            chosen = [known[labels == label] if groups > 1 else known for label in range(groups)]
            self._mixtures = (
                seen, [fit_mixture(z, components) if len(z) >= 2 * z.shape[1] else None for z in chosen]
            )
        return self._mixtures[1]

    def _labels(self, condition: Any, n: int) -> Tensor | None:
        """Checked labels on this device, or None: a conditional model also learns to sample without a label."""
        if condition is None:
            return None
        labels = labels_for(condition, kind=self.condition, classes=self.hparams.classes, seeds=range(n))
        return None if labels is None else labels.to(self.device)
