"""Few-step models: closed forms on Gaussian data, each method's own marks, guidance in the weights."""


import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from aigc.diffusion.flow_maps import as_point, chord
from aigc.errors import UserError
from aigc.models.few_step import FewStep
from tests.models.test_diffusion import CONF, batch_of, wake
from tests.models.test_diffusion import TINY as SMALL

METHODS = ("shortcut", "consistency", "meanflow")
SPREAD = 0.3                                               # standard deviation of the Gaussian data
PUBLISHED = {"base": 32, "tuning": 0.25, "scratch": 0.125, "weight": 1.0}  # of shortcut, Frans et al. 2025, at 32 px


def tiny(method="shortcut", process="diffusion", *, condition="label", classes=3, awake=True, **overrides):
    """A small few-step model from scratch, with every layer at work."""
    torch.manual_seed(0)
    files = [OmegaConf.load(CONF / f"{name}.yaml") for name in dict.fromkeys(("diffusion", process, "few_step"))]
    numbers = OmegaConf.to_container(OmegaConf.merge(*files).model)
    numbers.pop("_target_")
    numbers["network"] = {**numbers["network"], **SMALL, **overrides.pop("network", {})}
    numbers["methods"]["shortcut"] = PUBLISHED
    given = {**numbers, "method": method, **overrides}
    model = FewStep(1, (8, 8), classes=classes if condition == "label" else None, condition=condition, **given)
    if awake:
        wake(model)
    return model.eval()


class Perfect(nn.Module):
    """What a perfect network says of data N(0, SPREAD^2): the flow scales x by the standard deviation."""

    encoder = None

    def __init__(self, model):
        super().__init__()
        self.model = [model]

    def spread(self, point):
        return ((point[0] * SPREAD) ** 2 + point[1] ** 2).sqrt()

    def forward(self, x, clock, condition, drop=None, length=None):
        model, method = self.model[0], type(self.model[0].method).__name__
        t = clock if method == "MeanFlow" else self.times(model, clock)
        alpha, sigma = here = model.scales(t)
        x = x * ((alpha * model.sigma_data()) ** 2 + sigma**2).sqrt()      # undo the scaling of inputs
        if method == "Consistency":
            x0 = x * SPREAD / self.spread(here)
        elif method == "MeanFlow":
            return self.velocity(x, t, length)
        else:
            grid, points = model.grid, zip(alpha.flatten(), sigma.flatten(), strict=True)
            place = torch.tensor([round(grid.place(*point)) for point in points])
            there = as_point(grid.points[place + 2 ** (length * grid.levels).round().long()], x.device)
            x0 = chord(x, x * self.spread(there) / self.spread(here), here, there)
        return model.parametrisation().target(x0, (x - alpha * x0) / sigma, alpha, sigma)

    @staticmethod
    def times(model, clock):
        return (4 * clock).exp() if model.hparams.process == "edm" else clock

    @staticmethod
    def velocity(x, t, length):
        """The mean velocity of a step, smooth in its length down to 0; `(n, 1, 1, 1)` factors of x."""
        t, length = t[:, None, None, None], length[:, None, None, None]
        before, after = ((s * SPREAD) ** 2 + (1 - s) ** 2 for s in (t, t + length))
        return x * ((2 * t + length) * (SPREAD**2 + 1) - 2) / (before + (before * after).sqrt())


# ---- closed forms ----


@pytest.mark.parametrize("process", ["diffusion", "ddpm", "edm"])
def test_a_perfect_shortcut_is_its_own_mean_of_two_steps_and_samples_exactly_in_any_number(process):
    model = tiny("shortcut", process, condition="none", sigma_data=0.5)
    model.network = model.ema = Perfect(model)
    images, noise = SPREAD * torch.randn(40, 1, 8, 8), torch.randn(40, 1, 8, 8)
    x, t, length, target = model.method.two_steps(model, images, None, noise)
    assert sorted(set((5 * length).round().int().tolist())) == [1, 2, 3, 4, 5]
    error = (model.predict(model.network, x, t, None, None, length) - target).square().mean((1, 2, 3))
    assert float(error.max()) < 1e-7, "two half steps lead where one does"
    made = [model.sample(8, seeds=range(8), steps=steps) for steps in (1, 2, 4, 8, 32)]
    assert float(made[0].std()) == pytest.approx(SPREAD, rel=0.06)
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], atol=2e-4, rtol=1e-3)


