"""The operator against a loop over sampling points, on every available backend."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from clockdistill.layers import MultiScaleDeformableAttention, extension, ms_deform_attn
from clockdistill.layers.ms_deform_attn import by_grid_sample

OPERATOR = torch.ops.clockdistill.ms_deform_attn
BACKWARD = torch.ops.clockdistill.ms_deform_attn_backward
# the order of atomic additions on a GPU varies
NONDETERMINISM = {"cpu": 0.0, "cuda": 1e-9}
SHAPES = ((5, 7), (3, 4), (1, 1), (2, 1), (4, 2))

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
no_cuda_kernel = pytest.mark.skipif(not extension.has_kernel("cuda"), reason="no CUDA kernel")
# the registered operator on each device, compiled or not, and the formula without it
BACKENDS = [
    pytest.param((OPERATOR, "cpu"), id="cpu"),
    pytest.param((by_grid_sample, "cpu"), id="grid_sample"),
    pytest.param((OPERATOR, "cuda"), id="cuda", marks=[no_gpu, no_cuda_kernel]),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def arguments(B=2, Q=4, heads=2, D=3, shapes=SHAPES[:3], points=2, dtype=torch.float64, device="cpu"):
    """Draw random arguments, with some points outside the map."""
    sizes = torch.tensor(shapes).prod(1)
    value = torch.randn(B, sizes.sum(), heads, D, dtype=torch.float64)
    locations = torch.rand(B, Q, heads, len(shapes), points, 2, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(B, Q, heads, len(shapes), points, dtype=torch.float64)
    value, locations, weights = (x.to(device, dtype) for x in (value, locations, weights))
    return value, torch.tensor(shapes), sizes.cumsum(0) - sizes, locations, weights


def bilinear(level, x, y):
    """Sample a level (H, W, D) at (x, y) in [0, 1], with zeros outside."""
    height, width, depth = level.shape
    total = level.new_zeros(depth)
    if not (math.isfinite(x) and math.isfinite(y)):
        return total
    column, row = x * width - 0.5, y * height - 0.5
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total = total + level[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def by_loop(value, shapes, starts, locations, weights):
    value, locations, weights = (x.double().cpu() for x in (value, locations, weights))
    B, Q, heads, levels, points, _ = locations.shape
    output = torch.zeros(B, Q, heads, value.shape[-1], dtype=torch.float64)
    for b, q, h, level, p in itertools.product(*map(range, (B, Q, heads, levels, points))):
        height, width = shapes[level].tolist()
        cells = value[b, starts[level] : starts[level] + height * width, h].view(height, width, value.shape[-1])
        output[b, q, h] += weights[b, q, h, level, p] * bilinear(cells, *locations[b, q, h, level, p].tolist())
    return output.flatten(2)


def with_grad(args):
    return tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in args)


def gradients(function, args, grad=None):
    """Return the output and the gradients of the floating-point arguments, given a gradient of the output."""
    args = with_grad(args)
    output = function(*args)
    if grad is None:
        generator = torch.Generator().manual_seed(7)
        grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return output, torch.autograd.grad(output, (args[0], args[3], args[4]), grad.to(output))


@pytest.mark.parametrize("D", [1, 3, 8, 32, 64, 83])
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_matches_a_loop_over_points(backend, D, levels):
    function, device = backend
    args = arguments(D=D, shapes=SHAPES[:levels], device=device)
    assert_close(function(*args).cpu(), by_loop(*args))


def test_distant_infinite_and_nan_locations_yield_zero(backend):
    """Points on borders, on cell centers, just outside and far outside the map."""
    function, device = backend
    value, shapes, starts, _, _ = arguments(B=1, D=8, device=device)
    steps = [0.0, 0.1, 0.5, 1 / 7, 1.0, -0.0999, 1.0999, -0.3, 1.7, 1e6, -1e30, math.inf, -math.inf, math.nan]
    pairs = torch.tensor(list(itertools.product(steps, steps)), dtype=torch.float64, device=device)
    locations = pairs[None, :, None, None, None].repeat(1, 1, 2, 3, 1, 1)
    weights = torch.rand(locations.shape[:-1], dtype=torch.float64, device=device)
    args = (value, shapes, starts, locations, weights)
    assert_close(function(*args).cpu(), by_loop(*args))
    _, (grad_value, grad_locations, grad_weights) = gradients(function, args)
    assert grad_value.isfinite().all()
    far = ~((locations > -1) & (locations < 2)).all(-1)
    assert not grad_locations[far].any()
    assert not grad_weights[far].any()


@pytest.mark.parametrize("D", [1, 3, 8, 32, 64])
@pytest.mark.parametrize("levels", range(1, 6))
def test_gradcheck(backend, D, levels):
    function, device = backend
    args = with_grad(arguments(B=1, Q=2, D=D, shapes=SHAPES[:levels], points=1, device=device))
    assert gradcheck(function, args, fast_mode=D > 3, nondet_tol=NONDETERMINISM[device])


def test_second_derivatives_raise(backend):
    """Silent zeros would go unnoticed."""
    function, device = backend
    args = with_grad(arguments(B=1, Q=2, device=device))
    grad = torch.autograd.grad(function(*args).square().sum(), args[0], create_graph=True)[0]
    with pytest.raises((NotImplementedError, RuntimeError), match=r"no second derivative|not implemented"):
        torch.autograd.grad(grad.square().sum(), args[3])


def test_gradcheck_at_cell_borders_and_outside(backend):
    """Points lie off the kinks of the interpolation at cell centers."""
    function, device = backend
    value, shapes, starts, _, _ = arguments(B=1, D=2, shapes=((3, 2),), device=device)
    steps = [-0.4, -0.25 + 1e-4, -0.1, 0.0, 0.25 - 1e-4, 0.25 + 1e-4, 0.5, 1.0, 1.25 - 1e-4, 1.25 + 1e-4, 3.0]
    x, y = (torch.tensor(pair, dtype=torch.float64, device=device) for pair in zip(*itertools.product(steps, steps)))
    locations = torch.stack((x, y + 1e-5), -1).view(1, -1, 1, 1, 1, 2).repeat(1, 1, 2, 1, 1, 1)
    weights = torch.rand(locations.shape[:-1], dtype=torch.float64, device=device)
    args = with_grad((value, shapes, starts, locations, weights))
    assert gradcheck(function, args, fast_mode=True, nondet_tol=NONDETERMINISM[device])


def test_non_contiguous_inputs(backend):
    function, device = backend
    args = arguments(D=4, device=device)
    strided = []
    for x in args:
        view = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)[..., ::2]
        strided.append(view.copy_(x))
    # contiguous, but not aligned for vectorized loads
    strided[0] = (
        torch.empty(args[0].numel() + 1, dtype=args[0].dtype, device=device)[1:].view_as(args[0]).copy_(args[0])
    )
    grad = torch.randn(8, 2, 4, dtype=torch.float64).permute(1, 2, 0)
    assert not grad.is_contiguous()
    assert_close(gradients(function, strided, grad), gradients(function, args, grad))
    args = with_grad(strided)
    assert gradcheck(function, args, fast_mode=True, nondet_tol=NONDETERMINISM[device])


def test_several_blocks_and_images(backend):
    function, device = backend
    args = arguments(B=3, Q=301, heads=3, D=32, points=4, device=device)
    assert_close(gradients(function, args), gradients(by_grid_sample, args))


@pytest.mark.parametrize("coordinates", ["half", "float", "mixed"])
@pytest.mark.parametrize("D", [12, 32])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float32, 1e-5)])
def test_lower_precision_is_close_to_float64(backend, dtype, precision, D, coordinates):
    function, device = backend
    value, shapes, starts, locations, weights = arguments(Q=30, D=D, points=4, dtype=dtype, device=device)
    if coordinates != "half":
        locations = locations.float()
    if coordinates == "float":
        weights = weights.float()
    args = (value, shapes, starts, locations, weights)
    double = [x.double() if x.is_floating_point() else x for x in args]
    output, grads = gradients(function, args)
    # round the gradient as for the function under test
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype).double()
    expected, expected_grads = gradients(by_grid_sample, double, grad.to(device))
    for actual, exact, like in zip((output, *grads), (expected, *expected_grads), (value, value, locations, weights)):
        assert actual.dtype == like.dtype
        assert (actual.double() - exact).abs().max() <= precision * exact.abs().max()


def test_float32_locations_distinguish_cells_of_a_wide_map(backend):
    """At this width, bfloat16 locations would be off by a third of a cell."""
    function, device = backend
    value, shapes, starts, locations, weights = arguments(Q=50, D=4, shapes=((4, 167),), device=device)
    expected = by_loop(value.bfloat16(), shapes, starts, locations, weights.bfloat16())
    actual = function(value.bfloat16(), shapes, starts, locations.float(), weights.bfloat16())
    assert (actual.cpu().double() - expected).abs().max() <= 8e-3 * expected.abs().max()


def test_result_does_not_depend_on_the_number_of_threads():
    args = arguments(Q=500, D=32, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(gradients(OPERATOR, args))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_close(other, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("empty", [dict(B=0), dict(Q=0), dict(points=0), dict(shapes=((0, 4), (2, 3)))])
def test_empty_inputs(backend, empty):
    function, device = backend
    args = arguments(**empty, device=device)
    assert_close(function(*args).cpu(), by_loop(*args))
    output, grads = gradients(function, args)
    assert output.shape == (args[0].shape[0], args[3].shape[1], 6)
    assert [g.shape for g in grads] == [args[i].shape for i in (0, 3, 4)]


def replaced(name, change):
    names = ("value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights")
    return lambda args: [change(x) if n == name else x for n, x in zip(names, args)]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (replaced("value", lambda x: x[0]), "value must be"),
        (replaced("value", lambda x: x.long()), "value must be float16"),
        (
            replaced("value", lambda x: x[:, 1:]),
            "level_start_index: level 2 with 1 x 1 cells from 47 on exceeds the 47 tokens of value",
        ),
        (replaced("spatial_shapes", lambda x: x.flatten()), "spatial_shapes must be"),
        (replaced("spatial_shapes", lambda x: x.float()), "spatial_shapes must be int64 or int32"),
        (replaced("spatial_shapes", lambda x: -x), "spatial_shapes: level 0 has an invalid size of -5 x -7"),
        (replaced("spatial_shapes", lambda x: x * 2**31), "spatial_shapes|level_start_index"),
        (replaced("level_start_index", lambda x: x[:2]), "level_start_index must be"),
        (replaced("level_start_index", lambda x: x - 1), "level_start_index: level 0"),
        (replaced("level_start_index", lambda x: x + 1), "level_start_index: level 2"),
        (replaced("level_start_index", lambda x: x * 0), "level_start_index: level 1 must start at 35 or later"),
        (replaced("sampling_locations", lambda x: x[..., 0]), "sampling_locations must be"),
        (replaced("sampling_locations", lambda x: x[:1]), "sampling_locations must be"),
        (replaced("sampling_locations", lambda x: x[:, :, :, :2]), "sampling_locations must be"),
        (replaced("sampling_locations", lambda x: x.float()), "sampling_locations must be"),
        (replaced("attention_weights", lambda x: x[:, 1:]), "attention_weights must be"),
        (replaced("attention_weights", lambda x: x.half()), "attention_weights must be"),
        (replaced("attention_weights", lambda x: x.to("meta")), "attention_weights must be on"),
    ],
)
def test_errors_name_the_argument(break_it, message, backend):
    function, device = backend
    if function is OPERATOR and "must be on" in message:
        pytest.skip("the dispatcher passes meta tensors to the fake kernel")
    with pytest.raises(RuntimeError, match=message):
        function(*break_it(arguments(device=device)))


def test_backward_checks_shape_and_dtype_of_the_gradient(backend):
    _, device = backend
    args = arguments(device=device)
    for grad in (args[0].new_zeros(2, 4, 5), args[0].new_zeros(2, 4, 6).float()):
        with pytest.raises(RuntimeError, match="grad_output must be"):
            BACKWARD(grad, *args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, dtype):
    function, device = backend
    if function is not OPERATOR:
        pytest.skip("not an operator")
    args = arguments(dtype=dtype, device=device)
    opcheck(OPERATOR, with_grad(args))
    opcheck(BACKWARD, (torch.randn(2, 4, 6, device=device).to(dtype), *args))


class Attention(torch.nn.Module):
    """The module with fixed references, as a function of query and value only."""

    def __init__(self):
        super().__init__()
        self.attention = MultiScaleDeformableAttention(16, 4, 2, 2)
        torch.nn.init.normal_(self.attention.sampling_offsets.weight)
        torch.nn.init.normal_(self.attention.attention_weights.weight)
        self.register_buffer("reference", torch.rand(2, 5, 2, 4))
        self.register_buffer("padding", torch.rand(2, 20) > 0.8)

    def forward(self, query, value):
        shapes, starts = torch.tensor([[4, 4], [2, 2]]), torch.tensor([0, 16])
        return self.attention(query, value, self.reference, self.padding, shapes, starts)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[no_gpu])])
def attention(request):
    inputs = (torch.randn(2, 5, 16, requires_grad=True), torch.randn(2, 20, 16, requires_grad=True))
    return Attention().to(request.param), tuple(x.detach().to(request.param).requires_grad_() for x in inputs)


def test_compiles_without_a_graph_break(attention):
    module, inputs = attention
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_close(compiled(*inputs), module(*inputs))
    grads = [torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (compiled, module)]
    assert_close(*grads)


def test_exports(attention):
    module, inputs = attention
    exported = torch.export.export(module.eval(), inputs)
    assert any(node.target is OPERATOR.default for node in exported.graph.nodes)
    assert_close(exported.module()(*inputs), module(*inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(attention, dtype):
    module, inputs = attention
    dtypes = []
    hook = module.attention.output_proj.register_forward_pre_hook(lambda m, args: dtypes.append(args[0].dtype))
    with torch.autocast(inputs[0].device.type, dtype):
        output = module(*inputs)
    hook.remove()
    assert dtypes == [dtype]
    exact = module(*inputs)
    assert (output.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert all(g.isfinite().all() for g in torch.autograd.grad(output.float().sum(), inputs))


def test_checkpointing_and_deterministic_algorithms(attention):
    module, inputs = attention
    plain = torch.autograd.grad(module(*inputs).square().sum(), inputs)
    assert_close(torch.autograd.grad(checkpoint(module, *inputs, use_reentrant=False).square().sum(), inputs), plain)
    if inputs[0].is_cuda and not extension.has_kernel("cuda"):
        pytest.skip("the backward pass of grid_sample is not deterministic on a GPU")
    try:
        torch.use_deterministic_algorithms(True)
        runs = [torch.autograd.grad(module(*inputs).square().sum(), inputs) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(runs[0], plain)
    assert_close(runs[0], runs[1], rtol=0, atol=0)


def test_function_matches_operator():
    args = arguments()
    assert_close(gradients(ms_deform_attn, args), gradients(OPERATOR, args))


@no_gpu
@no_cuda_kernel
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_runs_on_the_device_of_its_arguments():
    args = arguments(device="cuda:1")
    output = OPERATOR(*args)
    assert output.device == torch.device("cuda:1")
    assert_close(output.cpu(), by_loop(*args))
