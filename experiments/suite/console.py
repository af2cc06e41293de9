"""The console script ``influence-experiments``, which is also ``python -m experiments``.

``influence-experiments experiment=NAME ...`` runs an experiment, ``influence-experiments verify ...`` a
command.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from experiments.suite.commands import COMMANDS
from experiments.suite.ending import guarded


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts the command that is named first, or else the experiment."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[arguments[0]])
        sys.argv[1:] = arguments[1:]  # records name the command that made them
        module.COMMAND.run(module.main, arguments[1:])
    elif arguments and arguments[0] in ("completion", "--complete"):
        from experiments.suite import completion

        completion.main(arguments)
    elif {"--help", "-h"} & set(arguments):
        from experiments.suite import teaching

        guarded(lambda: print(teaching.help_for(arguments), flush=True))
    else:
        from experiments.suite import launch

        launch.run()
