"""A whole MoE layer on one GPU in one call; it needs torch and triton, and nothing else of this project.

Axes: T tokens, K choices of a token, A = T · K assignments, S slots (experts, or copies of them), H hidden
width, F inner width of an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor

from executor.kernels.combine import combine
from executor.kernels.device import runs_on
from executor.kernels.eight_bits import BLOCK
from executor.kernels.grouped_gemm import grouped_gemm
from executor.kernels.order import sort_by_slot
from executor.kernels.schedule import schedule
from executor.kernels.tiles import Tiles, choose_tiles

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def moe_layer(
    x_TH: Tensor,
    ids_TK: Tensor,
    weight_TK: Tensor,
    up_SNH: Tensor,
    down_SHF: Tensor,
    *,
    gated: bool = True,
    factors: tuple[Tensor, Tensor] | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """[T, H]: for each token the sum over its choices of weight · down(silu(gate x) · up x).

    Sums are float32; inner rows, weighted outputs of experts and the result are rounded to the dtype of x.
    Equal inputs give equal bits. Nothing waits for the GPU, so a graph can capture it
    (:class:`executor.kernels.graph.GraphedLayer`). Gradients are not computed.

        scores = torch.softmax(x @ router.T, dim=-1)
        weights, ids = scores.topk(8, dim=-1)
        y = moe_layer(x, ids, weights, gate_up_proj, down_proj)

    Args:
        x_TH: float32, bfloat16 or float16, contiguous along H.
        ids_TK: integers; the slot of each choice. One outside 0 … S - 1 is served by nobody and adds nothing.
        weight_TK: gate weights, floats.
        up_SNH: contiguous, of the dtype of x; N = 2 F, the F rows of the gate first, or F without a gate.
        down_SHF: contiguous, of the dtype of x.
        gated: whether there is a gate; otherwise an expert is down(silu(up x)).
        factors: of weights in float8_e4m3fn, one for each 128 x 128 block of up and of down, as
            ``executor.kernels.eight_bits.to_eight_bits`` makes them. Only weights have 8 bits: half as many
            bytes are read, as many FLOPs done.
        tiles: by default ``choose_tiles`` for this shape.

    Raises:
        ValueError: shapes, dtypes, devices or layouts that do not fit each other; no GPU.
    """
    _check(x_TH, ids_TK, weight_TK, up_SNH, down_SHF, gated, factors)
    (tokens, choices), (slots, hidden, width) = ids_TK.shape, down_SHF.shape
    assignments = tokens * choices
    if assignments == 0 or 0 in down_SHF.shape:
        return x_TH.new_zeros(x_TH.shape)
    rule = "x_TH must be on a GPU, or TRITON_INTERPRET=1 set before Triton is imported"
    _require(runs_on(x_TH.device), rule, x_TH.device)
    ids_TK, weight_TK = ids_TK.contiguous(), weight_TK.contiguous()
    if tiles is None:
        tiles = choose_tiles(
            assignments,
            slots,
            hidden,
            width,
            gated=gated,
            element_bytes=x_TH.element_size(),
            eight_bits=factors is not None,
        )
    up_factor, down_factor = factors or (None, None)
    # Triton launches on the current device, which need not be that of x.
    with torch.cuda.device_of(x_TH):
        order_A, end_S = sort_by_slot(ids_TK.view(-1), slots)
        groups = schedule(end_S, assignments, tiles.rows, by_group=tiles.by_group)
        inner_AF = grouped_gemm(
            x_TH,
            up_SNH,
            groups,
            tiles.up,
            activation="swiglu" if gated else "silu",
            order_A=order_A,
            gather=choices,
            factor_ZBC=up_factor,
        )
        out_AH = grouped_gemm(
            inner_AF,
            down_SHF,
            groups,
            tiles.down,
            order_A=order_A,
            scatter=True,
            scale_Y=weight_TK.view(-1),
            factor_ZBC=down_factor,
        )
        return combine(out_AH, ids_TK, slots)


def _check(
    x_TH: Tensor,
    ids_TK: Tensor,
    weight_TK: Tensor,
    up_SNH: Tensor,
    down_SHF: Tensor,
    gated: bool,
    factors: tuple[Tensor, Tensor] | None,
) -> None:
    named = {"x_TH": x_TH, "ids_TK": ids_TK, "weight_TK": weight_TK, "up_SNH": up_SNH, "down_SHF": down_SHF}
    if factors is not None:
        named |= {"up_factor_SBC": factors[0], "down_factor_SBC": factors[1]}
    for name, tensor in named.items():
        axes = len(name.rpartition("_")[2])
        _require(tensor.ndim == axes, f"{name} must have {axes} axes", tuple(tensor.shape))
        _require(
            tensor.device == x_TH.device, f"{name} must be where x_TH is, on {x_TH.device}", tensor.device
        )
    # Tokens and up lead: whoever transposed down is told of down.
    (slots, inner), hidden = up_SNH.shape[:2], x_TH.shape[1]
    width = inner // 2 if gated else inner
    _require(not gated or inner % 2 == 0, "up_SNH must hold gate and up, an even number of rows", inner)
    shapes: dict[str, tuple[int, ...]] = {
        "x_TH": (len(x_TH), hidden),
        "ids_TK": (len(x_TH), ids_TK.shape[1]),
        "weight_TK": tuple(ids_TK.shape),
        "up_SNH": (slots, inner, hidden),
        "down_SHF": (slots, hidden, width),
        "up_factor_SBC": (slots, -(-inner // BLOCK), -(-hidden // BLOCK)),
        "down_factor_SBC": (slots, -(-hidden // BLOCK), -(-width // BLOCK)),
    }
    for name, tensor in named.items():
        shape, wanted = tuple(tensor.shape), shapes[name]
        _require(shape == wanted, f"{name} must have shape {wanted} to fit the others", shape)
    _require(x_TH.dtype in _DTYPES, "x_TH must be float32, bfloat16 or float16", x_TH.dtype)
    held, like = (x_TH.dtype, "as x_TH") if factors is None else (torch.float8_e4m3fn, "with factors")
    for name, tensor in list(named.items())[3:]:
        dtype = torch.float32 if "factor" in name else held
        _require(tensor.dtype == dtype, f"{name} must be {dtype}, {like}", tensor.dtype)
        _require(tensor.is_contiguous(), f"{name} must be contiguous", tensor.stride())
    _require(x_TH.stride(1) == 1 or hidden == 1, "x_TH must be contiguous along H", x_TH.stride())
    whole = not ids_TK.is_floating_point() and not ids_TK.is_complex() and ids_TK.dtype != torch.bool
    _require(whole, "ids_TK must hold integers", ids_TK.dtype)
    _require(weight_TK.is_floating_point(), "weight_TK must hold floats", weight_TK.dtype)
    _require(ids_TK.numel() < 1 << 31, "ids_TK must hold fewer than 2^31 assignments", ids_TK.numel())


def _require(holds: bool, rule: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{rule} (got {got})")
