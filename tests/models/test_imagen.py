"""Imagen's cascade: one stage a step, shares of a budget, one resize, stages in a row, resumed anywhere."""

import json
import os
import signal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aigc.conditions.frozen import FrozenText
from aigc.config.schema import to_plain
from aigc.errors import UserError
from aigc.images.streams import counting
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.models.imagen import STAGE, Imagen, merged
from aigc.networks.resample import resize
from aigc.noise import mix
from aigc.training.fit import fit
from tests.conftest import compose_train
from tests.families import words
from tests.models.test_diffusion import TINY, batch_of, recipe, wake
from tests.models.test_imagen_sr import psnr
from tests.test_resume import assert_same, curve

SMALL = {"network": TINY, "upscaler": {"network": {"blocks": 1}, "crop": 8, "sampler": {"steps": 2}},
         "sampler": {"steps": 2}, "text": {"width": 16, "layers": 1, "heads": 2}}


def tiny(*, size=(16, 16), channels=1, condition="none", awake=True, learned=True, **overrides):
    torch.manual_seed(0)
    facts = {"classes": 3 if condition == "label" else None,
             "vocabulary": ["<unknown>", "red", "star"] if condition == "text" else None}
    model = Imagen(channels, size, condition=condition, **facts, **merged(merged(recipe("imagen"), SMALL), overrides))
    for stage in model.stages if awake else ():
        wake(stage)
    if learned:
        model.seen += 64
    return model.eval()


# float32, one CPU: first loss of each stage and validation losses of the tiny networks
GOLDEN = {
    "none": ((1.476219, 1.256300, 1.809567), (1.552396, 1.290102, 1.871735)),
    "label": ((1.436916, 1.674794, 1.421288), (1.505645, 1.604143, 1.295563)),
}


@pytest.mark.parametrize("condition", GOLDEN)
def test_golden_losses(condition):
    model, batch = tiny(condition=condition), batch_of(size=(16, 16))
    trained = []
    for k, name in enumerate(("base", "upscaler1", "upscaler2")):
        model.active = k
        torch.manual_seed(3)
        losses = model.training_step(batch, 0)
        assert losses.keys() == {"loss", f"loss/{name}"} and losses["loss"].requires_grad
        trained.append(float(losses["loss"].detach()))
    held_out = model.validation_step(batch, 0)
    assert held_out.keys() == {"loss", *(f"loss/{name}" for name in model.names),
                               "bicubic_psnr/upscaler1", "bicubic_psnr/upscaler2"}
    own = [float(held_out[f"loss/{name}"]) for name in model.names]
    assert float(held_out["loss"]) == pytest.approx(sum(own) / 3)
    assert [*trained, *own] == pytest.approx([*GOLDEN[condition][0], *GOLDEN[condition][1]], abs=1e-4)


def test_stages_that_enlarge_have_the_recipe_of_imagen_sr():
    own, theirs = recipe("imagen"), recipe("imagen_sr")
    made = merged({name: value for name, value in own.items() if name in theirs}, own["upscaler"])
    assert {**made, "factor": theirs["factor"]} == theirs and own["factors"] == [2, 2]
    composed = to_plain(compose_train("model=imagen", common=False).model)
    assert {name: composed[name] for name in own} == own


def test_the_gpu_recipe_is_a_base_of_64_px_with_strong_guidance_and_an_efficient_unet_to_256():
    model = to_plain(compose_train("model=imagen", "size=gpu", common=False).model)
    model.pop("_target_")
    with torch.device("meta"):
        base, upscaler = Imagen(3, (256, 256), condition="text", vocabulary=["<unknown>"], **model).stages
    assert (base.hparams.size, upscaler.hparams.size, upscaler.factor) == ((64, 64), (256, 256), 4)
    sizes = [sum(p.numel() for p in stage.network.parameters()) / 1e6 for stage in (base, upscaler)]
    assert sizes == pytest.approx([229, 128], abs=1)
    assert base.settings({})["guide"] == "dynamic_threshold" and base.settings({})["guidance"] == 5
    assert upscaler.settings({})["guidance"] == 1 and "guide" not in upscaler.settings({})
    assert upscaler.hparams.network["skip_scale"] == 0.7071 and upscaler.hparams.processes["flow"]["mean"] == 1


