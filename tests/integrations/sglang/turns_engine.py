"""Run by path, in a process of its own: the engine that `bench_e2e --turns` measures, served, and asked about its GPU.

Usage: turns_engine.py MODEL FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from serving_ops.bench_e2e.turns import engine_arguments, sglang_engine
from serving_ops.bench_e2e.turns.load import Load


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    chosen = SimpleNamespace(engine="sglang", model=model, device="cpu", eager=True, engine_args={})
    load = Load(batch_sizes=(2,), prompt_lens=(16,), decode_steps=4, decode_prompt_len=8)
    engine = sglang_engine.start(engine_arguments.of(chosen, load, model), folder)
    engine.gpu.count_replays()
    took = engine.serve([[5] * 8, [6] * 8], 5)
    (folder / "result.json").write_text(json.dumps({"ms": took, "replays": engine.gpu.replays()}))
    engine.engine.shutdown()


if __name__ == "__main__":
    main()
