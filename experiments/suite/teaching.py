"""What ``--help`` says: of all experiments and commands, and of one experiment with its settings and costs.

Nothing is written twice. What an experiment shows is the docstring of its module, a setting's meaning the
comment beside its field, its value the composed config, and its cost the measured one beside the claims.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.records.places import CONF
from experiments.suite.commands import COMMANDS, WIDTH, columns, command, plain

FIRST = (
    ("experiment=loo_linear", "runs on embedded data, without a network"),
    ("experiment=loo_linear --help", "says what it shows, its settings and its cost"),
    ("experiment=loo_linear tier=paper data.mirror=FOLDER", "runs on the paper's data"),
    ("experiment=loo_linear output=FOLDER", "the same FOLDER again resumes"),
    ("experiment=loo_linear --cfg job", "prints all settings and runs nothing"),
    ("--multirun experiment=loo_linear seed=0,1,2", "runs a sweep"),
)
SETTINGS = """\
Settings are key=value, as --cfg job prints them. An unknown one is refused, and
the known ones are named.
Common ones: seed=0 threads=2 output=FOLDER tracking=none debug=true
  data.mirror=FOLDER (or the variable INFLUENCE_MIRROR): original files, so that
  nothing is fetched
Tab completion: eval "$(influence-experiments completion bash)"
Exit codes: 0 done, 1 the run failed, 2 a setting is wrong, 130 interrupted (the
same output= resumes)."""
GROUPS = ("data", "model", "solver", "backbone", "tier", "tracking", "sweep")


def help_for(arguments: Sequence[str]) -> str:
    """The help on the experiment that ``arguments`` name, or on everything.

    Raises:
        SystemExit: the settings do not compose (exit code 2, one sentence).
    """
    given = [argument for argument in arguments if not argument.startswith("-")]
    names = [argument.partition("=")[2] for argument in given if argument.startswith("experiment=")]
    return of_experiment(names[-1], given) if names else overview()


def first_comment(path: Path) -> str:
    """The first line of comment of a config file."""
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.removeprefix("#").strip()
    return ""


def options(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def tiers_of(experiment: str) -> list[str]:
    """The tiers at which an experiment has settings, the smallest first."""
    return [
        tier
        for tier in ("smoke", "paper", "gpu")
        if (CONF / "variant" / tier / f"{experiment}.yaml").is_file()
    ]


def overview() -> str:
    """What ``--help`` prints, made from conf/ and the commands, without composing anything."""
    experiments = [
        (name, f"{first_comment(CONF / 'experiment' / f'{name}.yaml')} [{', '.join(tiers_of(name))}]")
        for name in options("experiment")
    ]
    commands = [(name, re.split(r"(?<=[.?:]) ", command(name).summary)[0].rstrip(":")) for name in COMMANDS]
    choices = [(group, ", ".join(options(group))) for group in GROUPS]
    return "\n".join(
        [
            *textwrap.wrap(
                "Influence functions against the truth: the experiments of Koh & Liang (ICML 2017).", WIDTH
            ),
            "",
            *columns([(f"python -m experiments {left}", right) for left, right in FIRST]),
            "",
            "Experiments (experiment=NAME; tiers in brackets):",
            *columns(experiments),
            "",
            "Commands (python -m experiments.NAME or influence-experiments NAME; each",
            "answers --help):",
            *columns(commands),
            "",
            "Choices (group=option):",
            *columns(choices),
            "",
            SETTINGS,
        ]
    )


def of_experiment(name: str, given: Sequence[str]) -> str:
    """What the experiment shows, how it is started, what it costs, and its settings as ``given`` composes
    them.
    """
    path = CONF / "experiment" / f"{name}.yaml"
    settings = composed(given)
    lines = [*textwrap.wrap(first_comment(path), WIDTH), ""]
    for paragraph in shown_by(name).split("\n\n"):
        lines += [*textwrap.wrap(" ".join(plain(paragraph).split()), WIDTH), ""]
    header = re.match(r"(#.*\n)+", path.read_text())
    lines += narrow(
        [line.removeprefix("#")[1:] for line in header.group(0).splitlines()[1:]] if header else []
    )
    lines += [
        "",
        *textwrap.wrap(
            "What it costs (measured on two cores; gpu: on the device that its record names):", WIDTH
        ),
        *costs(name),
    ]
    tier = next((text.partition("=")[2] for text in given if text.startswith("tier=")), "smoke")
    lines += ["", f"Settings and their values at tier={tier} (name=value changes one):"]
    return "\n".join([*lines, *columns(setting_rows(settings)), "", SETTINGS])


def narrow(lines: Sequence[str]) -> list[str]:
    """The head of a config in the width of the help. Prose is wrapped. A command is never broken: its remark
    goes below it if both do not fit.
    """
    found: list[str] = []
    for indented, part in itertools.groupby(lines, lambda line: line.startswith("  ")):
        if not indented:
            found += textwrap.wrap(" ".join(part), WIDTH)
            continue
        for line in part:
            split = [line] if len(line) <= WIDTH else re.split(r"\s{2,}(?=\()", line)
            for piece in split:
                indent = "      " if piece.startswith(("(", "      ")) else "  "
                width = WIDTH + len(piece) if "python -m" in piece else WIDTH
                found += textwrap.wrap(piece.strip(), width, initial_indent=indent, subsequent_indent=indent)
    return found


def composed(given: Sequence[str]) -> Any:
    """The config of these overrides; values that the user must give stay ``???``."""
    from hydra import compose, initialize_config_dir

    from experiments.suite.cli import prepare
    from experiments.suite.ending import guarded

    found: list[Any] = []

    def build() -> None:
        prepare()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            found.append(compose("config", overrides=[text for text in given if "=" in text]))

    guarded(build)
    return found[0]


def shown_by(name: str) -> str:
    """The docstring of the experiment's module, read without importing it."""
    source = Path(__file__).resolve().parents[1] / name / "experiment.py"
    return (ast.get_docstring(ast.parse(source.read_text())) or "") if source.is_file() else ""