# ---- what stages learn from ----


@pytest.mark.parametrize(("size", "factors", "sizes"), [
    ((16, 16), [2, 2], [(4, 4), (8, 8), (16, 16)]), ((17, 30), [2, 3], [(3, 5), (6, 10), (17, 30)]),
])
def test_pictures_of_training_are_made_small_in_the_steps_in_which_they_are_enlarged(size, factors, sizes):
    model, images = tiny(size=size, factors=factors), batch_of(4, size=size)["image"]
    assert [stage.hparams.size for stage in model.stages] == sizes
    expected = [images]
    for smaller in reversed(sizes[:-1]):
        expected.insert(0, resize(expected[0], smaller).clamp(-1, 1))
    for k, picture in enumerate(expected):
        assert torch.equal(model.picture(images, k), picture)
    seen = []
    for stage in model.stages:
        stage.training_step = lambda batch, k, seen=seen: seen.append(batch["image"]) or {"loss": torch.zeros(())}
    for model.active in range(3):
        model.training_step({"image": images}, 0)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_a_step_trains_one_stage_and_leaves_the_others_and_their_averages_as_they_are():
    model = tiny(condition="label", learned=False, weight_decay=0.5, warmup_images=0)
    batch = batch_of(8, size=(16, 16))
    optimizer, moves = model.configure_optimizers(), [ema.follow(network) for ema, network in model.averages()]
    for model.active in (1, 0, 2):
        before = [[p.clone() for p in stage.parameters()] for stage in model.stages]
        known = len(optimizer.state)
        model.training_step(batch, 0)["loss"].backward()
        model.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        for move, images in zip(moves, model.learned_images(), strict=True):
            if images is not None:
                move(images, 8)
        moved = [any(not torch.equal(a, b) for a, b in zip(old, stage.parameters(), strict=True))
                 for old, stage in zip(before, model.stages, strict=True)]
        assert moved == [k == model.active for k in range(3)]
        assert known < len(optimizer.state) <= known + len(list(model.stages[model.active].network.parameters()))
        assert model.learned_images() == [8 if k == model.active else None for k in range(3)]
    assert model.seen.tolist() == [8, 8, 8]


# ---- whose turn it is ----


def test_each_stage_has_its_share_of_the_budget_and_rates_of_its_own():
    model = tiny(shares=[2, 1, 1], learned=False, warmup_images=0, decay_from=0.5, awake=False)
    model.progress.budget_images = 800
    found = {}
    for model.progress.images in (0, 200, 300, 399, 400, 500, 550, 600, 799, 800):
        stage, spent = model.turn()
        model.active, model.stages[stage].progress.spent = stage, spent
        found[model.progress.images] = (stage, spent, model.rate_factor())
    assert found == {0: (0, 0, 1), 200: (0, 0.5, 1), 300: (0, 0.75, 0.5), 399: (0, 0.9975, pytest.approx(0.005)),
                     400: (1, 0, 1), 500: (1, 0.5, 1), 550: (1, 0.75, 0.5), 600: (2, 0, 1),
                     799: (2, pytest.approx(0.995), pytest.approx(0.01)), 800: (2, 1, 0)}
    model.progress.budget_seconds, model.progress.seconds, model.progress.images = 60.0, 33.0, 0
    assert model.turn() == (1, pytest.approx(0.2)), "minutes count as images do"


