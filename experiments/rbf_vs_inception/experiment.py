"""Fig. 4: two models of dog against fish, and what each finds influential for one test image.

The first model is an SVM with an RBF kernel on raw pixels. It is trained with the hinge, through the kernel's
Cholesky factor, and its influence is computed with SmoothHinge. The second model is a logistic top layer on
the features of a frozen network. Predicted changes of the test loss are set against the Euclidean distance of
the pixels. The training gradient is that of the loss, as in the paper's formula ("loss").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.models import backbones, build, kernels
from experiments.models.features import features
from experiments.models.svm import fit_hinge
from experiments.records.record import Record
from experiments.suite.context import Context, checked_test_index
from influence.curvature.operators import Hessian
from influence.losses import get_loss
from influence.objectives.linear import LinearObjective
from influence.scores import predicted_change, test_gradients, up_loss
from influence.training import fit

MODELS = ("svm", "network")
SHOWN_SIDE = 112  # pixels of an image in the record: what the figure can show


def run(cfg: DictConfig, context: Context) -> Record:
    """Both fits, the test image, both score vectors, and the figure's findings as numbers."""
    settings = cfg.experiment
    build.only_logistic(cfg.model, "the network's top layer")
    data = context.data()
    y, y_test = (build.targets_of(split.y, True) for split in (data.train, data.test))
    n = len(data.train)

    backbone = backbones.load(**cfg.backbone, device=cfg.device)
    with context.timer("features"), context.progress(n + len(data.test), "features") as advance:
        X = features(backbone, data.train.X, cache=cfg.data.data_dir, progress=advance)
        X_test = features(
            backbone, data.test.X, cache=cfg.data.data_dir, progress=lambda done: advance(n + done)
        )
    if backbone.name == "inception_v3_7a":
        context.note(
            f"The network is {backbone.label} ({backbone.n_features:,} features, {backbone.origin}): the "
            "paper's network less its last two blocks."
        )
    elif backbone.name != "inception_v3":
        context.note(f"The network is {backbone.label}, not Inception v3 ({backbone.origin}).")
    if data.name == "dogfish":
        context.note(
            "The classes are English springer and tench, not the paper's broad dog and fish synsets."
        )

    with context.timer("kernel"):
        pixels, pixels_test = kernels.scaled(data.train.X), kernels.scaled(data.test.X)
        Phi, Phi_test = kernels.rbf_features(pixels, pixels_test, settings.gamma)
    with context.timer("svm: fit"):
        weights, gap = fit_hinge(Phi, y.numpy(), cfg.model.l2, 1e-8, settings.largest_gap)
    smooth = get_loss("smooth_hinge", temperature=settings.temperature)
    network = LinearObjective(X, y, "logistic", cfg.model.l2)
    with context.timer("network: fit"):
        fitted = fit(network, tolerance=settings.training_tolerance)
    objectives = {"svm": LinearObjective(Phi, y, smooth, cfg.model.l2), "network": network}
    thetas = {"svm": torch.as_tensor(weights), "network": fitted.theta}
    tests = {
        "svm": objectives["svm"].on(Phi_test, y_test),
        "network": network.on(X_test, y_test),
    }
    margins = {m: (tests[m].outputs(thetas[m])[:, 0] * y_test).numpy() for m in MODELS}
    right = {m: margins[m] > 0 for m in MODELS}
    if settings.test_index is None:
        test_index = choose(margins["svm"], right["network"])
    else:
        test_index = checked_test_index(settings.test_index, len(data.test))

    distance = np.sqrt(kernels.squared_distances(pixels_test[test_index : test_index + 1], pixels)[0])
    same = data.train.y == data.test.y[test_index]
    metrics: dict[str, Any] = {}
    arrays = {"distance": distance, "same_class": same, "label": data.train.y, "index": data.train.index}
    solver = build.solver(cfg.solver)
    for model in MODELS:
        objective, theta = objectives[model], thetas[model]
        with context.timer(f"{model}: s_test and {n} scores"):
            operator = build.damped(Hessian(objective, theta), cfg.solver.damping)
            solution = solver.solve(operator, test_gradients(tests[model], theta, [test_index]))
            scores = up_loss(objective, theta, solution.value, "loss")[:, 0]
            predicted = predicted_change(scores, n, "loss").numpy()
        context.status(model, solution)
        helpful = np.argsort(-predicted, kind="stable")
        arrays |= {
            f"predicted_{model}": predicted,
            f"helpful_{model}": helpful[: settings.shown],
            f"images_{model}": thumbnails(np.asarray(data.train.X[helpful[: settings.shown]])),
        }
        metrics[model] = findings(predicted, distance, same, helpful, settings.extremes)
        metrics[model] |= other_class(predicted, distance, same, settings.extremes)
        metrics[model] |= sides(predicted, distance, same) | {
            "train_accuracy": float((objective.outputs(theta)[:, 0] * y > 0).double().mean()),
            "test_accuracy": float(right[model].mean()),
            "test_loss": float(tests[model].example_losses(theta).mean()),
            "train_loss": float(objective.example_losses(theta).mean()),
            "theta_norm": float(theta.norm()),
            **build.chosen_damping(cfg.solver.damping, operator),
            "test_image_right": bool(right[model][test_index]),
            "loss_of_test_image": float(tests[model].example_losses(theta)[test_index]),
            "largest_change": float(np.abs(predicted).max()),
        }
    arrays["image_test"] = thumbnails(np.asarray(data.test.X[test_index : test_index + 1]))[0]
    return Record(
        experiment="rbf_vs_inception",
        metrics={
            "backbone": backbone.label,
            "backbone_size": backbone.size,
            "n_features": backbone.n_features,
            "n_train": n,
            "n_test": len(data.test),
            "classes": list(data.classes),
            "test_index": test_index,
            "test_label": data.classes[int(data.test.y[test_index])],
            **metrics,
        },
        arrays=arrays,
        table=["index", "label", "distance", "predicted_svm", "predicted_network"],
        captions={
            "rbf_vs_inception": f"Predicted change of the loss of test image {test_index} when a training "
            f"image is left out, against the distance of their pixels: RBF SVM and {backbone.label} "
            f"({data.name}, n = {n}); below, the most helpful training images of each. {sizes(metrics)}"
        },
        certificates=[
            {"fit": "svm", "method": "LinearSVC on the kernel's factor", "relative_duality_gap": gap},
            {"fit": "network", **fitted.certificate.to_dict()},
        ],
    )


