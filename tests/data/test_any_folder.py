"""Random folders, against a walk of the test's own: no picture twice, none in two splits, none from outside, every
count right; and where that cannot be, one sentence."""

import json
import os
import random
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from aigc.data.folder import ImageFolder
from aigc.errors import UserError

ENDINGS = (".png", ".bmp", ".gif", ".PNG", ".tif")
ODD = ["a b", "c'd", 'e"f', "g\nh", "é", "日本", "(1)", "#x", "-n", "=", "{y}", "%d", "~", "$HOME",
       os.fsdecode(b"\xff\xfe")]
HELD_OUT = {"val": "validation", "Test": "test", "valid": "validation", "test2017": "test", "testing_set": "test"}
TRAIN = ("train", "Training", "train2017")


@dataclass
class Plan:
    """A random folder, and what should come of it."""

    root: Path
    rng: random.Random
    number: int = 0
    role: dict[int, str] = field(default_factory=dict)      # by picture: a split, "any" (to be cut), stray, or no data
    group: dict[int, str | None] = field(default_factory=dict)   # its class folder
    paths: dict[int, Path] = field(default_factory=dict)
    twice: set[Path] = field(default_factory=set)           # pictures with another name elsewhere
    broken: set[str] = field(default_factory=set)
    unclear: bool = False                                   # whether a refusal is right

    def name(self) -> str:
        stem = self.rng.choice(ODD) if self.rng.random() < 0.15 else ""
        return f"{stem}{self.number}{self.rng.choice(ENDINGS)}"

    def picture(self, folder: Path, role: str, group: str | None = None, name: str | None = None) -> Path:
        """A picture whose colour is its number."""
        self.number += 1
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (name or self.name())
        Image.new("RGB", (5, 4), (self.number // 16 * 16, self.number % 16 * 16, 8)).save(path)
        self.role[self.number], self.group[self.number], self.paths[self.number] = role, group, path
        return path

    def some(self, folder: Path, role: str, group: str | None = None, least: int = 1) -> None:
        """A few pictures, some of them deeper."""
        for _ in range(self.rng.randint(least, least + 2)):
            deeper = self.rng.random() < 0.15
            self.picture(folder / f"deep{self.rng.randint(1, 2)}" if deeper and group else folder, role, group)


def splits(plan: Plan, top: Path, role: str = "", groups: list[str] | None = None) -> None:
    """Folders of splits, with classes in them or without."""
    held = dict([plan.rng.choice(list(HELD_OUT.items()))])
    for folder, split in {plan.rng.choice(TRAIN): "train", **held}.items():
        for group in groups or [None]:
            plan.some(top / folder / (group or ""), role or split, group, least=4 if split == "train" else 1)


def make(root: Path, seed: int) -> Plan:
    """The folder of a seed."""
    plan = Plan(root, random.Random(seed))
    rng, top = plan.rng, root
    for _ in range(rng.choice((0, 0, 1, 2))):
        top = top / rng.choice(("data", "my pets", "x.png"))
    groups = rng.sample(["cat2", "cat10", "Dog", "bird", "10", "9", "é", "g\nh", "test tube"], rng.randint(2, 4))
    kind = rng.choice(("flat", "classes", "splits", "split classes", "class splits", "train", "mixed"))
    if kind == "flat":
        plan.some(top, "any", least=6)
    elif kind in ("classes", "mixed"):
        for group in groups:
            plan.some(top / group, "any", group, least=3)
        if kind == "mixed":
            plan.picture(top, "any", None)
    elif kind == "splits":
        splits(plan, top)
    elif kind == "split classes":
        splits(plan, top, groups=groups)
    elif kind == "train":
        for group in groups:
            plan.some(top / "train" / group, "any", group, least=4)
    else:
        held = rng.choice(list(HELD_OUT))
        for group in groups:
            plan.some(top / group / "train", "train", group, least=4)
            plan.some(top / group / held, HELD_OUT[held], group)
    if "split" in kind or kind == "train":
        beside = top if kind != "class splits" else top / groups[0]
        for _ in range(rng.choice((0, 0, 1, 2))):
            plan.picture(beside, "stray")
        if rng.random() < 0.3:
            plan.some(beside / "preview", "stray")
        if "split" in kind and rng.random() < 0.1:
            plan.some(root / "elsewhere", "stray")
            plan.unclear = True
    extras(plan, top)
    return plan


def extras(plan: Plan, top: Path) -> None:
    """What lies about in folders."""
    rng, outside = plan.rng, plan.root.parent / f"{plan.root.name} outside"
    strays = {n for n, role in plan.role.items() if role == "stray"}
    files = sorted(path for number, path in plan.paths.items() if number not in strays)
    some = rng.choice(files).parent

    def hidden() -> None:
        plan.picture(some, "none", name=f"._{plan.number}.png")
        plan.picture(plan.root / ".cache", "none")
        plan.picture(top / "__MACOSX" / "deep", "none")

    def loops() -> None:
        os.symlink(rng.choice((".", "..", str(plan.root), str(top))), some / f"loop{rng.randint(0, 9)}")
        os.symlink("circle.png", some / "circle.png")
        plan.broken.add("circle.png")

    def leads_out() -> None:
        plan.picture(outside, "none")
        os.symlink(outside, some / "shared")
        os.symlink(next(outside.iterdir()), some / "shared.png")

    def again() -> None:
        one, other = rng.choice(files), rng.choice(files)
        os.symlink(one, some / "again.png")
        os.link(other, rng.choice(files).parent / "hard.png")
        plan.twice |= {one, other}
        os.symlink(rng.choice(files).parent, some / "folder again")

    def dangling() -> None:
        os.symlink("nowhere.png", some / "gone.png")
        plan.broken.add("gone.png")

    def pipe() -> None:
        os.mkfifo(some / "pipe.png")
        plan.broken.add("pipe.png")

    def torn() -> None:
        (some / "torn.png").write_bytes(rng.choice((b"", b"not an image")))
        plan.broken.add("torn.png")

    def ours() -> None:
        run = plan.root / "runs" / "x"
        (run / "checkpoints").mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps({"study": "s", "signature": "0"}))
        plan.picture(run / "samples", "none", name="000000064.png")

    def beside() -> None:
        (some / "notes.txt").write_text("no caption of anything")
        (some / "model.bin").write_bytes(b"\0")
        (some / "folder.png").mkdir()

    for extra in (hidden, loops, leads_out, again, dangling, pipe, torn, ours, beside):
        if rng.random() < 0.25:
            extra()


def walked(root: Path) -> set[tuple[int, int]]:
    """Every visible image file in a folder, by its number on the disk: no links, whatever it is called."""
    found = set()
    for folder, _, names in os.walk(root):
        inside = Path(folder).relative_to(root).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in inside):
            continue
        for name in names:
            path = Path(folder, name)
            facts = os.lstat(path)
            shown = path.suffix.lower() in (".png", ".bmp", ".gif", ".tif") and not name.startswith(".")
            if shown and stat.S_ISREG(facts.st_mode):
                found.add((facts.st_dev, facts.st_ino))
    return found


