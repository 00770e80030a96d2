"""Text about a run: its table of metrics, and the paragraph for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cljax import measures
from cljax.references.published import published, sources_of
from cljax.references.tables import over_seeds, score_of
from cljax.stats import MIN_SEEDS, Cell, Verdict, equivalence, with_interval

__all__ = ["compare", "paragraph", "table", "tuned"]

_MARGINS = {"mnist": 0.015}  # of equivalence, by the start of a stream's name
_MARGIN = 0.02
_FIRST = ("RA", "LA", "BTI")  # the headline: said to be absent where it is


def table(
    config: Mapping[str, Any], results: Mapping[str, Any], changed: Sequence[str] = ()
) -> str:
    """Metrics by name, in percent or as the score is, with intervals, and published numbers.

    Args:
      changed: what can change bits and is other now than when a run was made.
    """
    seeds = results["seeds"]
    head = f"{results['method']} on {results['stream']}, {len(seeds)} seed{'s'[: len(seeds) > 1]}"
    lines = [f"{head}, recipe {config['recipe']['name']}"]
    if config.get("tuning"):
        lines.append(f"  {tuned(config['tuning'])}")
    lines += [f"  {notice}" for notice in config.get("notices", ())]
    lines += [f"  Made with {'; '.join(changed)}."] if changed else []
    lines.append("")
    lost = sum(step is not None for step in results["diverged"])
    if lost == len(seeds):
        lines.append("  All seeds diverged, so there are no numbers; try smaller rates.")
    elif lost:
        lines.append(f"  Means over {len(seeds) - lost} of {len(seeds)} seeds; {lost} diverged.")
    lines += _measured(results, config.get("unmeasured", {}))
    for seed, step in zip(seeds, results["diverged"], strict=True):
        if step is not None:
            lines.append(f"  seed {seed} diverged: its loss was not finite at update {step}")
    for source, name, target, verdict in compare(config, results):
        spread = "" if target.std is None else f" ± {100 * target.std:.2f}"
        lines.append(
            f"  {source} {name}: {100 * target.mean:.2f}{spread}; difference "
            f"{100 * verdict.diff:+.2f}: {verdict.verdict}"
        )
    return "\n".join(lines)


def _measured(results: Mapping[str, Any], absent: Mapping[str, str]) -> list[str]:
    """A line for each measure, then what they mean."""
    shown = {
        name: cell
        for name, cell in results["metrics"].items()
        if cell["mean"] is not None and not isinstance(cell["mean"], list)
    }
    gone = [name for name in _FIRST if name in absent]
    score = score_of(results)
    labels = {name: measures.label(name, score) for name in (*shown, *gone)}
    width = max(map(len, labels.values()), default=0)
    lines = []
    for name in measures.ordered([*shown, *gone]):
        value = f"{'-':>6}  {absent.get(name)}"
        if name in shown:
            cell = shown[name]
            value = with_interval(
                cell["mean"], cell["ci95"], values=cell["values"],
                bounds=measures.bounds(name, score), scale=measures.scale(score),
                spec=measures.digits(score), unit=measures.unit(name, score),
                width=6 if measures.in_percent(score) else 9,
            )  # fmt: skip
        lines.append(f"  {labels[name]:<{width}}{value}")
    if not shown:
        return lines
    count = sum(step is None for step in results["diverged"])
    meanings = measures.legend(shown, score)
    width = max((len(name) for name, _ in meanings), default=0)
    return [*lines, "", f"  Each: {over_seeds(count)}.",
            *(f"  {name:<{width}}  {meaning}" for name, meaning in meanings)]  # fmt: skip


def tuned(tuning: Mapping[str, Any]) -> str:
    """How a sweep chose values, in a few words: by what, where, among which, with which budget."""
    grid = "; ".join(f"{name} of {_listed(values)}" for name, values in tuning["grid"].items())
    chosen = ", ".join(f"{name}={value}" for name, value in tuning["chosen"].items())
    settings, seeds = tuning["settings"], tuning["seeds"]
    return (
        f"tuned by {tuning['metric']} on {tuning['on']} images of {tuning['stream']}: "
        f"{chosen or 'the only setting'} of {settings} setting{'s'[: settings > 1]} "
        f"({grid or 'no grid'}), seed{'s'[: len(seeds) > 1]} {_listed(seeds)}, "
        f"{tuning['runs']} run{'s'[: tuning['runs'] > 1]} in all"
    )


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def compare(
    config: Mapping[str, Any], results: Mapping[str, Any]
) -> list[tuple[str, str, Cell, Verdict]]:
    """(source, metric, target, verdict) for each published accuracy of this method and stream.

    None for a run that is of other data or other settings, or of fewer than five seeds, which
    decide nothing. A run by the recipe of one of the tables stands beside that one alone.
    """
    stream, method = results["stream"], results["method"]
    if not _comparable(config, results):
        return []
    if str(config["method"]["options"].get("exemplars", "")).startswith("mnemonics"):
        method += "+mnemonics"
    margin = next((m for start, m in _MARGINS.items() if stream.startswith(start)), _MARGIN)
    rows, sources = [], sources_of(method, stream)
    recipe = config["recipe"]["name"].partition(":")[0]
    for source in [recipe] if recipe in sources else sources:
        cells = published(source, method=method, stream=stream)
        for published_name, target in cells.items():
            for name in _protocols(published_name, results["metrics"]):
                values = results["metrics"][name]["values"]
                if None not in values:
                    verdict = equivalence(np.array(values, float), target, margin)
                    rows.append((source, name, target, verdict))
    return rows


def _comparable(config: Mapping[str, Any], results: Mapping[str, Any]) -> bool:
    """Whether published numbers say something about a run."""
    changed = config["recipe"].get("status", "").endswith(", changed")
    return (
        config["stream_facts"]["published"] and not changed and len(results["seeds"]) >= MIN_SEEDS
    )


def _protocols(name: str, metrics: Mapping[str, Any]) -> list[str]:
    """The metrics a published one stands beside: its own, or of an "accuracy" every protocol's."""
    if name in metrics:
        return [name]
    some = [other for other in metrics if other.startswith(f"{name}_")]
    return [other for other in some if not other.endswith("_by_session")]


