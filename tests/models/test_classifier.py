"""The classifier of noisy images: golden losses, any frame of noise, gradients, what it learns, refusals."""

import pytest
import torch
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR
from aigc.data.digits import read_digits
from aigc.diffusion.schedules import Cosine, Karras
from aigc.errors import UserError
from aigc.models.classifier import Classifier
from tests.families import SMALLEST


def tiny(size=(8, 8), channels=1, classes=10, **changes) -> Classifier:
    options = OmegaConf.load(CONFIG_DIR / "model" / "classifier.yaml").model
    for key, value in SMALLEST["classifier"].items():
        OmegaConf.update(options, key, value)
    options = {**OmegaConf.to_container(options), **changes}
    options.pop("_target_")
    torch.manual_seed(0)
    return Classifier(channels, size, classes=classes, condition="label", **options)


def awake(model: Classifier) -> Classifier:
    """Its layers that start at zero do something."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch_of(n: int) -> dict:
    images, digits = read_digits()
    return {"image": torch.from_numpy(images[:n]).float()[:, None] / 8 - 1, "label": torch.from_numpy(digits[:n]),
            "index": torch.arange(n)}


GOLDEN = {"flow": (2.326416, 2.298726), "ddpm": (2.306231, 2.322659), "edm": (2.303975, 2.326441)}


@pytest.mark.parametrize("process", GOLDEN)
def test_golden_losses(process):
    model = awake(tiny(process=process)).train()
    torch.manual_seed(1)
    loss = model.training_step(batch_of(32), 0)["loss"]
    held = model.eval().validation_step(batch_of(32), 0)["loss"]
    assert (float(loss.detach()), float(held)) == pytest.approx(GOLDEN[process], abs=2e-5)


@pytest.mark.parametrize("level", [0.01, 0.7, 6.0])
def test_the_same_noise_in_another_frame_is_the_same_to_it(level):
    model = awake(tiny()).eval()
    x0, eps = batch_of(4)["image"], torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    told = []
    for process in (model.process, Cosine(), Karras()):
        alpha, sigma = process.scales(process.time(torch.tensor(level)))
        told.append(model.classify(alpha * x0 + sigma * eps, alpha, sigma).detach())
    assert float((told[0].exp().sum(1) - 1).abs().max()) < 1e-5 and float(told[0].std()) > 0.05
    for other in told[1:]:
        torch.testing.assert_close(other, told[0], atol=1e-4, rtol=1e-4)
    clean = model.classify(x0, torch.tensor(1.0), torch.tensor(0.0))       # without noise: the least that it knows
    assert clean.shape == (4, 10) and bool(clean.isfinite().all())


def test_its_gradients_are_those_of_finite_differences_and_each_image_is_seen_alone():
    model = awake(tiny()).eval()
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = model.classify(x, alpha, sigma)[torch.arange(3), torch.tensor([1, 2, 3])]
    gradient, = torch.autograd.grad(value.sum(), x)
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        there, back = (model.classify(x + step * way, alpha, sigma)[torch.arange(3), torch.tensor([1, 2, 3])]
                       for step in (1e-2, -1e-2))
        alone = model.classify(x[1:2], alpha, sigma)
    torch.testing.assert_close((there - back) / 2e-2, (gradient * way).sum((1, 2, 3)), atol=2e-3, rtol=2e-2)
    torch.testing.assert_close(alone[0], model.classify(x, alpha, sigma)[1].detach(), atol=1e-5, rtol=1e-5)


def test_within_seconds_it_tells_digits_where_noise_leaves_any():
    torch.manual_seed(0)
    model, train = tiny(warmup_images=0, **{"levels": [0.1, 20]}).train(), batch_of(1024)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(160):
        rows = torch.randperm(1024, generator=torch.Generator().manual_seed(step))[:64]
        optimizer.zero_grad()
        model.training_step({name: value[rows] for name, value in train.items()}, step)["loss"].backward()
        optimizer.step()
    images, digits = read_digits()
    held = {"image": torch.from_numpy(images[1200:1600]).float()[:, None] / 8 - 1, "index": torch.arange(400),
            "label": torch.from_numpy(digits[1200:1600])}
    found = model.eval().validation_step(held, 0)
    assert float(found["accuracy_at_0.1"]) > 0.7 and float(found["accuracy_at_20"]) < 0.25
    assert found.keys() == {"loss", "accuracy", "accuracy_at_0.1", "accuracy_at_20"}
    assert 0.2 < float(model.sigma_data()) < 1.2 and float(model.moments[0]) == 64


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"process": "flo"}, "There is no process 'flo' for model.process: did you mean 'flow'"),
    ({"levels": [0.5, 0.0]}, r"model.levels=\[0.5, 0.0\]: a noise level, sigma / alpha, is above 0"),
    ({"sigma_data": 0}, "model.sigma_data=0 is neither a positive number nor auto"),
    ({"augment": ["flip"]}, "model.augment has no policy 'flip'"),
    ({"classes": None}, "Classifier tells classes apart, and these data have none: choose data with labels"),
])
def test_what_makes_no_sense_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**changes)
