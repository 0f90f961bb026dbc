"""SGLang's expert distribution recorder: its files, and the counts in them.

``--expert-distribution-recorder-mode`` stat, stat_approx, per_pass and per_token, as of SGLang 0.5.23
(python/sglang/srt/eplb/expert_distribution.py). Axes: L all hidden layers, P physical experts (slots), E
logical experts. Tokens of per_token are read by :mod:`traces.interop.sglang_tokens`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from traces.base.arrays import Array
from traces.base.door import is_folder
from traces.base.errors import LoadTableError, MoesimError, named
from traces.base.input_file import files_in, require_files
from traces.interop.hints import Hints
from traces.interop.loads import to_table
from traces.interop.torch_file import load_pt, pickled_keys, tensor, whole_number
from traces.load_table import LoadTable, whole_where_whole

# The key that tells a recording's mode; one that has several is of the first of these.
_MODES = {"topk_ids_of_layer": "per_token", "global_physical_count": "per_pass", "logical_count": "stat"}
_MAP = "last_physical_to_logical_map"


class SglangStat:
    """Modes stat and stat_approx: ``logical_count`` [steps, L, E], already summed over ranks.

    Each step is a window. The buffer is circular: steps that it never reached are zero and left out, and
    where it was full the first window need not be the oldest.
    """

    summary: ClassVar[str] = "SGLang recorder, mode stat or stat_approx (.pt): logical_count of each step"

    def detects(self, path: Path) -> bool:
        return recorder_mode(path) == "stat"

    def open(self, path: Path, hints: Hints) -> LoadTable:
        files = require_files(path, ".pt", LoadTableError)
        if len(files) > 1:
            raise LoadTableError(f"holds {len(files)} recordings: name one of the .pt files", file=path)
        (file,) = files
        content = load_pt(file, LoadTableError)
        if "logical_count" not in content:
            rule = f"lacks the key logical_count; it has {named(content)}"
            raise LoadTableError(rule, file=file)
        name = "logical_count"
        count_WLE = tensor(content[name], name, 3, file=file, error=LoadTableError, real=True)
        return to_table(whole_where_whole(count_WLE), hints, file=file, origin="SGLang recorder, mode stat")


class SglangPasses:
    """Mode per_pass: ``global_physical_count`` [L, P] of each forward pass and rank, summed over ranks.

    A forward pass is a window. Slots become experts by the last map: passes before a rebalancing during
    the recording are counted by a map that came later.
    """

    summary: ClassVar[str] = "SGLang recorder, mode per_pass (.pt, or a folder with one for each rank)"

    def detects(self, path: Path) -> bool:
        return recorder_mode(path) == "per_pass"

    def open(self, path: Path, hints: Hints) -> LoadTable:
        records = read_records(path, LoadTableError)
        passes: dict[int, Any] = defaultdict(int)
        shape = records[0].slot_expert_LS.shape
        name = "global_physical_count"
        for record in records:
            count = record.fields.get(name)
            count_LS = tensor(count, name, 2, file=record.file, error=LoadTableError, real=True)
            if count_LS.shape != shape:
                rule = f"must have shape {shape}, as the map"
                raise LoadTableError(rule, file=record.file, field=name, got=count_LS.shape)
            # A new array: counts of one rank may be whole, of another real.
            passes[record.forward_pass] = passes[record.forward_pass] + count_LS
        count_WLS = np.stack([passes[number] for number in sorted(passes)])
        count_WLE = _to_logical(count_WLS, records[0].slot_expert_LS)
        origin = "SGLang recorder, mode per_pass"
        return to_table(whole_where_whole(count_WLE), hints, file=path, origin=origin)


@dataclass(frozen=True)
class Record:
    """What one rank recorded of one forward pass.

    Attributes:
        slot_expert_LS: the last map of slots to logical experts, int64 [L, P].
        fields: the record as it is, its tensors unchecked.
    """

    file: Path
    rank: int
    forward_pass: int
    slot_expert_LS: Array
    fields: dict[str, Any]


def recorder_mode(path: Path) -> str | None:
    """``stat``, ``per_pass`` or ``per_token``; None where it is none. Nothing is unpickled."""
    files = files_in(path, ".pt")
    found = pickled_keys(files[0], tuple(_MODES)) if files else set()
    return next((mode for key, mode in _MODES.items() if key in found), None)


def read_records(path: Path, error: type[MoesimError]) -> list[Record]:
    """The records of all ranks by forward pass and rank.

    Raises:
        MoesimError: of class ``error``: damaged, a rank is missing or comes twice, or maps differ.
    """
    records: list[Record] = []
    file_of_rank: dict[int, Path] = {}
    slot_expert_LS: Array | None = None
    for file in require_files(path, ".pt", error):
        content = load_pt(file, error)
        if _MAP not in content:
            raise error(f"lacks {_MAP}, without which slots are not experts", file=file)
        own_LS = _map(content[_MAP], file, error)
        if slot_expert_LS is not None and not np.array_equal(own_LS, slot_expert_LS):
            rule = "differs between the ranks: the files are of different recordings"
            raise error(rule, file=file, field=_MAP)
        slot_expert_LS = own_LS
        found = content.get("records")
        if not isinstance(found, list) or not found:
            raise error("must be a list with at least one record", file=file, field="records")
        for index, fields in enumerate(found):
            if not isinstance(fields, dict):
                raise error("must be a dictionary", file=file, field=f"records[{index}]")
            rank, forward_pass = (
                whole_number(fields.get(name), f"records[{index}].{name}", file=file, error=error)
                for name in ("rank", "forward_pass_id")
            )
            record = Record(file, rank, forward_pass, own_LS, fields)
            if file_of_rank.setdefault(record.rank, file) != file:
                rule = f"rank {record.rank} stands in {file_of_rank[record.rank].name} too: two recordings"
                raise error(rule, file=file)
            records.append(record)
    for expected, rank in enumerate(sorted(file_of_rank)):
        if is_folder(path) and rank != expected:
            raise error(f"lacks the file of rank {expected}", file=path)
    return sorted(records, key=lambda record: (record.forward_pass, record.rank))


def _map(value: object, file: Path, error: type[MoesimError]) -> Array:
    """int64 [L, P]: the logical expert in each slot; each expert stands in at least one."""
    slot_expert_LS = tensor(value, _MAP, 2, file=file, error=error)
    if slot_expert_LS.size == 0 or slot_expert_LS.min() < 0:
        raise error("must name a logical expert for each slot", file=file, field=_MAP)
    if slot_expert_LS.max() >= slot_expert_LS.shape[1]:
        rule = f"must be below {slot_expert_LS.shape[1]}, the number of slots"
        raise error(rule, file=file, field=_MAP, got=slot_expert_LS.max())
    return slot_expert_LS


def _to_logical(count_WLS: Array, slot_expert_LS: Array) -> Array:
    """Counts of slots as counts of experts, [W, L, E]: replicas are summed."""
    windows, layers, _ = count_WLS.shape
    count_WLE = np.zeros((windows, layers, int(slot_expert_LS.max()) + 1), count_WLS.dtype)
    for layer in range(layers):
        for slot, expert in enumerate(slot_expert_LS[layer].tolist()):
            count_WLE[:, layer, expert] += count_WLS[:, layer, slot]
    return count_WLE
