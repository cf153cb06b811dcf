"""From prompts as users give them to one per image."""

from pathlib import Path
from typing import Any

from aigc.errors import UserError
from aigc.models.family import Family


def prompts_of(family: Family, wanted: Any, n: int) -> tuple[list[str] | None, list[str]]:
    """One prompt per image, cycling through `wanted`: a prompt, a list, or @<file> with one per line.

    Without a prompt, or with an empty one, images are unconditional; None if the family was not trained on texts. Also
    returns lines to print about truncated prompts and unknown words.

    Raises:
        UserError: the family was not trained on texts, or the file cannot be read or is empty.
    """
    if family.condition != "text":
        if wanted is not None:
            raise UserError(f"text='{wanted}', but this {type(family).__name__} was not trained with condition=text")
        return None, []
    prompts = [str(prompt) for prompt in wanted] if isinstance(wanted, list) else [str(wanted or "")]
    if isinstance(wanted, str) and wanted.startswith("@"):
        path = Path(wanted[1:]).expanduser()
        try:
            prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"text={wanted}: '{path}' cannot be read ({error}): give a text file") from error
    if not prompts:
        raise UserError(f"text={wanted} holds no prompts: give one a line")
    return [prompts[k % len(prompts)] for k in range(n)], text_encoder(family).warnings(prompts)


def text_encoder(family: Family) -> Any:
    """The text encoder of a family trained with condition=text."""
    from aigc.conditions import TextEncoder

    return next(module for module in family.modules() if isinstance(module, TextEncoder))
