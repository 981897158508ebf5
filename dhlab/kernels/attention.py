"""Bags of instances to what attention sees in them: gated attention pooling for multiple-instance learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch.nn import functional

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.kernels._attention import Kept, Parameters, Steps, TorchSteps, Workspace, differentiate, kept_rows, pool
from dhlab.kernels._choice import choose
from dhlab.kernels._cpu.attention import CpuSteps, can_pool
from dhlab.kernels._operators import register

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GatedAttention", "attention_pool", "attention_pool_reference"]

PRECISIONS = ("auto", "float32", "bfloat16")
FEATURES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Below this many rows and columns a product of bfloat16 is no faster than one of float32.
LEAST_BFLOAT16 = 64


@dataclass(frozen=True, eq=False)
class GatedAttention:
    """The parameters of gated attention, as `torch.nn.Linear` holds them.

    An instance x is embedded as h = max(0, W x + b), or is its own embedding; its score is
    w · (tanh(V h + b) ⊙ sigmoid(U h + b)) + c.

    Parameters
    ----------
    value_weight
        V, ``(hidden, width)``.
    value_bias
        ``(hidden,)``.
    gate_weight
        U, ``(hidden, width)``.
    gate_bias
        ``(hidden,)``.
    score_weight
        w of each head, ``(heads, hidden)``.
    score_bias
        c of each head, ``(heads,)``.
    embed_weight
        W, ``(width, channels)``; None if instances are embedded already, so that channels and width are the same.
    embed_bias
        ``(width,)``.

    Raises
    ------
    BadShapeError
        If they do not fit each other.
    """

    value_weight: Tensor
    value_bias: Tensor
    gate_weight: Tensor
    gate_bias: Tensor
    score_weight: Tensor
    score_bias: Tensor
    embed_weight: Tensor | None = None
    embed_bias: Tensor | None = None

    def __post_init__(self) -> None:
        hidden, width = self.value_weight.shape
        heads, channels = len(self.score_weight), self.channels
        wanted = {
            "value_bias": (hidden,),
            "gate_weight": (hidden, width),
            "gate_bias": (hidden,),
            "score_weight": (heads, hidden),
            "score_bias": (heads,),
        }
        if self.embed_weight is not None or self.embed_bias is not None:
            wanted |= {"embed_weight": (width, channels), "embed_bias": (width,)}
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is None or tensor.shape != shape:
                raise BadShapeError(
                    f"{name} is {tensor if tensor is None else tuple(tensor.shape)}; value_weight is "
                    f"{(hidden, width)}, so expected {shape}."
                )

    @property
    def channels(self) -> int:
        """How many features an instance has."""
        weight = self.value_weight if self.embed_weight is None else self.embed_weight
        return weight.shape[1]


@overload
def attention_pool(
    instances: Tensor,
    offsets: Tensor | None = ...,
    *,
    attention: GatedAttention,
    precision: str = ...,
    need_weights: Literal[False] = ...,
) -> Tensor: ...


@overload
def attention_pool(
    instances: Tensor,
    offsets: Tensor | None = ...,
    *,
    attention: GatedAttention,
    precision: str = ...,
    need_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attention_pool(
    instances: Tensor,
    offsets: Tensor | None = None,
    *,
    attention: GatedAttention,
    precision: str = "auto",
    need_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the mean of each bag's embedded instances, weighed by gated attention.

    Instances stream through: beside inputs and results, memory does not grow with their number but for their scores,
    which are 4 bytes an instance and head. The backward pass embeds again what does not fit 32 MiB on the CPU, and
    everything on a GPU: up to 1.4 times the products of one that keeps all. All sums are float32.

    Parameters
    ----------
    instances
        ``(N, channels)`` float32, bfloat16 or float16, of all bags, one bag after the other. In float64 the reference
        runs.
    offsets
        ``(bags + 1,)`` int64: bag b is ``instances[offsets[b]:offsets[b + 1]]``. None: all instances are one bag.
    attention
        Parameters of the attention, on the device of the instances; gradients reach them.
    precision
        Of the matrix products. ``"float32"``; ``"bfloat16"``, which rounds instances, weights and embedded instances to
        8 bits and moved a logit by less than 0.01 at the sizes of CLAM, with fresh weights; ``"auto"`` takes bfloat16
        where the processor multiplies it in hardware and the matrices have at least 64 rows and columns.
    need_weights
        Also return the attention, for heat maps; it costs no further pass.

    Returns
    -------
    Tensor
        ``(bags, heads, width)`` in the type of the parameters; zeros for a bag without instances. With `need_weights`
        also ``(N, heads)``: a bag's weights sum to 1.

    Raises
    ------
    BadShapeError
        If instances and offsets do not fit the parameters.
    BadValueError
        If offsets do not rise from 0 to N, or the type of the instances is another.
    UnknownNameError
        If there is no such precision.

    References
    ----------
    Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018, equations 7 and 9.
    """
    if instances.ndim != 2 or instances.shape[1] != attention.channels:
        raise BadShapeError(f"instances are {tuple(instances.shape)}; expected (N, {attention.channels}).")
    if instances.dtype not in FEATURES:
        raise BadValueError(f"instances are {instances.dtype}; expected float32, bfloat16, float16 or float64.")
    if precision not in PRECISIONS:
        raise UnknownNameError(f"precision {precision!r}; expected one of {', '.join(PRECISIONS)}.")
    if offsets is None:
        offsets = torch.tensor([0, instances.shape[0]], device=instances.device)
    if offsets.ndim != 1 or offsets.shape[0] < 1 or offsets.dtype != torch.int64:
        raise BadShapeError(f"offsets are {tuple(offsets.shape)} {offsets.dtype}; expected (bags + 1,) torch.int64.")
    if instances.dtype == torch.float64 or torch.compiler.is_exporting():
        pooled, weights = attention_pool_reference(instances, offsets, attention=attention)
        return (pooled, weights) if need_weights else pooled
    result = attention.value_bias.dtype
    dtype = _product_type(instances, attention, precision)
    tensors = (
        instances,
        offsets,
        attention.embed_weight,
        attention.embed_bias,
        torch.cat([attention.value_weight, attention.gate_weight]),
        torch.cat([attention.value_bias, attention.gate_bias]),
        attention.score_weight,
        attention.score_bias,
    )
    learns = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    keeps = _kept_rows(instances, attention, dtype) if learns else 0
    pooled, scores, log_sums, *_ = OPERATOR(*tensors, dtype, keeps)
    if not need_weights:
        return pooled.to(result)
    bag_of_row = torch.bucketize(torch.arange(instances.shape[0], device=instances.device), offsets[1:], right=True)
    return pooled.to(result), (scores - log_sums[bag_of_row]).exp().to(result)


