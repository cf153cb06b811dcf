"""Zooming animations, as Disco Diffusion has them: each frame starts from the last one, moved a little, in noise.

A frame is the run's sample from its own seed, started (`init`, `skip`) from the frame before, which was turned,
shifted and enlarged. So guides, samplers and conditions act on frames as on pictures.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import RunError, UserError, check_count, choices
from aigc.images.grids import grid_png, to_uint8
from aigc.images.output import Output
from aigc.models.capabilities import require
from aigc.models.family import Family
from aigc.models.guidance import Guidance
from aigc.models.requests import Request
from aigc.noise import mix
from aigc.wording import Report, silent

FORMS = ("mp4", "gif")
EXTRA = "pip install 'aigc[video]'"
ROWS, SHOWN = 16, 8                    # videos in the grid, and frames of each
ENLARGED = 256                         # shorter side of a video's pictures, in pixels, at least


@dataclass(frozen=True)
class Motion:
    """What happens between two frames, in 2-D as of Disco Diffusion.

    Raises:
        UserError: a value makes no sense.
    """

    frames: int                        # how many, the first included
    zoom: float                        # enlargement around the middle; below 1: outwards
    rotate: float                      # degrees, counterclockwise
    translate: Sequence[float]         # (x, y) in shares of width and height; to the right and downwards
    skip: float                        # share of the sampler's steps that later frames leave out

    def __post_init__(self) -> None:
        check_count("animation.frames", self.frames, least=2)
        if not self.zoom > 0:
            raise UserError(f"animation.zoom={self.zoom} must be above 0; 1 is as large as before")
        if len(self.translate) != 2:
            raise UserError(f"animation.translate={list(self.translate)} must be two shares of the image, [x, y]")
        if not 0 < self.skip < 1:
            raise UserError(f"animation.skip={self.skip} must lie between 0, a new picture, and 1, the last one again")

    def skipped(self, steps: int) -> int:
        """How many of a later frame's steps are left out.

        Raises:
            UserError: there are too few.
        """
        if steps < 2:
            raise UserError("a frame that starts from the last one leaves steps out: give sampler.steps=2 or more")
        return min(max(1, round(self.skip * steps)), steps - 1)

    def moved(self, images: Tensor) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1], moved by one frame; what comes in from outside mirrors the border."""
        h, w = images.shape[2:]
        angle = math.radians(self.rotate)
        cos, sin = math.cos(angle) / self.zoom, math.sin(angle) / self.zoom
        x, y = (-2 * share for share in self.translate)
        rows = [[cos, -sin * h / w, cos * x - sin * h / w * y], [sin * w / h, cos, sin * w / h * x + cos * y]]
        move = torch.tensor(rows, device=images.device).expand(len(images), -1, -1)
        grid = F.affine_grid(move, list(images.shape), align_corners=False)
        made = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        return made.clamp(-1, 1)


def motion_asked(video: Any, animation: Mapping[str, Any]) -> Motion | None:
    """What is asked for by `video` and `animation`; None: no video.

    Raises:
        UserError: there is no such format, or a value makes no sense.
    """
    if video is None:
        return None
    if video not in FORMS:
        raise UserError(f"video={video} is no format of videos: {choices(video, FORMS)}")
    return Motion(**{name: value for name, value in animation.items() if name != "fps"})


def frames_of(
    family: Family, motion: Motion, numbers: Sequence[int], *, seed: int, condition: Any = None,
    guidance: Guidance, options: Mapping[str, Any], progress: Report = silent, done: int = 0, total: int = 0,
) -> Iterator[Tensor]:
    """Frames `(n, c, h, w)` in [-1, 1] of n videos, one after the other.

    Args:
        family: samples, and knows `init` and `skip`.
        motion: between frames.
        numbers: of the videos; frame f of video k has the seed mix(seed, k, f), the first one mix(seed, k).
        seed: as typed.
        condition: of the videos.
        guidance: for all videos of the call, by their numbers.
        options: of `sample`.
        progress: told of frames.
        done: frames of other videos that are made.
        total: of all videos.
    """
    last: Tensor | None = None
    for frame in range(motion.frames):
        how = guidance.of(numbers, options)
        if last is not None:
            how |= {"init": motion.moved(last), "skip": motion.skipped(steps_of(family, how))}
        seeds = [mix(seed, k, frame) if frame else mix(seed, k) for k in numbers]
        last = family.sample(len(numbers), condition=condition, seeds=seeds, **how)
        progress(done + (frame + 1) * len(numbers), total, "")
        yield last


