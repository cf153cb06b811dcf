"""The pool of earlier images: against a plain reference, at every batch size, saved and loaded."""

import random

import pytest
import torch

from aigc.losses.image_pool import ImagePool
from aigc.noise import mix


def stream(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1)


def numbers(images: torch.Tensor) -> list[int]:
    return images.flatten().int().tolist()


def reference(batches: list[list[int]], size: int) -> list[list[int]]:
    """Zhu et al.'s pool on numbers, one after another, with the draws of ours."""
    held, passed = [], []
    for step, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(mix(step))
        swaps = torch.rand(len(batch), generator=generator) < 0.5
        places = torch.randint(size, (len(batch),), generator=generator)
        out = []
        for image, swap, place in zip(batch, swaps, places, strict=True):
            if len(held) < size:
                held.append(image)
                out.append(image)
            elif swap:
                out.append(held[place])
                held[place] = image
            else:
                out.append(image)
        passed.append(out)
    return passed


@pytest.mark.parametrize(("size", "batch"), [(5, 1), (5, 4), (6, 9), (1, 3)])
def test_does_what_the_original_does(size, batch):
    images = stream(20 * batch).split(batch)
    pool = ImagePool(size)
    got = [numbers(pool(part, step)) for step, part in enumerate(images)]
    assert got == reference([numbers(part) for part in images], size)
    assert len(pool.state_dict()["images"]) == size


def test_an_image_is_passed_on_or_kept_never_both_nor_lost():
    pool, seen = ImagePool(10), []
    for step, part in enumerate(stream(300).split(3)):
        seen += numbers(pool(part, step))
    late = seen[10:]
    assert len(set(late)) >= 280                            # nothing is shown twice once the pool is full
    assert sum(shown != order for order, shown in enumerate(seen)) / 300 == pytest.approx(0.5, abs=0.1)


def test_without_room_images_pass_as_they_are():
    images = torch.randn(3, 2, 4, 4, requires_grad=True)
    passed = ImagePool(0)(images, 0)
    assert torch.equal(passed, images) and not passed.requires_grad


def test_what_it_holds_is_its_own():
    pool, images = ImagePool(4), torch.zeros(2, 1, 1, 1, requires_grad=True)
    passed = pool(images, 0)
    passed.fill_(7)
    assert not passed.requires_grad
    assert numbers(pool.state_dict()["images"]) == [0, 0]


@pytest.mark.parametrize("stop", [0, 1, 3, 12])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(stop):
    parts = stream(80).split(4)
    whole, broken = ImagePool(9), ImagePool(9)
    expected = [numbers(whole(part, step)) for step, part in enumerate(parts)]
    got = [numbers(broken(part, step)) for step, part in enumerate(parts[:stop])]
    resumed = ImagePool(9)
    resumed.load_state_dict(broken.state_dict())
    random.seed(stop)
    torch.manual_seed(stop)                                 # the global generators play no part
    got += [numbers(resumed(part, step)) for step, part in enumerate(parts[stop:], start=stop)]
    assert got == expected


def test_a_smaller_pool_takes_what_it_has_room_for():
    pool, smaller = ImagePool(6), ImagePool(4)
    pool(stream(6), 0)
    smaller.load_state_dict(pool.state_dict())
    assert numbers(smaller.state_dict()["images"]) == [0, 1, 2, 3]
