"""The types that every part of cljax speaks, and the shape legend.

A continual-learning run is a pure function ``(hyper-parameters, data, key) -> history``; all
that changes while it runs is one pytree. These names are settled: a method, a network, a
stream or a memory that keeps to them works with everything else.

Shape legend, the same in every docstring::

    B  examples in a batch      T  tasks            C  outputs (classes)
    S  updates in a plan        P  parameters       D  features
    M  memory capacity          R  replay draw      K  inner steps        G  glances

Booleans called ``mask`` are True where an entry is valid. Accuracies are fractions in [0, 1],
losses are nats, times are seconds, sizes are bytes, everywhere except in printed tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

__all__ = [
    "Array", "Batch", "Clock", "Evaluation", "Examples", "FirstProduct", "Info",
    "Learner", "Lens", "Model", "Needs", "Net", "Network", "Objective", "Output", "Params",
    "Phase", "Predictor", "Pretraining", "Readout", "Recall", "Spec", "StepPlan",
    "Tape", "Variables",
]  # fmt: skip

Array: TypeAlias = jax.Array
Params: TypeAlias = Any  # a pytree of arrays
PyTree: TypeAlias = Any


class Clock(NamedTuple):
    """Where an update stands in the run. Every field is a traced scalar."""

    task: Array  # [] int32, id of the task being learned
    epoch: Array  # [] int32, pass over the task's data, from 0
    step: Array  # [] int32, update within the run (within the phase, for a phase), from 0
    first_pass: Array  # [] bool, True while the batch's examples are seen for the first time
    last: Array  # [] bool, True at the last update of the task (of the phase, for a phase)


class Batch(NamedTuple):
    """B examples in order of arrival."""

    x: PyTree  # [B, ...], as the network sees them
    y: Array  # [B] int32, global labels in [0, C); or targets, floats [B] or [B, K]
    task: Array  # [B] int32, task of each example
    mask: Array  # [B] bool, True = a real example, False = padding
    index: Array  # [B] int32, row in the stream's training arrays, -1 if there is none
    clock: Clock


class Examples(NamedTuple):
    """What a memory stores of each example, and what a loss takes; leaves ``[B, ...]``."""

    x: PyTree
    y: Any
    task: Any


class Output(NamedTuple):
    """What a network returns: ``logits [B, C]`` and ``features [B, D]`` (input of the head)."""

    logits: Array
    features: Array


class Tape(NamedTuple):
    """What one layer saw and gave, averaged over the batch and over positions."""

    pre: Array  # [C_in], its input: presynaptic activations (of a scale or shift: what it acts on)
    post: Array  # [C_out], its own output


class Variables(NamedTuple):
    """Trainable ``params`` and the network's other state (BatchNorm statistics; ``{}`` if none)."""

    params: Params
    model_state: PyTree


class FirstProduct(NamedTuple):
    """A network seen as ``apply(rest, x @ kernel)``; lets a method work on the product.

    ``split(params) -> (kernel, rest)`` and ``join(kernel, rest) -> params``;
    ``apply(rest, z) -> logits``, with x flattened.
    """

    split: Callable[[Params], tuple[Array, Params]]
    join: Callable[[Array, Params], Params]
    apply: Callable[[Params, Array], Array]


class Lens(NamedTuple):
    """A part of the parameters, to look at and to replace.

    ``get(params) -> part``; ``set(params, part) -> params`` leaves everything else as it is.
    """

    get: Callable[[Params], Array]
    set: Callable[[Params, Array], Params]


class Model(NamedTuple):
    """A network as two pure functions; see ``cljax.nets`` for ours.

    ``init(key, x) -> Variables`` with ``x [B, ...]`` an example batch;
    ``apply(variables, x, train) -> (Output, model_state)`` with a static ``train``.

    Networks whose examples see each other (BatchNorm) also have ``grouped(variables, x, member)
    -> (Output, model_state)``: training, with ``member`` [B, G] bool, each row True in one group
    or none. Every example is normalised by the statistics of its own group, the running ones
    follow group after group, and rows of no group, padding, reach neither. Without it, padding is
    refused, or repeats valid rows, which so weigh more in a batch's statistics.

    ``head(params, outputs)``, with ``outputs`` [C] bool, says which parameters learn when only
    those outputs may: a pytree of bools that broadcast to ``params``, True but for the rows of
    the other outputs. Needed by methods that freeze outputs.

    ``rows`` is the output layer's kernel [D, C], one column an output. Needed by methods that
    imprint new outputs or compare them by angle; ``cosine`` says that logits are cosines between
    features and rows, but for one scale.

    ``learns(params, task)`` says which parameters may learn during a task, as ``head`` does; None:
    all of them.

    ``tape(variables, x, mask=None) -> (Output, {layer: Tape})`` is ``apply`` in evaluation mode
    that also says what went into and came out of each layer below the head, on average over the
    rows of the mask; a layer's name is the path of its parameters, as in "Dense_0". Needed by
    learned update rules.
    """

    init: Callable[[Array, PyTree], Variables]
    apply: Callable[[Variables, PyTree, bool], tuple[Output, PyTree]]
    first_product: FirstProduct | None = None
    grouped: Callable[[Variables, PyTree, Array], tuple[Output, PyTree]] | None = None
    head: Callable[[Params, Array], PyTree] | None = None
    rows: Lens | None = None
    cosine: bool = False
    learns: Callable[[Params, Array], PyTree] | None = None
    tape: Callable[..., tuple[Output, Mapping[str, Tape]]] | None = None


