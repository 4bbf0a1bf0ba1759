"""Run by path, in a process of its own: the engine that `bench_e2e step` measures, served, and asked about its GPU.

Usage: run_step_engine.py MODEL FOLDER ENGINE_ARGUMENTS_AS_JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from serving_ops.bench_e2e import engine_arguments
from serving_ops.bench_e2e.step_engine import Measured, SglangEngine, StepLoad


def main() -> None:
    model, folder, more = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    given = {"model_args": {}, "engine_args": more, "engines": 1}
    chosen = SimpleNamespace(engine="sglang", device="cpu", eager=True, **given)
    load = StepLoad(batch_sizes=(2,), prompt_lens=(16,), decode_steps=4, decode_prompt_len=8)
    engine = SglangEngine(model, engine_arguments.of_step(chosen, load), folder)
    engine.ask("count_replays")
    took = Measured(engine, load, "cpu").serve(2, 8, 5)
    result = {"ms": took, "replays": engine.ask("replays"), "asked": len(list(engine.answers.iterdir()))}
    (folder / "result.json").write_text(json.dumps(result))
    engine.engine.shutdown()


if __name__ == "__main__":
    main()