def test_the_identity_of_mean_flows_gives_the_mean_velocity_of_the_closed_form():
    model = tiny("meanflow", condition="none")
    net, n = Perfect(model), 64
    t, x = 0.95 * torch.rand(n), torch.randn(n, 1, 8, 8)
    length = (1 - t) * torch.rand(n)
    velocity = net.velocity(x, t, torch.zeros(n))
    target = model.method.target(model, net, x, t, length, velocity, None, None)
    torch.testing.assert_close(target, net.velocity(x, t, length), atol=2e-4, rtol=2e-4)
    assert torch.equal(model.method.target(model, net, x, t, torch.zeros(n), velocity, None, None), velocity)
    assert not target.requires_grad
    model.network = model.ema = net
    made = [model.sample(8, seeds=range(8), steps=steps) for steps in (1, 2, 5)]
    assert float(made[0].std()) == pytest.approx(SPREAD, rel=0.06)
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], atol=1e-5, rtol=1e-4)


def test_consistency_leaves_images_without_noise_and_one_step_is_the_flow():
    for process in ("diffusion", "ddpm"):
        model, images = tiny("consistency", process), torch.randn(4, 1, 8, 8)
        same = model.method.image(model, model.network, images, torch.zeros(4), torch.arange(4) % 3,
                                  noise=torch.randn(4, 1, 8, 8), drop=None, seed=None)
        assert torch.equal(same, images), "f(x, 0) = x, whatever the network says"
    edm = tiny("consistency", "edm").parametrisation()
    assert torch.equal(edm.x0(torch.randn(4, 1, 8, 8), images, torch.ones(()), torch.zeros(())), images)
    model = tiny("consistency", condition="none")
    model.ema = Perfect(model)
    seeds, flow = list(range(8)), tiny("shortcut", condition="none")
    flow.ema = Perfect(flow)
    torch.testing.assert_close(model.sample(8, seeds=seeds, steps=1), flow.sample(8, seeds=seeds, steps=1), atol=0.005,
                               rtol=0.01)
    for steps in (2, 4):
        assert float(model.sample(64, seeds=range(64), steps=steps).std()) == pytest.approx(SPREAD, rel=0.03)


def test_consistency_loss_of_a_perfect_network_is_0_where_trajectories_meet():
    class Constant(nn.Module):                             # of data that are one picture
        def forward(self, x, clock, condition, drop=None):
            scale = ((clock * 0.5) ** 2 + (1 - clock) ** 2).rsqrt()[:, None, None, None]
            return (0.4 - x / scale) / (1 - clock)[:, None, None, None]

    model = tiny("consistency", condition="none", sigma_data=0.5)
    given = {"u": (torch.arange(64) + 0.5) / 64, "noise": torch.randn(64, 1, 8, 8)}
    for fraction in (0.0, 0.6):
        model.progress.budget_images, model.progress.images = 1000, int(1000 * fraction)
        assert float(model.errors(Constant(), torch.full((64, 1, 8, 8), 0.4), None, **given).max()) < 0.01
    model.progress.images = 0
    wrong = model.errors(Constant(), torch.full((64, 1, 8, 8), 0.3), None, **given)
    assert float(wrong.max()) > 10, "at r = 0 the target is the data"


# ---- shortcut ----


