"""Flows that share links max-min fairly, from their starts to their ends; compiled.

Axes: F flows, L links, H links on a path. Each flow takes its weight times a *level*, as high as its links
allow when all flows rise together: the allocation in which no flow can gain but at the cost of one that has
no more (Bertsekas and Gallager, Data Networks, section 6.5.2). It is solved by progressive filling: the
link that is full first fixes the level of its flows, what they take is subtracted, and so on.

When flows start or end, the filling is taken up again at the lowest level that this can change: every round
below stays as it was. For flows that end it is their own lowest level, for flows that start the lowest
bandwidth over weight among their links.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.base.jit import jit


@jit
def share_links(
    start_F: Any, bytes_F: Any, weight_F: Any, link_FH: Any, bandwidth_L: Any, epsilon: float
) -> Any:
    """When each flow ends, and the most that each link carried at once.

    Args:
        start_F: seconds.
        bytes_F: bytes, above zero.
        weight_F: how many single flows each stands for.
        link_FH: links of each path, filled up with -1; at least one.
        bandwidth_L: bytes per second.
        epsilon: flows that end within this share of the time since the first start are one event: each ends
            at its own time, at the rate it had, but what it leaves is handed on only after the last of them.

    Returns:
        end_F in seconds, peak_L in bytes per second.
    """
    F, H = link_FH.shape
    end_F = np.empty(F)
    peak_L = np.zeros(len(bandwidth_L))
    group_F = _groups(link_FH, len(bandwidth_L))
    # By group, and within a group by start.
    by_start_F = np.argsort(start_F, kind="mergesort")
    order_F = by_start_F[np.argsort(group_F[by_start_F], kind="mergesort")]
    local_L = np.full(len(bandwidth_L), -1, np.int64)
    begin = 0
    while begin < F:
        stop = begin + 1
        while stop < F and group_F[order_F[stop]] == group_F[order_F[begin]]:
            stop += 1
        flows = order_F[begin:stop]
        path_NH = np.full((len(flows), H), -1, np.int64)
        used_M = np.empty(min(len(bandwidth_L), len(flows) * H), np.int64)
        M = 0
        for n in range(len(flows)):
            for h in range(H):
                link = link_FH[flows[n], h]
                if link < 0:
                    break
                if local_L[link] < 0:
                    local_L[link] = M
                    used_M[M] = link
                    M += 1
                path_NH[n, h] = local_L[link]
        used_M = used_M[:M]
        end_N, peak_M = _run_group(
            start_F[flows], bytes_F[flows], weight_F[flows], path_NH, bandwidth_L[used_M], epsilon
        )
        end_F[flows] = end_N
        peak_L[used_M] = peak_M
        begin = stop
    return end_F, peak_L


@jit
def _groups(link_FH: Any, links: int) -> Any:
    """A number for each flow, equal for flows that meet on a link, directly or through others."""
    parent_L = np.arange(links)
    F, H = link_FH.shape
    for f in range(F):
        root = _root(parent_L, link_FH[f, 0])
        for h in range(1, H):
            if link_FH[f, h] < 0:
                break
            parent_L[_root(parent_L, link_FH[f, h])] = root
    group_F = np.empty(F, np.int64)
    for f in range(F):
        group_F[f] = _root(parent_L, link_FH[f, 0])
    return group_F


@jit
def _root(parent_L: Any, link: int) -> int:
    while parent_L[link] != link:
        parent_L[link] = parent_L[parent_L[link]]
        link = parent_L[link]
    return link


@jit
def _run_group(
    start_N: Any, bytes_N: Any, weight_N: Any, path_NH: Any, bandwidth_M: Any, epsilon: float
) -> Any:
    """``share_links`` for N flows, sorted by start, on M links that are all theirs."""
    N, M = len(start_N), len(bandwidth_M)
    offset_M, flow_of_link = _flows_of_links(path_NH, M)
    end_N = np.zeros(N)
    left_N = bytes_N.copy()
    level_N = np.zeros(N)
    takes_N = np.empty(N)  # seconds until the end at the present rate
    runs_N = np.zeros(N, np.bool_)
    running = np.empty(N, np.int64)  # the flows that run; the first ``count`` entries
    count, begun = 0, 0
    weight_M = np.zeros(M)
    peak_M = np.zeros(M)
    now, redo = start_N[0], np.inf
    while True:
        while begun < N and start_N[begun] <= now:
            running[count] = begun
            runs_N[begun] = True
            level_N[begun] = np.inf  # not yet filled, whatever ``redo`` becomes
            for link in path_NH[begun]:
                if link >= 0:
                    weight_M[link] += weight_N[begun]
                    redo = min(redo, bandwidth_M[link] / weight_M[link])
            count += 1
            begun += 1
        _fill(
            redo,
            running[:count],
            runs_N,
            weight_N,
            path_NH,
            bandwidth_M,
            offset_M,
            flow_of_link,
            level_N,
            peak_M,
        )
        soonest = np.inf
        for n in running[:count]:
            takes_N[n] = left_N[n] / (weight_N[n] * level_N[n])
            soonest = min(soonest, takes_N[n])
        window = soonest + epsilon * (now + soonest - start_N[0])
        ends = True
        if begun < N:
            ends = soonest < start_N[begun] - now
            window = min(window, start_N[begun] - now)
        # How far this goes on: to the last of the flows that end in the window, or to the next start.
        step = soonest if ends else window
        redo = np.inf
        still = 0
        for n in running[:count]:
            if ends and takes_N[n] <= window:
                end_N[n] = now + takes_N[n]
                step = max(step, takes_N[n])
                redo = min(redo, level_N[n])
                runs_N[n] = False
                for link in path_NH[n]:
                    if link >= 0:
                        weight_M[link] -= weight_N[n]
            else:
                running[still] = n
                still += 1
        count = still
        for n in running[:count]:
            left_N[n] = max(0.0, left_N[n] - step * weight_N[n] * level_N[n])
        now = now + step if ends else start_N[begun]
        if count == 0:
            if begun == N:
                return end_N, peak_M
            now = max(now, start_N[begun])


@jit
def _flows_of_links(path_NH: Any, M: int) -> Any:
    """The flows of each link: those of link m stand from offset_M[m] to offset_M[m + 1]."""
    offset_M = np.zeros(M + 1, np.int64)
    for path in path_NH:
        for link in path:
            if link >= 0:
                offset_M[link + 1] += 1
    offset_M = np.cumsum(offset_M)
    flow_of_link = np.empty(offset_M[M], np.int64)
    filled_M = offset_M[:M].copy()
    for n in range(len(path_NH)):
        for link in path_NH[n]:
            if link >= 0:
                flow_of_link[filled_M[link]] = n
                filled_M[link] += 1
    return offset_M, flow_of_link


@jit
def _fill(
    redo: float,
    running: Any,
    runs_N: Any,
    weight_N: Any,
    path_NH: Any,
    bandwidth_M: Any,
    offset_M: Any,
    flow_of_link: Any,
    level_N: Any,
    peak_M: Any,
) -> None:
    """Progressive filling from the level ``redo`` on; lower levels stay."""
    M = len(bandwidth_M)
    spare_M = bandwidth_M.copy()
    rising_M = np.zeros(M)  # weight of the flows that still rise
    rising = 0
    for n in running:
        if level_N[n] >= redo:
            level_N[n] = np.inf
            rising += 1
        for link in path_NH[n]:
            if link >= 0:
                if level_N[n] == np.inf:
                    rising_M[link] += weight_N[n]
                else:
                    spare_M[link] -= weight_N[n] * level_N[n]
    level = redo
    while rising > 0:
        first, full = np.inf, 0
        for m in range(M):
            if rising_M[m] > 0.0 and spare_M[m] < first * rising_M[m]:
                first, full = spare_M[m] / rising_M[m], m
        level = max(level, first)  # rounding must not turn back what rises
        for i in range(offset_M[full], offset_M[full + 1]):
            n = flow_of_link[i]
            if not runs_N[n] or level_N[n] != np.inf:
                continue
            level_N[n] = level
            rising -= 1
            for link in path_NH[n]:
                if link >= 0:
                    spare_M[link] -= weight_N[n] * level
                    rising_M[link] -= weight_N[n]
        rising_M[full] = 0.0
    for m in range(M):
        peak_M[m] = max(peak_M[m], bandwidth_M[m] - spare_M[m])
