"""BigGAN: its norms, its latent, orthogonal weights, attention, both players' steps, truncation, samples by seed."""

import math
from itertools import product

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.models.biggan import BigGAN, BlockNorm, SelfAttention, non_orthogonality, orthogonal
from aigc.models.checkpoints import load_family
from aigc.networks.spectral_norm import iterate, normalise, own_weight, spectral_norms
from aigc.noise import SeededNoise

TINY = {"chunk": 4, "shared": 6, "generator_widths": [8, 8, 4], "discriminator_widths": [8, 8]}


def options(**changes) -> dict:
    """conf/model/biggan.yaml with these changes."""
    recipe = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "biggan.yaml").model)
    recipe.pop("_target_")
    return {**recipe, **changes}


def tiny(size=(8, 8), channels=1, condition="label", **changes) -> BigGAN:
    torch.manual_seed(0)
    return BigGAN(channels, size, classes=10, condition=condition, **options(**{**TINY, **changes}))


def batch_of(n=8, size=(8, 8), channels=1) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(n, channels, *size, generator=generator) * 2 - 1, "label": torch.arange(n) % 10,
            "index": torch.arange(n)}


def trained(model: BigGAN, steps: int = 2, n: int = 8, **trainer) -> BigGAN:
    """`model` after so many steps of Lightning's own loop, on one batch."""
    data = [batch_of(n, model.hparams.size, model.hparams.channels)] * steps
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **trainer,
    ).fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return model


