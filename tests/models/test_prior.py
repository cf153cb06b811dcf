"""Prior over codes: what each code sees, closed forms, kept keys and values, guidance, completion, refusals."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.models.prior import Prior
from aigc.networks.tokens import Choice, hidden, uniforms
from aigc.noise import SeededNoise

from ..grey import grey

TINY = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0, "guidance": 1.0}
READER = {"width": 8, "layers": 1, "heads": 2}
WORDS = ["<unknown>", "red", "circle", "blue"]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "tests")


def recipe(**changes) -> dict:
    options = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "prior.yaml").model)
    options.pop("_target_")
    return {**options, **TINY, "tokenizer": grey(), **changes}


def tiny(condition="none", *, size=(8, 8), awake=True, codes=5, **changes) -> Prior:
    torch.manual_seed(0)
    options = recipe(**{"tokenizer": grey(codes, size), **changes})
    options["text"] |= READER
    model = Prior(1, size, classes=3 if condition == "label" else None, condition=condition,
                  vocabulary=WORDS if condition == "text" else None, **options)
    if awake:
        for parameter in model.network.parameters():
            if not parameter.any() or parameter.shape == model.network.embedding.weight.shape:
                torch.nn.init.normal_(parameter, std=0.3)
    model.ema.network.load_state_dict(model.network.state_dict())
    return model.eval()


def batch_of(n=16, size=(8, 8)) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(n, 1, *size, generator=generator) * 2 - 1, "label": torch.arange(n) % 3,
            "text": [WORDS[1 + k % 3] for k in range(n)], "index": torch.arange(n) + 50}


def condition_of(model: Prior, n: int):
    return {"none": None, "label": [k % 3 for k in range(n)], "text": [WORDS[1 + k % 3] for k in range(n)]}[
        model.condition]


# ---- what is learned ----

GOLDEN = {  # order and condition: first loss, bits per code of held-out images
    ("causal", "none"): (1.812111, 2.614324), ("causal", "label"): (1.551064, 2.235771),
    ("causal", "text"): (1.426108, 2.043730), ("masked", "none"): (1.200358, 1.951900),
    ("masked", "label"): (2.248936, 3.210478),
}


@pytest.mark.parametrize(("order", "condition"), GOLDEN)
def test_golden_losses(order, condition):
    model = tiny(condition, order=order).train()
    torch.manual_seed(1)
    loss = model.training_step(batch_of(), 0)["loss"]
    bits = model.eval().validation_step(batch_of(), 0)["bits_per_code"]
    assert (float(loss), float(bits)) == pytest.approx(GOLDEN[order, condition], abs=2e-5)


@pytest.mark.parametrize("order", ["causal", "masked"])
@pytest.mark.parametrize("codes", [5, 256])
def test_a_new_prior_knows_nothing_which_is_log2_of_the_number_of_codes(order, codes):
    model = tiny(awake=False, order=order, codes=codes)
    bits = math.log2(codes)
    assert float(model.training_step(batch_of(), 0)["bits_per_code"]) == pytest.approx(bits, rel=1e-6)
    assert float(model.validation_step(batch_of(), 0)["bits_per_code"]) == pytest.approx(bits, rel=1e-6)


MARKOV = torch.tensor([[0.7, 0.2, 0.05, 0.05], [0.1, 0.1, 0.4, 0.4], [0.25, 0.25, 0.25, 0.25], [0.0, 0.05, 0.05, 0.9]])
MARKOV = (MARKOV + 1e-3) / (MARKOV + 1e-3).sum(1, keepdim=True)
START = torch.tensor([0.4, 0.3, 0.2, 0.1])


def entropy(length: int) -> float:
    """Bits a code of `length` codes of the chain."""
    each, state, bits = -(MARKOV * MARKOV.log2()).sum(1), START, float(-(START * START.log2()).sum())
    for _ in range(length - 1):
        bits, state = bits + float(state @ each), state @ MARKOV
    return bits / length


def chains(n: int, length: int) -> torch.Tensor:
    numbers, draw = uniforms(SeededNoise(range(n)), length), Choice()
    made = [draw(START.log().expand(n, 4), numbers[:, 0])]
    for place in range(1, length):
        made.append(draw(MARKOV.log()[made[-1]], numbers[:, place]))
    return torch.stack(made, dim=1)


def knowing_the_chain() -> Prior:
    """A prior whose logits after a code are the logarithms of its row."""
    model = tiny(awake=False, codes=4, dropout=0.0)
    network = model.network
    with torch.no_grad():
        network.transformer.learned.zero_()
        torch.nn.init.normal_(network.embedding.weight)
        torch.nn.init.normal_(network.start)
        seen = network.transformer.norm(torch.cat([network.embedding.weight, network.start[None]]))
        wanted = torch.cat([MARKOV, START[None]]).log()
        network.logits.weight.copy_(torch.linalg.lstsq(seen.double(), wanted.double()).solution.T)
    model.ema.network.load_state_dict(network.state_dict())
    return model


def pictures(model: Prior, codes: torch.Tensor) -> dict:
    return {"image": model.tokenizer.decode(codes), "index": torch.arange(len(codes))}


def test_a_prior_that_knows_a_markov_chain_has_its_entropy_and_draws_it():
    model, codes = knowing_the_chain(), chains(4000, 16)
    bits = float(model.validation_step(pictures(model, codes), 0)["bits_per_code"])
    assert bits == pytest.approx(entropy(16), rel=0.01)    # deviation of the mean over 64,000 codes: 0.4%
    made = model.tokenizer.tokenize(model.sample(2000, seeds=range(2000)))
    moves = torch.zeros(4, 4).index_put_((made[:, :-1].flatten(), made[:, 1:].flatten()), torch.ones(()), True)
    torch.testing.assert_close(moves / moves.sum(1, keepdim=True), MARKOV, atol=0.02, rtol=0)
    torch.testing.assert_close(torch.bincount(made[:, 0], minlength=4) / 2000, START, atol=0.04, rtol=0)


def test_training_finds_the_chain():
    model, codes = tiny(awake=False, codes=4, lr=1e-2).train(), chains(2048, 16)
    optimizer = model.configure_optimizers()
    for k in range(96):
        rows = codes[k % 32 * 64 : (k % 32 + 1) * 64]
        optimizer.zero_grad()
        model.training_step(pictures(model, rows), k)["loss"].backward()
        optimizer.step()
    model.ema.network.load_state_dict(model.network.state_dict())
    bits = float(model.eval().validation_step(pictures(model, codes), 0)["bits_per_code"])
    assert bits == pytest.approx(entropy(16), rel=0.02) and entropy(16) < 0.7 * math.log2(4)


def test_masked_bits_are_those_of_independent_codes_and_a_bound_for_others():
    model, shares = tiny(awake=False, codes=4, order="masked"), torch.tensor([0.5, 0.3, 0.15, 0.05])
    with torch.no_grad():
        model.ema.network.logits.bias.copy_(shares.log())
    codes = Choice()(shares.log().expand(2000, 16, 4), uniforms(SeededNoise(range(2000)), 16))
    bits = float(model.validation_step(pictures(model, codes), 0)["bits_per_code"])
    assert bits == pytest.approx(float(-(shares * shares.log2()).sum()), rel=0.02)
    counts = []
    model.nats = lambda network, codes, condition, masked: (counts.append(masked.sum(1)), torch.ones(codes.shape))[1]
    model.validation_step(pictures(model, codes), 0)
    assert torch.bincount(counts[0]).tolist()[1:] == pytest.approx([125] * 16, abs=2)  # every number as often


def test_which_places_are_masked():
    masked = hidden(torch.tensor([0.0, 1.0, 3.0, 4.0]), torch.tensor([[0.3, 0.1, 0.9, 0.2]]).expand(4, 4))
    assert masked.int().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]]


def test_a_masked_prior_trains_on_masked_codes_alone_whose_share_is_a_cosine():
    model, seen = tiny(order="masked").train(), []
    model.nats = lambda network, codes, condition, drop, masked, smoothing: (
        seen.append(masked), masked * 2.0 + ~masked * 100.0)[1]
    torch.manual_seed(0)
    assert float(model.training_step(batch_of(4000), 0)["loss"]) == 2.0
    assert int(seen[0].sum(1).min()) >= 1
    share = seen[0].float().mean()                         # of cos(pi u / 2) the mean is 2 / pi, rounded up by 1/32
    assert float(share) == pytest.approx(2 / math.pi + 1 / 32, abs=0.02)


# ---- what a code sees ----


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("condition", ["none", "label", "text"])
def test_changing_a_code_changes_only_what_follows_it(positions, condition):
    model = tiny(condition, positions=positions)
    given = model.network.under(None, n=2)
    codes = torch.randint(5, (2, 15))
    changed = codes.clone()
    changed[:, 6] = (codes[:, 6] + 1) % 5
    before, after = (model.network(c, given) for c in (codes, changed))
    assert torch.equal(before[:, :7], after[:, :7])        # of codes 0 to 6
    assert before.shape == (2, 16, 5) and ((before - after)[:, 7:].abs().amax((0, 2)) > 1e-4).all()


def test_masked_codes_are_not_looked_at_and_the_others_are_by_all():
    model = tiny(order="masked")
    given, codes, masked = model.network.under(None, n=1), torch.randint(5, (1, 16)), torch.zeros(1, 16).bool()
    masked[:, 6] = True
    answers = []
    for place, shift in ((6, 0), (6, 1), (3, 1)):
        changed = codes.clone()
        changed[:, place] = (changed[:, place] + shift) % 5
        answers.append(model.network(changed, given, masked))
    assert torch.equal(answers[0], answers[1])
    assert ((answers[0] - answers[2]).abs().amax((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("order", ["causal", "masked"])
@pytest.mark.parametrize("condition", ["label", "text"])
def test_a_condition_reaches_every_code_and_a_dropped_one_is_none(order, condition):
    model = tiny(condition, order=order)
    network, codes, masked = model.network, torch.randint(5, (2, 15 + (order == "masked"))), torch.ones(2, 16).bool()
    first = model.network.encoder.tokenize(["red", "blue"]) if condition == "text" else torch.tensor([0, 1])

    def logits(asked, drop=None):
        return network(codes, network.under(asked, n=2, drop=drop), None if order == "causal" else masked)

    assert ((logits(first) - logits(first.flip(0))).abs().amax((0, 2)) > 1e-5).all()
    torch.testing.assert_close(logits(first, torch.tensor([True, True])), logits(None))
    half = logits(first, torch.tensor([False, True]))
    torch.testing.assert_close(half, torch.stack([logits(first)[0], logits(None)[1]]))


# ---- sampling ----


def slowly(model: Prior, n: int, w: float, seeds, condition, choice=None) -> torch.Tensor:
    """Codes drawn without keeping anything: the whole sequence is read anew for each."""
    choice, network = choice or Choice(), model.averaged
    codes, numbers = torch.zeros(n, 49, dtype=torch.int64), uniforms(SeededNoise(seeds), 49)
    encoded = condition if condition is None or model.condition == "label" else network.encoder.tokenize(condition)
    encoded = torch.tensor(encoded) if isinstance(encoded, list) else encoded
    found = []
    for place in range(49):
        logits = network(codes[:, :place], network.under(encoded, n=n))[:, -1]
        if w != 1:
            null = network(codes[:, :place], network.under(None, n=n))[:, -1]
            logits = null + w * (logits - null)
        codes[:, place] = choice(logits, numbers[:, place])
        found.append(logits)
    return codes, torch.stack(found, dim=1)


@pytest.mark.parametrize(("condition", "w", "positions"), [
    ("none", 1.0, "learned"), ("label", 1.0, "rotary"), ("label", 3.0, "learned"), ("text", 2.0, "rotary")])
def test_kept_keys_and_values_draw_what_reading_all_anew_draws(condition, w, positions, monkeypatch):
    """7 x 7 codes; logits to 1e-5 at every place, with guidance from the second on as well."""
    model = tiny(condition, size=(14, 14), positions=positions)
    asked, found = condition_of(model, 3), []
    draw = Choice.__call__
    monkeypatch.setattr(Choice, "__call__", lambda self, logits, u: (found.append(logits), draw(self, logits, u))[1])
    with torch.no_grad():
        made = model.tokenizer.tokenize(model.sample(3, condition=asked, seeds=[5, 6, 7],
                                                     **({} if condition == "none" else {"guidance": w})))
        kept = torch.stack(found, dim=1)
        monkeypatch.undo()
        monkeypatch.setenv("AIGC_ALLOW_TARGETS", "tests")
        codes, wanted = slowly(model, 3, w, [5, 6, 7], asked)
    assert kept.shape == wanted.shape == (3, 49, 5)
    torch.testing.assert_close(kept, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(made, codes)
    if w != 1:
        plain = model.tokenizer.tokenize(model.sample(3, condition=asked, seeds=[5, 6, 7], guidance=1.0))
        assert int((made != plain)[:, 2:].sum()) > 10, "guidance acts beyond the first codes"


def test_guidance_is_off_at_one_and_unconditional_at_zero_and_costs_a_second_pass():
    model, passes = tiny("label"), []
    model.averaged.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    cost, made = {}, {}
    for w in (0.0, 1.0, 2.0):
        passes.clear()
        made[w] = model.sample(2, condition=[0, 1], seeds=[1, 2], guidance=w)
        cost[w] = sum(passes)
    assert cost == {0.0: 2 * 16, 1.0: 2 * 16, 2.0: 2 * 2 * 16}
    assert torch.equal(made[0.0], model.sample(2, condition=[2, 2], seeds=[1, 2], guidance=0.0))
    assert not torch.equal(made[1.0], made[2.0])


@pytest.mark.parametrize("order", ["causal", "masked"])
@pytest.mark.parametrize("condition", ["none", "label", "text"])
def test_image_k_depends_on_its_own_seed_and_condition_alone(order, condition):
    model = tiny(condition, order=order, guidance=2.0)
    asked = condition_of(model, 5)
    together = model.sample(5, condition=asked, seeds=[10, 11, 12, 13, 14])
    alone = model.sample(1, condition=None if asked is None else asked[3:4], seeds=[13])
    assert torch.equal(together[3], alone[0])
    assert together.shape == (5, 1, 8, 8) and len({tuple(image.flatten().tolist()) for image in together}) == 5
    assert torch.equal(together, model.sample(5, condition=asked, seeds=[10, 11, 12, 13, 14]))


def test_top_k_of_one_and_temperature_zero_are_the_likeliest_code_each_time():
    model = tiny()
    best = model.sample(1, seeds=[1], top_k=1)
    for options in ({"top_k": 1}, {"temperature": 0.0}, {"top_p": 1e-6}):
        assert torch.equal(best, model.sample(1, seeds=[2], **options))
    codes = model.tokenizer.tokenize(best)
    with torch.no_grad():
        logits = model.averaged(codes[:, :-1], model.averaged.under(None, n=1))
    assert torch.equal(codes, logits.argmax(-1))


@pytest.mark.parametrize("order", ["causal", "masked"])
def test_places_of_an_image_emit_codes_only(order):
    """Neither the start, nor a word, nor the mask can be drawn: they have no logits."""
    model = tiny("text", order=order)
    network = model.network
    codes, masked = torch.zeros(2, 15 + (order == "masked"), dtype=torch.int64), torch.ones(2, 16).bool()
    assert network(codes, network.under(None, n=2), masked).shape == (2, 16, 5)
    made = model.complete(torch.full((50, 16), 2), torch.ones(50, 16).bool(), seeds=range(50), temperature=3.0)
    assert sorted(made.unique().tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("order", ["causal", "masked"])
@pytest.mark.parametrize("condition", ["none", "label"])
def test_completion_keeps_what_is_given_and_draws_the_rest(order, condition):
    torch.manual_seed(3)
    model, codes = tiny(condition, order=order, guidance=2.0), torch.randint(5, (6, 16))
    masked = torch.rand(6, 16) < torch.tensor([0.0, 0.1, 0.4, 0.7, 0.9, 1.0])[:, None]
    asked = condition_of(model, 6)
    made = model.complete(codes, masked, condition=asked, seeds=range(6))
    assert torch.equal(made[~masked], codes[~masked]) and not torch.equal(made, codes)
    alone = model.complete(codes[3:4], masked[3:4], condition=asked and asked[3:4], seeds=[3])
    assert torch.equal(alone[0], made[3])
    blind = torch.where(masked, (codes + 1) % 5, codes)    # what lies under a mask is not looked at
    assert torch.equal(model.complete(blind, masked, condition=asked, seeds=range(6)), made)


def test_completion_of_a_causal_prior_is_drawn_from_what_is_before():
    model, codes = knowing_the_chain(), chains(3000, 16)
    masked = torch.zeros_like(codes, dtype=torch.bool)
    masked[:, 5] = True
    made = model.complete(codes, masked, seeds=range(5000, 8000))
    for before in range(4):
        rows = made[codes[:, 4] == before, 5]
        found = torch.bincount(rows, minlength=4) / len(rows)
        torch.testing.assert_close(found, MARKOV[before], atol=0.07, rtol=0)


def test_one_step_of_a_masked_prior_draws_all_codes_at_once():
    model = tiny("label", order="masked", steps=1)
    with torch.no_grad():
        network, masked = model.averaged, torch.ones(3, 16).bool()
        logits = network(torch.zeros(3, 16).long(), network.under(torch.tensor([0, 1, 2]), n=3), masked)
    made = model.tokenizer.tokenize(model.sample(3, condition=[0, 1, 2], seeds=[4, 5, 6]))
    assert torch.equal(made, Choice()(logits, uniforms(SeededNoise([4, 5, 6]), 2, 16)[:, 0]))
    best = model.tokenizer.tokenize(model.sample(3, condition=[0, 1, 2], seeds=[4, 5, 6], top_k=1))
    assert torch.equal(best, logits.argmax(-1))


def test_a_masked_prior_is_asked_once_a_step():
    model, passes = tiny(order="masked", steps=7), []
    model.averaged.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    model.sample(2, seeds=[1, 2])
    assert passes == [2] * 7
    passes.clear()
    model.sample(2, seeds=[1, 2], steps=3)
    assert passes == [2] * 3


# ---- the rest ----


def test_matrices_decay_and_vectors_do_not():
    groups = tiny("label").configure_optimizers().param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert {p.dim() for p in groups[0]["params"]} == {2} and {p.dim() for p in groups[1]["params"]} == {1}
    assert groups[0]["betas"] == (0.9, 0.95) and groups[0]["lr"] == 2e-3


@pytest.mark.parametrize(("changes", "said"), [
    ({"tokenizer": None}, r"model\.tokenizer names none: train one .* give model\.tokenizer=runs/codes"),
    ({"order": "casual"}, "did you mean 'causal'"),
    ({"positions": "rotory"}, "did you mean 'rotary'"),
    ({"width": 18, "heads": 4}, "does not divide into"),
    ({"width": 12, "heads": 2, "positions": "rotary"}, "does not divide into"),
    ({"top_p": 0.0}, "top_p=0.0"),
    ({"tokenizer": grey(size=(16, 16))}, "was trained on 16 x 16 images with 1 channel, these are 8 x 8"),
])
def test_what_cannot_work_is_refused_before_any_work(changes, said):
    with pytest.raises(UserError, match=said):
        tiny(**changes)


def test_sampling_options_are_refused_where_they_mean_nothing():
    with pytest.raises(UserError, match="no sampling option 'steps'"):
        tiny().sample(1, steps=3)
    with pytest.raises(UserError, match="no sampling option 'topp': did you mean 'top_p'"):
        tiny().sample(1, topp=0.5)
    with pytest.raises(UserError, match="trained with condition=none: leave guidance out"):
        tiny().sample(1, guidance=2.0)
    with pytest.raises(UserError, match="steps=0 fills no codes"):
        tiny(order="masked").sample(1, steps=0)


def test_the_steps_of_masked_priors_do_not_count_for_causal_ones():
    assert tiny().fingerprints() == {"tokenizer": "0" * 64, "steps": None, "spread": None}
    assert tiny(order="masked").fingerprints() == {"tokenizer": "0" * 64}
