"""How far this goes: the page results/scaling.md.

The page holds the benchmark beside other libraries, the growth that it measured and, worked out from that,
time and memory for ImageNet on 1, 8 and 64 GPUs, with the arithmetic. The rates of the GPU are assumptions
that the page names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.benchmark import comparison
from experiments.records.record import Record

GPUS = (1, 8, 64)
IMAGES = 1_281_167  # of ImageNet's training set


@dataclass(frozen=True)
class Gpu:
    """Assumed rates of one GPU: float32 FLOP/s, bytes/s between GPUs, bytes of memory."""

    name: str = "an A100 with 80 GB (its data sheet)"
    flops: float = 19.5e12
    link: float = 25e9
    memory: float = 80e9


@dataclass(frozen=True)
class Case:
    """A model on n examples. product, scoring: flops of one Hessian product and of all scores, an example.

    kept: bytes an example that must be resident. working: bytes of one batch and of the vectors of CG.
    """

    title: str
    n: int
    p: int
    product: float
    scoring: float
    kept: float
    working: float
    arithmetic: str


def top_layer() -> Case:
    """Inception v3's 2,048 features, 1,000 classes: closed form, two matrix products a Hessian product."""
    d, c = 2048, 1000
    return Case(
        "Inception v3's top layer",
        IMAGES,
        d * c,
        product=4.0 * d * c,
        scoring=2.0 * d * c,
        kept=4.0 * (d + c),
        working=8 * 4.0 * d * c,
        arithmetic=paragraph(
            f"""A Hessian product is two matrix products, 4·d·c = 4·{d}·{c} = {4 * d * c:.3g} FLOP per image.
            All scores of one s_test are one matrix product, 2·d·c. Features and probabilities in float32 stay
            in memory: 4·(d + c) = {4 * (d + c):,} bytes per image. CG keeps about 8 vectors of p numbers."""
        ),
    )


def resnet() -> Case:
    """ResNet-50: a product is a forward-mode pass through forward and backward."""
    p, forward = 25_557_032, 8.2e9
    return Case(
        "ResNet-50, every parameter",
        IMAGES,
        p,
        product=6 * forward,
        scoring=2 * forward,
        kept=224 * 224 * 3,
        working=8 * 4.0 * p + 64 * 120e6 * 2,
        arithmetic=paragraph(
            f"""A forward pass is {forward:.2g} FLOP per image at 224 × 224 (4.1 G multiply-adds). Forward and
            backward passes together are three times that. Their forward-mode derivative doubles it:
            6 × {forward:.2g} for a product. All scores of one s_test are one forward-mode pass,
            2 × {forward:.2g}. Images stay in memory as 8-bit pixels. A batch of 64 takes about 120 MB of
            activations per image, and twice that with tangents."""
        ),
    )


def paragraph(text: str) -> str:
    """The text in one line, as Markdown wants a paragraph."""
    return " ".join(text.split())


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    )


