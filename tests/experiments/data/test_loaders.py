"""Every data set under `load`: the embedded ones, parsers on small files, the real ones from the mirror."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from PIL import Image

from experiments.data import NAMES, DataError, Dataset, Split, dogfish, enron, load, mnist, readmission
from experiments.data.dataset import sha256_array
from experiments.data.errors import BadData, FileMissing
from experiments.data.fetch import Fetched, obtain
from experiments.data.prepare import prepared
from experiments.data.readmission_schema import CHILDREN, LEVELS, feature_names
from tests.helpers import mirror

EMBEDDED = ("digits", "digit_pairs", "breast_cancer", "readmission_synthetic")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_are_whole_and_the_same_each_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFLUENCE_CACHE", "/nonexistent")
    data, again = load(name), load(name)
    assert data.manifest == again.manifest
    np.testing.assert_array_equal(data.train.X, again.train.X)
    assert set(np.unique(data.train.y)) == set(range(len(data.classes)))
    assert data.manifest["arrays"]["train/X"] == sha256_array(data.train.X)
    if name != "readmission_synthetic":
        both = np.concatenate([data.train.index, data.test.index])
        assert len(np.unique(both)) == len(both)


def test_digits_follow_the_proportions_of_mnist() -> None:
    data = load("digits")
    assert data.validation is not None
    assert [len(part) for part in (data.validation, data.train, data.test)] == [128, 1413, 256]
    index = np.concatenate([data.validation.index, data.train.index, data.test.index])
    np.testing.assert_array_equal(index, np.arange(1797))
    assert data.train.X.min() == 0
    assert data.train.X.max() == 1
    pair = load("digits", classes=[7, 1])
    assert pair.classes == ("7", "1")
    whole = data.train.y[np.isin(data.train.y, [1, 7])]
    np.testing.assert_array_equal(pair.train.y, (whole == 1).astype(int))


def test_digit_pairs_are_images_of_two_classes() -> None:
    data = load("digit_pairs", classes=[1, 7], scale=3, train_per_class=20, test_per_class=5)
    assert data.train.X.shape == (40, 24, 24, 3)
    assert data.train.X.dtype == np.uint8
    assert data.image_shape == (24, 24, 3)
    assert data.train.X.max() == 255
    np.testing.assert_array_equal(np.bincount(data.test.y), [5, 5])


def test_breast_cancer_is_standardised_by_the_training_part() -> None:
    data = load("breast_cancer")
    np.testing.assert_allclose(data.train.X[:, :-1].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(data.train.X[:, :-1].std(0), 1)
    assert data.feature_names is not None
    assert data.feature_names[-1] == "intercept"
    assert load("breast_cancer", intercept=False).train.X.shape == (455, 30)


def test_synthetic_cohort_has_the_schema_and_the_planted_mismatch() -> None:
    data = load("readmission_synthetic", n_train=400, n_test=500)
    assert data.feature_names == feature_names()
    assert data.train.X.shape == (400, 127)
    child = data.feature_names.index(CHILDREN)
    train, test = data.train.X[:, child] == 1, data.test.X[:, child] == 1
    assert (train.sum(), data.train.y[train].sum()) == (24, 3)
    assert (test.sum(), data.test.y[test].sum()) == (137, 0)
    assert data.train.y.mean() == 0.5
    ages = [i for i, name in enumerate(data.feature_names) if name.startswith("age=")]
    np.testing.assert_array_equal(data.train.X[:, ages].sum(1), 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "choose one of mnist, digits"),
        ("digits", {"class": [1]}, "has no option class; it takes classes"),
        ("digits", {"classes": [1]}, "at least two different digits"),
        ("digits", {"classes": [1, 12]}, r"0\.\.9"),
        ("mnist", {"classes": [3, 3]}, "at least two different digits"),
        ("digit_pairs", {"classes": [1, 1]}, "two different digits"),
        ("digit_pairs", {"scale": 0}, "must be at least 1"),
        ("digit_pairs", {"train_per_class": 500}, "fewer than 500"),
        ("breast_cancer", {"test_fraction": 1.0}, "between 0 and 1"),
        ("readmission_synthetic", {"n_train": 11}, "must be even"),
        ("dogfish", {"dog": ["n1"], "fish": ["n1"]}, "both dog and fish"),
        ("dogfish", {"size": 0}, "must be at least 1"),
        ("dogfish", {"folder": "/nonexistent"}, "is not a folder"),
    ],
)
def test_wrong_names_and_options(name: str, options: dict, message: str, cache: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(name, data_dir=cache, **options)


def test_every_name_has_a_config() -> None:
    folder = Path(__file__).resolve().parents[3] / "conf" / "data"
    assert {path.stem for path in folder.glob("*.yaml")} == set(NAMES)


def split(X: object, y: list[int]) -> Split:
    return Split(X, np.array(y, dtype=np.int64), np.arange(len(y)))


GOOD = np.eye(3)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (split(np.array([[1.0], [np.nan], [0.0]]), [0, 1, 0]), "row 1 holds a NaN or infinite"),
        (split(np.array([[1.0], [0.0], [-np.inf]]), [0, 1, 0]), "row 2 holds a NaN or infinite"),
        (split(sp.csr_matrix([[0.0, 1], [np.inf, 0], [1, 1]]), [0, 1, 0]), "row 1 holds a NaN or infinite"),
        (split(GOOD, [0, 1, 2]), r"row 2 has label 2; labels must lie in 0\.\.1"),
        (split(GOOD, [0, -1, 1]), "row 1 has label -1"),
        (split(GOOD, [0, 0, 0]), "no training example of class b"),
        (split(GOOD[:1], [0]), "1 training examples; at least 2"),
        (split(GOOD, [0, 1]), "all must agree"),
    ],
)
def test_bad_arrays_are_named(train: Split, message: str) -> None:
    with pytest.raises(BadData, match=message):
        Dataset("small", train, split(GOOD[:2], [0, 1]), None, ("a", "b"), None, {})


def test_hash_tells_arrays_apart_by_value_type_shape_and_boundaries() -> None:
    arrays = [np.zeros(4), np.zeros((2, 2)), np.zeros(4, dtype=np.float32), np.array([0.0, 0, 0, 1])]
    texts = [[b"ab", b"c"], [b"a", b"bc"], ["ab", "c", ""]]
    sparse = [sp.csr_matrix(np.eye(2)), sp.csr_matrix(np.eye(2)[::-1])]
    hashes = [sha256_array(item) for item in (*arrays, *texts, *sparse)]
    assert len(set(hashes)) == len(hashes)
    assert sha256_array(np.array(["ab", "c"])) == sha256_array([b"ab", b"c"])
    assert sha256_array(np.arange(6).reshape(2, 3).T) == sha256_array(np.arange(6).reshape(2, 3).T.copy())


def readmission_csv(**changes: str) -> str:
    """Two rows of the UCI file's columns that are used."""
    row = dict.fromkeys(("time_in_hospital", "num_lab_procedures", "num_procedures", "num_medications"), "3")
    row |= dict.fromkeys(
        ("number_outpatient", "number_emergency", "number_inpatient", "number_diagnoses"), "1"
    )
    row |= {column: next(iter(levels)) for column, levels in LEVELS.items()}
    rows = [row | {"readmitted": "NO"}, row | {"max_glu_serum": "None", "readmitted": "<30"} | changes]
    return "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])


