"""Networks of middle size: what they are, and that their problems hold what a measurement needs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.benchmark import middle
from experiments.benchmark.adapters import ours
from experiments.benchmark.harness import Problem
from experiments.models.middle import network, only_last_block
from experiments.records.errors import ConfigError
from influence.objectives.module import Objective
from influence.solvers import Exact


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_networks_have_the_sizes_of_the_tasks():
    perceptron = network("mlp", 28, 10, generator())
    assert sum(w.numel() for w in perceptron.parameters()) == 784 * 512 + 512 + 512 * 256 + 256 + 2570
    residual = network("resnet18", 32, 10, generator())
    assert 11_100_000 < sum(w.numel() for w in residual.parameters()) < 11_300_000
    assert residual(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    last = [name for name, w in only_last_block(residual).named_parameters() if w.requires_grad]
    assert all(name.startswith(("blocks.7.", "head.")) for name in last)
    with pytest.raises(ConfigError, match="resnet18"):
        network("vgg", 32, 10, generator())


@pytest.mark.parametrize("name", middle.PROBLEMS)
def test_a_problem_is_written_and_solved_to_its_reference(tmp_path, name):
    rng = np.random.default_rng(0)
    part = SimpleNamespace(X=rng.random((30, 64), dtype=np.float32), y=np.arange(30) % 3)

    class Split(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.y)

    data = SimpleNamespace(
        train=Split(**vars(part)), test=Split(**vars(part)), classes=[0, 1, 2], image_shape=(8, 8)
    )
    settings = SimpleNamespace(
        perceptron="mlp_small", perceptron_images=24, perceptron_steps=5, residual="resnet_small",
        residual_images=20, residual_steps=2, middle_damping=0.1, test_index=1,
    )  # fmt: skip
    middle.problem(name, tmp_path, data, settings, seed=0)
    facts = json.loads((tmp_path / name / "problem.json").read_text())
    assert facts["damping"] == 0.1
    options = {"tolerance": 1e-10, "batch_size": 7}
    problem = Problem({"problem": str(tmp_path / name), "options": options, "dtype": "float64"})
    answer, found = ours.network(problem)()
    assert found["residual"] <= 1e-10
    train, test = ours.objectives(problem)
    assert isinstance(train, Objective)
    gradient = test.example_gradients(problem.theta, torch.tensor([0])).T
    exact = Exact(form="dense").solve(ours.operator(problem, train), gradient).value
    torch.testing.assert_close(answer, train.directional(problem.theta, exact), rtol=1e-6, atol=1e-9)
