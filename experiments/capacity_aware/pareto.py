"""What policies win and what they cost: ``python -m experiments.capacity_aware.pareto``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from experiments.capacity_aware.front import (
    FAMILIES,
    Choice,
    draw_front,
    front,
    front_table,
    tokens_per_s,
)
from experiments.command import refusals
from experiments.figure import check_figure
from experiments.tiny_moe.__main__ import WEIGHTS
from experiments.tiny_moe.corpus import Corpus, read_corpus
from experiments.tiny_moe.evaluate import evaluate
from experiments.tiny_moe.model import TinyMoe
from experiments.tiny_moe.train import load_model
from moesim.report.terminal import terminal
from traces.base.text import to_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and evaluate every policy of ``FAMILIES``."""
    parser = argparse.ArgumentParser(prog="python -m experiments.capacity_aware.pareto", description=__doc__)
    parser.add_argument("--text", type=Path, default=Path("tiny_moe_text"), help="folder of the text")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a trained small model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("-o", dest="out", type=Path, help="write the figure: a .svg or .png file")
    asked = parser.parse_args(arguments)
    # One thread adds up in one order, whatever the machine.
    torch.set_num_threads(1)
    with refusals():
        if asked.out is not None:
            check_figure(asked.out)
        choices = compare(load_model(asked.weights), read_corpus(asked.text))
        if asked.out is not None:
            draw_front(choices, asked.out)
    if asked.json:
        best = front(choices)
        points = [asdict(each) | {"front": each in best} for each in choices]
        print(to_json({"points": points}, indent=1))
    else:
        terminal().print(front_table(choices))


def compare(model: TinyMoe, corpus: Corpus) -> list[Choice]:
    """Every policy of ``FAMILIES``, without any first."""
    rates, choices = [], []
    for family, specs in FAMILIES.items():
        for spec in specs:
            rates.append(tokens_per_s(spec))
            found = evaluate(model, corpus, spec)
            tally = found.tally
            choices.append(
                Choice(
                    family,
                    spec,
                    rates[-1] / rates[0],
                    found.perplexity,
                    tally.dropped / tally.wished,
                    tally.rerouted / tally.wished,
                    tally.gate_mass_lost / tally.gate_mass,
                )
            )
    return choices


if __name__ == "__main__":
    main()
