"""A learned update rule: an LSTM for each layer, run by each output unit, gates its gradient.

    x_j      = [W_j ; G_j ; a ; z_j]                  for each output unit j of a layer
    h_i, c_i = LSTM_i(relu(h_{i-1}); h_i, c_i)        i = 1, 2, 3,  h_0 = x_j, not rectified
    delta_j  = kappa tanh(U relu(h_3) + b)
    W_j      = W_j - lr delta_j G_j                   the head:  W = W - lr G

W_j are the weights into unit j, its bias as one more with input 1; a is the mean of the layer's
input (what the paper calls pre-activation) and z_j that of its output, over batch and positions.
A scale or a shift (GroupNorm) is a layer of one weight a channel. U starts at 0 and b at 1, so
every multiplier starts at kappa tanh(1), which is 1 by default: the rule starts as plain SGD.

Symbols: W ``params``, G ``grads``, (a, z) ``tape``, (h, c) ``carry``, delta ``multipliers``,
theta ``theta``, all that is learned: LSTMs, U, b, kappa; H ``hidden``.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), section 3 and its appendix. The paper leaves kappa's start open: 1 / tanh(1)
here, where 1 is a literal reading. ReLU is between the LSTMs, whose own activations are the usual
ones; the recurrent state is not rectified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from cljax.errors import UserError, check_finite, check_known, check_positive
from cljax.inner_loop import InnerStep
from cljax.types import Array, Model, Output, Params, PyTree, Tape, Variables
from cljax.update_rules.cells import stack

__all__ = [
    "SGD", "ForwardPass", "Gate", "NormUnit", "check_fits", "learned_step", "learned_update",
    "lstm_gate", "multipliers", "taped",
]  # fmt: skip

SGD = 1 / math.tanh(1.0)  # kappa at which the rule starts as plain SGD
NormUnit: TypeAlias = Literal["channel", "vector"]
Tapes: TypeAlias = Mapping[str, Tape]


class Slot(NamedTuple):
    """Where a gated layer lies: the path of its parameters, and which of them it moves."""

    name: str  # of the tape
    leaves: tuple[str, ...]  # ("kernel",), ("kernel", "bias"), ("scale",) or ("bias",)


class Group(NamedTuple):
    """Layers of equal sizes; their LSTMs are one batched program."""

    slots: tuple[Slot, ...]
    units: int
    inputs: int  # I
    outputs: int  # O, weights a unit
    hidden: int  # H


class ForwardPass(NamedTuple):
    """What a forward and backward pass gives the rule."""

    grads: Params
    tape: Tapes
    loss: Array  # []


class Gate(NamedTuple):
    """The rule as pure functions.

    ``init(key) -> theta``; ``start() -> carry``, zeros; ``apply(theta, params, grads, tape,
    carry) -> (multipliers, carry)``, the multipliers a pytree like the parameters, 1 where no
    layer is gated. Theta and carry are tuples, one entry a group, with a leading axis of layers.
    """

    init: Callable[[Array], PyTree]
    start: Callable[[], PyTree]
    apply: Callable[[PyTree, Params, Params, Tapes, PyTree], tuple[Params, PyTree]]
    groups: tuple[Group, ...]


def lstm_gate(
    model: Model,
    example: PyTree,
    *,
    hidden: int = 64,
    hidden_norm: int = 32,
    cells: int = 3,
    kappa: float = SGD,
    norm_unit: NormUnit = "channel",
) -> Gate:
    """The gates of a network's layers; the head has none.

    Args:
      model: with a tape (see ``cljax.types.Model``).
      example: ``jax.ShapeDtypeStruct`` of one example as the network sees it.
      hidden: H of kernels. hidden_norm: of scales and shifts.
      cells: LSTMs, one above the other.
      kappa: multipliers lie within +-kappa, which is learned, and start at kappa tanh(1).
      norm_unit: a scale's or shift's LSTM runs for each channel, or once for the whole vector.

    Raises:
      UserError: for counts below 1, or a network without a tape or with layers outside it.
    """
    check_positive(hidden=hidden, hidden_norm=hidden_norm, cells=cells)
    check_finite(kappa=kappa)
    check_known("norm_unit", norm_unit, get_args(NormUnit))
    groups, dtype = _groups(model, example, hidden, hidden_norm, norm_unit)
    networks = [
        stack(group.units, group.inputs, group.outputs, group.hidden, cells, kappa, dtype)
        for group in groups
    ]

    def init(key: Array) -> PyTree:
        theta = []
        for i, (group, network) in enumerate(zip(groups, networks, strict=True)):
            keys = jax.random.split(jax.random.fold_in(key, i), len(group.slots))
            theta.append(jax.vmap(network.init)(keys))
        return tuple(theta)

    def start() -> PyTree:
        zeros = lambda g: jnp.zeros((len(g.slots), g.units, g.hidden), dtype)
        return tuple(tuple((zeros(g), zeros(g)) for _ in range(cells)) for g in groups)

    def apply(
        theta: PyTree, params: Params, grads: Params, tape: Tapes, carry: PyTree
    ) -> tuple[Params, PyTree]:
        check_fits(theta, groups)
        result, after = jax.tree.map(jnp.ones_like, params), []
        for group, network, own, kept in zip(groups, networks, theta, carry, strict=True):
            x = jnp.stack([_inputs(slot, params, grads, tape, norm_unit) for slot in group.slots])
            kept, delta = jax.vmap(network.apply)(own, kept, x)
            after.append(kept)
            for slot, rows in zip(group.slots, delta, strict=True):
                result = _put(result, slot, rows)
        return result, tuple(after)

    return Gate(init, start, apply, groups)


def multipliers(gate: Gate, delta: Params) -> dict[str, Array]:
    """The multipliers of each gated layer, [units, weights a unit], by the layer's name.

    Args:
      delta: what ``gate.apply`` returned.
    """
    slots = [slot for group in gate.groups for slot in group.slots]
    return {
        slot.name if "kernel" in slot.leaves else f"{slot.name}/{slot.leaves[0]}": _rows(
            delta, slot
        )
        for slot in slots
    }


def learned_step(
    gate: Gate,
    theta: PyTree,
    loss_fn: Callable[[Output, Any], Array],
    model: Model,
    lr: Array | float,
    *,
    detach: bool = True,
) -> InnerStep:
    """The rule as an inner step for ``cljax.unroll``; its carry is that of the gate.

    Args:
      loss_fn: ``(output, batch) -> []``; the batch has the network's input in ``x``, and may have
        a ``mask`` [B] of its valid rows.
      lr: step size.
      detach: the weights that the gate looks at are constants in derivatives; gradient and tape
        are where ``unroll`` has order 1.
    """

    see = taped(model)

    def gradient(params: Params, carry: PyTree, batch: Any) -> tuple[PyTree, PyTree]:
        def loss(params: Params) -> tuple[Array, Tapes]:
            output, tape = see(Variables(params, {}), batch.x, getattr(batch, "mask", None))
            return loss_fn(output, batch), tape

        (value, tape), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return ForwardPass(grads, tape, value), carry

    def apply(params: Params, carry: PyTree, result: ForwardPass) -> tuple[Params, PyTree]:
        seen = jax.lax.stop_gradient(params) if detach else params
        delta, carry = gate.apply(theta, seen, result.grads, result.tape, carry)
        return jax.tree.map(lambda p, d, g: p - lr * d * g, params, delta, result.grads), carry

    return InnerStep(lambda params: gate.start(), gradient, apply)


def learned_update(gate: Gate, theta: PyTree, lr: Array | float) -> Any:
    """The rule as an ``optax.GradientTransformationExtraArgs``: gates and steps at once.

    ``update(grads, state, params, tape=...)`` takes the tape of the forward pass that made the
    gradients; the updates go to ``optax.apply_updates``, and the state is the gate's carry.

    Args:
      gate: of the network's layers. theta: trained, or ``gate.init(key)``.
      lr: step size, of the head too.
    """
    import optax  # here, so that methods work without it

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        tape = extra.get("tape")
        if params is None or tape is None:
            raise UserError(
                "A learned update needs params and tape: update(grads, state, params, tape=tape), "
                "with the tape of the forward pass (see cljax.types.Model)."
            )
        delta, state = gate.apply(theta, params, grads, tape, state)
        return jax.tree.map(lambda d, g: -lr * d * g, delta, grads), state

    return optax.GradientTransformationExtraArgs(lambda params: gate.start(), update)  # type: ignore


def taped(model: Model) -> Callable[..., tuple[Output, Tapes]]:
    """The network's tape.

    Raises:
      UserError: if it has none.
    """
    if model.tape is None:
        raise UserError(
            "A learned update rule needs to see what goes into and comes out of each layer, but "
            "this network has no tape; give its Model one (see cljax.types.Model)."
        )
    return model.tape


def _groups(
    model: Model, example: PyTree, hidden: int, hidden_norm: int, norm_unit: str
) -> tuple[tuple[Group, ...], Any]:
    """The gated layers by equal sizes, in the order of the tape, and the parameters' type."""
    tape_of = taped(model)

    def shapes() -> tuple[Variables, Tapes]:
        x = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), example)
        variables = model.init(jax.random.key(0), x)
        return variables, tape_of(variables, x)[1]

    variables, tape = jax.eval_shape(shapes)
    if jax.tree.leaves(variables.model_state):
        raise UserError(
            "A learned update rule works on networks without BatchNorm, whose running statistics "
            "are no weights; choose one with GroupNorm, such as resnet32:group."
        )
    params = variables.params
    sizes: dict[tuple[int, int, int, int], list[Slot]] = {}
    for name, own in tape.items():
        leaves = _at(params, name)
        if "kernel" in leaves:
            slots = [Slot(name, ("kernel", "bias") if "bias" in leaves else ("kernel",))]
        else:
            slots = [Slot(name, (leaf,)) for leaf in leaves]
        for slot in slots:
            rows = jax.eval_shape(lambda p, slot=slot: _rows(p, slot, norm_unit), params)
            x = jax.eval_shape(
                lambda p, t, slot=slot: _inputs(slot, p, p, t, norm_unit), params, {name: own}
            )
            width = hidden if "kernel" in slot.leaves else hidden_norm
            sizes.setdefault((*rows.shape, x.shape[-1], width), []).append(slot)
    _check_covered(model, params, sizes.values())
    groups = tuple(
        Group(tuple(slots), units, inputs, outputs, width)
        for (units, outputs, inputs, width), slots in sizes.items()
    )
    return groups, jax.tree.leaves(params)[0].dtype


