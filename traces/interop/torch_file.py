"""Files of ``torch.save``, read without running what they may carry.

A ``.pt`` file is a zip with a pickle and the tensors' bytes beside it. A pickle can run code, so torch
reads it with ``weights_only=True``, which knows tensors and plain Python values and refuses the rest.
"""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from traces.base.arrays import Array
from traces.base.door import open_file
from traces.base.errors import MoesimError, reason_of
from traces.base.memory import require_memory
from traces.interop.archive import FAULTS, open_archive

_WHAT = "a .pt file"
_PICKLE = "data.pkl"
_GLANCE = 1 << 24  # bytes of the pickle that are searched for its keys


def load_pt(path: Path, error: type[MoesimError]) -> dict[str, Any]:
    """The dictionary in ``path``, its tensors on the CPU.

    Raises:
        MoesimError: of class ``error``: torch is missing, or the file is damaged, holds anything but
            tensors and plain values, or no dictionary.
    """
    _check_zip(path, error)
    if importlib.util.find_spec("torch") is None:
        rule = "needs torch to be read: pip install torch (the extra moesim[executor])"
        raise error(rule, file=path)
    import torch

    try:
        with open_file(path, _WHAT, error) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:  # torch's own words tell how to run what it refused
        rule = "is damaged, or holds other things than tensors and numbers"
        if "GLOBAL" in str(fault):
            rule = "holds code, or objects that only code can make, beside tensors and numbers"
        raise error(f"{rule}; nothing of it was run", file=path) from fault
    except MoesimError:
        raise
    except Exception as fault:  # a damaged pickle may cause any
        rule = f"is damaged, or holds other things than tensors and numbers: {reason_of(fault)}"
        raise error(rule, file=path) from fault
    if not isinstance(content, dict):
        raise error("must hold a dictionary", file=path, got=type(content).__name__)
    return content


def pickled_keys(path: Path, names: tuple[str, ...]) -> set[str]:
    """Those of ``names`` that stand in the pickle of a ``.pt`` file; nothing is unpickled.

    Empty where ``path`` is no such file; torch is not needed.
    """
    try:
        with (
            open_archive(path, _WHAT, MoesimError) as archive,
            archive.open(_pickle_entry(archive)) as stream,
        ):
            text = stream.read(_GLANCE)
    except (MoesimError, *FAULTS):
        return set()
    return {name for name in names if name.encode() in text}


def tensor(
    value: object, name: str, axes: int, *, file: Path, error: type[MoesimError], real: bool = False
) -> Array:
    """A tensor of whole numbers with ``axes`` axes as int64.

    Args:
        real: whether others will do too; these come as float64.

    Raises:
        MoesimError: of class ``error``: it is something else, or claims more numbers than it stores.
    """
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.ndim != axes:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise error(f"must be a tensor with {axes} axes", file=file, field=name, got=got)
    whole = not (value.is_floating_point() or value.is_complex() or value.is_quantized)
    if not (whole or (real and value.is_floating_point())) or value.dtype == torch.bool:
        raise error(f"must be {'' if real else 'whole '}numbers", file=file, field=name, got=value.dtype)
    # A tensor of few stored numbers can be stretched to any shape by strides of 0.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise error("is damaged: it claims more numbers than it stores", file=file, field=name)
    return np.asarray(value.to(torch.int64 if whole else torch.float64).numpy())


def whole_number(value: object, name: str, *, file: Path, error: type[MoesimError]) -> int:
    """A number from 0 that is no tensor.

    Raises:
        MoesimError: of class ``error``: it is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise error("must be a whole number between 0 and 2147483647", file=file, field=name, got=value)
    return value


def _check_zip(path: Path, error: type[MoesimError]) -> None:
    """A zip of torch whose entries, unpacked, fit into memory."""
    try:
        with open_archive(path, _WHAT, error) as archive:
            _pickle_entry(archive)
            size = sum(entry.file_size for entry in archive.infolist())
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except FAULTS as fault:
        raise error(f"is damaged or not a .pt file of torch.save: {reason_of(fault)}", file=path) from fault
    if packed:
        raise error("is no .pt file of torch.save, which does not compress", file=path)
    require_memory(2 * size, "the file with its numbers as int64", error=error, file=path)


def _pickle_entry(archive: zipfile.ZipFile) -> str:
    return next((name for name in archive.namelist() if name.endswith(f"/{_PICKLE}")), _PICKLE)
