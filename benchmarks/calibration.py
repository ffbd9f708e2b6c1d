"""Do the intervals of an ablation hold what they promise? Thousands of ablations of known truth.

    python -m benchmarks.calibration
    python -m benchmarks.calibration --quick

Each ablation really cross-validates a baseline and six arms on a fresh data set (`toy_ablations`),
and every method gets the same paired differences. Counted: how often the interval holds the true
delta; in how many ablations at least one arm of true delta 0 gets a "better" or "worse", by its own
p-value and after Holm; how wide the intervals are. Then one arm of the six is made truly better, and
how often that is found is drawn against its true delta.

Beside each figure stands its Monte-Carlo standard error, of independent ablations (the arms of one
share its baseline). The exit code is 1 if a method that the kit answers with misses its promise by
more than two of them: coverage of 94 %, verdict errors of 5 % after Holm.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from benchmarks import checks
from benchmarks.checks import Check
from benchmarks.environment import environment, publish, result_path
from benchmarks.toy_ablations import Ablation, Setting, draw
from competition_kit.results.statistics import (
    Comparison,
    RowVariance,
    compare,
    holm,
    verdict,
)
from competition_kit.results.tables import text_table

__all__ = ["METHODS", "SCENARIOS", "main", "measure", "power"]

LEVEL = 0.95
COVERAGE, ERRORS = 0.94, 0.05  # what is promised

SEEDS = Setting(rows=600, shared=1.0, luck=0.3, ridge=120.0)
DATA = Setting(rows=600, shared=0.0, luck=0.02, ridge=20.0)
MIXED = Setting(rows=600, shared=0.5, luck=0.3, ridge=120.0)

SCENARIOS = {
    "seeds": SEEDS,
    "data": DATA,
    "mixed": MIXED,
    "seeds, 2 seeds": replace(SEEDS, seeds=2),
    "seeds, 5 seeds": replace(SEEDS, seeds=5),
    "data, 1 seed": replace(DATA, seeds=1),
    "data, weak models": replace(DATA, rows=300, copy_noise=4.0, ridge=1.0),
    "data, few rows differ": Setting(
        rows=150, shared=0.9, copy_noise=0.5, label_noise=0.3, luck=0.02
    ),
    "data, squared error": Setting(rows=120, features=60, ridge=1.0, score="squared error"),
    "mixed, 2 seeds": replace(MIXED, seeds=2),
    "mixed, 5 seeds": replace(MIXED, seeds=5),
    "mixed, 3 folds": replace(MIXED, folds=3),
    "mixed, 10 folds": replace(MIXED, folds=10),
    "mixed, groups of 5 rows": replace(MIXED, rows=300, group=5, arms=2),
    "mixed, macro F1": replace(MIXED, rows=300, score="macro F1", arms=2),
    "data, folds by source": replace(DATA, sources=0.2),
    "mixed, folds by source": replace(MIXED, sources=0.3),
    "one start for all folds": replace(SEEDS, luck=0.6, one_start=True),
}
MAIN = ("seeds", "data", "mixed")
# what the kit's rows do not bear, to show what it would cost: seeds that are the same in all folds
# (it derives them anew), and folds that are sources (where it does not ask rows)
BROKEN = ("data, folds by source", "mixed, folds by source", "one start for all folds")
GAINS: dict[str, tuple[float, ...]] = {
    "seeds": (0.05, 0.1, 0.2, 0.3, 0.4, 0.6),
    "data": (0.1, 0.2, 0.35, 0.5, 0.65, 0.8),
    "mixed": (0.1, 0.2, 0.3, 0.4, 0.5, 0.65),
}

Method = Callable[[np.ndarray, float, RowVariance | None], Comparison]


def _by(name: Any) -> Method:
    return lambda cells, share, rows: compare(cells, test_share=share, level=LEVEL, method=name)


def _with_rows(cells: np.ndarray, share: float, rows: RowVariance | None) -> Comparison:
    return compare(cells, test_share=share, level=LEVEL, row_variance=rows)


def _moments(cells: np.ndarray, share: float, rows: RowVariance | None) -> Comparison:
    """Tell seeds and data apart by the folds' means alone; what rows have to be better than."""
    base = compare(cells, test_share=share, level=LEVEL, method="folds")
    seeds, folds = cells.shape
    if seeds == 1 or base.delta is None:
        return base
    within = cells.var(axis=0, ddof=1).mean()
    between = max(0.0, cells.mean(axis=0).var(ddof=1) - within / seeds)
    data, seed = between * (1 / folds + share), within / (seeds * folds)
    if data + seed == 0:
        return base
    degrees = (data + seed) ** 2 / (data**2 / (folds - 1) + seed**2 / (folds * (seeds - 1)))
    error = np.sqrt(data + seed)
    reach = error * stats.t.ppf((1 + LEVEL) / 2, degrees)
    return replace(
        base,
        low=base.delta - reach,
        high=base.delta + reach,
        p_value=2 * stats.t.sf(abs(base.delta) / error, degrees),
    )


