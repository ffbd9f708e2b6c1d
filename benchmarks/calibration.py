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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import checks
from benchmarks.checks import Check
from benchmarks.coverage import (
    FALLBACK,
    LEVEL,
    OURS,
    REFERENCE,
    SCENARIOS,
    measure,
    power,
)
from benchmarks.environment import environment, publish, result_path
from competition_kit.commands.flags import count
from competition_kit.files import atomic_write
from competition_kit.results.tables import text_table

__all__ = ["main"]

COVERAGE, ERRORS = 0.94, 0.05  # what is promised
ABLATIONS = 2000
MAIN = ("seeds", "data", "mixed")
GAINS: dict[str, tuple[float, ...]] = {
    "seeds": (0.05, 0.1, 0.2, 0.3, 0.4, 0.6),
    "data": (0.1, 0.2, 0.35, 0.5, 0.65, 0.8),
    "mixed": (0.1, 0.2, 0.3, 0.4, 0.5, 0.65),
}

# what the power figure shows, and how
STYLES: dict[str, dict[str, Any]] = {
    "paired t": {"color": "#b0b0b0", "marker": "x"},
    REFERENCE: {"color": "#7a7a7a", "marker": "s"},
    FALLBACK: {"color": "#2a7ab0", "marker": "^"},
    OURS: {"color": "#c2410c", "marker": "o", "linewidth": 2.2},
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
            by_source = scenario["setting"]["sources"] > 0  # where the kit falls back
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
    kind = path.suffix[1:]
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration",
        description="Coverage, verdict errors and power of an ablation's statistics.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ablations", type=count(2), default=ABLATIONS, help="of each scenario")
    parser.add_argument(
        "--scenarios", nargs="+", choices=tuple(SCENARIOS), metavar="NAME", help="else all"
    )
    parser.add_argument("--quick", action="store_true", help="200 of the three main scenarios")
    parser.add_argument("--no-power", action="store_true", help="true deltas of 0 only")
    parser.add_argument(
        "--json", type=Path, help="where figures go (else benchmarks/results, if all are measured)"
    )
    parser.add_argument("--plot", type=_picture, help="where the power figure goes, .svg or .png")
    return parser


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text} does not end in .svg or .png")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    ablations = min(options.ablations, 200) if options.quick else options.ablations
    names = options.scenarios or (MAIN if options.quick else tuple(SCENARIOS))
    gains = {} if options.no_power else {name: GAINS[name] for name in names if name in GAINS}
    if options.quick:
        gains = {name: grid[2:3] for name, grid in gains.items()}
    if options.plot and not gains:
        parser.error(f"--plot draws power, which is measured in: {', '.join(GAINS)}")
    gc.freeze()  # statsmodels collects garbage in every call of Holm's correction
    start = time.perf_counter()
    half = max(ablations // 2, 2)  # power is drawn, not promised
    total = ablations * len(names) + half * sum(map(len, gains.values()))
    with tqdm(total=total, unit="ablation", mininterval=1.0) as bar:
        null = [measure(name, SCENARIOS[name], ablations, bar) for name in names]
        points = [
            power(name, SCENARIOS[name], gain, half, bar, STYLES)
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
        curves = text_table(POWER_HEADER, power_table(points))
        print(f"\npower, %, after Holm, of one better arm\n\n{curves}")
    whole = ablations >= ABLATIONS and not (options.scenarios or options.no_power)
    path = options.json or (result_path("calibration", facts) if whole else None)
    publish(
        facts,
        HEADER,
        table(null),
        figures,
        path,
        [
            f"{ablations} ablations each, {figures['seconds']:.0f} s; ± Monte-Carlo standard error",
            "errors: ablations in which an arm of true delta 0 is called better or worse",
            "width: mean, over that of the corrected t-test of all cells",
            *(
                f"FAILED: {check.part}: {check.name} {check.figure:.4f}, bound {check.bound}"
                for check in failed
            ),
        ],
    )
    if options.plot:
        plot(options.plot, points, null)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