def test_a_stage_warms_up_by_its_own_images_and_one_without_a_share_never_learns():
    model = tiny(shares=[0, 1, 0], warmup_images=100, decay_from=1.0, awake=False)
    model.progress.budget_images = 10
    assert {(model.turn()[0], model.progress.images) for model.progress.images in range(11)} == {
        (1, k) for k in range(11)}
    model.active, model.progress.images = 1, 5
    model.stages[1].progress.images = 49
    assert model.rate_factor() == pytest.approx(0.5)


def test_without_a_budget_stages_take_turns_by_their_shares():
    model = tiny(shares=[0.5, 0.25, 0.25], awake=False)
    turns = []
    for model.progress.batches in range(1000):
        stage, spent = model.turn()
        assert spent == 0
        turns.append(stage)
    assert [turns.count(k) for k in range(3)] == pytest.approx([500, 250, 250], abs=5)
    for k in range(3):
        places = [i for i, stage in enumerate(turns) if stage == k]
        assert max(b - a for a, b in pairwise(places)) <= 8, "none waits long"


# ---- sampling ----


def test_a_sample_is_the_bases_enlarged_by_each_stage_with_seeds_of_its_own():
    model = tiny(condition="label")
    base, first, second = model.stages
    seeds, labels = [5, 9], [2, 0]
    made = [base.sample(2, condition=labels, seeds=seeds)]
    for k, stage in enumerate((first, second), 1):
        own = [mix(seed, STAGE, k) for seed in seeds]
        made.append(stage.upscale(made[-1], condition=labels, seeds=own))
    found = model.pictures(2, condition=labels, seeds=seeds)
    assert [tuple(one.shape) for one in found] == [(2, 1, 4, 4), (2, 1, 8, 8), (2, 1, 16, 16)]
    assert all(torch.equal(a, b) for a, b in zip(found, made, strict=True))
    assert torch.equal(model.sample(2, condition=labels, seeds=seeds), made[-1])
    torch.testing.assert_close(model.sample(1, condition=[0], seeds=[9]), made[-1][1:])


def test_options_are_the_bases_and_each_stage_has_its_own():
    model = tiny(condition="label")
    given = {"condition": [1, 2], "seeds": [3, 4]}
    base, first, second = model.pictures(2, **given)

    def same(**options):
        return [torch.equal(a, b) for a, b in zip((base, first, second), model.pictures(2, **given, **options),
                                                  strict=True)]

    assert same(level=0.1) == same(level=[0.1, 0.1], upscalers={"steps": 2}) == [True] * 3        # the recipe's
    assert same(level=[0.1, 0.3]) == same(upscalers=[{}, {"level": 0.3}]) == [True, True, False]
    assert same(level=[0.3, None]) == same(upscalers=[{"guidance": 2.0}, {}]) == [True, False, False]
    assert same(guidance=3.0) == [False] * 3
    counted = SimpleNamespace(rows=0)
    with counting(model, counted):
        model.sample(2, **given, steps=1, sampler="euler", guidance=1.0, upscalers=[{"steps": 1, "sampler": "euler"},
                                                                                    {"steps": 3}])
    assert counted.rows == 2 * (1 + 1 + 5), "heun's 3 steps are 5 evaluations"
    strong = model.sample(2, **given, guidance=30.0)
    kept = model.sample(2, **given, guidance=30.0, guide="dynamic_threshold",
                        upscalers={"guide": "dynamic_threshold"})
    assert float(kept.abs().max()) <= 1 and not torch.equal(kept, strong)


def test_labels_that_are_left_out_are_the_same_in_every_stage():
    model = tiny(condition="label")
    labels = model.stages[0].labels(None, range(4, 12))
    drawn = model.sample(8, seeds=range(4, 12))
    assert len(set(labels.tolist())) > 1 and torch.equal(drawn, model.sample(8, condition=labels, seeds=range(4, 12)))


