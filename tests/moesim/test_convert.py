"""Conversion: what a foreign file does not know comes from a model or an option, and must agree with it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from moesim.errors import MoesimError
from moesim.studies.convert import convert_trace, named_hints
from tests.moesim.command import files, moesim, refused
from tests.moesim.tiny import tiny_scenario
from tests.traces.random_traces import random_trace, same
from traces.interop import IMPORTERS, load_any
from traces.load_table_file import read_load_table
from traces.routing import RoutingTrace
from traces.trace_file import read_trace

pytestmark = pytest.mark.usefixtures("here")

TRACE = random_trace(layers=(1, 2), lengths=(12,) * 6)


@pytest.fixture(autouse=True)
def foreign(here: Path) -> None:
    np.savez(
        "foreign.npz",
        topk_ids=TRACE.ids_TLK,
        topk_weights=np.asarray(TRACE.weights_TLK),
        request_offsets=np.arange(0, 73, 12),
    )
    Path("model.yaml").write_text(yaml.safe_dump(tiny_scenario()["model"]))


def convert(layout: str | None = None, **options: Any) -> RoutingTrace:
    convert_trace(
        Path("foreign.npz"), Path("out.parquet"), named_hints(**{"model": None, **options}), layout=layout
    )
    return read_trace("out.parquet")


def test_a_model_gives_name_experts_and_layers() -> None:
    trace = convert(model="model.yaml", origin="a test", licence="CC0-1.0")
    meta = trace.meta
    assert (meta.model, meta.experts, meta.layers) == ("tiny", 8, (1, 2))
    assert (meta.origin, meta.licence) == ("a test", "CC0-1.0")
    assert np.array_equal(trace.ids_TLK, TRACE.ids_TLK)


def test_experts_alone_suffice() -> None:
    meta = convert(experts=8).meta
    assert (meta.model, meta.experts, meta.layers) == ("", 8, (0, 1))


def test_the_same_file_converts_to_the_same_bytes() -> None:
    convert(experts=8)
    first = Path("out.parquet").read_bytes()
    convert(experts=8, layout="npz")
    assert Path("out.parquet").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "foreign.npz: does not tell the number of experts: name it (--experts N; the largest id is 7)"),
        ({"experts": 7}, "expert id must be at least 0 and below 7 (got 7)"),
        ({"experts": 9, "model": "model.yaml"}, "--experts: tiny has 8 experts (got 9)"),
        ({"model": "nope"}, "no such model"),
        ({"model": "gpt-oss-20b"}, "foreign.npz: layers: "),
        ({"experts": 8, "layout": "zip"}, "unknown format, known are: npz"),
        ({"experts": 8, "layout": "parquet"}, "foreign.npz: "),
    ],
)
def test_what_does_not_agree_is_refused(options: dict[str, Any], said: str) -> None:
    before = files(Path())
    with pytest.raises(MoesimError) as caught:
        convert(**options)
    assert said in str(caught.value)
    assert files(Path()) == before


def test_another_number_of_experts_per_token_is_refused() -> None:
    fields = tiny_scenario()["model"]
    other = fields | {"experts": fields["experts"] | {"top_k": 3}}
    Path("model.yaml").write_text(json.dumps(other))
    with pytest.raises(MoesimError, match=r"foreign\.npz: tiny chooses 3 experts per token \(got 2\)"):
        convert(model="model.yaml")
    assert not Path("out.parquet").exists()


@pytest.mark.shared
def test_the_gpt_oss_recording(shared: Path) -> None:
    source = shared / "data" / "gptoss20b" / "decode_routing.npz"
    hints = named_hints("gpt-oss-20b", licence="Apache-2.0")
    convert_trace(source, Path("out.parquet"), hints)
    trace = read_trace("out.parquet")
    meta = trace.meta
    assert (trace.tokens, len(trace.request_offsets) - 1) == (70_558, 212)
    assert (meta.model, meta.experts, meta.top_k, meta.layers) == ("gpt-oss-20b", 32, 4, tuple(range(24)))
    assert same(trace, load_any(source, hints))


def test_counts_become_a_load_table_and_the_command_says_so() -> None:
    Path("counts.json").write_text(json.dumps({"logical_count": [[0] * 8, [1] * 8, [2] * 8]}))
    done = moesim("trace", "convert", "counts.json", "--model", "model.yaml", "-o", "loads.parquet")
    assert done.code == 0
    assert done.out == "loads.parquet: a load table of 1 window, 2 layers, 8 experts\n"
    table = read_load_table("loads.parquet")
    assert (table.model, table.layers, table.load_LE.tolist()) == ("tiny", (1, 2), [[1] * 8, [2] * 8])


def test_a_trace_is_converted_without_holding_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are asked for one by one, as they are written."""
    np.save("long.npy", np.tile(TRACE.ids_TLK, (9, 1, 1)))
    monkeypatch.setattr("traces.interop.npy._WINDOW_BYTES", 100)
    opened = IMPORTERS["npy"].open(Path("long.npy"), named_hints("model.yaml"))
    lengths = [piece.tokens for piece in opened]
    assert set(lengths) == {100 // 4, sum(lengths) % 25}
    done = moesim("trace", "convert", "long.npy", "--model", "model.yaml", "-o", "long.parquet")
    assert done.out == "long.parquet: 648 tokens of 1 request, 2 layers, 8 experts, top-2\n"


def test_info_reads_files_of_others_directly() -> None:
    np.save("request.npy", TRACE.ids_TLK[:12])
    found = json.loads(moesim("trace", "info", "request.npy", "--model", "model.yaml", "--json").out)
    assert (found["meta"]["model"], found["tokens"], found["meta"]["layers"]) == ("tiny", 12, [1, 2])
    said = refused("trace", "info", "request.npy")
    assert "request.npy: does not tell the number of experts: name it (--experts N" in said


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "is empty"),
        (bytes(3000), "is damaged: it begins with zeros alone"),
        (None, "is cut off: it begins as .npz and .pt files do, and lacks their end"),
    ],
)
def test_what_can_be_of_no_layout_is_told_so(content: bytes | None, rule: str) -> None:
    whole = Path("foreign.npz").read_bytes()
    Path("bad.npz").write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert refused("trace", "convert", "bad.npz", "-o", "out.parquet") == f"bad.npz: {rule}"
    assert refused("trace", "info", "bad.npz") == f"bad.npz: {rule}"