def test_the_shortest_step_is_flow_matching_and_the_target_the_mean_of_two_half_steps_of_the_average():
    model = tiny(guidance=1.0)
    batch, seen = batch_of(64), {}
    model.network.register_forward_hook(lambda module, given, made: seen.update(given=given, made=made))
    torch.manual_seed(5)
    loss = model.training_step(batch, 0)["loss"].detach()
    _, clock, labels, drop, length = seen["given"]
    assert int((length > 0).sum()) == 8, "an eighth from scratch"
    assert not drop[:8].any() and 0 < int(drop[8:].sum()) < 20
    short = length == 0
    torch.manual_seed(5)
    assert torch.equal((torch.rand(64) < 0.1)[8:], drop[8:]), "a tenth of the conditions"
    noise = torch.randn(64, 1, 8, 8)
    flow = (seen["made"] - (batch["image"] - noise)).square().mean((1, 2, 3))[short]
    images, half = batch["image"][:8], (5 * length[:8]).round() - 1
    t, d = clock[:8, None, None, None], (2**half / 32)[:, None, None, None]
    x = t * images + (1 - t) * noise[:8]

    def velocity(x, t):
        return model.predict(model.ema, x, t.flatten(), labels[:8], None, half / 5)

    first = velocity(x, t)
    mean = (first + velocity(x + d * first, t + d)) / 2
    two = (seen["made"][:8] - mean).square().mean((1, 2, 3))
    assert float(loss) == pytest.approx(float(torch.cat([two, flow]).detach().mean()), rel=1e-4)
    assert bool(((t * 32).round() % (2 * d * 32) == 0).all()), "steps start at multiples of their length"


def test_targets_come_from_the_average_without_a_gradient_and_guided_in_the_shortest_steps_alone():
    given = torch.randn(10, 1, 8, 8), torch.arange(10) % 3, torch.randn(10, 1, 8, 8)

    def targets(w, model):
        model.hparams["guidance"] = w
        torch.manual_seed(7)
        return model.method.two_steps(model, *given)

    model = tiny(guidance_interval=None)
    plain, guided = targets(1.0, model), targets(3.0, model)
    change = (plain[3] - guided[3]).abs().amax((1, 2, 3)) > 1e-5
    assert change.tolist() == (plain[2] < 0.21).tolist() and int(change.sum()) == 2
    for parameter in model.network.parameters():
        parameter.data.zero_()
    assert torch.equal(targets(3.0, model)[3], guided[3]) and not guided[3].requires_grad
    x, here, images = given[0][:2], torch.tensor([[0.5, 0.5], [0.25, 0.75]]), {}
    for w in (0.0, 1.0, 3.0):
        model.hparams["guidance"] = w
        images[w] = model.method.image(model, x, here, torch.zeros(2), given[1][:2])
    w0, w1, w3 = images.values()
    torch.testing.assert_close(w3, w0 + 3 * (w1 - w0), atol=1e-4, rtol=1e-4)
    model.hparams.update(guidance=3.0, guidance_interval=[0.5, 2.0])       # sigma / alpha is 1 and 3
    some = model.method.image(model, x, here, torch.zeros(2), given[1][:2])
    torch.testing.assert_close(some, torch.stack([w3[0], w1[1]]), atol=1e-5, rtol=1e-5)


def test_a_step_costs_one_evaluation_and_other_guidance_is_refused():
    model, calls = tiny(guidance=2.0, guidance_interval=None), []
    model.ema.network.register_forward_hook(lambda module, given, made: calls.append((len(made), float(given[4][0]))))
    for steps, length in ((1, 1.0), (2, 0.8), (4, 0.6), (16, 0.2)):
        calls.clear()
        model.sample(2, condition=[0, 1], seeds=[1, 2], steps=steps)
        assert calls == [(2, pytest.approx(length))] * steps
    calls.clear()
    model.sample(2, condition=[0, 1], seeds=[1, 2], steps=32)
    assert calls == [(4, 0.0)] * 32, "the shortest steps are diffusion, guided as usual"
    calls.clear()
    model.sample(2, condition=[0, 1], seeds=[1, 2], sampler="heun", steps=2, guidance=1.0)
    assert calls == [(2, 0.0)] * 3, "samplers that ask without an end get the shortest"
    with pytest.raises(UserError, match=r"guidance=3\.0 comes too late: 2\.0 is in the weights, by model\.guidance"):
        model.sample(2, condition=[0, 1], steps=4, guidance=3.0)
    assert model.sample(2, condition=[0, 1], steps=4, guidance=2.0).isfinite().all()


# ---- consistency ----


def test_the_schedule_of_the_lower_noise_is_the_papers():
    method = tiny("consistency").method
    t = torch.tensor([0.01, 1.0, 4.0, 80.0])
    n = 1 + 8 / (1 + t.exp())
    for fraction, stage in ((0.0, 0), (0.13, 1), (0.5, 4), (1.0, 7)):
        torch.testing.assert_close(method.less(t, fraction), (t * (1 - n / 2 ** (stage + 1))).clamp(min=0))
    assert method.less(t, 0.0)[:2].tolist() == [0, 0], "diffusion at first"
    assert float(method.less(t, 1.0)[3] / 80) == pytest.approx(255 / 256)


