"""The kinds of trouble of public tables, in small files of our own: a ranked list, or one sentence."""

# ruff: noqa: E501  (a kind of trouble a line)
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.label_errors import find_label_errors

N = 60


def rows(label: Callable[[int, int], str] = lambda i, k: "ny"[k] * 2) -> list[list[str]]:
    """Two numbers that tell two classes apart, and the label."""
    generator = np.random.default_rng(0)
    found = []
    for i in range(N):
        k = i % 2
        found.append([f"{generator.normal() + 3 * k:.3f}", f"{generator.normal():.3f}", label(i, k)])
    return found


def csv(
    cells: list[list[str]], header: str | None = "a,b,label", separator: str = ",", end: str = "\n"
) -> str:
    head = [header.replace(",", separator)] if header else []
    return end.join([*head, *(separator.join(row) for row in cells)]) + end


READ: dict[str, tuple[bytes, dict[str, object], str]] = {
    "plain": (csv(rows()).encode(), {}, ""),
    "carriage returns": (csv(rows(), end="\r\n").encode(), {}, ""),
    "three classes": (csv(rows(lambda i, k: f"c{i % 3}")).encode(), {}, ""),
    "twelve classes": (csv(rows(lambda i, k: f"c{i % 12}")).encode(), {}, ""),
    "missing numbers": (csv([[r[0] if i % 6 else "", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "numbers NA": (csv([[r[0] if i % 6 else "NA", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "question marks": (csv([[r[0] if i % 9 else "?", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "a few words among numbers": (csv([[r[0] if i else "tall", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, "'tall' on line 2"),
    "infinite": (csv([[r[0] if i else "inf", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, "'inf' on line 2"),
    "huge": (csv([["1e308" if i % 3 else "-1e308", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "hexadecimal": (csv([[f"0x{(7 * i) % 64:02x}", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "latin-1": (csv([[*r[:2], "café" if k % 2 else "thé"] for k, r in enumerate(rows())]).encode("latin-1"), {}, "cp1252"),
    "latin-1 header": (csv(rows(), "a,b,étiquette").encode("latin-1"), {"label": "étiquette"}, "cp1252"),
    "utf-16": (csv(rows()).encode("utf-16"), {}, "utf-16"),
    "byte order mark": (csv(rows()).encode("utf-8-sig"), {}, "utf-8"),
    "tabs without a header": (csv(rows(), None, "\t").encode(), {"label": "-1"}, "looks like data"),
    "semicolons": (csv(rows(), separator=";").encode(), {}, "semicolons"),
    "decimal commas": (csv([[x.replace(".", ",") for x in r] for r in rows()], separator=";").encode(), {}, "decimal commas"),
    "sep line": (b"sep=;\n" + csv(rows(), separator=";").encode(), {}, "names the separator"),
    "comment": (b"# exported today\n" + csv(rows()).encode(), {}, "comment"),
    "separator at the end": (csv([[*r, ""] for r in rows()]).encode(), {}, "ends with a separator"),
    "nameless empty columns": (csv([[*r, "", ""] for r in rows()], "a,b,label,,").encode(), {}, "neither a name nor a cell"),
    "row names": (csv([[f"r{i}", *r] for i, r in enumerate(rows())]).encode(), {}, "row names"),
    "a column twice": (csv([[r[0], r[1], r[1] + "1", r[2]] for r in rows()], "a,b,b,label").encode(), {}, "'b'; the later one"),
    "the label twice": (csv([[*r, r[2]] for r in rows()], "a,b,label,label").encode(), {"label": "label"}, "gives the label away"),
    "NA as a class": (csv(rows(lambda i, k: ("EU", "NA")[k])).encode(), {}, "'NA' is a class here"),
    "booleans": (csv(rows(lambda i, k: ("False", "TRUE" if i % 4 == 1 else "true")[k])).encode(), {}, "one class"),
    "one and 1.0": (csv(rows(lambda i, k: ("0", "1.0" if i % 4 == 1 else "1")[k])).encode(), {}, "one class"),
    "stray spaces": (csv(rows(lambda i, k: ("no", "yes " if i % 4 == 1 else "yes")[k])).encode(), {}, "join=true"),
    "stray spaces joined": (csv(rows(lambda i, k: ("no", "yes " if i % 4 == 1 else "yes")[k])).encode(), {"join": True}, "are joined"),
    "empty labels": (csv(rows(lambda i, k: "" if i < 3 else "ny"[k])).encode(), {}, "3 of 60 rows have no label"),
    "a rare class": (csv(rows(lambda i, k: "odd" if i == 5 else "ny"[k])).encode(), {}, "fewer than 5 rows: 'odd' (1)"),
    "ids": (csv([[f"K{i:03d}", *r] for i, r in enumerate(rows())], "key,a,b,label").encode(), {}, ""),
    "quoted line ends": (csv([[r[0], f'"one\r\ntwo {i % 5}"', r[2]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "right to left": (csv(rows(lambda i, k: "אב"[k]), "מספר,‮evil‬,label").encode(), {}, ""),
    "formulas": (csv([[r[0], f"=cmd|' /C calc'!A{i % 4}", r[2]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "a NUL": (csv(rows(lambda i, k: "n\0y" if i == 5 else "ny"[k])).encode(), {}, "NUL"),
    "short row filled": (csv(rows()).encode() + b"1.5\n", {"bad_rows": "fill"}, "too few cells"),
    "short row skipped": (csv(rows()).encode() + b"1.5\n", {"bad_rows": "skip"}, "left out"),
}  # fmt: skip
REFUSED: dict[str, tuple[bytes, dict[str, object], str]] = {
    "short row": (csv(rows()).encode() + b"1.5\n", {}, r"line 62 has 1 cells, the table has 3 columns; .*bad_rows="),
    "long row": (csv(rows()).encode() + b"1,2,3,4\n", {}, r"line 62 has 4 cells.*bad_rows=skip"),
    "an open quote": (csv(rows()).encode() + b'1,"2,n\n', {}, "line 62 has a quotation mark.*quote=none"),
    "no label column": (csv(rows(), "a,b,kind").encode(), {}, "set label= to one of 'a', 'b', 'kind'"),
    "one class": (csv(rows(lambda i, k: "x")).encode(), {}, "one class only, 'x'"),
    "all labels differ": (csv(rows(lambda i, k: f"t{i}")).encode(), {}, "is it the label"),
    "one column": (b"label\n" + b"x\ny\n" * 20, {}, "one column only, 'label'; set separator="),
    "only a header": (b"a,b,label\n", {}, "has no rows below its header"),
    "nothing": (b"", {}, "is empty"),
    "only ids": (csv([[f"K{i:03d}", "xy"[i % 2]] for i in range(N)], "key,label").encode(), {}, r"no column is left.*'key' \(id\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_each_is_ranked_and_said_how(name: str, tmp_path: Path) -> None:
    content, options, said = READ[name]
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    found = find_label_errors(path, **({"model": "linear", "l2": 0.01} | options))
    assert len(found.suspects) == len(found.labels.kept) >= 50
    assert np.isfinite(found.suspects["held_out_loss"]).all()
    assert found.suspects["held_out_loss"].is_monotonic_decreasing
    assert any(said in note for note in found.notes) or not said, found.notes
    assert len(found.columns) == found.table.frame.shape[1] - 1  # every column is reported


@pytest.mark.parametrize("name", REFUSED)
def test_each_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    content, options, message = REFUSED[name]
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        find_label_errors(path, **options)
    assert str(raised.value).count("\n") == 0
