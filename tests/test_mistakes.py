"""Natural slips in Python: each is answered in one sentence that says what would be right."""

from __future__ import annotations

import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import learn

import cljax
from cljax import checks, errors, resolve
from cljax.errors import UserError
from cljax.types import Evaluation, Features, Output, Variables


@pytest.fixture(scope="module")
def stream():
    y = np.arange(24) % 4
    x = np.eye(4, 6)[y].astype(np.float32)
    return cljax.streams.from_arrays((x, y, y // 2), test=(x, y, y // 2), dtype="float32")


def _refused(match, fn, *args, **options):
    with pytest.raises(UserError, match=match) as found:
        fn(*args, **options)
    text = str(found.value)
    assert text.endswith((".", "?")) and "\n" not in text
    assert not any(mark in text for mark in ("<class", "<function", " at 0x"))


def test_what_is_no_method_is_refused_with_what_makes_one(stream):
    for what, match in (
        (cljax.penalties.EWC(100.0), "penalty ewc, but a penalty is carried by a method"),
        (cljax.penalties.SI(), "cljax.Finetune\\(penalty=...\\)"),
        (cljax.LaMAML, "the class LaMAML, .* call it: LaMAML\\(\\)"),
        (cljax.ER, "call it: ER\\(\\)"),
        (None, "The method is None"),
        (3, "The method is 3"),
        (cljax.Method, "The method is the class Method"),
        ("lamamll", "did you mean lamaml"),
        ("", "method '' is not known"),
        ("lamaml:reference", "--recipe SOURCE:VARIANT, or cljax.recipe"),
        ("er:er-code", "says more than a name"),
        ("no.module:make", "names the module no"),
        (":x", "cannot be imported"),
        ("os:path", "must be a function"),
    ):
        _refused(match, cljax.run, what, stream)


def test_what_is_no_stream_is_refused_with_what_makes_one():
    x = np.zeros((2, 3))
    for stream, match in (
        (cljax.streams.MNISTRotations, "call it: MNISTRotations\\(\\)"),
        (cljax.ER(), "The stream is an ER"),
        ((x, np.zeros(2)), "cljax.streams.from_arrays"),
        (x, "an array of shape \\(2, 3\\).*from_arrays"),
        (None, "needs a stream"),
        (7, "The stream is 7"),
        ("", "stream '' is not known"),
    ):
        _refused(match, cljax.run, cljax.Finetune(), stream)
    for fn in (cljax.streams.blurry, cljax.streams.task_free, cljax.streams.gaussian,
               cljax.streams.i_blurry):  # fmt: skip
        _refused("must be a Stream", fn, cljax.streams.MNISTRotations)
        _refused("open it: SplitMNIST\\(...\\).build\\(\\)", fn, cljax.streams.SplitMNIST())
    _refused("must be a Stream", cljax.streams.plan, x, 0, 2)
    _refused("must be a Stream", cljax.streams.on_validation, "mnist", 0)


class _Net(nn.Module):
    """Returns what ``made(logits, features)`` makes of them."""

    made: object
    outputs: int = 4

    @nn.compact
    def __call__(self, x, train):
        features = nn.Dense(3)(x)
        return self.made(nn.Dense(self.outputs)(features), features)


def _net(made):
    return lambda num_outputs: cljax.nets.from_linen(_Net(made, num_outputs))


def _wrong_variables(num_outputs):
    model = cljax.nets.mlp(2)(num_outputs)
    return model._replace(init=lambda key, x: model.init(key, x).params)


def _state_that_grows(num_outputs):
    model = cljax.nets.mlp(2)(num_outputs)
    return model._replace(
        init=lambda key, x: model.init(key, x)._replace(model_state={"n": jnp.zeros(1)}),
        apply=lambda v, x, train: (
            model.apply(v._replace(model_state={}), x, train)[0],
            {"n": jnp.zeros(2)} if train else v.model_state,
        ),
    )


def test_what_is_no_network_is_refused_with_what_makes_one(stream):
    for net, match in (
        (_Net(lambda a, b: (a, b)), "a _Net, but it must be a function of the number of outputs"),
        (_Net, "the class _Net"),
        (cljax.nets.mlp(2)(4), "a Model, but it must be a function"),
        (cljax.nets.mlp, "made a function|made the function"),
        (lambda: None, "could not be made for 4 outputs \\(TypeError"),
        (lambda num_outputs: _Net(lambda a, b: (a, b)), "made a _Net for 4 outputs"),
        (3, "The network is 3"),
        ("", "network '' is not known"),
        ("mlp:x", "widths 'x'|init"),
        ("mlp:0", "width is 0"),
    ):
        _refused(match, cljax.run, cljax.Finetune(), stream, net=net)


def test_a_network_that_returns_something_else_is_refused_before_it_trains(stream):
    for net, match in (
        (_net(lambda logits, features: logits), "must return the pair \\(logits, features\\)"),
        (_net(lambda logits, features: (logits, features, 0)), "must return the pair"),
        (_net(lambda logits, features: (logits[:, :2], features)), "2 outputs, .* 4 classes"),
        (lambda num_outputs: cljax.nets.mlp(3)(10), "10 outputs, but .* 4 classes"),
        (lambda num_outputs: cljax.nets.mlp(2, 3)(5), "5 outputs, but .* 4 classes"),
        (_net(lambda logits, features: (jnp.tile(logits, 2), features)), "8 outputs, .* 4 classes"),
        (_net(lambda logits, features: (logits.mean(0), features)), "logits of shape \\[4\\]"),
        (_net(lambda logits, features: (logits[:1], features)), "logits of shape \\[1, 4\\]"),
        (_net(lambda logits, features: (logits, features[:, :, None])), "features of shape"),
        (_net(lambda logits, features: (logits.astype(int), features)), "logits are int"),
        (_net(lambda logits, features: (logits @ features, features)), "fails on examples float32"),
        (_wrong_variables, "must return Variables"),
        (_state_that_grows, "model_state of other shapes"),
    ):
        _refused(match, cljax.run, cljax.Finetune(), stream, net=net)
        _refused(match, cljax.sweep.plan, cljax.Finetune, stream, [{}], net=net)


def test_apply_that_returns_no_output_is_refused():
    model = cljax.nets.mlp(2)(4)._replace(apply=lambda v, x, train: x)
    example = jax.ShapeDtypeStruct((6,), jnp.float32)
    _refused("must return \\(Output", checks.check_network, model, example, 4, "s")
    checks.check_network(cljax.nets.mlp(2)(4), example, 4, "s")  # a right one


def test_images_as_they_are_stored_are_refused_by_our_networks():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    for name in ("mlp:3", "conv:4", "cnn:4", "resnet8:2,2,2"):
        model = resolve.net(name)(4)
        variables = jax.eval_shape(
            model.init, jax.random.key(0), jax.ShapeDtypeStruct(images.shape, jnp.float32)
        )
        for wrong in (images, images.astype(int), images > 0):
            _refused("takes floats, .* / 255", jax.eval_shape, model.init, jax.random.key(0), wrong)
            apply = lambda v, x, model=model: model.apply(v, x, False)
            _refused("takes floats", jax.eval_shape, apply, variables, wrong)


def test_adapters_refuse_modules_where_they_take_makers():
    eqx, nnx = pytest.importorskip("equinox"), pytest.importorskip("flax.nnx")
    key = jax.random.key(0)
    for from_, wrong in (
        (cljax.nets.from_equinox, eqx.nn.Linear(2, 2, key=key)),
        (cljax.nets.from_equinox, eqx.nn.MLP(2, 2, 2, 1, key=key)),
        (cljax.nets.from_equinox, 3),
        (cljax.nets.from_nnx, nnx.Linear(2, 2, rngs=nnx.Rngs(0))),
        (cljax.nets.from_nnx, None),
    ):
        _refused("takes a function that makes the module, such as lambda", from_, wrong)
    _refused("takes a Linen module", cljax.nets.from_linen, _Net)
    _refused("takes a Linen module", cljax.nets.from_linen, lambda x, train: x)


def test_an_equinox_network_of_logits_alone_is_told_of_the_pair(stream):
    eqx = pytest.importorskip("equinox")
    net = lambda num: cljax.nets.from_equinox(lambda key: eqx.nn.Linear(6, num, key=key))
    _refused("Equinox module returns .*pair \\(logits, features\\)", cljax.run,
             cljax.Finetune(), stream, net=net)  # fmt: skip


def test_optimisers_that_need_more_than_a_gradient_are_refused():
    needs_more = "needs more than a gradient"
    for optimizer, match in (
        (optax.lbfgs(), needs_more),
        (optax.MultiSteps(optax.sgd(0.1), 2), "gradient_transformation\\(\\)"),
        (optax.adam, "the function adam"),
        (0.1, "optimizer is 0.1"),
        ("sdg", "did you mean sgd"),
        (None, "optimizer is None"),
    ):
        for make in (cljax.Finetune, cljax.ER, cljax.GEM, cljax.ICaRL, cljax.ITAML):
            if optimizer is not None:
                _refused(match, make, optimizer=optimizer)
        if not isinstance(optimizer, str):
            _refused(match, cljax.inner_loop.optax_step, lambda w, x: w, optimizer)
    cljax.Finetune(optimizer=optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation())
    cljax.Finetune(optimizer=optax.sgd(optax.constant_schedule(0.1)))  # where a schedule goes
    cljax.Finetune(optimizer=optax.masked(optax.sgd(0.1), {"other": True}))  # for other names
    _refused("schedule goes into an optax", cljax.Finetune, lr=optax.constant_schedule(0.1))


def test_a_keyword_that_is_not_known_is_named_with_its_neighbours(stream):
    for options, match in (
        ({"seed": 1}, "argument of cljax.run 'seed' is not known; did you mean .*seeds"),
        ({"batchsize": 4}, "did you mean batch_size"),
        ({"progres": print}, "did you mean .*progress"),
        ({"lr": 0.1}, "argument of cljax.run 'lr'"),
    ):
        _refused(match, cljax.run, cljax.Finetune(), stream, **options)
        with pytest.raises(UserError) as found:
            cljax.run(cljax.Finetune(), stream, **options)
        assert "prepare" not in str(found.value)
    _refused("cljax.sweep.plan 'epoch'", cljax.sweep.plan, cljax.ER, stream, [{}], epoch=1)


def test_the_keywords_of_run_are_the_fields_of_its_options():
    fields = [field.name for field in dataclasses.fields(cljax.runner.options.RunOptions)]
    assert list(inspect.signature(cljax.run).parameters) == ["what", "stream", *fields]
    assert all(f"  {name}: " in (cljax.run.__doc__ or name) for name in fields)


def test_how_a_run_is_kept_and_shown_is_checked(stream, tmp_path):
    for name, value, match in (
        ("progress", 3, "progress is 3, but it must be a function"),
        ("progress", "bar", "progress is 'bar'"),
        ("running", {"keep": 3}, "must be a cljax.Running"),
        ("running", "30s", "running is '30s'"),
        ("running", None, "running is None"),
        ("evaluations", ["logits"], "must be a list of Evaluations"),
        ("evaluations", Evaluation(), "must be a list of Evaluations"),
        ("readout", "yes", "readout is 'yes', but it must be True or False"),
        ("online", 1, "online is 1"),
        ("eval_every", -1, "eval_every is -1"),
        ("eval_every", 1.5, "eval_every is 1.5"),
        ("epochs", "2", "epochs is '2'"),
        ("epochs", 0, "epochs is 0"),
        ("batch_size", None.__class__, "batch_size is the class NoneType"),
    ):
        _refused(match, cljax.run, cljax.Finetune(), stream, **{name: value})
        if name in ("progress", "running"):
            _refused(match, cljax.resume, tmp_path, **{name: value})
    for name, value in (
        ("segment_seconds", 0),
        ("segment_seconds", float("nan")),
        ("checkpoint_every", "nans"),
        ("checkpoint_every", "infs"),
        ("checkpoint_every", 30.5),
        ("devices", 0),
    ):
        _refused(f"{name} is {value}", cljax.Running, **{name: value})


def test_more_than_the_machine_has_is_refused_before_it_is_asked_for(stream):
    big = 2**31 - 1
    for options, match in (
        ({"epochs": big}, "plan of 2147483647 epochs .* GB"),
        ({"epochs": 10**19}, "at most 2147483647"),
        ({"batch_size": 10**19}, "at most 2147483647"),
        ({"net": f"mlp:{big}"}, "state of a run would take .* GB"),
    ):
        _refused(match, cljax.run, cljax.Finetune(), stream, seeds=1, **options)
    for method in (cljax.ER(capacity=big), cljax.GEM(per_task=big), cljax.LaMAML(capacity=big)):
        _refused("state of a run", cljax.run, method, stream, seeds=1, net="mlp:2")


def test_studies_and_sweeps_are_checked(stream):
    tune = cljax.Tune(seeds=(1000,))
    for methods, match in (
        ({"er": cljax.ER}, "must be a dict of name -> \\(method"),
        ({"er": (cljax.penalties.EWC(1.0), {})}, "penalty ewc, but a penalty is carried by a"),
        ([cljax.ER], "must be a dict"),
        ({}, "must be a dict"),
        ({"er": ("er", {"lr": [0.1]})}, "The method is 'er'"),
    ):
        _refused(match, cljax.compare, methods, stream, tune=tune)
    right = {"er": (cljax.ER, {"lr": [0.1]})}
    _refused("must be a cljax.Tune", cljax.compare, right, stream, tune=3)
    _refused("must be a Stream", cljax.compare, right, cljax.streams.SplitMNIST)
    _refused("carried by a method", cljax.sweep.plan, cljax.penalties.EWC(1.0), stream, [{}])
    for settings in ({"lr": [0.1]}, "lr", [("lr", 0.1)], None):
        _refused("must be a list of settings", cljax.sweep.plan, cljax.ER, stream, settings)
    _refused("must be a Plan", cljax.sweep.run, stream)
    _refused("recipe is 3", cljax.sweep.plan, "er", stream, [{}], recipe=3)
    _refused("entries 'all'", cljax.sweep.plan, cljax.ER, stream, [{}], entries="all")


def test_folders_that_are_none_are_refused():
    for fn in (cljax.load, cljax.resume, cljax.sweep.status, cljax.sweep.merge, cljax.sweep.load):
        for folder in (3, None, [1]):
            _refused("must be the name of one", fn, folder)
    _refused("must name a file or folder", cljax.report.report, 3)


def test_numbers_of_figures_and_statistics_are_checked():
    for wrong in ("x", None, [[1], [1, 2]], [object()], {}):
        for fn in (
            cljax.metrics.retained_accuracy, cljax.metrics.forgetting, cljax.plot.task_curves,
            cljax.plot.accuracy_matrix, cljax.plot.mean_curve,
        ):  # fmt: skip
            if wrong is not None:
                _refused("must be", fn, wrong)
        _refused("must be|empty|finite", cljax.stats.summary, wrong)
        _refused("must be|p-value", cljax.stats.holm, wrong if wrong is not None else "x")
    _refused("must be a dict of names", cljax.plot.over_time, [0.1, 0.2])
    _refused("target is 0.5", cljax.stats.equivalence, [0.1], 0.5, 0.1)
    _refused("margin is 0", cljax.stats.equivalence, [0.1], cljax.stats.Cell(0.1, None, None), 0)
    _refused("correct has shape", cljax.metrics.prequential_accuracy, [[1, 2]], [1, 2, 3])


def test_keys_labels_seeds_and_models_of_other_types_are_refused(stream):
    rows, labels = np.eye(4), np.arange(4) % 2
    fit = lambda **o: cljax.evaluation.readout(
        Features(rows, o.pop("labels", labels)), Features(rows, labels), num_classes=2, steps=1, **o
    )
    for key in (-0.5, "x", np.ones(2), np.array(["a"])):
        _refused("key is .* must be a jax.random.key", fit, batch_size=2, key=key)
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        fit(batch_size=2, key=key)
    _refused("train.labels is", fit, labels=np.array([None] * 4))
    _refused("lr is -1", fit, lr=-1)
    for model in (1.5, cljax.nets.mlp(2), None):
        _refused("The model is", learn, cljax.Finetune(), model, stream, [0], batch_size=4)
    for seeds in (object(), int, "3", {1, 2}, frozenset([0]), {0: 1}.keys(), iter([0, 1])):
        _refused("seeds is", learn, cljax.Finetune(), None, stream, seeds, batch_size=4)
        _refused("seeds", cljax.run, cljax.Finetune(), stream, seeds=seeds)
        _refused("seeds", cljax.sweep.plan, cljax.Finetune(), stream, [{}], seeds=seeds)
    methods = {"a": (cljax.Finetune, {"lr": [0.1]})}
    for tune in (cljax.Tune(seeds={1000, 1001}), cljax.Tune(seeds=iter([1000]))):  # type: ignore
        _refused("seeds is a", cljax.compare, methods, stream, tune=tune)
    for seeds in ((0, 1), range(2), np.arange(2), jnp.arange(2)):
        assert cljax.keys.check_seeds(seeds) == (0, 1)
    _refused("The seed an object", cljax.streams.on_validation, stream, object())


@pytest.fixture(scope="module")
def lost(stream):
    return cljax.run(cljax.Finetune(lr=1e30), stream, seeds=2, net="mlp:3")


def test_where_all_seeds_diverged_every_question_says_so(lost):
    assert lost.diverged and lost.results["metrics"] == {}
    for name in ("RA", "forgetting", "prequential_accuracy"):
        with pytest.raises(UserError, match="all 2 seeds diverged .seed 0 at update") as found:
            lost.metric(name)
        assert "entries" not in str(found.value) and "smaller rates" in str(found.value)
    assert "All seeds diverged, so there are no numbers" in lost.table()
    assert "(2 of 2 seeds diverged)" in lost.table("latex")


def test_where_some_seeds_diverged_it_stands_beside_the_numbers(lost):
    results = {**lost.results, "diverged": [None, 3]}
    some = cljax.Run(lost.config, results)
    assert not some.diverged
    assert "Means over 1 of 2 seeds; 1 diverged." in some.table()


def test_modules_that_take_a_while_are_there_when_asked_for():
    for name in ("plot", "report", "geometry"):
        assert inspect.ismodule(getattr(cljax, name)) and name in dir(cljax)
    with pytest.raises(AttributeError, match="no attribute 'plots'"):
        cljax.plots  # noqa: B018
    assert not {"allocator", "interrupts", "lanes"} & set(dir(cljax))


def test_checks_let_right_values_and_tracers_pass():
    jax.jit(lambda lr: errors.check_rate(lr=lr))(0.1)
    jax.jit(lambda t: errors.check_above_zero(t=t))(-1.0)  # not known while it is traced
    errors.check_rate(a=0, b=1e-9, c=np.float32(2), d=jnp.asarray(3))
    errors.check_above_zero(a=1e-9, b=np.int64(1))
    errors.check_share(a=0, b=1, c=np.float64(0.5))
    errors.check_positive(a=1, b=np.int32(5), c=jnp.asarray(2))
    errors.check_counts(a=0)
    for value, words in (
        (10**5000, "sixty digits"),
        (np.ones(2), "shape \\(2,\\)"),
        ("x" * 99, "xx\\.\\.\\."),
    ):
        _refused(words, errors.check_positive, count=value)
    assert Variables({}, {}) and Output(1, 2)
