"""What runs, streams and methods say of themselves in a terminal and in a notebook."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax.methods import METHODS
from cljax.streams import STREAMS


def run(diverged=(None, None), mean: float | None = 0.5):
    values = [None if step is not None else 0.5 for step in diverged]
    cell = {"mean": mean, "std": 0.0, "ci95": [0.4, 0.6], "values": values}
    matrix = [[[0.1, 0.2], [0.8, 0.2], [0.4, 0.6]]] * 2
    results = {
        "method": "er", "stream": "<mine>", "seeds": [0, 1], "diverged": list(diverged),
        "metrics": {} if mean is None else {"RA": cell}, "absent": {},
        "evaluations": {"logits": {"accuracy_matrix": matrix}},
    }  # fmt: skip
    return cljax.Run({"evaluations": [{"name": "logits"}]}, results)


def test_a_method_shows_the_options_that_differ_from_their_defaults():
    assert repr(cljax.ER()) == "ER()"
    assert repr(cljax.ER(capacity=10, lr=0.1)) == "ER(capacity=10)"
    ewc = cljax.penalties.EWC(3.0)
    assert repr(cljax.Finetune(penalty=ewc)) == "Finetune(penalty=EWC(strength=3.0))"


@pytest.mark.parametrize("made", [*METHODS.values(), *STREAMS.values()], ids=lambda made: made.kind)
def test_the_repr_of_every_method_and_stream_is_short_and_makes_it_again(made):
    names = {
        **vars(cljax),
        **vars(cljax.streams),
        **vars(cljax.penalties),
        type(made).__name__: type(made),
    }
    assert len(repr(made)) < 500
    assert eval(repr(made), names) == made  # noqa: S307


def test_arrays_and_functions_in_options_are_short():
    stacked = cljax.ER(lr=np.array([0.1, 0.2]))
    assert repr(stacked) == "ER(lr=<float64[2]>)"
    seen = []
    jax.jit(lambda method: seen.append(repr(method)) or method.lr)(cljax.ER(lr=jnp.float32(0.3)))
    assert seen[0].startswith("ER(lr=") and len(seen[0]) < 200


def test_a_stream_shows_its_sizes_and_no_array():
    stream = cljax.streams.MNISTRotations(sample=True, num_tasks=2, samples_per_task=10).build()
    assert "2 tasks, 10 classes" in repr(stream) and "array" not in repr(stream)


def test_a_run_is_one_line():
    assert repr(run()) == "Run(er on <mine>, 2 seeds, RA 50.0 % (50.0, 50.0))"
    assert "1 diverged" in repr(run((None, 7)))
    assert repr(run((3, 7), mean=None)) == "Run(er on <mine>, 2 seeds, 2 diverged)"


def test_a_notebook_shows_the_measures_and_the_matrix():
    html = run()._repr_html_()
    assert "final accuracy (RA)" in html and "50.00" in html and "data:image/png;base64," in html
    assert "<mine>" not in html and "&lt;mine&gt;" in html