def test_readmission_parser_keeps_none_and_drops_first_of_two() -> None:
    columns = readmission.parse_csv(readmission_csv(race="?").encode(), n_rows=2)
    names = feature_names()[8:]
    assert columns["counts"].shape == (2, 8)
    assert columns["indicators"].shape == (2, 119)
    second = {name for name, value in zip(names, columns["indicators"][1], strict=True) if value}
    assert {"race=?", "max_glu_serum=None", CHILDREN, "examide=No"} <= second
    assert "change=Ch" not in names
    assert "change=No" in names
    np.testing.assert_array_equal(columns["readmitted"], [0, 2])


def test_a_prepared_cohort_is_what_the_parser_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, content = readmission.parse_csv, readmission_csv(race="?").encode()
    expected = parse(content, n_rows=2)
    monkeypatch.setattr(readmission, "parse_csv", lambda whole: parse(whole, n_rows=2))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("diabetic_data.csv", content)
    sources = {"archive": Fetched(tmp_path / "two.zip", "0" * 64, "test")}
    for _ in range(2):  # built, then read
        arrays, _ = prepared(
            readmission.InfluenceReadmission, lambda: sources, mirror=None, cache=tmp_path / "cache"
        )
        assert set(arrays["full"]) == {"index", *expected}
        for name, column in expected.items():
            np.testing.assert_array_equal(arrays["full"][name], column)
            assert arrays["full"][name].dtype == column.dtype


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (readmission_csv().replace(",age,", ",years,"), "column age is missing"),
        (readmission_csv(race="Martian"), "row 1 has the unknown category 'Martian' in column race"),
        (readmission_csv(number_inpatient="many"), "row 1 has 'many' in number_inpatient"),
        (readmission_csv(number_inpatient="1.5"), "a small whole number"),
        (readmission_csv(readmitted="perhaps"), "readmitted='perhaps'"),
        (readmission_csv() + "\n" + readmission_csv().split("\n")[1], "3 rows, 2 expected"),
    ],
)
def test_readmission_parser_names_what_is_wrong(content: str, message: str) -> None:
    with pytest.raises(BadData, match=message):
        readmission.parse_csv(content.encode(), n_rows=2)


