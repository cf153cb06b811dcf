"""Finds pictures by what they show: `python -m aigc.search clip=<run> images=<folder> text="a red circle"`."""

import sys
from pathlib import Path
from typing import Any

from aigc import cli
from aigc.errors import UserError, check_least


def main() -> None:
    """The command line."""
    cli.run(search, "search")


def search(cfg: Any) -> None:
    """Ranks the pictures that `images` means by how well they fit a text or are like another; writes grid and CSV."""
    check_least(cfg, {"n": 1, "batch_size": 1})
    if (cfg.text is None) == (cfg.image is None):
        both = "text= and image= are two questions" if cfg.text is not None else "there is nothing to look for"
        raise UserError(f"{both}: give one of text=<what to look for> and image=<a picture>")
    from aigc.config.schema import to_plain
    from aigc.images.finding import as_csv, best_pictures, drawn
    from aigc.images.looking import Opened, check_readable, open_album
    from aigc.images.output import by_time, claim
    from aigc.models.capabilities import require
    from aigc.models.checkpoints import choose_device
    from aigc.models.requests import prompts_listed, text_encoder
    from aigc.wording import told

    scorer = Opened.of(cfg.clip, cfg.checkpoint, choose_device(cfg.device))
    require(scorer.family, "score_text", run=cfg.clip, wanted="search")
    out = Path(cfg.out).expanduser() if cfg.out else by_time(scorer.run / "searches")
    with claim(out, overwrite=cfg.overwrite, numbered=not cfg.out) as output, cli.bars(" pictures") as progress:
        album = open_album(scorer, cfg.images, out, cfg, progress=progress)
        if cfg.text is not None:
            queries = prompts_listed(to_plain(cfg)["text"])
            for note in text_encoder(scorer.family).warnings(queries):
                print(f"aigc: {note}", file=sys.stderr)
            asked = scorer.read(queries)
        else:
            shown = open_album(scorer, cfg.image, out, cfg, option="image")
            queries, asked = [f"like {picture.target}" for picture in shown.pictures], shown.vectors
        found = best_pictures(queries, asked, album.pictures, album.vectors, cfg.n)
        output.facts = {"verb": "search", **scorer.facts(), "options": to_plain(cfg)}
        rows = [(match.query, match.rank, f"{match.fit:.4f}", match.picture.source) for match in found]
        output.write("found.csv", as_csv(("query", "rank", "fit", "picture"), rows), kind="table")
        output.write("grid.png", drawn(found, album.ranges, columns=cfg.n), kind="grid")
    for match in found:
        if match.rank == 1:
            print(f"{match.fit:.3f}  {match.query}: {match.picture.source}")
    print("\n".join([f"found     {output.folder / 'found.csv'}", f"grid      {output.folder / 'grid.png'}",
                     *(f"left out  {line}" for line in told(album.left_out))]))
    check_readable(album.failures, "were searched")


if __name__ == "__main__":
    main()
