"""The columns of a table as one feature matrix, with what each feature means and where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from experiments.data.tables.kinds import Column, kind_of, looks_like_id
from experiments.data.tables.labels import Labels
from experiments.data.tables.options import Options
from experiments.data.tables.reading import Table
from experiments.records.errors import UserError

INTERCEPT = 10.0  # value of the intercept's feature: its weight is then hardly regularised
TEXT_SCALE = 5.0  # length of a text's word vector: about that of 25 standardised numbers
TELLS = 0.995  # share of labels that one column alone gives right from which it is named
TELLS_FEW = 5  # rows of a value, or of a range, from which it tells something
TELLS_ROWS = 50  # rows below which a column gives most labels by chance
_DENSE = 500  # features up to which the matrix is kept dense
_SAMPLE = 5000  # rows that a single column's power is judged on
_WORD = r"(?u)\b\w+\b"


@dataclass
class Features:
    """X ``(m, d)`` of the labelled rows, dense or CSR, the last column the intercept.

    Attributes:
        names: of the d features; the last is ``intercept``.
        owner: ``(d,)`` place in ``columns`` of the column that a feature comes from; -1: the intercept.
        columns: every column of the table but the label, as read.
    """

    X: Any
    names: list[str]
    owner: np.ndarray
    columns: list[Column]


def read_columns(table: Table, labels: Labels, settings: Options, special: dict[str, str]) -> list[Column]:
    """How every column but the label is read. ``special``: columns with another role, and which."""
    frame = table.frame.iloc[labels.kept] if len(labels.kept) < len(table.frame) else table.frame
    lines = table.lines[labels.kept]
    for option in ("ignore", "text", "numbers", "categories", "dates", "keep"):
        for name in vars(settings)[option]:
            if name not in table.frame.columns:
                known = ", ".join(map(repr, list(table.frame.columns)[:20]))
                raise UserError(f"{table.name} has no column {name!r}; it has {known}: set {option}=.")

    def where(row: int) -> str:
        return f"{table.place} {lines[row]}"

    columns: list[Any] = []
    seen: dict[Any, Any] = {}
    for name in frame.columns:
        if name == labels.name:
            continue
        if name in special or name in settings.ignore:
            columns.append(Column(str(name), "ignored", note=special.get(name, "left out by ignore=")))
            continue
        column = kind_of(frame[name], settings, table.decimal, where)
        _useless(column, seen, labels, settings, len(frame))
        if column.kind in ("leak",) or column.words:
            table.notes += [_sentence(word) for word in column.words]
        columns.append(column)
    return columns


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _useless(column: Column, seen: dict[bytes, str], labels: Labels, settings: Options, rows: int) -> None:
    """Marks constants, ids, copies of other columns and copies of the label."""
    forced = column.name in (
        *settings.keep, *settings.text, *settings.numbers, *settings.categories, *settings.dates
    )  # fmt: skip
    if not column.used:
        return
    digest, distinct = _digest(column)
    if distinct < 2 and not column.missing:
        column.left_out("constant", "it has one value only")
        return
    if not forced and (why := looks_like_id(column, rows)):
        column.left_out("id", f"{why}; keep=[{column.name}] makes it a feature")
        return
    if column.name not in settings.keep and digest in seen:
        column.left_out("copy", f"the same as {seen[digest]!r}")
        return
    seen[digest] = column.name
    if column.name not in settings.keep and column.kind in ("number", "category"):
        _leak(column, labels)


def _codes(column: Column) -> tuple[np.ndarray, int]:
    """``(m,)`` the number of each row's value, -1 where missing, and how many values there are."""
    import pandas as pd

    codes, values = pd.factorize(column.values)
    return codes, len(values)


def _digest(column: Column) -> tuple[bytes, int]:
    """A hash that equal columns share (numbers by value, others by their cells), and the number of values."""
    if column.kind in ("number", "date"):
        values = np.ascontiguousarray(column.values)
        first = values[: min(len(values), 2000)]
        distinct = len(np.unique(first)) if len(np.unique(first)) > 1 else len(np.unique(values))
        return hashlib.sha256(values.tobytes()).digest(), distinct
    codes, count = _codes(column)
    joined = "\x1f".join("" if cell is None else cell for cell in column.values)
    return hashlib.sha256(
        codes.astype(np.int64).tobytes() + joined.encode("utf-8", "replace")
    ).digest(), count


