"""VQ-VAE, VQGAN and the KL autoencoder as one would train them without any platform: more loops, as in bare.py.

Networks, loss functions and optimizers are those of aigc/models/; everything around them is written out here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from bare import autocast, follow
from torch import nn

from aigc.models.autoencoder import FirstStage


def vqgan_loop(model: FirstStage, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """The discriminator, where there is one, then the autoencoder, a batch."""
    h, network, judge = model.hparams, model.network, model.discriminator
    assert model.perceptual is None and not (model.loss.relativistic or h.adversarial_start or h.adversarial_warmup)
    *judges, optimizer = model.configure_optimizers()
    groups = [group for one in (*judges, optimizer) for group in one.param_groups]
    rates, average, seen = [group["lr"] for group in groups], follow(model, network), 0
    for batch in batches:
        images = batch["image"]
        n = len(images)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (seen + 1) / h.warmup_images)
        with autocast(low):
            made, passed = network(images)
        if judge is not None:
            with autocast(low):
                on_real, on_fake = judge(torch.cat([images, made.detach()])).chunk(2)
                loss = model.loss.discriminator(on_real, on_fake)
            judges[0].zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(judge.parameters(), h.clip, foreach=True)
            judges[0].step()
            judge.requires_grad_(False)
        reconstruction = model.distance(made, images)
        loss = reconstruction + passed.cost
        if judge is not None:
            with autocast(low):
                on_fake = judge(made)
            adversarial, last = model.loss.generator(on_fake, on_fake), network.decoder.last.weight
            pull, counter = (torch.autograd.grad(one, last, retain_graph=True)[0].norm()
                             for one in (reconstruction, adversarial))
            loss = loss + h.adversarial * (pull / (counter + 1e-4)).clamp(max=1e4).detach() * adversarial
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), h.clip, foreach=True)
        optimizer.step()
        if judge is not None:
            judge.requires_grad_(True)
        seen += n
        average(seen, n)
        yield


LOOPS: dict[str, Callable[..., Iterator[None]]] = {"VQGAN": vqgan_loop, "Autoencoder": vqgan_loop}
