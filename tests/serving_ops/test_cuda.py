"""What only a GPU can show: graphs, streams, dependent launches under load, and that nothing compiles after prewarm."""

from __future__ import annotations

import threading

import pytest
import torch
from numerics import rows
from torch import Tensor

import serving_ops
from serving_ops import reference
from serving_ops.ops import registry

pytestmark = pytest.mark.gpu

BF16 = torch.bfloat16


def layer_inputs(num_rows: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    x, residual = rows((num_rows, size), BF16, "cuda", 1), rows((num_rows, size), BF16, "cuda", 2)
    return x, residual, rows((size,), BF16, "cuda", 3)


@pytest.mark.parametrize(("num_rows", "size"), [(1, 128), (1, 4096), (300, 128), (64, 5125), (3, 40000)])
def test_a_captured_graph_replays_on_new_data(num_rows: int, size: int) -> None:
    x, residual, weight = layer_inputs(num_rows, size)
    z, out, gated = torch.randn_like(x), torch.empty_like(x), size <= 4096

    def step() -> None:
        serving_ops.fused_add_rms_norm(x, residual, weight)
        serving_ops.rms_norm(x, weight, out=out)
        if gated:
            serving_ops.rms_norm_gated(out, z, weight, out=out)

    for _ in range(2):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for seed in (5, 6):
        x.copy_(rows((num_rows, size), BF16, "cuda", seed))
        residual.copy_(rows((num_rows, size), BF16, "cuda", seed + 10))
        want_x, want_residual = reference.fused_add_rms_norm(x.clone(), residual.clone(), weight)
        want = reference.rms_norm(want_x, weight)
        want = reference.rms_norm_gated(want, z, weight) if gated else want
        graph.replay()
        assert torch.equal(residual, want_residual)
        assert torch.allclose(out.float(), want.float(), rtol=2**-5, atol=2**-6)


@pytest.mark.parametrize("size", [128, 1024, 4096])
def test_dependent_launches_never_read_early(size: int) -> None:
    """Producers that are slow, ours and not ours, write what our kernels read: x, residual, and the weight."""
    x, residual, weight = layer_inputs(64, size)
    matrix = rows((size, size), BF16, "cuda", 4) / size**0.5
    raw_weight = rows((size,), BF16, "cuda", 5)

    def chain(x: Tensor, residual: Tensor, norm_add: object, norm: object) -> Tensor:
        for _ in range(8):
            scaled = raw_weight.float() + 1  # the weight is written by the kernel before
            x = norm(x, scaled)  # type: ignore[operator]
            x = x @ matrix
            x, residual = norm_add(x, residual, weight)  # type: ignore[operator]
            x = norm(x, None)  # type: ignore[operator]
            x = norm(x, weight)  # type: ignore[operator]
        return x

    def eager_order() -> Tensor:
        return chain(x.clone(), residual.clone(), serving_ops.fused_add_rms_norm, serving_ops.rms_norm)

    def with_waits() -> Tensor:
        def waited(op: object) -> object:
            def call(*args: object) -> object:
                torch.cuda.synchronize()
                result = op(*args)  # type: ignore[operator]
                torch.cuda.synchronize()
                return result

            return call

        add, norm = waited(serving_ops.fused_add_rms_norm), waited(serving_ops.rms_norm)
        return chain(x.clone(), residual.clone(), add, norm)

    want = with_waits()
    for _ in range(20):
        assert torch.equal(eager_order(), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = eager_order()
    for _ in range(50):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, want)


def test_what_follows_a_dependent_launch_sees_its_result() -> None:
    """The kernel after ours is not ours: it must see all that ours wrote."""
    x, residual, weight = layer_inputs(512, 2048)
    want = reference.fused_add_rms_norm(x.clone(), residual.clone(), weight)[1].double().sum()
    for _ in range(200):
        a, b = x.clone(), residual.clone()
        serving_ops.fused_add_rms_norm(a, b, weight)
        assert b.double().sum() == want


def test_streams_and_threads_do_not_disturb_each_other() -> None:
    x, _, weight = layer_inputs(200, 896)
    want = serving_ops.rms_norm(x, weight)
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(200):
                if not torch.equal(serving_ops.rms_norm(x, weight), want):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_compiles_after_prewarm(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving_ops.kernels.triton import launch

    device = torch.device("cuda", torch.cuda.current_device())
    specs = [
        serving_ops.NormSpec("fused_add_rms_norm", 2816, BF16, BF16, device),
        serving_ops.NormSpec("rms_norm", 2816, BF16, BF16, device),
        serving_ops.NormSpec("rms_norm", 96, BF16, BF16, device, heads=4, token_stride=1024),
        serving_ops.NormSpec("rms_norm_gated", 192, BF16, torch.float32, device, heads=3, gate_token_stride=2048),
    ]
    report = serving_ops.prewarm(specs)
    assert not report.failed
    monkeypatch.setattr(launch.Launcher, "_compile", lambda *_: pytest.fail("it compiled"))
    weight = torch.ones(2816, dtype=BF16, device=device)
    narrow = torch.ones(96, dtype=BF16, device=device)
    gate_weight = torch.ones(192, device=device)
    for num_tokens in (1, 2, 3, 64, 100, 700, 3000, 30000):
        x, residual = (torch.randn(num_tokens, 2816, dtype=BF16, device=device) for _ in range(2))
        serving_ops.fused_add_rms_norm(x, residual, weight)
        serving_ops.rms_norm(x, weight)
        heads = torch.randn(num_tokens, 1024, dtype=BF16, device=device)[:, 512 : 512 + 384].unflatten(1, (4, 96))
        serving_ops.rms_norm(heads, narrow)
        gate = torch.randn(num_tokens, 2048, dtype=BF16, device=device)[:, :576].unflatten(1, (3, 192))
        serving_ops.rms_norm_gated(torch.randn(num_tokens, 3, 192, dtype=BF16, device=device), gate, gate_weight)


def test_no_rotation_compiles_after_prewarm(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving_ops.kernels.triton import launch

    device = torch.device("cuda", torch.cuda.current_device())
    rotations = [serving_ops.RopeSpec(3), serving_ops.RopeSpec(3, has_cache=True, mrope_section=(24, 12, 12))]
    specs = [
        serving_ops.NormSpec("qk_norm_rope", 96, BF16, BF16, device, heads=6, rotation=rotation)
        for rotation in rotations
    ]
    assert not serving_ops.prewarm(specs).failed
    monkeypatch.setattr(launch.Launcher, "_compile", lambda *_: pytest.fail("it compiled"))
    for spec in specs:
        for num_tokens in (1, 2, 3, 28, 29, 100, 227, 228, 3000):
            call = registry.sample(spec, num_tokens)
            serving_ops.qk_norm_rope(**call)
            serving_ops.qk_norm_rope(**{n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in call.items()})


@pytest.mark.parametrize("size", [64, 128, 896, 1024, 4096, 4095, 40000])
@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
def test_row_bits_do_not_depend_on_batch(size: int, dtype: torch.dtype) -> None:
    """Over every plan of the size, and at every place in the batch."""
    x = rows((3000, size), dtype, "cuda", 1)
    together = serving_ops.rms_norm(x, None)
    for start, stop in ((0, 1), (7, 8), (2999, 3000), (5, 21), (100, 400), (1000, 2900)):
        assert torch.equal(serving_ops.rms_norm(x[start:stop], None), together[start:stop])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_a_device_that_is_not_current() -> None:
    x, other = rows((3, 128), BF16, "cuda:1", 1), rows((3, 128), BF16, "cuda:1", 2)
    torch.cuda.set_device(0)
    want = [
        serving_ops.rms_norm(x.to("cuda:0"), None),
        serving_ops.rms_norm_gated(x.to("cuda:0"), other.to("cuda:0"), None),
    ]
    for op, args, first in (("rms_norm", (x, None), want[0]), ("rms_norm_gated", (x, other, None), want[1])):
        getattr(serving_ops, op)(*args)
        before = serving_ops.counters.snapshot()[op]
        result = getattr(serving_ops, op)(*args)
        after = serving_ops.counters.snapshot()[op]
        assert torch.equal(result.cpu(), first.cpu())
        assert after["kernel"] == before["kernel"] + 1
        if serving_ops.cpp_library() is not None:
            assert after["from_python"] == before["from_python"]
        assert torch.cuda.current_device() == 0
    with torch.cuda.device(1):  # on a stream of that device
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(10**7)
            x.fill_(1.0)
            torch.cuda.set_device(0)
            result = serving_ops.rms_norm(x, None)
        torch.cuda.synchronize(1)
    assert torch.equal(result, torch.full_like(result, 1.0))