def weights(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Its convolutions, linear layers and embeddings by name."""
    return [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]


# ---- losses and steps ----

GOLDEN = {"label": [2.099571, 0.312672], "none": [1.997035, 0.005489], "published": [4.798698, 3.699954]}


@pytest.mark.parametrize("case", GOLDEN)                  # discriminator's loss, generator's
def test_golden_losses(case):
    changes = {"none": {"condition": "none", "attention": None},
               "published": {"discriminator_down": "pool", "discriminator_head": "sum", "orthogonality": 1e-2}}
    model = tiny(**changes.get(case, {}))
    batch = batch_of()
    labels = model.condition_of(batch)
    torch.manual_seed(2)
    turns = model.discriminator_loss, model.generator_loss
    got = [loss_of(batch["image"], labels)["loss"].item() for loss_of in turns]
    assert got == pytest.approx(GOLDEN[case], abs=1e-4, rel=1e-4)


def test_each_step_moves_its_own_network():
    for still, moving in (("generator", "discriminator"), ("discriminator", "generator")):
        model = tiny(**{f"{still}_rate": 0.0})
        before = {key: value.clone() for key, value in model.named_parameters()}
        trained(model)
        same = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
        assert {key for key in before if key.startswith((still, "ema."))} <= same
        names = {f"{moving}.{name}" for name, _ in model.get_submodule(moving).named_parameters()}
        assert names & same <= {"discriminator.head.bias"}  # real and generated pull at it alike until logits pass +-1


def test_every_draw_is_new_and_the_generator_steps_on_every_so_many_batches():
    model = tiny(generator_every=3)
    drawn, moved, draw = [], [], model.draw
    model.draw = lambda n, labels: drawn.append(draw(n, labels)) or drawn[-1]
    step, watched = model.training_step, [model.discriminator.layers[0].conv1, model.generator.last]

    def watching(batch, batch_idx):
        before = [own_weight(layer).clone() for layer in watched]
        logs = step(batch, batch_idx)
        moved.append([not torch.equal(own_weight(layer), old)
                      for layer, old in zip(watched, before, strict=True)])
        model.progress.batches += 1                        # the budget's task in a run
        return logs

    model.training_step = watching
    trained(model, steps=6)
    assert moved == [[True, turn] for turn in (True, False, False) * 2]
    assert len(drawn) == 6 + 2
    z = torch.stack([z for z, _ in drawn])
    assert (z[:, None] - z[None]).abs().amax((2, 3))[~torch.eye(8, dtype=torch.bool)].min() > 0.5
    assert not torch.equal(drawn[0][1], drawn[1][1])


def test_labels_are_drawn_as_frequent_as_in_the_batch():
    torch.manual_seed(0)
    z, labels = tiny().draw(40_000, torch.tensor([0, 1, 1, 1]).repeat(10_000))
    assert labels.double().mean().item() == pytest.approx(0.75, abs=0.01)
    assert (z.mean().item(), z.std().item()) == pytest.approx((0, 1), abs=0.01)
    assert tiny(condition="none").draw(2, None)[1] is None


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_pieces_of_a_batch_give_the_gradients_of_the_whole(weight):
    """Without the statistics of norms, which are each piece's own."""
    found = {}
    for accumulate in (1, 3):                              # 8 images: 3, 3 and 2
        model = tiny(accumulate=accumulate, orthogonality=weight)
        fixed = torch.randn(10, model.generator.latent, generator=torch.Generator().manual_seed(3))
        model.draw = lambda n, labels, fixed=fixed: (fixed[labels], labels)
        sizes, found[accumulate] = [], {}

        for module in model.modules():
            module.training = False
        model.generator.register_forward_pre_hook(lambda module, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        model.on_before_optimizer_step = lambda optimizer, model=model, found=found[accumulate]: found.update(
            {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
        logs = []
        model.on_train_batch_end = lambda outputs, batch, index, logs=logs: logs.append(outputs)
        trained(model, steps=1)
        assert sizes == {1: [8, 8], 3: [3, 3, 2] * 2}[accumulate]
        found[accumulate] |= {f"log {key}": value for key, value in logs[0].items()}
    assert len(found[1]) > 40 and "log loss/generator" in found[1]
    torch.testing.assert_close(found[1], found[3], rtol=1e-4, atol=1e-6)


def test_autocast_gives_the_generator_the_updated_discriminator():
    model = tiny(discriminator_rate=0.5)
    seen = []
    forward = type(model.discriminator).forward

    def record(images, labels):
        logits = forward(model.discriminator, images, labels)
        model.discriminator.eval()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            seen.append((logits, forward(model.discriminator, images, labels)))
        model.discriminator.train()
        return logits

    model.discriminator.forward = record
    trained(model, steps=1, precision="bf16-mixed")
    assert len(seen) == 2
    torch.testing.assert_close(*seen[1], rtol=0.02, atol=0.02)


def test_held_out_logit():
    model = tiny()
    batch = batch_of()
    expected = model.discriminator.eval()(batch["image"], batch["label"]).mean()
    torch.testing.assert_close(model.validation_step(batch, 0), {"logits/held_out": expected})


# ---- the generator: norms, latent, shared embedding ----


def test_z_has_a_chunk_for_the_first_layer_and_one_for_each_block():
    model = tiny((32, 32), attention=None).generator.eval()
    assert len(model.blocks) == 2 and model.latent == 3 * 4 and model.start.in_features == 4
    assert tiny((64, 64)).generator.latent == 4 * 4         # a larger image has one more block
    z, labels = torch.randn(5, model.latent), torch.arange(5)
    with torch.no_grad():
        for changed in range(3):
            other = z.clone()
            other[:, 4 * changed : 4 * (changed + 1)] += 1
            states = []
            for latent in (z, other):
                outputs = []
                hooks = [m.register_forward_hook(lambda m, i, o, outputs=outputs: outputs.append(o))
                         for m in (model.start, *model.blocks)]
                model(latent, labels)
                [hook.remove() for hook in hooks]
                states.append(outputs)
            differ = [(a - b).abs().max().item() for a, b in zip(*states, strict=True)]
            assert max(differ[:changed], default=0) == 0 and min(differ[changed:]) > 1e-3, changed


def test_a_norm_reads_the_shared_embedding_and_its_chunk():
    model = tiny().generator
    seen = []
    for block in model.blocks:
        for norm in (block.norm1, block.norm2):
            norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    z, labels = torch.randn(5, model.latent), torch.arange(5)
    model(z, labels)
    for k, vector in enumerate(seen):
        chunk = 1 + k // 2
        assert torch.equal(vector, torch.cat([model.encoder.weight[labels], z[:, 4 * chunk : 4 * chunk + 4]], dim=1))


def test_a_norm_has_gain_one_plus_a_linear_map_of_spectral_norm_one_and_no_bias():
    torch.manual_seed(0)
    norm = BlockNorm(3, 5)
    normalise(norm)
    x, vector = torch.randn(4, 3, 6, 6), torch.randn(4, 5)
    standard = (x - x.mean((0, 2, 3), True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x, torch.zeros(4, 5)), standard)
    norm.eval()
    assert norm.gain.bias is None and norm.bias.bias is None and norm.norm.weight is None
    assert torch.linalg.matrix_norm(norm.gain.weight, 2).item() == pytest.approx(1, rel=1e-3)
    gain, bias = (vector @ layer.weight.T for layer in (norm.gain, norm.bias))
    norm.norm.running_mean, norm.norm.running_var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(norm(x, vector), standard * (1 + gain)[..., None, None] + bias[..., None, None])


def test_a_class_with_anothers_embedding_is_that_class_and_differs_through_norms_only():
    model = trained(tiny(), steps=3).generator.eval()
    z, three, five = torch.randn(6, model.latent), torch.full((6,), 3), torch.full((6,), 5)
    inputs = []
    for layer in (model.start, model.blocks[0].norm1.norm):
        layer.register_forward_pre_hook(lambda module, seen: inputs.append(seen[0]))
    with torch.no_grad():
        threes, fives = model(z, three), model(z, five)
        assert (threes - fives).abs().amax((1, 2, 3)).min() > 1e-3
        assert torch.equal(inputs[0], inputs[2]) and torch.equal(inputs[1], inputs[3])      # up to the first norm
        model.encoder.weight[3] = model.encoder.weight[5]
        torch.testing.assert_close(model(z, three), fives, rtol=0, atol=0)
        model.encoder.weight[3] += 1
        for block in model.blocks:                         # norms that do not see the embedding
            for norm in (block.norm1, block.norm2):
                for layer in (norm.gain, norm.bias):
                    own_weight(layer)[:, :6] = 0
        torch.testing.assert_close(model(z, three), model(z, five), rtol=0, atol=0)


def test_without_labels_the_norms_read_the_chunks_alone():
    model = trained(tiny(condition="none"))
    assert model.generator.encoder is None and model.discriminator.encoder is None
    assert model.generator.blocks[0].norm1.gain.in_features == 4
    images = model.sample(3, seeds=[1, 2, 3])
    assert (images[0] - images[1]).abs().max() > 1e-3
    with pytest.raises(UserError, match="condition=none"):
        model.sample(1, condition=[1])


# ---- both networks: orthogonal weights, spectral norm, attention ----


@pytest.mark.parametrize("down", ["strided", "pool"])
def test_weights_are_orthogonal_at_initialisation(down):
    model = tiny((28, 28), 3, discriminator_down=down)
    named = [*weights(model.generator), *weights(model.discriminator)]
    assert len(named) == 1 + 1 + 2 * 7 + 4 + 1 + (3 * 3 + 4 + 1 + 1)
    for name, module in named:
        matrix = module.weight.detach().flatten(1)
        matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.T
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), rtol=0, atol=1e-5, msg=name)
        assert getattr(module, "bias", None) is None or not module.bias.any(), name


def test_spectral_norm_is_on_every_layer_but_the_generators_embedding():
    model = tiny()
    bare = [name for name, module in [*weights(model.generator), *weights(model.discriminator)]
            if not is_parametrized(module)]
    assert bare == ["encoder"] and not is_parametrized(model.generator.encoder)
    assert is_parametrized(model.discriminator.encoder)


@pytest.mark.parametrize("head", ["mean", "sum"])
def test_the_discriminator_projects_on_the_embedding_of_the_label(head):
    model = tiny(discriminator_head=head).discriminator.eval()
    features, images = [], batch_of(4)["image"]
    model.head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    three, five = (model(images, torch.full((4,), label)) for label in (3, 5))
    table = own_weight(model.encoder) / torch.linalg.matrix_norm(own_weight(model.encoder), 2)
    torch.testing.assert_close(three - five, features[0] @ (table[3] - table[5]), rtol=1e-3, atol=1e-5)
    grid = F.relu(model.layers(images))
    torch.testing.assert_close(features[0], grid.mean((2, 3)) if head == "mean" else grid.sum((2, 3)))


def test_largest_singular_values_are_one_after_training_and_the_vectors_are_kept(tmp_path):
    model = trained(tiny(), steps=20)
    for network in (model.generator, model.discriminator):
        network.eval()
        for _ in range(300):
            iterate(spectral_norms(network))
        for name, module in weights(network):
            if is_parametrized(module):
                assert torch.linalg.matrix_norm(module.weight.flatten(1), 2).item() == pytest.approx(1, rel=0.01), name
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "biggan.ckpt")
    again = load_family(tmp_path / "biggan.ckpt")
    assert type(again) is BigGAN
    for part in ("generator", "discriminator", "ema.network"):
        pairs = list(zip(*(spectral_norms(m.get_submodule(part)) for m in (model, again)), strict=True))
        assert len(pairs) == {"discriminator": 11}.get(part, 20)
        for (old, _), (new, _) in pairs:
            torch.testing.assert_close(list(new.buffers()), list(old.buffers()), rtol=0, atol=0)
    torch.testing.assert_close(again.sample(4, seeds=range(4)), model.sample(4, seeds=range(4)), rtol=0, atol=0)


def test_attention_is_the_identity_at_first_and_then_the_papers():
    torch.manual_seed(0)
    layer, x = SelfAttention(16), torch.randn(2, 16, 6, 4)
    assert torch.equal(layer(x), x)
    assert [m.weight.shape[0] for m in (layer.theta, layer.phi, layer.g, layer.out)] == [2, 2, 8, 16]
    assert all(m.bias is None for m in (layer.theta, layer.phi, layer.g, layer.out))
    with torch.no_grad():
        layer.gain.fill_(0.5)
    expected = x.clone()
    q, k, v = layer.theta(x), F.max_pool2d(layer.phi(x), 2), F.max_pool2d(layer.g(x), 2)
    for n, i, j in product(range(2), range(6), range(4)):
        keys = list(product(range(3), range(2)))
        share = torch.stack([q[n, :, i, j] @ k[n, :, *key] for key in keys]).softmax(0)
        seen = sum(p * v[n, :, *key] for p, key in zip(share, keys, strict=True))
        expected[n, :, i, j] += 0.5 * layer.out.weight[:, :, 0, 0] @ seen
    torch.testing.assert_close(layer(x), expected)
    assert SelfAttention(2)(torch.randn(1, 2, 1, 5)).shape == (1, 2, 1, 5)


@pytest.mark.parametrize(("attention", "side"), [(1, 16), (2, 8)])
def test_both_networks_attend_where_the_image_is_halved_so_often(attention, side):
    model = tiny((32, 32), attention=attention)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention) and not name.startswith("ema"):
            module.register_forward_pre_hook(lambda m, inputs, name=name: seen.update({name: inputs[0].shape[2:]}))
    model.discriminator(model.generator(torch.randn(2, 12), torch.arange(2)), torch.arange(2))
    assert len(seen) == 2 and set(seen.values()) == {(side, side)}


