"""``python -m experiments.scaling [benchmark=FOLDER] [networks=FOLDER] [ranks=FILE] [to=FILE]``.

It writes results/scaling.md.
"""

from __future__ import annotations

import json
from pathlib import Path

from experiments.records.errors import UserError
from experiments.suite.commands import Command, Given, Option

COMMAND = Command(
    "scaling",
    "Writes the page on speed and scaling: the benchmark beside other libraries, the growth that "
    "it measured, and time "
    "and memory worked out for ImageNet on 1, 8 and 64 GPUs. It reads records and runs nothing.",
    options=(
        Option("benchmark", "results/benchmark", "folder of the benchmark's record", kind=Path),
        Option(
            "networks",
            "results/benchmark_networks,results/benchmark_residual",
            "folders of the records of its other tasks, with commas between; what is not there is left out",
        ),
        Option(
            "ranks", "results/distributed.json", "what python -m experiments.across_ranks wrote", kind=Path
        ),
        Option("to", "results/scaling.md", "file to write", kind=Path),
    ),
)


def main(given: Given) -> None:
    """Writes the page.

    Raises:
        UserError: a record or the file of ``ranks=`` is missing.
    """
    from experiments.benchmark.scaling import Gpu, page
    from experiments.records import atomic
    from experiments.records.record import Record

    if not given["ranks"].is_file():
        raise UserError(f"{given['ranks']} is not there: write it with python -m experiments.across_ranks.")
    ranks = json.loads(given["ranks"].read_text())
    folders = [folder for folder in given["networks"].split(",") if Path(folder).is_dir()]
    others = {folder: Record.load(Path(folder)) for folder in folders}
    atomic.write_text(given["to"], page(Record.load(given["benchmark"]), ranks, Gpu(), others))
    print(given["to"])


if __name__ == "__main__":
    COMMAND.run(main)
