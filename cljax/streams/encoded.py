"""A stream of features: every example once through a frozen network, kept on disk.

    z_i = f(x_i; variables)        x_i as the stream shows it to a test, without augmentation

Tasks, orders, validation rows and tests stay those of the stream. Where tasks show one image in
different ways (rotations, permutations), each has the features of its own view.

The file of features is found by what they are made of: SHA-256 of the network's code and weights,
of the stored examples and of what the stream makes of them. So features of another network never
take their place. The same checksum is part of the stream's, by which runs are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cljax.checks import check_memory
from cljax.data import digest
from cljax.data.cache import cached_arrays, user_cache
from cljax.errors import UserError, check_path, check_positive, check_text, in_words
from cljax.identity.content import contents, digest_of
from cljax.nets.adapted import check_variables
from cljax.streams.base import ENCODER, Rows, Stream, check_stream, checksum, derived
from cljax.streams.transforms import cast
from cljax.types import Array, Model, PyTree, Variables

__all__ = ["encoded"]

Apply: TypeAlias = Callable[[Any, Any], Any]  # (variables, x [B, ...]) -> features [B, D]
_SHOWN = 160  # characters of another library's error in a sentence


class _Encoder(NamedTuple):
    """A network as ``apply(arrays, x)``, and what tells it apart."""

    apply: Callable[[list[Any], PyTree], Any]
    arrays: list[Any]
    sha256: str
    own: bool  # whether its code is the user's


def encoded(
    stream: Stream,
    apply: Model | Apply,
    variables: PyTree,
    *,
    batch_size: int = 256,
    cache: str | Path | None = None,
    id: str | None = None,  # noqa: A002, the word that users know
) -> Stream:
    """The stream's examples as features [D] of a frozen network, in float32.

    Args:
      apply: a ``Model`` (of ``cljax.nets``, or of any Flax, NNX, Equinox or Haiku module by its
        converters), whose features in evaluation mode are taken; or a function (variables,
        x [B, ...]) -> features [B, D], such as the ``apply`` of a Linen module.
      variables: the network's: those of ``cljax.load(DIR).variables()`` or ``cljax.load_weights``,
        ``Variables``, or what the function takes, such as an Equinox module.
      batch_size: examples that pass the network at once.
      cache: folder for the file of features; None: the user's cache folder.
      id: says which function this is, where that cannot be told from its code and what it holds.

    Example:
        >>> import cljax, jax
        >>> stream, model = cljax.streams.toy("class"), cljax.nets.mlp(8)(4)
        >>> weights = model.init(jax.random.key(0), jax.numpy.zeros((1, 4, 4, 1)))
        >>> features = cljax.streams.encoded(stream, model, weights)
        >>> features.train_x.shape, features.num_tasks
        ((192, 8), 2)

    Raises:
      UserError: for a network without weights or with those of another one, that fails, or that
        does not make one vector of finite numbers of each example; for a function that cannot be
        told apart; and for a stream with a plan, held-out examples or an order of classes for each
        seed whose tasks show one image in different ways.
    """
    check_stream(stream)
    check_positive(batch_size=batch_size)
    if cache is not None:
        check_path(cache=cache)
    if id is not None:
        check_text(id=id)
    encoder = _encoder(stream, apply, variables, id)
    views = _views(stream)
    size = _num_features(stream, encoder, batch_size)
    count = views * (len(stream.train_x) + len(stream.test_x))
    what = f"{count} vectors of {size} features"
    check_memory(what, 4 * count * size, "a network with fewer features")

    def compute() -> tuple[np.ndarray, ...]:
        if encoder.own:
            jax.clear_caches()  # what was traced may hold globals that are others now
        parts = (_features(stream, encoder, x, views, batch_size) for x in _stored(stream))
        labels = (np.tile(y, (views, *(1,) * (y.ndim - 1))) for y in _targets(stream))
        (x, test_x), (y, test_y) = parts, labels
        return x, y, test_x, test_y

    x, y, test_x, test_y = _cached(cache, compute, _mark(stream, encoder, views))
    moved = _by_view(stream, views)
    return derived(
        stream, "features", encoder.sha256, views,
        name=f"{stream.name}[features-{encoder.sha256[:8]}]",
        train_x=x, train_y=y, test_x=test_x, test_y=test_y, transform=cast,
        source=f"{stream.source}, features of a network with SHA-256 {encoder.sha256[:12]}",
        manifest={**stream.manifest, ENCODER: np.array(encoder.sha256)},
        published=False, **moved,
    )  # fmt: skip


def _encoder(stream: Stream, apply: Any, variables: Any, name: str | None) -> _Encoder:
    """The network with its arrays apart from all else in its variables.

    Raises:
      UserError: as ``encoded``, for what is no network, has no weights, or cannot be told.
    """
    if not callable(apply) and not isinstance(apply, Model):
        raise UserError(
            f"The network is {in_words(apply)}, but it must be a Model, such as "
            "cljax.nets.resnet8()(50), or a function (variables, x) -> features."
        )
    if isinstance(apply, Model):
        variables = _of_model(stream, apply, variables)
    leaves, structure = jax.tree.flatten(variables)
    is_array = [isinstance(leaf, (np.ndarray, np.generic, jax.Array)) for leaf in leaves]
    if not any(is_array) or any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise UserError(
            f"The network has no weights: its variables are {in_words(variables)} without arrays; "
            "give trained ones, such as cljax.load(DIR).variables()."
        )

    def call(arrays: list[Any], x: PyTree) -> Any:
        given = iter(arrays)
        whole = [next(given) if own else a for a, own in zip(leaves, is_array, strict=True)]
        restored = jax.tree.unflatten(structure, whole)
        if isinstance(apply, Model):
            return apply.apply(restored, x, False)[0].features
        return apply(restored, x)

    arrays = [leaf for leaf, own in zip(leaves, is_array, strict=True) if own]
    rest = [leaf for leaf, own in zip(leaves, is_array, strict=True) if not own]
    code = apply.apply if isinstance(apply, Model) else apply
    result = contents({"apply": {} if name is not None else code, "variables": rest})
    if result.unknown:
        raise UserError(
            f"The network's {result.unknown[0]} cannot be told by its content, so its features "
            "cannot be told from another one's; pass id='...' that names it and changes with it."
        )
    local = {p.name: p.files for p in result.packages.values() if p.files}
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    ]
    named = [path for path, own in zip(paths, is_array, strict=True) if own]
    weights = checksum("", {n: np.asarray(a) for n, a in zip(named, arrays, strict=True)})
    told = digest_of([result.json, local, name, str(structure) if rest else ""])
    return _Encoder(call, arrays, checksum(told, {}, weights), bool(result.own))


def _of_model(stream: Stream, model: Model, variables: Any) -> Variables:
    """The variables of a model, which may be given in Flax's form."""
    if isinstance(variables, Variables):
        variables = {"params": variables.params, **(variables.model_state or {})}
    if not isinstance(variables, Mapping) or not jax.tree.leaves(dict(variables)):
        raise UserError(
            f"The network has no weights: its variables are {in_words(variables)}; give trained "
            "ones, such as cljax.load(DIR).variables()."
        )
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), stream.example)
    try:
        check_variables("cljax", model, variables, example)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_failure(stream, error)) from error
    rest = {name: part for name, part in variables.items() if name != "params"}
    return Variables(variables["params"], rest)


