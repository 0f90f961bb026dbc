"""Draws ``docs/architecture.svg`` from the imports: floors, their rooms, and which room uses which.

    python docs/draw_architecture.py

An arrow points at what is imported. Where a room uses a second one by way of a third, only the way is drawn.
"""

from __future__ import annotations

import ast
from itertools import groupby
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("executor", "moesim", "placement", "traces")
WIDTH, ROW, BOX = 900, 50, (126, 28)
LEFT, RIGHT = 110, 640
"""Rooms lie between; arrows to other floors go round them on the right."""


def room_of(module: str) -> str:
    """``package.room``, or ``package`` for what lies at its root; "" for what is not ours."""
    parts = module.split(".")
    if parts[0] not in FLOORS:
        return ""
    return ".".join(parts[:2]) if (ROOT / parts[0] / parts[1]).is_dir() else parts[0]


def rooms() -> networkx.DiGraph:
    """The rooms, and an edge from each to those that its files import."""
    graph = networkx.DiGraph()
    for path in sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom) or not getattr(node, "module", None):
                continue
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            graph.add_edges_from(
                (room, other) for name in names if (other := room_of(name)) not in ("", room)
            )
    return networkx.transitive_reduction(graph)


def places(graph: networkx.DiGraph) -> dict[str, tuple[float, float]]:
    """The middle of each room: floors below each other, and in a floor each room above those it uses."""
    found: dict[str, tuple[float, float]] = {}
    row = 0.0
    for floor in FLOORS:
        inside = graph.subgraph(sorted(room for room in graph if room.split(".")[0] == floor))
        for level in reversed(list(networkx.topological_generations(inside.reverse()))):
            # Each below the rooms that use it, as far as the order goes.
            def above(room: str) -> tuple[float, str]:
                users = [found[user][0] for user in graph.predecessors(room) if user in found]
                return (sum(users) / len(users) if users else LEFT, room)

            for column, room in enumerate(sorted(level, key=above)):
                found[room] = (LEFT + (RIGHT - LEFT) * (column + 0.5) / len(level), (row + 0.75) * ROW)
            row += 1
        row += 0.5
    return found


def svg() -> str:
    """The picture."""
    graph, half = rooms(), BOX[1] / 2
    at = places(graph)
    height = max(y for _, y in at.values()) + ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-size="14" '
        'font-family="sans-serif" text-anchor="middle">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#789"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>',
    ]
    for floor, members in groupby(at, key=lambda room: room.split(".")[0]):
        ys = [at[room][1] for room in members]
        top, tall = min(ys) - 0.6 * ROW, max(ys) - min(ys) + 1.2 * ROW
        lines.append(
            f'<rect x="4" y="{top:.0f}" width="{WIDTH - 8}" height="{tall:.0f}" rx="8" fill="#eef2f6"/>'
        )
        lines.append(f'<text x="56" y="{top + tall / 2 + 5:.0f}" font-weight="bold">{floor}</text>')
    lane = RIGHT
    for room, other in sorted(graph.edges):
        (x, y), (to_x, to_y) = at[room], at[other]
        if room.split(".")[0] == other.split(".")[0]:
            points = (x, y + half, x, (y + to_y) / 2, to_x, (y + to_y) / 2, to_x, to_y - half)
        else:
            lane += 30
            points = (x + BOX[0] / 2, y, lane, y, lane, to_y, to_x + BOX[0] / 2, to_y)
        path = "M{:.0f} {:.0f}C{:.0f} {:.0f} {:.0f} {:.0f} {:.0f} {:.0f}".format(*points)
        lines.append(f'<path d="{path}" fill="none" stroke="#789" marker-end="url(#tip)"/>')
    for room, (x, y) in at.items():
        name = room.partition(".")[2] or "files at the root"
        lines.append(
            f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - half:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="5" '
            'fill="#fff" stroke="#345"/>'
        )
        lines.append(f'<text x="{x:.0f}" y="{y + 5:.0f}">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "architecture.svg").write_text(svg(), "utf-8")
