"""Figures, tables, one self-contained HTML page.

The room reads the files of run and bench folders and nothing else, and promises: the same files
give the same bytes; a page loads nothing and runs nothing; prompts are shown as text whatever
they hold; a missing figure is a dash with its reason.
"""

from ._bench import bench_report
from ._console import print_table
from ._docs import curve_svg, forest_svg, read_results, table_markdown
from ._export import save_figures
from ._page import write_report
from ._sensitivity import save_sensitivity_figures
from ._truths import truth_svg
from ._volume import save_volume_figures

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
