"""One HTML page a verification: self-contained, no script, no request; figures inline, everything escaped."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.records.atomic import write_text
from experiments.records.table import rows_of, shown
from experiments.verification import recipes
from experiments.verification.arrays import meaning
from experiments.verification.claims import (
    METHOD_WORDS,
    NOT_REPRODUCED,
    NOT_RUN,
    PARTLY,
    REPRODUCED,
    STATUSES,
    Verdict,
)
from experiments.verification.tables import footnote, history, shown_bound, shown_ours, shown_paper

if TYPE_CHECKING:
    from experiments.verification.outcome import Outcome, Verification

TEMPLATES = Path(__file__).resolve().parent
LIMIT = 8_000_000  # bytes of the whole page
ROOM = 6_500_000  # of them for the figures
MARKS = {REPRODUCED: "✓", PARTLY: "◐", NOT_REPRODUCED: "✗", NOT_RUN: "–"}  # a status is never colour alone
MAX_SVG = 250_000  # a drawing of tens of thousands of points is smaller as pixels
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def render(found: Verification) -> str:
    """The page as one string."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    left = ROOM
    runs: list[dict[str, Any]] = []
    for name, outcome in found.outcomes.items():
        verdicts = [verdict for verdict in found.verdicts if verdict.claim.run.name == name]
        section, used = section_of(outcome, verdicts, left)
        left -= used
        runs.append(section | {"anchor": f"run-{len(runs) + 1}"})
    return environment.get_template("report.html.j2").render(
        title="Influence functions: what holds, and what does not",
        source=found.details["from"],
        tiers=found.details["tiers"],
        code=found.details["code"],
        counts={status: sum(v.status == status for v in found.verdicts) for status in STATUSES},
        facts=facts_of(found),
        partly=[verdict for verdict in found.verdicts if verdict.status == PARTLY],
        misses=[verdict for verdict in found.verdicts if verdict.status == NOT_REPRODUCED],
        not_run=[run for run in runs if any(verdict.status == NOT_RUN for verdict in run["verdicts"])],
        runs=runs,
        marks=MARKS,
        paper=shown_paper,
        ours=shown_ours,
        bound=shown_bound,
        history=history,
        words=METHOD_WORDS
        if found.details["tiers"] == ["smoke"]
        else {status: status for status in STATUSES},
    )


def facts_of(found: Verification) -> list[tuple[str, str]]:
    """When, on what, with what and in how long the records were made: (name, text)."""
    made = [outcome.provenance for outcome in found.outcomes.values() if outcome.provenance]
    days = sorted(str(each["started_utc"])[:10] for each in made if each.get("started_utc"))
    machines: dict[str, None] = {}
    versions: dict[str, set[str]] = {}
    seconds = 0.0
    for each in made:
        machine = each.get("machine") or {}
        parts = [machine.get("processor"), machine.get("system"), f"{machine.get('cores', '?')} cores"]
        parts += [machine["device"]] if machine.get("device") not in (None, "cpu") else []
        machines[", ".join(str(part) for part in parts if part)] = None
        for name, version in (each.get("versions") or {}).items():
            versions.setdefault(name, set()).add(str(version))
        seconds += float(each.get("wall_seconds") or 0)
    minutes = round(seconds / 60)
    facts = {
        "Records": f"{len(made)} of {len(found.outcomes)} runs",
        "Made": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "Hardware": "; ".join(machines) if made else "",
        "Versions": ", ".join(f"{name} {' and '.join(sorted(each))}" for name, each in versions.items()),
        "Total time": f"{minutes // 60} h {minutes % 60:02d} min for all runs, one after the other"
        if made
        else "",
    }
    return [(name, text) for name, text in facts.items() if text]


