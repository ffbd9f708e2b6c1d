"""Reports: HTML files that need nothing else, made from the files of a run or an ablation."""

from competition_kit.results.report.ablation_report import write_ablation_report
from competition_kit.results.report.ensemble_report import write_ensemble_report
from competition_kit.results.report.run_report import write_run_report

__all__ = ["write_ablation_report", "write_ensemble_report", "write_run_report"]
