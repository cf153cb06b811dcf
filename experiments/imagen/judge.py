"""What a cascade on shapes draws, read by the oracle: at several guidances and levels, and over one base by others.

    python experiments/imagen/judge.py run=<run> [n=300] [guidance=1,2,3] [levels=0,0.1,0.2,0.3] [pictures=<folder>]
    python experiments/imagen/judge.py run=<run> upscalers=<run>,<run> [n=300] [levels=0,0.1,0.3] [steps=<of the base>]

The first prints what is right at every guidance of the base and every level of the stages that enlarge, how much
better these are than the resize on held-out renders, and how near a result made small is to what it was made of; with
`pictures` it also writes prompts.png, stages.png and levels.png. The second has runs of model=imagen_sr, which know
pictures of the base's size, enlarge what the base draws, and true pictures as small.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from aigc.data.shapes import Scenes, caption, named
from aigc.images.grids import grid_png, to_uint8
from aigc.images.streams import seeds_of
from aigc.models.checkpoints import load_family
from aigc.networks.resample import resize
from aigc.runs.markdown import table
from aigc.scoring.networks.oracle import ShapesOracle, agreement, shapes_oracle
from aigc.scoring.scores.frechet import frechet_distance

SPLITS = {"test": "seen", "heldout": "held-out"}           # combinations that training showed, and never did
ATTRIBUTES = ("count", "size", "colour", "shape", "all")
PROMPTS = ("a small blue circle", "a large yellow star", "a large red triangle", "a small purple cross",
           "a large green cross", "a small orange star")
BATCH = 50


def scenes_of(size: tuple[int, int], split: str, n: int) -> tuple[Tensor, list[str], Tensor]:
    """The first n images of a split in [-1, 1], their captions, and what these ask for."""
    scenes, places = Scenes(0, split, size=size), torch.arange(n)
    asked = named(scenes.attributes(places))
    return scenes.images(places).float() / 127.5 - 1, [caption(row) for row in asked], asked


def drawn(family: Any, texts: list[str], seed: int = 0, **options: Any) -> list[Tensor]:
    """What each stage makes of the captions, from small to large."""
    parts = [family.pictures(len(rows), condition=[texts[k] for k in rows], seeds=seeds_of(rows.tolist(), seed),
                             **options) for rows in torch.arange(len(texts)).split(BATCH)]
    return [torch.cat(stage) for stage in zip(*parts, strict=True)]


def enlarged(stage: Any, small: Tensor, texts: list[str], level: float) -> Tensor:
    """What a model of super-resolution makes of small pictures of these captions."""
    return torch.cat([stage.upscale(small[k], condition=[texts[i] for i in k], seeds=k.tolist(), level=level)
                      for k in torch.arange(len(small)).split(BATCH)])


def psnr(made: Tensor, images: Tensor) -> float:
    """Mean peak signal-to-noise ratio of images in [-1, 1], in dB."""
    return float((10 * (4 / (made - images).square().mean((1, 2, 3)).clamp(min=1e-10)).log10()).mean())


def moments(oracle: ShapesOracle, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the oracle's features of images in [-1, 1], averaged over all places."""
    parts = [oracle.body(interpolate(to_uint8(part).float(), oracle.size, mode="bilinear", antialias=True) / 127.5 - 1)
             .mean((2, 3)) for part in images.split(500)]
    features = torch.cat(parts).double()
    return features.mean(0), torch.cov(features.T)


def read(made: Tensor, asked: Tensor) -> dict[str, float]:
    """The shares of images whose attributes are as asked for."""
    return agreement(shapes_oracle((made.shape[2], made.shape[3])).read(to_uint8(made)), asked)


def cascade(family: Any, n: int, guidance: list[float], levels: list[float]) -> None:
    """Prints the tables of a run of model=imagen."""
    rows, near, size = [], [], tuple(family.hparams.size)
    own = family.stages[1].hparams.level
    ways = [(w, own) for w in guidance] + [(None, level) for level in levels]
    for w, level in ways:
        for split, word in SPLITS.items():
            _, texts, asked = scenes_of(size, split, n)
            made = drawn(family, texts, level=level, **({} if w is None else {"guidance": w}))
            found = read(made[-1], asked)
            rows.append(["recipe" if w is None else f"{w:g}", f"{level:g}", word,
                         *(f"{found[name]:.3f}" for name in ATTRIBUTES)])
            print(rows[-1], flush=True)
            if w is None:
                pairs = zip(family.stages[1:], pairwise(made), strict=True)
                near.append([f"{level:g}", word, *(f"{psnr(stage.small(large), small):.1f}"
                                                   for stage, (small, large) in pairs)])
    print(table(["guidance", "level", "combinations", *ATTRIBUTES], rows))
    print("dB between what a stage was given and its result made as small:")
    print(table(["level", "combinations", *family.names[1:]], near))
    sharp = []
    for name, stage in zip(family.names[1:], family.stages[1:], strict=True):
        images, texts, _ = scenes_of(tuple(stage.hparams.size), "heldout", n)
        small = stage.small(images)
        scores = [psnr(enlarged(stage, small, texts, level), images) for level in levels]
        plain = psnr(resize(small, images.shape[2:]).clamp(-1, 1), images)
        sharp.append([name, f"{images.shape[3]} px", f"{plain:.1f}", *(f"{score:.1f}" for score in scores)])
    print("dB of renders of held-out combinations, made small and enlarged again:")
    print(table(["stage", "to", "resize", *(f"level {level:g}" for level in levels)], sharp))