def _check_covered(model: Model, params: Params, result: Any) -> None:
    """Raises UserError if a parameter belongs to no gated layer and not to the head."""
    gated = {f"{slot.name}/{leaf}" for slots in result for slot in slots for leaf in slot.leaves}
    head: set[str] = set()
    if model.head is not None and model.rows is not None:
        outputs = jnp.zeros(model.rows.get(params).shape[-1], bool)
        probe = jax.eval_shape(lambda: model.head(params, outputs))  # type: ignore[misc]
        # What is not a single flag is cut by outputs; other parameters of its layer go with it.
        head = {_path(path[:-1]) for path, leaf in _with_paths(probe) if leaf.ndim}
    rest = [_path(path) for path, _ in _with_paths(params)]
    rest = [name for name in rest if name not in gated and name.rpartition("/")[0] not in head]
    if rest:
        raise UserError(
            f"The network's tape says nothing of {rest[0]}, so no gate can move it; its tape must "
            "name every layer below the head."
        )


def _rows(params: Params, slot: Slot, norm_unit: str = "channel") -> Array:
    """A layer's weights, [units, weights a unit], the bias last."""
    leaves = _at(params, slot.name)
    if "kernel" not in slot.leaves:
        leaf = leaves[slot.leaves[0]]
        return leaf[:, None] if norm_unit == "channel" else leaf[None]
    kernel = leaves["kernel"]
    parts = [kernel.reshape(-1, kernel.shape[-1]).T]
    if "bias" in slot.leaves:
        parts.append(leaves["bias"][:, None])
    return jnp.concatenate(parts, axis=1)


