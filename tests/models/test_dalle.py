"""DALL-E: both orders, what each token sees and says, the loss, kept keys and values, guidance, descriptions."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.models.dalle import DALLE
from aigc.networks.tokens import Choice, uniforms
from aigc.noise import SeededNoise

from ..grey import grey

TINY = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0, "guidance": 1.0}
WORDS = ["<unknown>", "dark", "bright", "a", "picture"]
V, T, K = len(WORDS), 4, 5
CAPTIONS = ["a dark picture", "bright", "a bright picture", ""]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "tests")


def tiny(*, size=(8, 8), awake=True, **changes) -> DALLE:
    torch.manual_seed(0)
    options = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "dalle.yaml").model)
    options.pop("_target_")
    options |= {**TINY, "tokenizer": grey(K, size), **changes}
    options["text"] = options["text"] | {"tokens": T}
    model = DALLE(1, size, vocabulary=WORDS, **options)
    if awake:
        network = model.network
        for parameter in network.parameters():
            if not parameter.any() or parameter is network.embedding.weight:
                torch.nn.init.normal_(parameter, std=0.3)
    model.ema.network.load_state_dict(model.network.state_dict())
    return model.eval()


def batch_of(n=16, size=(8, 8)) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(n, 1, *size, generator=generator) * 2 - 1, "index": torch.arange(n) + 50,
            "text": [CAPTIONS[k % 4] for k in range(n)]}


def order(n: int, first: bool) -> torch.Tensor:
    return torch.full((n,), first)


# ---- what is learned ----

GOLDEN = [1.814831, 2.493851, 4.839869, 2.506603, 3.198863]    # loss, bits per code and word in training; of held-out



def test_golden_losses():
    model = tiny().train()
    torch.manual_seed(1)
    found = model.training_step(batch_of(), 0)
    held = model.eval().validation_step(batch_of(), 0)
    assert [float(x.detach()) for x in (*found.values(), *held.values())] == pytest.approx(GOLDEN, abs=2e-5)


def test_a_new_model_knows_nothing():
    model = tiny(awake=False)
    for found in (model.training_step(batch_of(), 0), model.validation_step({**batch_of(), "text": ["dark"] * 16}, 0)):
        assert float(found["bits_per_code"]) == pytest.approx(math.log2(K), rel=1e-6)
        assert float(found["bits_per_word"]) == pytest.approx(math.log2(V + 1), rel=1e-6)  # or the text is over


@pytest.mark.parametrize(("first", "loss"), [(0.0, (3 + 7 * 5) / 8), (1.0, (7 * 3 + 5) / 8)])
def test_what_comes_last_weighs_seven_times_what_comes_first(first, loss):
    model, orders = tiny(picture_first=first), []
    model.nats = lambda network, text, codes, picture_first: (orders.append(picture_first), torch.tensor([3.0] * 16),
                                                              torch.tensor([5.0] * 16))[1:]
    assert float(model.training_step(batch_of(), 0)["loss"]) == pytest.approx(loss)
    assert orders[0].float().mean() == first


def test_a_quarter_comes_picture_first_and_a_tenth_of_the_others_without_a_caption():
    model, seen = tiny(), []
    model.nats = lambda network, text, codes, picture_first: (seen.append((text, picture_first)), codes[:, 0].float(),
                                                              codes[:, 0].float())[1:]
    torch.manual_seed(0)
    model.training_step({**batch_of(8000), "text": ["dark"] * 8000}, 0)
    text, first = seen[0]
    bare = (text == model.network.padding).all(1)
    assert float(first.float().mean()) == pytest.approx(0.25, abs=0.015) and not (bare & first).any()
    assert float(bare[~first].float().mean()) == pytest.approx(0.1, abs=0.015)
    assert (text[~bare] == torch.tensor([1, V + 1, V + 2, V + 3])).all()


def test_words_are_counted_up_to_the_end_of_the_text_and_captions_without_words_not_at_all():
    model = tiny(awake=False)
    with torch.no_grad():
        model.network.word_logits.bias[V] = 3.0                # that the text is over
    text = model.captions(["bright", "", "a a a a"])
    codes = torch.zeros(3, 16, dtype=torch.int64)
    words, _ = model.nats(model.network, text, codes, order(3, False))
    total = math.log(V + math.exp(3))
    assert words.tolist() == pytest.approx([(total + total - 3) / 2, 0.0, total], rel=1e-6)


def test_every_place_of_a_text_has_a_padding_token_of_its_own():
    model = tiny()
    network = model.network
    text = model.captions(["a bright picture", "bright", "", "a a a a dark"])
    assert text.tolist() == [[3, 2, 4, V + 3], [2, V + 1, V + 2, V + 3], [V, V + 1, V + 2, V + 3], [3, 3, 3, 3]]
    assert network.embedding.num_embeddings == V + T + K + 2   # words, paddings, codes, and which order it is
    assert len({*network.padding.tolist(), network.first_code, network.starts}) == T + 2
    assert network.embedding(network.padding).unique(dim=0).shape[0] == T


def test_it_learns_to_draw_what_is_said_and_to_say_what_is_seen():
    model = tiny(awake=False, width=32, picture_first=0.5).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    for step in range(80):
        bright = torch.rand(32, generator=generator) < 0.5
        images = (torch.where(bright, 0.7, -0.7)[:, None, None, None]
                  + 0.3 * (2 * torch.rand(32, 1, 8, 8, generator=generator) - 1))
        texts = ["a bright picture" if b else "a dark picture" for b in bright]
        optimizer.zero_grad()
        model.training_step({"image": images, "text": texts}, step)["loss"].backward()
        optimizer.step()
    model.ema.network.load_state_dict(model.network.state_dict())
    model.eval()
    texts = ["a bright picture", "a dark picture"] * 20
    made = model.sample(40, condition=texts, seeds=range(40), guidance=2.0)
    brightness = made.mean((1, 2, 3))
    assert (brightness[::2] > 0.2).all() and (brightness[1::2] < -0.2).all()
    assert model.describe(made) == texts
    assert model.describe(made, question="A bright") == ["A bright picture"] * 40
    held = model.validation_step({"image": made, "text": texts}, 0)
    assert float(held["bits_per_word"]) == pytest.approx(0, abs=0.05)      # the picture says it all


# ---- what a token sees and says ----


@pytest.mark.parametrize("first", [False, True])
def test_changing_a_token_changes_only_what_follows_it(first):
    network = tiny().network
    text, codes = torch.tensor([[3, 1, 4, V + 3]] * 2), torch.randint(K, (2, 16))
    image, said = codes.clone(), text.clone()
    image[:, 6], said[:, 2] = (codes[:, 6] + 1) % K, 2
    before, of_code, of_word = (network.both(*pair, order(2, first)) for pair in
                                ((text, codes), (text, image), (said, codes)))
    words, codes = (torch.stack([(after[k] - before[k]).abs().amax((0, 2)) for after in (of_code, of_word)])
                    for k in range(2))
    assert words.shape == (2, T) and codes.shape == (2, 16)
    assert (codes[0, :7] == 0).all() and (codes[0, 7:] > 1e-4).all()
    assert (words[1, :3] == 0).all() and (words[1, 3:] > 1e-4).all()
    if first:                                                  # the picture sees no words, the words all of it
        assert (words[0] > 1e-4).all() and (codes[1] == 0).all()
    else:
        assert (words[0] == 0).all() and (codes[1] > 1e-4).all()


def test_a_token_says_which_order_it_is():
    network, codes = tiny().network, torch.randint(K, (1, 16))
    text = network.padding[None]
    one, other = network.both(text, codes, order(1, False)), network.both(text, codes, order(1, True))
    assert ((one[1][:, :1] - other[1][:, :1]).abs() > 1e-4).all()          # the first code
    both = network.both(text.expand(2, -1), codes.expand(2, -1), torch.tensor([False, True]))
    for k, alone in enumerate((one, other)):
        for a, b in zip(both, alone, strict=True):
            torch.testing.assert_close(a[k : k + 1], b)


def test_places_of_words_say_words_and_places_of_codes_say_codes():
    model = tiny()
    words, codes = model.network.both(model.captions(["a"]), torch.zeros(1, 16).long(), order(1, True))
    assert words.shape == (1, T, V + 1) and codes.shape == (1, 16, K)      # nothing else has logits
    made = model.complete(torch.zeros(60, 16).long(), torch.ones(60, 16).bool(), seeds=range(60), temperature=3.0)
    assert sorted(made.unique().tolist()) == [0, 1, 2, 3, 4]
    said = model.describe(batch_of(60)["image"], seeds=range(60), temperature=3.0)
    assert {word for text in said for word in text.split()} == set(WORDS[1:])
    assert max(len(text.split()) for text in said) <= T and len(set(said)) > 10


# ---- sampling ----


def slowly(model: DALLE, texts, w: float, seeds, places: int):
    """Codes drawn without keeping anything: the whole sequence is read anew for each."""
    network, n = model.averaged, len(texts)
    numbers, found = uniforms(SeededNoise(seeds), places), []
    codes = torch.zeros(n, places, dtype=torch.int64)
    for place in range(places):
        logits = [network.both(model.captions(t), codes, order(n, False))[1][:, place] for t in (texts, [""] * n)]
        found.append(logits[1] + w * (logits[0] - logits[1]))
        codes[:, place] = Choice()(found[-1], numbers[:, place])
    return codes, torch.stack(found, dim=1)


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_kept_keys_and_values_draw_what_reading_all_anew_draws(w, monkeypatch):
    """7 x 7 codes; logits to 1e-5 at every place, with guidance from the second on as well."""
    model, texts, found = tiny(size=(14, 14)), CAPTIONS[:3], []
    draw = Choice.__call__
    monkeypatch.setattr(Choice, "__call__", lambda self, logits, u: (found.append(logits), draw(self, logits, u))[1])
    made = model.tokenizer.tokenize(model.sample(3, condition=texts, seeds=[5, 6, 7], guidance=w))
    monkeypatch.undo()
    with torch.no_grad():
        codes, wanted = slowly(model, texts, w, [5, 6, 7], 49)
    torch.testing.assert_close(torch.stack(found, dim=1), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(made, codes)
    if w != 1:
        monkeypatch.setenv("AIGC_ALLOW_TARGETS", "tests")
        plain = model.tokenizer.tokenize(model.sample(3, condition=texts, seeds=[5, 6, 7]))
        assert int((made != plain)[:, 2:].sum()) > 10, "guidance acts beyond the first codes"


def test_a_caption_is_read_once_and_guidance_costs_a_second_pass():
    model, read = tiny(), []
    model.averaged.transformer.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].shape[:2]))
    for w, passes in ((0.0, 1), (1.0, 1), (2.0, 2)):
        model.sample(2, condition=CAPTIONS[:2], seeds=[1, 2], guidance=w)
        assert read == [(2, 1 + T)] * passes + [(2, 1)] * passes * 15
        read.clear()
    model.sample(2, seeds=[1, 2], guidance=2.0)                # without captions there is nothing to be guided by
    assert len(read) == 16
    read.clear()
    model.describe(batch_of(2)["image"])
    assert read == [(2, 1 + 16), *[(2, 1)] * (T - 1)]


def test_guidance_zero_an_empty_caption_and_none_are_the_same():
    model = tiny()
    blind = model.sample(2, condition=CAPTIONS[:2], seeds=[1, 2], guidance=0.0)
    assert torch.equal(blind, model.sample(2, seeds=[1, 2], guidance=3.0))
    assert torch.equal(blind, model.sample(2, condition=["", " "], seeds=[1, 2]))
    assert not torch.equal(blind, model.sample(2, condition=CAPTIONS[:2], seeds=[1, 2]))


def test_image_and_caption_k_depend_on_their_own_seed_and_condition_alone():
    model = tiny(guidance=2.0)
    texts = [CAPTIONS[k % 4] for k in range(5)]
    together = model.sample(5, condition=texts, seeds=[10, 11, 12, 13, 14])
    assert torch.equal(together[3], model.sample(1, condition=texts[3:4], seeds=[13])[0])
    assert torch.equal(together[2], model.sample(1, condition=texts[2:3], seeds=[12])[0])
    assert together.shape == (5, 1, 8, 8) and len({tuple(image.flatten().tolist()) for image in together}) == 5
    said = model.describe(together, seeds=range(5), temperature=1.0)
    assert said[3:4] == model.describe(together[3:4], seeds=[3], temperature=1.0)


def test_top_k_of_one_and_temperature_zero_are_the_likeliest_code_each_time():
    model = tiny()
    best = model.sample(1, condition=["dark"], seeds=[1], top_k=1)
    for options in ({"temperature": 0.0}, {"top_p": 1e-6}):
        assert torch.equal(best, model.sample(1, condition=["dark"], seeds=[2], **options))
    codes = model.tokenizer.tokenize(best)
    with torch.no_grad():
        assert torch.equal(codes, model.averaged.both(model.captions(["dark"]), codes, order(1, False))[1].argmax(-1))


def test_completion_keeps_what_is_given_and_draws_the_rest():
    torch.manual_seed(3)
    model, codes = tiny(guidance=2.0), torch.randint(K, (6, 16))
    masked = torch.rand(6, 16) < torch.tensor([0.0, 0.1, 0.4, 0.7, 0.9, 1.0])[:, None]
    texts = [CAPTIONS[k % 4] for k in range(6)]
    made = model.complete(codes, masked, condition=texts, seeds=range(6))
    assert torch.equal(made[~masked], codes[~masked]) and not torch.equal(made, codes)
    blind = torch.where(masked, (codes + 1) % K, codes)        # what lies under a mask is not looked at
    assert torch.equal(model.complete(blind, masked, condition=texts, seeds=range(6)), made)
    assert torch.equal(model.complete(codes, torch.zeros_like(masked)), codes)


def test_a_description_is_the_likeliest_word_each_time_until_the_text_is_over():
    model, images = tiny(), batch_of(8)["image"]
    said, codes = model.describe(images), model.tokenizer.tokenize(images)
    text = model.captions(said)
    with torch.no_grad():
        logits = model.averaged.both(text, codes, order(8, True))[0]
    logits[..., 0] = -math.inf                                 # no unknown words
    best = logits.argmax(-1)
    ends = (text >= V).int().argmax(1).where((text >= V).any(1), T)
    for row, end in enumerate(ends.tolist()):
        assert best[row, :end].tolist() == text[row, :end].tolist() and (end == T or best[row, end] == V)
    asked = model.describe(images, question="a dark")
    assert all(text.startswith("a dark") for text in asked)
    assert model.describe(images, question="a a a a a") == ["a a a a a"] * 8       # no place is left


# ---- the rest ----


@pytest.mark.parametrize(("changes", "said"), [
    ({"tokenizer": None}, r"DALLE stands on a trained run, and model\.tokenizer names none: train one"),
    ({"width": 18, "heads": 4}, "does not divide into"),
    ({"top_p": 0.0}, "top_p=0.0"),
    ({"tokenizer": grey(size=(16, 16))}, "was trained on 16 x 16 images with 1 channel, these are 8 x 8"),
])
def test_what_cannot_work_is_refused_before_any_work(changes, said):
    with pytest.raises(UserError, match=said):
        tiny(**changes)


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="no sampling option 'steps'"):
        tiny().sample(1, steps=3)
    with pytest.raises(UserError, match="1 text for 2 images"):
        tiny().sample(2, condition=["dark"])
    with pytest.raises(UserError, match="temperature=-1 is below 0"):
        tiny().describe(batch_of(1)["image"], temperature=-1)
