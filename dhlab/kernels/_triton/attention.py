"""The steps of attention pooling in Triton: gates by `tl.dot`, scores and sums of a tile of instances in one program.

The forward kernel leaves the largest score, the sum and the weighted sum of each piece, which is what a tile and a bag
share; a second kernel adds the pieces of a bag up in order. Gates are computed again in the backward pass; no program
adds to what another wrote, so results repeat bit by bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from dhlab.kernels._attention import Workspace
from dhlab.kernels._triton import INTERPRETED
from dhlab.kernels._triton.arithmetic import ex2

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.kernels._attention import Parameters

__all__ = ["TritonSteps"]

ROWS, COLUMNS, DEPTH = 64, 64, 64
# With as many columns as forward, registers would spill on sm_80.
BACKWARD_COLUMNS = 32
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def products(
    embedded_ptr,  # (n, width)
    weight_ptr,  # (2 hidden, width)
    bias_ptr,  # (2 hidden,) float32
    row,
    inside,
    column,
    width,
    hidden,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    value = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    wanted = column < hidden
    for start in range(0, width, DEPTH):
        k = start + tl.arange(0, DEPTH)
        there = k < width
        h = tl.load(embedded_ptr + row[:, None] * width + k[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        mask = there[:, None] & wanted[None, :]
        v = tl.load(weight_ptr + column[None, :] * width + k[:, None], mask=mask, other=0.0)
        u = tl.load(weight_ptr + (hidden + column)[None, :] * width + k[:, None], mask=mask, other=0.0)
        if UPCAST:
            h, v, u = h.to(tl.float32), v.to(tl.float32), u.to(tl.float32)
        value = tl.dot(h, v, value, input_precision="ieee")
        gate = tl.dot(h, u, gate, input_precision="ieee")
    value += tl.load(bias_ptr + column, mask=wanted, other=0.0)[None, :]
    gate += tl.load(bias_ptr + hidden + column, mask=wanted, other=0.0)[None, :]
    # tanh by the power of twice the value, of the smaller sign so that nothing overflows
    power = ex2(tl.abs(value) * (-2 * LOG2_E))
    size = (1 - power) / (1 + power)
    value = tl.where(value < 0, -size, size)
    gate = 1 / (1 + ex2(gate * -LOG2_E))
    return value, gate


@triton.jit
def pick(columns, index, wanted):
    return tl.sum(tl.where(index[None, :] == wanted, columns, 0.0), axis=1)


@triton.jit
def attention_rectify_kernel(
    embedded_ptr,  # (n, width)
    bias_ptr,  # (width,) float32
    rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    value = tl.load(embedded_ptr + at, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias_ptr + column, mask=column < width, other=0.0)[None, :]
    value = tl.where(value < 0, 0.0, value)  # keeps NaN
    tl.store(embedded_ptr + at, value.to(embedded_ptr.dtype.element_ty), mask=mask)


@triton.jit
def attention_fwd_kernel(
    embedded_ptr,  # (n, width)
    weight_ptr,  # (2 hidden, width)
    bias_ptr,  # (2 hidden,) float32
    score_weight_ptr,  # (heads, hidden) float32
    score_bias_ptr,  # (heads,) float32
    offsets_ptr,  # (bags + 1,) int64
    first_ptr,  # (tiles,) int64, the bag of a tile's first instance
    scores_ptr,  # (n, heads) float32
    most_ptr,  # (tiles + bags, heads) float32, a row per piece
    mass_ptr,  # the same
    pooled_ptr,  # (tiles + bags, heads, width) float32
    begin,
    rows,
    bags,
    width,
    hidden,
    heads,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HEADS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tile = begin // ROWS + tl.program_id(0)
    inside = row < rows
    index = tl.arange(0, HEADS)
    score = tl.zeros((ROWS, HEADS), dtype=tl.float32)
    score += tl.load(score_bias_ptr + index, mask=index < heads, other=0.0)[None, :]
    for start in range(0, hidden, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        value, gate = products(
            embedded_ptr, weight_ptr, bias_ptr, row, inside, column, width, hidden, ROWS, COLUMNS, DEPTH, UPCAST
        )
        gated = value * gate
        for head in range(heads):
            weight = tl.load(score_weight_ptr + head * hidden + column, mask=column < hidden, other=0.0)
            score += tl.where(index[None, :] == head, tl.sum(gated * weight[None, :], axis=1)[:, None], 0.0)
    where = row[:, None] * heads + index[None, :]
    tl.store(scores_ptr + where, score, mask=inside[:, None] & (index < heads)[None, :])
    bag = tl.load(first_ptr + tile)
    low = tl.load(offsets_ptr + bag)
    end = begin + tl.minimum(rows, (tl.program_id(0) + 1) * ROWS)
    while (low < end) & (bag < bags):
        high = tl.load(offsets_ptr + bag + 1)
        member = inside & (begin + row >= low) & (begin + row < high)
        if high > low:
            for head in range(heads):
                one = pick(score, index, head)
                most = tl.max(tl.where(member, one, -float("inf")), axis=0)
                share = tl.where(member, ex2((one - most) * LOG2_E), 0.0)
                piece = (tile + bag) * heads + head
                tl.store(most_ptr + piece, most)
                tl.store(mass_ptr + piece, tl.sum(share, axis=0))
                for start in range(0, width, DEPTH):
                    k = start + tl.arange(0, DEPTH)
                    mask = member[:, None] & (k < width)[None, :]
                    h = tl.load(embedded_ptr + row[:, None] * width + k[None, :], mask=mask, other=0.0)
                    total = tl.sum(share[:, None] * h.to(tl.float32), axis=0)
                    tl.store(pooled_ptr + piece * width + k, total, mask=k < width)
        bag += 1
        low = high


@triton.jit
def attention_combine_kernel(
    offsets_ptr,  # (bags + 1,) int64
    most_ptr,  # (tiles + bags, heads) float32
    mass_ptr,  # the same
    pooled_ptr,  # (tiles + bags, heads, width) float32
    result_ptr,  # (bags, heads, width) float32
    log_sums_ptr,  # (bags, heads) float32
    width,
    heads,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    k = tl.program_id(2) * DEPTH + tl.arange(0, DEPTH)
    low = tl.load(offsets_ptr + bag)
    high = tl.load(offsets_ptr + bag + 1)
    most = tl.full((), -float("inf"), dtype=tl.float32)
    mass = tl.zeros((), dtype=tl.float32)
    total = tl.zeros((DEPTH,), dtype=tl.float32)
    log_sum = tl.full((), -float("inf"), dtype=tl.float32)
    if high > low:
        for tile in range(low // ROWS, (high - 1) // ROWS + 1):
            piece = (tile + bag) * heads + head
            larger = tl.maximum(most, tl.load(most_ptr + piece))
            kept = ex2((most - larger) * LOG2_E)
            new = ex2((tl.load(most_ptr + piece) - larger) * LOG2_E)
            mass = mass * kept + tl.load(mass_ptr + piece) * new
            part = tl.load(pooled_ptr + piece * width + k, mask=k < width, other=0.0)
            total = total * kept + part * new
            most = larger
        total = total / mass
        log_sum = most + tl.log(mass)
    tl.store(result_ptr + (bag * heads + head) * width + k, total, mask=k < width)
    if tl.program_id(2) == 0:
        tl.store(log_sums_ptr + bag * heads + head, log_sum)


@triton.jit
def attention_bwd_kernel(
    embedded_ptr,  # (n, width)
    weight_ptr,  # (2 hidden, width)
    bias_ptr,  # (2 hidden,) float32
    score_weight_ptr,  # (heads, hidden) float32
    offsets_ptr,  # (bags + 1,) int64
    first_ptr,  # (tiles,) int64
    scores_ptr,  # (n, heads) float32
    grad_scores_ptr,  # (n, heads) float32
    log_sums_ptr,  # (bags, heads) float32
    grad_shift_ptr,  # (bags, heads) float32
    grad_pooled_ptr,  # (bags, heads, width) float32
    shares_ptr,  # (n, heads) float32
    gradient_ptr,  # (n, 2 hidden)
    partial_ptr,  # (tiles of the chunk, heads + 2, hidden) float32
    begin,
    rows,
    bags,
    width,
    hidden,
    heads,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HEADS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    index = tl.arange(0, HEADS)
    where = row[:, None] * heads + index[None, :]
    towards = tl.load(grad_scores_ptr + where, mask=inside[:, None] & (index < heads)[None, :], other=0.0)
    bag = tl.load(first_ptr + begin // ROWS + tl.program_id(0))
    low = tl.load(offsets_ptr + bag)
    end = begin + tl.minimum(rows, (tl.program_id(0) + 1) * ROWS)
    while (low < end) & (bag < bags):
        high = tl.load(offsets_ptr + bag + 1)
        member = inside & (begin + row >= low) & (begin + row < high)
        for head in range(heads):
            at = bag * heads + head
            pull = tl.zeros((ROWS,), dtype=tl.float32) + tl.load(grad_shift_ptr + at)
            for start in range(0, width, DEPTH):
                k = start + tl.arange(0, DEPTH)
                mask = member[:, None] & (k < width)[None, :]
                h = tl.load(embedded_ptr + row[:, None] * width + k[None, :], mask=mask, other=0.0)
                g = tl.load(grad_pooled_ptr + at * width + k, mask=k < width, other=0.0)
                pull += tl.sum(h.to(tl.float32) * g[None, :], axis=1)
            score = tl.load(scores_ptr + row * heads + head, mask=member, other=0.0)
            share = tl.where(member, ex2((score - tl.load(log_sums_ptr + at)) * LOG2_E), 0.0)
            tl.store(shares_ptr + row * heads + head, share, mask=member)
            towards += tl.where((index[None, :] == head) & member[:, None], (share * pull)[:, None], 0.0)
        bag += 1
        low = high
    partial_ptr += tl.program_id(0).to(tl.int64) * (heads + 2) * hidden
    for start in range(0, hidden, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        wanted = column < hidden
        value, gate = products(
            embedded_ptr, weight_ptr, bias_ptr, row, inside, column, width, hidden, ROWS, COLUMNS, DEPTH, UPCAST
        )
        pull = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for head in range(heads):
            weight = tl.load(score_weight_ptr + head * hidden + column, mask=wanted, other=0.0)
            one = pick(towards, index, head)[:, None]
            pull += one * weight[None, :]
            tl.store(partial_ptr + head * hidden + column, tl.sum(one * value * gate, axis=0), mask=wanted)
        pull *= gate
        for_value, for_gate = pull * (1 - value * value), pull * value * (1 - gate)
        tl.store(partial_ptr + heads * hidden + column, tl.sum(for_value, axis=0), mask=wanted)
        tl.store(partial_ptr + (heads + 1) * hidden + column, tl.sum(for_gate, axis=0), mask=wanted)
        to = gradient_ptr + row[:, None] * (2 * hidden) + column[None, :]
        mask = inside[:, None] & wanted[None, :]
        tl.store(to, for_value.to(gradient_ptr.dtype.element_ty), mask=mask)
        tl.store(to + hidden, for_gate.to(gradient_ptr.dtype.element_ty), mask=mask)


@triton.jit
def attention_spread_kernel(
    gradient_ptr,  # (n, width)
    embedded_ptr,  # (n, width)
    shares_ptr,  # (n, heads) float32
    grad_pooled_ptr,  # (bags, heads, width) float32
    offsets_ptr,  # (bags + 1,) int64
    first_ptr,  # (tiles,) int64
    partial_ptr,  # (tiles of the chunk, width) float32
    begin,
    rows,
    bags,
    width,
    heads,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RECTIFIED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, wanted = row < rows, column < width
    at = row[:, None] * width + column[None, :]
    mask = inside[:, None] & wanted[None, :]
    total = tl.load(gradient_ptr + at, mask=mask, other=0.0).to(tl.float32)
    bag = tl.load(first_ptr + begin // ROWS + tl.program_id(0))
    low = tl.load(offsets_ptr + bag)
    end = begin + tl.minimum(rows, (tl.program_id(0) + 1) * ROWS)
    while (low < end) & (bag < bags):
        high = tl.load(offsets_ptr + bag + 1)
        member = inside & (begin + row >= low) & (begin + row < high)
        for head in range(heads):
            share = tl.load(shares_ptr + row * heads + head, mask=member, other=0.0)
            pull = tl.load(grad_pooled_ptr + (bag * heads + head) * width + column, mask=wanted, other=0.0)
            total += share[:, None] * pull[None, :]
        bag += 1
        low = high
    if RECTIFIED:
        total = tl.where(tl.load(embedded_ptr + at, mask=mask, other=0.0).to(tl.float32) > 0, total, 0.0)
        tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * width + column, tl.sum(total, axis=0), mask=wanted)
    tl.store(gradient_ptr + at, total.to(gradient_ptr.dtype.element_ty), mask=mask)


class TritonSteps:
    """The steps in Triton; see `dhlab.kernels._attention.Steps`."""

    def __init__(self, parameters: Parameters, offsets: Tensor, *, rows: int) -> None:
        self.parameters, self.offsets = parameters, offsets.contiguous()
        self.workspace = Workspace(parameters.gate_weight)
        self.heads, self.hidden = parameters.score_weight.shape
        self.bags, self.width = len(offsets) - 1, parameters.gate_weight.shape[1]
        tiles = triton.cdiv(rows, ROWS)
        starts = torch.arange(0, rows, ROWS, device=offsets.device)
        self.first = torch.bucketize(starts, self.offsets[1:], right=True)  # (tiles,)
        self.pieces = tiles + self.bags
        self.blocks = {"ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH}
        self.options = {"HEADS": triton.next_power_of_2(self.heads), "UPCAST": INTERPRETED, **self.blocks}
        self.most: Tensor | None = None

    def rectify(self, embedded: Tensor) -> None:
        rows, bias = len(embedded), self.parameters.embed_bias
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(self.width, COLUMNS))
        attention_rectify_kernel[grid](embedded, bias, rows, self.width, ROWS=ROWS, COLUMNS=COLUMNS)

    def pool(self, embedded: Tensor, begin: int, scores: Tensor, *, gates: Tensor | None) -> None:
        parameters = self.parameters
        if self.most is None:
            self.most, self.mass = scores.new_empty(2, self.pieces, self.heads)
            self.pooled = scores.new_empty(self.pieces, self.heads, self.width)
        tensors = (embedded, parameters.gate_weight, parameters.gate_bias, parameters.score_weight)
        more = (parameters.score_bias, self.offsets, self.first, scores, self.most, self.mass, self.pooled)
        numbers = (begin, len(embedded), self.bags, self.width, self.hidden, self.heads)
        attention_fwd_kernel[(triton.cdiv(len(embedded), ROWS),)](*tensors, *more, *numbers, **self.options)

    def finish(self) -> tuple[Tensor, Tensor]:
        fresh = self.parameters.score_bias.new_empty
        pooled, log_sums = fresh(self.bags, self.heads, self.width), fresh(self.bags, self.heads)
        if self.most is None:  # no instance at all
            return pooled.zero_(), log_sums.fill_(-torch.inf)
        if self.bags:
            grid = (self.bags, self.heads, triton.cdiv(self.width, DEPTH))
            attention_combine_kernel[grid](
                self.offsets,
                self.most,
                self.mass,
                self.pooled,
                pooled,
                log_sums,
                self.width,
                self.heads,
                ROWS=ROWS,
                DEPTH=DEPTH,
            )
        return pooled, log_sums

    def start_back(self, log_sums: Tensor, grad_pooled: Tensor, grad_shift: Tensor) -> None:
        self.log_sums, self.grad_pooled, self.grad_shift = (
            tensor.contiguous() for tensor in (log_sums, grad_pooled, grad_shift)
        )
        self.sums = log_sums.new_zeros(self.heads + 2, self.hidden)
        self.grad_embed_bias = log_sums.new_zeros(self.width)

    def differentiate(
        self,
        embedded: Tensor,
        begin: int,
        scores: Tensor,
        *,
        grad_scores: Tensor,
        gates: Tensor | None,  # never written to memory
    ) -> Tensor:
        parameters, tiles = self.parameters, triton.cdiv(len(embedded), ROWS)
        self.shares, gradient = torch.empty_like(scores), self.workspace.matrix("gates", len(embedded), 2 * self.hidden)
        partial = scores.new_empty(tiles, self.heads + 2, self.hidden)
        tensors = (embedded, parameters.gate_weight, parameters.gate_bias, parameters.score_weight, self.offsets)
        more = (self.first, scores, grad_scores.contiguous(), self.log_sums, self.grad_shift, self.grad_pooled)
        numbers = (begin, len(embedded), self.bags, self.width, self.hidden, self.heads)
        attention_bwd_kernel[(tiles,)](
            *tensors, *more, self.shares, gradient, partial, *numbers, **(self.options | {"COLUMNS": BACKWARD_COLUMNS})
        )
        self.sums += partial.sum(dim=0)
        return gradient

    def spread(self, gradient: Tensor, embedded: Tensor, begin: int) -> None:
        tiles, rectified = triton.cdiv(len(embedded), ROWS), self.parameters.embed_weight is not None
        partial = self.sums.new_empty(tiles, self.width)
        tensors = (gradient, embedded, self.shares, self.grad_pooled, self.offsets, self.first, partial)
        numbers = (begin, len(embedded), self.bags, self.width, self.heads)
        grid = (tiles, triton.cdiv(self.width, COLUMNS))
        attention_spread_kernel[grid](*tensors, *numbers, ROWS=ROWS, COLUMNS=COLUMNS, RECTIFIED=rectified)
        if rectified:
            self.grad_embed_bias += partial.sum(dim=0)

    def finish_back(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.sums[: self.heads], self.sums[self.heads :].flatten(), self.grad_embed_bias
