"""``python -m experiments experiment=NAME``: composes the config, runs the experiment, writes its record.

``python -m experiments verify ...`` starts the command ``experiments.verify``; ``--help`` names them all.
"""

from experiments.suite.console import main

if __name__ == "__main__":
    main()
