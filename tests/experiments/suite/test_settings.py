"""Every accepted setting changes the record, or is refused, or stands below with the reason why it may not.

Each experiment runs once as it is, very small, and once for each of its settings with that setting changed.
The numbers are compared: metrics (less those that only repeat the setting), arrays and certificates.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ValidationError

from experiments import schema
from experiments.benchmark.schema import Measurement
from experiments.records.atomic import jsonable, key_hash, sha256
from experiments.records.errors import ConfigError, UserError
from experiments.records.places import CONF
from experiments.records.record import Record, without_times
from experiments.suite import used
from experiments.suite.context import Context
from experiments.suite.folders import FREE
from influence.errors import InfluenceError
from tests.experiments.test_configs import composed

SMALL: dict[str, list[str]] = {
    "components": [],
    "loo_linear": ["experiment.removed=3", "experiment.self_influence=4", "data.classes=[3,8]"],
    "smooth_hinge": ["experiment.removed=3"],
    "fragility": [
        *(
            "experiment.depths=[1]",
            "experiment.widths=[2]",
            "experiment.decays=[0.01]",
            "experiment.steps=60",
        ),
        *("experiment.removed=5", "experiment.iterations=30"),
    ],
    "groups": ["experiment.shares=[0.02,0.1]", "experiment.draws=1", "data.classes=[3,8]"],
    "lds": [
        *("experiment.n_train=60", "experiment.n_test=6", "experiment.masks=6", "experiment.projections=20"),
        *("data.classes=[3,8]", "solver.depth=50"),
    ],
    "leverage": ["experiment.top=4", "experiment.random=3", "data.classes=[3,8]"],
    "readmission": ["experiment.shown=4", "data.n_train=1500", "data.n_test=1500"],
    "spam": ["experiment.repeats=2", "experiment.flips=[1,2]", "experiment.checks=2", "experiment.shown=3"],
    "rbf_vs_inception": ["data.train_per_class=20", "data.test_per_class=20", "experiment.extremes=9"],
    "attack_single": [
        *("data.train_per_class=10", "data.test_per_class=10", "experiment.test_images=3"),
        *(
            "experiment.screened=6",
            "experiment.iterations=3",
            "experiment.together=[2]",
            "experiment.shown=1",
        ),
        *("experiment.exact_rankings=1", "experiment.full_length=1", "experiment.alpha=0.2"),
    ],
    "attack_group": [
        *("data.train_per_class=10", "data.test_per_class=10", "experiment.test_images=3"),
        *("experiment.screened=6", "experiment.iterations=3", "experiment.alpha=0.2"),
    ],
    "loo_cnn": [
        *("experiment.n_train=40", "experiment.batch=10", "experiment.steps=6", "experiment.removed=2"),
        *("experiment.rates=[[0,0.02],[3,0.002]]", "experiment.retraining_steps=4", "experiment.block=3"),
        *("experiment.eigenvalues=2", "experiment.checkpoints=2", "solver.damping=1.0"),
        "data.classes=[1,7]",
    ],
    "loo_cnn_stationary": [
        *("experiment.n_train=40", "experiment.batch=10", "experiment.steps=6", "experiment.removed=2"),
        *("experiment.rates=[[0,0.02],[3,0.002]]", "experiment.passes=20", "data.classes=[1,7]"),
    ],
    "loo_cnn_truths": [
        *("experiment.n_train=40", "experiment.batch=10", "experiment.steps=6", "experiment.removed=2"),
        *("experiment.rates=[[0,0.02],[3,0.002]]", "experiment.retraining_steps=4", "experiment.block=3"),
        *("experiment.random=2", "experiment.orders=1", "experiment.damping=1.0", "data.classes=[1,7]"),
    ],
    "benchmark": [
        *("experiment.growth_rows=[100]", "experiment.growth_features=[9]", "data.classes=[1,7]"),
        *(
            "experiment.test_points=2",
            "experiment.components=5",
            "experiment.subset=50",
            "experiment.images=30",
        ),
    ],
}
# Where a generic change says nothing: a value at which the setting must matter.
CHANGED: dict[str, Any] = {
    "model.name": "tanh_cnn",
    "model.loss": "smooth_hinge",
    "model.temperature": 0.1,
    "solver.name": "lissa",
    "solver.preconditioner": "nonsense",
    "solver.tolerance": 1e-2,
    "solver.max_iterations": 1,
    "data.name": "breast_cancer",
    "data.classes": [2, 6],
    "data.intercept": False,
    "data.test_fraction": 0.3,
    "backbone.name": "mobilenet_v2",
    "backbone.weights": "nowhere.pth",
    "backbone.size": 24,
    "experiment.only": ["A"],
    "experiment.factors": [1.0, 0.2],
    "experiment.activations": ["selu"],
    "experiment.iterations": 1,
    "experiment.depths": [2],
    "experiment.decays": [0.02],
    "solver.scale": 50.0,
    "experiment.shares": [0.02, 0.2],
    "experiment.retrained": "nowhere",
    "experiment.compare": {"lissa": {"name": "lissa", "depth": 100}},
    "experiment.training_tolerance": 1e-2,
    "experiment.retraining_tolerance": 1e-2,
    "experiment.tolerance": 1e-2,
    "experiment.largest_gap": 1e-15,
    "experiment.temperatures": [0.0, 0.01],
    "experiment.training_gradient": "loss",
    "experiment.plant": False,
    "experiment.step": 0.1,
    "experiment.flips": [1, 3],
    "experiment.multiple": 100,
    "experiment.dtype": "float32",
    "experiment.network": "nonsense",
    "experiment.retraining_dtype": "float32",
    "experiment.rates": [[0, 0.01]],
    "experiment.together": [3],
    "experiment.screened": 2,
    "experiment.exact_rankings": 0,
    "experiment.eigenvalues": 0,
    "experiment.target_class": 1,
    "experiment.stopped_after": 5,
    "experiment.autograd_tolerance": 1e-3,
    "experiment.test_index": 3,
    "experiment.n_train": 50,
    "experiment.row": 3,
    "experiment.gamma": 1e-2,
    "experiment.temperature": 0.5,
    "device": "cuda",
}
NOT_IN_THE_NUMBERS = "it stands in the record, and changes no number"
DRAWS_NOTHING = "nothing is drawn: fits are exact, and the solver is not LiSSA"
ROUNDING = "it splits the same work otherwise; numbers agree up to rounding"
MAY_NOT_MATTER: dict[str, dict[str, str]] = {
    "*": {
        "threads": "torch's threads: another order of sums, which may or may not show",
        "tier.name": NOT_IN_THE_NUMBERS,
        "experiment.paper": "the paper's values beside ours; they change no number of ours",
        "solver.raise_on_failure": "it decides only whether a solve that failed ends the run",
        "backbone.batch": ROUNDING,
        "backbone.mirror": "where weights are read; their content is what counts (suite.inputs)",
        "experiment.block": ROUNDING,
    },
    "components": {"seed": DRAWS_NOTHING},
    "loo_linear": {"seed": DRAWS_NOTHING},
    "loo_cnn_truths": {
        "experiment.block": ROUNDING,
        "experiment.limit": "a limit on the steps of one minimum, which so small a net does not reach",
    },
    "loo_cnn_stationary": {
        "experiment.shares": "a limit on the passes to the minimum, which so small a net does not reach",
        "experiment.limit": "a limit on the steps of one solve, which so small a net does not reach",
    },
    "smooth_hinge": {
        "seed": "the refits are unique and scikit-learn's own order is fixed",
        "experiment.largest_gap": "it only refuses: a fit whose certificate is worse ends the run",
    },
    "readmission": {"seed": DRAWS_NOTHING},
    "rbf_vs_inception": {
        "seed": DRAWS_NOTHING,
        "experiment.largest_gap": "it only refuses: a fit whose certificate is worse ends the run",
    },
    "attack_single": {
        "experiment.side_by_side": ROUNDING,
        "experiment.shown": "how many flips are pictured: a run as small as this has none (test_attacks has)",
    },
    "attack_group": {
        "experiment.checkpoint": "how often the journal keeps the state: resumed bytes are equal",
        "experiment.refactor": "how often the factor that speeds up refits is renewed: each refit converges",
    },
    "benchmark": {
        "experiment.timeout": "a limit on each measurement, which these do not reach",
        "experiment.peers": "the environment of other libraries, of which this run measures none",
        **{
            f"experiment.{name}": "of the tasks on trained networks, which take too long for this test"
            for name in (
                "perceptron",
                "perceptron_images",
                "perceptron_steps",
                "residual",
                "residual_images",
                "residual_steps",
                "middle_damping",
            )
        },
    },
}
ERRORS = (UserError, InfluenceError)
TASKS: dict[str, dict[str, Any]] = {"A": {"tolerance": 1e-5}, "D": {}, "E": {}, "F": {}, "G": {"removed": 3}}


def made(name: str) -> DictConfig:
    """The small config of an experiment."""
    cfg = composed(f"experiment={name}", "tracking=none", "threads=1", *SMALL[name])
    if name == "benchmark":
        with open_dict(cfg):
            for task in [task for task in cfg.experiment.tasks if task not in TASKS]:
                del cfg.experiment.tasks[task]  # they train networks for every run
            for task, options in TASKS.items():
                mine = Measurement(by="ours", method="cg", repeats=1, options=options)
                cfg.experiment.tasks[task].measurements = {"ours": mine}
    return cfg


def outcome(name: str, cfg: DictConfig, folder: Path) -> tuple[Record | None, str]:
    """The record, or why it was refused."""
    try:
        schema.check(cfg)
        used.check(cfg)
        module = importlib.import_module(f"experiments.{name}.experiment")
        return module.run(cfg, Context(cfg, folder, "x")), ""
    except ERRORS as error:
        return None, str(error)


def fingerprint(record: Record, repeated: Any) -> str:
    """A hash of the record's numbers, less those that only repeat a setting, and less times."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if jsonable(item) not in repeated}
        return [kept(item) for item in value] if isinstance(value, (list, tuple)) else value

    arrays = {
        key: key_hash(np.asarray(value)) for key, value in record.arrays.items() if "seconds" not in key
    }
    return key_hash([kept(without_times(jsonable(record.metrics))), arrays, kept(record.certificates)])


