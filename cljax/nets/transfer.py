"""Weight transfer: convolutions frozen, but for one scale for each pair of channels.

    W' = W * S

Symbols: W a kernel [k, k, c_in, c_out], S its scales [1, 1, c_in, c_out], the same at all
positions of the window.

S starts at 1 and persists. Once a network is transferred, its kernels W no longer learn; S,
BatchNorm's gains and shifts, and the head do.

Source: Liu et al., "Mnemonics Training", CVPR 2020 (arXiv:2002.10211), released code; after
Sun et al., "Meta-Transfer Learning", CVPR 2019 (arXiv:1812.02391). Their shifts would go with the
biases of convolutions, of which those networks have none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.types import Array, Lens, Model, Output, Params, PyTree, Variables

__all__ = ["convolves", "folded", "learning", "slow_in_loops", "with_scales"]


def with_scales(model: Model) -> Model:
    """``model`` with scales: params ``{"weights": the model's, "scales": of its kernels}``.

    ``scales`` mirrors the weights, with None for all but kernels of four dimensions. At scales of
    one the outputs are the model's, bit for bit. It is transferred once the first task is over.

    Raises:
      UserError: when it is initialised, if the network has no such kernel.
    """

    def init(key: Array, x: PyTree) -> Variables:
        weights, state = model.init(key, x)
        scales = jax.tree.map(_ones, weights)
        if not jax.tree.leaves(scales):
            raise UserError(
                "Weight transfer scales the kernels of convolutions, but this network has none of "
                "four dimensions; use a network such as resnet32, or no weight transfer."
            )
        return Variables({"weights": weights, "scales": scales}, state)

    def apply(variables: Variables, x: PyTree, train: bool) -> tuple[Output, PyTree]:
        return model.apply(_effective(variables), x, train)

    def grouped(variables: Variables, x: PyTree, member: Array) -> tuple[Output, PyTree]:
        assert model.grouped is not None
        return model.grouped(_effective(variables), x, member)

    def head(params: Params, outputs: Array) -> PyTree:
        assert model.head is not None
        scales = jax.tree.map(lambda _: jnp.ones((), bool), params["scales"])
        return {"weights": model.head(params["weights"], outputs), "scales": scales}

    rows = model.rows
    through = rows and Lens(
        get=lambda params: rows.get(params["weights"]),
        set=lambda params, kernel: {**params, "weights": rows.set(params["weights"], kernel)},
    )
    return Model(
        init,
        apply,
        grouped=grouped if model.grouped is not None else None,
        head=head if model.head is not None else None,
        rows=through,
        cosine=model.cosine,
        learns=lambda params, task: learning(params, task > 0),
    )


def learning(params: Params, transferred: Array) -> PyTree:
    """Which parameters of a network with scales learn: bools that broadcast to ``params``.

    Kernels of four dimensions do until ``transferred`` [] bool, their scales from then on, and
    everything else always.
    """
    transferred = jnp.asarray(transferred, bool)
    always = jnp.ones((), bool)
    return {
        "weights": jax.tree.map(
            lambda leaf: ~transferred if _is_kernel(leaf) else always, params["weights"]
        ),
        "scales": jax.tree.map(lambda _: transferred, params["scales"]),
    }


def folded(params: Params) -> Params:
    """The same network with its scales in the kernels, and scales of one."""
    ones = jax.tree.map(jnp.ones_like, params["scales"])
    return {"weights": _scaled(params), "scales": ones}


def convolves(model: Model, example: PyTree) -> bool:
    """Whether the network asks XLA for convolutions; ``example`` is one example's shapes.

    Those of ``cljax.nets.convolve`` are as fast in loops as outside, and do not count.
    """
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), example)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    if not any(_is_kernel(leaf) for leaf in jax.tree.leaves(variables.params)):
        return False
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, False)[0])(variables, x)
    return "conv_general_dilated" in str(traced)


def slow_in_loops(model: Model, example: PyTree) -> bool:
    """Whether the network's gradients are slow inside a compiled loop: convolutions on a CPU."""
    return jax.default_backend() == "cpu" and convolves(model, example)


def _is_kernel(leaf: Array) -> bool:
    return leaf.ndim == 4


def _ones(leaf: Array) -> Array | None:
    return jnp.ones((1, 1, *leaf.shape[2:]), leaf.dtype) if _is_kernel(leaf) else None


def _scaled(params: Params) -> Params:
    """The weights, kernels times their scales."""
    return jax.tree.map(
        lambda scale, leaf: leaf if scale is None else leaf * scale,
        params["scales"],
        params["weights"],
        is_leaf=lambda scale: scale is None,
    )


def _effective(variables: Variables) -> Variables:
    return variables._replace(params=_scaled(variables.params))