def costs(name: str) -> list[str]:
    """Minutes and memory of the runs of this experiment behind the claims."""
    from experiments.verification.claims import load

    runs = {claim.run.name: claim.run for claim in load() if claim.run.experiment == name}
    rows = [
        (
            run.cost or "not measured",
            f"python -m experiments {'--multirun ' * bool(run.sweep)}{run.overrides}",
        )
        for run in runs.values()
    ]
    return columns(rows or [("not measured", "")])


def setting_rows(cfg: Any) -> list[tuple[str, str]]:
    """Every setting of the experiment and of what it uses: ``name=value`` and what it means."""
    from omegaconf import OmegaConf

    rows: list[tuple[str, str]] = []
    plain_keys = [key for key in cfg if OmegaConf.is_missing(cfg, key) or not OmegaConf.is_config(cfg[key])]
    for key in ("experiment", "data", "model", "solver", "backbone"):
        if cfg.get(key) is not None:
            rows += section(cfg[key], key)
    plain_keys = [key for key in plain_keys if key not in GROUPS]
    meanings = comments(OmegaConf.get_type(cfg))
    rows += [(f"{key}={written(cfg, key)}", meanings.get(key, "")) for key in plain_keys if key in meanings]
    return rows


def section(cfg: Any, path: str) -> Iterator[tuple[str, str]]:
    """The settings of one group with their meanings."""
    from omegaconf import OmegaConf

    meanings = comments(OmegaConf.get_type(cfg)) | yaml_comments(path, str(cfg.get("name")))
    if path != "experiment":
        yield path, f"{cfg.get('name')}; one of {', '.join(options(path))}"
    for key in cfg:
        if key not in ("name", "paper"):
            yield f"{path}.{key}={written(cfg, key)}", meanings.get(key, "")


def written(cfg: Any, key: str) -> str:
    """A value as a user would write it; what is long is not shown."""
    from omegaconf import OmegaConf

    if OmegaConf.is_missing(cfg, key):
        return "???"
    value = cfg[key]
    if OmegaConf.is_dict(value):
        return "{" + ", ".join(map(str, value)) + "}"
    value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value).replace(" ", "")
    return text if len(text) <= 50 else f"{text[:46]}...{text[-1]}"


def comments(schema: Any) -> dict[str, str]:
    """The comment of each field of a dataclass and of its bases: on its own lines, or just above it."""
    found: dict[str, str] = {}
    for cls in reversed(inspect.getmro(schema)):
        if not cls.__module__.startswith("experiments."):
            continue
        lines = inspect.getsource(cls).splitlines()
        for field in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                first = field.lineno - 1
                while lines[first - 1].strip().startswith("#"):
                    first -= 1
                own = [line.partition("#")[2].strip() for line in lines[first : field.end_lineno]]
                found[field.target.id] = " ".join(filter(None, own)) or found.get(field.target.id, "")
    return found


def yaml_comments(group: str, option: str) -> dict[str, str]:
    """The comments beside the keys of ``conf/GROUP/OPTION.yaml``."""
    path = CONF / group / f"{option}.yaml"
    text = path.read_text() if path.is_file() else ""
    return dict(re.findall(r"(?m)^(\w+):[^\n#]*#\s*(.*)$", text))


def setting_names(cfg: Any) -> list[str]:
    """The dotted names of the settings of the experiment and of what it uses."""
    groups = [
        key for key in ("experiment", "data", "model", "solver", "backbone") if cfg.get(key) is not None
    ]
    return [f"{group}.{key}" for group in groups for key in cfg[group] if key not in ("name", "paper")]
