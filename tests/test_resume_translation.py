"""A translation that was interrupted and resumed is the one that never stopped, its pools included."""

import pytest

from aigc.models.checkpoints import read_checkpoint
from aigc.training.fit import fit

from .conftest import compose_train
from .families import words
from .test_resume import assert_same

COMMON = ["data.train=24", "data.validation=8", "data.test=8", "data.size=16", "metrics=none", "~callbacks.samples",
          "trainer=cpu", "logger=none", "batch_size=4", "budget.minutes=null", "model.decay_from=1"]
MODELS = {name: words(name) for name in ("cyclegan", "cut", "pix2pix")}
COMMON_OF = {name: ["data.source.heldout=8", *(
    word.replace("data.", "data.source.") for word in COMMON)] for name in ("restorer", "palette")}
MODELS |= {name: [*words(name), "data.degradations=[noise,strokes]", "model.masks=true"] for name in COMMON_OF}
MODELS |= {f"{name}_of_pairs": [*MODELS[name], "data=shapes_paired"] for name in ("cyclegan", "cut")}
SEEN = {"cyclegan": "unpaired", "cut": "unpaired", "pix2pix": "paired", "cyclegan_of_pairs": "unpaired",
        "cut_of_pairs": "unpaired", "restorer": "paired",       # what each learned from, by its record
        "palette": "paired"}


@pytest.mark.parametrize("name", MODELS)
def test_resumed_equals_uninterrupted(name, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    chosen = [*MODELS[name], *COMMON_OF.get(name, COMMON)]
    fit(compose_train(*chosen, "budget.images=48", common=False), whole)
    fit(compose_train(*chosen, "budget.images=20", common=False), broken)
    early = read_checkpoint(broken / "checkpoints" / "last.ckpt")
    assert early["progress"]["images"] == 20
    summary = fit(compose_train(*chosen, "budget.images=48", common=False), broken, resumed=True)
    assert summary["images"] == 48 and summary["data"]["kind"] == SEEN[name]
    one, other = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (whole, broken))
    assert_same(one, other)
    if name == "cyclegan":
        assert one["pools"]["a"]["images"].shape == (5, 3, 16, 16)
        assert (early["pools"]["a"]["images"] != one["pools"]["a"]["images"]).any()
