"""Every option of every method, penalty, policy, stream and network refuses what it cannot be.

The table is read off signatures, so a new factory whose options are not checked fails here.
"""

import collections.abc
import inspect
import re
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax import errors
from cljax.memory import MEMORIES, POLICIES
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.options import check_single, options_of
from cljax.streams import STREAMS

_PENALTIES = cljax.penalties.PENALTIES
_FACTORIES = {
    **{f"net {name}": make for name, make in NETS.items()},
}
_OPTIONS = {
    **{f"method {name}": method for name, method in METHODS.items()},
    **{f"penalty {name}": penalty() for name, penalty in _PENALTIES.items()},
    **{f"policy {name}": policy for name, policy in POLICIES.items()},
    **{f"memory {name}": memory for name, memory in MEMORIES.items()},
    **{f"stream {name}": source for name, source in STREAMS.items()},
}
# What is checked where it is opened: a learned rule by ``load_rule``, names of data sets and orders
# of their classes.
_ELSEWHERE = {"rule", "dataset", "class_order"}


def _kinds(annotation):
    """The alternatives of an annotation, Literals as the origin ``Literal``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return {kind for part in typing.get_args(annotation) for kind in _kinds(part)}
    return {typing.get_origin(annotation) or annotation}


def _wrong(kinds):
    """Values that an option of these kinds can never have."""
    found = [object(), jnp.ones(3)]
    if type(None) not in kinds and typing.Any not in kinds:
        found.append(None)
    if typing.Any in kinds or kinds & {str, typing.Literal}:
        found.append("no such word\0")
    if float in kinds:
        found += [float("nan"), -float("inf"), -1.5, "1", True, [0.1], 10**400, lambda step: 0.1]
    elif int in kinds:
        found += [-1, 2.5, "1", True, [1], 10**19, float("nan")]
    if bool in kinds and str not in kinds:
        found += ["yes", 1, np.ones(2)]
    if collections.abc.Sequence in kinds:
        found += [["a"], [0.5], [-3], 7]
    else:
        found.append(b"1")
    return found


def _options():
    for label, made in _OPTIONS.items():
        for option in options_of(made):
            if option.name not in _ELSEWHERE:
                yield label, option.name, option.type
    for label, factory in _FACTORIES.items():
        signature = inspect.signature(factory, eval_str=True)
        for parameter in signature.parameters.values():
            if parameter.name in _ELSEWHERE:
                continue
            widths = parameter.kind is parameter.VAR_POSITIONAL
            yield label, parameter.name, int if widths else parameter.annotation


def _made(label, name, value):
    if label in _OPTIONS:
        made = _OPTIONS[label].replace(**{name: value})
        check_single(made)  # as a run does
        return made
    factory = _FACTORIES[label]
    if name == "widths":
        return factory(value)
    return factory(*((8,) if label in ("net conv", "net cnn") else ()), **{name: value})


@pytest.mark.parametrize("label", [*_OPTIONS, *_FACTORIES])
def test_an_option_that_is_of_another_kind_or_out_of_range_is_refused_by_its_name(label):
    accepted = []
    for own, name, annotation in _options():
        if own != label:
            continue
        for value in _wrong(_kinds(annotation)):
            try:
                _made(label, name, value)
            except errors.UserError as error:
                short = name.removesuffix("s")
                told = re.search(rf"\b({short}|{short.rpartition('_')[2]})", str(error))
                if not told or "<class" in str(error) or " at 0x" in str(error):
                    accepted.append((name, value, str(error)))
            except Exception as error:  # noqa: BLE001, any other is what a user would see
                accepted.append((name, value, repr(error)))
            else:
                accepted.append((name, value, "accepted"))
    assert not accepted, "\n".join(map(str, accepted))


NUMBERS = [
    (cljax.ER(), "lr"), (cljax.Finetune(), "clip_norm"), (cljax.penalties.EWC(), "strength"),
    (cljax.BiC(), "temperature"), (cljax.memory.Mnemonics(), "damping"), (cljax.HAT(), "s_max"),
    (cljax.streams.Gaussian(stream=cljax.streams.MNISTRotations()), "width"),
]  # fmt: skip


@pytest.mark.parametrize("value", [1e39, 3.5e38, 10**39, np.float64(1e300)])
@pytest.mark.parametrize(("made", "name"), NUMBERS)
def test_a_number_that_is_infinite_in_float32_is_refused_there_alone(made, name, value):
    with pytest.raises(errors.UserError, match=f"^{name} is .* infinite in float32, .* 3.4e.38"):
        made.replace(**{name: value})
    made.replace(**{name: 3.4e38})
    with jax.enable_x64(True):
        made.replace(**{name: value})


@pytest.mark.parametrize("value", [1e-60, 1e-39, np.float64(1e-300)])
def test_what_must_be_above_0_is_so_in_float32_as_well(value):
    for made, name in ((cljax.Finetune(), "clip_norm"), (cljax.BiC(), "temperature")):
        with pytest.raises(errors.UserError, match=f"^{name} is .* which is 0 in float32"):
            made.replace(**{name: value})
        made.replace(**{name: 1.2e-38})
        with jax.enable_x64(True):
            made.replace(**{name: value})
    assert cljax.ER(lr=value).lr == value  # a rate may be 0


def arrays(y=1, **options):
    labels, task = np.array([0, y, 0, y]), np.array([0, 0, 1, 1])
    data = (np.zeros((4, 3), np.uint8), labels, task)
    return cljax.streams.from_arrays(data, test=data, **{"name": "s", "num_classes": 2, **options})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s, d: cljax.run("online", s, origins=3), "origins is 3"),
        (lambda s, d: cljax.run("online", s, seeds={1: 2}), "seeds is"),
        (
            lambda s, d: cljax.run("online", s, evaluations=[cljax.Evaluation("", "logits")]),
            "has the name ''",
        ),
        (lambda s, d: arrays(name=3), "name is 3"),
        (lambda s, d: arrays(dtype=None), "dtype is None"),
        (lambda s, d: arrays(y=2**40), "labels go up to 1099511627776"),
        (lambda s, d: cljax.run("online", s, tuning=3), "tuning is 3"),
        (lambda s, d: cljax.run("online", s, net=np), "The network is the module numpy"),
        (lambda s, d: cljax.streams.save_split(d / "x.npz", 3, seeds=[1]), "is 3"),
        (lambda s, d: cljax.streams.save_split(d / "x.npz", s, seeds=1), "seeds is 1"),
        (lambda s, d: cljax.recipe("er", "nope"), "'nope' is not known"),
        (lambda s, d: cljax.recipe("nope", "mnist-rotations"), "'nope' is not known"),
        (lambda s, d: cljax.sweep.plan("online", s, []), r"settings is \[\]"),
        (lambda s, d: cljax.streams.load_split(d / "words.npz"), "it is no archive"),
    ],
)
def test_arguments_of_another_kind_are_a_sentence(call, said, tmp_path):
    (tmp_path / "words.npz").write_text("words")
    with pytest.raises(errors.UserError, match=said) as raised:
        call(support.stream(), tmp_path)
    assert "\n" not in str(raised.value) and "pickle" not in str(raised.value)


def test_arrays_among_options_are_told_apart_by_being_the_same():
    """A method's structure is compared wherever JAX looks for a program that it has."""
    one, other = (cljax.Teacher(rule={"w": np.full(2, value)}) for value in (0.0, 1.0))
    structure = jax.tree.structure
    assert structure(one) == structure(one.replace(lr=0.5)) != structure(other)
    assert hash(structure(one)) == hash(structure(one.replace(lr=0.5)))
    seen = jax.jit(lambda method: method.lr)
    assert float(seen(one)) == float(seen(other))
