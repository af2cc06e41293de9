"""A verification as aligned table, Markdown, JSON and JUnit XML: the same text for the same verdicts."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from experiments.records.atomic import jsonable, write_bytes, write_text
from experiments.records.errors import UserError
from experiments.records.table import WIDTH, fitted, shown
from experiments.verification.claims import (
    MARK,
    METHOD_WORDS,
    NOT_REPRODUCED,
    NOT_RUN,
    PARTLY,
    REPRODUCED,
    STATUSES,
    Claim,
    Verdict,
)

COLUMNS = ("claim", "paper", "ours", "bound", "status", "command")
NARROW = ("claim", "ours", "bound", "status")
_FIXED = (
    "claim",
    "bound",
    "status",
)  # as wide as their longest cell; the column between them takes what is left
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line: how many of each status."""
    words = dict.fromkeys([*STATUSES, *METHOD_WORDS.values()])
    counts = {word: sum(v.word == word for v in verdicts) for word in words}
    parts = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{len(verdicts)} claims: {parts or 'none'}"


def text(verdicts: Sequence[Verdict], wide: bool = False) -> str:
    """The table for a terminal, and below it why each miss is one.

    It has 80 columns: id, ours, bound and status, below the command of each run. ``wide``: one row holds all
    that is known, whatever its width.
    """
    remarks = [f"{v.claim.id}: {v.word}: {v.remark}" for v in verdicts if v.remark]
    if not wide:
        remarks = [
            line for remark in remarks for line in textwrap.wrap(remark, WIDTH, subsequent_indent="  ")
        ]
    notes = [note for note in (footnote(verdicts),) if note]
    lines = _wide(verdicts) if wide else _narrow(verdicts)
    return "\n".join([*lines, *notes, *([""] * bool(remarks)), *remarks, "", summary(verdicts)])


def spots(details: Mapping[str, Any]) -> list[str]:
    """A line for each record of which some points were retrained or could not be; none unless asked for."""
    if "spot" not in details:
        return []
    spot = details["spot"]
    lines = [f"Spot checks of at most {spot['points']} points each, drawn by seed {spot['seed']}:"]
    return lines + [f"  {name}: {run['status']}: {run['what']}" for name, run in spot["runs"].items()]


