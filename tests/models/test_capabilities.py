"""What a family can do, and the messages of tools that need it."""

import pytest
import torch

from aigc.errors import UserError
from aigc.models.capabilities import models_that_can, require
from aigc.models.cyclegan import CycleGAN
from aigc.models.family import Family, Translator
from aigc.models.gan import GAN
from aigc.models.vae import VAE
from aigc.runs.summary import capabilities_of

from ..translators import Negative


class Scorer(Family):
    def score_text(self, images, texts):
        return torch.zeros(len(images))


def test_capabilities_are_the_methods_of_a_class():
    assert GAN.capabilities() == ["sample"] and CycleGAN.capabilities() == ["translate"]
    assert VAE.capabilities() == ["sample", "encode", "decode"]
    assert Family.capabilities() == [] and Scorer.capabilities() == ["score_text"]
    assert [kind.makes_images() for kind in (GAN, Translator, Scorer, Family)] == [True, True, False, False]


def test_the_choices_that_have_a_capability():
    assert models_that_can("translate") == ["cut", "cyclegan", "palette", "pix2pix", "restorer"]
    assert models_that_can("restore") == ["palette", "restorer"]
    assert {"dcgan", "gan", "vae", "diffusion"} <= set(models_that_can("sample"))
    assert not set(models_that_can("sample")) & {"cut", "cyclegan", "pix2pix"}
    assert "vae" in models_that_can("decode") and models_that_can("score_text") == ["clip"]


@pytest.mark.parametrize(("family", "capability", "message"), [
    (Scorer, "translate", "'here' holds a Scorer, which tells how well texts fit images: task=x needs a run of cut or "
                          "cyclegan or palette or pix2pix or restorer"),
    (Negative, "restore", "'here' holds a Negative, which turns images into images: task=x needs a run of palette or "
                          "restorer"),
    (Negative, "score_text", "turns images into images: task=x needs a run of clip"),
    (type("Imagen", (Negative,), {}), "score_text", "'here' holds an Imagen, which turns images"),
    (Family, "translate", "'here' holds a Family, which makes no images: task=x needs"),
])
def test_a_missing_capability_is_one_sentence(family, capability, message):
    with pytest.raises(UserError, match=message):
        require(family(), capability, run="here", wanted="task=x")
    require(Negative(), "translate", run="here", wanted="task=x")


def test_samples_of_a_family_without_any():
    with pytest.raises(UserError, match="Scorer tells how well texts fit images: it cannot make them from noise"):
        Scorer().sample(1)


def test_condition_is_read_from_the_hyper_parameters():
    assert Scorer().condition == "none" and Negative().condition == "none"


def test_older_summaries_say_only_whether_a_run_translates():
    assert capabilities_of({"translates": True}) == ["translate"] and capabilities_of({}) == ["sample"]
    assert capabilities_of({"translates": False, "capabilities": []}) == []
