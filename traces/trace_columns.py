"""The columns of a routing trace in Parquet, between Arrow and arrays.

Axes: T tokens, L MoE layers, W numbers of a token in a layer (K chosen experts or C candidates).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from traces.base import parquet
from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.meta import TraceMeta


@dataclass(frozen=True)
class Columns:
    """Some rows of a trace as read; each method decodes one quantity and checks its type and nulls.

    Attributes:
        meta: its layers are those to decode.
        path, start: where the rows come from, for messages: the file and its row that is the first.
    """

    batch: pa.RecordBatch
    meta: TraceMeta
    path: Path
    start: int = 0

    def numbers(self, name: str) -> Array:
        """A column of whole numbers, int32 [T]."""
        cells = self._cells(name)
        with parquet.reading(self.path, TraceError):
            values = parquet.to_numbers(self.batch.column(name), cells)
            return parquet.narrow(values, np.dtype(np.int32), cells)

    def ids(self, kind: str, width: int) -> Array:
        """Expert ids [T, L, W] of ``<kind>_<layer>`` in the model's dtype."""
        dtype = self.meta.ids_dtype
        out_TLW = np.empty((self.batch.num_rows, len(self.meta.layers), width), dtype)
        for index, layer in enumerate(self.meta.layers):
            name = f"{kind}_{layer}"
            put_layer(out_TLW, index, parquet.narrow(self._lists(name, width), dtype, self._cells(name)))
        return out_TLW

    def floats(self, kind: str, width: int) -> Array:
        """Weights or scores [T, L, W]: float16 where all layers are, else float32."""
        columns = []
        for layer in self.meta.layers:
            name = f"{kind}_{layer}"
            values = self._lists(name, width)
            if values.dtype.kind != "f":
                raise self._cells(name).error("must be floats", got=values.dtype)
            columns.append(values)
        half = all(values.dtype == np.float16 for values in columns)
        out_TLW = np.empty((self.batch.num_rows, len(columns), width), np.float16 if half else np.float32)
        for index, values in enumerate(columns):
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
                put_layer(out_TLW, index, values.astype(out_TLW.dtype, copy=False))
        return out_TLW

    def category_names(self) -> list[str | None]:
        """The names that these rows may use, in the order of their first use or of their dictionary."""
        with parquet.reading(self.path, TraceError):
            names: list[str | None] = self._encoded_category().dictionary.to_pylist()
            return names

    def category_codes(self, categories: tuple[str, ...]) -> Array:
        """int32 [T]: the index of each row's category in ``categories``, -1 = unknown."""
        code_of = {name: code for code, name in enumerate(categories)}
        names = self.category_names()
        for name in names:
            if name is not None and name not in code_of:
                raise self._cells("category").error("is not among the categories", got=name)
        # One more entry for null: its index -1 is the last.
        codes = np.array([*(-1 if name is None else code_of[name] for name in names), -1], np.int32)
        with parquet.reading(self.path, TraceError):
            indices = parquet.indices_of(self._encoded_category())
        taken: Array = codes[indices]
        return taken

    def _lists(self, name: str, width: int) -> Array:
        with parquet.reading(self.path, TraceError):
            return parquet.from_lists(self.batch.column(name), width, self._cells(name))

    def _cells(self, name: str) -> parquet.Cells:
        return parquet.Cells(self.path, name, TraceError, self.start)

    def _encoded_category(self) -> pa.DictionaryArray:
        column = self.batch.column("category")
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        kind = column.type.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise self._cells("category").error("must be text", got=kind)
        return column


def put_layer(out_TLW: Array, index: int, values_TW: Array) -> None:
    """``out_TLW[:, index] = values_TW``, a token's W numbers moved as one item: several times faster."""
    out_TLW.view(_item(out_TLW))[:, index] = np.ascontiguousarray(values_TW).view(_item(out_TLW))


def get_layer(values_TLW: Array, index: int) -> Array:
    """``values_TLW[:, index]`` made contiguous, a token's W numbers moved as one item."""
    whole = np.ascontiguousarray(values_TLW)
    packed = np.ascontiguousarray(whole.view(_item(whole))[:, index])
    return packed.view(whole.dtype).reshape(len(whole), -1)


def _item(values_TLW: Array) -> np.dtype[np.void]:
    return np.dtype((np.void, values_TLW.itemsize * values_TLW.shape[2]))
