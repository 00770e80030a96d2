"""What users hand in: methods, networks and the like, each checked in one sentence.

    check_method   a ``Method``; neither a penalty nor a factory that was not called
    model_of       what a network's factory makes: a ``Model``; neither a module nor a class
    check_network  what that returns: logits [B, C] and features [B, D], floats, a row an example
    check_plan     what a stream's own planner makes; ``shown``, what its transform does
    check_replay   a memory's functions, which fit each other and the stream
    check_offer    that a memory passes over what is not offered to it

``check_network`` and ``check_replay`` trace functions and run nothing; ``check_offer`` runs one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, in_words
from cljax.method import Method
from cljax.options import check_single
from cljax.penalty import Penalty
from cljax.states import Contents
from cljax.types import Evaluation, Examples, Model, Net, Output, PyTree, Spec, StepPlan, Variables

__all__ = [
    "check_evaluations", "check_memory", "check_method", "check_network", "check_offer",
    "check_plan", "check_progress", "check_replay", "model_of", "shown",
]  # fmt: skip

_ROWS = 3  # of the batch that a network or a memory is tried on
_OFFERED = 8  # of the batch that is offered to a memory


def check_method(method: Any) -> None:
    """Raises UserError unless this is a ``Method``, with what would make one of it."""
    if isinstance(method, Method):
        check_single(method)
        return
    if isinstance(method, Penalty):
        raise UserError(
            f"The method is the penalty {method.name}, but a penalty is carried by a method: "
            "cljax.Finetune(penalty=...), or ER, or LaMAML."
        )
    called = callable(method) and hasattr(method, "__name__")
    more = f"; call it: {method.__name__}()" if called else ""
    raise UserError(f"The method is {in_words(method)}, but it must be a Method{more}.")


def model_of(net: Net, num_outputs: int) -> Model:
    """The network for so many outputs.

    Raises:
      UserError: if ``net`` is not a function that makes a ``Model`` of a number of outputs.
    """
    right = (
        "a function of the number of outputs that makes a Model, such as cljax.nets.mlp(100) or "
        "lambda num_outputs: cljax.nets.from_linen(MyModule(num_outputs))"
    )
    if isinstance(net, Model) or _is_module(net) or not callable(net):
        raise UserError(f"The network is {in_words(net)}, but it must be {right}.")
    try:
        made = net(num_outputs)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The network {in_words(net)} could not be made for {num_outputs} outputs "
            f"({_short(error)}); it must be {right}."
        ) from error
    if not isinstance(made, Model):
        raise UserError(
            f"The network {in_words(net)} made {in_words(made)} for {num_outputs} outputs, but it "
            f"must be {right}."
        )
    return made


def _is_module(value: Any) -> bool:
    """Whether this is a module of a library of networks, or the class of one."""
    kinds = (value if isinstance(value, type) else type(value)).__mro__
    return any(
        kind.__name__ == "Module" and kind.__module__.partition(".")[0] in ("flax", "equinox")
        for kind in kinds
    )


def check_network(model: Model, example: PyTree, num_classes: int, stream: str) -> None:
    """Raises UserError unless a network returns what methods take.

    Args:
      example: ``jax.ShapeDtypeStruct`` of one example as the network sees it.
      num_classes: of the stream, which has the name ``stream``.
    """
    if not isinstance(model, Model):
        raise UserError(
            f"The model is {in_words(model)}, but it must be a Model, such as "
            "cljax.nets.mlp(100)(num_outputs) makes."
        )
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((_ROWS, *a.shape), a.dtype), example)
    key = jax.eval_shape(lambda: jax.random.key(0))
    seen = ", ".join(f"{a.dtype}{list(a.shape)}" for a in jax.tree.leaves(x))

    def traced(fn: Callable[..., Any], *args: Any) -> Any:
        try:
            return jax.eval_shape(fn, *args)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"The network fails on examples {seen}: {_short(error)}.") from error

    variables = traced(model.init, key, x)
    if not isinstance(variables, Variables):
        raise UserError(
            f"The network's init returns {in_words(variables)}, but it must return Variables("
            "params, model_state)."
        )
    before = traced(lambda v, x: model.apply(v, x, False), variables, x)
    after = traced(lambda v, x: model.apply(v, x, True), variables, x)
    for returned in (before, after):
        if not isinstance(returned, tuple) or not isinstance(returned[0], Output):
            raise UserError(
                "The network's apply must return (Output(logits, features), model_state), but "
                f"returns {in_words(returned)}."
            )
        _check_output(returned[0], seen)
    logits = before[0].logits
    if logits.shape[-1] != num_classes:
        raise UserError(
            f"The network has {logits.shape[-1]} outputs, but {stream} has {num_classes} classes; "
            "give it as many outputs, as its factory is asked for."
        )
    import chex  # here, so that importing cljax does not import it

    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(variables.model_state, after[1])
    except (AssertionError, ValueError) as error:
        raise UserError(
            "The network's apply in training mode returns a model_state of other shapes than its "
            f"init: {_short(error)}."
        ) from error


def _check_output(output: Output, seen: str) -> None:
    import chex

    for name, part in (("logits", output.logits), ("features", output.features)):
        try:
            chex.assert_shape(part, (_ROWS, None))
        except AssertionError:
            shape = list(getattr(part, "shape", ()))
            raise UserError(
                f"The network makes {name} of shape {shape} from examples {seen}, but it must "
                f"make a row for each example, [{_ROWS}, ...] here."
            ) from None
        if not jnp.issubdtype(part.dtype, jnp.floating):
            raise UserError(f"The network's {name} are {part.dtype}, but they must be floats.")


def check_plan(plan: Any, stream: str) -> None:
    """Raises UserError unless a stream's planner made a ``StepPlan`` of rows [S, B] and marks [S].

    B may be another than was asked for, as in plans that show old examples beside new ones.
    """
    if not isinstance(plan, StepPlan):
        raise UserError(
            f"The planner of {stream} makes {in_words(plan)}, but it must make a StepPlan."
        )
    import chex

    rows = np.shape(plan.index) if np.ndim(plan.index) == 2 else (None, None)
    for name, column in zip(StepPlan._fields, plan, strict=True):
        shape = rows if name in ("index", "task", "mask") else rows[:1]
        kind = bool if name in ("mask", "first_pass", "last") else int
        try:
            chex.assert_shape(column, shape)
            chex.assert_type(column, kind)
        except (AssertionError, AttributeError, TypeError):
            made = f"{getattr(column, 'dtype', type(column).__name__)}{list(np.shape(column))}"
            right = ", ".join("any" if size is None else str(size) for size in shape)
            raise UserError(
                f"The planner of {stream} makes {made} as {name}, but that must be "
                f"{kind.__name__}[{right}]."
            ) from None


def shown(
    apply: Callable[[PyTree, Any, Any], PyTree], tables: PyTree, x: Any, task: Any, stream: str
) -> PyTree:
    """Shapes and types of what a stream's transform makes of stored examples ``x``, traced.

    Raises:
      UserError: if it fails, or does not make a row for each example.
    """
    import chex

    stored = f"{x.dtype}{list(x.shape)}"
    try:
        seen = jax.eval_shape(apply, tables, x, task)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The transform of {stream} fails on stored examples {stored}: {_short(error)}."
        ) from error
    try:
        chex.assert_tree_shape_prefix(seen, x.shape[:1])
    except (AssertionError, ValueError):
        made = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(seen))
        raise UserError(
            f"The transform of {stream} makes {made} of stored examples {stored}, but it must "
            f"make a row for each, [{x.shape[0]}, ...] here."
        ) from None
    return seen


def check_replay(memory: Any, spec: Spec, capacity: int, num: int) -> None:
    """Raises UserError unless the functions of a ``cljax.memory.Memory`` fit each other.

    Args:
      capacity: of the memory, in examples. num: how many are replayed at once.
    """
    name = f"The memory {memory.name}"
    if spec.target is not None and memory.needs_classes:
        raise UserError(
            f"{name} needs classes, because it {memory.needs_classes}, but the targets of this "
            f"stream are {spec.target.dtype}{list(spec.target.shape)}; choose a memory such as "
            "reservoir."
        )

    def traced(function: str, fn: Callable[..., Any], *args: Any) -> Any:
        try:
            return jax.eval_shape(fn, *args)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name} fails in {function}: {_short(error)}.") from error

    empty = traced("init", lambda: memory.init(spec, capacity))
    if type(memory).__module__.startswith("cljax."):  # the rest is tested
        return
    contents = traced("contents", lambda state: getattr(state, "contents", None), empty)
    if not isinstance(contents, Contents):
        raise UserError(
            f"{name} makes {in_words(empty)} in init, but it must make what has a property "
            "contents, the cljax.memory.Contents that it holds."
        )
    label = jax.ShapeDtypeStruct((), jnp.int32)
    target = label if spec.target is None else spec.target
    one = Examples(spec.example, target, label), jax.ShapeDtypeStruct((), bool)
    _check_rows(f"{name} says contents", (Examples(*contents[:3]), contents.mask), one, None)
    key = jax.eval_shape(lambda: jax.random.key(0))
    drawn = traced("draw", memory.draw, empty, *_rows(one, (_ROWS,)), key)
    if any(leaf.shape[:1] != (_ROWS,) for leaf in jax.tree.leaves(drawn)):
        raise UserError(
            f"{name} draws {_shapes(drawn)} for {_ROWS} examples, but it must draw a row for each."
        )
    after = traced("offer", memory.offer, empty, *_rows(one, (_ROWS,)), drawn)
    import chex

    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(empty, after)
    except (AssertionError, ValueError) as error:
        raise UserError(f"{name} changes its form in offer: {_short(error)}.") from error
    for replace in (False, True):
        sample = lambda memory_state, key, replace=replace: memory.sample(
            memory_state, num, key, replace=replace
        )
        _check_rows(f"{name} samples", traced("sample", sample, empty, key), one, (num,))


def check_offer(memory: Any, spec: Spec, capacity: int) -> None:
    """Raises UserError for a memory of a user's own in which masked rows leave a trace.

    A batch whose every second row is masked is offered twice to the empty memory. The two differ
    in the masked rows alone, so what can be read afterwards must not.

    Args:
      capacity: of the memory, in examples.
    """
    if type(memory).__module__.startswith("cljax."):
        return
    mask = np.arange(_OFFERED) % 2 == 0
    label = jax.ShapeDtypeStruct((), jnp.int32)

    def batch(masked: int) -> Examples:
        """Ones, labels and tasks of 0; in masked rows another number, label and task."""

        def rows(valid: int, most: int, a: Any) -> np.ndarray:
            values = np.where(mask, valid, min(masked, most)).astype(a.dtype)
            values = values.reshape(-1, *(1 for _ in a.shape))
            return np.broadcast_to(values, (len(mask), *a.shape))

        x = jax.tree.map(functools.partial(rows, 1, 1), spec.example)
        y = rows(0, spec.num_classes - 1, label if spec.target is None else spec.target)
        return Examples(x, y, rows(0, spec.num_tasks - 1, label))

    @jax.jit
    def held(examples: Examples, first: Examples, key: Any) -> Contents:
        empty = memory.init(spec, capacity)
        drawn = memory.draw(empty, first, mask, key)
        return memory.offer(empty, examples, mask, drawn).contents

    def readable(examples: Examples) -> list[np.ndarray]:
        contents = held(examples, batch(0), jax.random.key(0))
        there = np.asarray(contents.mask)
        return [there, *(np.asarray(leaf)[there] for leaf in jax.tree.leaves(contents[:3]))]

    pairs = zip(readable(batch(0)), readable(batch(1)), strict=True)
    if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs):
        raise UserError(
            f"The memory {memory.name} stores rows that are masked: once a batch is offered to it, "
            "what it holds depends on rows whose mask is False; leave those out, as with the slots "
            "jnp.where(mask, slots, capacity)."
        )


def _rows(one: PyTree, lead: tuple[int, ...]) -> PyTree:
    """Shapes of one example as those of rows of them."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype), one)


