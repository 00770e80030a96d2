"""The methods, one module a family, and their factories by their names on the command line."""

from cljax.methods import lamaml

METHODS = {
    "lamaml": lamaml.lamaml,
    "cmaml": lamaml.cmaml,
    "sync-lamaml": lamaml.sync_lamaml,
}

__all__ = ["METHODS", "lamaml"]
