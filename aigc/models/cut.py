"""CUT: contrastive unpaired translation (Park et al. 2020), one way, with one generator and one discriminator.

Notable here:
- no cycle: a patch of the translation must be closer to the source's patch at the same place than to any other patch,
  measured on features of the generator's own encoder, with a small head per layer (PatchNCE, equations 3 to 5)
- the source's features come from the same pass that translates it; only the translation is encoded again
- `nce_identity` applies the same loss to images of the target domain, which should come out unchanged (CUT);
  without it, and with a larger `lambda_nce` and mirrored sources, this is FastCUT
- the heads are created in the constructor, so checkpoints and optimizers need no special handling
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.errors import UserError, check_choices
from aigc.losses.adversarial import adversarial_loss, patch_r1
from aigc.losses.contrastive import patch_nce
from aigc.losses.diff_augment import DiffAugment
from aigc.models.family import Batch, Translator
from aigc.models.options import R1, Average, Patches, ResNet, Schedule, group, grouped
from aigc.models.two_player import Adams, TwoPlayer
from aigc.networks.ema import EMA
from aigc.networks.patchgan import NORMS, PatchGAN
from aigc.networks.resnet import UPSAMPLE, ResNetGenerator, initialize


class Heads(nn.Module):
    """Two linear layers for each chosen encoder layer; they map its features at sampled places to unit vectors."""

    def __init__(self, widths: Sequence[int], features: int, init_std: float | None):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, features), nn.ReLU(), nn.Linear(features, features)) for width in widths
        )
        initialize(self, init_std)

    def forward(self, maps: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """Unit vectors `(n, places, features)`, float32, one tensor per layer, from maps `(n, c, h, w)`."""
        found = [x.flatten(2)[:, :, at].transpose(1, 2) for x, at in zip(maps, places, strict=True)]
        return [F.normalize(head(x).float(), dim=2) for head, x in zip(self.layers, found, strict=True)]


@group(prefix="nce_")
class Contrast:
    """Of PatchNCE."""

    layers: list[int]                                      # of the encoder; 0 is the image itself
    identity: bool                                         # PatchNCE on the target domain too: the mean of both
    features: int                                          # length of a patch's vector
    patches: int                                           # places sampled per layer, at most
    temperature: float


class CUT(TwoPlayer, Translator):
    """A translator from the first domain to the second that keeps every patch recognizable.

    Raises:
        UserError: an option's value is unknown, a layer does not exist, or the loss needs a penalty that CUT lacks.
    """

    directions = ("a2b",)

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        condition: str = "none",
        network: ResNet,                                   # of the generator
        discriminator: Patches,
        init_std: float | None,                            # N(0, init_std) weights; None: torch's own
        loss: str,                                         # a name of losses.adversarial.LOSSES
        lambda_adversarial: float,                         # weight of the generator's adversarial loss
        lambda_nce: float,                                 # weight of PatchNCE
        nce: Contrast,
        flip_equivariance: bool,                           # mirror half of the batches, and mirror features back
        augment: list[str],                                # DiffAugment policies for the discriminator, [] for none
        r1: R1,
        optimizer: Adams,                                  # generator_rate: of the generator and the heads
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        check_choices((
            ("upsample", network.upsample, UPSAMPLE), ("discriminator_norm", discriminator.norm, NORMS),
        ))
        if loss == "wasserstein":
            raise UserError("model.loss=wasserstein needs a penalty that CUT does not have: use least_squares")
        self.loss = adversarial_loss(loss)
        self.augment = DiffAugment(augment)
        self.generator = ResNetGenerator(channels, **vars(network), init_std=init_std)
        steps = len(self.generator.encoder)
        if not nce.layers or not all(0 <= layer <= steps for layer in nce.layers):
            raise UserError(f"model.nce_layers={nce.layers} must name layers from 0 (the image) to {steps}")
        with torch.no_grad():
            side = self.generator.smallest + -self.generator.smallest % self.generator.multiple
            maps = self.generator.features(torch.zeros(1, channels, side, side), nce.layers)[1]
        self.heads = Heads([x.shape[1] for x in maps], nce.features, init_std)
        self.discriminator = PatchGAN(channels, **vars(discriminator), init_std=init_std)
        self.ema = EMA(self.generator, **vars(average))

    def players(self) -> dict[str, list[nn.Module]]:
        """Generator and heads, then the discriminator."""
        return {"generator": [self.generator, self.heads], "discriminator": [self.discriminator]}

    # ---- training ----

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Generator and heads, then the discriminator on the same translations."""
        a, b = batch["a"], batch["b"]
        with self.turn("generator") as backward:
            loss, logs, fake = self.generator_loss(a, b)
            backward(loss)
        with self.turn("discriminator") as backward:
            loss, more = self.discriminator_loss(b, fake)
            backward(loss)
        return logs | more

    def generator_loss(self, a: Tensor, b: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss of generator and heads, its parts, and the detached translations `(n, c, h, w)` of `a`."""
        options, layers, n = self.hparams, self.hparams.nce_layers, len(a)
        source, crop = self.generator.pad(torch.cat([a, b]) if options.nce_identity else a)
        mirrored = options.flip_equivariance and bool(torch.rand(()) < 0.5)
        seen = source.flip(3) if mirrored else source
        code, keys = self.generator.features(seen, layers)
        made = self.generator.draw(code, seen)
        queries = self.generator.features(made, layers)[1]
        if mirrored:                                       # features of the unmirrored source
            queries = [x.flip(3) for x in queries]
            with torch.no_grad():
                keys = self.generator.features(source, layers)[1]
        nce = self.contrast(queries, keys)
        fake = crop(made[:n])
        logs = {"loss/generator": self.deceive(b, fake), "loss/nce": nce[:n].mean()}
        contrast = logs["loss/nce"]
        if options.nce_identity:
            logs["loss/nce_identity"] = nce[n:].mean()
            contrast = (contrast + logs["loss/nce_identity"]) / 2
        loss = options.lambda_adversarial * logs["loss/generator"] + options.lambda_nce * contrast
        return loss, {name: value.detach() for name, value in logs.items()}, fake.detach()

    def contrast(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """PatchNCE of every image, averaged over the layers: `(n,)`, float32; all images share the places."""
        options = self.hparams
        places = [
            torch.randperm(x.shape[2] * x.shape[3], device=x.device)[: options.nce_patches] for x in queries
        ]
        found = self.heads(queries, places)                # first: weights cached under no_grad carry no gradient
        with torch.no_grad():
            known = self.heads(keys, places)
        pairs = zip(found, known, strict=True)
        return torch.stack([patch_nce(q, k, temperature=options.nce_temperature) for q, k in pairs]).mean(0)

    def deceive(self, real: Tensor, fake: Tensor) -> Tensor:
        """The generator's adversarial loss."""
        transform = self.augment.draw(len(fake), fake.device)
        on_fake = self.discriminator(transform(fake))
        on_real = self.discriminator(transform(real)) if self.loss.relativistic else on_fake
        return self.loss.generator(on_real, on_fake)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss and its parts, on real images and detached translations."""
        transform = self.augment.draw(len(real), real.device)
        on_real, on_fake = self.discriminator(torch.cat([transform(real), transform(fake)])).chunk(2)
        loss = total = self.loss.discriminator(on_real, on_fake)
        logs = {"loss/discriminator": loss, "logits/real": on_real.mean(), "logits/fake": on_fake.mean()}
        if self.hparams.r1 and (heavier := self.lazily(self.hparams.r1_every)):
            logs["penalty/r1"] = patch_r1(self.discriminator, real, transform)
            total = total + heavier * self.hparams.r1 / 2 * logs["penalty/r1"]
        return total, {name: value.detach() for name, value in logs.items()}

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged generator."""
        return [(self.ema, self.generator)]

    # ---- validation ----

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """L1 on [-1, 1] between images of the target domain and their translations, which should not differ."""
        target = self.sides(batch)[1]
        return {"identity_b": F.l1_loss(self.translate(target), target)}
