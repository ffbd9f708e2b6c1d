"""What `ablation.json` says, every key in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from competition_kit.errors import InputError
from competition_kit.files import read_json

__all__ = ["NOISE", "RIVALS", "read_ablation"]

NOISE = "a/a"  # the role of the baseline with other seeds
RIVALS = ("equal epochs", "equal seeds")  # the baseline with the budget of a trick
_COSTS = ("passes", "seconds", "cpu_seconds", "peak_memory")
# None: not known
_ABLATION: dict[str, Any] = {
    "command": "",
    "git_commit": None,
    "versions": {},
    "started": None,
    "finished": None,
    "equal_compute": [],
    "interactions": [],
    "cell_commits": [],
    "cut_batches": [],
    "across": None,
}
_MACHINE = dict.fromkeys(("processor", "cores", "device", "memory_gb"))
_COMPETITION = {
    "title": "",
    "greater_is_better": True,
    "task": "single_label",
    "train_rows": None,
    "test_rows": None,
    "folder": None,
}
_DESIGN: dict[str, Any] = {
    "folds": [],
    "seeds": [],
    "aa_seeds": [],
    "level": 0.95,
    "rope": None,
    "rope_source": "",
    "minimum_detectable": None,
    "method": "",
    "too_small": "",
    "complete": True,
    "missing": [],
    "looks": [],
    "seeds_added_after_a_look": [],
}
_NUMBERS = (
    *("mean", "sd", "oof", "held_out"),
    *("delta", "low", "high", "p_value", "p_holm", "p_better", "p_same", "p_worse"),
    *("oof_delta", "ensemble_delta", "held_out_delta", "wins", "pairs"),
)
_ARM: dict[str, Any] = {
    "role": "arm",
    "spec": "",
    "folder": None,
    "seeds": [],
    "scores": [],
    "method": "",
    "note": "",
    "failure": "",
    "verdict": None,
    "sentence": "",
    **dict.fromkeys(_NUMBERS),
}
_INTERACTION: dict[str, Any] = {
    **dict.fromkeys(("delta", "low", "high", "p_value", "p_holm")),
    "sentence": "",
}


def read_ablation(folder: Path) -> dict[str, Any]:
    """Read `ablation.json`; what it leaves out is filled in as not known.

    The arms come back in the order in which people read them: baseline, tricks from the largest
    delta to the smallest, the baseline with their budgets, A/A. How tricks do against the baseline
    with their budgets stands apart, in `equal_compute`.

    Raises:
        InputError: without that file, if an arm or the competition has no name, or if a value
            stands where an object belongs (someone edited it).
    """
    path = folder / "ablation.json"
    if not path.is_file():
        raise InputError("no ablation.json", file=folder, remedy="python run_cv.py ablate makes it")
    content = read_json(path)
    try:
        return _completed(content)
    except KeyError as error:
        raise InputError(
            f"has no {error}", file=path, remedy="run the command that made it again"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"holds a value of another kind than the command that made it writes ({error})",
            file=path,
            remedy="run that command again",
        ) from error


def _completed(content: dict[str, Any]) -> dict[str, Any]:
    """Fill in what is left out, and check that everything has its name."""
    content = {**_ABLATION, **content}
    content["machine"] = {**_MACHINE, **(content.get("machine") or {})}
    content["design"] = {**_DESIGN, **(content.get("design") or {})}
    content["competition"] = {**_COMPETITION, **(content.get("competition") or {})}
    for key in ("arms", "equal_compute"):
        content[key] = [{**_ARM, **arm} for arm in content.get(key) or []]
    content["interactions"] = [{**_INTERACTION, **pair} for pair in content["interactions"] or []]
    for arm in (*content["arms"], *content["equal_compute"]):
        arm["note"] = arm["note"] or arm["failure"]
        cost = {**dict.fromkeys(_COSTS), **(arm.get("cost") or {})}
        # on a CPU other work on the machine changes processor time less than the clock's
        on_cpu = content["machine"]["device"] == "cpu" and cost["cpu_seconds"] is not None
        arm["cost"] = {**cost, "time": cost["cpu_seconds" if on_cpu else "seconds"]}
    for required, names in (
        (content, ("name",)),
        (content["competition"], ("name", "metric", "classes")),
        *((arm, ("arm",)) for arm in content["arms"]),
        *((arm, ("arm", "against")) for arm in content["equal_compute"]),
        *((pair, ("pair",)) for pair in content["interactions"]),
    ):
        for name in names:
            required[name]
    content["arms"].sort(key=_reading_order)
    return content


def _reading_order(arm: dict[str, Any]) -> tuple[int, float]:
    places = {"baseline": 0, **dict.fromkeys(RIVALS, 2), NOISE: 3}
    number = arm["delta"]
    return places.get(arm["role"], 1), float("inf") if number is None else -number