def _num_features(stream: Stream, encoder: _Encoder, batch_size: int) -> int:
    """D, by tracing the network on a batch.

    Raises:
      UserError: if it fails, or makes anything but a vector of floats of each example.
    """
    shape = lambda a: jax.ShapeDtypeStruct((batch_size, *a.shape), a.dtype)
    x = jax.tree.map(shape, stream.example)
    try:
        made = jax.eval_shape(encoder.apply, encoder.arrays, x)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_failure(stream, error)) from error
    if not hasattr(made, "shape") or not jnp.issubdtype(made.dtype, jnp.floating):
        got = f"{made.dtype}{list(made.shape)}" if hasattr(made, "shape") else in_words(made)
        raise UserError(
            f"The network makes {got} of a batch, but features are floats [B, D]; return no more."
        )
    if made.shape[:1] != (batch_size,):
        raise UserError(
            f"The network makes features {list(made.shape)} of {batch_size} examples, but it must "
            f"make a row for each, [{batch_size}, D]."
        )
    if len(made.shape) != 2 or not made.shape[1]:
        raise UserError(
            f"The network makes features {list(made.shape[1:])} of an example, but they must be a "
            "vector [D]; pool or flatten them in the function."
        )
    return made.shape[1]


def _failure(stream: Stream, error: Exception) -> str:
    text = " ".join(str(error).split())[:_SHOWN].rstrip(".")
    seen = ", ".join(f"{a.dtype}{list(a.shape)}" for a in jax.tree.leaves(stream.example))
    return (
        f"The network fails with these variables on examples {seen} of {stream.name} "
        f"({type(error).__name__}: {text}); give the variables of this network, and a stream of "
        "examples that it takes."
    )


