"""A run's report: one HTML file that needs nothing else, made from the files of the run."""

from competition_kit.results.report.run_report import write_run_report

__all__ = ["write_run_report"]
