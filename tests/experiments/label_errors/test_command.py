"""The command and the function, as a new user meets them: one line, no edits of the file."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.label_errors import find_label_errors
from experiments.label_errors.__main__ import COMMAND, folder_of
from experiments.label_errors.output import columns, csv_text, table_lines, wrapped
from experiments.label_errors.page import html, page_data
from experiments.label_errors.settings import settings
from experiments.records.csv import cell
from experiments.records.errors import ConfigError, UserError
from tests.helpers import cli, one_sentence

WORDS = {
    "refund": "money back card charge",
    "delivery": "late parcel courier box",
    "praise": "great thanks love happy",
}


def tickets(n: int = 240, flips: int = 12) -> tuple[pd.DataFrame, np.ndarray]:
    """Three classes with text, numbers, dates and holes, and the rows (from 0) of the wrong labels."""
    generator = np.random.default_rng(0)
    kinds = list(WORDS)
    true = generator.integers(0, 3, n)
    wrong = generator.choice(n, flips, replace=False)
    given = true.copy()
    given[wrong] = (true[wrong] + generator.integers(1, 3, flips)) % 3
    texts = [
        " ".join(
            [*generator.choice(WORDS[kinds[k]].split(), 4), *generator.choice(["the", "my", "and", "it"], 4)]
        )
        for k in true
    ]
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(generator.integers(0, 366, n), unit="D")
    return pd.DataFrame(
        {
            "ticket": [f"T-{i:05d}" for i in range(n)],
            "opened": np.where(generator.random(n) < 0.05, "", days.strftime("%d.%m.%Y")),
            "amount": [
                f"{x:.2f}".replace(".", ",") if x > 5 else "n/a"
                for x in generator.lognormal(3 + (true == 0), 1)
            ],
            "stars": np.where(generator.random(n) < 0.1, "", generator.integers(1, 6, n).astype(str)),
            "message": texts,
            "note": ["=1+1", "<script>alert(1)</script>", "ok"] * (n // 3),
            "kind": np.array(kinds)[given],
        }
    ), wrong


def test_one_line_from_a_spreadsheets_file_to_the_page(tmp_path: Path) -> None:
    frame, wrong = tickets()
    path = tmp_path / "my tickets.csv"
    path.write_text(frame.to_csv(index=False, sep=";"), encoding="cp1252")
    done = cli("my tickets.csv", "label=kind", module="experiments.label_errors", cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert max(columns(line) for line in done.stdout.splitlines()) <= 80
    assert "semicolons" in done.stdout
    assert "decimal commas" in done.stdout
    assert re.search(r"Missing cells: stars \d+, \w+ \d+, \w+ \d+\.", done.stdout)
    assert re.search(r"About \d+ wrong labels \(90 % interval \d+ to \d+\)", done.stdout)
    folder = tmp_path / "my tickets-label-errors"
    with open(folder / "suspects.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 240
    first = [int(row["line"]) - 2 for row in rows[:12]]
    assert np.isin(first, wrong).sum() >= 10
    assert {row["note"] for row in rows} == {"'=1+1", "<script>alert(1)</script>", "ok"}
    losses = [float(row["held_out_loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert all(row["given"] == row["kind"] != row["proposed"] for row in rows)
    report = json.loads((folder / "report.json").read_text())
    kinds = {column["name"]: column["read_as"] for column in report["columns"]}
    assert kinds == {
        "ticket": "id", "opened": "date", "amount": "number", "stars": "number",
        "message": "text", "note": "category",
    }  # fmt: skip
    low, high = report["summary"]["expected_errors_interval_90"]
    assert low <= 12 <= high
    assert "T-00001" not in (folder / "report.json").read_text()


def test_the_function_gives_the_same_and_twice_the_same() -> None:
    frame, wrong = tickets(120, 6)
    found = find_label_errors(frame, label="kind", model="linear")
    assert list(found.suspects["row"][:3]) != [1, 2, 3]
    assert np.isin(found.suspects["row"][:6] - 1, wrong).sum() >= 4
    again = find_label_errors(frame, label="kind", model="linear")
    pd.testing.assert_frame_equal(found.suspects, again.suspects)
    assert found.labels.kept.tolist() == list(range(120))
    assert frame.equals(tickets(120, 6)[0])  # the user's frame is untouched


def test_every_setting_changes_the_result_or_is_refused() -> None:
    frame, _ = tickets(120, 6)
    frame["w"] = np.random.default_rng(0).uniform(0.1, 3, 120)
    frame["who"] = [f"a{i % 30}" for i in range(120)]
    base = find_label_errors(frame, label="kind", model="linear", ignore=["w", "who"]).suspects
    for more in (
        {"l2": 0.3},
        {"rank": "self_influence"},
        {"weight": "w", "ignore": ["who"]},
        {"group": "who", "ignore": ["w"]},
        {"text": ["note"]},
        {"categories": ["stars"]},
        {"words": 3},
        {"missing": ["1"]},
    ):
        options = {"label": "kind", "model": "linear", "ignore": ["w", "who"]} | more
        other = find_label_errors(frame, **options).suspects
        assert not other["held_out_loss"].equals(base["held_out_loss"]) or not other["row"].equals(
            base["row"]
        ), more
    for wrong, message in (
        ({"lable": "kind"}, "no setting 'lable': did you mean label"),
        ({"rank": "best"}, "rank=best: choose from held_loss"),
        ({"l2": -1}, "l2=-1.0: it must be above 0"),
        ({"l2": "much"}, "l2=much: give a number"),
        ({"rows": 0}, "must be 1 or more"),
        ({"join": "maybe"}, "join=maybe: give true or false"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            settings(**wrong)
    with pytest.raises(UserError, match="group=who has one group only"):
        find_label_errors(frame.assign(who="x"), label="kind", group="who")
    with pytest.raises(UserError, match="weight=kind is the label column"):
        find_label_errors(frame, label="kind", weight="kind")


def test_numbers_as_labels() -> None:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"size": generator.uniform(30, 200, 150), "city": generator.choice(["a", "b"], 150)})
    frame["price"] = 1000 * frame["size"] + 20_000 * (frame["city"] == "b") + generator.normal(0, 3000, 150)
    frame.loc[7, "price"] *= 10
    found = find_label_errors(frame, label="price")
    assert found.summary["task"] == "numbers"
    assert found.suspects["row"][0] == 8
    assert abs(found.suspects["proposed"][0] - frame.loc[7, "price"] / 10) < 20_000
    assert found.suspects["deviations"][0] < -20
    assert "outlying targets" in html(found) or page_data(found)["task"] == "numbers"
    assert any("deviations" in line for line in table_lines(found, 80))


def test_the_page_holds_the_users_texts_as_data_only() -> None:
    frame, _ = tickets(60, 3)
    frame["message"] += " </script><img src=x onerror=alert(1)> \u2028 ‮"
    found = find_label_errors(frame, label="kind", model="linear")
    page = html(found)
    assert page.count("</script>") == 2
    assert "<img" not in page
    (raw,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    data = json.loads(raw)
    assert data["cells"][data["own"].index("message")][0].endswith("\u2028 ‮")
    assert "http" not in re.sub(r"http-equiv", "", page.split('id="data"')[0])  # nothing is loaded
    first = data["suspects"][0]
    assert len(first["a"]) == 5
    assert first["i"] not in [place for place, _ in first["a"]]
    assert [data["classes"][g] for g in data["given"]][first["i"]] == found.suspects["given"][0]
    assert len(page_data(find_label_errors(frame, label="kind", model="linear", rows=7))["suspects"]) == 7


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.csv"], 1, "none.csv is not a file; give the CSV"),
        (["t.csv", "lable=a"], 2, "no setting 'lable': did you mean label?"),
        (["t.csv", "rank=best"], 2, "rank=best"),
        (["t.csv", "label=c"], 1, "no column 'c'; it has 'a', 'b': set label="),
        (["t.csv", "label=b", "separator=and"], 2, "separator=and: give comma"),
        ([], 2, "FILE is missing"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "\n".join(f"{i / 7},{'xy'[i % 2]}" for i in range(20)))
    done = cli(*arguments, module="experiments.label_errors", cwd=tmp_path, timeout=600)
    assert done.returncode == code, done.stderr
    assert message in one_sentence(done)
    assert not list(tmp_path.glob("*-label-errors"))


def test_help_names_every_setting_and_imports_no_torch(tmp_path: Path) -> None:
    text = COMMAND.help()
    for name in vars(settings()):
        assert f"{name}=" in text
    assert folder_of("a/b/my file.csv.gz") == Path("my file-label-errors")


def test_the_terminals_lines_are_never_too_wide() -> None:
    text = "- " + "列" * 100 + " and " + "x" * 200
    lines = wrapped(text, 80)
    assert max(columns(line) for line in lines) <= 80
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_only_odd_cells_are_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ["-1.5", "-2", "-1,5", "-3e-7", "plain", "-1+2", "=1", "", "-x", "\uff1d1", "-1.5\n"]
    slow: list[str] = []

    def counted(value: str) -> str:
        slow.append(value)
        return cell(value)

    monkeypatch.setattr("experiments.label_errors.output.cell", counted)
    text = csv_text(pd.DataFrame({"c": pd.array(cells, dtype="str")}))
    assert [row[0] for row in csv.reader(text.splitlines(keepends=True))][1:] == [cell(x) for x in cells]
    assert slow == ["c", "-1+2", "=1", "", "-x", "\uff1d1", "-1.5\n"]  # the header first


def test_suspects_are_written_as_pandas_writes_harmless_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.label_errors.output._CHUNK", 3)
    texts = ["plain", "a,b", 'say "x"', "two\nlines", "=1+1", "", "-1,5", "-1.5", "ä, ö", None, "x\ry", "@x"]
    n = len(texts)
    frame = pd.DataFrame(
        {
            "rank": np.arange(1, n + 1),
            "score": [1e-9, np.nan, 1e22, -0.0, 1 / 3, np.inf, 5.0, 1e-5, 123456789.125, 0.1, -2.5, 7.0],
            "single": np.linspace(0, 1, n, dtype=np.float32),
            "yes": np.arange(n) % 2 == 0,
            "gaps": pd.array([None, *range(1, n)], dtype="Int64"),
            "text, quoted": pd.array(texts, dtype="str"),
            "objects": np.array([1, "=2", None, 2.5, "x", True] * 2, dtype=object),
        }
    )
    plain = frame.copy()
    for name in ("text, quoted", "objects"):
        plain[name] = [cell(text) for text in frame[name].astype("str").fillna("")]
    assert csv_text(frame) == plain.to_csv(index=False, lineterminator="\r\n")
    assert csv_text(frame[["gaps"]].iloc[:2]) == 'gaps\r\n""\r\n1\r\n'
