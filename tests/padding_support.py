"""Batches with padding for every method: a small network with BatchNorm, one program a method."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import contract_support
import jax
import jax.numpy as jnp
import numpy as np
import support

import cljax
from cljax.method import Method
from cljax.nets.batchnorm import BatchNorm
from cljax.nets.cosine import cosines
from cljax.nets.heads import outputs_last, rows_of
from cljax.types import Batch, Learner, Model, Output, Spec, Variables

SIZE, VALID = 3, 2  # rows of a batch, and those of one with padding that is compared with less

# Networks with BatchNorm are refused by these.
STATELESS = {"hat", "oml", "teacher"}
# Each method's usual options, but for one look at a batch where every look is code of its own.
ONCE = {"lamaml", "sync-lamaml", "cmaml", "la-er", "meta-bgd"}
# Options that have arithmetic of their own.
MORE = {
    "lamaml sum": ("lamaml", {"meta_reduce": "sum"}),
    "lamaml last, second order": ("lamaml", {"meta_reduce": "last", "order": "second"}),
    "lamaml low-rank": ("lamaml", {"algebra": "low-rank"}),
    "lamaml with ewc": ("lamaml", {"penalty": cljax.penalties.EWC(1.0)}),
    "gem low-rank": ("gem", {"algebra": "low-rank", "optimizer": "momentum"}),
    "er adam with rwalk": ("er", {"optimizer": "adam", "penalty": cljax.penalties.RWalk(window=2)}),
    "mer algorithm 7": ("mer", {"algorithm": "7", "z_scale": 2.0}),
    "itaml released": ("itaml", {"mode": "released"}),
    "itaml one gradient": ("itaml", {"algebra": "one-gradient", "optimizer": "sgd"}),
}
CASES = [*sorted(contract_support.CASES), *MORE]


def normalised(outputs: int, cosine: bool = False) -> Model:
    """A head behind BatchNorm, its shift and scale kept at 0 and 1: small programs.

    Of a row alone BatchNorm leaves nothing, and the head's bias alone learns from it.
    """
    norm = lambda x: BatchNorm(param_dtype=x.dtype)

    def init(key: jax.Array, x: jax.Array) -> Variables:
        layer = norm(x).init(key, x, False)
        kernel = 0.3 * jax.random.normal(key, (x.shape[1], outputs), x.dtype)
        head = {"kernel": kernel}
        if not cosine:
            head["bias"] = jnp.zeros(outputs, x.dtype)
        return Variables({"head": head}, {"batch_stats": layer["batch_stats"]})

    def run(variables: Variables, x: jax.Array, train: bool, member: Any) -> tuple[Output, Any]:
        ones = {"scale": jnp.ones(x.shape[1], x.dtype), "bias": jnp.zeros(x.shape[1], x.dtype)}
        collections = {"params": ones, **variables.model_state}
        features, state = norm(x).apply(collections, x, train, member, mutable=["batch_stats"])
        head = variables.params["head"]
        if cosine:
            logits = cosines(features, head["kernel"])
        else:
            logits = features @ head["kernel"] + head["bias"][None]
        return Output(logits, features), state if train else variables.model_state

    return Model(
        init,
        lambda variables, x, train: run(variables, x, train, None),
        grouped=lambda variables, x, member: run(variables, x, True, member),
        head=outputs_last("head"),
        rows=rows_of("head", "kernel"),
        cosine=cosine,
    )


def made(case: str, **extra) -> Method:
    name, options = MORE.get(case, (case, {}))
    once = {"glances": 1} if name in ONCE else {}
    return contract_support.make(name, **{**once, **options, **extra})


def problem(method: Method) -> tuple[Model, Spec]:
    held = method.name in contract_support.HELD
    spec = support.held_spec() if held else support.spec(**contract_support.form(method.name))
    spec = spec._replace(batch_size=SIZE)
    if method.name in STATELESS or method.options.get("algebra") == "low-rank":
        return cljax.nets.mlp(3)(spec.num_classes), spec
    return normalised(spec.num_classes, method.name in contract_support.COSINE), spec


class Programs(NamedTuple):
    """A method's, compiled once, and where it is when a third task begins."""

    start: Any  # before the first batch
    state: Any
    batch: Batch  # of the third task, all its rows valid
    draw: Any
    update: Any
    short: Any  # the update of a batch of VALID rows
    learner: Learner