OURS, FALLBACK, REFERENCE = "components, rows (kit)", "corrected t, folds (kit)", "corrected t"
METHODS: dict[str, Method] = {
    "paired t": _by("paired"),
    REFERENCE: _by("corrected"),
    "components, no rows": _moments,
    FALLBACK: _by("folds"),
    OURS: _with_rows,
}

# what the power figure shows, and how
STYLES: dict[str, dict[str, Any]] = {
    "paired t": {"color": "#b0b0b0", "marker": "x"},
    REFERENCE: {"color": "#7a7a7a", "marker": "s"},
    FALLBACK: {"color": "#2a7ab0", "marker": "^"},
    OURS: {"color": "#c2410c", "marker": "o", "linewidth": 2.2},
}


@dataclass(frozen=True)
class Answers:
    """What one method said about n ablations of A arms, all [n, A].

    Attributes:
        inside: the interval holds the true delta, or there is none.
        width: of the interval; NaN where there is none.
        raw, adjusted: a verdict of better or worse, by its own p-value and after Holm.
    """

    inside: np.ndarray
    width: np.ndarray
    raw: np.ndarray
    adjusted: np.ndarray


def _answer(found: Sequence[Ablation], truth: np.ndarray, method: Method) -> Answers:
    rows = []
    for ablation in found:
        share = 1 / (ablation.differences.shape[2] - 1)
        family = [
            method(cells, share, variance)
            for cells, variance in zip(ablation.differences, ablation.row_variances, strict=True)
        ]
        adjusted = holm([one.p_value for one in family])
        rows.append(
            [
                (
                    one.low is None or one.high is None or one.low <= true <= one.high,
                    np.nan if one.low is None or one.high is None else one.high - one.low,
                    _says(one, one.p_value),
                    _says(one, float(p_value)),
                )
                for one, p_value, true in zip(family, adjusted, truth, strict=True)
            ]
        )
    inside, width, raw, after = np.moveaxis(np.array(rows, dtype=float), -1, 0)
    return Answers(inside, width, raw, after)


def _says(comparison: Comparison, p_value: float | None) -> bool:
    return verdict(comparison, p_value) in ("better", "worse")


def _ablations(name: str, setting: Setting, count: int, bar: Any) -> list[Ablation]:
    """Draw ablations; each has its own generator, so the first ones are the same in any number."""
    found = []
    for number in range(count):
        found.append(draw(setting, np.random.default_rng([crc32(name.encode()), number])))
        bar.update()
    return found


def _estimate(values: np.ndarray) -> dict[str, float]:
    """Return the mean over ablations of values [n] or [n, A], with its Monte-Carlo error."""
    each = values if values.ndim == 1 else values.mean(axis=1)
    error = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.nan
    return {"value": float(each.mean()), "error": float(error)}


def measure(name: str, setting: Setting, count: int, bar: Any) -> dict[str, Any]:
    """Return what all methods say about null ablations of one setting, as a JSON object."""
    found = _ablations(name, setting, count, bar)
    truth = np.zeros(setting.arms)
    answers = {method: _answer(found, truth, ask) for method, ask in METHODS.items()}
    reference = np.nanmean(answers[REFERENCE].width)
    return {
        "scenario": name,
        "setting": asdict(setting),
        "ablations": count,
        "assumptions_hold": name not in BROKEN,
        **_noise(found),
        "methods": {
            method: {
                "coverage": _estimate(answer.inside),
                "errors_before_holm": _estimate(answer.raw.max(axis=1)),
                "errors_after_holm": _estimate(answer.adjusted.max(axis=1)),
                "width_over_corrected": float(np.nanmean(answer.width) / reference),
                "without_interval": float(np.isnan(answer.width).mean()),
            }
            for method, answer in answers.items()
        },
    }


