"""What the microbenchmarks found out about the machine, and the cluster that it makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.calibration.quantity import Quantity
from moesim.errors import CalibrationError
from moesim.spec.base import validate
from moesim.spec.cluster import Cluster, Gpu, preset_system
from moesim.spec.dtypes import Dtype
from moesim.spec.presets import preset_names, preset_source
from traces.base.files import check_format
from traces.base.input_file import read_json


@dataclass(frozen=True)
class Machine:
    """One node, of which each rank is a "GPU".

    Attributes:
        device: the maker's name of a GPU, or of the processor whose cores the ranks are.
        kind: ``cpu`` or ``cuda``.
        memory: bytes of each rank.
        flops, bandwidth, launch_s, exchange_s: medians over ranks, all measured at the same time; see
            ``executor.measuring.measure.Peaks``.
    """

    kind: str
    device: str
    memory: int
    sms: int
    torch: str
    flops: float
    bandwidth: float
    launch_s: float
    exchange_s: float

    @classmethod
    def read(cls, file: Path) -> Machine:
        """From ``machine.json``.

        Raises:
            CalibrationError: it is no such file.
        """
        value = read_json(file, "what the microbenchmarks wrote", CalibrationError)
        try:
            check_format(value.get("format"), "machine", 1, file=file, error=CalibrationError)
            peaks = {name: _median(value["peaks"], name) for name in value["peaks"][0]}
            kind, device, version = (str(value[name]) for name in ("kind", "device", "torch"))
            return cls(kind, device, int(value["memory"]), int(value["sms"]), version, **peaks)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            raise CalibrationError(f"cannot be read: {error!r}", file=file) from error

    def quantities(self, dtype: Dtype) -> list[Quantity]:
        """What was measured by itself."""
        lines = [
            Quantity(f"peak: a large GEMM in {dtype}", self.flops, "FLOP/s"),
            Quantity("peak: copying", self.bandwidth, "B/s"),
            Quantity("launch", self.launch_s, "s"),
        ]
        return lines + ([Quantity("exchange of counts", self.exchange_s, "s")] if self.exchange_s else [])

    def preset(self) -> str | None:
        """The GPU preset of this device, whose data sheet then serves.

        >>> Machine("cuda", "NVIDIA A100-SXM4-80GB", 0, 0, "", 1, 1, 1, 1).preset()
        'a100'
        """
        words = self.device.lower().replace("-", " ").split()
        # Presets are of boards with NVLink; cards of the same chip are slower.
        if self.kind == "cpu" or {"pcie", "nvl"} & set(words):
            return None
        return next((name for name in preset_names("gpus") if name in words), None)

    def gpu(self, dtype: Dtype) -> Gpu:
        """What a rank promises: by the data sheet where there is one, else as measured."""
        preset = self.preset()
        if preset is not None:
            source = preset_source("gpus", preset)
            return validate(Gpu, source.value, source=source)
        link = {"bandwidth": self.bandwidth, "source": "no faster than memory"}
        return validate(
            Gpu,
            {
                "name": self.device if self.kind == "cuda" else f"{self.device} core",
                "memory": self.memory,
                "memory_bandwidth": self.bandwidth,
                "flops": {dtype: self.flops},
                "sms": self.sms,
                "nvlink": link,
                "source": "measured by moesim calibrate, all ranks at once",
            },
        )

    def cluster(self, gpu: Gpu, ranks: int) -> Cluster:
        """One node of so many."""
        preset = self.preset()
        system = {} if preset is None else preset_system(preset)
        nic = system.get("nic", gpu.nvlink.model_dump())
        return validate(
            Cluster,
            {"name": f"{ranks} × {gpu.name}", "gpu": gpu, "gpus_per_node": ranks, "nic": nic}
            | {key: system[key] for key in ("intra_node", "gpus_per_switch", "host") if key in system},
        )


def _median(ranks: list[dict[str, object]], name: str) -> float:
    """Of what the ranks reached."""
    found = [rank[name] for rank in ranks]
    if not all(type(each) in (int, float) and 0 <= each < math.inf for each in found):  # type: ignore[operator]
        raise ValueError(f"peaks: {name} must be numbers from 0")
    return float(np.median(np.array(found, np.float64)))
