"""DeepEP's kernels on H100 from one token a GPU on, and NCCL's all-to-all: what others measured."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from experiments.network.cases import GPUS_PER_NODE, Case, Phase, copy_bytes, uniform
from moesim.hardware.transfer import Transfer

SOURCE = "AIConfigurator's tables at 095f58a: H100 SXM, one 400 Gb/s card a GPU, uniform routing"
PLAIN_SOURCE = "sgl-project/sglang issue 22583: NCCL's all_to_all_single on 8 H100"

FEW_TOKENS = 128
"""Up to here the exchange of counts takes as long whatever the tokens; above, it waits for the last rank."""

_PHASES: tuple[Phase, Phase] = ("dispatch", "combine")

# Microseconds by MiB that each of 8 GPUs sends in all, an eighth of it to itself.
PLAIN = {2: 28.0, 4: 38.0, 8: 60.0, 16: 87.0, 32: 122.0, 64: 210.0}


def folder() -> Path:
    """Of the tables, in the data that ``MOESIM_SHARED`` names, by default ``../shared``."""
    default = Path(__file__).parents[3] / "shared"
    return Path(os.environ.get("MOESIM_SHARED", default)) / "data" / "deepep_h100"


def h100_cases() -> list[Case]:
    """Every row of both tables; none where the tables are not there."""
    if not (folder() / "normal.csv").is_file():
        return []
    return _normal() + _low_latency()


def _normal() -> list[Case]:
    """A kernel's whole time is transfer and notify, which enters as its median over few tokens."""
    rows = _rows("normal.csv")
    cases = []
    for phase in _PHASES:
        sms = np.array([int(row[f"{phase}_sms"]) for row in rows])
        gpus = np.array([int(row["gpus"]) for row in rows])
        tokens = np.array([int(row["tokens_per_gpu"]) for row in rows])
        notify_us = np.array([float(row[f"{phase}_notify_us"]) for row in rows])
        for i, row in enumerate(rows):
            alike = (gpus == gpus[i]) & (sms == sms[i]) & (tokens <= FEW_TOKENS)
            measured = float(row[f"{phase}_us"]) + float(np.median(notify_us[alike]))
            moved = uniform("per_node", int(gpus[i]), int(tokens[i]))[phase]
            size = copy_bytes(phase)
            cases.append(
                Case(
                    "H100",
                    "per_node",
                    int(gpus[i]),
                    int(tokens[i]),
                    phase,
                    int(sms[i]),
                    measured,
                    moved,
                    size,
                )
            )
    return cases


def _low_latency() -> list[Case]:
    cases = []
    for row in _rows("low_latency.csv"):
        gpus, tokens, experts = (int(row[key]) for key in ("gpus", "tokens_per_gpu", "experts"))
        for phase in _PHASES:
            moved = uniform("per_expert", gpus, tokens, experts)[phase]
            measured, size = float(row[f"{phase}_us"]), copy_bytes(phase)
            case = Case("H100", "per_expert", gpus, tokens, phase, 0, measured, moved, size, experts=experts)
            cases.append(case)
    return cases


def plain_cases() -> list[Case]:
    """NCCL's all-to-all of equal parts inside one node; ``tokens`` are bytes here."""
    found = []
    for mib, measured in PLAIN.items():
        size = mib << 20
        part_GG = size / GPUS_PER_NODE * (1.0 - np.eye(GPUS_PER_NODE))
        moved = (Transfer(part_GG, np.zeros_like(part_GG)),)
        found.append(Case("H100", "plain", GPUS_PER_NODE, size, "dispatch", 0, measured, moved, float(size)))
    return found


def _rows(name: str) -> list[dict[str, str]]:
    with (folder() / name).open(newline="") as file:
        return list(csv.DictReader(file))