def test_mails_are_latin_1_and_empty_ones_stay(tmp_path: Path) -> None:
    mails = {
        "enron1/Summary.txt": b"no mail",
        "enron1/ham/b.txt": b"",
        "enron1/ham/a.txt": b"caf\xe9 na\xefve",
    }
    mails["enron1/spam/c.txt"] = b"\xff\xfe\x00"
    with tarfile.open(tmp_path / "mails.tar.gz", "w:gz") as archive:
        for name, content in mails.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = enron.read_mails(tmp_path / "mails.tar.gz", {"ham": 2, "spam": 1})
    assert [name for name, _, _ in found] == ["ham/a.txt", "ham/b.txt", "spam/c.txt"]
    assert found[0][2].decode("latin-1") == "café naïve"
    with pytest.raises(BadData, match="'ham': 2, 'spam': 1"):
        enron.read_mails(tmp_path / "mails.tar.gz")
    assert enron.first_line("Subject: hi\x07 there\r\nbody") == "hi there"
    assert enron.first_line("") == ""


def photograph(mode: str = "RGB", size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 100 if mode in "LP" else None).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(("mode", "form"), [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG")])
def test_images_that_are_not_rgb_are_converted(mode: str, form: str) -> None:
    assert dogfish.decode(photograph(mode, form=form), "x", 16).shape == (16, 16, 3)


def test_decode_resizes_the_shorter_side_and_crops_the_middle() -> None:
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 15:25] = 255
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    assert dogfish.decode(buffer.getvalue(), "x", 10).min() == 255
    np.testing.assert_array_equal(dogfish.decode(buffer.getvalue(), "x", 20)[:, 2:-2], 255)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", photograph()[:60], photograph("L", (9000, 9000)), photograph(form="JPEG")[:-400]],
)
def test_corrupt_images_are_named(content: bytes) -> None:
    with pytest.raises(BadData, match="image folder/x"):
        dogfish.decode(content, "folder/x.png", 16)


def test_an_imagenet_folder_of_the_users_own(tmp_path: Path, cache: Path) -> None:
    for synset, n in (("n1", 3), ("n2", 3), ("n3", 6)):
        for i in range(n):
            path = tmp_path / "photos" / synset / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(size=(20 + i, 18)))
    options = {"folder": str(tmp_path / "photos"), "dog": ["n1", "n2"], "fish": ["n3"], "size": 16}
    options |= {"train_per_class": 4, "test_per_class": 2}
    data = load("dogfish", data_dir=cache, **options)
    assert data.train.X.shape == (8, 16, 16, 3)
    dogs = sorted(name for name, y in zip(data.train.extra["name"], data.train.y, strict=True) if y == 0)
    assert dogs == ["photos/n1/0.png", "photos/n1/1.png", "photos/n1/2.png", "photos/n2/0.png"]
    with pytest.raises(BadData, match=r"5 \+ 2 are needed"):
        load("dogfish", data_dir=cache, **options | {"train_per_class": 5})
    (tmp_path / "photos/n1/0.png").write_bytes(b"broken")
    with pytest.raises(BadData, match=r"image photos/n1/0.* cannot be read"):
        load("dogfish", data_dir=cache, **options)


