"""Label fixing: the authors' draws, rankings against brute force, processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from experiments.records import machine
from experiments.records.agreement import least_lead
from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.spam import figure, label_fixing
from experiments.spam.label_fixing import CLEAN, RANKINGS, LabelFixing
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from experiments.suite.parallel import processes as workers
from tests.experiments.suite.units import Odd
from tests.experiments.test_configs import composed
from tests.helpers import PATIENCE, ROOT, environment

SMALL = ["experiment=spam", "tracking=none", "experiment.checks=3"]
FILES = ("record.json", "arrays.npz", "spam.svg")


def problem(seed: int = 0) -> LabelFixing:
    """120 + 80 sparse counts of 12 words, noisy labels."""
    generator = np.random.RandomState(seed)
    X = generator.poisson(0.6, (200, 12)).astype(float)
    y = np.where(X @ generator.randn(12) + 0.5 * generator.randn(200) > 0, 1.0, -1.0)
    sparse = sp.csr_matrix(X)
    return LabelFixing(
        sparse[:120], y[:120], sparse[120:], y[120:], 1e-2, 1e-9, 6, 4, shown=5, shown_unit=(2, 1)
    )


def fitted(X: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    """θ̂ by scikit-learn."""
    C = 1 / (len(y) * l2)
    model = LogisticRegression(C=C, fit_intercept=False, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    return model.fit(X, y).coef_[0]


def test_the_draws_are_the_authors() -> None:
    for k, repeat in ((1, 0), (2, 0), (2, 39), (6, 7)):
        np.random.seed((k - 1) * 40 * 3 + repeat * 2)  # as in their script
        flips = np.random.choice(4137, size=206 * k, replace=False)
        np.testing.assert_array_equal(label_fixing.flipped(4137, k, repeat, 206), flips)
        for count in (206, 6 * 206):
            np.random.seed((k - 1) * 40 * 3 + repeat * 2 + 1)
            checked = np.random.choice(4137, size=count, replace=False)
            np.testing.assert_array_equal(label_fixing.drawn(4137, k, repeat, 6 * 206)[:count], checked)
    other = label_fixing.flipped(4137, 2, 0, 206, seed=1)
    assert not np.array_equal(other, label_fixing.flipped(4137, 2, 0, 206))
    label_fixing.drawn(10, 2, 0, 3, seed=2**32 - 1)  # any seed that a config may hold


def test_one_repeat_against_brute_force() -> None:
    """Every number of a repeat, from a dense Hessian and scikit-learn's fits."""
    work = problem()
    X, y, Z, z = work.X.toarray(), work.y, work.test_X.toarray(), work.test_y
    found = work((2, 1))
    generator = np.random.RandomState(120 + 2)
    wrong = generator.choice(120, 12, replace=False)
    labels = np.where(np.isin(np.arange(120), wrong), -y, y)
    theta = fitted(X, labels, work.l2)
    s = 1 / (1 + np.exp(labels * (X @ theta)))
    H = (X * (s * (1 - s))[:, None]).T @ X / 120 + work.l2 * np.eye(12)
    leverage = np.einsum("ij,ij->i", X, np.linalg.solve(H, X.T).T)
    scores = {"influence": s**2 * leverage, "authors": s * leverage, "loss": -np.log(1 - s)}
    orders = {name: np.argsort(-value) for name, value in scores.items()}
    orders["random"] = np.random.RandomState(120 + 3).permutation(120)
    assert found["flipped_accuracy"] == np.mean((Z @ theta > 0) == (z > 0))
    for row, name in enumerate(RANKINGS):
        for column in range(4):
            checked = orders[name][: 6 * (column + 1)]
            mended = labels.copy()
            mended[checked] = y[checked]
            assert found["fixed"][row, column] == len(set(checked) & set(wrong)), (name, column)
            refit = fitted(X, mended, work.l2)
            assert found["accuracy"][row, column] == np.mean((Z @ refit > 0) == (z > 0)), (name, column)
    assert found["gradient_norm"].shape == (1 + 4 * 4,)
    assert found["gradient_norm"].max() <= 1e-9
    np.testing.assert_array_equal(found["suspects"], orders["influence"][:5])
    np.testing.assert_allclose(
        found["suspects_influence"], scores["influence"][orders["influence"][:5]], rtol=1e-5
    )
    np.testing.assert_array_equal(found["suspects_flipped"], np.isin(orders["influence"][:5], wrong))
    assert "suspects" not in work((2, 0))