def _noise(found: Sequence[Ablation]) -> dict[str, float | None]:
    """Say where the noise comes from, and what correction the folds' dependence really asks for."""
    cells = np.array([ablation.differences for ablation in found])  # [n, A, S, K]
    seeds, folds = cells.shape[2:]
    nothing = {"seeds_share_of_variance": None, "correction_needed": None}
    if seeds == 1 or any(rows is None for one in found for rows in one.row_variances):
        return {**nothing, "correction_assumed": 1 / (folds - 1)}
    within = float(cells.var(axis=2, ddof=1).mean())
    data = float(
        np.mean([rows.variance for one in found for rows in one.row_variances if rows is not None])
    )
    share = within / (within + data)
    actual = float((cells.mean(axis=(2, 3)) ** 2).mean())
    needed = (actual - within / (seeds * folds)) / data - 1 / folds if share < 0.95 else None
    return {
        "seeds_share_of_variance": share,
        "correction_needed": needed,
        "correction_assumed": 1 / (folds - 1),
    }


def power(name: str, setting: Setting, gain: float, count: int, bar: Any) -> dict[str, Any]:
    """Return how often the one arm of six that is truly better is found, as a JSON object."""
    better = replace(setting, gain=gain)
    found = _ablations(f"{name}, gain {gain}", better, count, bar)
    true = np.array([ablation.true for ablation in found])
    delta = _estimate(true[:, 0])
    truth = np.append(delta["value"], np.zeros(setting.arms - 1))
    answers = {method: _answer(found, truth, METHODS[method]) for method in STYLES}
    return {
        "scenario": name,
        "gain": gain,
        "ablations": count,
        "true_delta": delta,
        "methods": {
            method: {
                "power_after_holm": _estimate(answer.adjusted[:, 0]),
                "coverage_of_true_delta": _estimate(answer.inside[:, 0]),
            }
            for method, answer in answers.items()
        },
    }


# -- what is printed ----------------------------------------------------------------------------

HEADER = ("scenario", "method", "coverage %", "errors %", "after Holm %", "width")


