"""What PyTorch expects of an operator: opcheck, fullgraph compilation without copies, threads, registration once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from numerics import rows
from torch import Tensor
from torch._inductor.utils import run_and_get_code

import serving_ops
from serving_ops import reference


def sample(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    return rows((6, 128), dtype, device, 1), rows((6, 128), dtype, device, 2), rows((128,), dtype, device, 3)


def compiled_code(function: Callable[..., Any], *args: Tensor) -> tuple[Any, str]:
    torch._dynamo.reset()
    result, code = run_and_get_code(torch.compile(function, fullgraph=True), *args)
    return result, "\n".join(code)


def test_compiled_fused_add_mutates_its_arguments_without_copies(device: torch.device) -> None:
    x, residual, weight = sample(device)
    expected = reference.fused_add_rms_norm(x.clone(), residual.clone(), weight)
    result, code = compiled_code(serving_ops.fused_add_rms_norm, x, residual, weight)
    assert torch.equal(residual, expected[1])
    assert torch.allclose(x.float(), expected[0].float(), rtol=2**-7, atol=1e-6)
    assert result[0].data_ptr() == x.data_ptr()
    body = graph_body(code)
    assert "serving_ops.fused_add_rms_norm" in body
    assert not [word for word in ("copy_", "clone", "empty_strided") if word in body]


def graph_body(code: str) -> str:
    """The generated `call` functions, without the aliases above them and the benchmark below."""
    bodies = [part.split("\nrunner = ")[0] for part in code.split("def call(")[1:]]
    assert bodies
    return "\n".join(bodies)


def test_a_compiled_chain_of_layers_makes_no_copies(device: torch.device) -> None:
    """Activations made inside the graph are mutated where they lie."""

    def layers(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(3):
            h = x @ x.T @ x
            x, residual = serving_ops.fused_add_rms_norm(h, residual, weight)
        return x, residual

    x, residual, weight = sample(device, torch.float32)
    want, want_residual = layers(x, residual.clone(), weight)
    (got, got_residual), code = compiled_code(layers, x, residual, weight)
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-3)
    assert torch.allclose(got_residual, want_residual, rtol=1e-3, atol=1e-3)
    body = graph_body(code)
    assert body.count("torch.ops.serving_ops.fused_add_rms_norm") == 3
    assert not [word for word in ("copy_", "clone") if word in body]


@pytest.mark.parametrize("into_x", [False, True])
def test_compiled_norms_give_the_eager_result(device: torch.device, into_x: bool) -> None:
    x, z, weight = sample(device)

    def norms(x: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y = serving_ops.rms_norm(x, weight) + 1
        return y, serving_ops.rms_norm_gated(y, z, weight, out=y.clone() if not into_x else None)

    want = norms(x, z, weight)
    got, _ = compiled_code(norms, x, z, weight)
    for g, w in zip(got, want, strict=True):
        assert torch.allclose(g.float(), w.float(), rtol=2**-7, atol=1e-6)


def test_one_compiled_graph_serves_every_number_of_rows(device: torch.device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: serving_ops.rms_norm(x, w), fullgraph=True, dynamic=True)
    weight = rows((128,), torch.bfloat16, device, 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for num_rows in (2, 3, 17, 300):
            x = rows((num_rows, 128), torch.bfloat16, device, num_rows)
            assert torch.equal(compiled(x, weight), serving_ops.rms_norm(x, weight))


def test_several_threads_get_the_bits_of_one(device: torch.device) -> None:
    inputs = [(rows((33, 96), torch.bfloat16, device, i), rows((96,), torch.bfloat16, device, i)) for i in range(8)]
    expected = [serving_ops.rms_norm(x, w) for x, w in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(200):
            if not torch.equal(serving_ops.rms_norm(*inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_reload_of_the_package_registers_nothing_again() -> None:
    program = (
        "import importlib, serving_ops, torch\n"
        "op, folders = torch.ops.serving_ops.rms_norm.default, list(serving_ops.__path__)\n"
        "again = importlib.reload(serving_ops)\n"
        "assert torch.ops.serving_ops.rms_norm.default is op\n"
        "assert sorted(again.__path__) == sorted(set(folders))\n"
        "assert torch.equal(again.rms_norm(torch.ones(1, 4), None, 0.0), torch.ones(1, 4))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True)
    assert not done.stderr


ROWS_OF_TWO_MASKS: dict[str, Callable[..., Any]] = {
    "rms_norm": lambda x, other, weight: serving_ops.rms_norm(x, weight, out=torch.empty_like(other)),
    "add_rms_norm": lambda x, other, weight: serving_ops.add_rms_norm(x, other, weight),
    "rms_norm_gated": lambda x, other, weight: serving_ops.rms_norm_gated(x, other, weight),
    "fused_add_rms_norm": lambda x, other, weight: serving_ops.fused_add_rms_norm(x, other, weight),
}


@pytest.mark.parametrize("name", ROWS_OF_TWO_MASKS)
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_one_graph_holds_a_call_whose_inputs_have_as_many_rows_as_their_masks_say(name: str) -> None:
    def call(x: Tensor, other: Tensor, mask: Tensor, other_mask: Tensor) -> Any:
        return ROWS_OF_TWO_MASKS[name](x[mask], other[other_mask], weight)

    x, other, weight = rows((6, 16), torch.float32, seed=1), rows((6, 16), torch.float32, seed=2), torch.ones(16)
    mask = torch.tensor([True, False, True, True, False, False])
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, other, mask, ~mask), call(x, other, mask, ~mask))
    with pytest.raises(RuntimeError):
        compiled(x, other, mask, torch.ones_like(mask))


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A device mesh of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_dtensors_are_refused_and_their_local_rows_are_normed_as_documented(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    x, weight = rows((6, 16), torch.float32, seed=1), rows((16,), torch.float32, seed=2).requires_grad_()
    sharded, whole = distribute_tensor(x, mesh, [Shard(0)]), distribute_tensor(weight, mesh, [Replicate()])
    with pytest.raises(NotImplementedError, match="sharding strategy"):
        serving_ops.rms_norm(sharded, whole)
    local = serving_ops.rms_norm(sharded.to_local(), whole.to_local(grad_placements=[Partial()]))
    result = DTensor.from_local(local, sharded.device_mesh, sharded.placements)
    result.full_tensor().sum().backward()
    expected = torch.autograd.grad(serving_ops.rms_norm(x, weight).sum(), weight)[0]
    assert torch.equal(result.full_tensor(), serving_ops.rms_norm(x, weight))
    assert torch.equal(whole.grad.full_tensor(), expected)