Net: TypeAlias = Callable[[int], Model]  # number of outputs -> Model


def _as_it_is(x: PyTree, task: Array, key: Array | None = None) -> PyTree:
    return x


class Objective(NamedTuple):
    """What is minimised on a stream, and what its tests are judged by; see ``cljax.objectives``.

    ``loss`` and ``score`` are names, or functions ``(outputs, targets) -> [B]``. ``weights`` [C]
    are of classes, as they were given; what multiplies a row is the weight of its class over their
    mean. ``variance`` is that of the targets [K], for the score "r-squared".
    """

    loss: str | Callable[[Array, Array], Array] = "cross-entropy"
    weights: tuple[float, ...] | None = None
    score: str | Callable[[Array, Array], Array] = "accuracy"
    variance: tuple[float, ...] | None = None


class Spec(NamedTuple):
    """What a method may know of a stream before it sees it; all static.

    ``show(x [B, ...], task [B], key=None)`` makes stored examples what the network sees; with a
    key they are augmented, as in training.
    """

    example: PyTree  # jax.ShapeDtypeStruct of one example, as the network sees it
    class_mask: np.ndarray  # [T, C] bool, the outputs that belong to each task
    batch_size: int
    multi_head: bool = False  # losses and predictions use the example's own row of class_mask
    stored: PyTree = None  # of one example as the stream stores it; None: as the network sees it
    show: Callable[..., PyTree] = _as_it_is
    train_y: np.ndarray | None = None  # [N] labels of the training examples, for plans
    held: np.ndarray | None = None  # [H, n] rows of training examples that no task learns from,
    # a row a class, for methods that learn how to learn before they meet a new task
    pretraining: Pretraining | None = None  # how the first task is learned, see ``Stream``
    objective: Objective = Objective()
    target: Any = None  # ``jax.ShapeDtypeStruct`` of one target that is no label; None: a label

    @property
    def num_tasks(self) -> int:
        """T, the rows of ``class_mask``."""
        return self.class_mask.shape[0]

    @property
    def num_classes(self) -> int:
        """C, the columns of ``class_mask``: outputs of the network."""
        return self.class_mask.shape[1]


class Info(NamedTuple):
    """What an update reports: ``loss`` [] in nats, and named scalars or small arrays."""

    loss: Array
    metrics: Mapping[str, Array] = {}


class Needs(NamedTuple):
    """What a method asks of a stream; printed in tables, checked before a run."""

    boundaries: bool = False  # must know when a task ends
    task_ids_train: bool = False
    task_ids_test: bool = False
    continuum: int | None = None  # test examples that must share one unknown task
    epochs: bool = False  # more than one pass over a task's data


class Predictor(NamedTuple):
    """A way to predict from a state.

    ``prepare(state) -> view`` runs once an evaluation (class means, adapted models, ...);
    ``scores(view, batch) -> [B, C]`` runs for each test batch. ``batch.task`` holds the true
    task, or the one inferred in its stead, only where ``needs_task_ids``.
    """

    prepare: Callable[[PyTree], PyTree]
    scores: Callable[[PyTree, Batch], Array]
    needs_task_ids: bool = False


# (state, x [B, ...] as stored, y [B], index [B]) -> (x, y)
Recall: TypeAlias = Callable[[PyTree, PyTree, Array, Array], tuple[PyTree, Array]]


class Features(NamedTuple):
    """Features of examples with their labels, such as of a training set; a mask: those that count.

    ``x`` is [N, D], ``labels`` [N] whole numbers, ``mask`` [N] bool or None, which is all.
    """

    x: Any
    labels: Any
    mask: Any = None


class Readout(NamedTuple):
    """A linear layer fitted anew for an evaluation, on frozen features.

    See ``cljax.evaluation.readout``.
    """

    steps: int = 500  # of Adam, on all examples
    lr: float = 0.1


