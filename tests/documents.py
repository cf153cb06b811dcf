"""What the documentation says: its pages, their headings and links, the commands and code in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", *DOCS, *sorted((ROOT / "experiments").glob("*/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
VERBS = r"(?:python|torchrun.*?|srun.*?) -m aigc\.([\w.]+)"


def name(page: Path) -> str:
    """A page as tests call it."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead, those to other sites left out."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """What can stand behind # in a link to a page: its headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(verb, words) of every command that starts one of our programs, in blocks or between backticks.

    In what stands for something, `<a run folder>`, blanks become underscores.
    """
    text = page.read_text(encoding="utf-8")
    shown = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").split("\n")]
    shown += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    found = []
    for line in shown:
        if match := re.match(rf"\s*(?:[A-Z_]+=\S+ )*{VERBS}\b", line):
            line = re.sub(r"<[^>]*>", lambda words: words[0].replace(" ", "_"), line[match.end():])
            found.append((match[1], shlex.split(line, comments=True)))
    return found
