"""What a finished run answers by its final states: predictions, and its network's weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cljax.errors import UserError, check_known
from cljax.evaluation.again import Trained, class_names_of
from cljax.evaluation.predict import Prediction, Question, predict, question, seed_among
from cljax.keys import purpose
from cljax.method import Problem
from cljax.runner.config import evaluation_of
from cljax.runner.prepare import Prepared
from cljax.runner.remade import remade
from cljax.runner.trained import stored_states, trained_of
from cljax.states import WithNetwork, unwrapped
from cljax.storage.weights import save_weights
from cljax.types import PyTree, Variables
from cljax.version import __version__

__all__ = ["Answers"]


class Answers:
    """Of a run with its final states, in memory or in its folder."""

    config: Mapping[str, Any]
    results: Mapping[str, Any]
    path: Path | None
    states: tuple[PyTree, ...]
    prepared: Prepared | None
    trust: bool

    @functools.cached_property
    def made(self) -> Prepared:
        """What the run is made of; of one that was read back, as its folder names it."""
        if self.prepared is not None:
            return self.prepared
        if self.path is None:
            raise UserError("The final states are not stored: this run has no folder.")
        return remade(self.path, self.config, trust=self.trust)

    @functools.cached_property
    def state(self) -> Trained:
        """The final states with what made them, for ``cljax.evaluate``; without diverged seeds.

        Of a run that was read back they come from its folder, into the method that it names.

        Raises:
          UserError: for a run whose states are not stored or are damaged, whose method, network or
            stream cannot be made from its folder, or whose seeds all diverged.
        """
        made, states = self.made, self.states
        if not states:
            assert self.path is not None
            states = stored_states(self.path, self.config, made)
        return trained_of(self.config, self.results, made, states, self.path)

    @functools.cached_property
    def _questions(self) -> Mapping[str, Question]:
        evaluations = [evaluation_of(entry) for entry in self.config["evaluations"]]
        headline, *rest = evaluations  # the headline's own mistake is told, others' when asked
        rest = [e for e in rest if e.readout is None]
        return {e.name: question(self.state, e) for e in (headline, *rest)}

    def predict(
        self,
        x: Any,
        seed: int | None = None,
        task: int | None = None,
        *,
        evaluation: str | None = None,
    ) -> Prediction:
        """The scores and labels of new examples, by the run's own way to predict.

        Args:
          x: [N, ...], images as uint8 or as floats in [0, 1], or what else the stream stores; see
            ``cljax.evaluation.predict.as_stored``. The stream's transform is applied as in tests.
          seed: whose state predicts; None: the first one's.
          task: the task of all of them, exactly where the evaluation tells it or the stream's
            transform depends on it.
          evaluation: by its name; None: the headline's.

        Returns:
          ``Prediction(scores [N, C], labels [N])`` in the numbering of the stream's labels.

        Raises:
          UserError: as ``state``, and for examples of another shape or type, an unknown seed, task
            or evaluation, or a task that is missing or that nothing asks for.
        """
        name = self.config["evaluations"][0]["name"] if evaluation is None else evaluation
        questions = self._questions
        check_known("evaluation", name, questions)
        return predict(questions[name], x, seed=seed, task=task)

    def variables(self, seed: int | None = None) -> dict[str, Any]:
        """The network's variables in Flax's form: ``{"params": ..., "batch_stats": ...}``.

        What else than "params" there is depends on the network.

        Args:
          seed: whose; None: the first one's.

        Raises:
          UserError: as ``state``, for an unknown seed, or a method whose state holds no variables
            of the network as it was made, such as one network for each task.
        """
        trained = self.state
        state = trained.states[trained.seeds.index(seed_among(trained.seeds, seed))]
        holder = state if isinstance(state, WithNetwork) else unwrapped(state)
        made, result = self.made, None
        if isinstance(holder, WithNetwork):
            result = Variables(holder.params, holder.model_state)
        spec = made.stream.spec(made.config["batch_size"])
        problem = Problem(made.net(made.stream.num_classes), spec)
        like = jax.eval_shape(problem.variables, jax.eval_shape(lambda: purpose(0, "init")))
        shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
        if result is None or shapes(result) != shapes(like):
            raise UserError(
                f"The state of {made.method.name} holds no variables of the network as it was "
                "made, such as where each task has a network of its own; look into "
                "run.state.states."
            )
        return {"params": result.params, **result.model_state}

    def class_names(self, seed: int | None = None) -> list[str]:
        """What each output of the network is called in the data, else its number."""
        stream, seed = self.made.stream, seed_among(self.config["seeds"], seed)
        names = class_names_of(stream, seed)
        listed = np.arange(stream.num_classes) if names is None else names[: stream.num_classes]
        return [str(name) for name in listed]

    def save_weights(self, path: str | Path, seed: int | None = None) -> Path:
        """Writes the network's variables as a safetensors file; ``cljax.load_weights`` reads it.

        Arrays are named by their paths, such as ``params/Dense_0/kernel``; the metadata says the
        method, the stream, the config's hash, the seed, the network, its outputs and the names of
        their classes, and the shape and type of an example.

        Args:
          path: of the file, such as "model.safetensors".
          seed: whose variables; None: the first one's.

        Returns:
          The path.

        Raises:
          UserError: as ``variables``, without the package safetensors, or if it cannot be written.
        """
        variables, seed = self.variables(seed), seed_among(self.state.seeds, seed)
        stream, example = self.made.stream, self.made.stream.example
        metadata = {
            "made_by": f"cljax {__version__}",
            "method": str(self.results["method"]),
            "stream": str(self.results["stream"]),
            "config_hash": str(self.config["config_hash"]),
            "seed": str(seed),
            "net": str(self.config["net"]),
            "outputs": str(stream.num_classes),
            "classes": json.dumps(self.class_names(seed)),
        }
        if isinstance(example, jax.ShapeDtypeStruct):
            said = {"shape": list(example.shape), "dtype": str(example.dtype)}
            metadata["example"] = json.dumps(said)
        return save_weights(path, variables, metadata)
