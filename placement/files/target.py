"""What a placement is read for: files of serving systems leave to their reader what these know anyway."""

from __future__ import annotations

from dataclasses import dataclass

from placement.problem.errors import PlacementError


@dataclass(frozen=True)
class Target:
    """A model and a group of GPUs.

    Attributes:
        experts: E, logical experts of a layer.
        gpus: G, GPUs of the expert-parallel group.
        layers: true index in the model of each MoE layer, ascending.
        hidden_layers: all layers of the model, dense ones included; None where nothing tells.
    """

    experts: int
    gpus: int
    layers: tuple[int, ...]
    hidden_layers: int | None = None

    def check_moe_rows(self, rows: int, field: str) -> None:
        """Refuse a table by MoE layers that has another number of them.

        Raises:
            PlacementError: it has.
        """
        if rows != len(self.layers):
            rule = f"must have {len(self.layers)} rows, one for each MoE layer"
            raise PlacementError(rule, field=field, got=rows)

    def rows(self, rows: int, field: str) -> list[int]:
        """Which row of a table without layer ids belongs to each MoE layer.

        A table has a row for each MoE layer, or for each layer of the model. Where the number of all layers
        is unknown, one that reaches the last MoE layer is taken for the latter.

        >>> target = Target(experts=8, gpus=2, layers=(1, 2), hidden_layers=3)
        >>> target.rows(2, "map"), target.rows(3, "map")
        ([0, 1], [1, 2])

        Raises:
            PlacementError: it has another number of rows.
        """
        if rows == len(self.layers):
            return list(range(rows))
        last = self.layers[-1]
        if rows == self.hidden_layers or (self.hidden_layers is None and rows > last):
            return list(self.layers)
        every = f"more than {last}" if self.hidden_layers is None else self.hidden_layers
        raise PlacementError(
            f"must have {len(self.layers)} rows, one for each MoE layer, or {every}, one for each layer of "
            "the model",
            field=field,
            got=rows,
        )