def attention_pool_reference(instances: Tensor, offsets: Tensor, *, attention: GatedAttention) -> tuple[Tensor, Tensor]:
    """Say in plain PyTorch what `attention_pool` does: the specification, and what export traces.

    Parameters
    ----------
    instances
        ``(N, channels)``, any float type; all is computed in the type of the parameters.
    offsets
        ``(bags + 1,)`` int64.
    attention
        Parameters of the attention.

    Returns
    -------
    tuple
        Pooled instances ``(bags, heads, width)`` and weights ``(N, heads)``.
    """
    embedded = instances.to(attention.value_weight.dtype)
    if attention.embed_weight is not None:
        embedded = functional.linear(embedded, attention.embed_weight, attention.embed_bias).relu()
    value = functional.linear(embedded, attention.value_weight, attention.value_bias).tanh()
    gate = functional.linear(embedded, attention.gate_weight, attention.gate_bias).sigmoid()
    scores = functional.linear(value * gate, attention.score_weight, attention.score_bias)  # (N, heads)
    rows = torch.arange(instances.shape[0], device=instances.device)
    inside = (rows >= offsets[:-1, None]) & (rows < offsets[1:, None])  # (bags, N)
    # The least number instead of -inf: a bag without instances would be NaN.
    least = torch.finfo(scores.dtype).min
    weights = scores.T.where(inside[:, None], least).softmax(dim=2) * inside[:, None]  # (bags, heads, N)
    return weights @ embedded, weights.sum(dim=0).T


def _product_type(instances: Tensor, attention: GatedAttention, precision: str) -> torch.dtype:
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    hidden, width = attention.value_weight.shape
    fast = min(2 * hidden, width, attention.channels) >= LEAST_BFLOAT16 and _multiplies_bfloat16(instances.device)
    return torch.bfloat16 if fast else torch.float32


