"""Why a step takes as long as it does: five simulations of the same steps, each without one more cause."""

from __future__ import annotations

from moesim.simulation.run import Totals


def attribution(step_s: float, totals: Totals, steps: int) -> dict[str, float]:
    """Seconds of a step by cause; they sum to ``step_s``.

    T0 is the run as asked; T1 with healthy hardware; T2 with, in each
    phase, every GPU given the mean over GPUs of that phase's duration; T3 also with a free
    network; T4 also without launches and fixed costs. A term may be negative, and is shown as it is.

    Args:
        step_s: T0, mean seconds of a step.
        totals: T1 to T4, summed over the steps.
        steps: how many.
    """
    t1, t2, t3, t4 = (
        total / steps for total in (totals.healthy, totals.balanced, totals.no_network, totals.no_overhead)
    )
    return {
        "hardware_s": step_s - t1,
        "imbalance_s": t1 - t2,
        "network_s": t2 - t3,
        "overhead_s": t3 - t4,
        "ideal_s": t4,
    }
