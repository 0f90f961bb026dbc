"""What the user says about a recording, because its file does not know it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from traces.base.errors import TraceError
from traces.meta import TraceMeta, in_file


@dataclass(frozen=True)
class Hints:
    """Facts about the model and the recording; None = unknown.

    Attributes:
        model: its name.
        experts: E. The largest id of a recording is not E: a rarely chosen expert may be missing.
        top_k: K.
        layers: true indices of the MoE layers.
        hidden_layers: number of all layers, dense ones included.
        origin, licence: of the recording.
    """

    model: str = ""
    experts: int | None = None
    top_k: int | None = None
    layers: tuple[int, ...] | None = None
    hidden_layers: int | None = None
    origin: str = ""
    licence: str = ""

    def meta(
        self,
        top_k: int,
        layers: tuple[int, ...],
        *,
        file: Path,
        experts: int | None = None,
        origin: str = "",
        candidates: int = 0,
        largest: int | None = None,
        hidden_layers: int | None = None,
    ) -> TraceMeta:
        """The metadata of a trace of which the file shows the rest.

        Args:
            top_k, layers, candidates: as found in the file.
            experts: E, where the file tells it.
            origin: what to say where the user says nothing.
            largest: the largest expert id of the file, for the message that asks for E.
            hidden_layers: all layers, where the file tells them.

        Raises:
            TraceError: nobody tells E, file and user disagree, or a value is out of its range.
        """
        count = self.experts if experts is None else experts
        if count is None:
            seen = "" if largest is None else f"; the largest id is {largest}"
            raise TraceError(f"does not tell the number of experts: name it (--experts N{seen})", file=file)
        if self.experts is not None and count != self.experts:
            raise TraceError(f"{self.name} has {self.experts} experts", file=file, got=count)
        if self.top_k is not None and top_k != self.top_k:
            raise TraceError(f"{self.name} chooses {self.top_k} experts per token", file=file, got=top_k)
        try:
            return TraceMeta(
                self.model,
                count,
                top_k,
                layers,
                self.origin or origin,
                self.licence,
                candidates,
                self.hidden_layers or hidden_layers,
            )
        except TraceError as error:
            raise in_file(error, file) from error

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.model or "the model"
