"""What stands between the command line and a job: the schemas, the resolvers, and errors in one sentence."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments import schema
from experiments.errors import ConfigError, UserError
from experiments.suite import guard

CONF = Path(__file__).resolve().parents[2] / "conf"
_STAMP = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


HELP = """\
  python -m experiments experiment=loo_linear                                  on embedded data, no network
  python -m experiments experiment=loo_linear tier=paper data.mirror=FOLDER    on the real data
  python -m experiments experiment=loo_linear output=FOLDER                    again: resumes what is there
  python -m experiments experiment=loo_linear --cfg job                        shows all settings and ends
  python -m experiments --multirun experiment=loo_linear seed=0,1,2            a sweep
  python -m experiments experiment=spam data=csv data.path=FILE data.label=COLUMN   your own wrong labels
  python -m experiments.figures FOLDER      draws the figure again from the record
  python -m experiments.publish FOLDER      copies the small record into results/
  python -m experiments.table               prints paper | ours from results/"""
SETTINGS = """\
Settings are key=value, as --cfg job prints them; an unknown one is refused and the known ones are named.
Common ones: seed=0 threads=2 output=FOLDER tracking=none debug=true
             data.mirror=FOLDER (or the variable INFLUENCE_MIRROR): original files, so that nothing is fetched
Exit codes: 0 done, 1 the run failed, 2 the settings are wrong, 130 interrupted (same output= resumes)."""


class JobFailed(Exception):
    """A job that has already said what was wrong; ``code`` is the exit code it asks for."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def stamp() -> str:
    """The name of this process's output folders: UTC time to the second and four random letters."""
    return _STAMP


def prepare() -> None:
    """Registers schemas and resolvers; call once before Hydra composes."""
    if {"--help", "-h"} & set(sys.argv[1:]) and Path(sys.argv[0]).parent.name == "experiments":
        print(help_text())
        raise SystemExit(0)
    if not CONF.is_dir():
        raise SystemExit(
            f"error: the folder {CONF} with the configs is missing; install with `pip install -e .`."
        )
    guard.refuse_arguments(sys.argv[1:])
    guard.install()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on to guarded() instead of printing them itself
    schema.register_all()
    OmegaConf.register_new_resolver(
        "sweep_folder", lambda output, name: output or f"outputs/{name}/sweep-{stamp()}", replace=True
    )


def flatten(message: str) -> str:
    """Hydra's message of several lines as one sentence."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [
        line
        for line in lines
        if not re.match(r"(full_key|object_type|reference_type|Config search path|provider=)", line)
    ]
    text = lines[0] if lines else message
    listing = next((i for i, line in enumerate(lines) if line.startswith("Available options")), None)
    if listing is not None:
        head = lines[listing].rstrip(":")
        text = f"{' '.join(lines[:listing]).rstrip('.')}. {head}: {', '.join(lines[listing + 1 :])}."
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


def sentence(error: BaseException) -> tuple[str, int] | None:
    """The one sentence and the exit code of an error that a user can do something about; None for others."""
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return explain(error), 2
    if isinstance(error, ConfigError):
        return str(error), 2
    numerics = sys.modules.get("influence.errors")  # not imported: then it cannot have raised
    if isinstance(error, UserError) or (numerics and isinstance(error, numerics.InfluenceError)):
        return str(error), 1
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return (
            f"{error.strerror or error}{where}: nothing half-written was left; free space or choose output=.",
            1,
        )
    return None


def help_text() -> str:
    """What ``--help`` prints, made from conf/ itself and without composing anything."""

    def title(path: Path) -> str:
        first = path.read_text().split("\n", 1)[0]
        return first.removeprefix("#").strip() if first.startswith("#") else ""

    experiments = sorted((CONF / "experiment").glob("*.yaml"))
    width = max(len(path.stem) for path in experiments)
    lines = [
        "Influence functions against the truth: the experiments of Koh & Liang (ICML 2017).",
        "",
        HELP,
        "",
    ]
    lines += ["Experiments (experiment=NAME; tiers in brackets):"]
    for path in experiments:
        tiers = ", ".join(sorted(p.parent.name for p in CONF.glob(f"variant/*/{path.stem}.yaml")))
        lines.append(f"  {path.stem:<{width}}  {title(path)} [{tiers}]")
    lines += ["", "Choices (group=option):"]
    for group in ("data", "model", "solver", "backbone", "tier", "tracking", "sweep"):
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        if options:
            lines.append(f"  {group:<9} {', '.join(options)}")
    return "\n".join([*lines, "", SETTINGS])


class WithoutHydrasWord:
    """A stream that drops Hydra's announcement of a failed job, which has already said what was wrong."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes ``text`` unless it is that announcement."""
        return (
            len(text) if text.startswith("Error executing job with overrides") else self._stream.write(text)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guarded(main: Callable[[], Any], debug: bool | None = None) -> None:
    """Runs ``main`` and turns the errors a user can mend into one sentence and an exit code."""
    debug = debug if debug is not None else "debug=true" in sys.argv[1:]
    try:
        with contextlib.redirect_stderr(WithoutHydrasWord(sys.stderr)):
            main()
    except JobFailed as failed:
        raise SystemExit(failed.code) from None
    except KeyboardInterrupt:
        print(
            "interrupted: the same command with the same output= folder goes on from here.", file=sys.stderr
        )
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = sentence(error)
        if known is None:
            raise
        print(f"error: {known[0]}", file=sys.stderr)
        raise SystemExit(known[1]) from None
