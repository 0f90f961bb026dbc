"""What a calibration runs: one shape of experts under loads that are few and many, even and skewed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from moesim.deployment.deployment import Deployment, deploy
from moesim.dispatch.modes import DEFAULT, MODES
from moesim.errors import SpecError
from moesim.live.plan import write_plan
from moesim.output import to_json
from moesim.spec.base import validate
from moesim.spec.cluster import Cluster
from moesim.spec.dtypes import DTYPE_BYTES, Dtype
from moesim.spec.model import Model
from moesim.spec.presets import load_model
from moesim.spec.profile import load_profile
from moesim.spec.scenario import Scenario
from moesim.spec.yaml_source import Source
from traces.base.files import check_format, write_text
from traces.base.input_file import read_json
from traces.base.memory import physical_memory

_NOWHERE = Source(None, None, {})

# The experts of the preset scenario cpu-ep2.
_MODEL = {
    "name": "cpu-moe",
    "hidden": 512,
    "layers": 24,
    "vocab": 32_000,
    "attention": {"heads": 8, "kv_heads": 8, "head_dim": 64},
    "experts": {"count": 32, "top_k": 4, "width": 1024},
}

# Layers have weights of their own, so that caches serve what they would in a run.
_LAYERS = 4
MOST_RANKS = 64
"""That are measured at once."""
_MEMORY = 0.4
"""Share of a rank's memory that weights may take."""
_GPU_MEMORY = 40 << 30
"""What every GPU of a data centre has."""


