"""Which labels of a table of one's own are wrong? ``python -m experiments.label_errors FILE [key=value]``.

The same as a function: ``find_label_errors(DataFrame or file, label="column").suspects``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.label_errors.findings import Findings


def find_label_errors(table: Any, label: str | None = None, **settings: Any) -> Findings:
    """Ranks the rows of a table by how likely their label is wrong.

    Args:
        table: a pandas DataFrame, or the path of a CSV, TSV, Parquet or Excel file.
        label: the column with the labels; found by its name if None.
        settings: those of the command (``python -m experiments.label_errors --help``), for instance
            ``text=["subject"]``, ``join=True``.

    Returns:
        Findings: ``suspects`` (a DataFrame, most suspicious first), ``columns``, ``notes``, ``summary`` and
        ``save(folder)``, which writes what the command writes.

    Raises:
        UserError: the table cannot be read or holds nothing to learn; ConfigError: a wrong setting.
    """
    from experiments.label_errors.find import find

    return find(table, label=label, **settings)


__all__ = ["find_label_errors"]