def _leak(column: Column, labels: Labels) -> None:
    """Leaves a copy of the label out; names a column that nearly gives the label away."""
    if labels.regression:
        if column.kind != "number":
            return
        found = np.isfinite(column.values)
        a, b = column.values[found], labels.y[found]
        if len(a) > 3 and np.ptp(a) > 0 and np.ptp(b) > 0:
            a, b = a / np.abs(a).max(), b / np.abs(b).max()
            power = float(np.corrcoef(a, b)[0, 1] ** 2)
            _tell(column, power, power > 1 - 1e-9, "the label up to scale", None)
        return
    classes, rows = len(labels.classes), np.arange(len(labels.y))
    few = max(2 * classes, min(50, len(rows) // 10))
    if column.kind == "number" and len(np.unique(column.values[: 4 * few])) > few + 1:  # NaN is one of them
        codes, count = rows, len(rows)  # it has more values than matter below
    else:
        codes, count = _codes(column)
    if count <= few:
        places = codes + (codes.min() < 0)
        table = np.zeros((places.max() + 1, classes))
        np.add.at(table, (places, labels.y), 1)
        copy = table.max(1).sum() == len(codes) and len(table) == len(set(table.argmax(1))) == classes
        rare = table.sum(1) < TELLS_FEW
        right = float(np.where(rare, table[:, table.sum(0).argmax()], table.max(1)).sum() / table.sum())
        _tell(column, right, copy, "each of its values goes with one label", labels.y)
    elif column.kind == "number":
        rows = rows[:: max(1, len(rows) // _SAMPLE)]
        if not _few_cuts(column.values[rows], labels.y[rows], 2 * classes):
            return
        from sklearn.tree import DecisionTreeClassifier

        values = np.nan_to_num(column.values[rows] / max(1.0, np.nanmax(np.abs(column.values))), nan=-2.0)
        tree = DecisionTreeClassifier(
            max_leaf_nodes=max(2, 2 * classes), min_samples_leaf=TELLS_FEW, random_state=0
        )
        right = tree.fit(values[:, None], labels.y[rows]).score(values[:, None], labels.y[rows])
        _tell(column, float(right), False, "", labels.y)


def _few_cuts(values: np.ndarray, y: np.ndarray, parts: int) -> bool:
    """Whether so few cuts of a column's range can give nearly all labels: each error adds two changes."""
    order = np.lexsort((y, values))
    return int((np.diff(y[order]) != 0).sum()) < parts + 2 * (1 - TELLS) * len(y)


def _tell(column: Column, power: float, copy: bool, why: str, y: np.ndarray | None) -> None:
    """Says what a column gives away; of few rows, or of one frequent class, it would give much by chance."""
    if y is not None and not copy:
        others = 1 - np.bincount(y).max() / len(y)
        if len(y) < TELLS_ROWS or 1 - power > 0.1 * others:
            return
    if copy:
        column.words.append(
            f"column {column.name!r} gives the label away ({why}): left out; keep=[{column.name}] keeps it"
        )
        column.left_out("leak", why)
    elif power >= TELLS:
        column.words.append(
            f"column {column.name!r} alone gives {100 * power:.1f} % of the labels: if it was made from the "
            f"label, the list is worthless; leave it out by ignore=[{column.name}]"
        )


def encode(
    columns: list[Column],
    settings: Options,
    rows: int,
    describe: Callable[[str], None],
    known: np.ndarray | None = None,
) -> Features:
    """The feature matrix. Means, categories and vocabularies are those of the rows ``known`` (default: all).

    Raises:
        UserError: no column is left.
    """
    known = np.arange(rows) if known is None else known
    blocks: list[Any] = []
    names: list[str] = []
    owner: list[int] = []
    for place, column in enumerate(columns):
        if not column.used:
            continue
        describe(column.name)
        block, found = _BLOCKS[column.kind](column, settings, known)
        if block is None or block.shape[1] == 0:
            column.left_out(
                "constant", "no word occurs in two rows" if column.kind == "text" else "no variation"
            )
            continue
        if column.missing and column.kind != "text":
            gap = _missing(column)
            block = sp.hstack([block, gap], format="csr") if sp.issparse(block) else np.hstack([block, gap])
            found = [*found, f"{column.name} is missing"]
        column.features = block.shape[1]
        blocks.append(block)
        names += found
        owner += [place] * block.shape[1]
    if not blocks and not columns:
        raise UserError("the table has the label and no other column; give columns to learn from.")
    if not blocks:
        kinds = ", ".join(f"{column.name!r} ({column.kind})" for column in columns[:20])
        raise UserError(f"no column is left to learn from: {kinds}; set keep=.")
    ones = np.full((rows, 1), INTERCEPT)
    d = sum(block.shape[1] for block in blocks)
    sparse = any(sp.issparse(block) for block in blocks)
    dense = d <= _DENSE or (not sparse)
    if dense:
        X: Any = np.hstack([*(b.toarray() if sp.issparse(b) else b for b in blocks), ones])
    else:
        X = sp.hstack([*(sp.csr_matrix(block) for block in blocks), sp.csr_matrix(ones)], format="csr")
        X.sort_indices()
    return Features(X, [*names, "intercept"], np.array([*owner, -1]), columns)


def _missing(column: Column) -> np.ndarray:
    values = column.values
    if column.kind == "number":
        gone = np.isnan(values)
    elif column.kind == "date":
        gone = np.isnat(values)
    else:
        gone = np.array([cell is None for cell in values])
    return gone.astype(np.float64)[:, None]


def standardised(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 on the rows ``known``; safe for numbers near the largest float."""
    largest = np.abs(values[known]).max()
    values = values / largest if largest > 0 else values
    values = values - values[known].mean()
    deviation = values[known].std()
    return np.clip(values / deviation, -1e6, 1e6) if deviation > 0 else np.zeros_like(values)


def _filled(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    gone, seen = np.isnan(values), values[known]
    seen = seen[~np.isnan(seen)]
    return np.where(gone, np.median(seen) if len(seen) else 0.0, values) if gone.any() else values


def _number(column: Column, settings: Options, known: np.ndarray) -> tuple[Any, list[str]]:
    column.encoded = "a standardised number" + (", median where missing" if column.missing else "")
    return standardised(_filled(column.values, known), known)[:, None], [column.name]


def _date(column: Column, settings: Options, known: np.ndarray) -> tuple[Any, list[str]]:
    """Time as a number, month, weekday and (where there is one) hour on circles."""
    values = column.values
    gone = np.isnat(values)
    values = np.where(gone, np.sort(values[~gone])[(~gone).sum() // 2], values)
    days = values.astype("datetime64[D]")
    month = days.astype("datetime64[M]").astype(np.int64) % 12 / 12
    weekday = (days.astype(np.int64) + 3) % 7 / 7
    hour = (values - days).astype("timedelta64[s]").astype(np.float64) / 86400
    parts: dict[str, np.ndarray] = {"time": standardised(values.astype(np.int64).astype(np.float64), known)}
    for name, turn in (("month", month), ("weekday", weekday), ("hour", hour)):
        if np.ptp(turn) > 0:
            parts[f"{name} (sin)"], parts[f"{name} (cos)"] = (
                np.sin(2 * np.pi * turn),
                np.cos(2 * np.pi * turn),
            )
    column.encoded = "time, " + ", ".join(sorted({name.split(" ")[0] for name in parts} - {"time"}))
    column.encoded = column.encoded.rstrip(", ") + (", middle date where missing" if column.missing else "")
    return np.stack(list(parts.values()), axis=1), [f"{column.name}:{name}" for name in parts]


def _category(column: Column, settings: Options, known: np.ndarray) -> tuple[Any, list[str]]:
    """An indicator a category; the rarest of very many share one."""
    import pandas as pd

    codes, values = pd.factorize(column.values, sort=False)
    gone = codes < 0
    seen = codes[known]
    counts = np.bincount(seen[seen >= 0], minlength=len(values))
    order = np.argsort(-counts, kind="stable")
    codes = np.where(gone, order[0], codes)  # the most frequent one
    own = order[: settings.levels][counts[order[: settings.levels]] > 0]
    own = own[np.argsort([str(values[level]) for level in own], kind="stable")]
    names = [f"{column.name}={values[level]}" for level in own]
    place = np.full(len(values), len(own))
    place[own] = np.arange(len(own))
    column.encoded = f"{len(own)} categories"
    if len(own) < (counts > 0).sum():
        names.append(f"{column.name}=another")
        column.encoded += f", {(counts > 0).sum() - len(own)} rarer ones as one"
    column.encoded += ", the most frequent where missing" if column.missing else ""
    kept = place[codes] < len(names)  # a category of other rows alone has no feature: nothing is known of it
    where = np.arange(len(codes))[kept]
    X = sp.csr_matrix((np.ones(len(where)), (where, place[codes][kept])), shape=(len(codes), len(names)))
    return (X.toarray() if len(names) <= _DENSE // 5 else X), names


def _text(column: Column, settings: Options, known: np.ndarray) -> tuple[Any, list[str]]:
    """Words weighted by tf-idf, each text of the same length; signs where a script has no spaces."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    texts = ["" if cell is None else cell for cell in column.values]
    sample = "".join(texts[:200])
    spaceless = sum(
        "\u0e00" <= sign <= "\u0eff" or "\u3040" <= sign <= "\u9fff" for sign in sample
    ) > 0.2 * len(sample)
    how: dict[str, Any] = (
        {"analyzer": "char", "ngram_range": (1, 2)} if spaceless else {"token_pattern": _WORD}
    )
    counter = CountVectorizer(min_df=settings.min_df, max_features=settings.words, dtype=np.float64, **how)
    everyone = np.array_equal(known, np.arange(len(texts)))
    try:
        if everyone:  # each text is cut into words once
            counts = counter.fit_transform(texts)
        else:
            counts = counter.fit([texts[row] for row in known]).transform(texts)
    except ValueError:  # no word twice
        return None, []
    counts.sort_indices()  # so that both ways add in the same order
    weigher = TfidfTransformer(sublinear_tf=True).fit(counts if everyone else counts[known])
    X = weigher.transform(counts).tocsr() * TEXT_SCALE
    found = [f"{column.name}:{word}" for word in counter.get_feature_names_out()]
    unit = "signs and pairs of signs" if spaceless else "words"
    column.encoded = f"{len(found)} {unit}, tf-idf"
    if len(found) == settings.words:
        column.encoded += f" (the most frequent; words={settings.words})"
    return X, found


_BLOCKS = {"number": _number, "date": _date, "category": _category, "text": _text}
