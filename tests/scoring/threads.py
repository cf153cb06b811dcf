"""What a network makes of the same images by one thread and by two, in batches of two sizes."""

import torch

from aigc.scoring.suite import Suite


@torch.no_grad()
def by_one_and_two(network, real, fake, *, batches, near=None, **options):
    """Scores of `fake` against `real`, by one thread and by two; then the distance of `near`, if it is given.

    `batches`: images at once, for one thread and for two; `options`: of the suite.
    """
    def features(images, size):
        return torch.cat([network(part)[0] for part in images.split(size)])

    found = []
    torch.set_float32_matmul_precision("high")      # as training does
    try:
        for threads, size in zip((1, 2), batches, strict=True):
            torch.set_num_threads(threads)
            suite = Suite(network, **options)
            suite.add_real(features(real, size))
            seen, logits = zip(*(network(part) for part in fake.split(size)), strict=True)
            more = [] if near is None else [suite.distance_to_real(features(near, size))]
            found.append([*suite.compute(torch.cat(seen), torch.cat(logits)).values(), *more])
    finally:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
    return found