def test_self_influence_is_what_leaving_an_example_out_does_to_its_own_loss() -> None:
    work = problem(3)
    X, y = work.X.toarray(), work.y
    theta, _ = work.clean
    losses = work.refits.losses(theta, y)
    change = np.empty(120)
    for i in range(120):
        keep = np.arange(120) != i
        without = fitted(X[keep], y[keep], work.l2 * 120 / 119)  # the same L2 term beside a sum of losses
        change[i] = np.log1p(np.exp(-y[i] * (X[i] @ without))) - losses[i]
    predicted = work.refits.self_influence(theta, y) / 120
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, change)]
    assert np.corrcoef(*ranks)[0, 1] > 0.99


def test_an_empty_mail_is_ham() -> None:
    work = problem()
    work.test_X = sp.csr_matrix((3, 12))
    work.test_y = np.array([1.0, -1.0, -1.0])
    assert work(CLEAN)["accuracy"] == pytest.approx(2 / 3)


def test_least_lead() -> None:
    ahead = np.array([[3.0, 5.0], [4.0, 5.5], [5.0, 6.5]])
    behind = np.array([[1.0, 5.0], [1.5, 5.0], [2.0, 5.0]])
    difference = ahead - behind
    expected = difference.mean(0) / (difference.std(0, ddof=1) / 3**0.5)
    assert least_lead(ahead, behind) == pytest.approx(expected.min())
    assert least_lead(behind, ahead) < 0
    assert np.isnan(least_lead(ahead[:1], behind[:1]))


def test_units_are_spread_over_processes_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = dict(workers.spread(Odd(), [1, 2, "threads", 4, 5], 2))
    threads, process = found.pop("threads")
    assert found == {1: 1, 2: 4, 4: 16, 5: 25}
    assert threads == "1"
    assert process != os.getpid()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert list(workers.spread(Odd(), [], 2)) == []
    assert machine.workers(None, "processes", least=0) >= 1
    with pytest.raises(ConfigError, match="workers=-1"):
        machine.workers(-1, "processes", least=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("killed", "killed by signal 9.*memory"),
        ("exit", "ended with code 3:"),
        ("raises", "this unit is bad"),
    ],
)
def test_what_others_had_begun_is_given_out_before_a_failure_is_raised(bad: str, message: str) -> None:
    found = []

    def collect() -> None:
        for unit, _ in workers.spread(Odd(), [3, bad, 5, 6, 7], 2):
            found.append(unit)

    with pytest.raises(UserError, match=message):
        collect()
    assert 3 in found
    assert 7 not in found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run leaves, without other processes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    execute(composed(*SMALL, "experiment.repeats=40", f"output={folder}"))
    return {name: (folder / name).read_bytes() for name in FILES}


