"""What a placement problem must be, value by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.problem.asked import Asked, Position
from placement.problem.errors import PlacementError
from placement.problem.objective import Objective
from placement.problem.placement import MAX_EXPERTS, MAX_GPUS, MAX_LAYERS, MAX_SLOTS
from traces.base.arrays import Floats, Ints

MOST_LOAD = 1e300
"""Loads of a layer sum to less, so that no cost overflows."""


def whole(field: str, value: Any, least: int, most: int) -> None:
    """Refuse what is not a whole number of a range."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise PlacementError(f"must be a whole number from {least} to {most}", field=field, got=value)


def loads(load: npt.ArrayLike) -> Floats:
    """float64 [W, L, E] of numbers [W, L, E] or [L, E]."""
    load_WLE = _floats("load", load)
    return load_WLE[None] if load_WLE.ndim == 2 else load_WLE


def slots_of_gpus(slots: int | Sequence[int], gpus: int) -> Ints:
    """int64 [G] of a total, whose remainder goes to the first GPUs, or of a number for each GPU."""
    if isinstance(slots, int | np.integer):
        whole("slots", slots, 1, MAX_SLOTS)
        each, more = divmod(int(slots), gpus)
        return each + (np.arange(gpus) < more).astype(np.int64)
    return _integers("slots", slots, (gpus,))


def nodes_of_gpus(gpus_per_node: int | Sequence[int], gpus: int) -> Ints:
    """int64 [G] of the GPUs of every node, or of a number for each node."""
    if isinstance(gpus_per_node, int | np.integer):
        whole("gpus_per_node", gpus_per_node, 1, MAX_GPUS)
        return np.arange(gpus, dtype=np.int64) // gpus_per_node
    for node, held in enumerate(gpus_per_node):
        whole(f"gpus_per_node[{node}]", held, 1, MAX_GPUS)
    if sum(gpus_per_node) != gpus:
        raise PlacementError(f"must sum to {gpus} GPUs", field="gpus_per_node", got=sum(gpus_per_node))
    return np.repeat(np.arange(len(gpus_per_node), dtype=np.int64), gpus_per_node)


def checked(problem: Asked) -> dict[str, Any]:
    """The attributes of a problem that are converted, in their final types.

    Raises:
        PlacementError: one is out of range or of another shape.
    """
    load_WLE = _floats("load", problem.load_WLE)
    layers = _layers(problem.layers)
    _check_loads(load_WLE, layers)
    _, rows, experts = load_WLE.shape
    gpus = np.size(problem.slots_G)
    whole("gpus", gpus, 1, MAX_GPUS)
    slots_G = _integers("slots", problem.slots_G, (gpus,))
    node_G = _integers("node", problem.node_G, (gpus,))
    speed_G = _floats("speed", problem.speed_G)
    _check_slots(slots_G, experts)
    _check_nodes(node_G)
    if speed_G.shape != (gpus,) or not (np.isfinite(speed_G) & (speed_G > 0)).all():
        raise PlacementError("must be a finite number above 0 for each GPU", field="speed", got=speed_G)
    if not isinstance(problem.objective, Objective):
        raise PlacementError("must be an Objective", field="objective", got=problem.objective)
    _check_groups(problem.groups, experts, slots_G, node_G)
    whole("model_groups", problem.model_groups, 1, experts)
    if experts % problem.model_groups:
        raise PlacementError(f"must divide {experts} experts", field="model_groups", got=problem.model_groups)
    if problem.groups > 1 and (problem.fixed or problem.forbidden):
        raise PlacementError("cannot be combined with fixed or forbidden positions", field="groups")
    _check_previous(problem, experts, gpus, layers)
    values: dict[str, Any] = {
        "load_WLE": load_WLE,
        "layers": layers,
        "slots_G": slots_G,
        "node_G": node_G,
        "speed_G": speed_G,
        "fixed": _positions("fixed", problem.fixed, layers, experts, gpus),
        "forbidden": _positions("forbidden", problem.forbidden, layers, experts, gpus),
        "active_WLE": _active(problem, load_WLE.shape),
    }
    return values | _sample(problem, rows, experts, int(node_G.max()) + 1)


def _floats(field: str, values: npt.ArrayLike) -> Floats:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise PlacementError("must be an array of numbers", field=field) from error


