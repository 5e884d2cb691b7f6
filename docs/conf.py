"""Sphinx builds docs/ into a site: `make docs`. Nothing is fetched, then or when it is read."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for mathml.py

import fastnorm

project = "fastnorm"
author = copyright = "fastnorm contributors"
release = fastnorm.__version__

extensions = ["mathml", "myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = False
highlight_language = "text"  # docstrings' literal blocks are tables more often than code
default_role = "py:obj"  # docstrings write `name`: a link where that is public, else code

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

autodoc_inherit_docstrings = False  # torch.nn.Module's say nothing of ours
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"fastnorm {release}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
