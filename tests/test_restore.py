"""task=restore: a run, a diffusion run told what was measured, and the classical methods, behind one function."""

from typing import Any

import pytest
import torch
from torch import Tensor

from aigc.config.targets import instantiate
from aigc.data.degradation import degradations_named
from aigc.editing import classical
from aigc.editing.classical import METHODS, check_method, solve
from aigc.editing.restore import measured_by, range_space, restore
from aigc.editing.tasks import open_task, tasks
from aigc.errors import UserError
from aigc.models.family import Family
from aigc.networks.resample import resize
from aigc.scoring.job import named_methods
from tests.conftest import compose_train
from tests.families import words

SEEDS = [3, 4, 5, 6]


def smooth(n: int = 4, side: int = 32) -> Tensor:
    """Discs on slopes, in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    discs = [((x - 0.3 - 0.1 * k) ** 2 + (y - 0.5) ** 2 < 0.05).float() for k in range(n)]
    return torch.stack([torch.stack([0.2 + 0.3 * x, 0.7 - 0.4 * y, 0.2 + 0.5 * disc]) for disc in discs])


def psnr(images: Tensor, targets: Tensor) -> float:
    return float(-10 * (images - targets).square().mean().log10())


class Steady(Family):
    """Restores by adding a constant, and notes what it was told."""

    def __init__(self, *, masks: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.told: dict[str, Any] = {}

    def restore(self, images: Tensor, **told: Any) -> Tensor:
        self.told = {"size": tuple(images.shape[2:]), **told}
        return images + 0.1


@pytest.mark.parametrize("name", ["nl_means", "tv", "wavelet"])
def test_classical_methods_take_noise_away(name: str) -> None:
    clean, seeds = smooth(), torch.tensor(SEEDS)
    noisy = degradations_named({"noise": {"sigma": 0.1}}).draw(seeds, (3, 32, 32))(clean).clamp(0, 1)
    made = solve(name, noisy, {}, sigmas=torch.full((4,), 0.1))
    assert psnr(made, clean) > psnr(noisy, clean) + 4
    torch.testing.assert_close(solve(name, noisy[2:], {"sigma": 0.1}), made[2:], rtol=0, atol=1e-4)
    estimated = solve(name, noisy, {})                     # the deviation is estimated where nobody says
    assert abs(psnr(estimated, clean) - psnr(made, clean)) < 2.5
    grey = solve(name, noisy[:, :1], {"sigma": 0.1})
    assert psnr(grey, clean[:, :1]) > psnr(noisy[:, :1], clean[:, :1]) + 3


def test_classical_methods_fill_holes_undo_blur_and_enlarge() -> None:
    clean, seeds = smooth(), torch.tensor(SEEDS)
    holes = degradations_named({"strokes": {"number": 2, "width": 0.08}}).draw(seeds, (3, 32, 32))
    for name in ("biharmonic", "navier_stokes"):
        made = solve(name, holes(clean), {}, masks=1 - holes.kept())
        assert psnr(made, clean) > psnr(holes(clean), clean) + 6
        kept = holes.kept().expand_as(clean) == 1
        assert (made - clean)[kept].abs().max() < 0.5 / 255 + 1e-6
    blurred = degradations_named({"blur": {"sigma": 1.2}}).draw(seeds, (3, 32, 32))(clean)
    made = solve("richardson_lucy", blurred, {"blur": 1.2})
    assert psnr(made, clean) > psnr(blurred, clean) + 0.7
    small = resize(clean, (16, 16)).clamp(0, 1)
    torch.testing.assert_close(solve("bicubic", small, {}, scale=2), resize(small, (32, 32)).clamp(0, 1))


def test_the_run_gets_pictures_of_the_size_that_is_wanted_and_holes_where_there_are_some() -> None:
    images, family = smooth() * 2 - 1, Steady()
    made = restore(family, images, None, SEEDS, scale=2, options={"steps": 3})
    assert made.shape == (4, 3, 64, 64) and family.told == {"size": (64, 64), "seeds": SEEDS, "steps": 3}
    torch.testing.assert_close(made, resize(images, (64, 64)).clamp(-1, 1) + 0.1)
    assert torch.equal(restore(family, images, None, SEEDS), images + 0.1)     # nothing is degraded unasked
    told = Steady(masks=True)
    restore(told, images, None, SEEDS)
    assert told.told["masks"].shape == (4, 1, 32, 32) and not told.told["masks"].any()
    made = restore(told, images, None, SEEDS, degrade={"boxes": {"number": 1, "share": 0.5}})
    black = told.told["masks"].expand_as(images) == 1
    assert black.any() and torch.allclose(made[black], torch.tensor(-0.9))
    noisy = restore(Steady(), images, None, SEEDS, degrade={"noise": {"sigma": 0.1}}) - 0.1 - images
    assert abs(float(noisy.std()) / 2 - 0.1) < 0.01
    assert torch.equal(noisy[1:2], restore(Steady(), images[1:2], None, SEEDS[1:2],
                                           degrade={"noise": {"sigma": 0.1}}) - 0.1 - images[1:2])


def test_the_range_space_of_a_measurement_is_replaced() -> None:
    known = degradations_named({"downscale": {"factor": 2}}).draw(torch.tensor(SEEDS), (3, 32, 32))
    clean, guess = smooth() * 2 - 1, torch.rand(4, 3, 32, 32) * 2 - 1

    def measure(x0: Tensor) -> Tensor:
        return known.apply((x0 + 1) / 2) * 2 - 1

    one, y = torch.ones(()), measure(clean)
    made = range_space(guess, guess, one, one, known=known, measure=measure, y=y, spread=0.0)
    torch.testing.assert_close(measure(made), y, rtol=0, atol=1e-4)
    assert (made - clean).square().mean() < (guess - clean).square().mean()
    half = range_space(guess, guess, one, 0.1 * one, known=known, measure=measure, y=y, spread=0.2)
    torch.testing.assert_close(half, (guess + made) / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["ddnm", "dps"])
def test_a_diffusion_run_is_told_what_was_measured(solver: str) -> None:
    torch.manual_seed(0)
    facts: dict[str, Any] = {"channels": 3, "size": (16, 16), "classes": None, "condition": "none"}
    cfg = compose_train(*words("diffusion"), "model.sampler.steps=6", common=False)
    model = instantiate(cfg.model, "model", **facts)
    clean = smooth(2, 16) * 2 - 1
    small = resize(clean, (8, 8)).clamp(-1, 1)
    made = restore(model, small, None, SEEDS[:2], solver=solver, scale=2)
    free = model.sample(2, seeds=SEEDS[:2])
    assert made.shape == (2, 3, 16, 16)
    told, untold = ((resize(images, (8, 8)) - small).square().mean() for images in (made, free))
    assert told < 0.3 * untold
    with pytest.raises(UserError, match="makes pictures of this run's own size, 16 x 16, out of 8 x 8 pixels"):
        restore(model, clean, None, SEEDS[:2], solver=solver, scale=2)
    with pytest.raises(UserError, match="'jpeg' is not linear"):
        restore(model, clean, None, SEEDS[:2], solver=solver, operator={"jpeg": {"quality": 20}})
    with pytest.raises(UserError, match=r"holds a Diffusion, .* task.solver=run needs a run of palette or restorer"):
        restore(model, clean, None, SEEDS[:2])


@pytest.mark.parametrize(("options", "message"), [
    ({"solver": "nlmeans"}, "task.solver=nlmeans is unknown: did you mean 'nl_means'"),
    ({"scale": 1.5}, "task.scale must be a whole number of at least 1"),
    ({"solver": "richardson_lucy"}, "undoes a known blur: give .* task.blur=1.5"),
    ({"solver": "biharmonic"}, "task.solver=biharmonic fills holes: say where they are"),
    ({"solver": "tv", "options": {"wieght": 1}}, "The solver 'tv' has no option 'wieght': did you mean 'weight'"),
    ({"degrade": ["nois"]}, "task.degrade names 'nois', which is no degradation: did you mean 'noise'"),
    ({"solver": "ddnm"}, "task.solver=ddnm needs a run of "),
])
def test_a_mistake_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        restore(Steady(), smooth() * 2 - 1, None, SEEDS, **options)


def test_an_operator_says_numbers_not_ranges_and_holes_are_another_task() -> None:
    assert measured_by({"noise": {"sigma": 0.1}}, 2).names == ["downscale", "noise"]
    for operator, message in ((["blur"], "task.operator: blur.sigma of these pictures is one number"),
                              (["boxes"], "names boxes, whose places only a mask says: take task=inpaint"),
                              (None, "task.operator names no degradation")):
        with pytest.raises(UserError, match=message):
            measured_by(operator, 1)


def test_a_package_that_is_not_there_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(classical.importlib, "import_module", missing)
    for name, package in (("tv", "scikit-image"), ("navier_stokes", "opencv-python-headless")):
        with pytest.raises(UserError, match=rf"task.solver={name} needs {package}, which is not installed: pip "
                                            r"install 'aigc\[restore\]'"):
            check_method(name, {})
    check_method("bicubic", {})


def test_the_task_is_a_choice_like_others_and_methods_are_named_in_three_ways() -> None:
    assert "restore" in tasks() and "classical" not in tasks() and len(METHODS) == 7
    work = open_task({"function": "restore", "needs": "restore|denoise", "solver": "run"}, Steady(), name="restore",
                     run="here", seed=0, side=None)
    assert torch.allclose(work(torch.zeros(1, 3, 20, 30), [0]), torch.tensor(0.1))
    assert named_methods("tv") == named_methods(["tv"]) == named_methods({"tv": None}) == {"tv": {}}
    assert named_methods({"tv": {"weight": 2}}) == {"tv": {"weight": 2}} and named_methods(None) == {}
