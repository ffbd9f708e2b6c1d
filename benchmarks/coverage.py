"""What each method of an ablation's statistics says about ablations of known truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
from scipy import stats

from benchmarks.toy_ablations import Ablation, Setting, draw
from competition_kit.results.statistics import (
    Comparison,
    RowVariance,
    compare,
    holm,
    verdict,
)

__all__ = ["FALLBACK", "LEVEL", "METHODS", "OURS", "REFERENCE", "SCENARIOS", "measure", "power"]

LEVEL = 0.95

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
        # what the kit's rows do not bear: seeds that are the same in all folds (it derives them
        # anew), and folds that are sources (where it does not ask rows)
        "assumptions_hold": not (setting.sources or setting.one_start),
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


def power(
    name: str, setting: Setting, gain: float, count: int, bar: Any, methods: Iterable[str]
) -> dict[str, Any]:
    """Return how often the one arm of six that is truly better is found, as a JSON object."""
    better = replace(setting, gain=gain)
    found = _ablations(f"{name}, gain {gain}", better, count, bar)
    true = np.array([ablation.true for ablation in found])
    delta = _estimate(true[:, 0])
    truth = np.append(delta["value"], np.zeros(setting.arms - 1))
    answers = {method: _answer(found, truth, METHODS[method]) for method in methods}
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
