"""`attention_pool` against float64, its forms against one another, and what order and grouping do not change."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.kernels import GatedAttention, attention_pool, attention_pool_reference
from dhlab.kernels import _attention as streaming

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Sums of at most 1,100 products in float32, of numbers near 1, and exponentials within 4e-7.
FLOAT32 = 2e-5
# A number rounded to bfloat16 moves by up to 2^-9 = 0.002; three products in a row are rounded before and after.
BFLOAT16 = 2e-2
# channels, width, hidden, heads; 0 channels: instances come embedded
SIZES = [(13, 32, 17, 2), (0, 7, 5, 3), (1, 1, 1, 1), (67, 61, 64, 1), (0, 128, 31, 1)]
BAGS = [[0, 1], [0, 63], [0, 0, 1, 64, 64, 67, 67]]
# Across the border of a chunk of 128, within a bag and between two.
LONG = [0, 127, 128, 250, 270]


def layer(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    linear = torch.nn.Linear(inputs, outputs)
    # Weights as large as to prefer some instances clearly.
    return (linear.weight.detach() * 3).to(DEVICE).requires_grad_(), linear.bias.detach().to(DEVICE).requires_grad_()


def attention(channels: int, width: int, hidden: int, heads: int) -> GatedAttention:
    with torch.random.fork_rng():
        torch.manual_seed(channels + width)
        embed = layer(width, channels) if channels else (None, None)
        return GatedAttention(*layer(hidden, width), *layer(hidden, width), *layer(heads, hidden), *embed)


def parameters(net: GatedAttention) -> dict[str, torch.Tensor]:
    return {field.name: t for field in fields(net) if (t := getattr(net, field.name)) is not None}


def double(net: GatedAttention) -> GatedAttention:
    return replace(net, **{name: t.detach().double().requires_grad_() for name, t in parameters(net).items()})


def bags(rows: int, channels: int) -> torch.Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(rows)).to(DEVICE)


def worst(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest number expected, or of 1 where all are smaller.

    Scores of one instance, and score biases, move nothing: their gradients of zero are differences of numbers near 1.
    """
    assert result.shape == expected.shape
    if not result.numel():
        return 0.0
    return float((result.detach() - expected.detach()).abs().max() / expected.detach().abs().max().clamp_min(1))


def compare(sizes: tuple[int, ...], offsets: list[int], *, precision: str, dtype: torch.dtype = torch.float32) -> float:
    """Return the largest error of results and gradients against the reference in float64."""
    net, borders = attention(*sizes), torch.tensor(offsets, device=DEVICE)
    exact = double(net)
    x = bags(offsets[-1], net.channels).to(dtype).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    found = attention_pool(x, borders, attention=net, precision=precision, need_weights=True)
    expected = attention_pool_reference(x64, borders, attention=exact)
    errors = [worst(a, b) for a, b in zip(found, expected, strict=True)]
    assert all(tensor.dtype == torch.float32 for tensor in found)
    pull = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE) for t in found]
    sum((a * b).sum() for a, b in zip(found, pull, strict=True)).backward()
    sum((a * b.double()).sum() for a, b in zip(expected, pull, strict=True)).backward()
    assert x.grad.dtype == dtype
    pairs = [(x, x64), *zip(parameters(net).values(), parameters(exact).values(), strict=True)]
    errors += [worst(a.grad, b.grad) for a, b in pairs]
    return max(errors)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streaming.CHUNK, "cpu", 128)
    monkeypatch.setitem(streaming.CHUNK, "cuda", 128)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("offsets", BAGS)
def test_equals_float64(form: str, sizes: tuple[int, ...], offsets: list[int]) -> None:
    assert compare(sizes, offsets, precision="float32") <= FLOAT32


@pytest.mark.parametrize("sizes", [(13, 32, 17, 2), (0, 33, 9, 1)])
def test_crosses_chunks(form: str, sizes: tuple[int, ...], small_chunks: None) -> None:
    assert compare(sizes, LONG, precision="float32") <= FLOAT32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_of_half_precision(form: str, dtype: torch.dtype) -> None:
    # Of the gradient of the features alone is more lost: their type.
    assert compare((13, 32, 17, 2), [0, 5, 67], precision="float32", dtype=dtype) <= 4e-3


