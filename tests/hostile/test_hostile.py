"""Files, texts and configs made to do harm: refused by name, or shown as what they are.

Archives with ``..``, links and forged sizes stand in tests/experiments/data/test_fetch.py, IDX headers in
test_prepare.py there, HTML in the report in tests/experiments/test_report.py.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.records import atomic
from experiments.records.csv import csv_of
from experiments.records.errors import UserError
from experiments.records.journal import Journal
from experiments.records.record import Record
from experiments.records.table import markdown, paper_and_ours
from influence.score_files import StreamedScores
from tests.helpers import ROOT, cli, one_sentence


class Payload:
    """Unpickled, it leaves a file: the trace of code that ran."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def sources() -> list[Path]:
    return sorted([*ROOT.glob("influence/**/*.py"), *ROOT.glob("experiments/**/*.py")])


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_here_unpickles_or_evaluates() -> None:
    seen = 0
    for path in sources():
        for name, call in calls(ast.parse(path.read_text())):
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            seen += name in ("np.load", "torch.load")
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "os.system"), (
                path
            )
            assert name not in ("yaml.load", "yaml.unsafe_load", "hydra.utils.instantiate", "instantiate"), (
                path
            )
            assert keywords.get("allow_pickle", "False") == "False", path
            assert keywords.get("shell", "False") == "False", path
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", path
    assert seen >= 2


def test_a_weights_file_with_a_payload_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"weight": torch.zeros(2), "extra": Payload(trace)}, tmp_path / "w.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
        torch.load(tmp_path / "w.pth", weights_only=True)
    assert not trace.exists()


def sealed(folder: Path, arrays: bytes) -> None:
    """A record whose every checksum fits the given arrays file."""
    Record("loo_linear", {"x": 1.0}, {"a": np.zeros(3)}, table=["a"]).save(folder)
    content = json.loads((folder / "record.json").read_text())
    content.pop("seal", None)
    content["arrays_sha256"] = atomic.sha256(arrays)
    atomic.write_json(folder / "record.json", content | {"seal": atomic.key_hash(content)})
    (folder / "arrays.npz").write_bytes(arrays)


def payload_npz(name: str, trace: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.array([Payload(trace)], dtype=object)})
    return buffer.getvalue()


def test_pickled_objects_in_arrays_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    sealed(tmp_path / "record", payload_npz("a", trace))
    with pytest.raises(UserError, match="plain arrays"):
        Record.load(tmp_path / "record")
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "scores.json").write_text('{"n": 1, "k": 1, "rows": 1}')
    (scores / "scores-000000000000.npz").write_bytes(payload_npz("scores", trace))
    assert StreamedScores(scores).missing() == [0]
    assert not trace.exists()


def test_a_forged_journal_entry_reads_no_file_outside(tmp_path: Path) -> None:
    """An index line that points out of the folder."""
    outside = tmp_path / "outside.npz"
    outside.write_bytes(atomic.npz_bytes({"a": np.ones(1)}))
    journal = Journal(tmp_path / "j", "unit", "id")
    entry = {"key": "k", "file": "../../outside.npz", "sha256": atomic.sha256(outside.read_bytes())}
    (journal.folder / "index.jsonl").write_text(json.dumps(entry) + "\n")
    assert Journal(tmp_path / "j", "unit", "id").get("k") is None


FORMULAS = [
    "=1+1",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    " =cmd|' /C calc'!A0",
    "%0A=1",
    '=HYPERLINK("http://x")',
    "\n=1",
]
HARMLESS = ["-1.5", "-2e-7", "", "plain", "a=b", "Größe, 測試", 'say "hi"', "1,5", "two\nlines"]


@pytest.mark.parametrize("text", FORMULAS + HARMLESS)
def test_no_cell_of_an_exported_list_is_a_formula(text: str) -> None:
    record = Record(
        "spam", {}, {"subject": np.array([text]), "score": np.array([-1.5])}, table=["subject", "score"]
    )
    rows = list(csv.reader(io.StringIO(csv_of(record), newline="")))
    assert rows[0] == ["subject", "score"]
    assert rows[1][1] == "-1.5"
    shown = rows[1][0]
    assert shown == (text if text in HARMLESS else f"'{text}")
    plain_number = text in ("-1.5", "-2e-7")
    assert plain_number or not shown.lstrip().startswith(("=", "+", "-", "@", "|", "%"))


def test_export_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    Record("x", {}, {"a": np.zeros(1)}).save(tmp_path / "r")
    assert "no per-point table" in one_sentence(cli(str(tmp_path / "r"), module="experiments.export"))
    Record("x", {}, {"a": np.zeros(1)}, table=["a"]).save(tmp_path / "r")
    done = cli(str(tmp_path / "r"), module="experiments.export")
    assert (tmp_path / "r" / "points.csv").read_text() == "a\n0.0\n", done.stderr


def test_hostile_texts_in_a_record_break_no_table() -> None:
    hostile = "<script>alert(1)</script>|x\n| y \x1b[2J `"
    record = Record(
        "loo_linear", {"word": hostile}, data="digits", paper={"word": {"value": hostile, "where": hostile}}
    )
    lines = markdown([record]).splitlines()
    assert len(lines) == 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}
    assert "<script" not in lines[2]
    assert "\x1b" not in paper_and_ours(record)
    assert "\\x1b" in paper_and_ours(record).replace("\n", "")


@pytest.mark.parametrize(
    "override",
    [
        "+model._target_=posix.system",
        "+experiment._target_=builtins.exec",
        "hydra.launcher._target_=posix.system",
        "hydra.sweeper._target_=posix.system",
        "+hydra.callbacks.evil._target_=posix.mkdir",
        "+hydra.job_logging.handlers.evil.()=posix.mkdir",
        "+data.loader={_target_:posix.system}",
    ],
)
def test_a_setting_that_names_code_is_refused(override: str, tmp_path: Path) -> None:
    done = cli("experiment=loo_linear", "tracking=none", override, f"output={tmp_path / 'o'}")
    assert done.returncode == 2, done.stderr
    assert "must not name code" in one_sentence(done)
    assert not (tmp_path / "o").exists()


def test_a_config_file_that_names_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "evil.yaml").write_text(
        "# @package _global_\nhydra:\n  callbacks:\n    evil:\n"
        f"      _target_: pathlib.Path.mkdir\n      self: {tmp_path / 'ran'}\n"
    )
    (tmp_path / "conf" / "data" / "injected.yaml").write_text("_target_: posix.system\nname: digits\n")
    for choice in ("+data@_global_=evil", "data=injected"):
        done = cli("--config-dir", str(tmp_path / "conf"), "experiment=loo_linear", "tracking=none", choice,
                   f"output={tmp_path / 'o'}")  # fmt: skip
        assert done.returncode == 2, done.stdout
        one_sentence(done)
        assert not (tmp_path / "ran").exists()


def test_paths_in_any_script(tmp_path: Path) -> None:
    folder = tmp_path / "Ünïcode 測試 'q' \"d\" $HOME %s {x}" / "ε=1"
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    done = cli("experiment=loo_linear", "experiment.removed=5", "tracking=none", f"output='{quoted}'")
    assert done.returncode == 0, done.stderr
    assert Record.load(folder).experiment == "loo_linear"
    assert str(folder) in done.stdout