def table(figures: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the printed table, a rule between scenarios."""
    lines: list[list[str]] = []
    for scenario in figures:
        if lines:
            lines.append([])
        for number, (method, said) in enumerate(scenario["methods"].items()):
            lines.append(
                [
                    "" if number else scenario["scenario"],
                    method,
                    _percent(said["coverage"]),
                    _percent(said["errors_before_holm"]),
                    _percent(said["errors_after_holm"]),
                    f"{said['width_over_corrected']:.2f}",
                ]
            )
    return lines


def _percent(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} ± {100 * estimate['error']:.1f}"


def verdicts(figures: Sequence[dict[str, Any]]) -> list[Check]:
    """Return the promises of the kit's methods, each with two Monte-Carlo errors of grace."""
    found = []
    for scenario in figures:
        for method in (FALLBACK, OURS):
            said = scenario["methods"][method]
            coverage, errors = said["coverage"], said["errors_after_holm"]
            by_source = "by source" in scenario["scenario"]  # where the kit falls back
            gated = scenario["assumptions_hold"] or (by_source and method == FALLBACK)
            part = f"{scenario['scenario']}, {method}"
            found += [
                Check(
                    part,
                    "coverage + 2 errors",
                    coverage["value"] + 2 * coverage["error"],
                    COVERAGE if gated else None,
                    at_least=True,
                ),
                Check(
                    part,
                    "verdict errors - 2 errors",
                    errors["value"] - 2 * errors["error"],
                    ERRORS if gated else None,
                ),
            ]
    return found


POWER_HEADER = ("scenario", "true delta", *STYLES)


def power_table(figures: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the power of each method, in percent, for each size of the true delta."""
    lines: list[list[str]] = []
    for number, point in enumerate(figures):
        first = number == 0 or figures[number - 1]["scenario"] != point["scenario"]
        if first and number:
            lines.append([])
        lines.append(
            [
                point["scenario"] if first else "",
                f"{point['true_delta']['value']:+.4f}",
                *(f"{100 * m['power_after_holm']['value']:.0f}" for m in point["methods"].values()),
            ]
        )
    return lines


def plot(path: Path, points: Sequence[dict[str, Any]], null: Sequence[dict[str, Any]]) -> None:
    """Draw power against the true delta; methods that break their promise there are dotted."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "calibration"  # the same file each time
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(point["scenario"] for point in points))
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(3.4 * len(names), 3.3), sharey=True, squeeze=False
    )
    nothing = {scenario["scenario"]: scenario["methods"] for scenario in null}
    for axis, name in zip(axes[0], names, strict=True):
        own = [point for point in points if point["scenario"] == name]
        deltas = [100 * point["true_delta"]["value"] for point in own]
        for method, style in STYLES.items():
            errors = nothing[name][method]["errors_after_holm"]
            honest = errors["value"] - 2 * errors["error"] <= ERRORS
            found = [100 * point["methods"][method]["power_after_holm"]["value"] for point in own]
            line = "-" if honest else ":"
            axis.plot(deltas, found, label=method, markersize=4, linestyle=line, **style)
        axis.set(title=f"noise: {name}", xlabel="true delta, points of accuracy", ylim=(-2, 102))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("found after Holm, %")
    keys = [Line2D([], [], label=method, **style) for method, style in STYLES.items()]
    figure.legend(handles=keys, loc="lower center", ncols=len(keys), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata)
    pyplot.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration",
        description="Coverage, verdict errors and power of an ablation's statistics.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ablations", type=int, default=2000, help="of each scenario")
    parser.add_argument(
        "--scenarios", nargs="+", choices=tuple(SCENARIOS), metavar="NAME", help="else all"
    )
    parser.add_argument("--quick", action="store_true", help="200 of the three main scenarios")
    parser.add_argument("--no-power", action="store_true", help="true deltas of 0 only")
    parser.add_argument("--json", type=Path, help="where figures go (else benchmarks/results)")
    parser.add_argument("--plot", type=Path, help="where the power figure goes, .svg or .png")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code."""
    options = _parser().parse_args(arguments)
    count = min(options.ablations, 200) if options.quick else options.ablations
    names = options.scenarios or (MAIN if options.quick else tuple(SCENARIOS))
    gains = {} if options.no_power else {name: GAINS[name] for name in names if name in GAINS}
    if options.quick:
        gains = {name: grid[2:3] for name, grid in gains.items()}
    gc.freeze()  # statsmodels collects garbage in every call of Holm's correction
    start = time.perf_counter()
    half = max(count // 2, 2)  # power is drawn, not promised
    total = count * len(names) + half * sum(map(len, gains.values()))
    with tqdm(total=total, unit="ablation", mininterval=1.0) as bar:
        null = [measure(name, SCENARIOS[name], count, bar) for name in names]
        points = [
            power(name, SCENARIOS[name], gain, half, bar)
            for name, grid in gains.items()
            for gain in grid
        ]
    promises = verdicts(null)
    failed = [check for check in promises if not check.ok]
    facts = environment(torch.device("cpu"))
    figures = {
        "level": LEVEL,
        "seconds": time.perf_counter() - start,
        "scenarios": null,
        "power": points,
        "checks": checks.as_json(promises),
    }
    if points:
        print(
            f"\npower, %, after Holm, of one better arm\n\n{text_table(POWER_HEADER, power_table(points))}"
        )
        if options.plot:
            plot(options.plot, points, null)
    path = options.json or (None if options.quick else result_path("calibration", facts))
    publish(
        facts,
        HEADER,
        table(null),
        figures,
        path,
        [
            f"{count} ablations each, {figures['seconds']:.0f} s; ± Monte-Carlo standard error",
            "errors: ablations in which an arm of true delta 0 is called better or worse",
            "width: mean, over that of the corrected t-test of all cells",
            *(
                f"FAILED: {check.part}: {check.name} {check.figure:.4f}, bound {check.bound}"
                for check in failed
            ),
        ],
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