def started(folder: Path, count: int) -> subprocess.Popen[str]:
    """That run with ``count`` workers, in a session of its own, as in a terminal of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *SMALL, "experiment.repeats=40", f"experiment.workers={count}",
         f"output={folder}"],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def units(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("journal/*/*.npz")}


def more(job: subprocess.Popen[str], folder: Path, count: int) -> set[str]:
    """Waits for ``count`` more units on disk."""
    before, deadline = units(folder), time.monotonic() + PATIENCE
    while len(units(folder)) < len(before) + count and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert job.poll() is None, "the job had already ended"
    return units(folder)


def workers_of(pid: int) -> list[int]:
    """Its processes that serve units (not multiprocessing's tracker)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not reaped has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def test_killed_interrupted_a_worker_lost_and_resumed_give_the_same_bytes(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    """kill -9; then one of its workers killed; then Ctrl-C to all of them; then to the end."""
    job = started(tmp_path, 2)
    more(job, tmp_path, 3)
    orphans = workers_of(job.pid)
    assert len(orphans) == 2
    job.kill()
    job.communicate(timeout=PATIENCE)
    done = units(tmp_path)
    deadline = time.monotonic() + PATIENCE
    while any(map(alive, orphans)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, orphans))

    job = started(tmp_path, 1)
    more(job, tmp_path, 3)
    os.kill(workers_of(job.pid)[0], signal.SIGKILL)
    _, error = job.communicate(timeout=PATIENCE)
    assert job.returncode == 1, error
    lines = [text for text in error.splitlines() if text]
    assert len(lines) == 1, error
    assert lines[0].startswith("error: a worker process was killed by signal 9")
    assert done < units(tmp_path)
    done = units(tmp_path)

    job = started(tmp_path, 1)
    more(job, tmp_path, 3)
    os.killpg(job.pid, signal.SIGINT)
    _, error = job.communicate(timeout=PATIENCE)
    assert job.returncode == 130, error
    assert "resumes here" in error
    assert "Traceback" not in error
    assert done < units(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "record.json").exists()

    (journal,) = tmp_path.glob("journal/repeats-*")
    entries = (journal / "index.jsonl").read_text().splitlines()  # a part not named there was in flight
    kept = {
        file: (journal / file).stat().st_mtime_ns for file in (json.loads(entry)["file"] for entry in entries)
    }
    execute(composed(*SMALL, "experiment.repeats=40", f"output={tmp_path}"))
    assert {file: (journal / file).stat().st_mtime_ns for file in kept} == kept  # nothing was done again
    assert len(kept) >= 6
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == whole


def test_the_record_of_the_embedded_run(whole: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    record = Record.load(tmp_path)
    assert record.arrays["fixed_influence"].shape == (2, 40, 3)
    assert record.metrics["step"] == 22
    k2 = record.metrics["k2"]
    fixed = record.arrays["fixed_loss"][1] / 44
    np.testing.assert_allclose(k2["found"]["loss"], fixed.mean(0))
    np.testing.assert_allclose(k2["found_error"]["loss"], fixed.std(0, ddof=1) / 40**0.5)
    assert record.metrics["largest_gradient_norm"] == max(
        item.get("largest_gradient_norm", item.get("gradient_norm")) for item in record.certificates
    )
    assert record.metrics["largest_gradient_norm"] <= 1e-8
    assert len(record.arrays["index"]) == 20


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=digits", "10 classes .* between two classes"),
        ("model=svm", "choose model=logistic"),
        ("experiment.repeats=0", "experiment.repeats=0: give at least 1"),
        ("experiment.flips=[0,1]", "at least 1"),
        ("experiment.flips=[]", "at least 1"),
        ("experiment.flips=[2,2]", "each number once"),
        ("experiment.step=0.4", "a share of the training set"),
        ("experiment.step=0.001", "is less than one: raise it"),
        ("experiment.tolerance=0", "give more than 0"),
        ("experiment.workers=-2", "experiment.workers=-2"),
    ],
)
def test_wrong_settings(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JobFailed):
        execute(composed(*SMALL, override, f"output={tmp_path / 'o'}"))
    (said,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert re.search(message, said)
    assert not (tmp_path / "o" / "record.json").exists()


def test_subjects_are_drawn_as_they_are(tmp_path: Path) -> None:
    subjects = ["$\\frac{1}{0}$ cash $$", "<script>alert(1)</script>", "", "re : 100 % & more"]
    arrays = {"index": np.arange(4), "given": np.array(["ham"] * 4), "flipped": np.array([True, False] * 2)}
    arrays |= {"self_influence": np.ones(4), "first_line": np.array(subjects)}
    record = Record("spam", {"n_train": 40, "k2": {"flipped": 4}}, arrays)
    figure.suspects(record, tmp_path / "list", "k2")
    drawn = (tmp_path / "list.svg").read_text()
    assert "<script" not in drawn
    assert "&lt;script&gt;" in drawn
    assert "(empty)" in drawn
    assert "cash $$" in drawn