def _put(params: Params, slot: Slot, rows: Array) -> Params:
    """Parameters with a layer's weights replaced: the inverse of ``_rows``."""
    leaves = dict(_at(params, slot.name))
    if "kernel" not in slot.leaves:
        leaves[slot.leaves[0]] = rows.reshape(-1)
    else:
        kernel = leaves["kernel"]
        count = math.prod(kernel.shape[:-1])
        leaves["kernel"] = rows[:, :count].T.reshape(kernel.shape)
        if "bias" in slot.leaves:
            leaves["bias"] = rows[:, count]
    return _with(params, slot.name.split("/"), leaves)


def _inputs(slot: Slot, params: Params, grads: Params, tape: Tapes, norm_unit: str) -> Array:
    """What the LSTM sees of each unit, [units, I]."""
    weights, gradient = _rows(params, slot, norm_unit), _rows(grads, slot, norm_unit)
    pre, post = tape[slot.name]
    pre, post = pre.astype(weights.dtype), post.astype(weights.dtype)
    if "kernel" not in slot.leaves:
        own = [pre[:, None], post[:, None]]
        if norm_unit == "vector":
            own = [pre[None], jnp.mean(post, keepdims=True)[None]]
        return jnp.concatenate([weights, gradient, *own], axis=1)
    if "bias" in slot.leaves:
        pre = jnp.append(pre, jnp.ones((), pre.dtype))
    shared = jnp.broadcast_to(pre[None], (weights.shape[0], pre.shape[0]))
    return jnp.concatenate([weights, gradient, shared, post[:, None]], axis=1)


def check_fits(theta: PyTree, groups: tuple[Group, ...]) -> None:
    """Raises UserError if ``theta`` was made for other layers."""
    fits = isinstance(theta, tuple | list) and len(theta) == len(groups)
    for own, group in zip(theta, groups, strict=False) if fits else ():
        lead = (len(group.slots),)
        fits &= own["cell_0"]["input"].shape == (*lead, group.inputs, 4 * group.hidden)
        fits &= own["out"]["kernel"].shape == (*lead, group.hidden, group.outputs)
    if not fits:
        wanted = ", ".join(
            f"{len(g.slots)} of {g.units} units with {g.outputs} weights and H = {g.hidden}"
            for g in groups
        )
        raise UserError(
            f"This learned update rule was made for another network; the layers here are: {wanted}."
        )


def _at(params: Params, name: str) -> Mapping[str, Array]:
    for part in name.split("/"):
        params = params[part]
    return params


def _with(params: Params, path: list[str], leaves: Mapping[str, Array]) -> Params:
    if not path:
        return dict(leaves)
    return {**params, path[0]: _with(params[path[0]], path[1:], leaves)}


def _with_paths(tree: PyTree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