def section_of(outcome: Outcome, verdicts: list[Verdict], room: int) -> tuple[dict[str, Any], int]:
    """What the template shows of one run, and the bytes that its figures take."""
    record, provenance = outcome.record, outcome.provenance
    good = sum(verdict.accepted for verdict in verdicts)
    partly = sum(verdict.status == PARTLY for verdict in verdicts)
    figures, used = figures_of(outcome, room)
    section: dict[str, Any] = {
        "name": outcome.spec.name,
        "places": list(dict.fromkeys(v.claim.figure or f"§{v.claim.section}" for v in verdicts)),
        "tally": f"{good - partly} of {len(verdicts)}" + f", {partly} partly" * bool(partly),
        "problem": outcome.problem,
        "spot": "" if outcome.spot is None else str(outcome.spot),
        "verdicts": verdicts,
        "figures": figures,
        "folder": f"{outcome.folder.parent.name}/{outcome.folder.name}",
        "recipes": recipes.needed(outcome.folder / "config.yaml", provenance.get("data", {})),
        "arrays": [
            (name, " × ".join(map(str, value.shape)), meaning(record.experiment, name))
            for name, value in sorted(record.arrays.items())
        ]
        if record
        else [],
        "footnote": footnote(verdicts),
        "command": outcome.spec.command,
        "cost": verdicts[0].claim.run.cost,
        "real": outcome.spec.tier != "smoke",
        "deviations": record.deviations if record else [],
        "extra": rows_of(record) if record and record.tier != "smoke" else [],
        "certificates": [list(flat(item)) for item in record.certificates] if record else [],
        "timings": [
            (
                part.get("part"),
                shown(part.get("seconds")),
                shown(part.get("peak_mib")),
                f"{part['share_of_matrix_rate']:.0%}" if "share_of_matrix_rate" in part else "",
            )
            for part in provenance.get("timings", [])
        ],
        "provenance": [
            *flat(
                {
                    name: provenance[name]
                    for name in ("seed", "started_utc", "wall_seconds")
                    if name in provenance
                }
            ),
            *flat(
                {
                    name: provenance[name]
                    for name in ("code", "machine", "versions", "solvers")
                    if name in provenance
                }
            ),
            *checksums(provenance.get("data", {})),
        ],
    }
    return section, used


def figures_of(outcome: Outcome, room: int) -> tuple[list[dict[str, str]], int]:
    """The run's figures as data URIs, while they fit into ``room`` bytes; the others are named, not shown."""
    record = outcome.record
    if record is None:
        return [], 0
    figures, used = [], 0
    for stem in sorted({path.stem for path in outcome.folder.glob("*.*") if path.suffix in TYPES}):
        files = [outcome.folder / f"{stem}{suffix}" for suffix in TYPES]
        sizes = {file: file.stat().st_size for file in files if file.is_file()}
        small = [file for file, size in sizes.items() if file.suffix == ".svg" and size <= MAX_SVG]
        file = small[0] if small else min(sizes, key=lambda path: (sizes[path], path.suffix))
        source = f"data:{TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
        caption = record.captions.get(stem) or next(iter(record.captions.values()), stem)
        if used + len(source) > room:
            source, caption = "", f"{caption} (Too large for this page: {file.name} is beside the record.)"
        used += len(source)
        drawn = f"drawn from the record of {record.experiment} on {record.data}"
        alt = f"Figure {stem.replace('_', ' ')}, {drawn}. {caption}"
        shape = "wide" if proportion(file) > 1.6 else "tall" if proportion(file) < 1.4 else ""  # several rows
        figures.append({"source": source, "caption": caption, "alt": alt, "shape": shape})
    return figures, used


def proportion(file: Path) -> float:
    """Width over height of a drawing; 1 where the file does not say. A wide one scrolls on a phone."""
    content = file.read_bytes()[:4096]
    width, height = 1.0, 1.0
    if content.startswith(b"\x89PNG") and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
    elif box := re.search(rb'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', content):
        width, height = (float(value) for value in box.groups())
    return width / height if height else 1.0


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted name, text)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for position, item in enumerate(value):
                yield from flat({str(position): item}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "not known" if value is None else exact(value)


def exact(value: Any) -> str:
    """Numbers as a person reads them, seeds and counts unrounded."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def checksums(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The sha256 of each data file."""
    for name, entry in data.items():
        if isinstance(entry, Mapping) and "sha256" in entry:
            yield f"sha256 of {name}", str(entry["sha256"])


def write(found: Verification, path: Path) -> None:
    """Writes the page; raises ValueError if it is over the limit."""
    page = render(found)
    if len(page.encode()) > LIMIT:
        raise ValueError(f"the report has {len(page.encode()):,} bytes; the limit is {LIMIT:,}")
    write_text(path, page)
