"""Scenes of one or two outlined objects on a plain background, with known attributes and a caption, to be rendered.

- Image i of a split is a function of (seed, split, i) and the size alone: nothing is stored or downloaded.
- Two sizes x seven colours x five shapes = 70 combinations, 10 of them held out of training: one colour for each size
  and shape. Train, validation and test contain none of them; in `heldout` every image has one. Training still shows
  every colour, shape and size, and every pair of two of these, so `heldout` measures composition.
- The class label is colour x shape of the first object (35 classes, "red circle").
- Edges are antialiased through signed distances (Quilez, "2D distance functions"), so any size looks right.
"""

import numpy as np
import torch
from torch import Tensor

from aigc.noise import mix

SIZES = {"small": (0.13, 0.145), "large": (0.2, 0.22)}  # range of radii, as a share of the image's shorter side
COLOURS = {
    "red": (222, 44, 44), "orange": (245, 134, 22), "yellow": (250, 208, 28), "green": (46, 158, 66),
    "cyan": (34, 186, 206), "blue": (42, 82, 214), "purple": (146, 58, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
RELATIONS = ("left of", "above")
BACKGROUNDS = ("plain", "stripes", "dots", "gradient")
TINTS = (  # pairs of pale colours: ground, pattern
    ((242, 236, 222), (222, 210, 184)), ((228, 235, 242), (198, 211, 224)),
    ((230, 240, 228), (202, 219, 199)), ((240, 230, 238), (220, 203, 217)),
)
NIGHT = (  # the same grounds in the style neon
    ((40, 31, 24), (62, 48, 36)), ((18, 27, 40), (31, 45, 65)),
    ((17, 34, 26), (28, 55, 42)), ((38, 20, 38), (60, 33, 58)),
)
STYLES = ("flat", "neon", "outline")  # painted; glowing tubes at night; lines in coloured pencil
COLUMNS = ("count", "relation", "size", "colour", "shape", "size2", "colour2", "shape2", "background")
# other: like train, different images; templates: of sentences that training never uses (shape_language.py)
STREAMS = {"train": 0, "validation": 1, "test": 2, "heldout": 3, "other": 4, "templates": 5}
OBJECTS = ("1", "2", "mixed")
VERSION = 2       # of the pixels; part of the fingerprint, raised when the drawing changes
MARGIN = 0.02     # between objects and border, as a share of the shorter side
GAP = 0.03        # between two objects, likewise
SLOTS = 32        # random numbers per image
RADII = (10, 11, 30)  # slots of the objects' radii


def held_out(size: int, colour: int, shape: int) -> bool:
    """Whether this combination (indices into SIZES, COLOURS, SHAPES) never occurs in training images."""
    return (colour + 2 * shape + 3 * size) % len(COLOURS) == 0


def combinations(held: bool) -> np.ndarray:
    """All (size, colour, shape) that are held out, or all others: `(n, 3)` indices."""
    return np.array([(z, c, s) for z in range(len(SIZES)) for c in range(len(COLOURS)) for s in range(len(SHAPES))
                     if held_out(z, c, s) == held])


def uniform(key: int, index: np.ndarray, slot: int) -> np.ndarray:
    """Numbers in [0, 1), one per image: splitmix64 of (key, index, slot), independent of order and batch."""
    with np.errstate(over="ignore"):
        z = np.uint64(key) + (index.astype(np.uint64) * np.uint64(SLOTS) + np.uint64(slot + 1)) * np.uint64(
            0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2**53


class Scenes:
    """Attributes, captions and pixels of an endless sequence of images."""

    columns: tuple[str, ...] = COLUMNS                     # of attributes
    suffixes: tuple[str, ...] = ("", "2")                  # of the columns of each object

    def __init__(
        self, seed: int, split: str, *, objects: str = "1", size: tuple[int, int] = (32, 32), style: str = "flat"
    ):
        self.key = mix(seed, STREAMS[split])
        self.held = split == "heldout"
        self.objects = objects                     # "1", "2" or "mixed" (half and half)
        self.size = size                           # (h, w) in pixels
        self.style = style                         # of STYLES; the scene is the same in all

    def attributes(self, index: Tensor) -> Tensor:
        """Attributes of images `index` `(k,)` as int64 `(k, 9)`, columns as in COLUMNS.

        `count` is 1 or 2; the others are indices into RELATIONS, SIZES, COLOURS, SHAPES and BACKGROUNDS. Relation and
        second object are -1 for a single object. The first object is the left or the upper one.
        """
        i = index.numpy()
        seen, unseen = combinations(False), combinations(True)
        count = {"1": np.ones(len(i), int), "2": np.full(len(i), 2)}.get(
            self.objects, 1 + (uniform(self.key, i, 0) < 0.5))
        first = (uniform(self.key, i, 1) * len(seen)).astype(int)
        second = (first + 1 + (uniform(self.key, i, 2) * (len(seen) - 1)).astype(int)) % len(seen)  # a different one
        one, two = seen[first], seen[second]
        if self.held:
            rare = unseen[(uniform(self.key, i, 3) * len(unseen)).astype(int)]
            takes_first = ((count == 1) | (uniform(self.key, i, 4) < 0.5))[:, None]
            one, two = np.where(takes_first, rare, one), np.where(takes_first, two, rare)
        relation = (uniform(self.key, i, 5) * len(RELATIONS)).astype(int)
        background = (uniform(self.key, i, 6) * len(BACKGROUNDS)).astype(int)
        single = count == 1
        table = np.column_stack([count, np.where(single, -1, relation), one, np.where(single[:, None], -1, two),
                                 background])
        return torch.from_numpy(table.astype(np.int64))

    def images(self, index: Tensor) -> Tensor:
        """Images `index` `(k,)` as uint8 `(k, 3, h, w)`."""
        attributes = self.attributes(index)
        parts = [self._draw(i, a) for i, a in zip(index.split(256), attributes.split(256), strict=True)]
        return torch.cat(parts) if parts else torch.empty(0, 3, *self.size, dtype=torch.uint8)

    def centres(self, index: Tensor) -> Tensor:
        """Centres of the objects, `(k, 2, 2)`: (x, y) as shares of width and height; NaN for one that is not there."""
        a = dict(zip(self.columns, self.attributes(index).unbind(1), strict=True))
        places = self._places(index, a, self._radii(index, a))
        found = torch.stack([torch.stack(place, dim=1) for place in places], dim=1)
        found[torch.arange(found.shape[1]) >= a["count"][:, None]] = torch.nan
        return found * min(self.size) / torch.tensor([self.size[1], self.size[0]])

    # ---- drawing ----

    def _random(self, index: Tensor, slot: int) -> Tensor:
        return torch.from_numpy(uniform(self.key, index.numpy(), slot).astype(np.float32))

    def _draw(self, index: Tensor, attributes: Tensor) -> Tensor:
        a = dict(zip(self.columns, attributes.unbind(1), strict=True))
        unit = min(self.size)                                            # shorter side in pixels
        x = (torch.arange(self.size[1]) + 0.5) / unit
        y = (torch.arange(self.size[0]) + 0.5) / unit
        canvas = self._background(index, a["background"], x[None, None, :], y[None, :, None], unit)
        radii = self._radii(index, a)
        for k, (suffix, (cx, cy)) in enumerate(zip(self.suffixes, self._places(index, a, radii), strict=True)):
            rows = (a["count"] > k).nonzero()[:, 0]
            self._object(canvas, rows, a[f"shape{suffix}"], a[f"colour{suffix}"], cx, cy, radii[k], x, y, unit)
        return canvas.round_().clamp_(0, 255).to(torch.uint8)

    def _radii(self, index: Tensor, a: dict[str, Tensor]) -> list[Tensor]:
        """Radii of the objects, as a share of the shorter side."""
        low, high = torch.tensor(list(SIZES.values())).unbind(1)
        sizes = [a[f"size{suffix}"].clamp(min=0) for suffix in self.suffixes]
        return [low[z] + (high - low)[z] * self._random(index, RADII[k]) for k, z in enumerate(sizes)]

    def _places(self, index: Tensor, a: dict[str, Tensor], radii: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Centres (x, y) of both objects: a single one anywhere, two side by side or stacked in the central square."""
        pair, relation = a["count"] == 2, a["relation"]
        u = [self._random(index, slot) for slot in range(12, 18)]
        width, height = self.size[1] / min(self.size), self.size[0] / min(self.size)
        edge = radii[0] * 1.05 + MARGIN
        alone_x, alone_y = edge + u[0] * (width - 2 * edge), edge + u[1] * (height - 2 * edge)
        outer = [radius * 1.05 for radius in radii]
        slack = 1 - 2 * MARGIN - GAP - 2 * outer[0] - 2 * outer[1]
        along1 = MARGIN + outer[0] + u[0] * slack / 2
        along2 = along1 + outer[0] + GAP + outer[1] + u[1] * slack / 2
        shift = 0.5 + 0.24 * (u[2] - 0.5)
        across1, across2 = shift + 0.14 * (u[3] - 0.5), shift + 0.14 * (u[4] - 0.5)
        left = relation == 0
        at_x, at_y = (width - 1) / 2, (height - 1) / 2
        x1 = torch.where(pair, torch.where(left, along1, across1) + at_x, alone_x)
        y1 = torch.where(pair, torch.where(left, across1, along1) + at_y, alone_y)
        x2 = torch.where(left, along2, across2) + at_x
        y2 = torch.where(left, across2, along2) + at_y
        return [(x1, y1), (x2, y2)]

    def _background(self, index: Tensor, kind: Tensor, x: Tensor, y: Tensor, unit: int) -> Tensor:
        pairs = torch.tensor(NIGHT if self.style == "neon" else TINTS, dtype=torch.float32)
        tints = pairs[(self._random(index, 20) * len(TINTS)).long()]
        u, v = self._random(index, 21)[:, None, None], self._random(index, 22)[:, None, None]
        pattern = torch.zeros(len(index), *self.size)
        period = 0.2                                                     # of stripes and dots, in shorter sides
        for name in ("stripes", "dots", "gradient"):
            rows = (kind == BACKGROUNDS.index(name)).nonzero()[:, 0]
            if name == "stripes":
                angle = (self._random(index, 23)[rows] * 4).floor()[:, None, None] * (np.pi / 4)
                phase = (x * angle.cos() + y * angle.sin()) / period + u[rows]
                distance = ((phase % 1 - 0.5).abs() - 0.25) * (period * unit)
            elif name == "dots":
                dx, dy = (x / period + u[rows]) % 1 - 0.5, (y / period + v[rows]) % 1 - 0.5
                distance = ((dx.square() + dy.square()).sqrt() - 0.28) * (period * unit)
            else:
                up = (u[rows] < 0.5).float()
                pattern[rows] = (up + (1 - 2 * up) * y / (self.size[0] / unit)).expand(-1, *self.size) * 1.5 - 0.25
                continue
            filled = (0.5 - distance).clamp(0, 1)
            if self.style == "outline":                                  # a faint shade marks the inside
                filled = torch.maximum(0.3 * filled, (0.85 - distance.abs()).clamp(0, 1))
            pattern[rows] = filled
        ground, ink = tints[:, 0, :, None, None], tints[:, 1, :, None, None]
        return ground + (ink - ground) * pattern[:, None]

    def _object(
        self, canvas: Tensor, rows: Tensor, shape: Tensor, colour: Tensor, cx: Tensor, cy: Tensor, radius: Tensor,
        x: Tensor, y: Tensor, unit: int,
    ) -> None:
        """Paints one object on `rows` of the canvas."""
        paint = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
        line = max(0.8, (0.045 if self.style == "neon" else 0.028) * unit)   # width of the outline in pixels
        for kind, name in enumerate(SHAPES):
            mine = rows[shape[rows] == kind]
            if not len(mine):
                continue
            r = radius[mine, None, None]
            px = (x[None, None, :] - cx[mine, None, None]) / r
            py = (y[None, :, None] - cy[mine, None, None]) / r
            distance = DISTANCES[name](px, py) * (r * unit)              # pixels, negative inside
            cover = (0.5 - distance).clamp_(0, 1)[:, None]
            inside = (0.5 - distance - line).clamp_(0, 1)[:, None]
            ink = paint[colour[mine], :, None, None]
            if self.style == "outline":
                fill, cover = ink * 0.8, cover - inside
            elif self.style == "neon":
                glow = 0.55 * (-((distance + line / 2).abs() - line / 2).clamp(min=0) / (0.05 * unit)).exp()[:, None]
                tube = cover - inside
                fill, cover = ink + (255 - ink) * 0.45 * tube, torch.maximum(tube, glow)
            else:
                fill = ink * (0.62 + 0.38 * inside)
            canvas[mine] = canvas[mine] * (1 - cover) + fill * cover


# ---- signed distances to shapes of radius about 1 around the origin, y down ----


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - 0.98


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.86


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    """Apex up at y = -1, base at y = 0.8, sides of slope 1.8."""
    return torch.maximum((x.abs() * 1.8 - y - 1) * 0.4856, y - 0.8)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points, one up; folded twice on its mirror axes, then the distance to one edge."""
    outer, inner = 1.08, 0.46
    x, y = x.abs(), -y
    for nx, ny in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        dot = 2 * (nx * x + ny * y).clamp(min=0)
        x, y = x - dot * nx, y - dot * ny
    x, y = x.abs(), y - outer
    bx, by = inner * 0.587785, inner * 0.809017 - outer
    along = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0, 1)
    away = ((x - bx * along) ** 2 + (y - by * along) ** 2).sqrt()
    return away * torch.sign(y * bx - x * by)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.98, y - 0.36), torch.maximum(x - 0.36, y - 0.98))


DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross}


