"""Scores over features: against torch-fidelity and formulas, with few samples, and from the cache."""

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from aigc.scoring.networks.features import FeatureNetwork
from aigc.scoring.scores.frechet import frechet_distance
from aigc.scoring.scores.kernel import KernelDistance
from aigc.scoring.suite import KEPT, HandThrough, Suite

D = 6


class Network(FeatureNetwork):
    name = "tiny"
    num_features = D
    sha256 = "0" * 64
    resizer = "none"
    task = "nothing"


def cloud(n, shift=0.0, seed=0, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def suite(reals, **options):
    made = Suite(Network(), **options)
    made.add_real(reals)
    return made


def test_names_say_which_network():
    scores = suite(cloud(200)).compute(cloud(200, seed=1), cloud(200, seed=2))
    assert set(scores) == {"fd_tiny", "kd_tiny", "is_tiny"}


def test_frechet_is_that_of_the_samples():
    real, fake = cloud(500).double(), cloud(300, 0.5, seed=1).double()
    expected = frechet_distance(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov()).item()
    made = suite(real.float())
    assert made.compute(fake.float(), fake)["fd_tiny"] == pytest.approx(expected, rel=1e-6)
    assert made.distance_to_real(fake.float()) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_the_unbiased_formula():
    n = 80
    real, fake = cloud(n).double(), cloud(n, 0.4, seed=1).double()

    def kernel(x, y):
        return (x @ y.T / D + 1) ** 3

    off = ~torch.eye(n, dtype=torch.bool)
    expected = kernel(real, real)[off].mean() + kernel(fake, fake)[off].mean() - 2 * kernel(real, fake).mean()
    scores = suite(real.float(), kd_subsets=2, kd_subset_size=n).compute(fake.float(), fake)
    assert scores["kd_tiny"] == pytest.approx(expected.item(), rel=1e-6)


def kid(fake, real, **options):
    """torch-fidelity's, as its command line computes it."""
    found = kid_features_to_metric(fake, real, kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_coef0=1,
                                   rng_seed=2020, verbose=False, **options)
    return [found[f"kernel_inception_distance_{name}"] for name in ("mean", "std")]


@pytest.mark.parametrize("n", [101, 250])
def test_kernel_distance_and_inception_score_are_torch_fidelitys(n):
    """The same subsets and splits, whose sizes differ by one at most: only the last digits of float64 are left."""
    real, fake, logits = cloud(300), cloud(n, 0.4, seed=1), 3 * cloud(n, seed=2)
    scores = suite(real, kd_subsets=7, kd_subset_size=100).compute(fake, logits)
    expected = kid(fake.double(), real.double(), kid_subsets=7, kid_subset_size=100)[0]
    assert scores["kd_tiny"] == pytest.approx(expected, rel=1e-9)
    assert scores["is_tiny"] == pytest.approx(isc_features_to_metric(logits)["inception_score_mean"], rel=1e-12)
    other = suite(real, kd_subsets=7, kd_subset_size=100, seed=5).compute(fake, logits)
    assert other["kd_tiny"] != scores["kd_tiny"] and other["is_tiny"] != scores["is_tiny"]


def test_an_inception_score_of_fewer_images_than_were_to_come():
    made, logits = suite(cloud(100)), 3 * cloud(130, seed=2)
    for seen, known in ((99, False), (110, True)):
        made.begin(130)
        made.add(cloud(seen, seed=1), logits[:seen])
        assert ("is_tiny" in made.scores()) is known


def test_inception_score_of_sure_and_spread_answers_is_their_number():
    logits = 60 * torch.eye(5).repeat(200, 1)  # five classes, equally often, without doubt
    assert suite(cloud(100)).compute(cloud(1000, seed=1), logits)["is_tiny"] == pytest.approx(5, rel=0.03)
    far = 5000 * torch.eye(5)[:1].repeat(1000, 1)  # one class only, and so sure that the others have probability zero
    assert suite(cloud(100)).compute(cloud(1000, seed=1), far)["is_tiny"] == pytest.approx(1, abs=1e-9)


def test_few_samples_give_what_they_can():
    made = suite(cloud(50), kd_subset_size=1000)
    scores = made.compute(cloud(4, seed=1), cloud(4))  # fewer than dimensions: singular covariance
    assert set(scores) == {"fd_tiny", "kd_tiny"}  # an inception score needs a hundred
    assert made.subset_size(4) == 4 and made.protocol(4)["kd_subset_size"] == 4
    assert scores["fd_tiny"] == pytest.approx(made.distance_to_real(cloud(4, seed=1)), rel=1e-6)


def test_rotations_name_nothing():
    class Rotations(Network):
        classifies = False

    made = Suite(Rotations())
    made.add_real(cloud(200))
    assert set(made.compute(cloud(200, seed=1), cloud(200))) == {"fd_tiny", "kd_tiny"}


def test_scoring_repeats_itself_and_leaves_the_random_state():
    made = suite(cloud(400), kd_subset_size=50, kd_subsets=3)
    state = torch.get_rng_state()
    first = made.compute(cloud(300, 0.2, seed=1), cloud(300))
    made.compute(cloud(300, 2.0, seed=3), cloud(300))
    assert made.compute(cloud(300, 0.2, seed=1), cloud(300)) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_gives_the_scores_of_the_whole_and_keeps_no_more_than_it_must(monkeypatch):
    monkeypatch.setattr("aigc.scoring.suite.KEPT", 150)
    made, fake, logits = suite(cloud(400), kd_subset_size=50), cloud(333, 0.2, seed=1), cloud(333, seed=2)
    whole = made.compute(fake, logits)
    made.begin(333)
    for part, own in zip(fake.split(40), logits.split(40), strict=True):
        made.add(part, own)
    assert made.scores() == pytest.approx(whole, rel=1e-9)
    assert made.generated == 333 and len(made.kept(real=False)) == len(made.kept(real=True)) == 150
    assert torch.equal(made.kept(real=False), fake[:150])


def test_real_side_from_the_cache_gives_the_same_scores():
    real, fake = cloud(KEPT + 500), cloud(300, 0.3, seed=1)
    fresh = suite(real, kd_subsets=2)
    state = fresh.real_state()
    assert state["features"].dtype == torch.float32 and len(state["features"]) == KEPT
    again = suite(cloud(70, 9.0), kd_subsets=2)
    again.compute(fake, fake)  # with another real side, whose root must not stay
    again.load_real(state)
    assert again.compute(fake, fake) == fresh.compute(fake, fake)


@pytest.mark.parametrize(("n", "exact", "apart"), [(150, 900, 1e-6), (900, 900, 1e-6), (150, 0, 1e-2)])
@pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features")
def test_a_small_kernel_distance_of_large_kernels_is_torch_fidelitys(n, exact, apart, monkeypatch):
    """One matrix for all subsets, one for each, and float32: kernels are about 1,000, the distance below 1."""
    monkeypatch.setattr("aigc.scoring.scores.kernel.EXACT", exact)
    monkeypatch.setattr("aigc.scoring.scores.kernel.ROWS", 64)
    real, fake = 3 + cloud(n, d=64).relu(), 3.002 + cloud(n, seed=1, d=64).relu()
    metric = KernelDistance(HandThrough(64), subsets=5, subset_size=100)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    found = [value.item() for value in metric.compute()]
    expected = kid(fake.double(), real.double(), kid_subsets=5, kid_subset_size=100)
    assert found == pytest.approx(expected, rel=apart) and abs(found[0]) < 1
