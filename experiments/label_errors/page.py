"""One HTML page of the suspects: everything in one file, nothing loaded, nothing sent."""

from __future__ import annotations

import hashlib
import json
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.label_errors.findings import Findings

HERE = Path(__file__).parent
CLIP = 400  # signs of a cell that the page keeps
_CELLS = 2_000_000  # cells of the user's table on the page, at most


def html(found: Findings) -> str:
    """The page. All of the user's texts are data in a script element and are shown as text only."""
    data = page_data(found)
    parts = {
        "TITLE": escape(f"Label errors in {data['name']}"),
        "CSS": (HERE / "page.css.j2").read_text(encoding="utf-8"),
        "JS": (HERE / "page.js.j2").read_text(encoding="utf-8"),
        "DATA": as_json(data),
    }
    page = (HERE / "page.html.j2").read_text(encoding="utf-8")
    pieces = page.split("[[")
    out = [pieces[0]]
    for piece in pieces[1:]:
        key, _, rest = piece.partition("]]")
        out += [parts[key], rest]
    return "".join(out)


def page_data(found: Findings) -> dict[str, Any]:
    """What the page's script reads: rows once each, suspects by their places in them."""
    numbers = found.summary["task"] == "numbers"
    listed = found.order[: found.settings.rows]
    listed = listed[: max(20, _CELLS // max(1, len(found.own)))]
    explained = found.reasons
    at = {int(place): number for number, place in enumerate(explained.rows)}
    wanted = [int(place) for place in listed]
    seen = set(wanted)
    for place in wanted:
        if place in at:
            number = at[place]
            for other in (*explained.against[number], *explained.support[number]):
                if other >= 0 and int(other) not in seen:
                    seen.add(int(other))
                    wanted.append(int(other))
    index = {place: number for number, place in enumerate(wanted)}
    own = [name for name in found.own if name != found.labels.name]
    frame = found.table.frame[own].iloc[found.labels.kept[wanted]]
    columns = [[clip(cell) for cell in frame[name].astype("str").fillna("").tolist()] for name in own]
    y = found.labels.y
    suspects = []
    names = {name.rstrip("_"): name for name in found.suspects.columns[: -len(found.own)]}
    values = {key: found.suspects[name].to_numpy() for key, name in names.items()}
    for rank, place in enumerate(int(p) for p in listed):
        entry: dict[str, Any] = {"i": index[place]}
        if numbers:
            entry |= {"p": short(values["proposed"][rank]), "q": short(values["deviations"][rank])}
        else:
            entry |= {
                "p": found.labels.classes.index(values["proposed"][rank]),
                "q": short(values["probability_of_given"][rank]),
                "o": short(values["probability_of_proposed"][rank]),
            }
        entry |= {"l": short(values["held_out_loss"][rank]), "t": short(values["training_loss"][rank])}
        entry["s"] = short(values["self_influence"][rank])
        entry["f"] = [
            [own.index(name), feature, round(value, 3)]
            for column, feature, value in found.contributions[rank]
            if (name := found.columns[column].name) in own
        ]
        if place in at:
            number = at[place]
            for key, places, sizes in (
                ("a", explained.against, explained.against_size),
                ("b", explained.support, explained.support_size),
            ):
                entry[key] = [
                    [index[int(other)], short(size)]
                    for other, size in zip(places[number], sizes[number], strict=True)
                    if other >= 0
                ]
        suspects.append(entry)
    texts = found.labels.given[found.labels.kept[wanted]]
    return {
        "name": Path(found.table.name).name,
        "key": _key(found),
        "place": found.table.place,
        "task": found.summary["task"],
        "classes": list(found.labels.classes),
        "label": found.labels.name,
        "id": found.shown,
        "summary": {key: value for key, value in found.summary.items() if key != "models"},
        "models": [{k: m[k] for k in m if k != "tried"} for m in found.summary["models"]],
        "notes": found.notes,
        "columns": [
            [column.name, column.kind, column.missing, column.encoded, column.features, column.note]
            for column in found.columns
        ],
        "own": own,
        "cells": columns,
        "line": [int(found.table.lines[place]) for place in found.labels.kept[wanted]],
        "given": [clip(str(text)) for text in texts] if numbers else [int(y[place]) for place in wanted],
        "suspects": suspects,
        "total": len(found.order),
    }


def _key(found: Findings) -> str:
    """Names the decisions that a browser keeps for this table and these suspects."""
    text = f"{found.table.name}|{found.table.sha256}|{found.labels.name}|{found.order[:100].tolist()}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def clip(text: str) -> str:
    """The beginning of a long cell; a lone surrogate becomes a mark, for the page is UTF-8."""
    if len(text) <= CLIP and text.isascii():
        return text
    text = text if len(text) <= CLIP else text[: CLIP - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return text.encode("utf-8", "replace").decode("utf-8")


def short(value: Any) -> float:
    """Four digits are enough to look at; JSON has no infinity."""
    number = float(value)
    return float(f"{number:.4g}") if math.isfinite(number) else 1e300


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign, code in (
        ("&", "\\u0026"),
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        text = text.replace(sign, code)
    return text
