"""The rules for the content of a routing trace, compiled: each finds the first token that breaks one.

Every function takes the place of its arrays, so that the message names a token that the user can look up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.base.jit import jit

_HALF_LIMIT, _HALF_MINUS_ZERO = 0x7C00, 0x8000  # float16: bits of infinity and of -0.0
_SINGLE_LIMIT, _SINGLE_MINUS_ZERO = 0x7F800000, 0x80000000  # the same of float32


@dataclass(frozen=True)
class Place:
    """Where the arrays come from: a file, and the index in it of their first token."""

    file: str | Path | None
    first_token: int = 0

    def error(self, rule: str, column: str, token: int, got: object) -> TraceError:
        """The error of a token of the arrays, which names the column in the file."""
        field = f"{column}, token {self.first_token + int(token)}"
        return TraceError(rule, file=self.file, field=field, got=got)


def check_ids(ids_TLK: Array, experts: int, names_L: list[str], place: Place) -> None:
    """Ids are below ``experts`` and distinct within a token's choice.

    Args:
        ids_TLK: uint8 or uint16; also candidates, with C in place of K.
        names_L: what to call each layer in a message, the names of its columns in a file.
    """
    row, column, twice = _first_bad_ids(np.ascontiguousarray(ids_TLK), experts)
    if row >= 0:
        token, layer = divmod(row, ids_TLK.shape[1])
        rule = "an expert is named twice" if twice else f"expert id must be below {experts}"
        raise place.error(rule, names_L[layer], token, ids_TLK[token, layer, column])


def check_weights(weights_TLK: Array, names_L: list[str], place: Place) -> None:
    """Gate weights, float16 or float32, are finite and not negative."""
    half = weights_TLK.dtype == np.float16
    # As unsigned integers, the allowed floats are one interval and -0.0; numba has no float16.
    bits = np.ascontiguousarray(weights_TLK).view(np.uint16 if half else np.uint32).reshape(-1)
    limit, minus_zero = (_HALF_LIMIT, _HALF_MINUS_ZERO) if half else (_SINGLE_LIMIT, _SINGLE_MINUS_ZERO)
    index = _first_outside(bits, limit, minus_zero)
    if index >= 0:
        token, layer, column = np.unravel_index(index, weights_TLK.shape)
        rule = "gate weight must be finite and not negative"
        raise place.error(rule, names_L[layer], int(token), weights_TLK[token, layer, column])


def check_scores(scores_TLC: Array, names_L: list[str], place: Place) -> None:
    """Candidates' scores, float16 or float32, are finite."""
    if not np.isfinite(scores_TLC).all():
        token, layer, column = np.argwhere(~np.isfinite(scores_TLC))[0]
        raise place.error("score must be finite", names_L[layer], token, scores_TLC[token, layer, column])


def check_candidates(
    ids_TLK: Array, candidates_TLC: Array, experts: int, names_L: list[str], place: Place
) -> None:
    """Every chosen expert is among the candidates; both arrays have passed :func:`check_ids`."""
    row, column = _first_not_candidate(
        np.ascontiguousarray(ids_TLK), np.ascontiguousarray(candidates_TLC), experts
    )
    if row >= 0:
        token, layer = divmod(row, ids_TLK.shape[1])
        rule = "the candidates must contain every chosen expert"
        raise place.error(rule, names_L[layer], token, ids_TLK[token, layer, column])


def check_order(
    request_T: Array, position_T: Array, place: Place, after: tuple[int, int] = (-1, -1)
) -> tuple[int, int]:
    """Requests are numbered in order of appearance; positions ascend inside a request.

    Args:
        after: request and position of the token before the first, to check a file in pieces.

    Returns:
        request and position of the last token.
    """
    token, rule = _first_disorder(request_T, position_T, after[0], after[1])
    if rule == _REQUEST:
        text = "requests must be numbered from 0 upwards in order of appearance, each in contiguous rows"
        raise place.error(text, "request", token, request_T[token])
    if rule == _POSITION:
        text = "positions must ascend inside a request, from 0 or above"
        raise place.error(text, "position", token, position_T[token])
    return int(request_T[-1]), int(position_T[-1])


def check_least(values_T: Array, least: int, name: str, place: Place) -> None:
    """No value is below ``least``."""
    if values_T.min(initial=least) < least:
        token = int(np.argmax(values_T < least))
        raise place.error(f"must be at least {least}", name, token, values_T[token])


_REQUEST, _POSITION = 1, 2


@jit
def _first_bad_ids(ids_TLK: Array, experts: int) -> tuple[int, int, bool]:
    """(row = t·L + l, column, whether the id came twice) of the first fault; row -1 where there is none."""
    tokens, layers, chosen = ids_TLK.shape
    last_row_E = np.full(experts, -1, np.int64)
    for t in range(tokens):
        for layer in range(layers):
            row = t * layers + layer
            for k in range(chosen):
                expert = ids_TLK[t, layer, k]
                if expert >= experts:
                    return row, k, False
                if last_row_E[expert] == row:
                    return row, k, True
                last_row_E[expert] = row
    return -1, -1, False


@jit
def _first_not_candidate(ids_TLK: Array, candidates_TLC: Array, experts: int) -> tuple[int, int]:
    tokens, layers, chosen = ids_TLK.shape
    last_row_E = np.full(experts, -1, np.int64)
    for t in range(tokens):
        for layer in range(layers):
            row = t * layers + layer
            for c in range(candidates_TLC.shape[2]):
                last_row_E[candidates_TLC[t, layer, c]] = row
            for k in range(chosen):
                if last_row_E[ids_TLK[t, layer, k]] != row:
                    return row, k
    return -1, -1


@jit
def _first_outside(bits_N: Array, limit: int, minus_zero: int) -> int:
    for block in range(0, bits_N.size, 4096):
        part = bits_N[block : block + 4096]
        bad = 0
        for bits in part:  # without an exit, so that it vectorises
            bad += (bits >= limit) & (bits != minus_zero)
        if bad:
            for i, bits in enumerate(part):
                if bits >= limit and bits != minus_zero:
                    return block + i
    return -1


@jit
def _first_disorder(request_T: Array, position_T: Array, request: int, position: int) -> tuple[int, int]:
    for t in range(request_T.size):
        if request_T[t] < request or request_T[t] < 0:
            return t, _REQUEST
        if request_T[t] > request:
            position = -1
        if position_T[t] <= position:
            return t, _POSITION
        request, position = request_T[t], position_T[t]
    return -1, 0
