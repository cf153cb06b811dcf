"""Translation scores: against formulas, repeats left out, doing nothing, and the same numbers on two processes."""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F

from aigc.config.targets import instantiate
from aigc.errors import RunError, UserError
from aigc.files.cache import cache_folder
from aigc.images.grids import to_uint8
from aigc.scoring.scores.frechet import frechet_distance
from aigc.training.callbacks.translation_scores import TranslationScores
from tests.training.callbacks.conftest import Copies, Inverted, TwoSides, alone, in_two_processes

FEW = {"network": "classifier", "every_images": 100, "num_images": None, "batch_size": 6, "lpips": None,
       "kd_subsets": 2, "kd_subset_size": 50}
NAMES = {"fd_classifier", "kd_classifier", "psnr", "ssim", "similarity_classifier"}


def uneven():
    """27 images against 11: no true pairs."""
    return TwoSides(counts=(27, 11), pairs=False)


@pytest.fixture(scope="module")
def paired():
    data = TwoSides()
    data.setup()
    return data


def scored(data, folder, model, *, final=False, **options):
    scores = TranslationScores(**{**FEW, **options})
    return scores.score(alone(data, folder), model, final=final), scores


def test_names_of_both_directions_and_of_doing_nothing(paired, tmp_path):
    found, scores = scored(paired, tmp_path, Inverted(), final=True)
    own = {f"{d}/{name}" for d in ("a2b", "b2a") for name in NAMES | {"cycle_l1"}}
    own |= {f"{d}/identity/{name}" for d in ("a2b", "b2a") for name in NAMES}
    assert set(found) == own | {f"test/{name}" for name in own}
    assert scores.monitor == "a2b/fd_classifier" and scores.best == found["a2b/fd_classifier"]
    usual, _ = scored(paired, tmp_path, Inverted(one_way=True))
    assert set(usual) == {f"a2b/{name}" for name in NAMES} | {f"a2b/identity/{name}" for name in NAMES}


def test_a_right_translation_scores_far_better_than_nothing(paired, tmp_path):
    found, _ = scored(paired, tmp_path, Inverted(off=0.25))
    assert found["a2b/psnr"] > 25 > 15 > found["a2b/identity/psnr"]
    assert found["a2b/ssim"] > 0.8 > found["a2b/identity/ssim"]
    assert found["a2b/similarity_classifier"] > found["a2b/identity/similarity_classifier"]
    assert found["a2b/fd_classifier"] < 0.2 * found["a2b/identity/fd_classifier"]
    assert found["a2b/cycle_l1"] == found["b2a/cycle_l1"] == pytest.approx(0.25, abs=1e-5)


def test_doing_nothing_is_the_identity_baseline(paired, tmp_path):
    found, _ = scored(paired, tmp_path, Inverted(nothing=True), final=True)
    for name, value in found.items():
        direction, _, rest = name.removeprefix("test/").partition("/")
        if not rest.startswith("identity") and rest != "cycle_l1":
            same = name.replace(f"{direction}/", f"{direction}/identity/")
            assert value == pytest.approx(found[same], rel=1e-3, abs=1e-6), name
    assert found["a2b/cycle_l1"] == 0


def test_numbers_are_those_of_the_formulas(paired, tmp_path):
    found, scores = scored(paired, tmp_path, Inverted())
    split = paired.pair_split("validation")
    a, b = (side.batch(torch.arange(20))["image"] for side in (split.a, split.b))
    made = to_uint8(-(a.float() / 127.5 - 1))
    error = (made.double() - b.double()).square().mean((1, 2, 3))
    assert found["a2b/psnr"] == pytest.approx((10 * (255**2 / error).log10()).mean().item(), rel=1e-5)
    with torch.no_grad():
        ours, real = scores.network(made)[0].double(), scores.network(b)[0].double()
    assert found["a2b/similarity_classifier"] == pytest.approx(F.cosine_similarity(ours, real).mean().item(), rel=1e-4)
    expected = frechet_distance(ours.mean(0), torch.cov(ours.T), real.mean(0), torch.cov(real.T)).item()
    assert found["a2b/fd_classifier"] == pytest.approx(expected, rel=1e-2)   # 20 images, 256 dimensions


