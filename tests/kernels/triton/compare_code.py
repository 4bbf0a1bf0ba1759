"""Compare the code that two source trees' norm kernels compile to for Hopper, without a GPU.

    python tests/kernels/triton/compare_code.py OLD_TREE NEW_TREE [KERNEL]

Prints every variant whose PTX differs, with its global loads and stores, its registers and its shared memory in both
trees. Exits with 1 where one differs. The plans, and so the variants, are those of each tree.
KERNEL: part of a kernel's name, to compare those kernels alone.
"""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = (64, 100, 128, 256, 512, 896, 1024, 2048, 4095, 4096, 5120, 7168, 16384, 40000, 131072)
ROWS = (1, 300, 3000, 10000)
WEIGHTS = ("none", "same", "fp32", "gemma")


def use_tree(tree: Path, folder: Path) -> None:
    """Make `serving_ops` importable from a source tree, whichever version is installed."""
    package = folder / "serving_ops"
    package.mkdir()
    for entry in [*(tree / "serving_ops").iterdir(), tree / "kernels"]:
        (package / entry.name).symlink_to(entry)
    sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
    sys.path.insert(0, str(folder))


def record_launches() -> list[tuple[Any, ...]]:
    """Keep what each `Launcher` is called with, instead of launching."""
    from serving_ops.kernels.triton import launch

    launches: list[tuple[Any, ...]] = []

    def recorded(self: Any, variant: Any, plan: Any, grid: Any, arguments: Any, pdl: bool):
        launches.append((self.kernel, self.options, plan, arguments))

    launch.Launcher.__call__ = recorded  # type: ignore[method-assign]
    return launches


def call_norms() -> Iterator[str]:
    """Ask for every kind of launch, on tensors whose rows are never touched; yields what each call is."""
    import torch

    from serving_ops import layout, plan
    from serving_ops.kernels.triton.gated import run_gated
    from serving_ops.kernels.triton.norm import run_norm

    def rows_of(count: int, size: int, dtype: torch.dtype, heads: bool) -> torch.Tensor:
        tokens = torch.empty(count, 3 * size, dtype=dtype)
        return tokens.as_strided((count, 2, size), (3 * size, size, 1)) if heads else tokens[:, :size]

    def weight_of(kind: str, size: int, dtype: torch.dtype) -> torch.Tensor | None:
        if kind == "none":
            return None
        return torch.empty(size, dtype=torch.float32 if kind == "fp32" else dtype)

    dtypes = itertools.cycle((torch.bfloat16, torch.float16, torch.float32))
    for (size, count), weight, fused in itertools.product(itertools.product(SIZES, ROWS), WEIGHTS, (True, False)):
        dtype, heads = next(dtypes), size <= 256 and fused
        if count * size > 2**24:
            continue
        x, second = rows_of(count, size, dtype, heads), rows_of(count, size, dtype, heads)
        grid = layout.row_grid(x, second, x)
        chosen = plan.plan_norm(size, x.itemsize, grid.num_rows)
        offset, parameter = float(weight == "gemma"), weight_of(weight, size, dtype)
        run_norm(x, second if fused else None, parameter, x, 1e-6, offset, grid, chosen, fused)
        yield f"norm fused={fused} {count}x{size} {dtype} weight={weight}"
    options = itertools.product((64, 128, 256, 1024, 5120), ROWS, (True, False), (True, False), (True, False))
    for group, count, gated, before, bias in options:
        dtype = next(dtypes)
        x, z = rows_of(count, group, dtype, heads=True), rows_of(count, group, dtype, heads=True)
        grid = layout.row_grid(x, z, x)
        chosen = plan.plan_gated(group, x.itemsize, grid.num_rows)
        weight = torch.empty(group, dtype=torch.float32 if before else dtype)
        gate, sigmoid = z if gated else None, count == 300
        run_gated(x, gate, weight, weight if bias else None, x, 1e-6, before, sigmoid, group, grid, chosen, before)
        yield f"gated={gated} {count}x{group} {dtype} before={before} bias={bias}"