def test_the_penalty_is_on_products_of_different_rows_without_embeddings():
    torch.manual_seed(0)
    wide, tall, table = nn.Conv2d(3, 4, 3), nn.Linear(5, 7), nn.Embedding(3, 3)
    network = nn.ModuleList([wide, tall, table])

    def by_hand() -> torch.Tensor:
        found = torch.zeros(())
        for layer in (wide, tall):
            gram = layer.weight.flatten(1) @ layer.weight.flatten(1).T
            found += (gram * (1 - torch.eye(len(gram)))).square().sum()
        return found

    assert non_orthogonality(network).item() == pytest.approx(by_hand().item(), rel=1e-4) and by_hand() > 0.1
    with torch.no_grad():
        wide.weight *= 10                                  # the diagonal alone: longer rows that stay orthogonal
        orthogonal(network)
        tall.weight.zero_()
        assert non_orthogonality(network).abs() < 1e-5
        wide.weight *= 3
        assert non_orthogonality(network).abs() < 1e-3
        table.weight.fill_(1.0)
        assert non_orthogonality(network).abs() < 1e-3
        wide.weight.normal_()
    normalise(network)                                     # of the weights themselves, not of the divided ones
    expected = own_weight(wide).flatten(1)
    gram = expected @ expected.T
    assert non_orthogonality(network).item() == pytest.approx((gram - gram.diag().diag()).square().sum().item(),
                                                         rel=1e-4)


