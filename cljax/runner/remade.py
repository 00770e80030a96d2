"""A run of a folder, prepared again from what its config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cljax.errors import UserError
from cljax.evaluation.again import Trained
from cljax.recipes import Recipe
from cljax.runner import artefacts
from cljax.runner.consent import check_consent
from cljax.runner.options import stored_options
from cljax.runner.prepare import Prepared, prepare
from cljax.runner.trained import stored_states, trained_of

__all__ = ["finished_states", "remade"]


def remade(folder: Path, config: Mapping[str, Any], *, trust: bool) -> Prepared:
    """What a folder's run is made of: method, network and stream, by their names and options.

    Args:
      trust: import the code that the folder names (``package.module:factory``).

    Raises:
      UserError: for a run that was begun with Python objects, one that names code, without
        ``trust``, or one that cannot be made.
    """
    begun = config.get("begun_as")
    if begun is None:
        raise UserError(
            f"The run in {folder} was begun with Python objects that no names give again, so only "
            "Python can resume it and give its states: call cljax.run as before, with the same out."
        )
    try:
        recipe = Recipe(**begun)
        asked = config.get("asked_objective", {})
        code = [asked[name] for name in ("loss", "score") if name in asked]
        check_consent(
            folder, [recipe.method, recipe.stream, *code], [recipe.net],
            [recipe.method_options.get("memory")], trust=trust,
        )  # fmt: skip
        start = None
        if config.get("start"):
            before = Path(config["started_from"]["folder"])
            start = finished_states(before, *artefacts.load(before), trust=trust)
        return prepare(recipe, None, stored_options(config, start=start))
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder / 'config.json'} asks for a run that cannot be made ({error}); it is damaged "
            "or of another version: run again in another folder."
        ) from error


def finished_states(
    folder: Path, config: Mapping[str, Any], results: Mapping[str, Any], *, trust: bool
) -> Trained:
    """The final states of a finished run, from its folder alone.

    Raises:
      UserError: as ``remade`` and ``cljax.runner.trained.stored_states``.
    """
    made = remade(folder, config, trust=trust)
    return trained_of(config, results, made, stored_states(folder, config, made), folder)
