"""Sphinx configuration: ``make docs``."""

project = "pyvmm"
copyright = "the pyvmm authors"  # noqa: A001 (the name is Sphinx's)
release = "0.1.0"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "alabaster"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
exclude_patterns = ["_build"]