def _kept_rows(instances: Tensor, attention: GatedAttention, dtype: torch.dtype) -> int:
    hidden, width = attention.value_weight.shape
    embeds, device = attention.embed_weight is not None, instances.device
    return kept_rows(instances.shape[0], embeds=embeds, width=width, hidden=hidden, dtype=dtype, device=device)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _run(
    instances: Tensor,
    offsets: Tensor,
    embed_weight: Tensor | None,
    embed_bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    dtype: torch.dtype,
    keeps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return pooled instances, scores and log-sums, float32, in the form that `choose` names, and what it keeps."""
    if offsets.device.type == "cpu":
        _check_offsets(offsets, len(instances))
    parameters = _pack(embed_weight, embed_bias, gate_weight, gate_bias, score_weight, score_bias, dtype)
    workspace = Workspace(parameters.gate_weight)
    kept = Kept(
        embedded=workspace.matrix("embedded", 0 if embed_weight is None else keeps, gate_weight.shape[1]),
        gates=workspace.matrix("gates", keeps, len(gate_weight)),
    )
    results = pool(instances, parameters, steps=_steps(instances, parameters, offsets), kept=kept)
    return *results, kept.embedded, kept.gates


def _run_backward(
    gradients: list[Tensor],
    results: list[Tensor],
    instances: Tensor,
    offsets: Tensor,
    embed_weight: Tensor | None,
    embed_bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    dtype: torch.dtype,
    wants_instances: bool,
) -> list[Tensor]:
    """Return the gradients of instances and parameters, each in its type, empty where there is none."""
    pooled, scores, log_sums, embedded, gates = results
    given = (embed_weight, embed_bias, gate_weight, gate_bias, score_weight, score_bias)
    parameters = _pack(*given, dtype)
    found = differentiate(
        instances,
        parameters,
        results=(pooled, scores, log_sums),
        gradients=(gradients[0], gradients[1], gradients[2]),
        wants_instances=wants_instances,
        steps=_steps(instances, parameters, offsets),
        kept=Kept(embedded, gates),
    )
    types = [instances.dtype, *(torch.float32 if tensor is None else tensor.dtype for tensor in given)]
    return [gradient.to(dtype) for gradient, dtype in zip(found, types, strict=True)]


def _steps(instances: Tensor, parameters: Parameters, offsets: Tensor) -> Steps:
    form = choose(instances, covered=can_pool(parameters.score_weight))
    if form == "triton":
        from dhlab.kernels._triton.attention import TritonSteps

        return TritonSteps(parameters, offsets, rows=len(instances))
    return CpuSteps(parameters, offsets) if form == "cpu" else TorchSteps(parameters, offsets)


def _pack(
    embed_weight: Tensor | None,
    embed_bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    dtype: torch.dtype,
) -> Parameters:
    return Parameters(
        embed_weight=None if embed_weight is None else embed_weight.to(dtype).contiguous(),
        embed_bias=None if embed_bias is None else embed_bias.float(),
        gate_weight=gate_weight.to(dtype).contiguous(),
        gate_bias=gate_bias.float(),
        score_weight=score_weight.float(),
        score_bias=score_bias.float(),
    )


def _check_offsets(offsets: Tensor, rows: int) -> None:
    if offsets[0] != 0 or offsets[-1] != rows or (offsets.diff() < 0).any():
        raise BadValueError(f"offsets {offsets.tolist()[:8]} … {offsets[-1]}; expected to rise from 0 to N = {rows}.")


def _shapes(
    instances: Tensor, offsets: Tensor, embed_weight: Any, _embed_bias: Any, gate_weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    _, _, score_bias, dtype, keeps = rest
    bags, heads, fresh = offsets.shape[0] - 1, len(score_bias), instances.new_empty
    sizes = ((bags, heads, gate_weight.shape[1]), (instances.shape[0], heads), (bags, heads))
    kept = ((0 if embed_weight is None else keeps, gate_weight.shape[1]), (keeps, len(gate_weight)))
    return *(fresh(size, dtype=torch.float32) for size in sizes), *(fresh(size, dtype=dtype) for size in kept)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dtype, _ = inputs
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    inputs, results = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
    wanted = ctx.needs_input_grad
    found = BACKWARD(list(gradients[:3]), list(results), *inputs, ctx.dtype, wanted[0])
    found = [found[0], None, *found[1:], None, None]
    return tuple(gradient if needed else None for gradient, needed in zip(found, wanted, strict=True))


def _gradient_shapes(_gradients: Any, _results: Any, instances: Tensor, _offsets: Any, *rest: Any) -> list[Tensor]:
    *given, _dtype, wants_instances = rest
    first = torch.empty_like(instances) if wants_instances else instances.new_empty(0)
    # Gradients of parameters are contiguous, whatever the parameters are.
    empty = (instances.new_empty(0, dtype=torch.float32) if t is None else t.new_empty(t.shape) for t in given)
    return [first, *empty]


ARGUMENTS = (
    "Tensor instances, Tensor offsets, Tensor? embed_weight, Tensor? embed_bias, Tensor gate_weight, Tensor gate_bias, "
    "Tensor score_weight, Tensor score_bias, ScalarType dtype"
)
BACKWARD = register(
    f"attention_pool_backward(Tensor[] gradients, Tensor[] results, {ARGUMENTS}, bool wants_instances) -> Tensor[]",
    _run_backward,
    fake=_gradient_shapes,
)
OPERATOR = register(
    f"attention_pool({ARGUMENTS}, SymInt keeps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    fake=_shapes,
    backward=_differentiate,
    setup_context=_keep,
)