def over_one_base(family: Any, runs: list[str], n: int, levels: list[float], **options: Any) -> None:
    """Prints how well runs of model=imagen_sr enlarge what the base draws with these options, and true pictures."""
    upscalers: dict[str, Any] = {Path(run).name: load_family(run) for run in runs}
    size = next(iter(upscalers.values())).hparams.size
    oracle = shapes_oracle(tuple(size))
    reals, texts, asked = scenes_of(tuple(size), "test", n)
    true = moments(oracle, scenes_of(tuple(size), "other", 5000)[0])
    drawn_by_base = torch.cat([family.stages[0].sample(len(k), condition=[texts[i] for i in k],
                                                       seeds=seeds_of(k.tolist(), 0), **options)
                               for k in torch.arange(n).split(BATCH)])
    smalls, rows = (drawn_by_base, resize(reals, drawn_by_base.shape[2:]).clamp(-1, 1)), []
    ways = [(name, level) for name, one in upscalers.items() for level in levels if level <= one.most]
    for name, level in [("the resize", 0.0), *ways]:
        made = [enlarged(upscalers[name], small, texts, level) if name in upscalers
                else resize(small, size).clamp(-1, 1) for small in smalls]
        shown = [[f"{read(one, asked)['all']:.3f}", f"{float(frechet_distance(*moments(oracle, one), *true)):.3f}"]
                 for one in made]
        rows.append([name, f"{level:g}", *shown[0], *shown[1], f"{psnr(made[1], reals):.1f}"])
        print(rows[-1], flush=True)
    floor = frechet_distance(*moments(oracle, reals), *true)
    print(f"{n} captions of test; distance of the true pictures themselves: {float(floor):.3f}")
    print(table(["enlarged by", "level", "all, of the base's", "distance", "of true ones", "distance", "dB"], rows))


def pictures(family: Any, folder: Path) -> None:
    """A row of samples for each prompt; what each stage makes of one sample each; the levels, beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [prompt for prompt in PROMPTS for _ in range(8)]
    made = drawn(family, texts, seed=1)
    (folder / "prompts.png").write_bytes(grid_png(to_uint8(made[-1]), columns=8, captions=list(PROMPTS)))
    rows = [interpolate(stage[::8], size=made[-1].shape[2:]) for stage in made]
    shown = torch.stack(rows, dim=1).flatten(0, 1)
    (folder / "stages.png").write_bytes(grid_png(to_uint8(shown), columns=len(made), captions=list(PROMPTS)))
    levels = [level for level in (0.0, 0.1, 0.2, 0.3, 0.5) if level <= family.stages[-1].most]
    columns = [drawn(family, list(PROMPTS), seed=2, level=level)[-1] for level in levels]
    shown = torch.stack(columns, dim=1).flatten(0, 1)
    (folder / "levels.png").write_bytes(grid_png(to_uint8(shown), columns=len(levels), captions=list(PROMPTS)))


@torch.no_grad()
def main() -> None:
    """Prints the tables that are asked for."""
    typed = dict(word.split("=", 1) for word in sys.argv[1:])
    family: Any = load_family(typed["run"])
    n = int(typed.get("n", 300))
    if "upscalers" in typed:
        levels = [float(level) for level in typed.get("levels", "0,0.1,0.3").split(",")]
        few = {"steps": int(typed["steps"])} if "steps" in typed else {}
        over_one_base(family, typed["upscalers"].split(","), n, levels, **few)
        return
    guidance, levels = ([float(value) for value in typed.get(name, default).split(",")]
                        for name, default in (("guidance", "1,2,3"), ("levels", "0,0.1,0.2,0.3")))
    cascade(family, n, guidance, levels)
    if "pictures" in typed:
        pictures(family, Path(typed["pictures"]))


if __name__ == "__main__":
    main()
