"""How Sphinx makes a site of these documents: `make site`."""

project = "octaveconv"
copyright = "the authors of octaveconv"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "octaveconv"
myst_heading_anchors = 3
autodoc_typehints = "none"  # the signatures have them
autodoc_member_order = "bysource"
# Links to files beside docs/, such as CONTRIBUTING.md, lead nowhere in the site.
suppress_warnings = ["myst.xref_missing"]