def test_no_mirror_and_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.delenv("INFLUENCE_MIRROR", raising=False)
    for name in ("mnist", "readmission", "enron", "dogfish"):
        with pytest.raises(FileMissing, match=r"no network.*data\.mirror=DIR"):
            load(name, data_dir=tmp_path)


def directly(builder_class: Any, sources: Any, *, mirror: Any, cache: Any, **_: Any) -> tuple[dict, dict]:
    """As ``prepared``, but the arrays come from the builder's examples without a copy on disk.

    TFDS writes and reads 170,000 examples one by one, which takes minutes: the slow tests do so, and
    test_prepare.py for a few.
    """
    files = {key: obtain(source, mirror=mirror, cache=cache) for key, source in sources.items()}
    builder = builder_class(data_dir=str(cache / "directly"), file_format="array_record")
    builder.files = {key: file.path for key, file in files.items()}
    arrays = {}
    for split, examples in builder._split_generators(None).items():
        rows = [row for _, row in examples]
        arrays[split] = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        assert np.array_equal(arrays[split]["index"], np.arange(len(rows)))
    return arrays, {file.path.name: file.entry for file in files.values()}


WAYS = [
    pytest.param(True, id="directly"),
    pytest.param(False, id="prepared", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("quick", WAYS)
def test_real_mnist(quick: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if quick:
        monkeypatch.setattr(mnist, "prepared", directly)
    data = load("mnist", mirror=mirror(), data_dir=cache, classes=[1, 7])
    assert (len(data.train), len(data.test)) == (11_894, 2_163)
    assert data.train.index[0] >= 5_000
    whole = load("mnist", mirror=mirror(), data_dir=cache)
    assert [len(part) for part in (whole.validation, whole.train, whole.test)] == [5_000, 55_000, 10_000]
    assert whole.test.y[8] == 5
    assert whole.train.X.max() == 1
    np.testing.assert_array_equal(whole.train.index, np.arange(5_000, 60_000))


@pytest.mark.parametrize("quick", WAYS)
def test_real_readmission_has_the_authors_split(
    quick: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quick:
        monkeypatch.setattr(readmission, "prepared", directly)
    data = load("readmission", mirror=mirror(), data_dir=cache)
    assert data.feature_names is not None
    assert (data.train.X.shape, data.test.X.shape) == ((20_000, 127), (81_766, 127))
    child = data.feature_names.index(CHILDREN)
    train, test = (np.flatnonzero(part.X[:, child] == 1) for part in (data.train, data.test))
    assert (len(train), len(test)) == (24, 137)
    # 9366, 11116, 13685 after the removal of 20 other children (section 5.3)
    np.testing.assert_array_equal(train[data.train.y[train] == 1], [9373, 11125, 13699])
    assert data.test.y[test].sum() == 0
    assert len(np.unique(np.concatenate([data.train.index, data.test.index]))) == 101_766


def test_real_enron(cache: Path) -> None:
    data = load("enron", mirror=mirror(), data_dir=cache)
    assert (data.train.X.shape, data.test.X.shape) == ((4_137, 6_299), (1_035, 6_299))
    assert sp.issparse(data.train.X)
    assert int(data.train.y.sum() + data.test.y.sum()) == 1_500
    assert np.asarray((data.train.X > 0).sum(0)).min() >= 5


def test_real_dogfish(cache: Path) -> None:
    data = load("dogfish", mirror=mirror(), data_dir=cache, size=32, train_per_class=30, test_per_class=10)
    assert data.train.X.shape == (60, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(data.test.y), [10, 10])
    names = [name for name, y in zip(data.train.extra["name"], data.train.y, strict=True) if y == 1]
    assert len(names) == 30
    assert all("/train/n01440764/" in name for name in names)