def test_captions_reach_every_stage_and_an_empty_one_is_none():
    model = tiny(condition="text")
    given = {"seeds": [1, 2]}
    red = model.pictures(2, condition=["red", "red star"], **given)
    star = model.pictures(2, condition=["red star", "red"], **given)
    assert all(not torch.equal(a, b) for a, b in zip(red, star, strict=True))
    for k, stage in enumerate(model.stages[1:], 1):
        again = stage.upscale(red[k - 1], condition=["red", "star"], seeds=[mix(s, STAGE, k) for s in (1, 2)])
        assert torch.equal(again[0], red[k][0]) and not torch.equal(again[1], red[k][1]), "the same picture and noise"
    assert torch.equal(model.sample(2, **given), model.sample(2, condition=["", ""], **given))


def test_stages_share_a_frozen_encoder_which_reads_a_prompt_once_and_not_once_a_step(monkeypatch):
    read, table = [], nn.Embedding(8, 12)

    def features(ids, mask):
        read.append(len(ids))
        return table(ids.clamp(min=0))

    frozen = FrozenText(table, lambda text: [len(text), 1], features=features, width=12, tokens=4)
    monkeypatch.setattr("aigc.conditions.text.load_frozen", lambda kind, name: frozen)
    model = tiny(condition="text", text={"encoder": "transformers", "name": "some"})
    assert all(stage.network.encoder.frozen is stage.ema.network.encoder.frozen is frozen for stage in model.stages)
    assert not any(name.endswith("table.weight") for name in model.state_dict())
    model.sample(3, condition=["red", "star", ""], seeds=range(3), guidance=1.0, steps=4)
    assert read == [2], "the empty one needs no encoder"


def test_stages_that_have_not_learned_enlarge_by_the_resize():
    model = tiny(learned=False)
    base, first, second = model.pictures(2, seeds=[1, 2])
    assert torch.equal(first, resize(base, (8, 8)).clamp(-1, 1))
    assert torch.equal(second, resize(first, (16, 16)).clamp(-1, 1))
    assert set(model.panels(batch_of(2, size=(16, 16)))) == {"stages"}
    with pytest.raises(UserError, match="the last stage of this cascade has not learned yet: train it for longer"):
        model.upscale(base)
    model.seen[1] += 8
    again = model.pictures(2, seeds=[1, 2])
    assert torch.equal(again[0], base) and not torch.equal(again[1], first)
    assert torch.equal(again[2], resize(again[1], (16, 16)).clamp(-1, 1))
    model.seen[2] += 8
    panels = model.panels(batch_of(2, size=(16, 16)))
    assert {name: tuple(shown.shape) for name, shown in panels.items()} == {
        "stages": (2, 1, 16, 3 * 16), "upscaled": (2, 1, 16, 5 * 16)}
    assert model.upscale(torch.zeros(2, 1, 5, 7), seeds=[1, 2], level=0.3).shape == (2, 1, 10, 14)
    assert model.can("sample") and model.can("upscale") and not model.can("denoise") and not model.reconstructs


def test_a_result_made_small_is_near_what_the_stage_before_made():
    model = tiny(awake=False, size=(32, 32), sigma_data=0.5, upscaler={"detail": 0.1})
    smooth = resize(0.5 * batch_of(16, size=(4, 4))["image"], (8, 8))
    model.stages[0].sample = lambda n, **given: smooth
    made = model.pictures(16, seeds=range(16), level=0.0, upscalers={"steps": 20, "spacing": "karras"})
    assert made[0] is smooth
    for stage, small, large in zip(model.stages[1:], made, made[1:], strict=False):
        assert psnr(stage.small(large), small) > 30
        assert psnr(large, resize(small, large.shape[2:])) < 28, "and more than its resize"


# ---- mistakes ----