def _wide(verdicts: Sequence[Verdict]) -> list[str]:
    rows = [COLUMNS]
    rows += [
        (v.claim.id, shown_paper(v.claim), shown_ours(v), shown_bound(v.claim), v.word, v.claim.run.command)
        for v in verdicts
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return lines


def _narrow(verdicts: Sequence[Verdict]) -> list[str]:
    """One table a run, all of one layout; only the first shows the names of the columns."""
    names, bounds, words = zip(*((v.claim.id, shown_bound(v.claim), v.word) for v in verdicts), strict=True)
    fixed = [
        max(map(len, (name, *column))) for name, column in zip(_FIXED, (names, bounds, words), strict=True)
    ]
    left = WIDTH - sum(fixed) - 6  # rich puts two characters between columns
    rows = {}
    for v in verdicts:
        ours = shown_ours(v)
        ours = ours.strip("[]") if len(ours) > left else ours  # one item of a long list a line
        rows[v.claim.id] = (v.claim.id, ours, shown_bound(v.claim), v.word)
    widths = [fixed[0], left, *fixed[1:]]
    lines: list[str] = []
    for command in dict.fromkeys(v.claim.run.command for v in verdicts):
        chosen = [rows[v.claim.id] for v in verdicts if v.claim.run.command == command]
        header, rule, *table = fitted(NARROW, chosen, widths).splitlines()
        lines += [] if lines else [header, rule]
        lines += ["", *as_command(command), *table]
    return [*lines, ""]


def as_command(command: str) -> list[str]:
    """A command in lines that a shell takes together."""
    parts = command.replace(" && ", " &&\n").split("\n")
    lines = [
        line
        for place, part in enumerate(parts)
        for line in textwrap.wrap(
            part,
            WIDTH - 2,
            initial_indent="  " * bool(place),
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def shown_bound(claim: Claim) -> str:
    """The bound, marked if it was set or moved after its number was seen."""
    return f"{claim.bound} {MARK}" if claim.after_its_number else str(claim.bound)


def footnote(verdicts: Sequence[Verdict]) -> str:
    """What the mark means; empty if no bound carries it."""
    marked = any(v.claim.after_its_number for v in verdicts)
    return f"{MARK} This bound was set or moved after its number was seen." if marked else ""


def shown_paper(claim: Claim) -> str:
    """The paper's value; a dash where it gives none."""
    return "–" if claim.paper is None else shown(claim.paper)


def shown_ours(verdict: Verdict) -> str:
    """Our value; a dash where nothing was run."""
    return "–" if verdict.status == NOT_RUN else shown(verdict.ours)


def history(claim: Claim) -> str:
    """When a marked bound was set or moved, and after what."""
    seen = [f"set {claim.seen['date']} after {claim.seen['what']} was seen"] if claim.seen else []
    moved = [f"moved {move['date']} from {move['from']}" for move in claim.moved]
    return f" ({MARK} {'; '.join([*seen, *moved])})" if seen or moved else ""


def _cell(content: Any) -> str:
    return re.sub(r"\s+", " ", str(content)).replace("|", "\\|").strip()


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def short_markdown(verdicts: Sequence[Verdict]) -> str:
    """The README's table: the headline claims and all that are not fully reproduced; the rest is counted."""
    rows = [
        (
            v.claim.figure or f"§{v.claim.section}",
            v.claim.sentence,
            shown_paper(v.claim),
            shown_ours(v),
            shown_bound(v.claim),
            v.word,
        )
        for v in verdicts
        if v.claim.headline or v.status in (PARTLY, NOT_REPRODUCED)
    ]
    header = ("where", "claim", "paper", "ours", "bound", "status")
    return f"{_markdown(header, rows)}\n\n{summary(verdicts)}. {footnote(verdicts)}".rstrip()


def long_markdown(verdicts: Sequence[Verdict]) -> str:
    """results/README.md: everything about each claim, run by run."""
    parts = [f"{summary(verdicts)}. {footnote(verdicts)}".rstrip()]
    for name in dict.fromkeys(v.claim.run.name for v in verdicts):
        chosen = [v for v in verdicts if v.claim.run.name == name]
        spec = chosen[0].claim.run
        spent = chosen[0].claim.run.cost
        parts += [f"### {name}", f"`{spec.command}`" + f" ({spent})" * bool(spent)]
        header = ("claim", "paper", "where", "ours", "bound", "why this bound", "false when", "status")
        rows = [
            (
                f"**{v.claim.id}** {v.claim.sentence}",
                shown_paper(v.claim),
                v.claim.where,
                shown_ours(v),
                shown_bound(v.claim),
                v.claim.reason + history(v.claim),
                v.claim.fails_when,
                v.word + (f": {v.remark}" if v.remark else ""),
            )
            for v in chosen
        ]
        parts.append(_markdown(header, rows))
    return "\n\n".join(parts)


def replaced(document: str, table: str) -> str:
    """``document`` with ``table`` between the markers; ValueError if it has not both, once each."""
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise ValueError(f"needs {BEGIN} and {END}, once each")
    head, rest = document.split(BEGIN)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def tables(root: Path) -> dict[Path, Any]:
    """The generated regions: file and what makes its table."""
    return {root / "README.md": short_markdown, root / "results" / "README.md": long_markdown}


def stale(verdicts: Sequence[Verdict], root: Path) -> list[Path]:
    """The files whose table is not what the verdicts give."""
    return [path for path, make in tables(root).items() if path.read_text() != _fresh(path, make(verdicts))]


def update(verdicts: Sequence[Verdict], root: Path) -> list[Path]:
    """Writes the tables anew; the files that changed."""
    changed = stale(verdicts, root)
    for path, make in tables(root).items():
        if path in changed:
            write_text(path, _fresh(path, make(verdicts)))
    return changed


def _fresh(path: Path, table: str) -> str:
    try:
        return replaced(path.read_text(), table)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot take the generated table: {error}.") from error


def as_json(verdicts: Sequence[Verdict], details: dict[str, Any]) -> str:
    """Every verdict with its claim, for programs."""
    rows = []
    for v in verdicts:
        claim = v.claim
        rows.append(
            {
                "id": claim.id,
                "sentence": claim.sentence,
                "section": claim.section,
                "figure": claim.figure,
                "run": claim.run.name,
                "command": claim.run.command,
                "tier": claim.tier,
                "metric": claim.metric,
                "paper": claim.paper,
                "where": claim.where,
                "ours": v.ours,
                "bound": str(claim.bound),
                "reason": claim.reason,
                "tolerance": claim.tolerance,
                "set_or_moved_after_its_number": claim.after_its_number,
                "status": v.word,
                "accepted": v.accepted,
                "remark": v.remark,
            }
        )
    content = {**details, "summary": summary(verdicts), "claims": rows}
    return json.dumps(jsonable(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def junit(verdicts: Sequence[Verdict]) -> bytes:
    """JUnit XML: a suite a run, a case a claim; a miss is a failure, what was not run an error."""
    root = ElementTree.Element("testsuites", name="claims", tests=str(len(verdicts)))
    for name in dict.fromkeys(v.claim.run.name for v in verdicts):
        chosen = [v for v in verdicts if v.claim.run.name == name]
        not_run = sum(v.status == NOT_RUN for v in chosen)
        failures = sum(not v.accepted for v in chosen) - not_run
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(len(chosen)),
            failures=str(failures),
            errors=str(not_run),
        )
        for v in chosen:
            case = ElementTree.SubElement(suite, "testcase", classname=f"claims.{name}", name=v.claim.id)
            numbers = f"Paper {shown_paper(v.claim)}, ours {shown_ours(v)}, bound {shown_bound(v.claim)}."
            found = f"{v.claim.sentence} {numbers}"
            if not v.accepted:
                kind = "error" if v.status == NOT_RUN else "failure"
                ElementTree.SubElement(case, kind, message=_xml(f"{v.word}: {v.remark}")).text = _xml(found)
            elif v.status in (REPRODUCED, PARTLY):
                ElementTree.SubElement(case, "system-out").text = _xml(f"{v.word}: {found}")
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _xml(content: str) -> str:
    """Without the control characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", content)


def write(verdicts: Sequence[Verdict], details: dict[str, Any], folder: Path) -> None:
    """verification.json, junit.xml and table.txt in ``folder``."""
    write_text(folder / "verification.json", as_json(verdicts, details))
    write_bytes(folder / "junit.xml", junit(verdicts))
    write_text(folder / "table.txt", "\n".join([text(verdicts), *spots(details)]) + "\n")
