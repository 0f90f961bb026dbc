"""``python -m experiments.tiny_moe COMMAND``: train the small model, record it, say what policies cost it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from experiments.command import refusals
from experiments.figure import check_figure
from experiments.tiny_moe.corpus import Corpus, fetch, read_corpus
from experiments.tiny_moe.curve import CURVES, Curve, curve_table, draw_curves
from experiments.tiny_moe.dependence import dependence_tables
from experiments.tiny_moe.evaluate import evaluate, quality_table
from experiments.tiny_moe.execute import execute
from experiments.tiny_moe.model import Config
from experiments.tiny_moe.record import passages, record
from experiments.tiny_moe.train import Recipe, load_model, train
from moesim.report.terminal import terminal
from moesim.spec.yaml_source import parse_yaml
from traces.trace_writer import write_trace

WEIGHTS = Path(__file__).parent / "weights.safetensors"

POLICIES = tuple(
    f"{{policy: {policy}, capacity_factor: {gamma}}}"
    for policy in ("drop", "reroute")
    for gamma in (2.0, 1.5, 1.0)
)
REQUESTS = 64
"""Passages of the sample: its file stays below 4 MB."""


def main() -> None:
    """Run one of the commands."""
    asked = _parser().parse_args()
    # One thread adds up in one order, whatever the machine.
    torch.set_num_threads(1)
    with refusals():
        if asked.command == "fetch":
            fetch(asked.text)
        elif asked.command == "curve":
            _curve(asked.out)
        else:
            _run(asked, read_corpus(asked.text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.tiny_moe", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download the text (apt-get, on Debian)")
    training = commands.add_parser("train", help="train, or go on with an interrupted training")
    evaluating = commands.add_parser("evaluate", help="held-out loss with routing policies in the layers")
    recording = commands.add_parser("record", help="record the routing of held-out text")
    routing = commands.add_parser("routing", help="what decides which experts a byte visits")
    executing = commands.add_parser(
        "execute", help="held-out loss through the executor; torchrun starts its ranks"
    )
    curving = commands.add_parser("curve", help="where the trainings ended, and their loss curves")
    trained = (evaluating, recording, routing, executing)
    for each in (fetching, training, *trained):
        each.add_argument("--text", type=Path, default=Path("tiny_moe_text"), help="folder of the text")
    for each in trained:
        each.add_argument("--weights", type=Path, default=WEIGHTS, help="a trained model")
    training.add_argument("--dense", action="store_true", help="the model without experts, to compare with")
    training.add_argument("-o", dest="out", type=Path, default=Path("tiny_moe_run"), help="folder of the run")
    evaluating.add_argument("--policy", action="append", help="as a scenario's routing; may be repeated")
    recording.add_argument("-o", dest="out", type=Path, required=True, help="the trace to write")
    curving.add_argument("-o", dest="out", type=Path, help="draw them: a .svg or .png file")
    return parser


def _curve(out: Path | None) -> None:
    if out is not None:
        check_figure(out)
    curves = {name: Curve.read(file) for name, file in CURVES.items()}
    if out is not None:
        draw_curves(curves, out)
    terminal().print(curve_table(curves))


def _run(asked: argparse.Namespace, corpus: Corpus) -> None:
    if asked.command == "train":
        train(corpus, Config().dense() if asked.dense else Config(), Recipe(), asked.out)
        return
    model = load_model(asked.weights)
    text = passages(corpus, model.config.context, REQUESTS)
    console = terminal()
    if asked.command == "record":
        write_trace(record(model, text), asked.out)
    elif asked.command == "routing":
        console.print(*dependence_tables(record(model, text), text.bytes_BC.flatten()), sep="\n")
    elif asked.command == "execute":
        if (table := execute(model, corpus)) is not None:
            console.print(table)
    else:
        written = ("{policy: none}", *(asked.policy or POLICIES))
        specs = [parse_yaml(each, "--policy").value for each in written]
        console.print(quality_table([evaluate(model, corpus, spec) for spec in specs]))


if __name__ == "__main__":
    main()
