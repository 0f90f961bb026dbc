"""What a dispatch costs at every batch size: floors, multiprocessors, the host; and what was not fitted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.dispatch.modes import MODES
from moesim.errors import SpecError
from moesim.hardware.networks import reached
from moesim.hardware.transfer import Transfer, busiest_s
from moesim.spec.cluster import load_cluster
from moesim.spec.links import Links
from moesim.spec.override import Override
from moesim.spec.profile import Profile, load_profile
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from tests.examples import examples
from tests.moesim.command import moesim, refused
from tests.moesim.tiny import on_generic, tiny_scenario, write_scenario
from tests.tolerance import rounding

NOWHERE = Source(None, None, {})
PROFILES = [load_profile(name, NOWHERE, ()) for name in ("generic", "h100", "h800")]

SMALL_MODEL = "model={base: deepseek-v3, layers: 5}"


def test_floors_by_hand() -> None:
    """30 µs out and 50 back on one node; each doubling of the nodes adds 10 to both."""
    links = Links(nvlink=1, nic=1, fixed=30e-6, fixed_combine=50e-6, grows=10e-6, counts=5e-6)
    assert links.over(1).floor_s("dispatch") == pytest.approx(35e-6)
    assert links.over(4).floor_s("dispatch") == pytest.approx(55e-6)
    assert links.over(4).floor_s("combine") == pytest.approx(70e-6)
    alike = Links(nvlink=1, nic=1, fixed=30e-6, grows=10e-6)
    assert alike.over(8).floor_s("combine") == pytest.approx(60e-6)
    assert links.alone().floor_s("dispatch") == links.alone().floor_s("combine") == 0.0


def test_the_busiest_multiprocessor_by_hand() -> None:
    """32 copies of 100 bytes on 8 multiprocessors are 4 each; 3 √4 = 6 more take 6 · 100 B / 50 B/s."""
    sent_GG = np.array([[0.0, 3200.0], [800.0, 0.0]])
    transfer = Transfer(sent_GG, np.zeros((2, 2)))
    links = Links(nvlink=1, nic=1, rate=50, spread=3, sms=8)
    assert busiest_s(transfer, links, 100.0).tolist() == pytest.approx([12.0, 12.0])
    assert not busiest_s(transfer, Links(nvlink=1, nic=1), 100.0).any()


def test_multiprocessors_limit_what_the_links_would_carry() -> None:
    cluster = load_cluster("h100-1x8", NOWHERE)
    limited = reached(cluster, Links(nvlink=0.5, nic=1, rate=1e10, sms=10), 8)
    assert limited.nvlink_bandwidth == 1e11
    assert limited.nic_bandwidth == 5e10
    assert reached(cluster, Links(nvlink=0.5, nic=1, rate=1e10, sms=30), 8).nvlink_bandwidth == 225e9


@given(
    sms=st.integers(1, 64),
    rate=st.floats(1e9, 1e11),
    share=st.floats(0.01, 1.0),
    spread=st.floats(0.0, 10.0),
    nodes=st.integers(1, 64),
)
@settings(max_examples=examples(50))
def test_more_multiprocessors_and_fewer_nodes_never_take_longer(
    sms: int, rate: float, share: float, spread: float, nodes: int
) -> None:
    links = Links(nvlink=share, nic=1, rate=rate, sms=sms, spread=spread, fixed=1e-5, grows=1e-6)
    more = links.model_copy(update={"sms": sms + 1})
    assert links.bandwidth(share, 450e9) <= more.bandwidth(share, 450e9) <= share * 450e9
    transfer = Transfer(np.full((2, 2), 1e6), np.zeros((2, 2)))
    assert (busiest_s(transfer, links, 7392.0) >= busiest_s(transfer, more, 7392.0)).all()
    assert links.over(nodes + 1).floor_s("combine") >= links.over(nodes).floor_s("combine")


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_floor_that_grows_with_the_nodes(profile: Profile, mode: str) -> None:
    """And each share keeps its physical bound. On H800, low-latency kernels show no growth."""
    for phase in ("dispatch", "combine"):
        floors = [profile.links(mode, nodes).floor_s(phase) for nodes in (2, 4, 8, 32)]
        assert 10e-6 < profile.links(mode, 1).floor_s(phase) < 100e-6
        assert floors == sorted(floors)
        assert floors[-1] < 200e-6
    for nodes in (1, 4):
        links = profile.links(mode, nodes)
        assert 0 < links.nvlink <= 1
        assert 0 < links.nic <= 1
        assert math.isfinite(links.rate or 1.0)


def test_over_several_nodes_copies_to_each_gpu_are_a_librarys_all_to_all() -> None:
    generic, *_ = PROFILES
    assert generic.links("per_gpu", 1) == generic.dispatch["per_gpu"]
    assert generic.plain is not None
    assert generic.links("per_gpu", 4) == generic.links("expert_to_expert", 4) == generic.plain.over(4)
    # A profile of before knows none.
    old = generic.model_copy(update={"plain": None, "dispatch": {"per_gpu": Links(nvlink=0.6, nic=0.8)}})
    assert old.links("per_gpu", 4) == Links(nvlink=0.6, nic=0.8)
    assert old.links("per_expert", 4) == Links(nvlink=old.nvlink, nic=old.nic)


def test_only_kernels_that_need_counts_wait_for_the_host() -> None:
    for profile in PROFILES:
        waits = {mode for mode in MODES if profile.links(mode, 2).host}
        assert waits == {"per_gpu", "per_node", "expert_to_expert"}
        assert "H20" in profile.sources["host"]


def test_the_host_is_a_fixed_cost_beside_the_kernels(tmp_path: Path) -> None:
    """Two MoE layers: the phases of transfers stay as they were, and everything else does, too."""
    found = []
    for host in ("0 s", "1 ms"):
        path = write_scenario(tmp_path, tiny_scenario(profile=on_generic(plain={"host": host})))
        found.append(json.loads(moesim("run", path, "--json").out))
    without, with_it = found
    added = {
        key: value - without["metrics"]["phase_time_s"][key]
        for key, value in with_it["metrics"]["phase_time_s"].items()
    }
    assert added.pop("other") == pytest.approx(2e-3)
    assert list(added.values()) == pytest.approx([0.0] * len(added), abs=rounding(10**4))
    grown = {
        term: with_it["attribution"][term] - without["attribution"][term]
        for term in ("imbalance_s", "network_s", "overhead_s", "ideal_s")
    }
    assert grown.pop("overhead_s") == pytest.approx(2e-3)
    assert list(grown.values()) == pytest.approx([0.0] * len(grown), abs=rounding(10**4))


def test_a_single_gpu_has_no_collectives(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, tiny_scenario(parallelism={"ep": 1}))
    phases = json.loads(moesim("run", path, "--json").out)["metrics"]["phase_time_s"]
    assert phases["dispatch"] == phases["combine"] == 0.0


@pytest.mark.parametrize(
    ("cluster", "name"), [("h800-4x8", "h800"), ("h100-2x8", "h100"), ("h20-1x8", "generic")]
)
def test_without_a_profile_the_cluster_has_that_of_its_gpu(tmp_path: Path, cluster: str, name: str) -> None:
    scenario = tiny_scenario(cluster=cluster, profile=None)
    for mapping in (scenario, scenario | {"profile": None}):
        path = str(write_scenario(tmp_path, mapping))
        assert load_scenario(path).profile.name == name
        # An option that reaches into it changes that one, and another cluster asks for its own.
        changed = load_scenario(path, [Override.parse("profile.launch=3 us")]).profile
        assert changed.name == name
        assert changed.launch == pytest.approx(3e-6)
        moved = load_scenario(path, [Override.parse("cluster=h800-1x8")])
        assert moved.profile.name == "h800"
    named = load_scenario(path, [Override.parse("profile=generic")])
    assert named.profile.name == "generic"


def test_what_a_base_does_not_say_its_own_mapping_does() -> None:
    generic, _, h800 = PROFILES
    mine = load_profile(on_generic(name="mine", dispatch={"per_node": {"nic": 0.5}}), NOWHERE, ())
    assert mine.dispatch["per_node"] == generic.dispatch["per_node"].model_copy(update={"nic": 0.5})
    assert mine.dispatch["per_expert"] == generic.dispatch["per_expert"]
    assert h800.gemm == generic.gemm
    assert h800.dispatch["per_node"].rate == generic.dispatch["per_node"].rate


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"base": "nope"}, r"base: no such profile preset"),
        ({"base": "mine.yaml"}, r"base: no such profile preset.*known: cpu, generic, h100, h800"),
        ({"base": 3}, r"base: must be a name \(got 3\)"),
        ({"plain": {"rate": "9 GB/s"}}, r"plain\.rate: is that of each multiprocessor: needs sms"),
        ({"plain": {"spread": 2}}, r"plain\.spread: needs the rate of a multiprocessor \(got 2"),
        ({"plain": {"fixed": "-1 us"}}, r"plain\.fixed: must be at least 0"),
        ({"plain": {"fitted_tokens": [8, 4]}}, r"plain\.fitted_tokens: must ascend \(got \[8, 4\]\)"),
        ({"plain": {"fitted_gpus": 8}}, r"plain\.fitted_gpus: "),
    ],
)
def test_what_a_profile_may_not_say_of_links(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(SpecError, match=rule):
        load_profile(on_generic(**changes), NOWHERE, ())


@pytest.mark.parametrize(
    ("tokens", "gpus", "words"),
    [
        (1, 8, ""),
        (4096, 64, ""),
        (4097, 8, "1 to 4,096 tokens a GPU and 8 to 64 GPUs"),
        (8, 128, "1 to 4,096 tokens a GPU and 8 to 64 GPUs"),
    ],
)
def test_where_nothing_was_fitted(tokens: float, gpus: int, words: str) -> None:
    assert Links(nvlink=1, nic=1, fitted_tokens=(1, 4096), fitted_gpus=(8, 64)).beyond(tokens, gpus) == words


def test_one_number_is_fitted_near_it() -> None:
    near = Links(nvlink=1, nic=1, fitted_tokens=128)
    assert [near.beyond(tokens, 8) for tokens in (31, 32, 512, 513)] == [
        "about 128 tokens a GPU",
        "",
        "",
        "about 128 tokens a GPU",
    ]
    assert not Links(nvlink=1, nic=1).beyond(1e9, 4096)


def test_both_kinds_of_kernels_over_batch_sizes_on_h100() -> None:
    """Low-latency kernels are faster in small batches, high-throughput ones from 256 tokens on two nodes."""
    done = moesim(
        *("whatif", "demo", "-s", "cluster=h100-2x8", "-s", "parallelism.ep=16", "-s", SMALL_MODEL),
        *("-s", "workload.steps=2", "--vary", "dispatch.mode=[per_expert, per_node]"),
        *("--vary", "workload.tokens_per_gpu=[8, 32, 64, 256]", "--json"),
    )
    comparison = json.loads(done.out)
    seconds = {
        (point["vary"]["dispatch.mode"], point["vary"]["workload.tokens_per_gpu"]): sum(
            point["metrics"]["phase_time_s"][phase] for phase in ("dispatch", "combine")
        )
        for point in comparison["points"]
    }
    faster = {
        tokens: min(("per_expert", "per_node"), key=lambda mode, at=tokens: seconds[mode, at])  # type: ignore[misc]
        for tokens in (8, 32, 64, 256)
    }
    assert faster == {8: "per_expert", 32: "per_expert", 64: "per_expert", 256: "per_node"}
    assert not any(point["unseen"] for point in comparison["points"])
    # A dispatch of 8 tokens a GPU and its combine over two nodes: 145 µs, of two layers, as in the tables.
    assert seconds["per_node", 8] / 2 == pytest.approx(145e-6, rel=0.15)


def test_modes_are_not_ranked_where_their_transfers_were_not_fitted() -> None:
    """On H800, low-latency kernels were fitted with 128 tokens a GPU."""
    asked = ("whatif", "demo", "-s", SMALL_MODEL, "-s", "workload.steps=2", "-s", "dispatch.mode=per_expert")
    modes = ("--vary", "dispatch.mode=[per_expert, per_node]")
    unseen = moesim(*asked, *modes, "-s", "workload.tokens_per_gpu=8").out
    said = " ".join(unseen.split())
    assert "Dispatch modes are not ranked: 2 of 2 runs" not in said
    assert (
        "Dispatch modes are not ranked: 1 of 2 runs lie outside what their transfers were fitted on." in said
    )
    assert said.count("were fitted on about 128 tokens a GPU and 8 to 64 GPUs") == 1
    assert "is best" not in said
    assert "is fastest" not in said
    seen = " ".join(moesim(*asked, *modes, "-s", "workload.tokens_per_gpu=64").out.split())
    assert "not ranked" not in seen
    # One mode is no ranking of modes: then the note says it.
    alone = " ".join(moesim(*asked, "--vary", "workload.tokens_per_gpu=[8, 4]").out.split())
    assert "not ranked" not in alone
    assert "Compare dispatch modes with that in mind." in alone


def test_an_unknown_base_is_refused_in_one_line(here: Path) -> None:
    path = write_scenario(here, tiny_scenario(profile={"format": "moesim.profile/1", "base": "nope"}))
    assert "profile.base: no such profile preset" in refused("run", path)
