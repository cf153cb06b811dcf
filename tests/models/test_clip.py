"""CLIP: closed forms of its loss, the temperature, what each tower sees, equal on several devices, refusals."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from aigc.conditions.rewording import caption_numbers
from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.losses.contrastive import image_text_nce
from aigc.models.clip import CLIP, LARGEST
from aigc.models.requests import prompts_of
from tests import forked
from tests.conftest import environment
from tests.families import SMALLEST

from .clip_ranks import N, tiny_clip, whole_batch

WORDS = ["<unknown>", "a", "red", "blue", "green", "circle", "square", "star"]
TEXTS = [f"a {colour} {shape}" for colour in WORDS[2:5] for shape in WORDS[5:]]


def recipe(name="clip", **changes) -> dict:
    options = OmegaConf.load(CONFIG_DIR / "model" / f"{name}.yaml").model
    for key, value in SMALLEST["clip"].items():
        OmegaConf.update(options, key, value)
    options = OmegaConf.to_container(options)
    options.pop("_target_")
    return {**options, **changes}


def tiny(size=(16, 16), channels=3, *, captions=True, **changes) -> CLIP:
    torch.manual_seed(0)
    options = recipe(**changes)
    options["captions"] |= {} if captions else {"replace": 0.0, "template": 0.0}
    return CLIP(channels, size, vocabulary=[*WORDS, "big", "huge", "disc", "box"], condition="text", **options)


def batch_of(n=8, size=(16, 16), channels=3) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(n, channels, *size, generator=generator) * 2 - 1,
            "text": [TEXTS[k % len(TEXTS)] for k in range(n)], "index": torch.arange(n)}


def awake(model: CLIP) -> CLIP:
    """Its layers that start at zero do something."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


# ---- the loss ----

GOLDEN = {"resnet": (3.645180, 3.583807), "vit": (3.536052, 3.389049)}     # of training, and of held-out pairs


@pytest.mark.parametrize("tower", GOLDEN)
def test_golden_losses(tower):
    model = awake(tiny(tower=tower)).train()
    torch.manual_seed(1)
    loss = model.training_step(batch_of(16), 0)["loss"]
    held = model.eval().validation_step(batch_of(16), 0)["loss"]
    assert (float(loss.detach()), float(held)) == pytest.approx(GOLDEN[tower], abs=2e-5)


def test_without_repeated_captions_it_is_figure_3_of_the_paper():
    images, texts = F.normalize(torch.randn(2, 6, 5), dim=2)
    logits, own = 20 * images @ texts.T, torch.arange(6)
    wanted = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert torch.allclose(image_text_nce(images, texts, torch.arange(6) + 9, scale=20), wanted, atol=1e-6)


def test_equal_captions_share_the_target_in_closed_form():
    """Orthonormal pairs, two of four with one caption: e^s of its kind against 1, and ln 2 for which of the two."""
    vectors = torch.eye(3)[[0, 0, 1, 2]]
    s, same = 5.0, torch.tensor([7, 7, 8, 9])
    doubled = math.log(2 * math.exp(s) + 2) - s
    single = math.log(math.exp(s) + 3) - s
    assert float(image_text_nce(vectors, vectors, same, scale=s)) == pytest.approx((doubled + single) / 2, abs=1e-6)
    assert math.log(2) < doubled < math.log(2) + 0.01 and single < 0.03             # nothing is left to learn
    apart = torch.eye(2).requires_grad_()                                           # two images of one caption ...
    for captions, way in ((torch.tensor([7, 7]), -1), (torch.tensor([7, 8]), 1)):   # ... are drawn to both its texts
        pulled, = torch.autograd.grad(image_text_nce(apart, torch.eye(2), captions, scale=s), apart)
        assert way * float(pulled[0, 1]) > 0


@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_a_new_one_knows_nothing_which_is_ln_of_the_batch(tower):
    options = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "clip.yaml").model)     # at its full size
    options.pop("_target_")
    torch.manual_seed(0)
    model = CLIP(3, (32, 32), vocabulary=WORDS, condition="text", **{**options, "tower": tower})
    texts = [f"{TEXTS[k % 9]} {TEXTS[k // 9 % 9]} {TEXTS[k // 81]}" for k in range(256)]
    found = model.training_step({**batch_of(256, (32, 32)), "text": texts}, 0)
    assert len(set(texts)) == 256 and float(found["scale"]) == pytest.approx(1 / 0.07)
    assert float(found["loss"].detach()) == pytest.approx(math.log(256), rel=0.15)