def leaves(cfg: Any, path: str = "") -> Iterator[str]:
    """The dotted path of every setting; a list, and a mapping without a schema, is one."""
    for key in cfg:
        inside = f"{path}.{key}".lstrip(".")
        node = cfg._get_node(key)
        typed = (
            isinstance(node, DictConfig) and not node._is_none() and is_dataclass(OmegaConf.get_type(node))
        )
        if typed:
            yield from leaves(node, inside)
        else:
            yield inside


def changed(path: str, value: Any) -> Any:
    """Another value for the setting."""
    if path in CHANGED and CHANGED[path] != value:
        return CHANGED[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 3 if value else 0.5
    if isinstance(value, (list, dict)) or OmegaConf.is_config(value):
        return [*value, 7] if OmegaConf.is_list(value) else {}
    return 2 if value is None else f"{value}x"


def settings_of(name: str) -> list[str]:
    cfg = made(name)
    found = [
        path for path in leaves(cfg) if not any(path == free or path.startswith(f"{free}.") for free in FREE)
    ]
    return [path for path in found if path != "experiment.name"]


RATES = {"gflops_float64": 1.0, "gflops_float32": 1.0, "bandwidth_gbytes": 1.0}


def measured(problem: Path, measurement: Any, *, threads: int, **_: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Stands for a process of the benchmark: an outcome that follows from all that decides a measurement."""
    files = [path.read_bytes() for path in sorted(problem.glob("*")) if path.suffix in (".npy", ".json")]
    known = key_hash([[sha256(content) for content in files], measurement, threads])
    number = int(known[:8], 16)
    measures = {"seconds": [1.0], "processor_seconds": [1.0], "load_average": 0.0, "setup_seconds": 0.0}
    sizes = {"peak_mib": 2.0, "setup_peak_mib": 2.0, "import_mib": 1.0}
    facts = {"iterations": number, "repeats": measurement["repeats"], "bytes": 1.0 + number, "flops": 1.0}
    outcome = {"status": "measured", "facts": facts, "machine": RATES, **measures, **sizes}
    return outcome, np.random.default_rng(number).standard_normal((60, 1))


@pytest.mark.parametrize("name", SMALL)
def test_every_setting_changes_the_record_or_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.benchmark.runner.run", measured)
    monkeypatch.setattr("experiments.benchmark.problems.ADAM_STEPS", {"tanh_cnn": 3, "tanh_cnn_small": 3})
    monkeypatch.setattr("experiments.benchmark.problems.LBFGS_STEPS", 1)
    base, why = outcome(name, made(name), tmp_path / "base")
    assert base is not None, why
    silent = []
    for number, path in enumerate(settings_of(name)):
        reasons = MAY_NOT_MATTER["*"] | MAY_NOT_MATTER.get(name, {})
        if path in reasons:
            assert len(reasons[path]) > 10
            continue
        cfg = made(name)
        old = OmegaConf.select(cfg, path)
        new = changed(path, old)
        try:
            OmegaConf.update(cfg, path, new, merge=False)
        except ValidationError:  # the schema refuses it
            continue
        found, why = outcome(name, cfg, tmp_path / str(number))
        if found is None:
            assert why, path
            continue
        repeated = [jsonable(OmegaConf.to_container(v) if OmegaConf.is_config(v) else v) for v in (old, new)]
        if fingerprint(found, repeated) == fingerprint(base, repeated):
            silent.append(f"{path}: {old} -> {new}")
    assert not silent, f"{name} accepts these settings and ignores them: {silent}"


def test_every_experiment_is_covered() -> None:
    schema.register_all()
    assert set(SMALL) == set(schema.REGISTRY["experiment"]) == set(used.USES)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=smooth_hinge", "model=logistic"], "choose model=svm"),
        (["experiment=smooth_hinge", "model.loss=smooth_hinge", "model.temperature=0.1"], "use hinge"),
        (["experiment=smooth_hinge", "+solver=cg"], "uses no solver"),
        (["experiment=smooth_hinge", "+backbone=random_conv"], "uses no backbone"),
        (["experiment=rbf_vs_inception", "model=svm"], "choose model=logistic"),
        (["experiment=rbf_vs_inception", "model.loss=cross_entropy"], "use logistic"),
        (["experiment=loo_linear", "solver.name=lissa"], "choose solver=lissa"),
        (["experiment=rbf_vs_inception", "backbone.weights=x.pth"], "random_conv draws"),
        (["experiment=rbf_vs_inception", "backbone=mobilenet_v2", "backbone.seed=3"], "draws nothing"),
        (["experiment=loo_cnn", "model=softmax"], "tanh_cnn"),
        (["experiment=loo_cnn", "solver.preconditioner=jacobi"], "gauss_newton"),
        (["experiment=loo_linear", "model=tanh_cnn"], "choose model="),
        (["experiment=loo_linear", "model.temperature=0.1"], "has no temperature"),
        (["experiment=spam", "device=cuda"], "device=cpu"),
    ],
)
def test_what_an_experiment_would_ignore_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        used.check(composed(*overrides))


def test_every_embedded_and_real_variant_is_accepted() -> None:
    from tests.experiments.test_configs import VARIANTS

    for tier, name in VARIANTS:
        cfg = composed(f"experiment={name}", f"tier={tier}")
        schema.check(cfg)
        cfg.device = "cpu"
        used.check(cfg)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "backbone").glob("*.yaml")))
def test_one_mirror_serves_data_and_weights(name: str) -> None:
    """The published command of Fig. 4 names one folder, and its weights lie there too."""
    cfg = composed("experiment=rbf_vs_inception", f"backbone={name}", "data.mirror=/somewhere")
    assert cfg.backbone.mirror == "/somewhere"
