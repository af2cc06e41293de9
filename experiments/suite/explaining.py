"""Errors of Hydra and OmegaConf in one sentence, with the alternatives."""

from __future__ import annotations

import re
from difflib import get_close_matches

from experiments import schema
from experiments.records.places import CONF


def flatten(message: str) -> str:
    """Hydra's message of several lines as one sentence."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [
        line
        for line in lines
        if not re.match(r"(full_key|object_type|reference_type|Config search path|provider=)", line)
    ]
    text = lines[0] if lines else message
    start = next((i for i, line in enumerate(lines) if line.startswith("Available options")), None)
    if start is not None:
        head = lines[start].rstrip(":")
        text = f"{' '.join(lines[:start]).rstrip('.')}. {head}: {', '.join(lines[start + 1 :])}."
    return text


def explain(error: BaseException) -> str:
    """One sentence for a config that does not compose, naming the alternatives."""
    key, sign, value = str(getattr(error, "override", None) or "").partition("=")
    if sign:  # what Hydra's grammar cannot read: it names a token, which says nothing to a user
        quoted = value.replace("'", "\\'")
        return (
            f"{key}={value} cannot be read: a value with brackets, quotes or other signs needs quotes of its "
            f"own inside those of the shell, \"{key}='{quoted}'\"."
        )
    parts = [str(error)]
    if error.__cause__ is not None:
        parts.append(str(error.__cause__))
    text = flatten(parts[0])
    missing = re.search(r"Key '([^']+)' not in '([^']+)'", " ".join(parts))
    if missing:
        key, owner = missing.groups()
        fields = known_keys(owner)
        close = get_close_matches(key, fields, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        text = f"there is no setting {key!r} in {owner}: {hint}it has {', '.join(fields)}."
    elif variant := re.search(r"Could not find 'variant/(\w+)/(\w+)'", text):
        tier, name = variant.groups()
        has = sorted(path.parent.name for path in CONF.glob(f"variant/*/{name}.yaml"))
        text = f"the experiment {name!r} has no tier {tier!r}: it has {', '.join(has)}."
    elif len(parts) > 1 and flatten(parts[1]) not in text:
        text = f"{text.rstrip('.')}: {flatten(parts[1])}"
    return text


def known_keys(owner: str) -> list[str]:
    """The fields of the schema class called ``owner``."""
    classes = {cls.__name__: cls for group in schema.REGISTRY.values() for cls in group.values()}
    classes |= {cls.__name__: cls for cls in vars(schema).values() if isinstance(cls, type)}
    return sorted(getattr(classes.get(owner), "__dataclass_fields__", {}))