@dataclass(frozen=True)
class Settings:
    """What to calibrate.

    Attributes:
        model: a preset or config.json whose experts are measured; by default the shape of ``cpu-ep2``.
        seconds: how long the plans are repeated.
        threads: of each rank, on CPU.
        memory: bytes that each rank may have; None for what this machine gives it.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    ranks: int = 2
    backend: str = "loop"
    dtype: Dtype = "fp32"
    model: str | None = None
    seconds: float = 60.0
    threads: int = 1
    memory: int | None = None


@dataclass(frozen=True)
class Load:
    """One plan: tokens of each rank and the skew of their routing, with a dispatch mode."""

    mode: str
    tokens: int
    skew: float

    @property
    def name(self) -> str:
        """Of its folder.

        >>> Load("per_gpu", 64, 1.5).name
        'per_gpu-64-1.5'
        """
        return f"{self.mode}-{self.tokens}-{self.skew:g}"


# Single tokens to a prefill chunk; even routing, a usual one, and one that leaves few slots active.
LOADS = tuple(Load(DEFAULT, tokens, skew) for tokens in (1, 4, 16, 64, 128, 256) for skew in (0.3, 1.0, 2.5))
# The other modes that have links of their own in one node differ in what they send, not in what they compute.
OTHER_LOADS = tuple(
    Load(name, tokens, 1.0)
    for name, mode in MODES.items()
    if name != DEFAULT and not (mode.in_one_node or mode.links)
    for tokens in (4, 64, 256)
)


def model_named(name: str | None) -> Model:
    """A preset, or a config.json; None for experts like those of ``cpu-ep2``.

    Raises:
        SpecError: no such model.
    """
    return load_model(_MODEL if name is None else name, _NOWHERE, ("--model",))


def calibrated_model(name: str | None, dtype: Dtype, ranks: int, memory: float) -> Model:
    """Experts of a model's shape, as many layers and experts of them as fit, shared experts apart.

    Args:
        name: a preset, or a config.json; by default the experts of ``cpu-ep2``.
        memory: bytes of each rank.

    Raises:
        SpecError: no such model, its experts are of several kinds, or not even one slot fits.
    """
    model = model_named(name)
    experts, (kind, *others) = model.experts, model.kinds
    if others:
        names = ", ".join(each.name for each in model.kinds)
        raise _NOWHERE.error(
            f"has experts of several kinds ({names}): name a model of one", ("--model",), got=name
        )
    own = model.kind_params(kind) * DTYPE_BYTES[dtype]
    fitting = int(memory * _MEMORY / own)
    slots = -(-experts.count // ranks)
    layers = max(1, min(_LAYERS, fitting // slots))
    slots = min(slots, fitting // layers)
    count = slots * ranks
    if count < experts.top_k:
        raise _NOWHERE.error(
            f"has experts of {own / 2**30:.1f} GiB, of which too few fit", ("--model",), got=name
        )
    return validate(
        Model,
        model.model_dump()
        | {
            "layers": layers,
            "first_dense": 0,
            "moe_every": 1,
            "dense_width": None,
            "experts": {
                "count": count,
                "top_k": experts.top_k,
                "width": kind.width,
                "gated": experts.gated,
            },
            **dict.fromkeys(("weight_dtype", "expert_dtype", "kv_dtype", "activation_dtype"), dtype),
        },
    )


def deployment(load: Load, model: Model, cluster: Cluster) -> Deployment:
    """The plan of one load, with generated routing that is different in each layer."""
    dtype = model.activation_dtype
    scenario = {
        "name": load.name,
        "model": model,
        "cluster": cluster,
        "profile": load_profile("generic", _NOWHERE, ()),
        "parallelism": {"ep": cluster.gpus},
        "trace": {"synth": {"requests": 64, "tokens_per_request": 64, "skew": load.skew, "persistence": 0.0}},
        "workload": {
            "phase": "decode",
            "tokens_per_gpu": load.tokens,
            "context": 1,
            "steps": 1,
            "part": "moe",
        },
        "dispatch": {"mode": load.mode, "dtype": dtype, "combine_dtype": dtype},
    }
    return deploy(validate(Scenario, scenario))


def deployments(settings: Settings) -> list[Deployment]:
    """What the plans of a calibration are written from.

    Raises:
        MoesimError: no such model, or its experts do not fit into memory.
    """
    cluster = _stand_in(settings)
    model = calibrated_model(settings.model, settings.dtype, settings.ranks, cluster.gpu.memory)
    loads = (*LOADS, *OTHER_LOADS) if settings.ranks > 1 else LOADS
    return [deployment(load, model, cluster) for load in loads]


def write_spec(settings: Settings, folder: Path) -> list[Deployment]:
    """Plans and ``spec.json`` for ``executor.measuring.microbench``, and what the plans were written from.

    Beside what the executor needs ``spec.json`` holds all settings, so that another machine can measure.

    Raises:
        MoesimError: no such model, or its experts do not fit into memory.
    """
    settings = replace(settings, memory=_memory(settings))
    planned = deployments(settings)
    for each in planned:
        write_plan(each, folder / each.scenario.name)
    plans = [each.scenario.name for each in planned]
    spec = {"format": "moesim.microbench/1", "plans": plans, **asdict(settings)}
    write_text(folder / "spec.json", to_json(spec))
    return planned


def read_settings(file: Path) -> Settings:
    """Those of a ``spec.json``.

    Raises:
        SpecError: it is no such file.
    """
    try:
        value = read_json(file, "what `moesim calibrate --plan-only` wrote", SpecError)
        check_format(value.get("format"), "microbench", 1, file=file, error=SpecError)
        given = {field.name: value[field.name] for field in fields(Settings)}
        found = TypeAdapter(Settings).validate_json(json.dumps(given), strict=True)
    except (ValueError, KeyError) as error:
        raise SpecError("is not what `moesim calibrate --plan-only` wrote", file=file) from error
    if not 1 <= found.ranks <= MOST_RANKS:
        raise SpecError(f"must be from 1 to {MOST_RANKS}", file=file, field="ranks", got=found.ranks)
    return found


def _memory(settings: Settings) -> int:
    """Bytes of each rank."""
    if settings.memory is not None:
        return settings.memory
    return physical_memory() // settings.ranks if settings.device == "cpu" else _GPU_MEMORY


def _stand_in(settings: Settings) -> Cluster:
    """A cluster for plans, of which only the ranks count, and on CPU the memory that they share."""
    rate = 1e9
    gpu = {
        "name": settings.device,
        "memory": _memory(settings),
        "memory_bandwidth": rate,
        "flops": {settings.dtype: rate},
        "sms": 1,
        "nvlink": {"bandwidth": rate},
    }
    return validate(Cluster, {"gpu": gpu, "gpus_per_node": settings.ranks, "nic": {"bandwidth": rate}})