def choose(svm_margins: np.ndarray, network_right: np.ndarray) -> int:
    """The first test image that both models get right and that lies inside the SVM's margin.

    Beyond the margin the hinge has no gradient, so no training image has any influence there. Where no image
    is such, the one of least margin.
    """
    inside = np.flatnonzero((svm_margins > 0) & (svm_margins < 1) & network_right)
    return int(inside[0]) if len(inside) else int(svm_margins.argmin())


def thumbnails(images: np.ndarray) -> np.ndarray:
    """uint8 images (b, height, width, 3), averaged down to at most ``SHOWN_SIDE`` pixels per side."""
    if max(images.shape[1:3]) <= SHOWN_SIDE:
        return images
    planes = torch.as_tensor(images).permute(0, 3, 1, 2).double()
    small = torch.nn.functional.interpolate(planes, (SHOWN_SIDE, SHOWN_SIDE), mode="area")
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def findings(
    predicted: np.ndarray, distance: np.ndarray, same: np.ndarray, helpful: np.ndarray, extremes: int
) -> dict[str, Any]:
    """What the figure shows, as numbers; ranks count from 1."""
    others = np.flatnonzero(~same[helpful])
    constant = np.ptp(predicted) == 0 or np.ptp(distance) == 0
    correlation = float("nan") if constant else float(np.corrcoef(np.abs(predicted), distance)[0, 1])
    return {
        "correlation_with_distance": correlation,
        "first_helpful_of_other_class": int(others[0]) + 1,
        "same_class_among_most_helpful": float(same[helpful[:extremes]].mean()),
        "same_class_among_most_harmful": float(same[helpful[-extremes:]].mean()),
        "harmful_share_of_other_class": float((predicted[~same] < 0).mean()),
        "harmful_share_of_same_class": float((predicted[same] < 0).mean()),
    }


def sizes(metrics: dict[str, Any]) -> str:
    """How small the effects are: the largest change of each model beside the loss that it changes."""
    svm, network = metrics["svm"], metrics["network"]
    return (
        f"One image left out changes the loss by at most {svm['largest_change']:.2g} of "
        f"{svm['loss_of_test_image']:.2g} (SVM) and {network['largest_change']:.2g} of "
        f"{network['loss_of_test_image']:.2g} nats (network): the two vertical scales differ."
    )


def sides(predicted: np.ndarray, distance: np.ndarray, same: np.ndarray) -> dict[str, Any]:
    """On which side of zero each class lies: by count and by share of influence, near and influential.

    ``other_*``: share of the other class that is harmful, ``same_*``: of the same class that is helpful.
    ``all``: of all images of the class; ``nearest_K``: of its K nearest ones; ``influential``: of those with
    at least a fifth of the largest influence of any image. ``count`` counts images, ``weight`` weighs them;
    ``of_class``: the part's share of all influence of the class.
    """
    found: dict[str, Any] = {}
    strong = np.abs(predicted) >= 0.2 * np.abs(predicted).max()
    for name, members, sign in (("other", ~same, -1.0), ("same", same, 1.0)):
        rows = np.flatnonzero(members)
        by_distance = rows[np.argsort(distance[rows], kind="stable")]
        whole = float(np.abs(predicted[rows]).sum())
        parts = {"all": rows, "influential": np.flatnonzero(members & strong)}
        parts |= {f"nearest_{k}": by_distance[:k] for k in (20, 50, 90)}
        for part, chosen in parts.items():
            values = sign * predicted[chosen]
            weight = float(np.abs(values).sum())
            found[f"{name}_{part}"] = {
                "images": len(chosen),
                "count": float((values > 0).mean()) if len(chosen) else float("nan"),
                "weight": float(values[values > 0].sum()) / weight if weight else float("nan"),
                "of_class": weight / whole if whole else float("nan"),
            }
    return found


def other_class(predicted: np.ndarray, distance: np.ndarray, same: np.ndarray, near: int) -> dict[str, float]:
    """On which side of zero the other class lies where it has any influence to speak of.

    Shares of its images that are harmful count an image whose influence is next to nothing as much as one
    that decides; these weigh them.
    """
    scores, largest = predicted[~same], np.abs(predicted).max()
    strongest = np.argsort(-np.abs(scores), kind="stable")[:20]
    nearest = np.argsort(distance[~same], kind="stable")[:near]

    def harmful(part: np.ndarray) -> float:
        whole = float(np.abs(part).sum())
        return float(-part[part < 0].sum()) / whole if whole else float("nan")

    return {
        "other_class_below_hundredth": float((np.abs(scores) < largest / 100).mean()),
        "other_class_harmful_weight": harmful(scores),
        "other_class_harmful_weight_nearest": harmful(scores[nearest]),
        "other_class_harmful_strongest_20": int((scores[strongest] < 0).sum()),
    }
