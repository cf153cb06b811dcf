"""What a family can do, asked by tools in place of its class."""

from aigc.config.schema import CONFIG_DIR, to_plain
from aigc.config.targets import locate
from aigc.errors import UserError
from aigc.models.family import CAPABILITIES, Family
from aigc.wording import a


def models_that_can(capability: str) -> list[str]:
    """The `model=` choices whose families have a capability, sorted."""
    assert capability in CAPABILITIES, capability
    names = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))
    families = {name: locate(_target(name), "model") for name in names}
    return [name for name, family in families.items() if issubclass(family, Family) and family.can(capability)]


def _target(name: str) -> str:
    """The `_target_` of a recipe, or of the one that it is based on."""
    from omegaconf import OmegaConf

    recipe = to_plain(OmegaConf.load(CONFIG_DIR / "model" / f"{name}.yaml"), resolve=False)
    based_on = next((base for base in recipe.get("defaults", []) if isinstance(base, str) and base != "_self_"), None)
    return recipe["model"]["_target_"] if "_target_" in recipe.get("model", {}) else _target(str(based_on))



def require(family: Family, *capabilities: str, run: object, wanted: str) -> None:
    """Refuses a family without any of these capabilities.

    Args:
        family: the trained family.
        *capabilities: of `CAPABILITIES`.
        run: where it came from, for the message.
        wanted: what needs the capability, for the message, e.g. `task=translate`.

    Raises:
        UserError: says what the family does instead, and which `model=` choices have the capability.
    """
    if any(family.can(capability) for capability in capabilities):
        return
    known = sorted({name for capability in capabilities for name in models_that_can(capability)})
    needed = f"run of {' or '.join(known)}" if known else f"family with {'() or '.join(capabilities)}()"
    raise UserError(f"'{run}' holds {a(type(family).__name__)}, which {family.does()}: {wanted} needs a {needed}")
