"""Run as several ranks by test_distributed.py: every call of the contract on sharded and on whole objectives.

Prints the largest relative difference of each, as JSON, from rank 0.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings

import torch

from influence import (
    CG,
    Damped,
    Exact,
    GaussNewton,
    Hessian,
    LinearObjective,
    LiSSA,
    fit,
    leave_one_out,
    self_influence,
    test_gradients,
    up_loss,
)
from influence.objectives import distributed
from influence.objectives.sequential import network_objective
from influence.objectives.streaming import ArraySource, stream
from influence.score_files import stream_scores


def linear(n: int = 203, d: int = 9, c: int = 4) -> LinearObjective:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    X[:, 3] = 0
    y = torch.randint(c, (n,), generator=g)
    return LinearObjective(X, y, "cross_entropy", 0.01, n_outputs=c)


def network(n: int = 61):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 8, 8, generator=g, dtype=torch.float64)
    torch.manual_seed(2)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(108, 3)
    ).double()
    return network_objective(model, "cross_entropy", x, torch.randint(3, (n,), generator=g), 0.01)


def apart(mine: torch.Tensor, whole: torch.Tensor) -> float:
    assert mine.shape == whole.shape, (mine.shape, whole.shape)
    return float((mine - whole).abs().max() / whole.abs().max().clamp(min=1e-300))


def contract(whole, mine, theta, V) -> dict[str, float]:
    """Every call that networks and linear models share."""
    idx = torch.tensor([whole.n - 1, 0, 5, 5, whole.n // 2])
    pairs = {
        "value": lambda o: o.value(theta)[None],
        "values": lambda o: o.values(V),
        "gradient": lambda o: o.gradient(theta),
        "gradients": lambda o: o.gradients(V),
        "outputs": lambda o: o.outputs(theta, idx),
        "losses": lambda o: o.example_losses(theta),
        "losses_many": lambda o: o.example_losses_many(V, idx),
        "example_gradients": lambda o: o.example_gradients(theta, idx),
        "directional": lambda o: o.directional(theta, V),
        "mixed": lambda o: o.mixed(theta, V, idx),
        "hessian": lambda o: Hessian(o, theta) @ V,
        "hessian_idx": lambda o: o.hessian_product(theta, V, idx),
        "gauss_newton": lambda o: GaussNewton(o, theta) @ V,
        "subset": lambda o: o.subset(torch.tensor([7, 3])).gradient(theta),
        "targets": lambda o: o.targets.double(),
    }
    return {name: apart(call(mine), call(whole)) for name, call in pairs.items()}


def equal_to_one_process() -> dict[str, float]:
    found: dict[str, float] = {}
    whole, mine = linear(), distributed.shard(linear())
    theta = fit(whole).theta
    found["fit"] = apart(fit(mine).theta, theta)
    V = torch.randn(whole.p, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found |= contract(whole, mine, theta + 0.1 * V[:, 0], V)
    G = test_gradients(whole.on(whole.X.dense(slice(0, 9)), whole.targets[:9]), theta, [0, 4])
    solvers = {
        "exact": Exact(),
        "cg": CG(),
        "kronecker": CG(preconditioner="kronecker"),
        "jacobi": CG(preconditioner="jacobi"),
        "lissa": LiSSA(depth=200, repeats=2, raise_on_failure=False),
    }
    warnings.simplefilter("ignore")
    for name, solver in solvers.items():
        s, t = (solver.solve(Damped(Hessian(o, theta), 0.01), G).value for o in (mine, whole))
        found[name], found[f"{name}_scores"] = (
            apart(s, t),
            apart(up_loss(mine, theta, s), up_loss(whole, theta, t)),
        )
    found["self_influence"] = apart(*(self_influence(o, theta, Hessian(o, theta)) for o in (mine, whole)))
    state = Exact().prepare(Hessian(whole, theta))
    removed = [5, 200, 77]
    found["retrained"] = apart(
        *(leave_one_out(o, theta, removed, state.inverse).thetas for o in (mine, whole))
    )
    weights = torch.rand(whole.n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found["weighted"] = apart(*(Hessian(o.with_weights(weights), theta) @ V for o in (mine, whole)))
    # a part that no other rank ever holds, read from an array in batches
    rows = distributed.rows_of(whole.n)
    source = ArraySource(whole.X.dense(rows).numpy(), whole.targets[rows].numpy())
    streamed = distributed.sharded(stream(linear(), source, 16), rows, whole.n)
    found["streamed"] = apart(Hessian(streamed, theta) @ V, Hessian(whole, theta) @ V)
    scores = stream_scores(mine, theta, G, os.environ["SCORES"], rows=50)
    if distributed.rank() == 0:
        found["on_disk"] = apart(torch.from_numpy(scores.column(1)), up_loss(whole, theta, G)[:, 1])

    whole, mine = network(), distributed.shard(network())
    theta = whole.initial()
    V = torch.randn(whole.p, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found |= {f"network_{name}": value for name, value in contract(whole, mine, theta, V).items()}
    s, t = (CG().solve(Damped(GaussNewton(o, theta), 0.1), V).value for o in (mine, whole))
    found["network_cg"] = apart(s, t)
    return found


def a_rank_dies(how: signal.Signals) -> None:
    """Rank 1 dies, or hangs, while the others work."""
    mine = distributed.shard(linear())
    theta = mine.initial()
    for step in range(1000):
        mine.gradient(theta)
        if step == 5 and distributed.rank() == 1:
            os.kill(os.getpid(), how)
        time.sleep(0.001)


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.join()
    if sys.argv[1] == "equal":
        result = equal_to_one_process()
        if distributed.rank() == 0:
            print("RESULT", json.dumps(result), flush=True)
    elif sys.argv[1] == "disagree":
        distributed.shard(linear(n=100 + distributed.rank()))
    elif sys.argv[1] == "few":
        distributed.shard(linear().subset(torch.tensor([0])))
    else:
        a_rank_dies(signal.SIGKILL if sys.argv[1] == "killed" else signal.SIGSTOP)
    distributed.leave()
