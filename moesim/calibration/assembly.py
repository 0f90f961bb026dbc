"""The profile that follows from a calibration."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from moesim.calibration.calibrate import Calibration
from moesim.calibration.design import Settings, model_named
from moesim.errors import MoesimError
from moesim.spec.model import Model
from moesim.spec.profile import LEAST_SURE, Profile, load_profile
from moesim.spec.yaml_source import Source

_NOWHERE = Source(None, None, {})

_ASSUMED = "assumed, as in generic"

# Of all kernels of a layer, small ones too: norms, projections, rotation, scores; gate-up, activation, down.
_LAUNCHES = {"attention": 8, "shared_expert": 3, "dense": 3, "other": 4}

_LIKE = "experts like those of"
_USUAL = "cpu-ep2"

_DEVIATION = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

_NOTHING = 1e-12
"""Of seconds and shares: what a fit leaves of a parameter that its bound holds at 0."""


def assemble(done: Calibration, settings: Settings, *, name: str, command: str, date: str) -> Profile:
    """The profile of the machine that was measured.

    Args:
        name: of the profile.
        command: that repeats the calibration.
        date: of the measurement, YYYY-MM-DD.
    """
    generic = load_profile("generic", _NOWHERE, ())
    experts, machine = done.experts, done.machine
    roof = experts.profile.grouped_gemm
    fitted: dict[str, Any] = {
        "name": name,
        "origin": f"{command}: torch {machine.torch}, {_ranks(settings.ranks)} of {machine.device}",
        "date": date,
        "fitted_gpus": (),
        "dtypes": (settings.dtype,),
        **dict.fromkeys(("gemm", "grouped_gemm", "attention"), roof),
        "router": done.router.roof,
        "tiles": experts.profile.tiles,
        "widths": (),
        "loop": experts.profile.loop,
        "inputs": {},
        "fused_activation": False,
        "launch": machine.launch_s,
        "kernels": _LAUNCHES
        | {
            "router": done.router.launches,
            "experts": round(experts.profile.launch / machine.launch_s),
            "dispatch": 0,
            "combine": 0,
        },
        # Nobody measured these here.
        **dict.fromkeys(("small_kernels", "eager_launch", "transfers")),
        **dict.fromkeys(("step_sequence", "step_token"), 0.0),
        # The experts that every token visits are GEMMs like the others.
        "jitter": done.jitter | {"shared_expert": done.jitter["experts"]},
        "residuals": {what: round(each.left_out[0], 4) for what, each in done.quality.items()},
        "uncertainty": _uncertainty(done, generic),
        **_links(done, settings),
    }
    measured = f"{len(done.plans)} loads of {_LIKE} {settings.model or _USUAL}"
    sources = {
        "gemm": "as grouped_gemm",
        "grouped_gemm": f"fitted to {measured}, back end {settings.backend}; peaks: all ranks at once",
        "router": "fitted to the same loads",
        "attention": "assumed: as grouped_gemm",
        "tiles": "fitted with grouped_gemm",
        "launch": "measured: the smallest operation, many in a row",
        "kernels": "router and experts fitted, transfers as dispatch says, others assumed",
        "dispatch": f"fitted to the same loads; a node has {_ranks(settings.ranks)}",
        "nvlink": "for modes that dispatch does not name",
        "nic": "not measured: one machine",
        "jitter": "measured: all repeats of all loads over their medians; shared_expert as experts",
        "step": _ASSUMED,
        "memory": _ASSUMED,
    }
    if done.transfers is None:
        sources |= dict.fromkeys(("dispatch", "nvlink", "nic"), f"{_ASSUMED}: a single rank sends nothing")
    # Through plain values, so that every rule of the schema is checked.
    plain = generic.model_copy(update=fitted | {"sources": sources}).model_dump(mode="json")
    return load_profile(rounded(plain), _NOWHERE, ())


def measured_model(profile: Profile) -> Model | None:
    """The model whose experts a calibration measured, as the profile's sources name it, if they do."""
    named = re.search(f"{_LIKE} (.+), back end", profile.sources.get("grouped_gemm", ""))
    if named is None:
        return None
    # A config.json may have stayed on another machine.
    with contextlib.suppress(MoesimError):
        return model_named(None if named[1] == _USUAL else named[1])
    return None


def rounded(value: Any) -> Any:
    """Every fraction in plain values to five significant digits, far inside what any fit is sure of.

    >>> rounded({"bandwidth": 15306425573.896, "counts": 1.8e-17, "rows": [16, 0.228832138]})
    {'bandwidth': 15306000000.0, 'counts': 0.0, 'rows': [16, 0.22883]}
    """
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) > _NOTHING else 0.0
    return value


def _uncertainty(done: Calibration, generic: Profile) -> dict[str, float]:
    """What the loads that no fit saw say of each family; for what was assumed, what ``generic`` says."""
    off = {what: min(_DEVIATION * each.left_out[0], LEAST_SURE) for what, each in done.quality.items()}
    measured = dict.fromkeys(("gemm", "grouped_gemm"), off["experts"]) | {"router": off["router"]}
    if "transfers" in off:
        measured["dispatch"] = off["transfers"]
    assumed = {"attention", "launch", "nvlink", "nic", "step", "plain"}
    if "transfers" not in off:
        assumed.add("dispatch")
    unseen = {key: sigma for key, sigma in generic.uncertainty.items() if key.split(".")[0] in assumed}
    return unseen | {key: sigma for key, sigma in measured.items() if sigma > _NOTHING}


def _links(done: Calibration, settings: Settings) -> dict[str, Any]:
    """What depends on how ranks are joined: the machine itself, too."""
    gpu, links = done.experts.gpu, {}
    if done.transfers is not None:
        links = {"nvlink": 1.0, "nic": 1.0, "dispatch": done.transfers.links}
        if done.machine.preset() is None:
            link = {"bandwidth": done.transfers.bandwidth, "source": "fitted by moesim calibrate"}
            gpu = gpu.model_copy(update={"nvlink": gpu.nvlink.model_copy(update=link)})
    return {**links, "gpu": gpu.name, "machine": done.machine.cluster(gpu, settings.ranks)}


def _ranks(number: int) -> str:
    return "one rank" if number == 1 else f"{number} ranks at once"
