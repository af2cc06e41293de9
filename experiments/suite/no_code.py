"""Settings are data: a composed config must not name code, and only Hydra's own plugins are made from one.

Hydra calls what a config names in ``_target_`` (launchers, sweepers, callbacks), ``logging`` calls what a
logging config names, a search path of the form ``pkg://x`` imports x, and ``env_set`` changes what later
programs load. A YAML file can bring any of them, by ``--config-dir`` or packaged ``_global_``. So the whole
config is checked after it was composed and before Hydra acts on it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.records.atomic import write_text
from experiments.records.errors import ConfigError
from experiments.suite.folders import SWEEP_MARKER, require_sweep_folder
from experiments.suite.launching import launched

_PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")
# dotted place -> what its _target_ must begin with
_TARGETS = {
    "hydra.launcher": _PLUGINS,
    "hydra.sweeper": _PLUGINS,
    "hydra.sweeper.sampler": ("optuna.samplers.",),
}
_HANDLERS = ("logging.StreamHandler", "logging.NullHandler", "logging.Formatter")
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# Commands and programs: only a person at the command line may name them, never a file.
_TYPED = (
    "hydra.launcher.setup",
    "hydra.launcher.python",
    "hydra.launcher.srun_args",
    "hydra.launcher.additional_parameters",
    "experiment.peers",
)
_HARMLESS = {"experiment.peers": (".peers", ".no-peers")}
_ON_COMMAND_LINE = (
    r"_target_|pkg://|^[+~]*hydra[./](callbacks|job_logging|hydra_logging|searchpath|output_subdir)|"
    r"^[+~]*hydra\.job\.env_(set|copy)"
)


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Exits with 2 for an override on the command line that names code."""
    for argument in arguments:
        if re.search(_ON_COMMAND_LINE, argument):
            print(f"error: {argument}: a setting must not name code to run; leave it out.", file=sys.stderr)
            raise SystemExit(2)


def install() -> None:
    """Makes Hydra check every config that it composes, and every job of a sweep before a launcher gets it."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.plugins import Plugins
    from hydra.types import RunMode

    if getattr(ConfigLoaderImpl.load_configuration, "guarded", False):
        return
    compose = ConfigLoaderImpl.load_configuration
    process = ConfigLoaderImpl._process_config_searchpath  # noqa: SLF001  Hydra has no public place for this
    make_launcher = Plugins.instantiate_launcher

    def load_configuration(self: Any, *arguments: Any, **named: Any) -> DictConfig:
        config = compose(self, *arguments, **named)
        check(config, sys.argv[1:])
        return config

    def process_searchpath(self: Any, config_name: Any, parsed_overrides: Any, repo: Any) -> None:
        loaded = repo.load_config(config_path=config_name) if config_name is not None else None
        primary = loaded.config if loaded is not None else None
        if isinstance(primary, DictConfig) and OmegaConf.select(primary, "hydra.searchpath"):
            raise ConfigError("hydra.searchpath must not stand in a config: use --config-dir=FOLDER.")
        process(self, config_name, parsed_overrides, repo)

    def instantiate_launcher(self: Any, **named: Any) -> Any:
        config = named["config"]
        if config.hydra.mode == RunMode.MULTIRUN:  # before Hydra writes its multirun.yaml there
            require_sweep_folder(Path(config.hydra.sweep.dir), list(config.hydra.overrides.task))
            require_a_metric(config)
        launcher = make_launcher(self, **named)
        context, launch = named["hydra_context"], launcher.launch
        foreign = not type(launcher).__module__.startswith("hydra._internal")

        def checked(job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
            mark(config)
            for overrides in job_overrides:  # a launcher's own processes compose without this guard
                if foreign:
                    context.config_loader.load_sweep_config(config, list(overrides))
            return launched(launch, job_overrides, initial_job_idx, Path(config.hydra.sweep.dir))

        launcher.launch = checked  # type: ignore[method-assign]  # this one launcher, checked before it starts
        return launcher

    load_configuration.guarded = True  # type: ignore[attr-defined]
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    ConfigLoaderImpl._process_config_searchpath = process_searchpath  # type: ignore[method-assign]  # noqa: SLF001
    Plugins.instantiate_launcher = instantiate_launcher  # type: ignore[method-assign, assignment]


def searches(config: DictConfig) -> bool:
    """Whether the sweeper draws its jobs as it goes; Hydra's own lists them."""
    return "BasicSweeper" not in str(config.hydra.sweeper.get("_target_"))


