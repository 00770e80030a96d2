"""A network's variables as a safetensors file: arrays by path, and what they are of as metadata.

    params/Dense_0/kernel   params/Dense_0/bias   batch_stats/BatchNorm_0/mean   ...

The format holds arrays and text alone, so reading a file runs nothing of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_path, in_words
from cljax.nets.optional import optional
from cljax.storage import files
from cljax.storage.checkpoint import host_copy
from cljax.types import Model, Net, PyTree, Variables

__all__ = ["load_weights", "save_weights", "weights_metadata"]

_SHOWN = 3  # names in a sentence


def save_weights(
    path: str | Path, variables: Mapping[str, Any], metadata: Mapping[str, str]
) -> Path:
    """Writes variables, in Flax's form, and text about them.

    Raises:
      UserError: without the package safetensors, or if the file cannot be written.
    """
    numpy = optional("safetensors.numpy", "safetensors", "save_weights", extra="weights")
    check_path(path=path)
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder; name a file.")
    arrays = {name: np.asarray(host_copy(leaf), order="C") for name, leaf in _named(variables)}
    try:
        files.write_bytes(path, numpy.save(arrays, dict(metadata)))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def load_weights(path: str | Path, net: Net | Model, *, example: Any = None) -> dict[str, Any]:
    """The variables of a network from a file that ``run.save_weights`` wrote, in Flax's form.

    They are those that ``net``, such as ``cljax.nets.mlp(100, 100)`` or a model that an adapter
    made, has by its own ``init``: ``cljax.types.Variables(v.pop("params"), v)`` is what
    ``model.apply`` takes.

    Args:
      net: from the number of outputs to a ``Model``, or the model.
      example: one example as the network sees it, an array or a pytree of them, where the file
        does not say its shape.

    Raises:
      UserError: without the package safetensors, for a file that cannot be read, or weights of
        another network.
    """
    arrays, metadata = _read(path)
    model: Any = net
    if not isinstance(net, Model):
        if not callable(net):
            raise UserError(
                f"The network is {in_words(net)}, but it must be a Model or a function that makes "
                "one, such as cljax.nets.mlp(100, 100)."
            )
        model = net(_outputs(path, metadata))
    like = _shapes(path, model, metadata, example)
    named, structure = _named(like), jax.tree.structure(like)
    expected = {name: (leaf.shape, jnp.dtype(leaf.dtype)) for name, leaf in named}
    result = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    wrong = [name for name in {**expected, **result} if expected.get(name) != result.get(name)]
    if wrong:
        saved = metadata.get("net", "another one")
        raise UserError(
            f"The weights in {path} are of another network, {saved}: {_differences(wrong, result)} "
            f"in the file, {_differences(wrong, expected)} in this one."
        )
    return jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name, _ in named])


def weights_metadata(path: str | Path) -> dict[str, str]:
    """What a file of weights says of itself: method, stream, network, seed, classes, ...

    Raises:
      UserError: as ``load_weights`` for a file that cannot be read.
    """
    return _read(path)[1]


def _read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    safetensors = optional("safetensors", "safetensors", "load_weights", extra="weights")
    check_path(path=path)
    path = Path(path).expanduser()
    try:
        with safetensors.safe_open(str(path), "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118, no mapping
    except OSError as error:
        reason = error.strerror or "there is no such file"
        raise UserError(f"The weights in {path} cannot be read: {reason}.") from error
    except safetensors.SafetensorError as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{path} is no file of weights, or is damaged: {reason}.") from error


def _outputs(path: str | Path, metadata: Mapping[str, str]) -> int:
    try:
        return int(metadata["outputs"])
    except (KeyError, ValueError):
        raise UserError(
            f"{path} does not say how many outputs its network has; give the Model itself."
        ) from None


def _shapes(
    path: str | Path, model: Model, metadata: Mapping[str, str], example: Any
) -> dict[str, Any]:
    """The network's variables as shapes, by its own ``init``."""
    try:
        if example is None:
            said = json.loads(metadata["example"])
            example = jax.ShapeDtypeStruct(tuple(said["shape"]), jnp.dtype(said["dtype"]))
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), example)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"{path} does not say what its network's examples are like; give example, one of them."
        ) from None
    made: Variables = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
    return {"params": made.params, **made.model_state}


def _named(variables: PyTree) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _differences(names: list[str], own: Mapping[str, tuple[tuple[int, ...], Any]]) -> str:
    """Shapes of some names, as one of two files has them."""
    shown = [
        f"{name} is {own[name][1]}{list(own[name][0])}" if name in own else f"there is no {name}"
        for name in names[:_SHOWN]
    ]
    return ", ".join(shown) + (", ..." if len(names) > _SHOWN else "")