@pytest.mark.parametrize(("options", "sentence"), [
    ({"factors": []}, r"model.factors=\[\] name no stage that enlarges: give some, or train model=diffusion"),
    ({"factors": [2, 1]}, "model.factors must be a whole number of at least 2, not 1"),
    ({"shares": [1, 1]}, r"model.shares has 2 entries, and model.factors=\[2, 2\] make it 3: give as many"),
    ({"upscalers": [{}]}, r"model.upscalers has 1 entries, .* make it 2"),
    ({"shares": [1, -1, 1]}, r"model.shares=\[1, -1, 1\] divide no budget"),
    ({"shares": [0, 0, 0]}, r"model.shares=\[0, 0, 0\] divide no budget"),
    ({"first_stage": "runs/some"}, "model.first_stage has no place in imagen, whose stages work on pixels"),
    ({"base": {"lr": 0.1}}, "model.base.lr=0.1 would be one stage's alone, and all of them share it: give model.lr"),
    ({"upscaler": {"factor": 4}}, "model.upscaler.factor=4 would be one stage's alone"),
    ({"base": {"crop": 8}}, "model.base has no option 'crop'"),
    ({"upscalers": [{}, {"levl": 0.2}]}, "model.upscalers has no option 'levl': .*level"),
    ({"upscaler": {"level": 0.7}}, "level=0.7 is no level of noise that this model learned from"),
    ({"size": (4, 4)}, "leaves less than 2 pixels of images of 2 x 2"),
])
def test_mistakes_are_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**options)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"level": [0.1]}, r"level=\[0.1\] has 1 entries for 2 stages that enlarge: give one for each, or one for all"),
    ({"level": 0.9}, "level=0.9 is no level"),
    ({"upscalers": 3}, r"upscalers=3 are no options: give them by name, such as \{steps: 8\}"),
    ({"upscalers": {"stps": 3}}, "no option 'stps'"),
    ({"stps": 3}, "no option 'stps'"),
    ({"guidance": 2.0}, "This model was trained with condition=none"),
])
def test_mistakes_in_sampling_are_one_sentence_before_any_work(options, sentence):
    model = tiny()
    for stage in model.stages:
        stage.drawn = None
    with pytest.raises(UserError, match=sentence):
        model.sample(1, **options)


# ---- runs ----


def test_stopped_in_the_middle_of_every_stage_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch):
    cfg = compose_train(*words("imagen"), "model.factors=[2,2]", "model.shares=[2,2,2]", "model.upscalers=[{},{}]",
                        "data=digits", "data.size=16", "batch_size=16", "metrics=losses", "metrics.every_images=48",
                        "metrics.validation_images=8", "callbacks.samples.n=4", "log_every=3", "budget.images=144",
                        "budget.minutes=null")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(cfg, whole)["status"] == "finished"
    kept = Imagen.training_step
    for stop in (1, 4, 7):                                     # three steps a stage
        def step(self, batch, batch_idx, stop=stop):
            if self.progress.batches == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return kept(self, batch, batch_idx)

        monkeypatch.setattr(Imagen, "training_step", step)
        stopped = fit(cfg, broken, resumed=stop > 1)
        assert (stopped["status"], stopped["images"]) == ("stopped", 16 * (stop + 1))
    monkeypatch.setattr(Imagen, "training_step", kept)
    assert fit(cfg, broken, resumed=True)["status"] == "finished"
    assert_same(*(read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, broken)))
    assert curve(whole) == curve(broken)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    shown = [{name for name in line if name.startswith("loss/")} for line in lines if "loss" in line]
    assert shown == [{"loss/base"}, {"loss/upscaler1"}, {"loss/upscaler2"}]
    assert next(line["val/loss/upscaler2"] for line in lines if "val/loss" in line) > 0
    names = sorted(path.name for path in (whole / "samples").iterdir())
    assert names == ["000000000.png", "000000000_stages.png", "000000048.png", "000000048_stages.png",
                     "000000096.png", "000000096_stages.png", "000000144.png", "000000144_stages.png",
                     "000000144_upscaled.png"]
    family = load_family(whole, "last")
    assert family.seen.tolist() == [48, 48, 48]
