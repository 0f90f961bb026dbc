"""Dispatch and combine on H100 and H800, from one token a GPU on: floors, links, multiprocessors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from experiments.comparison import Comparison, Parameter, Row, spread, summary, with_ends
from experiments.network import h100, h800
from experiments.network.cases import Case
from experiments.network.fits import Fitted, cluster, fit_links, predicted, profile_links, seconds
from moesim.units import format_rate, format_seconds

MOST_TOKENS = 4096
"""Of the rows that are fitted; larger batches, of prefill in several chunks, only check."""

SERVED_SMS = {8: (20,), 16: (20, 24)}
"""Multiprocessors of the rows that are fitted, by GPUs: those that servers use."""

FITTED_GPUS = 64
"""Largest group of DeepEP's low-latency table that the fit sees."""

_NOTHING_S = 1e-12
"""What a fit leaves of a floor that its bound holds at 0."""

ORDERS = ((8, 8), (8, 32), (8, 64), (16, 8), (16, 32), (16, 64), (16, 256))
"""GPUs and tokens at which the order of both kinds of kernels is looked at."""


def network() -> Comparison:
    """All tables: at most five parameters for each kind of kernels and each machine."""
    measured = h100.h100_cases()
    own, low = h800.normal_cases(), h800.low_latency_cases()
    fitted = [*_h100(measured)] if measured else []
    fitted += [
        fit_links("H800 normal, one node", ("nvlink",), [case for case in own if case.nodes == 1]),
        fit_links("H800 normal, relaying", ("nvlink", "nic"), [case for case in own if case.nodes > 1]),
        fit_links(
            "H800 low latency",
            ("nvlink", "nic", "fixed", "fixed_combine", "grows"),
            [case for case in low if case.gpus <= FITTED_GPUS],
        ),
        # Parts of equal size need no exchange of counts.
        fit_links("H100 NCCL", ("nvlink", "fixed"), h100.plain_cases(), counts=0.0),
    ]
    links = {each.kind: each.links for each in fitted}
    seen = {id(case) for each in fitted for case in each.cases}
    rest = [case for case in [*measured, *low] if id(case) not in seen]
    beside = [case for case in rest if case.mode != "per_node" or case.sms in SERVED_SMS[case.gpus]]
    others = [case for case in rest if case not in beside]
    return Comparison(
        "network",
        f"{h800.SOURCE}; {h100.SOURCE if measured else 'H100: no data'}; {h100.PLAIN_SOURCE}",
        rows=tuple(row for each in fitted for row in with_ends(_rows(each))),
        checks=tuple(_row(case, predicted(case, links[case.kind])) for case in beside),
        parameters=tuple(parameter for each in fitted for parameter in _parameters(each)),
        remarks=(
            *(f"{_errors(each.kind, _rows(each))}, uncertainty {spread(_rows(each)):.3f}" for each in fitted),
            *_multiprocessors(others, lambda case: predicted(case, links[case.kind])),
            *_each_way(fitted),
            *(_orders(measured) if measured else [f"H100 skipped: no {h100.folder()}, set MOESIM_SHARED"]),
        ),
    )


def _h100(measured: Sequence[Case]) -> list[Fitted]:
    """The three kinds of kernels; what two of them share is fitted to one and stands in the profile."""
    normal = [
        case
        for case in measured
        if case.mode == "per_node" and case.tokens <= MOST_TOKENS and case.sms in SERVED_SMS[case.gpus]
    ]
    return [
        fit_links(
            "H100 normal, one node",
            ("fixed", "fixed_combine", "nvlink"),
            [case for case in normal if case.nodes == 1],
            by_tokens=True,
            rate=None,  # of one number of multiprocessors nothing tells it from the share of the link
        ),
        fit_links(
            "H100 normal, relaying",
            ("grows", "rate", "spread"),
            [case for case in normal if case.nodes > 1],
            by_tokens=True,
        ),
        fit_links(
            "H100 low latency",
            ("fixed", "fixed_combine", "grows", "nvlink", "nic"),
            [case for case in measured if case.mode == "per_expert"],
            by_tokens=True,
        ),
    ]


