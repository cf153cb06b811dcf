"""CycleGAN and CUT trained as one would without any platform: more loops for measure.py, in the manner of bare.py.

Networks, loss functions and optimizers are those of aigc/models/; everything around them is written out here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from bare import DEVICE, autocast
from torch import nn

from aigc.losses.contrastive import patch_nce
from aigc.losses.image_pool import ImagePool
from aigc.models.cut import CUT
from aigc.models.cyclegan import CycleGAN


def follow(model: CycleGAN | CUT) -> Callable[[int, int], None]:
    """The averaged weights, moved after a step by (images seen, images in the batch)."""
    pairs: list[Any] = model.averages()
    averaged = [p for ema, _ in pairs for p in ema.network.parameters()]
    current = [p.detach() for _, network in pairs for p in network.parameters()]
    halflife, ramp = pairs[0][0].halflife_images, pairs[0][0].ramp

    def move(seen: int, n: int) -> None:
        torch._foreach_lerp_(averaged, current, 1 - 0.5 ** (n / min(halflife, ramp * seen)))

    return move


def cyclegan_loop(model: CycleGAN, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """Both generators, then both discriminators, a batch."""
    h, a2b, b2a, judge_a, judge_b = model.hparams, model.a2b, model.b2a, model.judge_a, model.judge_b
    assert h.lambda_identity and not (h.r1 or h.warmup_images or model.loss.relativistic), "another recipe"
    generators, discriminators = model.configure_optimizers()
    average, seen, step = follow(model), 0, 0
    pool_a, pool_b = ImagePool(h.pool), ImagePool(h.pool)
    for batch in batches:
        a, b = batch["a"], batch["b"]
        n = len(a)
        judges = nn.ModuleList([judge_a, judge_b]).requires_grad_(False)
        with autocast(low):
            fake_b, same_b = a2b(torch.cat([a, b])).split(n)
            fake_a, same_a = b2a(torch.cat([b, a])).split(n)
            again_a, again_b = b2a(fake_b), a2b(fake_a)
            on_b, on_a = judge_b(model.augment.draw(n, DEVICE)(fake_b)), judge_a(model.augment.draw(n, DEVICE)(fake_a))
            loss = h.lambda_a * F.l1_loss(again_a, a) + h.lambda_b * F.l1_loss(again_b, b)
            loss = loss + h.lambda_adversarial * (model.loss.generator(on_b, on_b) + model.loss.generator(on_a, on_a))
            identity = h.lambda_a * F.l1_loss(same_a, a) + h.lambda_b * F.l1_loss(same_b, b)
            loss = loss + h.lambda_identity * identity
        generators.zero_grad()
        loss.backward()
        generators.step()
        judges.requires_grad_(True)
        with autocast(low):
            loss = torch.zeros((), device=DEVICE)
            for judge, real, fake in ((judge_a, a, pool_a(fake_a, step)), (judge_b, b, pool_b(fake_b, step))):
                augment = model.augment.draw(n, DEVICE)
                on_real, on_fake = judge(torch.cat([augment(real), augment(fake)])).chunk(2)
                loss = loss + model.loss.discriminator(on_real, on_fake)
        discriminators.zero_grad()
        loss.backward()
        discriminators.step()
        seen, step = seen + n, step + 1
        average(seen, n)
        yield


def cut_loop(model: CUT, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """Generator and heads, then the discriminator, a batch."""
    h, generator, discriminator = model.hparams, model.generator, model.discriminator
    assert h.nce_identity and not (h.flip_equivariance or h.r1 or h.warmup_images), "another recipe"
    for_generator, for_discriminator = model.configure_optimizers()
    average, seen = follow(model), 0
    for batch in batches:
        a, b = batch["a"], batch["b"]
        n = len(a)
        discriminator.requires_grad_(False)
        with autocast(low):
            both = torch.cat([a, b])
            code, keys = generator.features(both, h.nce_layers)
            made = generator.draw(code, both)
            queries = generator.features(made, h.nce_layers)[1]
            places = [torch.randperm(x[0, 0].numel(), device=DEVICE)[: h.nce_patches] for x in queries]
            found = model.heads(queries, places)
            with torch.no_grad():
                known = model.heads(keys, places)
            layers = [patch_nce(q, k, temperature=h.nce_temperature) for q, k in zip(found, known, strict=True)]
            contrast = torch.stack(layers).mean()
            on_fake = discriminator(model.augment.draw(n, DEVICE)(made[:n]))
            loss = h.lambda_adversarial * model.loss.generator(on_fake, on_fake) + h.lambda_nce * contrast
        for_generator.zero_grad()
        loss.backward()
        for_generator.step()
        discriminator.requires_grad_(True)
        with autocast(low):
            augment = model.augment.draw(n, DEVICE)
            on_real, on_fake = discriminator(torch.cat([augment(b), augment(made[:n].detach())])).chunk(2)
            loss = model.loss.discriminator(on_real, on_fake)
        for_discriminator.zero_grad()
        loss.backward()
        for_discriminator.step()
        seen += n
        average(seen, n)
        yield


LOOPS: dict[str, Callable[..., Iterator[None]]] = {"CycleGAN": cyclegan_loop, "CUT": cut_loop}
