"""How the site is built: sphinx-build -W --keep-going -b html docs docs/_build/html."""

import os
import sys
from pathlib import Path

# Importing gflow for its docstrings compiles nothing and needs no device.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import gflow

project = "gflow"
author = "The gflow authors"
project_copyright = author
version = release = gflow.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docstrings",
    "mathml",
    "pages",
]
exclude_patterns = ["_build", "_ext", "_generated", "**/.ipynb_checkpoints", "notebooks/*.py"]

# Pages
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Notebooks are shown as they are committed, with their outputs.
nb_execution_mode = "off"

# Docstrings
autodoc_member_order = "bysource"
# Overrides have the text of what they override, once, in the base class.
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style"), ("Shapes", "params_style")]
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Looks
html_theme = "furo"
html_title = f"gflow {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