def _check_rows(what: str, made: Any, one: PyTree, lead: tuple[int, ...] | None) -> None:
    """Raises UserError unless these are rows of examples and their mask; lead None: the mask's."""
    import chex

    try:
        right = _rows(one, made[1].shape if lead is None else lead)
        chex.assert_trees_all_equal_shapes(made, right)
        chex.assert_type(made[1], bool)
    except (AssertionError, AttributeError, IndexError, TypeError, ValueError):
        rows = "slots" if lead is None else str(lead[0])
        raise UserError(
            f"{what} {_shapes(made)}, but those must be Examples of rows like {_shapes(one[0])} "
            f"and a mask of bools, [{rows}, ...] and [{rows}]."
        ) from None


def _shapes(made: PyTree) -> str:
    """The arrays of a tree, by types and shapes, in words."""
    leaves = jax.tree.leaves(made)
    shapes = (f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves if hasattr(leaf, "shape"))
    return ", ".join(shapes) or in_words(made)


def check_evaluations(evaluations: Any) -> None:
    """Raises UserError unless these are evaluations, or None."""
    if evaluations is None:
        return
    listed = isinstance(evaluations, (list, tuple)) and not isinstance(evaluations, Evaluation)
    if not listed or not all(isinstance(evaluation, Evaluation) for evaluation in evaluations):
        raise UserError(
            f"evaluations is {in_words(evaluations)}, but it must be a list of Evaluations, such "
            'as [cljax.Evaluation(scenario="task")].'
        )
    names: list[Any] = [getattr(evaluation, "name", None) for evaluation in evaluations]
    for name in names:
        if not isinstance(name, str) or not name:
            raise UserError(
                f"An evaluation has the name {in_words(name)}, but it must be text, by which its "
                "matrix is found."
            )


def check_memory(what: str, num_bytes: int, instead: str) -> None:
    """Raises UserError for more bytes than this machine's memory, where that can be told.

    Args:
      what: takes so many, as the sentence's subject.
      instead: what to choose.
    """
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if num_bytes > there:
        raise UserError(
            f"{what} would take {num_bytes / 1e9:,.1f} GB, but this machine has "
            f"{there / 1e9:,.1f} GB; choose {instead}."
        )


def check_progress(progress: Any) -> None:
    """Raises UserError unless each event can be shown to this: see ``RunOptions.progress``."""
    several = isinstance(progress, (list, tuple)) and not callable(progress)
    for one in progress if several else () if progress is None else (progress,):
        if not isinstance(one, bool) and not callable(one):
            what = f"progress holds {in_words(one)}" if several else f"progress is {in_words(one)}"
            raise UserError(
                f"{what}, but it must be a function of an Event, None, True or False, or a list, "
                "such as [True, log] for the line of progress and a function."
            )


def _short(error: BaseException) -> str:
    """An error as part of a sentence."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:197] + '...'}"
