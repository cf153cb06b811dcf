import time

import pytest
import torch
from torch import nn

from aigc.errors import UserError
from aigc.networks.ema import EMA
from aigc.noise import SeededNoise, mix
from aigc.runs.progress import Progress
from aigc.training.precision import choose_precision


def test_fraction_is_the_larger_share_of_the_budget():
    progress = Progress(images=50, seconds=30.0)
    assert progress.fraction == 0
    progress.budget_images = 200
    assert progress.fraction == 0.25
    progress.budget_seconds = 40.0
    assert progress.fraction == 0.75
    progress.seconds = 100.0
    assert progress.fraction == 1.0


def test_the_clock_stands_still_inside_paused():
    progress = Progress()
    progress.start()
    time.sleep(0.05)
    with progress.paused():
        time.sleep(0.2)
    time.sleep(0.05)
    progress.tick()
    assert 0.1 <= progress.seconds < 0.19


def test_progress_survives_a_checkpoint():
    progress = Progress(images=640, seconds=2.5, batches=10)
    other = Progress(budget_images=1000)
    other.load_state_dict(progress.state_dict())
    assert (other.images, other.seconds, other.batches, other.fraction) == (640, 2.5, 10, 0.64)


def test_ema_follows_its_closed_form_and_copies_buffers():
    source = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = EMA(source, halflife_images=1000, ramp=0.5)
    start = average.network[0].weight.clone()
    with torch.no_grad():
        source[0].weight.fill_(3.0)
        source[1].running_mean.fill_(7.0)
    average.update(source, images_seen=100, batch=50)  # half-life min(1000, 0.5 * 100) = 50 images: half way
    assert torch.allclose(average.network[0].weight, start + 0.5 * (3.0 - start))
    assert average.network[1].running_mean.item() == 7.0
    average.update(source, images_seen=10**6, batch=1000)  # half-life 1000: half of the rest
    assert torch.allclose(average.network[0].weight, start + 0.75 * (3.0 - start))
    assert not average.train().network.training
    assert not any(p.requires_grad for p in average.parameters())


def test_seeded_noise_depends_on_each_seed_alone_and_continues():
    together, alone = SeededNoise([3, 9, 4]), SeededNoise([9])
    first, second = together(2, 5), together(2, 5)
    assert torch.equal(first[1], alone(2, 5)[0])
    assert torch.equal(second[1], alone(2, 5)[0])
    assert not torch.equal(first, second)
    assert SeededNoise(range(400))(100).std().item() == pytest.approx(1, abs=0.01)


def test_mixed_seeds_do_not_collide():
    assert len({mix(seed, rank, step) for seed in range(5) for rank in range(4) for step in range(500)}) == 10_000
    assert mix(1, 2) != mix(2, 1)
    assert 0 <= mix(2**70, -1) < 2**63


def test_precision_auto_is_what_the_gpu_does_well_and_float32_where_nothing_was_measured(monkeypatch):
    assert choose_precision("auto", "cpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_precision("auto", "cuda") == "16-mixed"
    assert choose_precision(32, "cpu") == "32-true" and choose_precision("16", "cuda") == "16-mixed"


@pytest.mark.parametrize(
    ("wanted", "device"), [("64-true", "cpu"), ("bf16-true", "cpu"), ("16-mixed", "cpu"), ("16-true", "cuda")]
)
def test_precisions_that_families_do_not_train_in_are_refused(wanted, device):
    where = "GPU" if device == "cuda" else "CPU"
    with pytest.raises(UserError, match=f"precision={wanted} is not offered on a {where}, weights stay in float32: "):
        choose_precision(wanted, device)
