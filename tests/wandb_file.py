"""Reads an offline W&B run file back: LevelDB's log format with one protobuf Record an entry."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = 7  # bytes: crc32c, length, type


def entries(content: bytes) -> list[bytes]:
    """The log's entries, put together from their fragments (types 1 whole, 2 first, 3 middle, 4 last)."""
    assert content[:4] == b":W&B", content[:8]
    found, pending, at = [], b"", 7
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left  # a block's tail too short for a header is padding
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        if kind == 0:
            break
        pending += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            found.append(pending)
            pending = b""
    return found


@dataclass
class OfflineRun:
    """What W&B would upload."""

    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    run_id: str = ""
    exit_code: int | None = None


def read_run(path: Path) -> OfflineRun:
    """Everything of interest in one .wandb file."""
    run = OfflineRun()
    for entry in entries(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(entry)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.group, run.run_id, run.tags = record.run.run_group, record.run.run_id, list(record.run.tags)
            run.job_type, run.project = record.run.job_type, record.run.project
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "summary":
            for item in record.summary.update:
                key = item.key or "/".join(item.nested_key)
                run.summary[key] = json.loads(item.value_json)
        elif kind == "history":
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                run.history[key] = json.loads(item.value_json)
        elif kind == "artifact":
            names = [item.path for item in record.artifact.manifest.contents]
            run.artifacts.setdefault(record.artifact.name, []).extend(names)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            artifact = record.request.log_artifact.artifact
            names = [item.path for item in artifact.manifest.contents]
            run.artifacts.setdefault(artifact.name, []).extend(names)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run