def test_the_penalty_makes_rows_orthogonal():
    found = {}
    for weight in (0.0, 10.0):
        model = tiny(attention=None, orthogonality=weight, generator_rate=5e-3)
        with torch.no_grad():
            for layer in (model.generator.blocks[0].conv, model.generator.blocks[1].skip):
                own_weight(layer).normal_(0, 0.1)
        found[weight] = non_orthogonality(trained(model, steps=10).generator).item()
    assert found[10.0] < 0.7 * found[0.0], found


# ---- sampling ----


def test_truncation_draws_again_what_lies_outside():
    model = tiny(chunk=40)
    seeds = range(300)
    whole, cut = model.latents(seeds), model.latents(seeds, 1.0)
    assert torch.equal(whole, SeededNoise(seeds)(120))
    assert cut.abs().max() <= 1
    assert cut.var().item() == pytest.approx(0.2911, abs=0.006)                 # of a normal cut off at +-1
    inside = whole.abs() <= 1
    assert torch.equal(cut[inside], whole[inside]) and inside.float().mean().item() == pytest.approx(0.683, abs=0.01)
    torch.testing.assert_close(model.latents([7], 1.0)[0], cut[7], rtol=0, atol=0)      # whatever the batch
    assert model.latents(range(3), 0.01).abs().max() <= 0.01
    with pytest.raises(UserError, match=r"truncation=0.001 leaves hardly any latents: give a number from 0.01 on"):
        model.sample(1, truncation=0.001)
    with pytest.raises(UserError, match="truncation=nan"):
        model.sample(1, truncation=math.nan)


