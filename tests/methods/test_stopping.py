"""Early stopping: when it ends, what it goes on from, what it never learns from."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import cljax
from cljax.errors import Interrupted, UserError
from cljax.methods.stopping import EarlyStopping
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare

EPOCHS, PATIENCE = 7, 2
DIGITS = cljax.streams.SplitMNIST(sample=True, samples_per_task=30).build()
OPTIONS = {
    "seeds": 1, "net": "mlp:4", "batch_size": 10, "lanes": "sequential", "progress": False,
    "epochs": EPOCHS,
}  # fmt: skip


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def by_hand(method, stream, *, restore):
    """Parameters after the first task, by a loop over epochs that looks at the validation rows."""
    model, spec = cljax.nets.mlp(4)(10), stream.spec(10)
    learner = method.bind(model, spec)
    state, rows = learner.init(cljax.keys.purpose(0, "init")), stream.valid(0)[0]
    x, y = stream.train_x[rows] / np.float32(255), stream.train_y[rows]
    allowed = np.where(stream.class_mask[0], 0.0, -np.inf)
    updates = [b for b, _ in cljax.batches(stream, seed=0, batch_size=10, epochs=EPOCHS)]
    best, ended, waited, epochs = (-1.0, None), None, 0, 0
    for epoch in range(EPOCHS):
        for batch in updates:
            if int(batch.clock.task) == 0 and int(batch.clock.epoch) == epoch:
                state, _ = learner.update(state, batch, ())
        epochs += 1
        variables = cljax.types.Variables(state.params, state.model_state)
        guess = np.argmax(np.asarray(model.apply(variables, x, False)[0].logits) + allowed, axis=1)
        right, ended = float((guess == y).sum()), state.params
        waited = 0 if right > best[0] else waited + 1
        best = (right, state.params) if right > best[0] else best
        if waited == PATIENCE:
            break
    return (best[1] if restore else ended), epochs


@pytest.mark.parametrize("restore", [True, False])
def test_a_task_ends_as_a_loop_by_hand_that_stops(restore):
    first = cljax.streams.base.first_tasks(DIGITS, 1)
    wanted, epochs = by_hand(cljax.Finetune(lr=0.3), first, restore=restore)
    run = cljax.run(
        cljax.Finetune(lr=0.3), first, patience=PATIENCE, restore_best=restore, **OPTIONS
    )
    assert epochs < EPOCHS
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    jax.tree.map(close, run.states[0].params, wanted)


def test_a_patience_beyond_all_epochs_without_restoring_is_the_run_without():
    plain = cljax.run(cljax.ER(lr=0.1, capacity=20), DIGITS, **OPTIONS)
    patient = cljax.run(
        cljax.ER(lr=0.1, capacity=20), DIGITS, patience=99, restore_best=False, **OPTIONS
    )
    assert patient.config["config_hash"] != plain.config["config_hash"]
    assert patient.results["cost"]["examples"] == plain.results["cost"]["examples"]
    seen = set(np.concatenate(DIGITS.valid(0)).tolist())
    learner = EarlyStopping(cljax.ER()).arrange(DIGITS)
    rows = learner.planner(0, 10, 2)
    learned = rows.index[rows.epoch >= 0]
    assert not seen & set(learned.ravel().tolist()) and seen <= set(rows.index.ravel().tolist())


def test_methods_with_phases_choose_exemplars_among_what_they_learned():
    run = cljax.run(cljax.ICaRL(capacity=20, lr=0.5), DIGITS, patience=1, **OPTIONS)
    kept = run.states[0].inner.exemplars
    valid = DIGITS.train_x[np.concatenate(DIGITS.valid(0))].reshape(-1, 784)
    own = np.asarray(kept.x)[np.asarray(kept.mask)].reshape(-1, 784)
    assert len(own) == 20
    assert not (own[:, None] == valid[None]).all(axis=2).any()


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    options = {**OPTIONS, "patience": 1, "running": cljax.Running(checkpoint_every="5", segment=5)}
    whole = cljax.run(cljax.Finetune(lr=0.3), DIGITS, **options)
    seen = []

    def stop(event):
        seen.append(event)
        if event.kind == "checkpoint" and sum(e.kind == "checkpoint" for e in seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        cljax.run(
            cljax.Finetune(lr=0.3), DIGITS, out=tmp_path / "a", **{**options, "progress": stop}
        )
    again = cljax.run(cljax.Finetune(lr=0.3), DIGITS, out=tmp_path / "a", **options)
    same(again.states[0], whole.states[0])
    assert again.results["evaluations"] == whole.results["evaluations"]


@pytest.mark.parametrize(
    ("method", "stream", "options", "message"),
    [
        (cljax.Finetune(), DIGITS, {"epochs": 1}, "needs several epochs .* epochs is 1"),
        (cljax.Independent(), DIGITS, {}, "independent cannot be stopped early, because its state"),
        (cljax.IID(), DIGITS, {}, "no task whose end could come sooner"),
    ],
)
def test_what_cannot_stop_early_says_why(method, stream, options, message):
    with pytest.raises(UserError, match=message):
        cljax.run(method, stream, patience=2, **{**OPTIONS, **options})


def test_a_run_without_patience_is_no_other_run():
    plain = prepare(cljax.ER(), DIGITS, RunOptions(seeds=1, net="mlp:4")).config
    assert "stopping" not in plain and "patience" not in plain["method"]["options"]
