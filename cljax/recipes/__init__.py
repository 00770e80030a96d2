"""Recipes: everything that a published row needs, keyed (method, stream, source, variant)."""

from cljax.recipes.base import Recipe
from cljax.recipes.catalogue import default, recipe, recipes

__all__ = ["Recipe", "default", "recipe", "recipes"]