def test_the_scale_stays_within_1_and_100_after_each_step():
    model = tiny()
    optimizer = model.configure_optimizers()
    for before, after in ((10.0, math.log(100)), (-3.0, 0.0), (2.0, 2.0)):
        model.log_scale.data.fill_(before)
        model.optimizer_step(0, 0, optimizer, None)
        assert float(model.log_scale.detach()) == pytest.approx(after, abs=1e-6)
    assert LARGEST == 100 and float(tiny().log_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    decaying = optimizer.param_groups[0]["params"]
    assert optimizer.param_groups[1]["weight_decay"] == 0.0 and all(p.dim() > 1 for p in decaying)
    assert any(p is model.log_scale for p in optimizer.param_groups[1]["params"])


@pytest.mark.slow
def test_two_processes_of_32_are_one_of_64_in_loss_and_gradients(tmp_path):
    processes = [forked.Forked([sys.executable, "-m", "tests.models.clip_ranks", str(tmp_path), str(rank)],
                               env=environment()) for rank in (0, 1)]
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    shared = torch.load(tmp_path / "shared.pt", weights_only=True)
    for tower, (loss, *gradients) in shared.items():
        model = tiny_clip(tower=tower)
        alone = model.training_step(whole_batch(), 0)["loss"]
        alone.backward()
        assert float(loss) == pytest.approx(float(alone.detach()), abs=1e-6) and len(whole_batch()["text"]) == N
        own = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(own) == len(gradients) > 10
        for mine, theirs in zip(own, gradients, strict=True):
            assert torch.allclose(mine, theirs, atol=2e-6, rtol=1e-4)
        half = {name: value[: N // 2] for name, value in whole_batch().items()}     # half as many to tell apart
        assert abs(float(model.training_step(half, 0)["loss"].detach()) - float(loss)) > 0.3


# ---- the towers ----


@torch.no_grad()
@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_an_image_is_seen_alone(tower):
    model, images = awake(tiny(tower=tower)).eval(), batch_of(6)["image"]
    together, alone = model.embed_images(images), torch.cat([model.embed_images(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-6) and (together - together[:1]).abs().max() > 1e-3
    assert torch.allclose(together.norm(dim=1), torch.ones(6), atol=1e-6)
    moved = model.embed_images(images.roll(8, dims=3))
    assert (moved - together).abs().max() > 1e-3                     # places count: "left of" can be told


@torch.no_grad()
def test_a_text_is_read_at_its_end_token_and_knows_nothing_of_what_follows():
    model = awake(tiny()).eval()
    tower, text = model.text_tower, "a red circle"
    ids = tower.tokenize([text, "a green star a blue square"])
    assert ids[0].tolist() == [tower.start, 1, 2, 5, tower.end, -1, -1, -1]
    read = tower(ids)
    whole = tower.transformer(tower.table(ids[:1, :5]))
    assert torch.allclose(read[0], whole[0, 4], atol=1e-6)           # where the end token stands
    beside = model.embed_texts([text, "a green star a blue square"])[:1]
    assert torch.allclose(model.embed_texts([text]), beside, atol=1e-6)
    longer = tower.transformer(tower.table(ids[1:]))
    other = ids[1:].clone()
    other[0, 5] = 2
    assert torch.allclose(longer[0, :5], tower.transformer(tower.table(other))[0, :5], atol=1e-6)      # causal
    assert (model.embed_texts(["a red star"]) - model.embed_texts([text])).abs().max() > 1e-3
    assert torch.allclose(model.embed_texts(["A red, circle"]), model.embed_texts(["a red zebra circle"]), atol=1e-6)


def test_a_long_text_is_cut_off_before_its_end_token():
    model = tiny(text={**recipe()["text"], "tokens": 5})
    ids = model.text_tower.tokenize(["a red circle a blue star"])
    assert ids.tolist() == [[model.text_tower.start, 1, 2, 5, model.text_tower.end]]
    words, notes = prompts_of(model, "a red zebra a blue star", 1)
    assert words == ["a red zebra a blue star"] and "cut off after 5 tokens" in notes[0] and "zebra" in notes[1]


@torch.no_grad()
def test_images_of_any_size_and_grey_ones_are_seen():
    model = awake(tiny()).eval()
    small = torch.rand(2, 3, 16, 16) * 2 - 1
    large = F.interpolate(small, (64, 64), mode="bicubic")
    assert (model.embed_images(large) * model.embed_images(small)).sum(1).min() > 0.95
    grey = small[:, :1]
    assert torch.equal(model.embed_images(grey), model.embed_images(grey.expand(-1, 3, -1, -1)))
    assert torch.allclose(awake(tiny(channels=1)).eval().embed_images(small).norm(dim=1), torch.ones(2), atol=1e-6)


def test_gradients_reach_the_image_for_whoever_wants_it_bent():
    model, images = awake(tiny()).eval(), batch_of(2, size=(24, 20))["image"].requires_grad_()
    model.score_text(images, TEXTS[:2]).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


# ---- augmentation ----


def test_a_crop_is_a_part_of_the_image_at_its_size():
    ramp = torch.linspace(-1, 1, 65)[None, None, None].expand(40, 3, 65, 65).contiguous()
    torch.manual_seed(0)
    made = tiny(size=(65, 65), crop=0.6, tower="resnet").cropped(ramp)
    steps = made[:, :, :, 1:-1].diff(dim=3) * 32                      # the slope is the share that is seen
    sides = steps.mean((1, 2, 3))
    assert 0.6 <= float(sides.min()) < 0.7 and 0.9 < float(sides.max()) <= 1.001
    assert torch.allclose(steps, sides[:, None, None, None].expand_as(steps), atol=1e-4)
    assert torch.equal(tiny(crop=1.0).cropped(ramp), ramp)
    centres = made.mean((1, 2, 3))
    assert (centres.abs() <= 1 - sides + 1e-3).all() and centres.std() > 0.05


def test_what_belongs_together_is_told_by_the_captions_before_they_are_reworded():
    captions = recipe()["captions"] | {"replace": 1.0, "synonyms": {"circle": ["disc", "disc"]}, "template": 0.0}
    model = tiny(crop=1.0)
    model.reworded = type(model.reworded)(**captions)
    batch = {**batch_of(4), "text": ["a red circle", "A red circle", "a blue circle", "a red circle"]}
    seen, texts, tower = [], ["a red disc", "a red disc", "a blue disc", "a red disc"], model.text_tower
    tower.tokenize = lambda given: seen.append(given) or type(tower).tokenize(tower, given)
    loss = model.training_step(batch, 0)["loss"].detach()
    assert [text.lower() for text in seen[0]] == texts
    same = caption_numbers(["x", "x", "y", "x"])
    wanted = image_text_nce(model.embed_images(batch["image"]), model.embed_texts(texts), same, scale=1 / 0.07)
    assert float(loss) == pytest.approx(float(wanted.detach()), abs=1e-5)


def test_the_vocabulary_has_the_words_of_rewording():
    words = " ".join(CLIP.texts_read({"captions": recipe()["captions"]}, ["a small circle"])).split()
    assert {"tiny", "disc", "picture", "small"} <= set(words) and "{}" not in words


# ---- what it tells ----


@torch.no_grad()
def test_a_class_is_the_mean_over_its_prompts():
    model = awake(tiny(prompts=["a {}", "a red {}"])).eval()
    first, second = model.embed_texts(["a star", "a red star"])
    wanted = F.normalize((first + second) / 2, dim=0)
    assert torch.allclose(model.embed_classes(["circle", "star"])[1], wanted, atol=1e-6)
    images = batch_of(3)["image"]
    fit = model.embed_images(images) @ model.embed_texts(TEXTS[:3]).T
    assert torch.allclose(model.score_text(images, TEXTS[:3]), fit.diagonal())


def test_it_draws_what_it_finds_for_each_caption():
    images, layout = awake(tiny()).eval().panels(batch_of(12))["retrieval"]
    assert images.shape == (36, 3, 16, 16) and layout == {"columns": 6, "captions": TEXTS[:6]}


def test_what_it_is():
    assert CLIP.capabilities() == ["score_text"] and not CLIP.makes_images()
    assert CLIP.does() == "tells how well texts fit images"
    with pytest.raises(UserError, match="CLIP tells how well texts fit images: it cannot make them from noise"):
        tiny().sample(1)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"tower": "resnt"}, "model.tower=resnt is unknown: did you mean 'resnet'?"),
    ({"tower": "vit", "vit": {**recipe()["vit"], "patch": 5}}, "model.vit.patch=5 does not divide images of 16 x 16"),
    ({"temperature": 0.001}, "model.temperature=0.001 must be between 0.01 and 1"),
    ({"crop": 0.0}, "model.crop=0.0 must be above 0 and at most 1"),
    ({"prompts": []}, r"model.prompts=\[\] leaves nothing to say of a class"),
    ({"prompts": ["a picture"]}, "model.prompts has 'a picture': put {} where the words go, once"),
    ({"augment": ["color"]}, "model.augment has no policy 'color': did you mean 'colour'?"),
    ({"resnet": {**recipe()["resnet"], "blocks": [1]}}, "differ in length"),
])
def test_refusals(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**changes)
