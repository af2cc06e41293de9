"""``ro-crate-metadata.json``: what a published record is, for archives that read RO-Crate 1.1.

https://www.researchobject.org/ro-crate/specification/1.1/. The crate is the record's folder. It names each
file with its sha256, the run that made them, its code, its data and the paper.
"""

from __future__ import annotations

import time
from calendar import timegm
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.records import atomic, provenance
from experiments.records.record import Record

NAME = "ro-crate-metadata.json"
LICENCE = "https://spdx.org/licenses/MIT"
PAPER = "https://arxiv.org/abs/1703.04730"
KINDS = {
    ".json": "application/json",
    ".npz": "application/zip",
    ".yaml": "application/yaml",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".md": "text/markdown",
}
SAYS = {
    "record.json": "The result: metrics, captions, deviations from the paper and the end of every fit, "
    "with the sha256 of the arrays and a seal of the numbers",
    "arrays.npz": "Arrays of the figure and of the per-point table, as numpy writes them",
    "config.yaml": "Every setting of the run, as Hydra composed them",
    "provenance.json": "Commit, versions, machine, data, time and memory of the run",
}
UTC = "%Y-%m-%dT%H:%M:%SZ"


def write(folder: Path) -> None:
    """Writes the crate of the record in ``folder``; atomic.

    Raises:
        UserError: ``folder`` holds no whole record.
    """
    atomic.write_json(folder / NAME, of(folder))


def of(folder: Path) -> dict[str, Any]:
    """The crate of the record in ``folder``, as JSON-LD."""
    record, origin = Record.load(folder), provenance.read(folder)
    files = [
        described(path) for path in sorted(folder.iterdir()) if path.suffix in KINDS and path.name != NAME
    ]
    data = list(inputs(origin.get("data", {})))
    code = software(origin)
    caption = " ".join(record.captions[name] for name in sorted(record.captions))
    started = origin.get("started_utc")
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"Record of the experiment {folder.name}",
        "description": caption or f"The record of the experiment {record.experiment}.",
        "datePublished": (started or "1970-01-01")[:10],
        "license": {"@id": LICENCE},
        "author": {"@id": "#authors"},
        "citation": {"@id": PAPER},
        "hasPart": [{"@id": file["@id"]} for file in files],
        "mentions": {"@id": "#run"},
    }
    run: dict[str, Any] = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": " ".join(origin.get("command", [])) or record.experiment,
        "instrument": {"@id": code["@id"]},
        "object": [{"@id": each["@id"]} for each in data],
        "result": {"@id": "./"},
    }
    if started:
        last = float(origin.get("wall_seconds", 0)) - sum(origin.get("seconds_of_earlier_calls", []))
        ended = timegm(time.strptime(started, UTC)) + round(last)
        run |= {"startTime": started, "endTime": time.strftime(UTC, time.gmtime(ended))}
    around = [
        {
            "@id": NAME,
            "@type": "CreativeWork",
            "about": {"@id": "./"},
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        },
        {"@id": "#authors", "@type": "Organization", "name": "The influence-replication authors"},
        {
            "@id": PAPER,
            "@type": "ScholarlyArticle",
            "name": "Understanding Black-box Predictions via Influence Functions",
            "author": "Pang Wei Koh, Percy Liang",
        },
        {"@id": LICENCE, "@type": "CreativeWork", "name": "MIT License", "identifier": LICENCE},
    ]
    graph = [*around, root, run, code, *files, *data]
    return {
        "@context": "https://w3id.org/ro/crate/1.1/context",
        "@graph": sorted(graph, key=lambda each: each["@id"]),
    }


def described(path: Path) -> dict[str, Any]:
    """A file of the folder."""
    content = path.read_bytes()
    return {
        "@id": path.name,
        "@type": "File",
        "name": path.name,
        "description": SAYS.get(path.name, "A figure, drawn from the record"),
        "encodingFormat": KINDS[path.suffix],
        "contentSize": str(len(content)),
        "sha256": atomic.sha256(content),
    }


def inputs(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The original files that a run read; they are not part of the folder."""
    for name, entry in sorted(manifest.items()):
        if isinstance(entry, Mapping) and "sha256" in entry:
            yield {
                "@id": f"#data/{quote(name)}",
                "@type": "CreativeWork",
                "name": name,
                "sha256": entry["sha256"],
                "contentSize": str(entry.get("bytes", "")),
            }


def software(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The code of the run, by its commit."""
    commit = origin.get("code", {}).get("git_commit") or next(iter(origin.get("commits", [])), None)
    return {
        "@id": "#code",
        "@type": "SoftwareSourceCode",
        "name": "influence-replication",
        "version": commit or "unknown",
        "programmingLanguage": "Python",
        "softwareRequirements": ", ".join(
            f"{name} {version}" for name, version in sorted(origin.get("versions", {}).items())
        ),
        "license": {"@id": LICENCE},
    }
