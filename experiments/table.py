"""``python -m experiments.table [RESULTS]``: the paper's values beside ours, from the records alone."""

from __future__ import annotations

from pathlib import Path

from experiments.suite.commands import Command, Given, Words

COMMAND = Command(
    "table",
    "Prints a Markdown table of the paper's values beside ours. It reads committed records and "
    "computes nothing.",
    words=Words("RESULTS", least=0, help="folder that holds one folder per record; default results"),
    examples=(("", "the committed records"), ("outputs/verify/NOW/runs", "the runs of a verification")),
)


def main(given: Given) -> None:
    """Prints the table of the folder given, or of ``results``."""
    from experiments.records.table import markdown, records_in

    folder = Path(given.words[0] if given.words else "results")
    print(markdown(records_in(folder)))


if __name__ == "__main__":
    COMMAND.run(main)
