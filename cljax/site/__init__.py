"""The site: guides, notebooks, a gallery of methods and the reference, made by Sphinx.

    names       what is public, and what of it lacks a docstring
    docstrings  a docstring as Markdown
    reference   a page for each public module
    gallery     the methods with their papers, pictures and notebooks
    pages       README, guides and notebooks of a checkout, and where their links lead
    make        all of it, by Sphinx

The command is ``cljax docs OUT``; it needs the extra ``docs``.
"""

from cljax.site.make import build

__all__ = ["build"]
