"""The suite under ``torchrun --nproc-per-node N -m experiments ...``: rank 0 writes, all compute.

Every rank composes the same config and runs the same experiment on its share of the training set
(:mod:`influence.objectives.distributed`).
Ranks above 0 work in a folder of their own that is thrown away: no record, no
figure, no W&B run, no table comes from them. A journal is read and written by rank 0 alone, so a job may be
resumed with another number of ranks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.records.journal import Journal


def announced() -> bool:
    """Whether torchrun started this process."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def follower() -> bool:
    """Whether this process is a rank above 0."""
    return announced() and int(os.environ["RANK"]) > 0


@contextlib.contextmanager
def joined(device: str, folder: Path) -> Iterator[Path]:
    """Joins the group, if there is one, and gives the folder to work in: ``folder`` itself on rank 0."""
    if not announced():
        yield folder
        return
    from influence.objectives import distributed

    signal.signal(signal.SIGTERM, _told_to_stop)
    distributed.join(device)
    if not follower():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="influence-rank-") as own:
        yield Path(own)


def _told_to_stop(*_: Any) -> None:
    # torchrun ends the ranks that are left when one has died; without this they would say nothing.
    from influence.errors import DistributedError

    raise DistributedError(
        f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} was told to stop: another rank ended; "
        "start the job again with the same output=: it resumes from its journal"
    )


def description() -> dict[str, Any]:
    """How many ranks computed, for the provenance; nothing in one process."""
    return {"ranks": int(os.environ["WORLD_SIZE"])} if announced() else {}


def from_first(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not announced():
        return value
    from influence.objectives import distributed

    return distributed.from_first(value)


def report(sentence: str, error: BaseException) -> None:
    """Prints an error's sentence once a job, by the rank that meets it first; a rank that only lost the
    others keeps silent where one of them has said why it ended.
    """
    if announced() and not _first_to_tell(sentence, error):
        return
    print(f"error: {sentence}", file=sys.stderr, flush=True)


def _first_to_tell(sentence: str, error: BaseException) -> bool:
    from torch.distributed import TCPStore

    from influence.errors import DistributedError

    try:
        port = int(os.environ["MASTER_PORT"])
        store = TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, wait_for_workers=False)
        if isinstance(error, DistributedError):
            return not store.check(["influence/told"]) and store.add("influence/lost", 1) == 1
        store.set("influence/told", "1")
        return store.add(f"influence/error/{sentence}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # the store went with the launcher: better twice than never
        return True


class SharedJournal:
    """A journal that rank 0 keeps and all ranks read."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __len__(self) -> int:
        return from_first(len(self._journal))

    def get(self, key: Any) -> dict[str, Any] | None:
        """What rank 0 has under ``key``."""
        return from_first(None if follower() else self._journal.get(key))

    def put(self, key: Any, arrays: Mapping[str, Any]) -> None:
        """Keeps ``arrays`` on rank 0."""
        if not follower():
            self._journal.put(key, arrays)


def shared(journal: Journal) -> Any:
    """The journal itself, or the one all ranks share."""
    return SharedJournal(journal) if announced() else journal
