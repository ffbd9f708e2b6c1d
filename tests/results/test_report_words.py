"""An ablation in words: what its headline says, and what it counts."""

from __future__ import annotations

from typing import Any

from competition_kit.results.cut_batches import cut_batches
from competition_kit.results.report.ablation_words import headline


def arm(name: str, verdict: str | None, delta: float = 0.01, **more: Any) -> dict[str, Any]:
    found = {"delta": delta, "low": delta - 0.005, "high": delta + 0.005}
    return {"arm": name, "role": "arm", "verdict": verdict, **found, **more}


def said(
    *arms: dict[str, Any],
    rivals: tuple[dict[str, Any], ...] = (),
    cut: tuple[dict[str, Any], ...] = (),
    **design: Any,
) -> str:
    usual = {"missing": [], "complete": True, "seeds_added_after_a_look": [], "too_small": ""}
    content = {"arms": arms, "equal_compute": rivals, "design": {**usual, **design}}
    content |= {"cell_commits": [], "cut_batches": cut}
    return " ".join(headline(content))


def test_the_headline_in_words() -> None:
    same = "practically the same"
    assert said() == "Nothing can be said yet: no arm has been compared."
    assert said(arm("fgm", "no evidence"), arm("pgd", "no evidence")) == (
        "Nothing beats the noise: none of 2 arms is better than the baseline."
    )
    assert said(arm("fgm", "no evidence")).startswith("fgm does not beat the noise: +0.0100 [")
    assert said(arm("fgm", "better"), arm("pgd", "worse", -0.02)) == (
        "1 of 2 arms beats the noise: fgm, +0.0100 [+0.0050, +0.0150]. "
        "Worse than the baseline: pgd, −0.0200 [−0.0250, −0.0150]."
    )
    assert "2 of 2 arms beat the noise" in said(arm("a", "better"), arm("b", "better"))
    assert "Practically the same as the baseline: a, +" in said(arm("a", same), arm("b", same))
    assert "Not finished, missing are a; b." in said(missing=["a", "b"], complete=False)
    assert "Not finished: some cells" in said(complete=False)


def test_the_headline_counts_only_what_was_declared() -> None:
    late = arm("pgd", "better", role="exploratory")
    noise = arm("A/A", "worse", -0.02, role="a/a")
    longer = arm("none, 4 epochs", "better", role="equal epochs")
    text = said(arm("fgm", "better"), late, noise, longer, seeds_added_after_a_look=[3, 4])
    assert "1 of 1 arms beats the noise: fgm, " in text
    assert "Only exploratory, as tried after a first look: better, pgd, +0.0100 [" in text
    assert "Caution: even the baseline with other seeds comes out worse, −0.0200 [" in text
    assert "Seeds added after a first look (3 4)" in text


def test_the_headline_holds_tricks_against_their_budget() -> None:
    better = arm("fgm", "better", against="none, 4 epochs")
    worse = arm("pgd", "worse", -0.02, against="none, 8 epochs")
    assert (
        "Against the baseline with the same budget better: fgm against none, 4 epochs, "
        "+0.0100 [+0.0050, +0.0150]; worse: pgd against none, 8 epochs, −0.0200 ["
    ) in said(arm("fgm", "better"), rivals=(better, worse))
    assert "the same budget no arm is better; worse: pgd" in said(rivals=(worse,))


def test_the_headline_says_where_batches_were_cut() -> None:
    assert "cut" not in said(arm("fgm", "better"))
    cut = cut_batches("fgm", [16, 8, None, 4], 16) + cut_batches("none", [16, 16], 16)
    text = said(arm("fgm", "better"), cut=(*cut, {"arm": "pgd", "cells": 1, "rows": 8}))
    assert "Batches were cut as the GPU ran out of memory (fgm, 2 cells, to 4 rows; " in text
    assert "pgd, 1 cell, to 8 rows)" in text
