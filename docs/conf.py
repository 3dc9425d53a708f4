import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

project = "offkey"
author = "the offkey authors"
try:
    release = installed("offkey")
except PackageNotFoundError:
    release = "from a checkout"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "results",
    "methods",
    "public_names",
    "verbs",
]
if not tags.has("check"):  # noqa: F821 # Sphinx gives it; a page a module takes a third of the time
    extensions.append("sphinx.ext.viewcode")
exclude_patterns = ["_build", "_ext", "results"]
html_theme = "furo"
html_title = "offkey"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
maximum_signature_line_length = 88