def paragraph(config: Mapping[str, Any]) -> str:
    """How the numbers were made, in sentences: scenario, head, passes, memory, seeds, tuning."""
    facts, options = config["stream_facts"], config["method"]["options"]
    head = "multi-head (own task's outputs)" if facts["multi_head"] else "single-head"
    asks = [name.replace("_", " ") for name, value in config["needs"].items() if value]
    asked = ", ".join(asks) if asks else "neither task identities nor boundaries"
    passes = "a single pass" if config["epochs"] == 1 else f"{config['epochs']} passes"
    memory = "no replay memory"
    if options.get("capacity") is not None:
        memory = f"a replay memory of {options['capacity']} examples"
    elif options.get("capacity_bytes") is not None:
        memory = f"exemplars of {options['capacity_bytes']} bytes in all"
    elif options.get("per_class") is not None:
        memory = f"{options['per_class']} exemplars of each class"
    seeds = config["seeds"]
    test = ", ".join(_evaluated(entry) for entry in config["evaluations"])
    settings = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    sentences = [
        f"We train {config['method']['name']} on {config['stream']['name']}: "
        f"{facts['num_tasks']} tasks, {facts['num_classes']} classes, {facts['scenario']}-"
        f"incremental, {head}, images from {facts['source']}.",
        f"The learner makes {passes} over each task in batches of {config['batch_size']}, with "
        f"{memory}; training uses {asked}.",
        f"The network is {config['net']}; hyper-parameters are {settings}.",
        f"They come from {config['recipe']['name']} ({config['recipe']['status']}); nothing was "
        "tuned on test data.",
        f"Each of {len(seeds)} seeds ({', '.join(map(str, seeds))}) has its own images, order and "
        "initial weights, the same for every method.",
        f"{_when(config)} we test with {test}; {_measures(config)}; intervals are 95 % t-intervals "
        "over seeds, standard deviations have ddof 1.",
    ]
    if config["recipe"]["notes"]:
        sentences.append(f"Notes: {config['recipe']['notes']}")
    return " ".join(sentences)


def _when(config: Mapping[str, Any]) -> str:
    ends = config["stream_facts"]["boundaries"] and "AIA" not in config.get("unmeasured", {})
    return "After each task" if ends else "At the end, and after equal parts of the updates,"


def _measures(config: Mapping[str, Any]) -> str:
    """What RA, LA and BTI are, and which of them are not reported."""
    said = "RA is the mean accuracy over all tasks at the end"
    absent = config.get("unmeasured", {})
    if "LA" not in absent:
        return (
            f"{said}, LA the mean accuracy on each task when it was learned, BTI their difference"
        )
    return f"{said}; LA and BTI are not reported: {absent['LA'].rstrip('.')}"


def _evaluated(entry: Mapping[str, Any]) -> str:
    question = f"{entry['scenario']} scenario"
    if entry["continuum"] is not None:
        question = f"the task inferred from {entry['continuum']} examples that share it"
    what = {"task": ", counting right tasks", "place": ", counting right places in the task"}
    what = what.get(entry["hit"], "")
    if entry.get("readout") is not None:
        steps = entry["readout"]["steps"]
        return f"a linear layer fitted anew on frozen features ({question}, {steps} steps of Adam)"
    return f"{entry['predictor']} ({question}{what})"
