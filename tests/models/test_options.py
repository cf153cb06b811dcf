"""Options of a constructor: flat for users, hparams and checkpoints; typed groups for the reader of a family."""

import inspect
from typing import get_type_hints

import pytest
import torch

from aigc.config.targets import instantiate
from aigc.errors import UserError
from aigc.models.checkpoints import load_family
from aigc.models.family import Family
from aigc.models.options import Average, group, grouped, option
from aigc.models.vae import VAE


@group("judge_")
class Judge:
    kind: str = option("judge")
    width: int = 4
    layers: list[int]


class Grouped(Family):
    @grouped
    def __init__(self, channels: int = 1, size: tuple = (8, 8), *, judge: Judge, loss: str, average: Average):
        super().__init__()
        self.save_hyperparameters()
        self.groups = (judge, average)
        self.weight = torch.nn.Parameter(torch.zeros(judge.width))


class Deeper(Grouped):
    """Adds an option of its own, and keeps it without a word, as Lightning does."""

    def __init__(self, depth: int = 3, **options):
        super().__init__(**options)
        self.depth = depth


class Deepest(Deeper):
    @grouped
    def __init__(self, *, floor: int = 1, **options):
        super().__init__(**options)
        self.save_hyperparameters()


FLAT = {"judge": "patch", "judge_layers": [1, 2], "loss": "hinge", "ema_halflife_images": 10.0, "ema_ramp": 0.5}
KEPT = {"channels": 1, "size": (8, 8), "judge_width": 4, **FLAT}


def test_flat_options_are_sorted_into_their_groups_and_kept_flat():
    model = Grouped(**FLAT)
    assert model.groups == (
        Judge(kind="patch", width=4, layers=[1, 2]), Average(halflife_images=10.0, ramp=0.5)
    )
    assert dict(model.hparams) == KEPT and model.hparams_initial == model.hparams
    assert Grouped(**model.hparams).hparams == model.hparams


def test_signature_and_annotations_are_the_flat_ones():
    parameters = inspect.signature(Grouped).parameters
    assert [*parameters] == ["channels", "size", "judge", "judge_width", "judge_layers", "loss", "ema_halflife_images",
                             "ema_ramp"]
    assert parameters["judge_width"].default == 4 and parameters["judge"].default is inspect.Parameter.empty
    hints = get_type_hints(Grouped.__init__)
    assert hints["judge_layers"] == list[int] and hints["ema_ramp"] is float and hints["return"] is type(None)


def test_options_of_subclasses_are_kept_too():
    assert dict(Deeper(depth=5, **FLAT).hparams) == {"depth": 5, **KEPT}
    kept = dict(Deepest(floor=2, depth=5, **FLAT).hparams)
    assert {name: kept[name] for name in ("floor", "depth", "judge", "judge_layers")} == {
        "floor": 2, "depth": 5, "judge": "patch", "judge_layers": [1, 2]
    }


def test_a_family_made_in_the_constructor_of_another_keeps_its_options_apart():
    class Whole(Family):
        def __init__(self, part: str = "x"):
            super().__init__()
            self.save_hyperparameters()
            self.inner = Grouped(**FLAT)

    assert dict(Whole().hparams) == {"part": "x"} and dict(Whole().inner.hparams) == KEPT


def test_two_groups_cannot_have_an_option_of_one_name():
    with pytest.raises(ValueError, match="duplicate parameter name: 'judge_width'"):
        @grouped
        def init(self, *, judge: Judge, judge_width: int):
            """Never called."""


@pytest.mark.parametrize(("change", "message"), [
    ({"ema_rampe": 1}, r"'model' has no option 'ema_rampe': did you mean 'ema_ramp'"),
    ({"ema_ramp": "wide"}, r"'model.ema_ramp' is 'wide', which does not fit float"),
    ({"widths": [8, "a"]}, r"'model.widths' is \[8, 'a'\], which does not fit list\[int\]"),
    ({"mixture_images": None}, r"'model.mixture_images' is None, which does not fit int"),
])
def test_messages_name_flat_options(composed, change, message):
    node = {**composed("model=vae").model, **change}
    with pytest.raises(UserError, match=message):
        instantiate(node, "model", channels=1, size=(8, 8))


def test_a_missing_option_is_named(composed):
    node = dict(composed("model=vae").model)
    del node["ema_halflife_images"]
    with pytest.raises(UserError, match=r"needs the option 'ema_halflife_images'"):
        instantiate(node, "model", channels=1, size=(8, 8))


def test_a_checkpoint_holds_flat_options(composed, tmp_path):
    model = instantiate(composed("model=vae").model, "model", channels=1, size=(8, 8), classes=10)
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(content)
    torch.save(content, tmp_path / "last.ckpt")
    again = load_family(tmp_path / "last.ckpt")
    assert isinstance(again, VAE) and again.hparams == model.hparams
    assert {"latent", "likelihood", "observe", "prior", "mixture_images", "rate", "ema_ramp"} <= set(model.hparams)