def compiled(kernel: Any, options: dict[str, Any], plan: Any, arguments: dict[str, Any], target: int | str = 90) -> Any:
    """target: a compute capability, which is 90 for 9.0, or the name of an AMD GPU's instruction set."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    of_pointer = {
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.float32: "*fp32",
        torch.float8_e4m3fn: "*fp8e4nv",
        torch.int8: "*i8",
        torch.int32: "*i32",
        torch.int64: "*i64",
    }
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    for place, name in enumerate(kernel.arg_names):
        annotation = str(kernel.fn.__annotations__.get(name))
        if isinstance(arguments[name], torch.Tensor):
            signature[name] = of_pointer[arguments[name].dtype]
        elif "constexpr" in annotation:
            signature[name], constants[place,] = "constexpr", arguments[name]
        else:
            signature[name] = annotation.removeprefix("tl.").replace("int", "i").replace("float", "fp")
    gpu = GPUTarget("cuda", target, 32) if isinstance(target, int) else GPUTarget("hip", target, 64)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": plan.num_warps, **options}
    return compile(source, target=gpu, options=options)


def figures(ptx: str, cubin: str) -> str:
    """Global loads and stores of a thread, and what the kernel takes of an SM."""
    tool = f"{importlib.util.find_spec('triton').submodule_search_locations[0]}/backends/nvidia/bin/cuobjdump"  # type: ignore[union-attr, index]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(base64.b64decode(cubin))
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    counts = Counter(re.findall(r"\b(?:ld|st)\.global[.\w:]*", ptx))
    used = " ".join(re.findall(r"(?:REG|STACK|SHARED|LOCAL):\d+", usage))
    return f"{dict(sorted(counts.items()))} {used}"


def dump(tree: Path, name: str) -> None:
    """Print the code of every variant of a tree as JSON: by kernel and constants, a call, PTX and binary."""
    with tempfile.TemporaryDirectory() as folder:
        use_tree(tree, Path(folder))
        from serving_ops.kernels.triton.variant import run_time_parameters

        launches = record_launches()
        calls = list(call_norms())
        found: dict[str, tuple[str, str, str]] = {}
        for call, (kernel, options, plan, arguments) in zip(calls, launches, strict=True):
            run_time = run_time_parameters(kernel.fn)
            constants = tuple(arguments[name] for name in kernel.arg_names if name not in run_time)
            dtypes = [str(arguments[name].dtype) for name in run_time if name.endswith("_ptr")]
            key = f"{kernel.fn.__name__} {constants} {dtypes} {plan.num_warps} {options}"
            if key not in found and name in key.split()[0]:
                code = compiled(kernel, options, plan, arguments)
                found[key] = (call, code.asm["ptx"], base64.b64encode(code.asm["cubin"]).decode())
    json.dump(found, sys.stdout)


def dumped(tree: str, name: str) -> dict[str, tuple[str, str, str]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"
    command = [sys.executable, __file__, "--dump", tree, name]
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, tuple[str, str, str]] = json.loads(ran.stdout)
    return found


def main(old_tree: str, new_tree: str, name: str = "") -> int:
    old, new = dumped(old_tree, name), dumped(new_tree, name)
    differing = [key for key in old if key not in new or old[key][1] != new[key][1]]
    for key in differing:
        call, *code = old[key]
        now = figures(*new[key][1:]) if key in new else "not compiled"
        print(f"{call}\n  {key}\n  old {figures(*code)}\n  new {now}")
    print(f"{len(old)} variants, {len(new)} in the new tree, {len(differing)} with other code")
    return int(bool(differing))


if __name__ == "__main__":
    if sys.argv[1] == "--dump":
        dump(Path(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(main(*sys.argv[1:]))
