"""What an outer step of mnemonics needs: memory by its back-propagation, time in training steps.

    python experiments/benchmarks/mnemonics_speed.py [--net resnet32 --inner-steps 20 --images 16]
    python experiments/benchmarks/mnemonics_speed.py --smoke

Memory is the compiled program's own analysis of its temporaries, as loops over the inner steps, for
``--images`` exemplars in each and as many validation images; time is of a small network on a CPU,
where inner steps are unrolled. A training step is forward, backward and SGD on 128 images. The
table goes to experiments/results/mnemonics_speed.md.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from cljax import resolve
from cljax.inner_loop import LoopOptions, sgd_step, unroll
from cljax.losses import cross_entropy
from cljax.types import Variables

sys.path.append(str(Path(__file__).parents[1]))
from common import Report, Table, arguments, device, number, printed, write

CLASSES, SIZE = 50, 32


def problem(net: str, steps: int, images: int, judges: int):
    model = resolve.net(net)(CLASSES)
    variables = model.init(jax.random.key(0), jnp.zeros((2, SIZE, SIZE, 3)))
    draw = lambda key, n: jax.random.normal(jax.random.key(key), (n, SIZE, SIZE, 3))
    x = draw(1, steps * images).reshape(steps, images, SIZE, SIZE, 3)
    y = jnp.arange(steps * images).reshape(steps, images) % CLASSES
    return model, variables, (x, y), (draw(2, judges), jnp.arange(judges) % CLASSES)


def outer(net: str, steps: int, images: int, judges: int, **options):
    """A function of exemplars that gives the validation loss and its gradient, and arguments."""
    model, variables, (x, y), judged = problem(net, steps, images, judges)

    def losses(params, batch):
        x, y = batch
        return cross_entropy(
            model.apply(Variables(params, variables.model_state), x, False)[0][0], y
        )

    def value(x, params):
        fitted = unroll(sgd_step(losses, 0.01), params, (x, y), order=2, **options).params
        return jnp.mean(losses(fitted, judged))

    return jax.value_and_grad(value), (x, variables.params)


def training(net: str, images: int):
    model, variables, (x, y), _ = problem(net, 1, images, 2)

    def step(params):
        def loss(params):
            output, _ = model.apply(Variables(params, variables.model_state), x[0], True)
            return jnp.mean(cross_entropy(output.logits, y[0]))

        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    return step, (variables.params,)


def compiled(function, args):
    began = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    return program, time.perf_counter() - began


def median_ms(program, args, repeats: int) -> float:
    jax.block_until_ready(program(*args))
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(program(*args))
        found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(found)


def memory_table(net: str, steps: int, images: int) -> Table:
    """Temporaries of an outer step by its back-propagation, and of a training step."""
    make = functools.partial(outer, net, steps, images, images)
    kinds = {
        "rematerialised": {"loop": LoopOptions(remat=True)},
        "plain": {},
        "the last 5 steps": {"last": min(5, steps)},
    }
    rows = []
    for name, options in kinds.items():
        program, took = compiled(*make(**options))
        size = program.memory_analysis().temp_size_in_bytes / 1e6
        rows.append(printed([name, number(size, ".0f"), number(took, ".0f")]))
    program, _ = compiled(*training(net, 128))
    size = program.memory_analysis().temp_size_in_bytes / 1e6
    rows.append(printed(["(a training step of 128 images)", number(size, ".0f"), None]))
    return Table(["back-propagation", "MB", "compiling, s"], rows)


def time_table(net: str, repeats: int) -> Table:
    """Time of outer steps in training steps."""
    plain, inputs = training(net, 128)
    base = median_ms(compiled(plain, inputs)[0], inputs, repeats)
    one = number(1.0, ".1f")
    rows = [printed(["training, 128 images", number(base, ".0f"), one, one])]
    for steps in (1, 3, 5):
        function, inputs = outer(net, steps, 16, 128, unroll_steps=True)
        took = median_ms(compiled(function, inputs)[0], inputs, repeats)
        # An inner step's gradient and its second derivatives are about 2.8 plain passes.
        images = (2.8 * 16 * steps + 128) / 128
        row = [f"outer, T = {steps}", number(took, ".0f"), number(took / base, ".1f"),
               number(images, ".1f")]  # fmt: skip
        rows.append(printed(row))
    return Table(["step", "ms", "in training steps", "images, in training steps"], rows)


def main() -> None:
    parser = arguments(
        __doc__, smoke="small networks, once", data_dir=False, out="mnemonics_speed.md"
    )
    parser.add_argument("--net", default="resnet32", help="for memory")
    parser.add_argument("--inner-steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--small", default="resnet8", help="for time")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.smoke:
        args.net = args.small = "resnet8:2,3,4"
        args.inner_steps, args.repeats = 4, 1

    print(device(), flush=True)
    parts = [
        f"Temporaries of one outer step of {args.net}, {args.inner_steps} inner steps of "
        f"{args.images} images, as loops:", "",
        memory_table(args.net, args.inner_steps, args.images), "",
        f"Time of an outer step of {args.small}, 16 exemplars an inner step, 128 validation "
        "images, unrolled; and the images that pass forward and backward, in training steps:", "",
        time_table(args.small, args.repeats),
    ]  # fmt: skip
    if not args.smoke:
        command = "python experiments/benchmarks/mnemonics_speed.py"
        about = f", on {device()}."
        write(args.out, Report("Cost of an outer step of mnemonics", command, about, parts))


if __name__ == "__main__":
    main()
