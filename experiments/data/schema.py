"""Schemas of conf/data: the keys beyond name, mirror and data_dir are the loader's own options."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from experiments.schema import COUNT, NOT_NEGATIVE, SEED, Data, Range, at_least, ranged, register


@register("data", "plain")
@dataclass
class PlainData(Data):
    """A data set without options of its own."""


@register("data", "digit_classes")
@ranged(classes=at_least(0, 9))
@dataclass
class DigitClassesData(Data):
    """MNIST or the embedded 8x8 digits."""

    classes: list[int] | None = None  # only these digits, relabelled 0, 1, ...; null: all ten


@register("data", "digit_pairs")
@ranged(
    classes=at_least(0, 9),
    scale=COUNT,
    brightness=at_least(1, 255),
    train_per_class=COUNT,
    test_per_class=COUNT,
    seed=SEED,
)
@dataclass
class DigitPairsData(Data):
    """Two of the embedded 8x8 digits as colour images: the stand-in for dog and fish."""

    classes: list[int] = field(default_factory=lambda: [3, 8])  # the two digits
    scale: int = 4  # times each pixel is repeated in both directions
    brightness: int = 255  # value of the brightest pixel
    train_per_class: int = 120  # training images of each class
    test_per_class: int = 50  # test images of each class
    seed: int = 0  # draws the order of the examples


@register("data", "dogfish")
@ranged(size=COUNT, train_per_class=COUNT, test_per_class=COUNT, seed=SEED)
@dataclass
class DogfishData(Data):
    """900 + 300 images of a dog and of a fish."""

    size: int = 224  # pixels per side
    train_per_class: int = 900  # training images of each class
    test_per_class: int = 300  # test images of each class
    seed: int = 0  # draws the order of the examples
    folder: str | None = None  # an ImageNet folder, <folder>/[train/]<synset>/*; null: Imagenette
    dog: list[str] | None = None  # synsets; null: English springer, n02102040
    fish: list[str] | None = None  # synsets; null: tench, n01440764


@register("data", "one_dog")
@ranged(count=COUNT)
@dataclass
class OneDogData(DogfishData):
    """The training images of dogfish; as test images photographs of one dog."""

    photos: str | None = None  # a folder of photographs; null: the sequence "dog" of DAVIS
    label: str = "dog"  # the class that the photographs show: dog or fish
    count: int | None = 30  # photographs used, evenly spaced in the order of their names; null: all


@register("data", "breast_cancer")
@ranged(test_fraction=Range(0, 1, True, True), seed=SEED)
@dataclass
class BreastCancerData(Data):
    """569 tumours, standardised: the stand-in for spam."""

    test_fraction: float = 0.2  # share of the rows that is the test set
    seed: int = 0  # draws the order of the examples
    intercept: bool = True  # a column of ones, since the linear models have no intercept


@register("data", "iris")
@ranged(test_fraction=Range(0, 1, True, True), seed=SEED)
@dataclass
class IrisData(Data):
    """150 flowers, standardised."""

    test_fraction: float = 0.2  # share of the rows that is the test set
    seed: int = 0  # draws the order of the examples


@register("data", "readmission")
@ranged(seed=SEED)
@dataclass
class ReadmissionData(Data):
    """UCI diabetes, 127 columns."""

    seed: int = 2  # draws the split; 2 gives the authors' own, row by row


@register("data", "readmission_synthetic")
@ranged(n_train=at_least(2), n_test=COUNT, seed=SEED)
@dataclass
class ReadmissionSyntheticData(Data):
    """A synthetic cohort of the same schema."""

    n_train: int = 2000  # training patients
    n_test: int = 4000  # test patients
    seed: int = 0  # draws the order of the examples


@register("data", "enron")
@ranged(seed=SEED, min_df=COUNT)
@dataclass
class EnronData(Data):
    """Enron1 as word counts."""

    seed: int = 0  # draws the shuffle after sorting by name
    min_df: int = 5  # training mails that a word must occur in
    stop_words: bool = True  # leave scikit-learn's English stop words out


@register("data", "csv")
@ranged(
    min_df=COUNT,
    levels=COUNT,
    words=COUNT,
    test_fraction=Range(0, 1, high_open=True),
    seed=SEED,
    skip=NOT_NEGATIVE,
)
@dataclass
class CsvData(Data):
    """A table of the user's own."""

    path: str = MISSING
    label: str | None = None
    id: str | None = None
    text: list[str] | None = None
    numbers: list[str] | None = None
    categories: list[str] | None = None
    dates: list[str] | None = None
    ignore: list[str] | None = None
    keep: list[str] | None = None
    join: bool = False
    unlabelled: list[str] | None = None
    encoding: str = "auto"
    separator: str = "auto"
    decimal: str = "auto"
    header: str = "auto"
    quote: str = "auto"
    bad_rows: str = "refuse"
    skip: int = 0
    day_first: str = "auto"
    task: str = "auto"
    sheet: str | None = None
    levels: int = 50
    words: int = 20_000
    min_df: int = 2
    test_fraction: float = 0.0  # share of the rows that is the test set
    seed: int = 0  # draws the order of the examples
