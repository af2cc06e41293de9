"""Schemas of conf/experiment/attack_single.yaml and attack_group.yaml (Fig. 5)."""

from dataclasses import dataclass, field

from experiments.schema import COUNT, POSITION, POSITIVE, TOLERANCE, Experiment, at_least, ranged, register


@ranged(alpha=POSITIVE, iterations=COUNT, screened=COUNT, tolerance=TOLERANCE, training_tolerance=TOLERANCE)
@dataclass
class Attack(Experiment):
    """What both attacks share. Pixels and steps are in 8-bit units."""

    alpha: float = 0.02  # length of a sign step
    iterations: int = 100  # steps of one attempt at most
    # images ranked through the network: longest feature-space cotangents; null: all
    screened: int | None = 100
    tolerance: float = 1e-9  # gradient norm of every refit, relative residual of every s_test
    training_tolerance: float = 1e-10  # gradient norm of the clean fit and of the refits that verify


@register("experiment", "attack_single")
@ranged(
    test_images=COUNT,
    singles=COUNT,
    together=at_least(2),
    side_by_side=COUNT,
    workers=COUNT,
    exact_rankings=POSITION,
    full_length=POSITION,
    shown=POSITION,
)
@dataclass
class AttackSingle(Attack):
    """One test image at a time: how few imperceptibly changed training images flip it?"""

    name: str = "attack_single"
    test_images: int | None = None  # correctly classified ones to attack, chosen by seed; null: all
    singles: int = 2  # candidates tried one at a time, best ranked first
    # numbers of candidates that are then tried together
    together: list[int] = field(default_factory=lambda: [2, 3, 5, 10])
    side_by_side: int = 8  # training images that a worker perturbs at a time; 0.25 GB each at 448 pixels
    workers: int | None = 1  # threads, each computing on one core; null: one per core
    exact_rankings: int = 3  # test images whose exact ranking measures the screening's recall
    full_length: int = 5  # test images attacked past the flip: how far the features can be moved
    shown: int = 3  # flips in the figure


@register("experiment", "attack_group")
@ranged(
    target_class=POSITION,
    test_images=COUNT,
    row=POSITION,
    radii=POSITIVE,
    checkpoint=COUNT,
    compared=POSITION,
    refactor=COUNT,
)
@dataclass
class AttackGroup(Attack):
    """One training image against many test images of one class."""

    name: str = "attack_group"
    alpha: float = 0.005  # length of a sign step
    iterations: int = 2000  # steps of one attempt at most
    # class of the test images; null: that of the least certain training image
    target_class: int | None = None
    test_images: int = 30  # correctly classified ones of that class, chosen by seed
    attacked: str = "best_ranked"  # the training image: best_ranked, or least_certain as in the paper
    row: int | None = None  # position of the training image; it overrides attacked
    # how far features are moved freely
    radii: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0, 8.0])
    checkpoint: int = 250  # iterations between two entries of the journal
    compared: int = 5  # iterations timed with and without low-rank refits; 0: none
    refactor: int = 50  # iterations between two new factors of the top layer's Hessian
