"""The report as HTML: one file that needs nothing else, and what a notebook shows."""

from fxapprox.show.html.page import notebook, page

__all__ = ["notebook", "page"]