def test_a_parquet_file_is_cut_off_or_another() -> None:
    whole = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2]}), whole)
    Path("cut.parquet").write_bytes(whole.getvalue()[:-3])
    said = refused("trace", "convert", "cut.parquet", "-o", "out.parquet")
    assert said == "cut.parquet: is cut off: it begins as Parquet does, and lacks its end"
    Path("other.parquet").write_bytes(whole.getvalue())
    said = refused("trace", "convert", "other.parquet", "-o", "out.parquet")
    assert said.startswith("other.parquet: is of no layout that can be told by its content; ")


def test_the_option_at_fault_is_named() -> None:
    arguments = ("trace", "convert", "foreign.npz", "-o", "out.parquet")
    assert refused(*arguments, "--model", "none").startswith("--model: no such model preset; known: ")
    assert refused(*arguments, "--from", "none").startswith("--from: unknown format, known are: npz, ")


def test_of_a_row_that_is_no_text_nothing_unprintable_is_quoted() -> None:
    said = refused("trace", "convert", "foreign.npz", "--from", "csv", "-o", "out.parquet")
    assert said.startswith("foreign.npz: is not CSV that can be read: ")
    assert "\\x" not in said
    assert len(said) < 200


def test_a_model_with_other_layers_is_what_was_expected() -> None:
    said = refused("trace", "convert", "foreign.npz", "--model", "deepseek-v3", "-o", "out.parquet")
    assert said == "foreign.npz: layers: must be 58, as deepseek-v3 has (got 2)"
