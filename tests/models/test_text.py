"""Families conditioned on texts: losses, guidance, batches, dropping, checkpoints."""

import pytest
import torch
from omegaconf import OmegaConf

from aigc.conditions.vocabulary import build_vocabulary
from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.models.biggan import BigGAN, orthogonal
from aigc.models.diffusion import Diffusion
from aigc.models.gan import GAN
from aigc.models.stylegan2 import StyleGAN2
from aigc.networks.spectral_norm import spectral_norms
from tests.families import SMALLEST
from tests.models.test_diffusion import TINY_DIT, recipe

TEXTS = ["a red circle", "a large blue square left of a small red star", "", "a star"]
TEXT = {"width": 16, "layers": 1, "heads": 2, "tokens": 16}
TINY = {
    Diffusion: {"network": {"width": 8, "multipliers": [1, 2], "vector": 16, "patch": 1}},
    GAN: {"latent": 8, "generator_widths": [8, 8, 4], "discriminator_widths": [4, 8, 8], "embedding": 4,
          "init_std": 0.2},
    BigGAN: SMALLEST["biggan"],
    StyleGAN2: {**SMALLEST["stylegan2"], "augment_target": 0.0},
}
FAMILIES = {"diffusion": Diffusion, "dit": Diffusion, "gan": GAN, "biggan": BigGAN, "stylegan2": StyleGAN2}


def tiny(name, **changes):
    torch.manual_seed(0)
    family = FAMILIES[name]
    if name == "dit":
        numbers = {**recipe("dit"), "dit": TINY_DIT}
    else:
        numbers = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / f"{name}.yaml").model)
        numbers.pop("_target_")
    for key, value in TINY[family].items():
        numbers[key] = {**numbers[key], **value} if isinstance(value, dict) else value
    numbers["text"] |= TEXT | changes.pop("text", {})
    vocabulary = build_vocabulary(TEXTS, kind=numbers["text"]["words"])
    model = family(3, (8, 8), condition="text", vocabulary=vocabulary, **{**numbers, **changes})
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # what starts silent would hide every difference
        if parameter.dim() > 1 and not parameter.any():
            parameter.data.normal_(0, 0.2, generator=generator)
    for average, source in model.averages():
        average.network.load_state_dict(source.state_dict())
    return model.eval()


def batch_of(n=8):
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(n, 3, 8, 8, generator=generator) * 2 - 1
    return {"image": images, "text": [TEXTS[k % 4] for k in range(n)], "index": torch.arange(n)}


@pytest.mark.parametrize(("name", "golden"), [("diffusion", (2.053927, 2.110698)), ("dit", (2.280161, 2.228134))])
def test_golden_losses_of_diffusion(name, golden):
    model, batch = tiny(name), batch_of()
    torch.manual_seed(3)
    trained = float(model.training_step(batch, 0)["loss"].detach())
    held_out = float(model.validation_step(batch, 0)["loss"])
    assert (trained, held_out) == pytest.approx(golden, abs=1e-4)


def test_golden_losses_of_the_gan():
    model, batch = tiny("gan"), batch_of()
    ids = model.generator.encoder.tokenize(batch["text"])
    torch.manual_seed(2)
    fake = model.generator(torch.randn(8, 8), ids)
    on_real, on_fake = (model.discriminator(images, ids).mean().item() for images in (batch["image"], fake))
    assert (on_real, on_fake) == pytest.approx((-0.005737, 0.003484), abs=1e-4)


GOLDEN = {"biggan": (-0.347964, -0.639579), "stylegan2": (0.271979, 0.168121)}


@pytest.mark.parametrize("name", GOLDEN)                   # mean logits of real and of generated images
def test_golden_losses_of_large_gans(name):
    model, batch = tiny(name), batch_of()
    ids = model.generator.encoder.tokenize(batch["text"])
    torch.manual_seed(2)
    with torch.no_grad():
        if name == "biggan":
            fake = model.generator(torch.randn(8, model.generator.latent), ids)
        else:
            fake = model.generator(model.generator.styles(model.generator.style(model.latents(8), ids)), "const")
        got = [model.discriminator(images, ids).mean().item() for images in (batch["image"], fake)]
    assert got == pytest.approx(GOLDEN[name], abs=1e-4)


