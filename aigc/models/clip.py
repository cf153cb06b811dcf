"""CLIP (Radford et al. 2021): a tower for images and one for texts, which learn what belongs together.

Notable here:
- both end in unit vectors of one space; a batch's images look for their captions among all captions of the batch, on
  all devices, and its captions for their images (figure 3 of the paper, `losses.contrastive.image_text_nce`)
- captions that are equal are not each other's negatives: the targets are shared among all that fit, and retrieval is
  counted by caption. The paper's 400 million captions seldom repeat; those of a small data set do in every batch
- the temperature is learned: the cosines' scale starts at 1 / .07 and stays within 1 and 100
- the image tower is a residual network, pooled by attention that knows places (section 2.4), or a vision transformer;
  no layer looks across the images of a batch, so the loss is the same on any number of devices
- the text tower is a causal transformer, pooled at the text's end token
- images are cropped at random, as in the paper; captions are reworded (`conditions.rewording`)
- it makes no images. It tells how well texts fit images (`score_text`), and gives the vectors of both, by which they
  are ranked and searched; gradients pass through them
"""

from collections.abc import Sequence
from math import log
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.conditions.rewording import PLACE, Rewording, caption_numbers, check_templates
from aigc.conditions.text import Reader
from aigc.conditions.vocabulary import Tokenizer
from aigc.errors import UserError, check_choices
from aigc.losses.contrastive import image_text_nce
from aigc.losses.diff_augment import DiffAugment
from aigc.models.family import Batch, Family
from aigc.models.options import Schedule, group, grouped
from aigc.networks.adamw import adamw
from aigc.networks.attention import AttentionPool
from aigc.networks.transformer import Transformer

