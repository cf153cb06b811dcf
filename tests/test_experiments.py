"""Named experiments: each composes to a complete configuration that its family can train on."""

import pytest
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR, to_plain
from aigc.training.compatibility import check_compatible

from .conftest import compose_train

EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
NEEDED = {"emoji_cyclegan": ["data.root=emoji", "metrics.weights=squeezenet.safetensors"]}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_complete_and_says_what_for(name):
    text = (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text()
    own = to_plain(OmegaConf.create(text), resolve=False)
    defaults = {key: value for entry in own.pop("defaults") for key, value in entry.items()}
    assert {"override /model", "override /data", "override /metrics"} <= set(defaults)
    assert {"study", "seed", "budget"} <= set(own)              # nothing that decides the result is left to defaults
    cfg = compose_train(f"experiment={name}", *NEEDED.get(name, []), common=False)
    check_compatible(cfg)
    assert not OmegaConf.missing_keys(cfg)
    alone = compose_train(*(f"{key.split('/')[1]}={value}" for key, value in defaults.items()),
                          *(f"data.root={name}" for _ in NEEDED.get(name, [])[:1]), common=False)
    for key in ("model", "data", "metrics"):                    # what is chosen, changed by what stands there alone
        expected = to_plain(OmegaConf.merge(alone[key], own.get(key, {})), resolve=False)
        expected |= {k: v for k, v in to_plain(cfg[key], resolve=False).items() if own.get(key, {}).get(k) == "???"
                     or k == "root"}
        assert to_plain(cfg[key], resolve=False) == expected
    said = [line[2:] for line in text.splitlines()[1:] if line.startswith("# ")]
    assert len(" ".join(said)) > 80 and text.startswith("# @package _global_\n")


def test_an_experiment_gives_way_to_what_is_typed():
    cfg = compose_train("experiment=mnist_gan", "data=digits", "budget.minutes=1", common=False)
    assert cfg.data._target_ == "aigc.data.digits.Digits" and cfg.budget.minutes == 1 and cfg.condition == "label"