def duration(seconds: float) -> str:
    """Seconds in the unit a reader thinks in."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def measured(growth: dict[str, Any]) -> str:
    """The growth of task A over one size, as a table with its fitted exponents."""
    rows = [
        [f"{size:,}", f"{seconds:.3g}", f"{products}", f"{1000 * each:.3g}", f"{peak:,.0f}"]
        for size, seconds, products, each, peak in zip(
            growth["sizes"],
            growth["seconds"],
            growth["products"],
            growth["seconds_a_product"],
            growth["peak_mib_beyond_imports"],
            strict=True,
        )
    ]
    head = [growth["over"], "seconds", "Hessian products", "ms a product", "MiB beyond imports"]
    return (
        table(head, rows)
        + f"\n\nFitted exponents: time of a product {growth['slope_of_time_a_product']:.2f}, memory "
        f"{growth['slope_of_memory']:.2f} (1 is linear; a constant part lowers an exponent at small sizes)."
    )


def predicted(case: Case, products: int, share: float, gpu: Gpu) -> str:
    """Time and memory of one s_test by CG and all scores, on each number of GPUs."""
    rows = []
    for count in GPUS:
        rate = gpu.flops * share * count
        exchange = 0.0 if count == 1 else 2 * 4.0 * case.p / gpu.link
        product = case.n * case.product / rate + exchange
        memory = case.n * case.kept / count + case.working
        rows.append(
            [
                f"{count}",
                duration(product),
                duration(products * product),
                duration(case.n * case.scoring / rate),
                f"{memory / 1e9:,.1f} GB" + (" (more than it has)" if memory > gpu.memory else ""),
            ]
        )
    head = ["GPUs", "a product", f"s_test, {products} products", "all scores", "memory a GPU"]
    return table(head, rows)


def page(
    benchmark: Record, ranks: dict[str, Any], gpu: Gpu, others: Mapping[str, Record] | None = None
) -> str:
    """The page as Markdown; ``others`` are records of the benchmark's other tasks, by folder."""
    growth = benchmark.metrics["growth"]
    share = growth["p"]["share_of_matrix_rate"][-1]
    products = max(growth["n"]["products"])
    cases = [top_layer(), resnet()]
    measured_on = f"float64, {benchmark.metrics['threads']} threads, {benchmark.data}"
    parts = [
        "# Speed and scaling: measured here, and worked out for ImageNet",
        paragraph(
            """Generated by `python -m experiments.scaling` from `results/benchmark` and
            `results/distributed.json`; a test fails when it is stale."""
        ),
        "## Beside other libraries",
        with_other_libraries(benchmark, "results/benchmark"),
        *(
            [
                "## Ordinary networks, and corrected scores",
                paragraph(
                    """These are runs of their own. Their tasks are networks that are not linear in their
                    parameters, and leverage-corrected scores."""
                ),
                *(with_other_libraries(record, folder) for folder, record in others.items()),
            ]
            if others
            else []
        ),
        "## Measured growth",
        paragraph(
            f"""This is task A of the benchmark (one test point, CG to 1e-5, all scores; {measured_on}). First
            n grows, at p = {benchmark.metrics["n_parameters"]:,}:"""
        ),
        measured(growth["n"]),
        "Then p grows, on random features:",
        measured(growth["p"]),
        "The number of products does not grow with n: it follows the condition number of H, which λ bounds.",
        "Runs spread over processes by torch.distributed (gloo) give the same records within rounding:",
        across(ranks),
        "## Worked out for ImageNet",
        paragraph(
            f"""These figures are computed, not measured. They assume {gpu.name}:
            {gpu.flops / 1e12:.1f} TFLOP/s in float32, {gpu.link / 1e9:.0f} GB/s between GPUs,
            {gpu.memory / 1e9:.0f} GB. Of this rate we count {share:.0%}, because the largest dense product
            above reaches this share of this machine's rate. CG is given {products} products, the most that
            any n above needed. A net may need more, because its Hessian is worse conditioned; damping decides
            how many. Each product ends in one sum of p numbers over the GPUs (2·4·p bytes through the link of
            each)."""
        ),
    ]
    for case in cases:
        parts += [
            f"### {case.title}: n = {case.n:,}, p = {case.p:,}",
            case.arithmetic,
            predicted(case, products, share, gpu),
        ]
    parts.append(
        paragraph(
            """The training set is sharded (`torchrun --nproc-per-node N -m experiments ...`), so time and
            data in memory fall as 1/N. If even one product over all images is too much, use LiSSA. Its cost
            does not depend on n: it reads depth × repeats × batch images per test point. Only the scores
            still read every image once."""
        )
    )
    return "\n\n".join(parts) + "\n"


def with_other_libraries(benchmark: Record, place: str) -> str:
    """The benchmark's table and what is to be said about it."""
    m = benchmark.metrics
    machine = m["machine"]
    rates = " and ".join(
        f"{machine[f'gflops_{dtype}']:.0f} ({dtype})"
        for dtype in ("float32", "float64")
        if f"gflops_{dtype}" in machine
    )
    intro = paragraph(
        f"""{benchmark.data}, n = {m["n_train"]:,}, p = {m["n_parameters"]:,}, {m["threads"]} threads.
        Matrices are multiplied at {rates} GFLOP/s and memory is read at {machine["bandwidth_gbytes"]:.0f}
        GB/s. Seconds are medians. Memory is the peak of the whole process with its set-up. "About" means:
        extrapolated from a part of the work. All lines, errors, runs and settings stand in
        `{place}/record.json`, and the figure lies beside it. Another machine changes the seconds, and the
        ratios less."""
    )
    lines = [f"- {sentence}" for sentence in [*comparison.extra(m), *comparison.gaps(m["tasks"])]]
    return "\n\n".join([intro, table(comparison.HEAD, comparison.rows(m["tasks"])), "\n".join(lines)])


def apart(found: dict[str, Any]) -> str:
    """The largest relative difference, or the arrays that are not equal at all (see ``across_ranks``).

    gradient_norm is left out: what is left of a gradient at convergence is rounding.
    """
    counted = {name: value for name, value in found.items() if name != "gradient_norm"}
    unequal = [name for name, value in counted.items() if value is False or isinstance(value, str)]
    if unequal:
        return f"not equal: {', '.join(unequal)}"
    sizes = [value for value in counted.values() if not isinstance(value, bool)]
    return f"{max(sizes):.1e}" if sizes else ""


def across(ranks: dict[str, Any]) -> str:
    """What several processes give against one process, and either against the published record."""
    rows = []
    for command, counts in ranks.items():
        if not isinstance(counts, dict):  # the file's own notes
            continue
        for count, found in counts.items():
            cells = [apart(found.get(part, {})) for part in ("relative_difference", "scores_against_record")]
            if any(cells):
                rows.append([f"`{command}`", count, *cells])
    head = ["run", "processes", "every array, against one process", "scores, against the published record"]
    return table(head, rows)