@pytest.mark.parametrize("sizes", [(64, 64, 32, 1), (0, 65, 17, 2)])
def test_products_in_bfloat16(form: str, sizes: tuple[int, ...]) -> None:
    assert compare(sizes, [0, 5, 5, 130], precision="bfloat16") <= BFLOAT16 * 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_at_the_sizes_of_clam(form: str, precision: str) -> None:
    """The bound that the docstring gives, on weights as they are drawn and features of unit variance."""
    if form == "triton" and DEVICE == "cpu":
        pytest.skip("takes Triton's interpreter minutes")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(*s) for s in ((512, 256), (512, 256), (256, 1), (1024, 512), (512, 2))]
    tensors = [tensor.detach().to(DEVICE) for linear in layers for tensor in (linear.weight, linear.bias)]
    net, head = GatedAttention(*tensors[:8]), layers[4].to(DEVICE)
    x = bags(2000, 1024)
    with torch.no_grad():
        logits = head(attention_pool(x, attention=net, precision=precision)[:, 0])
        exact, _ = attention_pool_reference(x, torch.tensor([0, 2000], device=DEVICE), attention=double(net))
        expected = torch.nn.functional.linear(exact[:, 0], head.weight.double(), head.bias.double())
    assert (logits - expected).abs().max() <= (1e-2 if precision == "bfloat16" else 1e-5)


def test_auto_takes_bfloat16_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    def types(channels: int) -> bool:
        net, x = attention(channels, 64, 32, 1), bags(40, channels)
        with torch.no_grad():
            results = [attention_pool(x, attention=net, precision=p) for p in ("auto", "float32", "bfloat16")]
        assert not torch.equal(results[1], results[2])
        assert torch.equal(results[0], results[1]) or torch.equal(results[0], results[2])
        return torch.equal(results[0], results[2])

    monkeypatch.setattr("dhlab.kernels.attention._multiplies_bfloat16", lambda device: True)
    assert types(64)
    assert not types(63)
    monkeypatch.setattr("dhlab.kernels.attention._multiplies_bfloat16", lambda device: False)
    assert not types(64)


def test_gradcheck() -> None:
    """Of the specification, in float64, with an empty bag and two heads."""
    net, x = double(attention(5, 4, 3, 2)), bags(7, 5).double().requires_grad_()
    names, values = zip(*parameters(net).items(), strict=True)

    def run(x, *values):
        given = replace(net, **dict(zip(names, values, strict=True)))
        return attention_pool(x, torch.tensor([0, 3, 3, 7], device=DEVICE), attention=given, need_weights=True)

    assert torch.autograd.gradcheck(run, (x, *values))


def test_order_changes_nothing(form: str) -> None:
    net, x = attention(13, 32, 17, 2), bags(67, 13)
    order = torch.randperm(67, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    pooled, weights = attention_pool(x, attention=net, need_weights=True)
    mixed, mixed_weights = attention_pool(x[order], attention=net, need_weights=True)
    # The order of float32 sums differs.
    torch.testing.assert_close(mixed, pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed_weights, weights[order], rtol=1e-5, atol=1e-6)
    assert weights.max() > 3 * weights.min(), "the test needs attention that differs"
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(2, device=DEVICE))