def mark(config: DictConfig) -> None:
    """Writes the sweep's marker, as Hydra's own sweeper does; a search has none otherwise."""
    path = Path(config.hydra.sweep.dir) / SWEEP_MARKER
    if searches(config) and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, OmegaConf.to_yaml(config))


def require_a_metric(config: DictConfig) -> None:
    """Raises ConfigError if a search is not told what to optimise."""
    if searches(config) and config.get("optimise") is None:
        raise ConfigError("this sweeper searches: name the metric with optimise=METRIC, such as pearson.")


def check(config: DictConfig, arguments: Sequence[str] = ()) -> None:
    """Raises ConfigError for the first thing in a composed ``config`` that would run code.

    arguments: the command line, whose reader may name a launcher's commands.

    Raises:
        ConfigError: something in the config would run code.
    """
    content: Any = OmegaConf.to_container(config, resolve=False)
    for place, target in targets(content):
        if not str(target).startswith(_TARGETS.get(place, ("\0",))):
            refuse(f"{place}._target_".lstrip("."), target)
    if found := OmegaConf.select(config, "hydra.callbacks"):
        refuse("hydra.callbacks", ", ".join(map(str, found)))
    if OmegaConf.select(config, "hydra.output_subdir"):
        raise ConfigError("hydra.output_subdir must stay null: a run writes its own folder; remove it.")
    for key, value in (OmegaConf.select(config, "hydra.job.env_set") or {}).items():
        if os.environ.get(key) != value:  # env_copy stands there too, and changes nothing
            refuse(f"hydra.job.env_set.{key}", value)
    if space := OmegaConf.select(config, "hydra.sweeper.custom_search_space"):
        refuse("hydra.sweeper.custom_search_space", space)
    check_loggers(config)
    for path in _TYPED:
        value = OmegaConf.select(config, path)
        typed = any(argument.lstrip("+").startswith((f"{path}=", f"{path}.")) for argument in arguments)
        if value and not typed and value not in _HARMLESS.get(path, ()):
            raise ConfigError(
                f"{path} names a program or its arguments: it may stand on the command line, not in a config."
            )


def check_loggers(config: DictConfig) -> None:
    """Raises ConfigError if what Hydra hands to ``logging.config`` would call or import something."""
    for name in ("hydra.job_logging", "hydra.hydra_logging"):
        node = OmegaConf.select(config, name)
        try:
            check_logging(name, OmegaConf.to_container(node, resolve=True) if node is not None else None)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{name} cannot be resolved: leave it at none.") from error


def refuse(place: str, value: Any) -> None:
    """Raises the one sentence."""
    raise ConfigError(f"a config must not name code to run: remove {place} ({value}).")


def targets(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``_target_`` below ``node`` with the dotted place of the mapping that holds it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield place, node["_target_"]
        for key, value in node.items():
            yield from targets(value, f"{place}.{key}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            yield from targets(value, f"{place}.{position}".lstrip("."))


def check_logging(place: str, node: Any) -> None:
    """Refuses what ``logging.config.dictConfig`` would call or import: factories, classes, ``ext://``."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            inside = f"{place}.{key}"
            if str(key) in ("()", ".") or (str(key) == "class" and value not in _HANDLERS):
                refuse(inside, value)
            check_logging(inside, value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            check_logging(place, value)
    elif isinstance(node, str) and "://" in node and node not in _STREAMS:
        refuse(place, node)
