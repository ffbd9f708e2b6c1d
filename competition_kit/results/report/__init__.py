"""Reports: HTML files that need nothing else, made from the files of a run or an ablation."""

from contextlib import suppress

from competition_kit.results.report.ablation_report import write_ablation_report
from competition_kit.results.report.ensemble_report import write_ensemble_report
from competition_kit.results.report.run_report import write_run_report

__all__ = [
    "import_for_reports",
    "write_ablation_report",
    "write_ensemble_report",
    "write_run_report",
]


def import_for_reports() -> None:
    """Import what takes a report half a second, at a time when a core has nothing else to do."""
    with suppress(ModuleNotFoundError):  # which whoever writes a report says
        import jinja2  # noqa: F401
        import matplotlib.backends.backend_svg
        import matplotlib.figure  # noqa: F401
