"""README's picture: what three methods keep of five tasks.

    python experiments/readme_picture.py           # experiments/results/readme_picture.png
    python experiments/readme_picture.py --smoke   # tiny, to a file that is not kept

Split MNIST, of the sample that cljax ships, one pass, 5 seeds; rates were not tuned for it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import cljax
from cljax import plot

METHODS = {
    "finetune": cljax.Finetune(lr=0.05),
    "er": cljax.ER(lr=0.05, capacity=200, replay_size=10),
    "lamaml": cljax.LaMAML(alpha_init=0.15, alpha_lr=0.3, capacity=200),
}


def drawn(runs: dict[str, cljax.Run]) -> Figure:
    """The mean accuracy on the tasks seen so far, a line a method."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    title = "Two new digits a task: accuracy on all digits seen so far"
    plot.over_time(runs, ax=figure.add_subplot(), title=title)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny, to a file that is not kept")
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--out", type=Path, default=results / "readme_picture.png")
    args = parser.parse_args()
    images, seeds = (50, 2) if args.smoke else (500, 5)
    stream = cljax.streams.SplitMNIST(sample=True, samples_per_task=images).build()
    runs = {
        name: cljax.run(method, stream, seeds=seeds, net="mlp:100,100", batch_size=10)
        for name, method in METHODS.items()
    }
    out = Path(tempfile.mkdtemp()) / "picture.png" if args.smoke else args.out
    print(plot.save(drawn(runs), out, dpi=110))
    for name, run in runs.items():
        print(f"{name:10} RA {100 * run.metric('RA').mean():.1f} %")


if __name__ == "__main__":
    main()