class Evaluation(NamedTuple):
    """One way to fill an accuracy matrix: which predictor, over which outputs, told what.

    With ``continuum`` p, so many test examples in a row are known to share one task but not
    which: it is the one whose outputs' largest scores by ``infer`` are highest on average over
    the p examples (iTAML, arXiv:2003.11652, Algorithm 2). Its outputs are then the allowed ones,
    and the predictor is told of it as if it were true.

    With ``readout``, scores are features [B, D], such as those of the predictor "features" that
    every method has: a linear layer is fitted on those of the task's training examples, over the
    task's own classes, and tested in the scenario "task". It is a probe and changes no state.
    """

    name: str = "logits"
    predictor: str = "logits"
    scenario: Literal["domain", "task", "class"] = "domain"
    continuum: int | None = None
    infer: str = "logits"  # the predictor that infers the continuum's task
    # what must be right of an example; "place": which class of its task, their first, second, ...
    hit: Literal["class", "task", "place"] = "class"
    metric: str = ""  # also report the accuracy on all that was seen under this name
    readout: Readout | None = None


class StepPlan(NamedTuple):
    """Which examples each update sees, one row per update: host arrays, or the device's copy."""

    index: Any  # [S, B] int32, rows of the stream's training arrays; below -1: remembered ones
    task: Any  # [S, B] int32, task of each example (chooses its transform)
    mask: Any  # [S, B] bool
    current: Any  # [S] int32, Clock.task
    epoch: Any  # [S] int32
    first_pass: Any  # [S] bool
    last: Any  # [S] bool


class Pretraining(NamedTuple):
    """How a network learns a stream's first task before any method begins; see ``pretrained``."""

    steps: int = 3000
    lr: float = 0.1
    batch_size: int = 128
    optimizer: str = "momentum"
    weight_decay: float = 0.0
    milestones: tuple[float, ...] = ()  # shares of the steps after which the rate drops tenfold


class Phase(NamedTuple):
    """Steps that precede or follow a task's data: exemplars, balanced fine-tuning, Fisher, ...

    ``plan(task, rows) -> StepPlan | None`` chooses the phase's steps on the host from the
    ``StepPlan`` of the task just learned (``None``: no steps for this task); ``draw`` and
    ``update`` are a method's. Lengths may differ from task to task without recompilation;
    the batch width may not. Being steps, a phase is segmented, checkpointed and resumed like
    training. ``select(state, row, key) -> row`` may put another row, of any width, in place of
    the plan's, where only the state knows which examples are next.
    """

    name: str
    plan: Callable[[int, StepPlan], StepPlan | None]
    draw: Callable[[PyTree, Batch, Array], PyTree]
    update: Callable[[PyTree, Batch, PyTree], tuple[PyTree, Info]]
    before: bool = False  # True: runs before the task's data instead of after
    stored: bool = False  # True: examples come as the stream stores them, not as it shows them
    augment: bool = False  # True: examples come augmented, as in training
    recall: Recall | None = None  # as a learner's
    select: Callable[[PyTree, StepPlan, Array], StepPlan] | None = None


class Learner(NamedTuple):
    """A method's functions for one problem, over one state pytree: what ``Method.bind`` makes.

    ``init(key) -> State``; ``draw(state, batch, key) -> Draws`` makes every random choice of an
    update; ``update(state, batch, draws) -> (State, Info)`` is deterministic, so recorded draws
    go straight in. ``recall`` puts remembered examples in the places of the plan's rows below
    -1. ``evaluations`` are those that the method is judged by; none: one for each predictor.
    ``rule(state)`` is a learned update rule in the final state, which a run then keeps in its
    folder.
    """

    init: Callable[[Array], PyTree]
    draw: Callable[[PyTree, Batch, Array], PyTree]
    update: Callable[[PyTree, Batch, PyTree], tuple[PyTree, Info]]
    predictors: Mapping[str, Predictor]
    phases: tuple[Phase, ...] = ()
    recall: Recall | None = None
    evaluations: tuple[Evaluation, ...] = ()
    gradients_per_update: int | None = None  # gradient evaluations, each over some examples
    examples_per_update: int | None = None  # examples in all of those together
    rule: Callable[[PyTree], PyTree] | None = None


class Network(NamedTuple):
    """The network during an update, for penalties that look at more than parameters."""

    logits: Callable[[Variables, PyTree], Array]  # (variables, x [B, ...]) -> [B, C], evaluating
    losses: Callable[[Variables, Examples], Array]  # -> [B] nats, evaluating: row by row
    model_state: PyTree  # at the update
    spec: Spec
