"""``python -m experiments.tiny_moe fetch|train|evaluate|record``: of the small model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from experiments.tiny_moe.corpus import fetch, read_corpus
from experiments.tiny_moe.evaluate import evaluate, quality_table
from experiments.tiny_moe.model import Config
from experiments.tiny_moe.record import record
from experiments.tiny_moe.train import Recipe, load_model, train
from moesim.errors import MoesimError
from moesim.spec.yaml_source import parse_yaml
from traces.routing import write_trace

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights.safetensors"

DROPS = tuple(f"{{policy: drop, capacity_factor: {gamma}}}" for gamma in (2.0, 1.5, 1.0))


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tiny_moe", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download the text (apt-get, on Debian)")
    training = commands.add_parser("train", help="train, or go on with an interrupted training")
    evaluating = commands.add_parser("evaluate", help="held-out loss with routing policies in the layers")
    recording = commands.add_parser("record", help="record the routing of held-out text")
    for each in (fetching, training, evaluating, recording):
        each.add_argument("--text", type=Path, default=Path("tiny_moe_text"), help="folder of the text")
    for each in (evaluating, recording):
        each.add_argument("--weights", type=Path, default=WEIGHTS, help="a trained model")
    training.add_argument("--dense", action="store_true", help="the model without experts, to compare with")
    training.add_argument("-o", dest="out", type=Path, default=Path("tiny_moe_run"), help="folder of the run")
    evaluating.add_argument("--policy", action="append", help="as a scenario's routing; may be repeated")
    evaluating.add_argument("--ranks", type=int, default=8, help="home ranks of each batch's tokens")
    recording.add_argument("--requests", type=int, default=128, help="passages, one context each")
    recording.add_argument("-o", dest="out", type=Path, required=True, help="the trace to write")
    asked = parser.parse_args()
    # One thread adds up in one order, whatever the machine.
    torch.set_num_threads(1)
    try:
        _run(asked)
    except MoesimError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def _run(asked: argparse.Namespace) -> None:
    if asked.command == "fetch":
        fetch(asked.text)
        return
    corpus = read_corpus(asked.text)
    if asked.command == "train":
        train(corpus, Config().dense() if asked.dense else Config(), Recipe(), asked.out)
    elif asked.command == "record":
        write_trace(record(load_model(asked.weights), corpus, asked.requests), asked.out)
    else:
        model = load_model(asked.weights)
        specs = [parse_yaml(text, "--policy").value for text in ("{policy: none}", *(asked.policy or DROPS))]
        Console().print(quality_table([evaluate(model, corpus, each, ranks=asked.ranks) for each in specs]))


if __name__ == "__main__":
    main()
