"""Neighbours of pictures, and translations by what is said: how far, by which seed, and from which family."""

import pytest
import torch

from aigc.editing.translate import translate
from aigc.editing.vary import vary
from aigc.errors import UserError

from .models import test_dalle, test_stylegan2, test_vae, test_vqgan
from .models.test_diffusion import tiny
from .translators import Negative

SAID = {"condition": "none"}


def pictures(n=3, side=8):
    return test_dalle.batch_of(n, (side, side))["image"]


@pytest.mark.parametrize("name", ["diffusion", "ddpm", "edm"])
@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "heun", "dpmpp_2m"])
def test_diffusion_goes_part_of_the_way_and_back(name, sampler):
    family, images = tiny(name, **SAID), pictures()
    options = {"steps": 10, "sampler": sampler}
    far = [float((vary(family, images, None, range(3), strength=s, options=options) - images).abs().mean())
           for s in (0.0, 0.09, 0.3, 1.0)]
    assert far[0] == far[1] == 0 and 0 < far[2] < far[3], "int(10 * 0.09) is no step"
    made = vary(family, images, None, range(3), strength=0.5, options=options)
    alone = vary(family, images[1:2], None, [1], strength=0.5, options=options)
    torch.testing.assert_close(alone[0], made[1], atol=1e-4, rtol=1e-4)
    assert not torch.equal(made, vary(family, images, None, range(5, 8), strength=0.5, options=options))
    if name == "diffusion":                                # at pure noise nothing is left of the picture
        whole = vary(family, images, None, range(3), strength=1.0, options=options)
        assert torch.equal(whole, family.sample(3, seeds=range(3), **options))
    large = vary(family, pictures(1, 20), None, [3], strength=0.5, options=options)
    assert large.shape == (1, 1, 20, 20)


def test_the_last_steps_are_counted_as_in_the_paper():
    family, asked = tiny(**SAID), []
    predict = family.predict
    family.predict = lambda *words, **more: asked.append(1) or predict(*words, **more)
    for strength, steps in ((0.5, 5), (0.79, 7), (1.0, 10)):
        asked.clear()
        vary(family, pictures(), None, range(3), strength=strength, options={"steps": 10, "sampler": "ddim"})
        assert len(asked) == steps


@pytest.mark.parametrize("case", ["vae", "kl", "fsq"])
def test_latents_go_to_their_neighbours_and_stay_as_likely(case):
    family = test_vae.tiny() if case == "vae" else test_vqgan.tiny(case, (8, 8), 1)
    family, images = family.eval(), pictures()
    same = vary(family, images, None, range(3), strength=0.0)
    torch.testing.assert_close(same, family.decode(family.encode(images)), atol=1e-5, rtol=1e-5)
    made = vary(family, images, None, range(3), strength=0.8)
    torch.testing.assert_close(vary(family, images[2:], None, [2], strength=0.8)[0], made[2], atol=1e-4, rtol=1e-4)
    if case == "vae":
        other = vary(family, -images, None, range(3), strength=1.0)
        torch.testing.assert_close(other, vary(family, images, None, range(3), strength=1.0))


def test_a_label_is_what_pictures_become():
    family, images = tiny(), pictures()
    options = {"steps": 6, "guidance": 3.0}
    made = [translate(family, images, None, range(3), strength=0.8, label=label, options=options) for label in (0, 1)]
    assert float((made[0] - made[1]).abs().max()) > 1e-3
    assert torch.equal(translate(family, images, None, range(3), strength=0.0, label=1), images)
    plain = Negative(1, (8, 8), least=1)
    assert torch.equal(translate(plain, images, None, range(3)), -images)


@pytest.mark.parametrize(("family", "task", "options", "sentence"), [
    (tiny, vary, {"strength": 1.5}, "task.strength=1.5 is no strength: give one from 0 to 1"),
    (tiny, translate, {}, "a Diffusion translates by what is said: give task.label= or task.text="),
    (tiny, translate, {"label": 1, "strength": -1}, "task.strength=-1 is no share of the way to noise"),
    (tiny, translate, {"label": 9}, "label=9 is not a class"),
    (lambda: Negative(1), translate, {"label": 1}, "a Negative goes in a direction: leave task.text"),
    (test_vae.tiny, vary, {"options": {"steps": 3}}, "draws its neighbours without any sampling"),
    (test_stylegan2.tiny, vary, {}, "searches for the latents of each picture, for seconds"),
])
def test_mistakes_are_one_sentence(family, task, options, sentence):
    with pytest.raises(UserError) as caught:
        task(family(), pictures(), None, range(3), **options)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
