"""kronfluence 1.0: EK-FAC, an approximation of the Gauss–Newton matrix; it has no exact solver."""

from __future__ import annotations

import importlib
import logging
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments.benchmark.harness import Adapter, Problem, Work, serve


def task() -> Any:
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            inputs, labels = batch
            outputs = model(inputs)
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(torch.softmax(outputs.detach(), 1), 1).flatten()
            return nn.functional.cross_entropy(outputs, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    return Classification()


def run(problem: Problem, itself: bool) -> Work:
    def work() -> Tensor:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments

        kind = task()
        model = prepare_model(problem.model, kind)
        rows = int(problem.options.get("batch", 5000))
        train = TensorDataset(problem.X, problem.y)
        test = TensorDataset(problem.test_X, problem.test_y)
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer(
                "bench", model, kind, cpu=True, disable_tqdm=True, output_dir=folder, log_level=logging.ERROR
            )
            analyzer.fit_all_factors(
                "factors", train, per_device_batch_size=rows, factor_args=FactorArguments(strategy="ekfac")
            )
            arguments = ScoreArguments(damping_factor=problem.l2 + problem.damping)
            if itself:
                analyzer.compute_self_scores(
                    "scores", "factors", train, per_device_train_batch_size=rows, score_args=arguments
                )
                return analyzer.load_self_scores("scores")["all_modules"]
            analyzer.compute_pairwise_scores(
                "scores", "factors", test, train, per_device_query_batch_size=len(test),
                per_device_train_batch_size=rows, score_args=arguments,
            )  # fmt: skip
            return analyzer.load_pairwise_scores("scores")["all_modules"].T

    return work


def ekfac(problem: Problem) -> Work:
    return run(problem, itself=False)


def ekfac_self(problem: Problem) -> Work:
    return run(problem, itself=True)


def load() -> dict[str, Adapter]:
    importlib.import_module("kronfluence")
    return {"ekfac": ekfac, "ekfac_self": ekfac_self}


if __name__ == "__main__":
    serve(load)
