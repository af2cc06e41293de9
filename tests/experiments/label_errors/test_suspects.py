"""Wrong labels in a table of one's own: the list, text columns, what is wrong with a table."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import OverrideParseException
from sklearn.datasets import load_breast_cancer

from experiments.records.csv import line
from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.explaining import explain
from experiments.suite.job import execute
from tests.experiments.test_configs import composed
from tests.helpers import cli


def own_table(folder: Path, wrong: int = 50, note: str = "ok") -> tuple[str, np.ndarray]:
    """500 tumours as a user's CSV with ids and notes, and the rows (from 1) of the ``wrong`` wrong labels."""
    bunch = load_breast_cancer()
    rows = np.random.RandomState(0).choice(500, wrong, replace=False)
    y = bunch.target[:500].copy()
    y[rows] = 1 - y[rows]
    with open(folder / "my table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", *bunch.feature_names, "rank", "diagnosis"])
        for i in range(500):
            label = bunch.target_names[y[i]]
            writer.writerow([f"C-{i:04d}", *bunch.data[i], ["=1+1", "a\rb", note][i % 3], label])
    return str(folder / "my table.csv"), rows + 1


def test_a_users_own_table_as_a_new_user_would(tmp_path: Path) -> None:
    """Of the first tenth most are wrong; the list is where it says, harmless to open."""
    _, wrong = own_table(tmp_path)
    settings = [
        "experiment=spam",
        "data=csv",
        "data.path='my table.csv'",
        "data.label=diagnosis",
        "data.id=case",
    ]
    done = cli(*settings, "tracking=none", "output=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "table: out/suspects.csv" in done.stdout
    assert "paper" not in done.stdout
    with open(tmp_path / "out" / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 500
    first = [int(row["row"]) for row in rows[:50]]
    assert np.isin(first, wrong).sum() >= 43
    assert [row["rank_"] for row in rows[:2]] == ["1", "2"]  # the user has a column of that name
    for row in rows:
        i = int(row["row"]) - 1
        assert row["case"] == f"C-{i:04d}"
        assert row["rank"] == ["'=1+1", "a\rb", "ok"][i % 3]
        assert row["given"] == row["diagnosis"]
        assert row["mean radius"] == str(load_breast_cancer().data[i][0])
    values = [float(row["held_out_loss"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert sorted(int(row["loss_rank"]) for row in rows) == list(range(1, 501))
    assert sorted(int(row["self_influence_rank"]) for row in rows) == list(range(1, 501))
    certain = [float(row["probability_of_given"]) >= 0.5 for row in rows]
    assert {(row["given"], row["proposed"]) for row in rows} == {
        ("benign", "malignant"),
        ("malignant", "benign"),
    }
    record = Record.load(tmp_path / "out")
    assert record.metrics["classes"] == {
        name: sum(row["given"] == name for row in rows) for name in ("benign", "malignant")
    }
    assert record.metrics["model_disagrees"] == certain.count(False)
    assert "C-0001" not in (tmp_path / "out" / "record.json").read_text()
    assert not any(value.dtype.kind in "OU" for value in record.arrays.values())  # none of the user's texts
    assert not record.paper


def test_text_columns_and_a_test_part(tmp_path: Path) -> None:
    generator = np.random.RandomState(0)
    words = {"ham": ["meeting", "gas", "deal"], "spam": ["cheap", "pills", "win"]}
    lines = ["id;subject;label"]
    for i in range(80):
        label = ("ham", "spam")[i % 2]
        said = " ".join(generator.choice(words[label] + ["the", "re"], 6))
        lines.append(f"m{i};{said};{('ham', 'spam')[(i + (i == 7)) % 2]}")
    path = tmp_path / "mails.csv"
    path.write_text("\n".join(lines))
    own = [
        "experiment=spam",
        "tracking=none",
        "data=csv",
        f"data.path={path}",
        "data.separator=semicolon",
        "data.id=id",
    ]
    folder = execute(composed(*own, "data.text=[subject]", f"output={tmp_path / 'o'}"))
    with open(folder / "suspects.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["id"], first["given"], first["proposed"]) == ("m7", "ham", "spam")
    folder = execute(composed(*own, "data.test_fraction=0.25", f"output={tmp_path / 'p'}"))
    assert Record.load(folder).metrics["test_accuracy"] >= 0.9
    assert len((folder / "suspects.csv").read_text().splitlines()) == 61
    # Flips may be planted in a table of one's own as well, to see what would be found there.
    planted = [
        "experiment.plant=true",
        "data.test_fraction=0.25",
        "experiment.flips=[1]",
        "experiment.repeats=2",
    ]
    folder = execute(composed(*own, *planted, "experiment.workers=0", f"output={tmp_path / 'q'}"))
    assert Record.load(folder).metrics["k1"]["flipped"] == 3


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,label\n1,x\n2,x\n3,x\n4,x", [], "one class only, 'x'"),
        ("a,kind\n1,x\n2,y\n3,x\n4,y", [], "no column called label: set data.label= to one of 'a', 'kind'"),
        (
            "a,label\n1,x\n2,y\n3,z\n4,x\n5,y\n6,z",
            ["experiment.plant=true"],
            "3 classes (x, y, z). Labels are flipped between two classes: keep",
        ),
        ("a,label\n1,x\n2,y\n3,x\n4,y", ["data.id=b"], "no column 'b'; it has 'a', 'label': set data.id="),
        ("a,label\n1,x\n2,y\n3,x\n4,y", ["data.id=a"], "no column is left to learn from"),
        ("a,label\n1,x\n2,y\n3,x\n4,y", ["data.separator=ab"], "give comma, semicolon, tab"),
        ("a,label\n1,x\n2,y\n3,x\n4,y", ["experiment.plant=true"], "set data.test_fraction=0.2"),
        ("a,label\n1,x\n2,y\n3,x\n4,y", ["model.l2=0"], "model.l2=0.0: give more than 0"),
        (None, [], "set data.path=FILE.csv"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_one_sentence(
    text: str | None, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = []
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
        path = [f"data.path={tmp_path / 't.csv'}"]
    with pytest.raises(JobFailed):
        execute(
            composed(
                "experiment=spam", "data=csv", "tracking=none", *path, *options, f"output={tmp_path / 'o'}"
            )
        )
    (said,) = [text for text in capsys.readouterr().err.splitlines() if text.strip()]
    assert said.startswith("error: ")
    assert message in said
    assert not list((tmp_path / "o").glob("*.csv"))


@pytest.mark.parametrize("name", ["table (1).csv", "it's.csv", "a{b.csv", "a;b.csv"])
def test_a_path_that_hydra_cannot_read_is_shown_as_it_can(name: str) -> None:
    with pytest.raises(OverrideParseException) as raised:
        composed("experiment=spam", "data=csv", f"data.path={name}")
    said = explain(raised.value)
    assert said.startswith(f"data.path={name} cannot be read")
    (remedy,) = re.findall(r'"(data\.path=.*)"', said)
    assert composed("experiment=spam", "data=csv", remedy).data.path == name


def test_a_line_of_a_list_is_read_back_as_it_was() -> None:
    cells = ["a,b", 'say "x"', "one\rtwo", "three\nfour\r\n", "", "-1.5", "ü"]
    assert list(csv.reader(io.StringIO(line(cells), newline=""))) == [cells]
    assert line([""]) == '""\n'
    assert line(["-1+2", "=1", 0.5, np.int64(3), True]) == "'-1+2,'=1,0.5,3,True\n"