def test_the_weight_is_1_over_the_gap_and_noise_dropout_and_conditions_are_shared(monkeypatch):
    model, batch = tiny("consistency", network={"dropout": 0.5}), batch_of(8)
    seen = []
    monkeypatch.setattr(model, "predict", lambda _, x, t, labels, drop: seen.append((t, drop)) or torch.zeros_like(x))
    u = torch.full((8,), 0.5)
    drop = torch.arange(8) < 4
    given = {"u": u, "noise": torch.randn(8, 1, 8, 8), "drop": drop}
    model.progress.budget_images, model.progress.images = 1000, 400        # 4th stage: q^-4
    errors = model.errors(model.network.train(), batch["image"], batch["label"], **given)
    t = torch.tensor(-1.1).exp()                           # P_mean
    r = t * (1 - (1 + 8 * torch.sigmoid(-t)) / 16)
    assert [float(one[0][0]) for one in seen] == pytest.approx([float(1 / (1 + t)), float(1 / (1 + r))])
    assert seen[0][1] is drop and seen[1][1] is drop
    gap = 1 / (1 + t), 1 / (1 + r)                         # a network that says 0 answers with x itself
    x = [a * batch["image"] + (1 - a) * given["noise"] for a in gap]
    torch.testing.assert_close(errors, (x[0] - x[1]).square().mean((1, 2, 3)).sqrt() / (t - r), atol=1e-4, rtol=1e-4)
    held_out = model.errors(model.network.eval(), batch["image"], batch["label"], **given)
    assert float((held_out / errors).mean()) == pytest.approx(1, rel=0.2) and len(seen) == 4
    last = t * (1 - (1 + 8 * torch.sigmoid(-t)) / 256)
    assert float(seen[3][0][0]) == pytest.approx(float(1 / (1 + last))), "validation looks across the last gap"
    monkeypatch.undo()
    monkeypatch.setattr(type(model.method), "less", lambda self, t, fraction: t * 0.999999)
    model.network.train()
    assert float((model.errors(model.network, batch["image"], batch["label"], **given) * t * 1e-6).max()) < 1e-3
    first, second = (model.predict(model.network, batch["image"], u, None) for _ in range(2))
    assert float((first - second).abs().max()) > 0.1, "dropout is at work"


def test_noise_is_added_again_between_the_steps_of_consistency_of_the_images_own_seed():
    model, calls = tiny("consistency"), []
    model.ema.network.register_forward_hook(lambda module, given, made: calls.append(float(given[1][0])))
    given = {"condition": [0, 1, 2], "seeds": [1, 2, 3]}
    model.sample(3, steps=2, **given)
    assert calls == [pytest.approx(1 / 81), 0.5], "noise levels 80 and 1, one evaluation each"
    alone = model.sample(1, steps=4, condition=[1], seeds=[2])
    torch.testing.assert_close(model.sample(3, steps=4, **given)[1:2], alone, atol=1e-5, rtol=1e-5)
    for sampler in ("heun", "ddim", "dpmpp_2m", "ancestral"):
        with pytest.raises(UserError, match=f"knows no velocity for sampler={sampler}: choose sampler=euler"):
            model.sample(1, sampler=sampler)


# ---- meanflow ----


def test_the_derivative_along_the_flow_is_that_of_finite_differences_with_attention_too():
    model = tiny("meanflow", network={"attention": [0, 1], "head": 8})
    labels, (x, velocity) = torch.arange(3), torch.randn(2, 3, 1, 8, 8)
    t, length = torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0.3, 0.5, 0.01])
    target = model.method.target(model, model.network, x, t, length, velocity, labels, None)
    h = 1e-3

    @torch.no_grad()
    def at(h):
        return model.predict(model.network, x + h * velocity, t + h, labels, None, length - h)

    change = (8 * (at(h / 2) - at(-h / 2)) - (at(h) - at(-h))) / (6 * h)   # of fourth order
    expected = velocity + length[:, None, None, None] * change
    torch.testing.assert_close(target, expected, atol=0.02 * float(change.abs().max()), rtol=0.02)


