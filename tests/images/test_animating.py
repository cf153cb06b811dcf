"""Animations: how frames move, what each starts from, and files that others can read."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.errors import UserError
from aigc.images.animating import Motion, encoder_of, enlarged, frames_of, gif, motion_asked, mp4
from aigc.models.guidance import Guidance
from tests.models.test_diffusion import tiny

STILL = {"frames": 3, "zoom": 1.0, "rotate": 0.0, "translate": [0.0, 0.0], "skip": 0.5}


def moved(images, **changes):
    return Motion(**{**STILL, **changes}).moved(images)


def test_frames_are_turned_shifted_and_enlarged_as_asked():
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    torch.testing.assert_close(moved(images), images, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved(images, rotate=90), images.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(moved(images, translate=[0.25, 0.0])[..., 3:], images[..., :-3], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved(images, translate=[0.0, 0.25])[:, :, 3:], images[:, :, :-3], atol=1e-4, rtol=0)
    columns = torch.linspace(-0.9, 0.9, 24).expand(1, 1, 16, 24)
    middle = moved(columns, zoom=2.0)[..., 6:18]
    torch.testing.assert_close(middle, columns[..., 6:18] / 2, atol=0.02, rtol=0)
    wide = moved(columns, rotate=180)
    torch.testing.assert_close(wide, -columns, atol=1e-3, rtol=0)


def test_each_frame_starts_from_the_last_one_with_a_seed_of_its_own():
    model, given = tiny("ddpm", condition="none"), []
    own = model.sample
    model.sample = lambda n, **how: given.append(how) or own(n, **how)
    motion = Motion(**{**STILL, "rotate": 90, "skip": 0.75})
    frames = list(frames_of(model, motion, [0, 1], seed=7, guidance=Guidance(), options={"steps": 8}))
    assert len(frames) == 3 and [how.get("skip") for how in given] == [None, 6, 6]
    torch.testing.assert_close(given[1]["init"], frames[0].rot90(1, (2, 3)), atol=1e-4, rtol=0)
    assert len({seed for how in given for seed in how["seeds"]}) == 6
    alone = list(frames_of(model, motion, [1], seed=7, guidance=Guidance(), options={"steps": 8}))
    torch.testing.assert_close(alone[2][0], frames[2][1], atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"leaves steps out: give sampler.steps=2 or more"):
        list(frames_of(model, motion, [0], seed=7, guidance=Guidance(), options={"steps": 1}))


def test_videos_have_the_frames_at_even_sizes():
    imageio, _ = pytest.importorskip("imageio.v3"), pytest.importorskip("av")
    frames = torch.randint(0, 256, (5, 1, 9, 131), dtype=torch.uint8)
    large = enlarged(frames)
    assert large.shape == (5, 29 * 9 + 1, 29 * 131 + 1, 3)         # 29 times 9 is above 256, and odd
    assert np.array_equal(large[:, 14, 14::29, 0][:, :131], frames[:, 0, 0].numpy())
    seen = imageio.imread(io.BytesIO(mp4(frames[..., :9].expand(5, 3, 9, 9), 10)), plugin="pyav")
    assert seen.shape == (5, 262, 262, 3) and float(abs(seen.astype(float) - enlarged(frames[..., :9])).mean()) < 12


def test_without_the_packages_for_mp4_it_is_a_gif_and_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    ending, encode, notes = encoder_of("mp4")
    assert (ending, encode) == ("gif", gif) and "pip install 'aigc[video]'" in notes[0]
    with Image.open(io.BytesIO(encode(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8) * 60,
                                      4.0))) as file:
        assert (file.n_frames, file.size, file.info["duration"]) == (4, (256, 256), 250)
    assert encoder_of("gif") == ("gif", gif, [])


@pytest.mark.parametrize(("video", "changes", "sentence"), [
    ("avi", {}, "video=avi is no format of videos: choose from gif, mp4"),
    ("gif", {"frames": 1}, "animation.frames must be a whole number of at least 2, not 1"),
    ("gif", {"zoom": 0}, "animation.zoom=0 must be above 0"),
    ("gif", {"translate": [0.1]}, r"animation.translate=\[0.1\] must be two shares"),
    ("gif", {"skip": 1.0}, "animation.skip=1.0 must lie between"),
])
def test_what_is_no_animation_is_refused(video, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        motion_asked(video, {**STILL, "fps": 8, **changes})
    assert motion_asked(None, {}) is None
