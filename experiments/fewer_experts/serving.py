"""A closed loop of equal requests on two tensor-parallel GPUs, and the time it takes.

With C requests in flight, every one of I tokens in and O tokens out, C prefills fall on O decoding steps.
Prefills stop decoding, so that a request in flight yields an output token every

    s = decode(C) + C · prefill / O

seconds, and the server C / s output tokens per second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.deployment.deployment import Deployment, deploy
from moesim.simulation.costs import Costs
from moesim.simulation.part import Part
from moesim.simulation.price import priced
from moesim.spec.dtypes import DTYPE_BYTES
from moesim.spec.override import Override
from moesim.spec.profile import Profile
from moesim.spec.scenario import load_scenario

INPUT_OUTPUT = 2048
"""Tokens in and out together: all that was published of the lengths."""

GPUS = 2

# Default chunked_prefill_size of SGLang 0.4 on a GPU with 25 GB or more (srt/server_args.py).
_CHUNK = 8192

# Steps to average over; a chunk of thousands of tokens varies little.
_DECODE_STEPS, _PREFILL_STEPS = 8, 1


@dataclass(frozen=True)
class Batches:
    """Steps of a scenario for one of the GPUs, routed and counted once: a profile only prices them."""

    deployment: Deployment
    counted: tuple[list[Part], ...]

    @classmethod
    def of(cls, workload: Mapping[str, Any], synth: Mapping[str, Any], top_k: int) -> Batches:
        """The scenario beside this file with these fields of its workload and its trace."""
        overrides = [Override(("model", "experts", "top_k"), top_k)]
        for at, fields in ((("workload",), workload), (("trace", "synth"), synth)):
            overrides += [Override((*at, name), value) for name, value in fields.items()]
        deployment = deploy(load_scenario(str(Path(__file__).with_name("scenario.yaml")), overrides))
        return cls(deployment, tuple(step.parts for step in priced(deployment)))

    def seconds(self, profile: Profile) -> float:
        """Mean seconds of a step, with the links between the GPUs.

        Both GPUs do the same, so none waits: a step is the sum of its operations.
        """
        kernels_s = np.mean([self.kernels_s(parts, profile) for parts in self.counted])
        tokens = self.counted[0][0].tokens
        return float(kernels_s) + self.links_s(int(tokens.tokens_G.sum()), int(tokens.last_G.sum()), profile)

    def kernels_s(self, parts: list[Part], profile: Profile) -> float:
        """Seconds of one step without those links."""
        return sum(
            float(each.seconds_G[0]) for each in Costs(self.deployment).program(parts, profile).operations
        )

    def links_s(self, tokens: int, sequences: int, profile: Profile) -> float:
        """Seconds of the all-reduces after the embedding and each half of a layer, and of gathering logits.

        In an all-reduce each of G GPUs sends 2 (G - 1) / G of the data, in two passes (Patarasuk and Yuan
        2009); to gather, it sends its part to the G - 1 others.
        """
        scenario = self.deployment.scenario
        model, link = scenario.model, scenario.cluster.gpu.nvlink
        values = DTYPE_BYTES[model.activation_dtype]
        reduces = 1 + 2 * model.layers
        reduced = reduces * tokens * model.hidden * values * 2 * (GPUS - 1) / GPUS
        gathered = sequences * model.vocab * values * (GPUS - 1)
        fixed_s = (2 * reduces + 1) * link.latency + (reduces + 1) * profile.launch
        return fixed_s + (reduced + gathered) / (link.bandwidth * profile.nvlink)


@dataclass(frozen=True)
class Serving:
    """The closed loop: one token of every request a step, and chunks of whole requests.

    Attributes:
        concurrency: C.
        prefills: chunks for each decoding step.
    """

    concurrency: int
    decode: Batches
    prefill: Batches
    prefills: float

    def seconds_per_token(self, profile: Profile) -> float:
        """Seconds between two output tokens of a request, its share of all prefills included."""
        return self.decode.seconds(profile) + self.prefills * self.prefill.seconds(profile)

    def tokens_per_s(self, profile: Profile) -> float:
        """Output tokens per second of all requests."""
        return self.concurrency / self.seconds_per_token(profile)


def serve(
    concurrency: int, top_k: int, *, input_tokens: int = INPUT_OUTPUT // 2, **routing: float
) -> Serving:
    """``concurrency`` requests in flight, each token at ``top_k`` experts.

    Args:
        input_tokens: of the 2048 tokens of a request; the rest is its output.
        routing: fields of the generated trace, where they differ from the scenario's.
    """
    output_tokens = INPUT_OUTPUT - input_tokens
    # Requests of equal lengths end together, so that the next ones start together.
    asked = concurrency * input_tokens
    chunk = min(asked, _CHUNK)
    synth = {"tokens_per_request": input_tokens, **routing}
    decode = {
        "phase": "decode",
        "tokens_per_gpu": concurrency,
        "context": input_tokens + output_tokens // 2,
        "steps": _DECODE_STEPS,
    }
    prefill = {"phase": "prefill", "tokens_per_gpu": chunk, "context": 0, "steps": _PREFILL_STEPS}
    return Serving(
        concurrency,
        Batches.of(decode, synth, top_k),
        Batches.of(prefill, synth, top_k),
        asked / chunk / output_tokens,
    )