def steps_of(family: Any, options: Mapping[str, Any]) -> int:
    """The steps of a diffusion run's sampler, as asked for or the recipe's."""
    asked = {name: options[name] for name in ("sampler", "steps") if name in options}
    return int(family.settings(asked)["steps"])


# ---- files ----


def enlarged(frames: Tensor) -> np.ndarray:
    """Frames `(f, c, h, w)` uint8 as `(f, h, w, 3)`: whole pixels enlarged, both sides even, as H.264 wants them."""
    factor = max(1, math.ceil(ENLARGED / min(frames.shape[2:])))
    large = frames.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    large = F.pad(large.float(), (0, large.shape[3] % 2, 0, large.shape[2] % 2), mode="replicate").to(torch.uint8)
    return large.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def encoder_of(video: str) -> tuple[str, Callable[[Tensor, float], bytes], list[str]]:
    """The ending of a video's file, what makes its content of frames `(f, c, h, w)` uint8 at a rate, and a note.

    Where the packages for mp4 are missing, it is a GIF, and the note says so.
    """
    if video == "mp4":
        try:
            import av  # noqa: F401
            import imageio.v3  # noqa: F401
        except ImportError:
            return "gif", gif, [f"video=mp4 needs imageio and av ({EXTRA}), so the videos are GIFs"]
        return "mp4", mp4, []
    return "gif", gif, []


def mp4(frames: Tensor, fps: float) -> bytes:
    """An H.264 video.

    Raises:
        RunError: it cannot be encoded.
    """
    import imageio.v3

    file = io.BytesIO()
    try:
        imageio.v3.imwrite(file, enlarged(frames), plugin="pyav", codec="libx264", fps=fps, extension=".mp4")
    except Exception as error:
        raise RunError(f"the video cannot be encoded as mp4 ({error}): give video=gif") from error
    return file.getvalue()


def gif(frames: Tensor, fps: float) -> bytes:
    """A GIF that repeats."""
    from PIL import Image

    pictures = [Image.fromarray(one) for one in enlarged(frames)]
    file = io.BytesIO()
    pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=1000 / fps, loop=0)
    return file.getvalue()


def write_videos(
    family: Family, typed: Mapping[str, Any], out: Output, asked: Request, motion: Motion, n: int, *,
    progress: Report = silent,
) -> list[str]:
    """Writes n videos one by one, and grid.png with frames of the first ones, a video a row; returns notes.

    Raises:
        UserError: the family cannot start from a picture, or an option makes no sense.
        RunError: they cannot be written.
    """
    require(family, "denoise", run=typed["run"], wanted="video=")
    fps = typed["animation"]["fps"]
    if not fps > 0:
        raise UserError(f"animation.fps={fps} must be above 0")
    ending, encode, notes = encoder_of(typed["video"])
    made = videos(family, motion, n, seed=typed["seed"], fps=fps, condition=asked.condition, guidance=asked.guidance,
                  options=asked.options, batch_size=typed["batch_size"], encode=encode, progress=progress)
    rows, words = [], []
    for k, (content, frames) in enumerate(made):
        said = asked.words[k] if asked.words else {}
        out.write(f"{k:0{max(5, len(str(n - 1)))}}.{ending}", content, kind="video", number=k, **said)
        if k < ROWS:
            rows.append(frames[torch.linspace(0, len(frames) - 1, SHOWN).round().long()])
            words.append(next(iter(said.values()), ""))
    captions = {"captions": words} if any(words) else {}
    out.write("grid.png", grid_png(torch.cat(rows), columns=SHOWN, **captions), kind="grid")
    return notes


def videos(
    family: Family, motion: Motion, n: int, *, seed: int, fps: float, condition: Any, guidance: Guidance,
    options: Mapping[str, Any], batch_size: int, encode: Callable[[Tensor, float], bytes], progress: Report = silent,
) -> Iterator[tuple[bytes, Tensor]]:
    """Videos 0 to n-1: the content of each file, and its frames `(f, c, h, w)` uint8."""
    total = n * motion.frames
    progress(0, total, "")
    for start in range(0, n, batch_size):
        numbers = range(start, min(n, start + batch_size))
        given = None if condition is None else condition[numbers.start : numbers.stop]
        made = [to_uint8(frame).cpu() for frame in frames_of(
            family, motion, numbers, seed=seed, condition=given, guidance=guidance, options=options,
            progress=progress, done=start * motion.frames, total=total)]
        for frames in torch.stack(made, dim=1):
            yield encode(frames, fps), frames
