"""What is said where there are too few images for a score."""

from aigc.scoring.enough import no_floor, smaller_subsets, too_few
from aigc.scoring.scores.inception_score import no_inception_score


def test_as_many_images_as_features_leave_the_covariance_singular() -> None:
    said = too_few({"samples": 64, "reference images": 2000}, 256)
    assert said == ("singular covariance: 64 samples for 256 features; Fréchet distances are comparable only at equal "
                    "numbers")
    assert too_few({"samples": 256}, 256) is not None and too_few({"samples": 257}, 256) is None


def test_smaller_subsets_missing_floors_and_inception_scores_say_why() -> None:
    assert smaller_subsets(1000, 64) == "kernel distance over subsets of 64 images, not 1,000: one side has no more"
    assert smaller_subsets(64, 64) is None
    assert no_floor(64, 64) is None and no_floor(64, None) == "no test images are held out of the reference"
    assert no_floor(2000, 179) == "it needs as many test images as samples: 2,000, and there are 179"
    assert no_inception_score(2000, classifies=True) is None
    assert no_inception_score(5, classifies=True) == "it needs 100 images, and there are 5"
    assert no_inception_score(2000, classifies=False) == "the network names no classes"