def test_a_network_without_a_derivative_in_forward_mode_is_refused_in_a_sentence():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

    model = tiny("meanflow", condition="none")
    model.network.forward = lambda x, *given: Opaque.apply(x)
    with pytest.raises(UserError, match=r"needs a derivative in forward mode, .*: choose model\.method=shortcut"):
        model.training_step(batch_of(), 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_transformer_can_be_the_denoiser_and_is_told_the_length(method):
    given = {"denoiser": "dit", "dit": {"width": 16, "layers": 2, "heads": 2, "patch": 4}}
    model = tiny(method, **given)
    model.train().training_step(batch_of(), 0)["loss"].backward()
    assert all(p.grad is not None for p in model.network.parameters())
    model.eval()
    x, t, labels = torch.randn(4, 1, 8, 8), torch.rand(4), torch.arange(4) % 3
    if method != "consistency":
        ends = [model.predict(model.network, x, t, labels, None, torch.full((4,), length)) for length in (0.0, 1.0)]
        assert float((ends[0] - ends[1]).abs().max()) > 1e-3
    assert model.sample(2, condition=[0, 1], seeds=[1, 2], steps=2).isfinite().all()


def test_three_quarters_of_the_steps_have_no_length_and_guided_velocities():
    model, seen = tiny("meanflow", guidance=2.0, guidance_interval=None), []
    hook = model.network.register_forward_hook(lambda module, given, made: seen.append(given))
    model.training_step(batch_of(64), 0)
    alone, ahead, trained = seen
    assert int((trained[4] > 0).sum()) == 16 and int((trained[4][16:] == 0).sum()) == 48
    assert bool(alone[3].all()) and float(alone[4].abs().max()) == 0, "without the condition, at no length"
    assert len(ahead[0]) == 16
    hook.remove()
    x, v, t, labels = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.full((4,), 0.5), torch.arange(4) % 3
    drop = torch.tensor([True, False, False, False])
    guided = model.method.guided(model, v, x, t, labels, drop)
    null = model.predict(model.network, x, t, labels, torch.ones(4, dtype=torch.bool), torch.zeros(4))
    torch.testing.assert_close(guided[1:], (2 * v - null)[1:])
    assert torch.equal(guided[0], v[0])


# ---- all of them ----

# float32, one CPU: first loss (of meanflow before its weight) and validation loss of the tiny network
GOLDEN = {"shortcut": (1.451840, 1.801808), "consistency": (0.814505, 0.877249), "meanflow": (5.403273, 1.801808)}


@pytest.mark.parametrize("method", METHODS)
def test_golden_losses(method):
    model, batch = tiny(method), batch_of()
    torch.manual_seed(3)
    losses = model.train().training_step(batch, 0)
    trained = float(losses.get("squares", losses["loss"]).detach())
    assert (trained, float(model.validation_step(batch, 0)["loss"])) == pytest.approx(GOLDEN[method], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns_and_the_step_starts_in_silence(method):
    model, batch = tiny(method, awake=False), batch_of()
    if method != "consistency":
        assert not any(p.any() for p in model.network.step[-1].parameters())
    model = tiny(method)
    torch.manual_seed(0)
    model.training_step(batch, 0)["loss"].backward()
    assert all(p.grad is not None for p in model.network.parameters())


# ---- refusals ----

LONG = {"tuning": 0.2, "scratch": 0.1, "weight": 1.0}


@pytest.mark.parametrize(("given", "sentence"), [
    ({"method": "shortcuts"}, r"There is no model\.method 'shortcuts': .*shortcut"),
    ({"methods": {"shortcut": {**LONG, "base": 24}}}, r"base=24 is no power of two: give 16"),
    ({"methods": {"shortcut": {"base": 8, "tuning": 0.2, "weight": 1.0}}}, r"shortcut needs the option 'scratch'"),
    ({"methods": {"shortcut": {"bas": 8}}}, r"model\.methods\.shortcut has no option 'bas': .*base"),
    ({"method": "consistency", "prediction": "x0"}, r"prediction=x0 would change images without noise: choose"),
    ({"weighting": "min_snr"}, r"model\.weighting=min_snr has no place in model\.method=shortcut"),
])
def test_impossible_recipes_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**given)