def _views(stream: Stream) -> int:
    """In how many ways tasks show an example: one, or one for each task."""
    tables, apply = stream.transform.tables, stream.transform.apply
    x = jax.ShapeDtypeStruct((1, *stream.train_x.shape[1:]), stream.train_x.dtype)
    traced = jax.make_jaxpr(apply)(tables, x, jax.ShapeDtypeStruct((1,), np.int32)).jaxpr
    task = traced.invars[-1]
    used = any(task is var for eqn in traced.eqns for var in eqn.invars)
    if not used or stream.num_tasks == 1:
        return 1
    more = {
        "a plan of its own": stream.planner, "held-out examples": stream.held,
        "an order of its classes for each seed": stream.class_orders,
    }  # fmt: skip
    for what in (what for what, value in more.items() if value is not None):
        raise UserError(
            f"The tasks of {stream.name} show one image in different ways, and it has {what}, so "
            "which view its rows mean is not known; encode the stream of tasks that it is made of."
        )
    return stream.num_tasks


def _by_view(stream: Stream, views: int) -> dict[str, Any]:
    """The stream's rows, in the part of the features that is the task's view."""
    if views == 1:
        return {}
    train, test = len(stream.train_x), len(stream.test_x)

    def moved(rows: tuple[np.ndarray, ...], count: int) -> tuple[np.ndarray, ...]:
        return tuple((own + task * count).astype(np.int32) for task, own in enumerate(rows))

    def of(rows: Rows) -> Rows:
        return lambda seed: moved(rows(seed), train)

    return {
        "subsets": of(stream.subsets), "valid": of(stream.valid),
        "test_index": moved(stream.test_index, test),
    }  # fmt: skip


def _features(
    stream: Stream, encoder: _Encoder, x: np.ndarray, views: int, batch_size: int
) -> np.ndarray:
    """Features [views * N, D] float32 of stored examples [N, ...], view after view.

    Raises:
      UserError: if any is not finite.
    """
    tables, show = stream.transform.tables, stream.transform.apply

    @jax.jit
    def batch(arrays: list[Any], tables: PyTree, x: Array, task: Array) -> Array:
        seen = show(tables, x, jnp.full(x.shape[0], task))
        return encoder.apply(arrays, seen).astype(jnp.float32)

    arrays, tables = jax.tree.map(jnp.asarray, (encoder.arrays, tables))
    parts = []
    for task in range(views):
        for start in range(0, len(x), batch_size):
            rows = x[start : start + batch_size]
            padded = rows[np.minimum(np.arange(batch_size), len(rows) - 1)]
            made = np.asarray(batch(arrays, tables, padded, np.int32(task)))[: len(rows)]
            if not np.isfinite(made).all():
                row = start + int(np.flatnonzero(~np.isfinite(made).all(axis=1))[0])
                raise UserError(
                    f"The network makes features that are not finite numbers of example {row} of "
                    f"{stream.name}; check its weights, and how images are scaled."
                )
            parts.append(made)
    return np.concatenate(parts)


def _stored(stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    return stream.train_x, stream.test_x


def _targets(stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    return stream.train_y, stream.test_y


def _mark(stream: Stream, encoder: _Encoder, views: int) -> str:
    """What names the file of features: all that they are made of."""
    shown = contents({"transform": stream.transform._replace(augment=None)})
    if shown.unknown:
        raise UserError(
            f"The stream {stream.name} shows examples by {shown.unknown[0]}, which cannot be told "
            "by its content; give its transform tables and a function of them alone."
        )
    x64 = bool(jax.config.read("jax_enable_x64"))
    data = digest(*_stored(stream), *_targets(stream))
    return digest_of([encoder.sha256, data, shown.json, views, x64])[:32]


def _cached(
    cache: str | Path | None, compute: Callable[[], tuple[np.ndarray, ...]], mark: str
) -> tuple[np.ndarray, ...]:
    """The features and their labels, from a sound file if there is one."""
    home = user_cache() if cache is None else Path(cache).expanduser()
    return compute() if home is None else cached_arrays(home, "features", compute, mark).arrays
