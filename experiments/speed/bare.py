"""Families that make images, trained as one would without any platform: what measure.py compares our step with.

Networks, loss functions and optimizers are those of aigc/models/; everything around them is written out here. `next`
of a loop is one step. The first steps draw what the family draws, so that both can be compared weight by weight.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.models.biggan import BigGAN
from aigc.models.clip import CLIP
from aigc.models.dalle import DALLE
from aigc.models.diffusion import Diffusion
from aigc.models.family import Family
from aigc.models.few_step import FewStep
from aigc.models.gan import GAN
from aigc.models.imagen_sr import SuperResolution
from aigc.models.prior import Prior
from aigc.models.projected_gan import ProjectedGAN
from aigc.models.stylegan2 import StyleGAN2
from aigc.models.vae import VAE, kl_to_standard_normal
from aigc.networks.spectral_norm import spectral_norms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALIKE = 8                               # first steps whose weights are compared


def autocast(enabled: bool) -> torch.autocast:
    """bf16 where `enabled`."""
    return torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=enabled)


def follow(model: Family, network: nn.Module) -> Callable[[int, int], None]:
    """The averaged weights of `network`, moved after a step by (images seen, images in the batch)."""
    ema: Any = model.averages()[0][0]
    averaged, current = list(ema.network.parameters()), [p.detach() for p in network.parameters()]
    spectral = spectral_norms(ema.network)
    own = {id(vector) for norm, _ in spectral for vector in norm.buffers()}
    pairs = [pair for pair in zip(ema.network.buffers(), network.buffers(), strict=True) if id(pair[0]) not in own]

    def move(seen: int, n: int) -> None:
        beta = 0.5 ** (n / min(ema.halflife_images, ema.ramp * seen))
        torch._foreach_lerp_(averaged, current, 1 - beta)
        if pairs:
            torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
        with torch.no_grad():
            for norm, weight in spectral:               # an average has singular vectors of its own
                norm.train()(weight)

    return move


def gan_loop(model: GAN, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One discriminator and one generator step a batch."""
    h, generator, discriminator = model.hparams, model.generator, model.discriminator
    assert not (h.r2 or h.gradient_penalty or h.clip or model.loss.relativistic or discriminator.batch_norm)
    assert h.generator_every == 1 and not h.warmup_images, "the loop below does not know this recipe"
    for_discriminator, for_generator = model.configure_optimizers()
    average, seen = follow(model, generator), 0
    for step, batch in enumerate(batches):
        real, labels = batch["image"], batch["label"]
        n, lazy = len(real), h.r1 and step % h.penalty_every == 0
        with autocast(low):
            fake = generator(torch.randn(n, h.latent, device=DEVICE), labels)
        augment = model.augment.draw(n, DEVICE)
        if lazy:
            real = real.detach().requires_grad_()
        with autocast(low and not lazy):
            both = torch.cat([augment(real), augment(fake.detach())])
            on_real, on_fake = discriminator(both, torch.cat([labels, labels])).chunk(2)
            loss = model.loss.discriminator(on_real, on_fake)
        if lazy:
            (gradient,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
            loss = loss + h.penalty_every * h.r1 / 2 * gradient.square().flatten(1).sum(1).mean()
        for_discriminator.zero_grad()
        loss.backward()
        for_discriminator.step()

        discriminator.requires_grad_(False)
        with autocast(low):
            on_fake = discriminator(model.augment.draw(n, DEVICE)(fake), labels)
            loss = model.loss.generator(on_fake, on_fake)
        for_generator.zero_grad()
        loss.backward()
        for_generator.step()
        discriminator.requires_grad_(True)
        seen += n
        average(seen, n)
        yield


def biggan_loop(model: BigGAN, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One discriminator and one generator step a batch, each on images of its own."""
    h, generator, discriminator = model.hparams, model.generator, model.discriminator
    assert h.loss == "hinge" and (h.generator_every, h.accumulate, h.orthogonality, h.clip, h.augment) == (
        1, 1, 0, 0, []), "the loop below does not know this recipe"
    for_discriminator, for_generator = model.configure_optimizers()
    average, seen = follow(model, generator), 0
    for batch in batches:
        real, labels = batch["image"], batch["label"]
        n = len(real)
        with autocast(low):
            z, drawn = torch.randn(n, generator.latent, device=DEVICE), labels[torch.randint(n, (n,), device=DEVICE)]
            with torch.no_grad():
                fake = generator(z, drawn)
            on_real, on_fake = discriminator(torch.cat([real, fake]), torch.cat([labels, drawn])).chunk(2)
            loss = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        for_discriminator.zero_grad()
        loss.backward()
        for_discriminator.step()

        discriminator.requires_grad_(False)
        with autocast(low):
            z, drawn = torch.randn(n, generator.latent, device=DEVICE), labels[torch.randint(n, (n,), device=DEVICE)]
            loss = -discriminator(generator(z, drawn), drawn).mean()
        for_generator.zero_grad()
        loss.backward()
        for_generator.step()
        discriminator.requires_grad_(True)
        seen += n
        average(seen, n)
        yield


def vae_loop(model: VAE, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One step on minus the evidence lower bound a batch."""
    h, network = model.hparams, model.network
    assert h.observe == "grey" and not (h.clip or h.warmup_images), "the loop below does not know this recipe"
    optimizer = model.configure_optimizers()
    average, seen = follow(model, network), 0
    for batch in batches:
        images, labels = batch["image"], batch["label"]
        n = len(images)
        drop = torch.rand(n, device=DEVICE) < h.condition_drop
        with autocast(low):
            mean, deviation = network.encode(images, labels, drop)
            z = torch.addcmul(mean, deviation, torch.randn_like(mean))
            parameters = network.decode(z, labels, drop)
        reconstruction = model.log_likelihood(network, images, parameters).mean()
        weight = h.beta * min(1.0, seen / h.kl_warmup_images)
        loss = weight * kl_to_standard_normal(mean, deviation).mean() - reconstruction
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.remember(z.detach(), labels)
        seen += n
        average(seen, n)
        yield


def descend(
    loss: torch.Tensor, optimizer: torch.optim.Optimizer, rates: list[float], h: Any, seen: int
) -> None:
    """A step of the only optimizer, at rates that rise over the first images, with clipped gradients."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * min(1.0, (seen + 1) / h.warmup_images)
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, h.clip, foreach=True)
    optimizer.step()


def diffusion_loop(model: Diffusion, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One flow-matching step a batch, on images or on their latents."""
    h, network, stage = model.hparams, model.network, model.first_stage
    assert (h.process, h.prediction, h.weighting) == ("flow", "flow", "own"), "the loop below knows flow matching only"
    optimizer = model.configure_optimizers()
    rates = [group["lr"] for group in optimizer.param_groups]
    average, seen, spread = follow(model, network), 0, 1.0
    for batch in batches:
        images, labels = batch["image"], batch["label"]
        n = len(images)
        if stage is not None:
            with autocast(low):
                images = stage.encode(images, measure=True)
        if seen < h.sigma_images + n:
            model.measure(images)
            spread = float(model.sigma_data())
        t = model.process.quantile((torch.rand((), device=DEVICE) + torch.arange(n, device=DEVICE) / n) % 1)
        drop = torch.rand(n, device=DEVICE) < h.drop
        noise = torch.randn_like(images)
        x_t = torch.lerp(noise, images, t[:, None, None, None])
        scale = ((t * spread) ** 2 + (1 - t) ** 2).rsqrt()[:, None, None, None]
        with autocast(low):
            velocity = network(x_t * scale, t, labels, drop)
        loss = F.mse_loss(velocity.float(), images - noise)
        descend(loss, optimizer, rates, h, seen)
        seen += n
        average(seen, n)
        yield


def stylegan2_loop(model: StyleGAN2, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One discriminator and one generator step a batch, and R1 in a step of its own."""
    h, generator, discriminator = model.hparams, model.generator, model.discriminator
    assert not (h.mixing or h.path or h.augment_target or h.warmup_images), "the loop below does not know this recipe"
    for_discriminator, for_generator = model.configure_optimizers()
    average, seen = follow(model, generator), 0
    for step, batch in enumerate(batches):
        real, labels = batch["image"], batch["label"]
        n = len(real)
        with autocast(low):
            w = generator.style(torch.randn(n, h.latent, device=DEVICE), labels)
            generator.average.lerp_(w.detach().mean(0), 0.005)
            fake = generator(generator.styles(w))
            on_real, on_fake = discriminator(real, labels), discriminator(fake.detach(), labels)
            loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        for_discriminator.zero_grad()
        loss.backward()
        for_discriminator.step()
        if step % h.r1_every == 0:
            real = real.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(discriminator(real, labels).sum(), real, create_graph=True)
            for_discriminator.zero_grad()
            (h.r1_every * h.r1 / 2 * gradient.square().flatten(1).sum(1).mean()).backward()
            for_discriminator.step()

        discriminator.requires_grad_(False)
        with autocast(low):
            loss = F.softplus(-discriminator(fake, labels)).mean()
        for_generator.zero_grad()
        loss.backward()
        for_generator.step()
        discriminator.requires_grad_(True)
        seen += n
        average(seen, n)
        yield


def projected_gan_loop(model: ProjectedGAN, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One step of all discriminators and one of the generator a batch, on the same generated images."""
    generator, heads, project = model.generator, model.discriminator.heads, model.discriminator.projector
    assert not model.hparams.warmup_images, "the loop below does not know this recipe"
    for_discriminator, for_generator = model.configure_optimizers()
    average, seen = follow(model, generator), 0
    for batch in batches:
        real, labels = batch["image"], batch["label"]
        n = len(real)
        with autocast(low):
            z = torch.randn(n, generator.latent, device=DEVICE)
            maps = project(model.augment.draw(n, DEVICE)(generator(z, labels)))
            with torch.no_grad():
                real_maps = project(model.augment.draw(n, DEVICE)(real))
            on_real = [head(m, labels) for head, m in zip(heads, real_maps, strict=True)]
            on_fake = [head(m.detach(), labels) for head, m in zip(heads, maps, strict=True)]
            apart = [F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(on_real, on_fake, strict=True)]
            loss = torch.stack(apart).sum()
        for_discriminator.zero_grad()
        loss.backward()
        for_discriminator.step()

        heads.requires_grad_(False)
        with autocast(low):
            loss = torch.stack([-head(m, labels).mean() for head, m in zip(heads, maps, strict=True)]).sum()
        for_generator.zero_grad()
        loss.backward()
        for_generator.step()
        heads.requires_grad_(True)
        seen += n
        average(seen, n)
        yield


def shortcut_loop(model: FewStep, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One step of a shortcut model from scratch a batch: an eighth of it learns from two steps of the average."""
    h, network, average = model.hparams, model.network, model.ema.network
    assert (h.process, h.prediction, h.method) == ("flow", "flow", "shortcut"), "the loop below knows nothing else"
    base, (low_noise, high_noise) = h.methods["shortcut"]["base"], h.guidance_interval
    optimizer, levels = model.configure_optimizers(), base.bit_length() - 1
    rates = [group["lr"] for group in optimizer.param_groups]
    move, seen, spread = follow(model, network), 0, 1.0

    def velocity(net: nn.Module, x: Tensor, t: Tensor, *given: Any) -> Tensor:
        scale = ((t * spread) ** 2 + (1 - t) ** 2).rsqrt()[:, None, None, None]
        with autocast(low):
            return net(x * scale, t, *given).float()

    def guided(x: Tensor, t: Tensor, labels: Tensor, length: Tensor) -> Tensor:
        made, noise = velocity(average, x, t, labels, None, length), (1 - t) / t
        rows = ((length == 0) & (noise >= low_noise) & (noise <= high_noise)).nonzero()[:, 0]
        if len(rows):
            drop = torch.ones(len(rows), dtype=torch.bool, device=DEVICE)
            alone = velocity(average, x[rows], t[rows], labels[rows], drop, length[rows])
            made[rows] = torch.lerp(alone, made[rows], h.guidance)
        return made

    for batch in batches:
        images, labels = batch["image"], batch["label"]
        n = len(images)
        k = round(h.methods["shortcut"]["scratch"] * n)
        if seen < h.sigma_images + n:
            model.measure(images)
            spread = float(model.sigma_data())
        drop = torch.rand(n, device=DEVICE) < h.drop
        noise = torch.randn_like(images)
        level = 1 + (torch.arange(k) + torch.randint(levels, ())) % levels
        start = (2**level * (torch.rand(k) * (base // 2**level)).long() / base).to(DEVICE)
        step, half = (2.0**level / base / 2).to(DEVICE), ((level - 1.0) / levels).to(DEVICE)
        x = torch.lerp(noise[:k], images[:k], start[:, None, None, None])
        with torch.no_grad():
            first = guided(x, start, labels[:k], half)
            second = guided(x + step[:, None, None, None] * first, start + step, labels[:k], half)
        t = model.process.quantile((torch.rand((), device=DEVICE) + torch.arange(n - k, device=DEVICE) / (n - k)) % 1)
        drop[:k] = False
        x = torch.cat([x, torch.lerp(noise[k:], images[k:], t[:, None, None, None])])
        length = torch.cat([(level / levels).to(DEVICE), torch.zeros_like(t)])
        made = velocity(network, x, torch.cat([start, t]), labels, drop, length)
        loss = F.mse_loss(made, torch.cat([(first + second) / 2, (images - noise)[k:]]))
        descend(loss, optimizer, rates, h, seen)
        seen += n
        move(seen, n)
        yield


def upscaling_loop(model: SuperResolution, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One step of flow matching on crops a batch, beside a noisy small picture."""
    h, network = model.hparams, model.network
    assert (h.process, h.crop % model.grid) == ("flow", 0), "the loop below knows flow matching only"
    optimizer = model.configure_optimizers()
    rates = [group["lr"] for group in optimizer.param_groups]
    average, seen, spread, detail = follow(model, network), 0, 1.0, 1.0
    for batch in batches:
        images, labels = batch["image"], batch["label"]
        n, (height, width) = len(images), images.shape[2:]
        if seen < h.sigma_images + n:
            model.measure(images)
            spread, detail = float(model.sigma_data()), float(model.detail())
        small = F.interpolate(images, (-(-height // h.factor), -(-width // h.factor)), mode="bicubic", antialias=True)
        small = small.clamp(-1, 1)
        level = h.augmentation * torch.rand(n, device=DEVICE)
        a = torch.pi / 2 * level[:, None, None, None]
        picture = F.interpolate(a.cos() * small + a.sin() * torch.randn_like(small), (height, width), mode="bicubic",
                                antialias=True)
        if h.crop and h.crop < max(height, width):
            corners = [(torch.randint((side - h.crop) // model.grid + 1, (n,)) * model.grid).tolist()
                       for side in (height, width)]
            images, picture = (torch.stack([one[:, y : y + h.crop, x : x + h.crop]
                                            for one, y, x in zip(whole, *corners, strict=True)])
                               for whole in (images, picture))
        t = model.process.quantile((torch.rand((), device=DEVICE) + torch.arange(n, device=DEVICE) / n) % 1)
        drop = torch.rand(n, device=DEVICE) < h.drop
        noise, t_ = torch.randn_like(images), t[:, None, None, None]
        x_t = torch.lerp(noise, images, t_)
        gain = spread**2 / (a.cos() ** 2 * spread**2 + a.sin() ** 2)
        variance = detail**2 + gain * a.sin() ** 2
        total = t_**2 * variance + (1 - t_) ** 2
        mean = (t_ * variance * x_t + (1 - t_) ** 2 * gain * a.cos() * picture) / total
        deviation = ((1 - t_) * (variance / total).sqrt()).clamp(min=1e-4)
        seen_x = x_t * ((t_ * spread) ** 2 + (1 - t_) ** 2).rsqrt()
        seen_picture = picture * ((a.cos() * spread) ** 2 + a.sin() ** 2).rsqrt()
        with autocast(low):
            made = network(seen_x, t, labels, drop, level, seen_picture)
        loss = F.mse_loss(made.float(), (images - mean) / deviation)
        descend(loss, optimizer, rates, h, seen)
        seen += n
        average(seen, n)
        yield


def prior_loop(model: Prior, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One step on the cross-entropy of the codes a batch."""
    h, network = model.hparams, model.network
    assert h.order == "causal" and not h.smoothing, "the loop below knows codes one by one only"
    optimizer = model.configure_optimizers()
    rates = [group["lr"] for group in optimizer.param_groups]
    average, seen = follow(model, network), 0
    model.remember(60_000)
    for batch in batches:
        codes, labels = model.codes_of(batch), batch["label"]
        n = len(codes)
        drop = torch.rand(n, device=DEVICE) < h.drop
        with autocast(low):
            logits = network(codes[:, :-1], network.under(labels, n=n, drop=drop))
        loss = F.cross_entropy(logits.transpose(1, 2), codes)
        descend(loss, optimizer, rates, h, seen)
        seen += n
        average(seen, n)
        yield


def clip_loop(model: CLIP, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One step on the symmetric cross-entropy of a batch's images and captions."""
    h, optimizer, seen = model.hparams, model.configure_optimizers(), 0
    assert not h.augment, "the loop below does not know this recipe"
    rates = [group["lr"] for group in optimizer.param_groups]
    for batch in batches:
        images, captions = batch["image"], batch["text"]
        n = len(images)
        places: dict[str, int] = {}
        same = torch.tensor([places.setdefault(caption, len(places)) for caption in captions], device=DEVICE)
        model.augmented.draw(n, DEVICE)                    # of nothing, and random numbers all the same
        side, *shift = torch.rand(3, n, device=DEVICE)
        side = h.crop + (1 - h.crop) * side
        shift = [(1 - side) * (2 * u - 1) for u in shift]
        zero = torch.zeros_like(side)
        moves = torch.stack([side, zero, shift[0], zero, side, shift[1]], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(moves, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        ids = model.text_tower.tokenize(model.reworded(captions))
        with autocast(low):
            seen_as, read_as = model.of_images(model.image_tower(images)), model.of_texts(model.text_tower(ids))
        seen_as, read_as = F.normalize(seen_as.float(), dim=1), F.normalize(read_as.float(), dim=1)
        targets = (same[:, None] == same).float()
        targets = targets / targets.sum(1, keepdim=True)
        logits = model.log_scale.exp() * seen_as @ read_as.T
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        descend(loss, optimizer, rates, h, seen)
        with torch.no_grad():
            model.log_scale.clamp_(0, math.log(100))
        seen += n
        yield


def dalle_loop(model: DALLE, batches: Iterator[Any], low: bool) -> Iterator[None]:
    """One step on the weighted cross-entropies of captions and codes a batch."""
    h, network = model.hparams, model.network
    optimizer = model.configure_optimizers()
    rates = [group["lr"] for group in optimizer.param_groups]
    average, seen = follow(model, network), 0
    model.remember(20_000)
    for batch in batches:
        codes, text = model.codes_of(batch), network.padded(network.tokenize(batch["text"]))
        n = len(codes)
        first = torch.rand(n, device=DEVICE) < h.picture_first
        dropped = (torch.rand(n, device=DEVICE) < h.drop) & ~first
        text = torch.where(dropped[:, None], network.padding, text)
        with autocast(low):
            words, image = network.both(text, codes, first)
        over = network.words
        ends = (text >= over).cumsum(1) < 2                # words and the first padding token
        each = F.cross_entropy(words.transpose(1, 2), text.clamp(max=over), reduction="none")
        each = each * (ends & (text[:, :1] < over))
        of_text = each.sum(1) / ends.sum(1)
        of_image = F.cross_entropy(image.transpose(1, 2), codes, reduction="none").mean(1)
        share = torch.where(first, h.image_weight, 1.0) / (1 + h.image_weight)
        descend((share * of_text + (1 - share) * of_image).mean(), optimizer, rates, h, seen)
        seen += n
        average(seen, n)
        yield


LOOPS: dict[str, Callable[..., Iterator[None]]] = {
    "GAN": gan_loop, "BigGAN": biggan_loop, "StyleGAN2": stylegan2_loop, "ProjectedGAN": projected_gan_loop,
    "VAE": vae_loop, "Diffusion": diffusion_loop, "LatentDiffusion": diffusion_loop, "FewStep": shortcut_loop,
    "Prior": prior_loop, "CLIP": clip_loop, "DALLE": dalle_loop, "SuperResolution": upscaling_loop,
}
