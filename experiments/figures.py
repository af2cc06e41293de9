"""``python -m experiments.figures FOLDER ...``: draws the figures of records again."""

from __future__ import annotations

from pathlib import Path

from experiments.suite.commands import Command, Given, Words

COMMAND = Command(
    "figures",
    "Draws the figures of finished runs again. It reads each record.json and computes nothing.",
    words=Words("FOLDER", most=None, help="folders that hold a record.json"),
    examples=(("results/loo_linear", "Fig. 2, as results/loo_linear/loo_linear.svg and .png"),),
)


def main(given: Given) -> None:
    """Draws the figures of every folder named; prints the files."""
    from experiments.suite.figures import redraw

    for folder in map(Path, given.words):
        for path in redraw(folder):
            print(path)


if __name__ == "__main__":
    COMMAND.run(main)
