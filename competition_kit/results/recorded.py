"""What a competition said of a run's submission, kept in the run folder."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass

from competition_kit.errors import InputError
from competition_kit.files import SCORE, Wanted, hash_file, read_json, write_json
from competition_kit.harness.run_folder import RunFolder

__all__ = ["Recorded", "is_current", "read_recorded", "record_score"]

log = logging.getLogger(__name__)

# metric -> what its scores lie between; another one (a user's own) may have any score
RANGES = {
    "accuracy": (0.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "micro_f1": (0.0, 1.0),
    "weighted_f1": (0.0, 1.0),
    "mcc": (-1.0, 1.0),
    "qwk": (-1.0, 1.0),
    "log_loss": (0.0, math.inf),
    "roc_auc": (0.0, 1.0),
}


@dataclass(frozen=True)
class Recorded:
    """Scores on a leaderboard.

    Attributes:
        submission_sha256: of the file that was handed in; the scores are of no other one.
        recorded: when they were written down.
    """

    public: float | None
    private: float | None
    submission_sha256: str
    recorded: str


def record_score(
    folder: RunFolder, *, public: float | None = None, private: float | None = None
) -> Recorded:
    """Write down the scores of a run's submission, as it is now.

    What was recorded of the same submission stays where it is not given again; what was recorded
    of another one is forgotten. Must be called with the run folder locked.

    Raises:
        InputError: if the run has no submission, or a score is none that its metric can have.
    """
    metric = read_json(folder.metrics, {"metric": str})["metric"]
    for score in (public, private):
        if score is not None:
            _check_score(score, metric)
    if not folder.submission.is_file():
        raise InputError(
            "no such file",
            file=folder.submission,
            remedy="a score belongs to a submission, and this run made none",
        )
    before = read_recorded(folder)
    if before is not None and is_current(before, folder):
        public = before.public if public is None else public
        private = before.private if private is None else private
    elif before is not None:
        log.warning("the submission has changed since scores were recorded: those are forgotten")
    now = Recorded(
        public, private, hash_file(folder.submission), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    )
    write_json(folder.recorded, asdict(now))
    return now


def _check_score(score: float, metric: str) -> None:
    if not math.isfinite(score):
        raise InputError(f"{score} is no score", remedy="give the number that was shown")
    low, high = RANGES.get(metric, (-math.inf, math.inf))
    if low <= score <= high:
        return
    span = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
    # percents; a loss that is shown as a gain; both
    meant = next((x for x in (score / 100, -score, -score / 100) if low <= x <= high), None)
    raise InputError(
        f"{score:g} is outside the range of {metric}, the run's metric ({span})"
        + ("" if meant is None else f", did you mean {meant:g}?"),
        remedy="if the competition shows another metric, run the run's command again with that "
        "--metric first: nothing is trained again",
    )


def read_recorded(folder: RunFolder) -> Recorded | None:
    """Return what was recorded of a run, None if nothing was.

    Raises:
        InputError: if the file is damaged.
    """
    if not folder.recorded.is_file():
        return None
    wanted: Wanted = {"public": SCORE, "private": SCORE, "submission_sha256": str, "recorded": str}
    content = read_json(folder.recorded, wanted)
    return Recorded(**{key: content[key] for key in wanted})


def is_current(recorded: Recorded, folder: RunFolder) -> bool:
    """Return whether the run's submission is still the one that was scored."""
    submission = folder.submission
    return submission.is_file() and hash_file(submission) == recorded.submission_sha256
