"""A classifier of noisy images (Dhariwal and Nichol 2021, section 4), whose gradients guide diffusion to a class.

Notable:
- It learns from images with the noise of a process, `process` and its options as of `model=diffusion`, and is told how
  much there is. Images are scaled to the point of that process with the same sigma / alpha, so it guides runs of any
  other process, too.
- The network is the downsampling half of the diffusion family's U-Net, with attention at the end to pool what is seen.
- It makes no images. It tells the classes of images at a noise level (`classify`), differentiably; how well, is logged
  for held-out images at several levels.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.diffusion.schedules import build_process, evenly, stratified
from aigc.errors import UserError
from aigc.losses.diff_augment import DiffAugment
from aigc.models.family import Batch
from aigc.models.measured import Measured
from aigc.models.options import Schedule, group, grouped
from aigc.networks.adamw import adamw
from aigc.networks.attention import AttentionPool
from aigc.networks.unet import Block, clock_features, groups_for
from aigc.noise import SeededNoise, mix


class NoisyEncoder(nn.Module):
    """Noisy images and times to logits: the way down of a U-Net, each level half the size of the one before."""

    def __init__(
        self,
        channels: int,                             # image channels
        size: Sequence[int],                       # (height, width)
        *,
        outputs: int,                              # classes
        width: int,                                # channels at the finest level, best a multiple of 16
        multipliers: Sequence[int],                # width of each level as a multiple of `width`
        blocks: int,                               # residual blocks per level
        patch: int,                                # space-to-depth block of the stem: 1, 2, 4
        attention: Sequence[int],                  # levels with self-attention; 0 is the finest
        head: int,                                 # channels per attention head
        vector: int,                               # length of the vector for the time
        dropout: float,                            # share of activations dropped in every block
    ):
        super().__init__()
        widths = [width * m for m in multipliers]
        self.patch, self.multiple, self.vector = patch, patch * 2 ** (len(widths) - 1), vector
        self.clock = nn.Sequential(nn.Linear(vector, vector), nn.SiLU(), nn.Linear(vector, vector))
        self.stem = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.down = nn.ModuleList()
        for level, wide in enumerate(widths):
            heads = max(1, wide // head) if level in attention else 0
            if level:
                self.down.append(nn.Conv2d(widths[level - 1], wide, 3, stride=2, padding=1))
            self.down.extend(Block(wide, wide, vector=vector, heads=heads, dropout=dropout) for _ in range(blocks))
        self.norm = nn.GroupNorm(groups_for(widths[-1]), widths[-1])
        rows, columns = (-(-side // self.multiple) for side in size)
        self.pool = AttentionPool(widths[-1], rows * columns, heads=max(1, widths[-1] // head))
        self.out = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        """Images `(n, c, h, w)` of unit variance and times `(n,)` in about [-1, 1] to logits `(n, outputs)`."""
        h, w = x.shape[-2:]
        embedded = F.silu(self.clock(clock_features(clock, self.vector)))
        x = F.pad(x, (0, -w % self.multiple, 0, -h % self.multiple))
        x = self.stem(F.pixel_unshuffle(x, self.patch))
        for layer in self.down:
            x = layer(x, embedded) if isinstance(layer, Block) else layer(x)
        return self.out(self.pool(F.silu(self.norm(x))))


@group()
class Optimizer:
    """AdamW."""

    lr: float
    betas: list[float]
    weight_decay: float                     # of all weights that are not gains or biases
    clip: float                             # largest gradient norm, 0: no limit


class Classifier(Measured):
    """Tells the class of images in noise; the recipe's numbers are in `conf/model/classifier.yaml`.

    Raises:
        UserError: there is no such process, or an option of it, or a noise level is not positive.
    """

    conditions: ClassVar[tuple[str, ...]] = ("label",)

    @grouped
    def __init__(
        self,
        channels: int,                      # image channels
        size: Sequence[int],                # (height, width)
        *,
        classes: int | None = None,         # of the data
        vocabulary: list[str] | None = None,
        condition: str = "label",
        process: str,                       # flow | ddpm | edm: what noise it learns from
        processes: dict[str, dict[str, float]],  # options of each process, by its name
        sigma_data: float | str,            # standard deviation of the images in [-1, 1], or auto
        sigma_images: int,                  # auto: how many of the first images it is measured on
        network: dict[str, Any],            # arguments of `NoisyEncoder`
        augment: list[str],                 # policies of `losses.diff_augment`, on images before the noise
        levels: list[float],                # sigma / alpha at which held-out accuracy is logged
        optimizer: Optimizer,
        schedule: Schedule,
    ):
        super().__init__()
        self.save_hyperparameters()
        if not classes:
            raise UserError("Classifier tells classes apart, and these data have none: choose data with labels")
        if any(level <= 0 for level in levels):
            raise UserError(f"model.levels={levels}: a noise level, sigma / alpha, is above 0")
        self.process = build_process(process, "x0", processes.get(process, {}))
        self.network = NoisyEncoder(channels, size, outputs=classes, **network)
        self.augmented = DiffAugment(augment)
        self.begin_measuring()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; gains and biases do not decay."""
        h = self.hparams
        return adamw(self.network, lr=h.lr, betas=h.betas, weight_decay=h.weight_decay)

    def logits(self, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Logits `(n, classes)`, float32, of images with this noise at times t `(n,)`."""
        alpha, sigma = (c[:, None, None, None] for c in self.process.scales(t))
        return self.told(alpha * images + sigma * noise, t)

    def told(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits `(n, classes)`, float32, of noisy images at times t `(n,)` of the process."""
        alpha, sigma = (c[:, None, None, None] for c in self.process.scales(t))
        scale = ((alpha * self.sigma_data()) ** 2 + sigma**2).rsqrt()
        return self.network(x_t * scale, self.process.clock(t)).float()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Cross-entropy at times of the process; `accuracy` is over all of them."""
        n, label = len(batch["image"]), batch["label"]
        self.measure(batch["image"])
        images = self.augmented.draw(n, self.device)(batch["image"])
        t = self.process.quantile(stratified(n, images.device))
        logits = self.logits(images, t, torch.randn_like(images))
        right = logits.argmax(1) == label
        return {"loss": F.cross_entropy(logits, label), "accuracy": right.float().mean()}

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The same on held-out images, each with a fixed time and noise, and the accuracy at each of `levels`."""
        images, label, index = batch["image"], batch["label"], batch["index"]
        noise = SeededNoise([mix(int(i)) for i in index], images.device)(*images.shape[1:])
        logits = self.logits(images, self.process.quantile(evenly(index)), noise)
        found = {"loss": F.cross_entropy(logits, label), "accuracy": (logits.argmax(1) == label).float().mean()}
        for level in self.hparams.levels:
            t = self.process.time(torch.full((len(images),), level, device=images.device))
            right = self.logits(images, t, noise).argmax(1) == label
            found[f"accuracy_at_{level:g}"] = right.float().mean()
        return found

    # ---- what it is used for, in float32 ----

    def classify(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log-probabilities `(n, classes)` of the classes behind x = alpha x_0 + sigma eps `(n, c, h, w)`.

        alpha and sigma are scalar tensors in any frame, as of `diffusion.denoiser.Denoiser`; levels that it did not
        learn from count as the nearest that it did. Gradients pass to x.
        """
        t = self.process.time(sigma / alpha)
        own_alpha, own_sigma = self.process.scales(t)
        scale = own_sigma / sigma if float(sigma) > 0 else own_alpha / alpha
        with torch.autocast(self.device.type, enabled=False):
            logits = self.told(x.float() * scale.to(x.device), t.float().to(x.device).expand(len(x)))
        return logits.log_softmax(1)
