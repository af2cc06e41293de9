"""The console script ``influence-experiments``, which is also ``python -m experiments``.

``influence-experiments experiment=NAME ...`` runs an experiment, ``influence-experiments verify ...`` a
command.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from experiments.suite.commands import Command

COMMANDS = {
    "verify": "experiments.verify",
    "sweep": "experiments.sweep",
    "figures": "experiments.figures",
    "table": "experiments.table",
    "export": "experiments.export",
    "publish": "experiments.publish",
    "across_ranks": "experiments.across_ranks",
    "scaling": "experiments.scaling",
    "benchmark.profile": "experiments.benchmark.profile",
}


def command(name: str) -> Command:
    """The description of a command."""
    found: Command = importlib.import_module(COMMANDS[name]).COMMAND
    return found


def main(arguments: Sequence[str] | None = None, run: Callable[[], object] | None = None) -> None:
    """Starts the command that is named first, or else the experiment.

    ``run``: starts an experiment; ``python -m experiments`` hands over its own, as a launcher pickles it by
    its module.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[arguments[0]])
        sys.argv[1:] = arguments[1:]  # records name the command that made them
        module.COMMAND.run(module.main, arguments[1:])
        return
    if arguments and arguments[0] in ("completion", "--complete"):
        from experiments.suite import completion

        completion.main(arguments)
        return
    from experiments.suite import teaching

    if {"--help", "-h"} & set(arguments):
        print(teaching.help_for(arguments))
        return
    if run is None:
        from experiments.__main__ import run
    run()