# ---- words ----


def caption(attributes: Tensor, *, background: bool = False) -> str:
    """The caption of one row of attributes `(9,)`: "a small red circle above a large blue square"."""
    a = dict(zip(COLUMNS, attributes.tolist(), strict=True))
    words = _noun(a["size"], a["colour"], a["shape"])
    if a["count"] == 2:
        words += f" {RELATIONS[a['relation']]} {_noun(a['size2'], a['colour2'], a['shape2'])}"
    return words + f" on {BACKGROUND_WORDS[BACKGROUNDS[a['background']]]}" * background


def named(attributes: Tensor, *, background: bool = False) -> Tensor:
    """Attributes `(n, 9)` as int64, -1 where `caption` does not mention them."""
    attributes = attributes.clone()
    if not background:
        attributes[:, COLUMNS.index("background")] = -1
    return attributes


BACKGROUND_WORDS = {"plain": "a plain ground", "stripes": "stripes", "dots": "dots", "gradient": "a gradient"}


def _noun(size: int, colour: int, shape: int) -> str:
    return f"a {list(SIZES)[size]} {list(COLOURS)[colour]} {SHAPES[shape]}"


def label(attributes: Tensor) -> Tensor:
    """Class labels `(k,)` of attributes `(k, 9)`: colour x shape of the first object."""
    return attributes[:, COLUMNS.index("colour")] * len(SHAPES) + attributes[:, COLUMNS.index("shape")]
