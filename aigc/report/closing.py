"""What a run says when it ends: its scores in words, where its results are, and what to type next."""

import re
import shlex
from pathlib import Path
from typing import Any

from aigc.config.words import at_home
from aigc.runs.summary import capabilities_of
from aigc.wording import counted

MEANINGS = (  # a score: what it says, for who sees it for the first time
    (r"val/loss", "the loss on held-out images"),
    (r"reconstruction/fd_\w+_over_floor", "times as far from the training images as real test images are"),
    (r"reconstruction/fd_\w+", "distance between reconstructions and training images; less is better"),
    (r"reconstruction/psnr", "likeness of reconstructions to their images in dB; more is better"),
    (r"reconstruction/ssim", "the same by structure, at most 1"),
    (r"reconstruction/label_accuracy", "share of reconstructions that still show their image's label"),
    (r"val/perplexity", "codes that would carry as much if all were used equally often"),
    (r"val/accuracy", "share of held-out images in noise, of all levels, whose class is told"),
    (r"val/accuracy_at_(.+)", "the same where there is {0} times as much noise as image"),
    (r"val/codes_used", "share of the codebook in use"),
    (r"val/bits_per_code", "what a held-out code costs; log2 of their number for who knows nothing"),
    (r"val/bits_per_word", "what a word of a held-out picture's caption costs for who sees the picture"),
    (r"fd_\w+_over_floor", "times as far from the training images as real test images are; 1 is as good as real"),
    (r"fd_\w+", "distance between samples and training images; less is better"),
    (r"kd_\w+", "the same by another measure, less dependent on the number of samples"),
    (r"is_\w+", "how recognizable and varied the samples are; more is better"),
    (r"label_accuracy", "share of samples that show the label asked for"),
    (r"attributes/seen/all", "share of samples that show all their caption asks for"),
    (r"attributes/heldout/all", "the same for combinations that training never showed"),
    (r"attributes/templates/all", "the same for sentences that training never used"),
    (r"attributes/\w+/(\w+)", "... of these, the {0} alone"),
    (r"retrieval/\w+/image_to_text_r(\d)", "share of images whose caption is among the first {0} found"),
    (r"retrieval/\w+/text_to_image_r(\d)", "share of captions whose image is among the first {0} found"),
    (r"zero_shot/\w+/accuracy", "share of images whose class's name fits best"),
    (r"clip_score", "how well samples fit their captions, of 100, as a CLIP sees it"),
    (r"attributes/clear", "share of samples that show one clear known shape"),
)


def closing(folder: Path, summary: dict[str, Any]) -> list[str]:
    """Lines for the terminal: how the run ended, its scores, its files, and commands that work as they stand."""
    shown = at_home(folder)
    seconds, images = summary.get("seconds") or 0.0, summary.get("images") or 0
    lines = ["", f"{summary['status']}: {counted(images, 'image')} in {seconds / 60:.1f} minutes of training"]
    scores = (summary.get("scores") or {}).get("last") or {}
    lines += [f"  {name:28} {value:<9.4g} {meaning(name)}".rstrip() for name, value in scores.items()]
    newest = [path for path in sorted((folder / "samples").glob("*.png")) if "_" not in path.stem]
    if newest:
        lines.append(f"samples   {shown / 'samples' / newest[-1].name}")
    if (folder / "README.md").is_file():
        lines.append(f"card      {shown / 'README.md'}")
    lines.append(f"scores    {shown / 'summary.json'} (curves: {shown / 'metrics.jsonl'})")
    run = shlex.quote(f"run={shown}")
    if summary["status"] != "finished":
        return [*lines, f"resume    python -m aigc.train {shlex.quote(f'resume={shown}')}"]
    able = capabilities_of(summary)
    if "translate" in able:
        return [*lines, f"next      python -m aigc.edit task=translate {run} images=<file, folder or glob>"]
    if "upscale" in able and "sample" not in able:
        return [*lines, f"next      python -m aigc.edit task=upscale {run} images=<file, folder or glob>",
                f"          python -m aigc.evaluate {run}"]
    if "sample" not in able:                               # no images: there is nothing to look at or to measure
        if "score_text" in able:
            prompt = shlex.quote(f"text={summary.get('prompt')}")
            return [*lines, f"next      python -m aigc.search {shlex.quote(f'clip={shown}')} images=<folder> {prompt}",
                    f"          python -m aigc.evaluate {run}"]
        if "classify" in able:
            guide = shlex.quote(f"classifier={shown}")
            return [*lines, f"next      python -m aigc.generate run=<diffusion run> {guide} label=0",
                    f"          python -m aigc.evaluate {run}"]
        return [*lines, f"next      python -m aigc.evaluate {run}"] if "decode" in able else lines
    prompt = shlex.quote(f"text={summary['prompt']}") + " " if summary.get("prompt") else ""
    lines.append(f"next      python -m aigc.generate {run} {prompt}n=8")
    return [*lines, f"          python -m aigc.evaluate {run}"]


def meaning(name: str) -> str:
    """What a score says, in words; empty for one that is not known here."""
    for pattern, words in MEANINGS:
        if found := re.fullmatch(pattern, name.removeprefix("final/")):
            return words.format(*found.groups())
    return ""
