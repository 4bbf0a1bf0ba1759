"""SGLang's engine on a GPU, with CUDA graphs: a dense model, plain, in FP8 and in deterministic mode, and a hybrid."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving_ops import extension

pytest.importorskip("sglang", reason="SGLang is not installed beside this package")

HERE = Path(__file__).parent
START_SECONDS = 420
"""With kernels that SGLang and FlashInfer compile once a machine."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.engine,
    pytest.mark.timeout(2 * START_SECONDS),
    pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built"),
]

WRITE = {
    "dense": [str(HERE.parent / "vllm" / "models.py"), "dense"],
    "hybrid": [str(HERE / "qwen3_5_model.py")],
}
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "hybrid": ("hybrid", {"enable_multimodal": False, "mm_attention_backend": "sdpa"}),
    "deterministic": ("dense", {"enable_deterministic_inference": True}),
    "fp8": ("dense", {"quantization": "fp8"}),
}
NARROW = "of narrow rows (unless SGLang fuses them)"
ATTENTION = "Qwen3Attention's q and k"
LAYERS = {
    "dense": {"RMSNorm": 5, f"RMSNorm {NARROW}": 4, ATTENTION: 2},
    "hybrid": {"GemmaRMSNorm": 9, f"GemmaRMSNorm {NARROW}": 4, "RMSNormGated": 2},
    "deterministic": {"RMSNorm": 5, f"RMSNorm {NARROW}": 4, ATTENTION: 2},
    "fp8": {"RMSNorm with FP8 per token": 4, "RMSNorm": 1, f"RMSNorm {NARROW}": 4, ATTENTION: 2},
}
CALLED = {
    "dense": {"fused_add_rms_norm", "rms_norm", "qk_norm_rope"},
    "hybrid": {"fused_add_rms_norm", "rms_norm", "rms_norm_gated"},
    "deterministic": {"fused_add_rms_norm", "rms_norm", "qk_norm_rope"},
    "fp8": {"fused_add_rms_norm", "rms_norm", "qk_norm_rope", "fused_add_rms_norm_quant", "rms_norm_quant"},
}
of_each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "dense" else pytest.mark.slow) for name in ENGINES]
)


@dataclass(frozen=True)
class Ran:
    """How one engine ended, its output, cuda_tokens.py's JSON and the scheduler's last state."""

    returncode: int
    output: str
    result: dict[str, Any]
    scheduler: dict[str, Any]

    def succeeded(self) -> Ran:
        assert self.returncode == 0, self.output[-8000:]
        return self


def _last_json(file: Path) -> dict[str, Any]:
    lines = file.read_text().splitlines() if file.is_file() else []
    return json.loads(lines[-1]) if lines else {}


def _observer(folder: Path) -> Path:
    """The plugin that observes the scheduler, without the stand-ins that lie beside it for CPU."""
    for name in ("observe.py", "observe-1.0.dist-info"):
        source = HERE / "stand_in" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Ran]:
    """ran(name, switch): one of ENGINES, SERVING_OPS off or auto. All start at once: a start takes half a minute."""
    scratch = tmp_path_factory.mktemp("sglang_cuda")
    (scratch / "plugin").mkdir()
    path = os.pathsep.join(filter(None, [str(_observer(scratch / "plugin")), os.environ.get("PYTHONPATH", "")]))
    for name, command in WRITE.items():
        done = _run([*command, str(scratch / name)], {"CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stdout[-3000:]

    def serve(name: str, switch: str) -> Ran:
        model, more = ENGINES[name]
        result, state = scratch / f"{name}-{switch}.json", scratch / f"{name}-{switch}.jsonl"
        environment = {
            "SERVING_OPS": switch,
            "OBSERVE": str(state),
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
        }
        command = [str(HERE / "cuda_tokens.py"), str(scratch / model), str(result), json.dumps(more)]
        done = _run(command, environment)
        (scratch / f"{name}-{switch}.log").write_text(done.stdout)
        return Ran(done.returncode, done.stdout, _last_json(result), _last_json(state))

    wanted = [(name, switch) for name in ENGINES for switch in ("off", "auto")]
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = dict(zip(wanted, pool.map(lambda each: serve(*each), wanted), strict=True))
    return lambda name, switch: found[name, switch]


def _lines(run: Ran) -> list[str]:
    return re.findall(r"serving_ops \d\S* \(.*", run.output)


@of_each
def test_one_line_says_that_every_norm_is_ours(ran: Callable[[str, str], Ran], name: str) -> None:
    (line,) = _lines(ran(name, "auto").succeeded())
    assert "native" not in line
    assert all(f"{count} of {count} {kind}" in line for kind, count in LAYERS[name].items())
    assert _lines(ran(name, "off").succeeded()) == []


@of_each
def test_kernels_run_what_is_called_and_the_reference_nothing(ran: Callable[[str, str], Ran], name: str) -> None:
    """A captured graph replays without calls: those counted were made at start-up, as it was captured, and eagerly."""
    calls = ran(name, "auto").succeeded().scheduler["calls"]
    assert {op for op, count in calls.items() if count["kernel"]} == CALLED[name]
    assert {op: count["reference"] for op, count in calls.items()} == {op: {} for op in calls}


@of_each
def test_greedy_tokens_equal_sglangs_own(ran: Callable[[str, str], Ran], name: str) -> None:
    ours, native = (ran(name, switch).succeeded().result["together"] for switch in ("auto", "off"))
    assert [one["tokens"] for one in ours] == [one["tokens"] for one in native]


@pytest.mark.slow
def test_in_deterministic_mode_a_prompt_gets_the_same_bits_alone_as_in_a_batch(ran: Callable[[str, str], Ran]) -> None:
    result = ran("deterministic", "auto").succeeded().result
    assert result["together"] == result["alone"]
