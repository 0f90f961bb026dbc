"""One row of each kind: the what-if and the attribution agree, and a ceiling holds."""

from __future__ import annotations

import pytest

from experiments.attribution import experiment


def test_what_ifs_win_what_imbalance_is_said_to_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "MODES", ("per_node",))
    monkeypatch.setattr(experiment, "SKEWS", (0.8,))
    found = experiment.attribution()
    assert [row.case for row in found.rows] == [
        "per_node: skew 0.8 instead of 0",
        "per_node: 64 or 192 tokens a GPU instead of 128",
    ]
    for row in found.rows:
        assert abs(row.error) < 0.01
        assert row.measured > 1.0
    (ceiling,) = found.checks
    assert 0 < ceiling.measured < ceiling.predicted
