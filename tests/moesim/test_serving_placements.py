"""``moesim run`` and ``moesim place`` with placements in the forms of serving systems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.moesim.command import moesim, refused
from tests.moesim.tiny import TINY

pytestmark = pytest.mark.usefixtures("here")

FORMS = {
    "native": "p.json",
    "sglang": "sgl.json",
    "trtllm": "trt.yaml",
    "vllm-ascend": "ascend.json",
    "vllm": "v.json",
}


def asked(*arguments: object) -> dict[str, Any]:
    done = moesim(*arguments, "--json")
    assert done.code == 0, done.err
    value: dict[str, Any] = json.loads(done.out)
    return value


def exported() -> None:
    """One placement with copies, in every form."""
    Path("m.yaml").write_text(yaml.safe_dump(TINY["model"]), encoding="utf-8")
    place = ("place", "t.parquet", "--gpus", 4, "--slots", 12, "--solver", "greedy", "--model", "m.yaml")
    for form, file in FORMS.items():
        assert moesim(*place, "--format", form, "-o", file).code == 0


def test_a_run_takes_what_place_wrote_for_any_system() -> None:
    exported()
    results = {
        form: asked("run", "s.yaml", "-s", f"placement={{file: {file}}}") for form, file in FORMS.items()
    }
    native = results.pop("native")
    for form, result in results.items():
        assert result["metrics"] == native["metrics"], form
        assert result["attribution"] == native["attribution"], form
    assert asked("run", "s.yaml")["metrics"] != native["metrics"]


def test_the_first_sentence_names_the_file_of_a_placement() -> None:
    exported()
    for file in FORMS.values():
        done = moesim("run", "s.yaml", "-s", f"placement={{file: {file}}}", "-o", "out")
        assert f"the placement of {file}" in " ".join(done.out.split())
        assert "None" not in done.out
        page = Path("out/report.html").read_text(encoding="utf-8")
        assert f"the placement of {file}" in page
        assert "None placement" not in page


def test_what_has_no_name_is_said_to_have_none() -> None:
    done = moesim(
        "run", "s.yaml", "-s", 'name=""', "-s", 'model.name=""', "-s", "trace={synth: {skew: 0.5}}", "-o", "o"
    )
    assert "decode step of an unnamed model cost" in " ".join(done.out.split())
    page = Path("o/report.html").read_text(encoding="utf-8")
    assert "<title>unnamed" in page
    assert "Generated routing: of an unnamed model" in page
    np.savez("a.npz", topk_ids=np.array([[[1, 2]], [[3, 0]]]), request_offsets=np.array([0, 2]))
    assert moesim("trace", "info", "a.npz", "--experts", 4).out.startswith("trace: 2 tokens of 1 request, ")


@pytest.mark.parametrize("model", [(), ("--model", "m.yaml")])
def test_previous_may_be_what_a_system_reads(model: tuple[str, ...]) -> None:
    exported()
    place = ("place", "t.parquet", "--gpus", 4, "--slots", 12, "--solver", "round_robin", *model)
    native, *others = (asked(*place, "--previous", file) for file in FORMS.values())
    for other in others:
        assert other["baselines"]["previous"] == native["baselines"]["previous"]
        assert other["migration"] == native["migration"]


def test_what_does_not_fit_is_refused() -> None:
    exported()
    line = refused("place", "t.parquet", "--gpus", 5, "--previous", "sgl.json")
    assert line == (
        "sgl.json: physical_to_logical_map: SGLang holds equally many slots on each of 5 GPUs "
        "(got '12 slots')"
    )
    line = refused("place", "t.parquet", "--gpus", 2, "--previous", "ascend.json")
    assert line == "ascend.json: gpus: the placement must be for 2 (got 4)"
    Path("sgl.json").write_text('{"physical_to_logical_map": [[0, 1]]}', encoding="utf-8")
    line = refused("run", "s.yaml", "-s", "placement={file: sgl.json}")
    assert line.endswith(
        "/sgl.json: physical_to_logical_map: must have 2 rows, one for each MoE layer, or 3, one for each "
        "layer of the model (got 1)"
    )
