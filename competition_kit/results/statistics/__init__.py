"""The statistics of ablations: deltas with intervals, families of them, verdicts, plans.

What each number means to a competitor: docs/statistics.md. That the intervals hold what they
promise: `python -m benchmarks.calibration`.

    comparison.py   paired differences [S, K] -> delta, interval, p-value, posterior, verdict; Holm
    rows.py         what out-of-fold rows say: the data's part of the noise, bootstrap intervals
    design.py       the smallest delta that seeds x folds could detect
    across.py       arms ranked over several data sets
"""

from competition_kit.results.statistics.across import AcrossDataSets, across_data_sets
from competition_kit.results.statistics.comparison import (
    Comparison,
    Method,
    Verdict,
    compare,
    holm,
    verdict,
)
from competition_kit.results.statistics.design import (
    Detectable,
    Noise,
    found_by,
    minimum_detectable,
    noise_components,
    too_small,
)
from competition_kit.results.statistics.rows import (
    Interval,
    RowVariance,
    bootstrap_difference,
    row_variance,
    row_variance_of_means,
)

__all__ = [
    "AcrossDataSets",
    "Comparison",
    "Detectable",
    "Interval",
    "Method",
    "Noise",
    "RowVariance",
    "Verdict",
    "across_data_sets",
    "bootstrap_difference",
    "compare",
    "found_by",
    "holm",
    "minimum_detectable",
    "noise_components",
    "row_variance",
    "row_variance_of_means",
    "too_small",
    "verdict",
]