def test_standing_statistics_are_those_of_the_averaged_weights_under_the_truncation():
    model = trained(tiny())
    for truncation in (None, 0.5):
        norm = model.with_standing_statistics(64, truncation).blocks[0].norm1.norm
        grid = model.ema.network.start(model.latents(range(64), truncation)[:, :4]).unflatten(1, (-1, 2, 2))
        torch.testing.assert_close(norm.running_mean, grid.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(norm.running_var, grid.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain, standing = (model.sample(4, seeds=range(4), **asked) for asked in ({}, {"standing_statistics": 64}))
    assert (plain - standing).abs().max() > 1e-3
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_image_k_belongs_to_its_seed_and_label_whatever_the_batch():
    model = trained(tiny())
    seeds, labels = list(range(100, 112)), [k % 10 for k in range(12)]
    for asked in ({}, {"truncation": 0.7}, {"standing_statistics": 64}):
        together = model.sample(12, condition=labels, seeds=seeds, **asked)
        one_by_one = torch.cat([model.sample(1, condition=[y], seeds=[s], **asked)
                                for s, y in zip(seeds, labels, strict=True)])
        torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-4)
        assert (together[0] - together[10]).abs().max() > 1e-3                  # same label, another seed
    drawn = model.sample(12, seeds=seeds)
    torch.testing.assert_close(drawn[3:5], model.sample(2, seeds=seeds[3:5]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("condition", ["label", "none"])
@pytest.mark.parametrize(("channels", "size"), [(2, (16, 16)), (3, (17, 23)), (4, (8, 8)), (1, (28, 28)), (1, (40, 6)),
                                                (3, (32, 32)), (1, (2, 3))])
def test_any_size_and_channels(condition, channels, size):
    small = max(size) < 8
    model = trained(tiny(size, channels, condition, **({"attention": None} if small else {})), steps=1, n=4)
    images = model.sample(3, condition=[0, 1, 2] if condition == "label" else None, seeds=[5, 6, 7])
    assert images.shape == (3, channels, *size) and images.abs().max() <= 1
    assert images.std() > 1e-3


# ---- recipes and options ----


def test_the_gpu_recipe_has_the_sizes_of_studiogan():
    larger = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "size" / "biggan_gpu.yaml").model)
    recipe = options(**larger)
    assert (recipe["generator_every"], recipe["betas"], recipe["generator_rate"]) == (5, [0.5, 0.999], 2e-4)
    recipe |= {"generator_widths": [w // 48 for w in recipe["generator_widths"]],
               "discriminator_widths": [w // 48 for w in recipe["discriminator_widths"]]}
    model = BigGAN(3, (32, 32), classes=10, condition="label", **recipe)
    assert (model.generator.latent, model.generator.encoder.weight.shape) == (80, (10, 128))
    assert model.generator.grid == (4, 4) and [w * 48 for w in (8, 8, 8, 8)] == larger["generator_widths"]
    grids = []
    for layer in model.discriminator.layers:
        layer.register_forward_hook(lambda module, inputs, output: grids.append(tuple(output.shape[1:])))
    model.discriminator(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))
    assert grids == [(4, 16, 16)] * 2 + [(4, 8, 8)] * 3 and larger["discriminator_widths"] == [192] * 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": "hing"}, "model.loss=hing .* 'hinge'"),
        ({"loss": "wasserstein"}, "model.loss=wasserstein"),
        ({"discriminator_down": "stride"}, "model.discriminator_down=stride"),
        ({"discriminator_head": "max"}, "model.discriminator_head=max"),
        ({"attention": 3}, "model.attention=3 .* doubles 2 times: give a number of halvings from 1 to 2, or null"),
        ({"attention": 2, "discriminator_grid": 8, "size": (16, 16)}, "discriminator that halves 1 times"),
        ({"accumulate": 0}, "model.accumulate=0 leaves no step"),
        ({"generator_every": 0}, "model.generator_every=0 leaves no step"),
        ({"augment": ["color"]}, "'colour'"),
    ],
)
def test_impossible_options_are_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**changes)
