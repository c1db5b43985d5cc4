"""Sphinx configuration: ``make docs``."""

project = "pyvmm"
copyright = "the pyvmm authors"  # noqa: A001 - the name is Sphinx's
release = "0.1.0"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "alabaster"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
exclude_patterns = ["_build"]
# the packages import none of each other, so two of them may have an error of one name
suppress_warnings = ["ref.python"]