@functools.cache
def programs(case: str) -> Programs:
    method = made(case)
    model, spec = problem(method)
    learner = method.bind(model, spec)
    # Two chunks, of two rows and of one: of two rows alone they are one.
    fewer = made(case, inner_steps=1) if method.name == "meta-bgd" else method
    short = fewer.bind(model, spec._replace(batch_size=VALID))
    draw, update = jax.jit(learner.draw), jax.jit(learner.update)
    start = state = jax.jit(learner.init)(jax.random.key(0))
    # On the host, here and below, so that nothing else is compiled.
    whole = jax.device_get(contract_support.batches_for(method.name, 5))
    rows = jax.tree.map(lambda a: a[:, :SIZE], whole._replace(clock=None))
    batches = rows._replace(clock=whole.clock)
    for i, mask in enumerate([(1, 0, 1), (1, 1, 1), (0, 1, 1), (1, 1, 1)]):
        batch = support.at(batches, i)._replace(mask=np.array(mask, bool))
        state, _ = update(state, batch, draw(state, batch, jax.random.key(i)))
    short = jax.jit(short.update)
    return Programs(start, state, support.at(batches, 4), draw, update, short, learner)


def filled(batch: Batch, mask: np.ndarray, seed: int, kind: str) -> Batch:
    """The batch with this mask [B], its other rows filled with what must not matter."""
    rng = np.random.default_rng(seed)
    content = {
        "zeros": np.zeros(batch.x.shape),
        "others": 50 * rng.normal(size=batch.x.shape),
        "huge": np.full(batch.x.shape, 1e300),
        "nan": np.full(batch.x.shape, np.nan),
    }[kind]
    labels = rng.integers(0, 1 + batch.y.max(), batch.y.shape).astype(np.int32)
    tasks = rng.integers(0, support.NUM_TASKS, batch.y.shape).astype(np.int32)
    return batch._replace(
        x=np.where(mask[:, None], batch.x, content),
        y=np.where(mask, batch.y, labels),
        task=np.where(mask, batch.task, tasks),
        index=np.where(mask, batch.index, np.int32(-1)),
        mask=mask,
    )


def without_padding(batch: Batch, draws: Any, mask: np.ndarray) -> tuple[Batch, Any]:
    """The valid rows alone, and the choices for them that ``draws`` holds."""
    rows, rank = np.flatnonzero(mask), np.cumsum(mask, dtype=np.int32) - 1
    alone = jax.tree.map(lambda a: a[rows], batch._replace(clock=None))
    draws, fields = jax.device_get(draws), {}
    for name in getattr(draws, "_fields", ()):
        value = getattr(draws, name)
        if name == "order":  # the valid rows are its first
            fields[name] = rank[value][..., : len(rows)]
        elif name in ("slots", "held_out") or "sequence" in draws._fields:  # an entry an example
            fields[name] = jax.tree.map(lambda a: a[rows], value)
    return alone._replace(clock=batch.clock), draws._replace(**fields) if fields else draws


def poisoned(draws: Any) -> Any:
    """The draws with other contents where a memory had no example to give."""
    pairs = {"replay": "replay_mask", "sequence": "mask", "reference": "mask", "x": "mask"}
    draws, fields = jax.device_get(draws), {}
    for name, of in pairs.items():
        if name in getattr(draws, "_fields", ()):
            mask = getattr(draws, of)
            spread = lambda a, m=mask: m.reshape(*m.shape, *(1,) * (a.ndim - m.ndim))
            spoil = lambda a, spread=spread: np.where(spread(a), a, a.dtype.type(7))
            fields[name] = jax.tree.map(spoil, getattr(draws, name))
    return draws._replace(**fields) if fields else draws


def emptied(state: Any) -> Any:
    """A state whose memory holds nothing, with other contents in its empty slots."""
    spoil = lambda a: np.full(a.shape, 7, a.dtype)
    if "memory" in state._fields:
        memory = state.memory
        return state._replace(memory=memory._replace(data=jax.tree.map(spoil, memory.data)))
    kept = state.exemplars
    fields = {name: spoil(getattr(kept, name)) for name in ("x", "exlog")}
    return state._replace(exemplars=kept._replace(**fields))


def learned_from(case: str, at: Programs, draws: Any) -> list[np.ndarray]:
    """The rows [n, D] of each pass that the running statistics follow, in order."""
    batch, passes = np.asarray(at.batch.x), []
    if case == "gem":
        ring = jax.device_get(at.state.memory)
        past = [x[:age] for x, age in zip(ring.data.x[:2], ring.age, strict=False)]
        return [*past, batch] * 2
    if case == "agem":
        for x, mask in zip(draws.reference.x, draws.mask, strict=True):
            passes += [np.asarray(x)[np.asarray(mask)], batch]
        return passes
    if case in ("finetune", "icarl-ti"):
        return [batch]
    rows = np.asarray(draws.replay.x).reshape(-1, *draws.replay.x.shape[-2:])
    masks = np.asarray(draws.replay_mask).reshape(len(rows), -1)
    return [np.concatenate([x[mask], batch]) for x, mask in zip(rows, masks, strict=True)]


def same_bits(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)