def test_what_reads_texts_keeps_its_first_weights_and_only_its_vector_has_spectral_norm():
    model = tiny("biggan")
    normed = {id(weight) for player in (model.generator, model.discriminator) for _, weight in spectral_norms(player)}
    readers = [model.generator.encoder, model.discriminator.encoder]
    inside = {name for reader in readers for name, p in reader.named_parameters() if id(p) in normed}
    assert inside == {"pool.parametrizations.weight.original"}
    assert not any(id(p) in normed for p in readers[0].parameters())
    before = [p.clone() for p in readers[0].parameters()]
    orthogonal(model.generator, leave=[*readers[0].modules()])
    assert all(torch.equal(a, b) for a, b in zip(before, readers[0].parameters(), strict=True))


def test_what_reads_texts_learns_at_its_own_rate():
    model = tiny("stylegan2", text_rate=0.05, r1=0.0, path=0.0)
    for optimizer, network in zip(model.configure_optimizers(), (model.discriminator, model.generator), strict=True):
        rest, readers = optimizer.param_groups
        whole = {id(p) for p in network.parameters()}
        of_texts = {id(p) for p in network.encoder.parameters()}
        assert {id(p) for p in readers["params"]} == of_texts and {id(p) for p in rest["params"]} == whole - of_texts
        assert readers["lr"] == pytest.approx(0.05 * rest["lr"])
    assert [len(o.param_groups) for o in tiny("stylegan2", text_rate=1.0).configure_optimizers()] == [1, 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_image_k_ignores_its_batch_and_the_length_of_others_prompts(name):
    model = tiny(name)
    together = model.sample(4, condition=TEXTS, seeds=[5, 6, 7, 8])
    for k, text in enumerate(TEXTS):
        alone = model.sample(1, condition=[text], seeds=[5 + k])
        torch.testing.assert_close(together[k], alone[0], atol=1e-4, rtol=1e-4)
    other = model.sample(4, condition=["a star", *TEXTS[1:]], seeds=[5, 6, 7, 8])
    assert float((other[0] - together[0]).abs().max()) > 1e-3
    torch.testing.assert_close(other[1:], together[1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_prompt_is_no_prompt(name):
    model = tiny(name)
    torch.testing.assert_close(model.sample(2, condition=["", " "], seeds=[1, 2]), model.sample(2, seeds=[1, 2]))


@pytest.mark.parametrize("name", ["diffusion", "dit"])
def test_guidance_is_u_plus_w_times_the_difference_for_texts(name):
    model = tiny(name)
    ids = model.network.encoder.tokenize(TEXTS)
    x, alpha, sigma = torch.randn(4, 3, 8, 8), torch.tensor(0.6), torch.tensor(0.7)
    at = {w: model.denoise(x, alpha, sigma, labels=ids, guidance=w) for w in (0.0, 1.0, 2.5)}
    torch.testing.assert_close(at[0.0], model.denoise(x, alpha, sigma), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(at[2.5], at[0.0] + 2.5 * (at[1.0] - at[0.0]), atol=1e-5, rtol=1e-5)
    difference = (at[1.0] - at[0.0]).abs().amax((1, 2, 3))
    assert float(difference[2]) < 1e-5 < 1e-3 < float(difference[[0, 1, 3]].min())  # the third prompt is empty


@pytest.mark.parametrize("name", ["diffusion", "dit"])
def test_learns_from_a_word_at_the_end_which_picture_a_text_is_of(name):
    model = tiny(name, warmup_images=0, decay_from=1.0, lr=5e-3, text_sampling=None)
    optimizer, which = model.configure_optimizers(), torch.arange(32) % 2
    texts = ["a large blue square left of a small red star", "a large blue square left of a small red circle"]
    batch = {"image": (which * 1.6 - 0.8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8), "text": [texts[k] for k in which]}
    torch.manual_seed(0)
    for _ in range(100):
        loss = model.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        model.configure_gradient_clipping(optimizer)
        optimizer.step()
    model.ema.network.load_state_dict(model.network.state_dict())
    made = model.sample(6, condition=[texts[0]] * 3 + [texts[1]] * 3, seeds=range(6), guidance=1, steps=8)
    assert [float(one.mean()) for one in made] == pytest.approx([-0.8] * 3 + [0.8] * 3, abs=0.25)


def test_text_guidance_is_the_recipes_and_an_option_overrides_it():
    model = tiny("diffusion", text_sampling={"guidance": 3.0, "guidance_interval": None})
    options = {"condition": TEXTS, "seeds": range(4), "steps": 3}
    assert torch.equal(model.sample(4, **options), model.sample(4, **options, guidance=3.0))
    assert not torch.equal(model.sample(4, **options), model.sample(4, **options, guidance=1.0))


def test_styles_of_another_text_from_a_layer_on():
    model = tiny("stylegan2")
    options = {"condition": ["a star"] * 2, "seeds": [3, 4], "noise": "const"}
    other = model.sample(2, **{**options, "condition": ["a red circle"] * 2}, mix=0, mix_seed=7)
    torch.testing.assert_close(model.sample(2, **options, mix=0, mix_seed=7, mix_text="a red circle"), other)
    mixed = model.sample(2, **options, mix=1, mix_text="a red circle")
    assert float((mixed - model.sample(2, **options)).abs().amax((1, 2, 3)).min()) > 1e-3
    with pytest.raises(UserError, match="no sampling option 'mix_label': choose from cutoff, mix, mix_seed, mix_text"):
        model.sample(2, **options, mix=1, mix_label=3)


@pytest.mark.parametrize(("name", "option"), [("diffusion", "drop"), ("gan", "text_drop"), ("stylegan2", "text_drop")])
def test_texts_are_dropped_with_all_their_tokens(name, option):
    model, lengths = tiny(name, **{option: 0.4}), []
    reader = (model.network if name == "diffusion" else model.generator).encoder.transformer
    reader.register_forward_hook(lambda module, inputs, output: lengths.append((inputs[0] >= 0).sum(1)))
    batch = {"image": torch.zeros(600, 3, 8, 8), "text": [TEXTS[1]] * 600}
    torch.manual_seed(0)
    if name == "diffusion":
        model.training_step(batch, 0)
    else:
        model.optimizers = lambda: (None, None)
        with pytest.raises(AttributeError):  # no optimizers: the generator has read its texts by then
            model.training_step(batch, 0)
    assert set(lengths[0].tolist()) == {0, 10}             # two-player families share `told`
    assert float((lengths[0] == 0).float().mean()) == pytest.approx(0.4, abs=0.06)


def test_the_network_reads_words_only_where_the_recipe_says():
    plain = tiny("diffusion", text_network={"cross_attention": [], "attention": []})
    assert not any(module.reading for module in plain.network.modules() if hasattr(module, "reading"))
    ids = plain.network.encoder.tokenize(TEXTS)
    x, t = torch.randn(4, 3, 8, 8), torch.zeros(4)
    difference = plain.network(x, t, ids) - plain.network(x, t, None)
    assert float(difference[0].abs().max()) > 1e-4  # the vector still modulates
    both = tiny("diffusion", text_network={"cross_attention": [0, 1]})
    assert sum(module.reading is not None for module in both.network.modules() if hasattr(module, "reading")) == 5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("words", ["words", "bytepairs"])
def test_checkpoint_holds_its_vocabulary_and_loads_weights_only(name, words, tmp_path):
    model = tiny(name, text={"words": words})
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(content, tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert all(type(entry) is str for entry in kept["hyper_parameters"]["vocabulary"])
    again = FAMILIES[name](**kept["hyper_parameters"]).eval()
    again.load_state_dict(kept["state_dict"])
    options = {"condition": TEXTS, "seeds": range(4)}
    assert torch.equal(again.sample(4, **options), model.sample(4, **options))


def test_standing_statistics_need_texts_that_a_model_does_not_hold():
    with pytest.raises(UserError, match="standing_statistics needs texts"):
        tiny("gan").sample(1, condition=["a star"], standing_statistics=64)