def _integers(field: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> Ints:
    """A copy as int64; a shape with −1 leaves that axis open."""
    try:
        array = np.array(values)
    except ValueError as error:
        raise PlacementError("must be an array of whole numbers", field=field) from error
    fits = array.ndim == len(shape) and all(
        want in (-1, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        axes = ", ".join("any" if axis == -1 else str(axis) for axis in shape)
        raise PlacementError(
            f"must be whole numbers of shape [{axes}]", field=field, got=f"{array.dtype} {array.shape}"
        )
    return array.astype(np.int64)


def _layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    last = -1
    for position, layer in enumerate(layers):
        whole(f"layers[{position}]", layer, last + 1, MAX_LAYERS - 1)
        last = int(layer)
    return tuple(int(layer) for layer in layers)


def _check_loads(load_WLE: Floats, layers: tuple[int, ...]) -> None:
    if load_WLE.ndim != 3 or 0 in load_WLE.shape or load_WLE.shape[1] != len(layers):
        raise PlacementError(
            f"must have shape [windows, {len(layers)} layers, experts], not empty",
            field="load",
            got=load_WLE.shape,
        )
    whole("experts", load_WLE.shape[2], 1, MAX_EXPERTS)
    bad_WLE = ~np.isfinite(load_WLE) | (load_WLE < 0)
    if bad_WLE.any():
        window, row, expert = (int(index) for index in np.unravel_index(bad_WLE.argmax(), bad_WLE.shape))
        at = f"window {window}, " if len(load_WLE) > 1 else ""
        raise PlacementError(
            "must be finite and not negative",
            field=f"load, {at}layer {layers[row]}, expert {expert}",
            got=load_WLE[window, row, expert],
        )
    with np.errstate(over="ignore"):
        total_L = load_WLE.sum(axis=(0, 2))
    for layer, total in zip(layers, total_L.tolist(), strict=True):
        if total == 0:
            raise PlacementError("the loads of a layer must not all be zero", field=f"load, layer {layer}")
        if total > MOST_LOAD:
            raise PlacementError(
                f"must sum to at most {MOST_LOAD:g}", field=f"load, layer {layer}", got=total
            )


def _check_slots(slots_G: Ints, experts: int) -> None:
    if slots_G.min() < 0 or slots_G.max() > MAX_SLOTS:
        gpu = int(np.argmax((slots_G < 0) | (slots_G > MAX_SLOTS)))
        whole(f"slots[{gpu}]", slots_G[gpu], 0, MAX_SLOTS)
    slots = int(slots_G.sum())
    whole("slots", slots, 1, MAX_SLOTS)
    useful = int(np.minimum(slots_G, experts).sum())
    if useful < experts:
        rule = f"more experts than slots: {experts} experts, each on a GPU, need as many slots"
        raise PlacementError(rule, field="slots", got=useful)


def _check_nodes(node_G: Ints) -> None:
    found = np.unique(node_G)
    if not np.array_equal(found, np.arange(len(found))):
        raise PlacementError("nodes must be numbered from 0 without a gap", field="node", got=found)


def _check_groups(groups: int, experts: int, slots_G: Ints, node_G: Ints) -> None:
    whole("groups", groups, 1, experts)
    nodes = int(node_G.max()) + 1
    for number, of in ((experts % groups, f"{experts} experts"), (groups % nodes, f"{nodes} nodes")):
        if groups > 1 and number:
            rule = f"must {'divide' if 'experts' in of else 'be a multiple of'} {of}"
            raise PlacementError(rule, field="groups", got=groups)
    if groups > 1:
        useful_N = np.bincount(node_G, np.minimum(slots_G, experts // nodes))
        node = int(useful_N.argmin())
        if useful_N[node] < experts // nodes:
            rule = f"node {node} must hold {groups // nodes} groups of {experts // groups} experts"
            raise PlacementError(rule, field="slots", got=int(useful_N[node]))


def _positions(
    name: str, positions: tuple[Position, ...], layers: tuple[int, ...], experts: int, gpus: int
) -> tuple[Position, ...]:
    rows = set(layers)
    kept = []
    for index, position in enumerate(positions):
        field = f"{name}[{index}]"
        if len(position) != 3:
            raise PlacementError("must be (layer, expert, gpu)", field=field, got=position)
        layer, expert, gpu = position
        whole(f"{field}: layer", layer, 0, MAX_LAYERS - 1)
        whole(f"{field}: expert", expert, 0, experts - 1)
        whole(f"{field}: gpu", gpu, 0, gpus - 1)
        if layer not in rows:
            raise PlacementError("is no layer of the problem", field=f"{field}: layer", got=layer)
        kept.append(Position(int(layer), int(expert), int(gpu)))
    return tuple(kept)


def _check_previous(problem: Asked, experts: int, gpus: int, layers: tuple[int, ...]) -> None:
    if problem.max_moves is not None:
        whole("max_moves", problem.max_moves, 0, 2**62)
    for field, asked in (
        ("max_moves", problem.max_moves is not None),
        ("objective.per_move", problem.objective.per_move > 0),
    ):
        if asked and problem.previous is None:
            raise PlacementError("needs a previous placement", field=field)
    if problem.previous is not None:
        problem.previous.check_fits(experts, gpus, layers)


def _active(problem: Asked, shape: tuple[int, ...]) -> Floats | None:
    if problem.active_WLE is None:
        if problem.objective.per_active > 0:
            raise PlacementError(
                "needs active_WLE, the probability that each expert gets a token",
                field="objective.per_active",
            )
        return None
    active_WLE = _floats("active", problem.active_WLE)
    if active_WLE.shape not in (shape, shape[1:]):
        raise PlacementError(f"must have the loads' shape {shape}", field="active", got=active_WLE.shape)
    if not ((active_WLE >= 0) & (active_WLE <= 1)).all():
        raise PlacementError("must be probabilities from 0 to 1", field="active")
    return np.broadcast_to(active_WLE, shape).copy()


def _sample(problem: Asked, rows: int, experts: int, nodes: int) -> dict[str, Ints | None]:
    if problem.sample_TLK is None:
        if problem.objective.per_copy > 0:
            raise PlacementError("needs sample_TLK, tokens with their experts", field="objective.per_copy")
        if problem.home_T is not None:
            raise PlacementError("needs sample_TLK, the tokens that have these homes", field="home")
        return {}
    sample_TLK = _integers("sample", problem.sample_TLK, (-1, rows, -1))
    if sample_TLK.min() < 0 or sample_TLK.max() >= experts:
        raise PlacementError(f"must be experts from 0 to {experts - 1}", field="sample")
    if problem.home_T is None:
        return {"sample_TLK": sample_TLK}
    home_T = _integers("home", problem.home_T, (len(sample_TLK),))
    if home_T.min() < 0 or home_T.max() >= nodes:
        raise PlacementError(f"must be nodes from 0 to {nodes - 1}", field="home")
    return {"sample_TLK": sample_TLK, "home_T": home_T}