TOWERS = ("resnet", "vit")
LARGEST = 100.0                              # scale of the cosines, section 2.5
BEST = 6                                     # images that are drawn beside a caption


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the second convolution zero at first: it starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.convolutions[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`(n, width, h, w)` to the same shape."""
        y = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(F.silu(norm(y)))
        return x + y


class ResNetTower(nn.Module):
    """Images to vectors: halvings by strided convolutions, residual blocks after each, and attention to pool."""

    def __init__(self, channels: int, size: Sequence[int], *, widths: list[int], blocks: list[int], heads: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width, count in zip([channels, *widths], widths, blocks, strict=False):
            layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), *(Residual(width) for _ in range(count))]
        self.layers = nn.Sequential(*layers)
        places = [-(-side // 2 ** len(widths)) for side in size]
        self.pool = AttentionPool(widths[-1], places[0] * places[1], heads=heads)
        self.width = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] to `(n, width)`."""
        return self.pool(self.layers(images))


class ViTTower(nn.Module):
    """Images to vectors: a transformer over patches and a class token, which is read (Dosovitskiy et al. 2021)."""

    def __init__(
        self, channels: int, size: Sequence[int], *, patch: int, width: int, layers: int, heads: int, dropout: float
    ):
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.summary = nn.Parameter(width**-0.5 * torch.randn(width))
        self.norm = nn.LayerNorm(width)                    # before the transformer, as in the paper
        places = (size[0] // patch) * (size[1] // patch)
        self.transformer = Transformer(width, layers=layers, heads=heads, length=places + 1, dropout=dropout)
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] to `(n, width)`."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.summary.expand(len(tokens), 1, -1).to(tokens), tokens], dim=1)
        return self.transformer(self.norm(tokens))[:, 0]


class TextTower(Reader):
    """Texts to vectors: a causal transformer, read at the end token, which alone has seen the whole text."""

    def __init__(
        self, vocabulary: Sequence[str], *, words: str, size: int, tokens: int, width: int, layers: int, heads: int
    ):
        super().__init__()
        self.tokenizer, self.tokens = Tokenizer(vocabulary, kind=words), tokens
        self.start, self.end = len(vocabulary), len(vocabulary) + 1
        self.table = nn.Embedding(len(vocabulary) + 2, width)
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.zeros_(self.table.weight.data[0])          # training may never see an unknown word: keep it neutral
        self.transformer = Transformer(width, layers=layers, heads=heads, length=tokens, causal=True)
        self.width = width

    def numbers(self, text: str) -> list[int]:
        """Token numbers of a whole text, between the start and the end token."""
        return [self.start, *super().numbers(text), self.end]

    def shortened(self, row: list[int]) -> list[int]:
        """The first numbers of a text, and its end token."""
        return row if len(row) <= self.tokens else [*row[: self.tokens - 1], self.end]

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers `(n, L)`, padded with -1, to `(n, width)`; what follows the end token changes nothing."""
        tokens = self.transformer(self.table(ids.clamp(min=0)))
        return tokens[torch.arange(len(ids), device=ids.device), (ids == self.end).int().argmax(1)]


@group()
class Optimizer:
    """AdamW."""

    lr: float
    betas: list[float]
    eps: float
    weight_decay: float                      # of all weights that are not gains or biases
    clip: float                              # largest gradient norm, 0: no limit


class CLIP(Family):
    """Contrastive language-image pre-training (Radford et al. 2021).

    Raises:
        UserError: an option's value is unknown, or two of them contradict each other.
    """

    conditions: ClassVar[tuple[str, ...]] = ("text",)

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        vocabulary: list[str] | None = None,
        condition: str = "text",
        tower: str,                          # of images: resnet | vit
        resnet: dict[str, Any],              # arguments of `ResNetTower`
        vit: dict[str, Any],                 # arguments of `ViTTower`
        text: dict[str, Any],                # arguments of `TextTower`
        embedding: int,                      # length of the vectors that are compared
        temperature: float,                  # at first, of the cosines
        crop: float,                         # least side of the random crop, 1: none
        augment: list[str],                  # policies of `losses.diff_augment`
        captions: dict[str, Any],            # arguments of `Rewording`
        prompts: list[str],                  # of zero-shot classification, with {} in place of a class's name
        optimizer: Optimizer,
        schedule: Schedule,
    ):
        super().__init__()
        self.save_hyperparameters()
        check_choices([("tower", tower, TOWERS)])
        check_templates(prompts, "model.prompts")
        if not prompts:
            raise UserError(f"model.prompts=[] leaves nothing to say of a class: give '{PLACE}' for its name alone")
        if not 1 / LARGEST <= temperature <= 1:
            raise UserError(f"model.temperature={temperature} must be between {1 / LARGEST} and 1")
        if not 0 < crop <= 1:
            raise UserError(f"model.crop={crop} must be above 0 and at most 1, the whole image")
        if len(resnet["widths"]) != len(resnet["blocks"]):
            raise UserError(f"model.resnet.widths={resnet['widths']} and model.resnet.blocks={resnet['blocks']} "
                            "differ in length: give both an entry for each halving")
        if tower == "vit" and (size[0] % vit["patch"] or size[1] % vit["patch"]):
            raise UserError(f"model.vit.patch={vit['patch']} does not divide images of {size[0]} x {size[1]} pixels: "
                            "choose one that does, or another data.size")
        shape = (channels, size)
        self.image_tower = ResNetTower(*shape, **resnet) if tower == "resnet" else ViTTower(*shape, **vit)
        self.text_tower = TextTower(vocabulary or [], **text)
        self.of_images = nn.Linear(self.image_tower.width, embedding, bias=False)
        self.of_texts = nn.Linear(self.text_tower.width, embedding, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(log(1 / temperature)))
        self.augmented, self.reworded = DiffAugment(augment), Rewording(**captions)
        self.learned_captions: Tensor | None = None        # numbers (n,) of the captions that it learned from, sorted

    @classmethod
    def texts_read(cls, options: dict[str, Any], captions: Sequence[str]) -> list[str]:
        """The captions and what rewording puts in their place."""
        return [*captions, *Rewording(**options["captions"]).words()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; gains, biases and the temperature do not decay."""
        h = self.hparams
        return adamw(self, lr=h.lr, betas=h.betas, weight_decay=h.weight_decay, eps=h.eps)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's, and then the scale is brought back within 1 and 100."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.log_scale.clamp_(0, log(LARGEST))

    # ---- training and validation ----

    def on_fit_start(self) -> None:
        """Notes which captions it learns from, so that whoever is judged by it can tell."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.learned_captions = caption_numbers(dict.fromkeys(data.texts("train") or [])).unique()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The symmetric loss over the captions of all devices, images and captions augmented."""
        images = self.augmented.draw(len(batch["image"]), self.device)(self.cropped(batch["image"]))
        ids = self.text_tower.tokenize(self.reworded(batch["text"]))
        seen, read = self.of_images(self.image_tower(images)), self.of_texts(self.text_tower(ids))
        seen, read = F.normalize(seen.float(), dim=1), F.normalize(read.float(), dim=1)
        same, scale = caption_numbers(batch["text"]).to(self.device), self.log_scale.exp()
        loss = image_text_nce(seen, read, same, scale=scale, gather=True)
        return {"loss": loss, "scale": scale.detach()}

    def cropped(self, images: Tensor) -> Tensor:
        """Random crops `(n, c, h, w)` of images, at least `crop` of each side, scaled back to their size."""
        if self.hparams.crop == 1:
            return images
        u = torch.rand(3, len(images), device=images.device)
        side = self.hparams.crop + (1 - self.hparams.crop) * u[0]
        shift = (1 - side) * (2 * u[1:] - 1)
        zero = torch.zeros_like(side)
        moves = torch.stack([side, zero, shift[0], zero, side, shift[1]], dim=1).view(-1, 2, 3)
        with torch.autocast(images.device.type, enabled=False):
            grid = F.affine_grid(moves, list(images.shape), align_corners=False)
            return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The same loss on held-out images and captions as they are, among those of this batch."""
        seen, read = self.embed_images(batch["image"]), self.embed_texts(batch["text"])
        same = caption_numbers(batch["text"]).to(self.device)
        return {"loss": image_text_nce(seen, read, same, scale=self.log_scale.exp())}

    # ---- what it is used for, in float32 ----

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors `(n, embedding)` of images `(n, c, h, w)` in [-1, 1] of any size, grey or colour."""
        h = self.hparams
        with torch.autocast(self.device.type, enabled=False):
            x = images.to(self.device, torch.float32)
            if x.shape[1] != h.channels:
                x = x.mean(1, keepdim=True).expand(-1, h.channels, -1, -1)
            if tuple(x.shape[2:]) != tuple(h.size):
                x = F.interpolate(x, tuple(h.size), mode="bicubic", antialias=True).clamp(-1, 1)
            return F.normalize(self.of_images(self.image_tower(x)), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `(n, embedding)` of texts."""
        with torch.autocast(self.device.type, enabled=False):
            return F.normalize(self.of_texts(self.text_tower(self.text_tower.tokenize(texts))), dim=1)

    def score_text(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosines `(n,)` between images and their texts, in [-1, 1]."""
        return (self.embed_images(images) * self.embed_texts(texts)).sum(1)

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Unit vectors `(n, embedding)` of classes: the mean over all prompts with a class's name (section 3.1.4)."""
        prompts = [prompt.replace(PLACE, name) for name in names for prompt in self.hparams.prompts]
        return F.normalize(self.embed_texts(prompts).unflatten(0, (len(names), -1)).mean(1), dim=1)

    @torch.no_grad()
    def panels(self, batch: Batch) -> dict[str, Any]:
        """The images of a batch that fit each of its first captions best, the best first: a caption a row."""
        captions = list(dict.fromkeys(batch["text"]))[:BEST]
        fit = self.embed_texts(captions) @ self.embed_images(batch["image"]).T
        best = fit.topk(min(BEST, fit.shape[1]), dim=1).indices
        return {"retrieval": (batch["image"][best.flatten().to(batch["image"].device)],
                              {"columns": best.shape[1], "captions": captions})}

    # ---- checkpoints ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds which captions it learned from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["learned_captions"] = self.learned_captions

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Knows which captions it learned from."""
        super().on_load_checkpoint(checkpoint)
        self.learned_captions = checkpoint.get("learned_captions")