def numbers(data: ImageFolder, split: str) -> list[int]:
    red, green = data.images(split)[:, 0, 0, 0], data.images(split)[:, 1, 0, 0]
    return (red // 16 * 16 + green // 16).tolist()


def left_out(data: ImageFolder, but: str) -> int:
    """How many files were left out, but for those of some reasons."""
    counts = [re.match(r"(.*?): ([\d,]+) \(", line) for line in data.left_out]
    return sum(int(found[2].replace(",", "")) for found in counts if found and not re.search(but, found[1]))


def check(plan: Plan, skip: bool) -> bool:
    """Whether the folder is taken, rightly; fails where it is taken wrongly, or refused without need."""
    data = ImageFolder(path=str(plan.root), batch_size=4, skip_broken=skip)
    try:
        data.prepare_data()
    except UserError as error:
        assert "\n" not in str(error) and str(error).isprintable(), repr(str(error))
        assert plan.unclear or (plan.broken and not skip), str(error)
        if plan.broken and not plan.unclear:
            assert all(name in str(error) for name in plan.broken), str(error)
        return False
    assert skip or not plan.broken
    taken = {split: numbers(data, split) for split in data.splits}
    everything = [number for found in taken.values() for number in found]
    wanted = {number for number, role in plan.role.items() if role not in ("none", "stray")}
    assert sorted(everything) == sorted(wanted)                # each once, none in two splits, none from elsewhere
    for split, found in taken.items():
        assert {plan.role[number] for number in found} <= {split, "any", "train"}
        assert split == "train" or not any(plan.role[n] == split for n in taken["train"])
    lines = data.found()
    assert len(lines) == 1 + bool(data.left_out) and all(line.isprintable() for line in lines)
    assert lines[0].startswith(f"data      {len(everything):,} images")
    torn = 1 if "torn.png" in plan.broken else 0
    assert len(everything) + left_out(data, "hidden|links|duplicate|cannot be read") + torn == len(walked(plan.root))
    known = {plan.group[n] for n in everything}
    if None in known or len(known) < 2:
        assert data.classes is None
    else:
        assert data.class_names == sorted((shown(str(name)) for name in known), key=by_number)
        for split, found in taken.items():
            for number, label in zip(found, data.labels(split), strict=True):
                assert data.class_names[label] == shown(str(plan.group[number])) or plan.paths[number] in plan.twice
    return True


def shown(name: str) -> str:
    return name.replace("\n", "\\n")


def by_number(name: str) -> tuple:
    """Natural order, written another way."""
    return re.sub(r"[0-9]+", lambda digits: digits[0].rjust(9, "0"), name.casefold()), name


@pytest.mark.parametrize("part", range(4))
def test_random_folders_are_read_right_or_refused_in_a_sentence(tmp_path: Path, part: int) -> None:
    started = 0
    for seed in range(25 * part, 25 * part + 25):
        plan = make(tmp_path / str(seed), seed)
        try:
            started += check(plan, skip=seed % 2 == 0)
        except (AssertionError, Exception) as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert started >= 10