def _rows(fitted: Fitted) -> tuple[Row, ...]:
    both = zip(fitted.cases, fitted.fit.predicted_R, fitted.fit.left_out_R, strict=True)
    return tuple(_row(case, float(found), float(left_out)) for case, found, left_out in both)


def _row(case: Case, found: float, left_out: float | None = None) -> Row:
    return Row(name_of(case), "GB/s" if case.logical_bytes else "µs", case.measured, found, left_out)


def name_of(case: Case) -> str:
    """What tables call a row."""
    if case.mode == "plain":
        return f"{case.kind}, {case.gpus} GPUs, {case.tokens >> 20} MiB a GPU"
    kind = "low latency" if case.mode == "per_expert" else "normal"
    more = f", {case.sms} SMs" if case.sms else f", {case.experts} experts"
    return f"{case.machine} {kind} {case.phase}, EP{case.gpus}, {case.tokens} tokens{more}"


def _errors(kind: str, rows: Sequence[Row]) -> str:
    totals = summary(rows)
    left_out = f", left out {totals['loo_mean_abs_error']:.1%}" if rows[0].left_out is not None else ""
    return (
        f"{kind}: {len(rows)} rows, mean error {totals['mean_abs_error']:.1%}, largest "
        f"{totals['max_abs_error']:.1%}{left_out}"
    )


def _each_way(fitted: Sequence[Fitted]) -> list[str]:
    """What a rate of multiprocessors for each way would reach, of the kind that has more than one number."""
    found = []
    for each in (each for each in fitted if "rate" in each.names):
        for phase in ("dispatch", "combine"):
            alone = fit_links(each.kind, each.names, [case for case in each.cases if case.phase == phase])
            rate = f"each {phase} alone with {format_rate(alone.links.rate or 0.0)} a multiprocessor"
            found.append(_errors(f"{each.kind}, {rate}", _rows(alone)))
    return found


def _multiprocessors(cases: Sequence[Case], found: Callable[[Case], float]) -> list[str]:
    """Errors of rows with other numbers of multiprocessors, none of them fitted."""
    return [
        _errors(
            f"not fitted, {sms} multiprocessors, up to {MOST_TOKENS} tokens",
            [_row(case, found(case)) for case in cases if case.sms == sms and case.tokens <= MOST_TOKENS],
        )
        for sms in sorted({case.sms for case in cases})
    ]


def _orders(measured: Sequence[Case]) -> list[str]:
    """Which kind of kernels is faster, dispatch and combine together, in the tables and by the profile."""
    found = []
    for gpus, tokens in ORDERS:
        there, here = [], []
        for mode in ("per_expert", "per_node"):
            cases = [
                case
                for case in measured
                if (case.mode, case.gpus, case.tokens, case.experts) == (mode, gpus, tokens, 256)
                and case.sms in (0, SERVED_SMS[gpus][0])
            ]
            there.append(sum(case.measured for case in cases))
            here.append(sum(seconds(case, profile_links(case)) * 1e6 for case in cases))
        agree = (there[0] < there[1]) == (here[0] < here[1])
        found.append(
            f"order, {gpus} GPUs, {tokens} tokens: low latency {there[0]:.0f} µs, normal {there[1]:.0f} µs; "
            f"predicted {here[0]:.0f} and {here[1]:.0f}: {'the same' if agree else 'THE OTHER'} order"
        )
    return found


def _parameters(fitted: Fitted) -> list[Parameter]:
    board = cluster(fitted.cases[0].machine)
    lines = {"nvlink": board.gpu.nvlink.bandwidth, "nic": board.nic.bandwidth}
    names = {"nvlink": "NVLink", "nic": "NIC"}
    found = []
    for name in fitted.names:
        value = getattr(fitted.links, name)
        if name in lines:
            text, bound = format_rate(value * lines[name]), f"of {format_rate(lines[name])} {names[name]}"
        elif name == "rate":
            text, bound = format_rate(value), "of each multiprocessor, each way"
        elif name == "spread":
            text, bound = f"{value:.2f}", "standard deviations of its copies, at least 0"
        else:
            text = format_seconds(value if value > _NOTHING_S else 0.0)
            bound = "for each doubling of nodes, at least 0" if name == "grows" else "at least 0"
        found.append(Parameter(f"{fitted.kind}: {names.get(name, name)}", text, bound))
    return found