def test_an_instance_twice_weighs_twice(form: str) -> None:
    net, x = attention(13, 32, 17, 1), bags(9, 13)
    _, weights = attention_pool(x, attention=net, need_weights=True)
    pooled, again = attention_pool(torch.cat([x, x[4:5]]), attention=net, need_weights=True)
    expected = torch.cat([weights, weights[4:5]])
    torch.testing.assert_close(again, expected / expected.sum(), rtol=1e-5, atol=1e-6)
    everything = attention_pool(x.repeat_interleave(3, dim=0), attention=net)
    torch.testing.assert_close(everything, attention_pool(x, attention=net), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(pooled, everything, rtol=1e-3)


def test_bags_together_are_bags_alone(form: str) -> None:
    net, x, offsets = attention(13, 32, 17, 2), bags(67, 13), [0, 0, 1, 40, 67, 67]
    together = attention_pool(x, torch.tensor(offsets, device=DEVICE), attention=net)
    alone = [attention_pool(x[a:b], attention=net) for a, b in pairwise(offsets)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_empty_bags_are_zero(form: str) -> None:
    net = attention(13, 32, 17, 2)
    for offsets in ([0, 0, 0], [0]):
        x = torch.zeros(0, 13, device=DEVICE, requires_grad=True)
        pooled, weights = attention_pool(x, torch.tensor(offsets, device=DEVICE), attention=net, need_weights=True)
        assert pooled.shape == (len(offsets) - 1, 2, 32)
        assert weights.shape == (0, 2)
        assert torch.all(pooled == 0)
        pooled.sum().backward()
    assert all(torch.all(tensor.grad == 0) for tensor in parameters(net).values())


def test_a_damaged_instance_harms_its_bag_alone(form: str) -> None:
    net, x = attention(13, 32, 17, 2), bags(67, 13)
    x[20, 3] = torch.nan
    pooled = attention_pool(x, torch.tensor([0, 20, 40, 67], device=DEVICE), attention=net)
    assert pooled[1].isnan().all()
    assert pooled[[0, 2]].isfinite().all()


def test_repeats_bit_by_bit_on_any_number_of_threads(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps do; the matrix products between them are PyTorch's."""
    found = []
    for threads in (1, 1, 3):
        monkeypatch.setattr("dhlab.kernels._cpu.attention.threads_for", lambda _, threads=threads: threads)
        net, x = attention(13, 32, 17, 2), bags(600, 13).requires_grad_()
        pooled = attention_pool(x, torch.tensor([0, 20, 600], device=DEVICE), attention=net)
        pooled.square().sum().backward()
        found.append([pooled, x.grad, *(tensor.grad for tensor in parameters(net).values())])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


def test_what_is_kept_changes_no_gradient(form: str, monkeypatch: pytest.MonkeyPatch, small_chunks: None) -> None:
    gradients = []
    for most in (streaming.MOST_KEPT, 200 * 4 * (32 + 2 * 17), 0):
        monkeypatch.setattr(streaming, "MOST_KEPT", most)
        net, x = attention(13, 32, 17, 1), bags(270, 13)
        pooled = attention_pool(x, attention=net)
        for _ in range(2):  # what is kept is only read
            pooled.sum().backward(retain_graph=True)
        gradients.append([tensor.grad for tensor in parameters(net).values()])
    for all_kept, some_kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(all_kept, recomputed, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(some_kept, recomputed, rtol=1e-6, atol=1e-6)


def test_strided_instances(form: str) -> None:
    net, x = attention(0, 64, 17, 1), bags(70, 130)
    torch.testing.assert_close(
        attention_pool(x[3:, 1:129:2], attention=net), attention_pool(x[3:, 1:129:2].contiguous(), attention=net)
    )


def test_torch_sees_one_operator(form: str) -> None:
    if form == "triton" and DEVICE == "cpu":
        pytest.skip("the interpreter cannot read the addresses of tensors that hold no memory")
    net = attention(13, 32, 17, 2)
    gates = [torch.cat([net.value_weight, net.gate_weight]), torch.cat([net.value_bias, net.gate_bias])]
    weights = [t.detach().requires_grad_() for t in (*gates, net.score_weight, net.score_bias)]
    embed = [net.embed_weight, net.embed_bias]
    x, offsets = bags(67, 13).requires_grad_(), torch.tensor([0, 5, 67], device=DEVICE)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(
        torch.ops.dhlab.attention_pool.default,
        (x, offsets, *embed, *weights, torch.float32, 67),
        test_utils=tests,
        # Both sum in float32, in another order.
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("need_weights", [False, True])
def test_compiled_graphs_do_not_break_on_it(need_weights: bool) -> None:
    net, x = attention(13, 32, 17, 2), bags(67, 13).requires_grad_()

    def run(x):
        return attention_pool(x, attention=net, need_weights=need_weights)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x), run(x)
    torch.testing.assert_close(found, expected)
    first = found[0] if need_weights else found
    first.sum().backward()
    assert x.grad.isfinite().all()


def test_export_takes_the_reference(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    import onnxruntime

    net = attention(13, 32, 17, 2)

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            return attention_pool(x, offsets, attention=detached)

    detached = replace(net, **{name: tensor.detach().cpu() for name, tensor in parameters(net).items()})
    x, offsets = bags(20, 13).cpu(), torch.tensor([0, 5, 5, 20])
    program = torch.export.export(Net(), (x, offsets), dynamic_shapes=({0: torch.export.Dim("rows")}, None))
    assert "dhlab" not in str(program.graph)
    more = bags(30, 13).cpu()
    expected, _ = attention_pool_reference(more, torch.tensor([0, 5, 5, 30]), attention=detached)
    torch.testing.assert_close(program.module()(more, torch.tensor([0, 5, 5, 30])), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on its own insides
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "pool.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pool.onnx")
    inputs = dict(zip((i.name for i in session.get_inputs()), (more, torch.tensor([0, 5, 5, 30])), strict=True))
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_instances() -> None:
    """Forward and backward over 205 MB of features, in a process of its own."""
    program = """
import resource, torch
from dhlab.kernels import GatedAttention, attention_pool
torch.set_num_threads(1)
shapes = ((64, 128), (64, 128), (1, 64), (128, 512))
layers = [torch.nn.Linear(b, a) for a, b in shapes]
tensors = [t for layer in layers for t in (layer.weight, layer.bias)]
def run(rows):
    x = torch.full((rows, 512), 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attention_pool(x, attention=GatedAttention(*tensors), precision="float32").sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
run(100)
print(run(100_000))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 50e6


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (BadShapeError, "expected \\(N, 13\\)", {"instances": torch.zeros(4, 12)}),
        (BadShapeError, "expected \\(N, 13\\)", {"instances": torch.zeros(1, 4, 13)}),
        (BadValueError, "int64", {"instances": torch.zeros(4, 13, dtype=torch.int64)}),
        (BadShapeError, "bags \\+ 1", {"offsets": torch.tensor([0.0, 4.0])}),
        (BadShapeError, "bags \\+ 1", {"offsets": torch.zeros(0, dtype=torch.int64)}),
        (BadValueError, "rise from 0", {"offsets": torch.tensor([0, 3, 2, 4])}),
        (BadValueError, "rise from 0", {"offsets": torch.tensor([0, 3])}),
        (BadValueError, "rise from 0", {"offsets": torch.tensor([1, 4])}),
        (UnknownNameError, "bfloat16", {"precision": "tf32"}),
    ],
)
def test_refuses(error: type[Exception], match: str, change: dict) -> None:
    arguments = {"instances": torch.zeros(4, 13), "offsets": None, "precision": "auto"} | change
    net = GatedAttention(*(tensor.detach().cpu() for tensor in parameters(attention(13, 32, 17, 2)).values()))
    with pytest.raises(error, match=match):
        attention_pool(arguments.pop("instances"), arguments.pop("offsets"), attention=net, **arguments)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("value_bias", (16,)), ("gate_weight", (17, 31)), ("score_weight", (2, 16)), ("embed_bias", (13,))],
)
def test_refuses_parameters_that_do_not_fit(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadShapeError, match=name):
        replace(attention(13, 32, 17, 2), **{name: torch.zeros(shape)})
    with pytest.raises(BadShapeError, match="embed_bias is None"):
        replace(attention(13, 32, 17, 2), embed_bias=None)


@pytest.mark.gpu
def test_more_than_two_thousand_million_features() -> None:
    """Offsets beyond int32: all instances but the last are zero, and the last is a bag of its own."""
    net, rows = attention(1024, 64, 32, 1), 2_200_000
    x = torch.zeros((rows, 1024), dtype=torch.bfloat16, device="cuda")
    x[-1] = 1
    with torch.no_grad():
        pooled = attention_pool(x, torch.tensor([0, rows - 1, rows], device="cuda"), attention=net)
        expected = attention_pool(x[-2:], torch.tensor([0, 1, 2], device="cuda"), attention=net)
    torch.testing.assert_close(pooled, expected, rtol=1e-3, atol=1e-3)
