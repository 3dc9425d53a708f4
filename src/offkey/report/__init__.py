"""Figures, tables, and one self-contained HTML page.

The room reads the files of run and bench folders and nothing else. It promises: the same files
give the same bytes; a page loads nothing and runs nothing; prompts are shown as text whatever they
hold; a missing figure is a dash with its reason.
"""

from offkey.report.bench_page import bench_report
from offkey.report.console import print_table
from offkey.report.documents import (
    curve_svg,
    forest_svg,
    read_results,
    table_markdown,
    truth_svg,
)
from offkey.report.figures import save_figures
from offkey.report.perturbation_figures import save_sensitivity_figures, save_volume_figures
from offkey.report.run_page import write_report

__all__ = [
    "bench_report",
    "curve_svg",
    "forest_svg",
    "print_table",
    "read_results",
    "save_figures",
    "save_sensitivity_figures",
    "save_volume_figures",
    "table_markdown",
    "truth_svg",
    "write_report",
]