def test_repeats_of_the_shorter_side_are_left_out(tmp_path):
    data = uneven()
    data.setup()
    model = Inverted()
    found, scores = scored(data, tmp_path, model)
    there = {d: sum(len(seeds) for asked, seeds in model.asked if asked == d) for d in ("a2b", "b2a")}
    assert there == {"a2b": 27 + 11, "b2a": 11 + 27}          # and the ways back
    assert "a2b/psnr" not in found and "a2b/similarity_classifier" not in found
    assert scores.missing == {} and scores.facts()["scores_missing"] == {
        f"{prefix}{name}": f"the images of {split} are not paired"
        for prefix, split in (("", "validation"), ("test/", "test"))
        for name in ("psnr", "ssim", "lpips", "similarity_classifier")}
    split = data.pair_split("validation")
    a, b = split.a.images, split.b.images
    with torch.no_grad():
        ours, real = scores.network(255 - b)[0].double(), scores.network(a)[0].double()
    expected = frechet_distance(ours.mean(0), torch.cov(ours.T), real.mean(0), torch.cov(real.T)).item()
    assert found["b2a/fd_classifier"] == pytest.approx(expected, rel=1e-2)
    assert scores.protocol["splits"]["validation"] == {"a": 27, "b": 11, "pairs": False, "rows": 27,
                                                       "kd_subset_size": 11}


def test_an_image_keeps_its_seed_whatever_the_batch(paired, tmp_path):
    models = Inverted(one_way=True), Inverted(one_way=True)
    found = [scored(paired, tmp_path, model, batch_size=n)[0] for model, n in zip(models, (20, 7), strict=True)]
    seeds = [[seed for _, part in model.asked for seed in part] for model in models]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 20
    for name, value in found[0].items():
        assert value == pytest.approx(found[1][name], rel=1e-3, abs=1e-6), name


def test_fewer_images_against_the_whole_reference(paired, tmp_path):
    model = Inverted(one_way=True)
    found, scores = scored(paired, tmp_path, model, num_images=8)
    assert sum(len(seeds) for _, seeds in model.asked) == 8
    assert len(scores.reals["validation"].features[1]) == 20 and found["a2b/fd_classifier"] > 0
    assert scores.protocol["splits"]["validation"]["rows"] == 8


def test_the_real_side_is_looked_at_once(paired, tmp_path, monkeypatch):
    scored(paired, tmp_path, Inverted())
    scores = TranslationScores(**FEW)
    monkeypatch.setattr("aigc.scoring.translation.keep_cached", None)   # must not be called
    scores.prepare(alone(paired, tmp_path), Inverted())
    assert set(scores.reals) == {"validation", "test"}


def test_protocol_says_how(paired, tmp_path):
    _, scores = scored(paired, tmp_path, Inverted())
    protocol = json.loads(json.dumps(scores.protocol))
    assert protocol["metric"] == "a2b/fd_classifier" and len(protocol["network_sha256"]) == 64
    assert protocol["resizer"].endswith("bilinear, antialiased") and "rotations" in protocol["network_task"]
    assert (protocol["data"], protocol["data_fingerprint"]) == (paired.name, paired.fingerprint)
    assert protocol["splits"]["test"] == {"a": 20, "b": 20, "pairs": True, "rows": 20, "kd_subset_size": 20}
    assert protocol["lpips"] is None and protocol["directions"] == ["a2b", "b2a"]


def test_what_does_not_translate_is_refused(paired, trainer, tmp_path):
    for data, model in ((paired, Copies()), (trainer.datamodule, Inverted())):
        with pytest.raises(UserError, match="use metrics=classifier"):
            scored(data, tmp_path, model)
    with pytest.raises(UserError, match=r"metrics.lpips 'alexx' is unknown: did you mean 'alex'"):
        TranslationScores(**{**FEW, "lpips": "alexx"})
    with pytest.raises(UserError, match="monitor 'a2b/fid' is not a score here"):
        scored(paired, tmp_path, Inverted(), monitor="a2b/fid")


def test_translations_that_are_not_finite_end_the_run(paired, tmp_path):
    with pytest.raises(RunError, match="samples became infinite or NaN"):
        scored(paired, tmp_path, Inverted(off=float("nan")))


def test_the_recipe_is_complete(composed):
    recipe = composed("metrics=translation").metrics
    assert isinstance(instantiate(recipe, "metrics"), TranslationScores)
    assert set(recipe) - {"_target_"} == set(inspect.signature(TranslationScores).parameters)


@pytest.mark.slow
def test_two_processes_score_translations_as_one(tmp_path):
    data = uneven()
    data.setup()
    expected, _ = scored(data, tmp_path, Inverted(off=0.1), final=True)     # trains the classifier for all
    for path in cache_folder().glob("sides-classifier-*.pt"):              # both look at the real side themselves
        path.unlink()
    ranks = in_two_processes(tmp_path, "translations")
    assert ranks[0]["scores"] == ranks[1]["scores"] and set(ranks[0]["scores"]) == set(expected)
    for name, value in expected.items():
        assert ranks[0]["scores"][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    total = ranks[0]["asked"] + ranks[1]["asked"]
    assert total == 2 * 2 * (27 + 11) and 0.3 * total < ranks[0]["asked"] < 0.7 * total
