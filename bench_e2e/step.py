"""`python -m serving_ops.bench_e2e step`: engines with and without serving_ops, all alive at once, asked in turns.

A difference of a percent drowns in HTTP, and in what differs between starts: here each variant has several engines.
"""

import argparse
import fcntl
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import engine_arguments, options, session
from serving_ops.bench_e2e.comparison import VARIANTS, startup_line
from serving_ops.bench_e2e.process import Asked, Children
from serving_ops.bench_e2e.step_engine import LAYER, StepLoad

ENGINE = [sys.executable, "-m", "serving_ops.bench_e2e.step_engine"]
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"eager": True, "batch_sizes": (1,), "prompt_lens": (512,), "decode_steps": 32},
    "cuda": {"eager": False, "batch_sizes": (1, 16), "prompt_lens": (512, 8192), "decode_steps": 96},
}

Name = tuple[str, int]  # of an engine: its variant, and its place among them
Rounds = list[dict[str, float]]  # the figures of one engine


class Engines(session.EngineRun):
    def run(self, work: Path) -> None:
        chosen = self.chosen
        names = [(variant, place) for place in range(chosen.engines) for variant in VARIANTS]
        with (chosen.lock or work / "lock").open("a") as lock, Children() as children:
            fcntl.flock(lock, fcntl.LOCK_SH)  # beside other runs that start
            session.say(f"{len(names)} engines, all alive at once; logs in {work}")
            running = self._start(names, children, work)
            for (variant, _), asked in running.items():
                self.measured.plugin_lines[variant].append(startup_line(asked.child.lines()))
            fcntl.flock(lock, fcntl.LOCK_EX)  # when none of them starts or measures
            figures: dict[str, list[Rounds]] = {variant: [[] for _ in range(chosen.engines)] for variant in VARIANTS}
            pause = session.SPIN_SECONDS if chosen.device == "cpu" else 0.0
            for number, (variant, place) in session.order(names, chosen.rounds, pause):
                found = running[variant, place].ask(number)
                session.say_figures(f"round {number} of {chosen.rounds}, {variant}-{place + 1}", found)
                figures[variant][place].append(found)
                self.keep(figures)
            self.measured.run["layer"] = {variant: running[variant, 0].ask(LAYER) for variant in VARIANTS}

    def keep(self, figures: dict[str, list[Rounds]]) -> None:
        """The whole rounds. figures: variant -> of each engine what it measured in each round."""
        whole = min(len(rounds) for engines in figures.values() for rounds in engines)
        rounds = {variant: [of_one[:whole] for of_one in engines] for variant, engines in figures.items()}
        self.measured.run.update(method=self.load.method(self.chosen.engines, whole), rounds=rounds)
        for variant, engines in rounds.items() if whole else ():
            self.measured.pairs[variant] = [
                {figure: statistics.median(entry[figure] for entry in of_one) for figure in of_one[0]}
                for of_one in engines
            ]

    def _start(self, names: Sequence[Name], children: Children, work: Path) -> dict[Name, Asked]:
        """All at once on CUDA. On CPU, where each takes all the cores, one after the other."""
        chosen, running = self.chosen, {}
        model, _ = options.model_and_tokenizer(chosen, work)
        settings = {"engine": chosen.engine, "model": model, "options": self.engine_options}
        settings |= {"load": asdict(self.load), "device": chosen.device}
        settings |= {"gpus": engine_arguments.gpus(self.engine_options)}
        for variant, place in names:
            folder = work / f"{variant}-{place + 1}"
            folder.mkdir()
            variables = engine_arguments.environment_of(variant, chosen.device, Path(model).is_dir(), chosen.engine)
            variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler in the engine's process: less noise
            running[variant, place] = Asked(children, ENGINE, variables, folder, settings)
            if chosen.device == "cpu":
                running[variant, place].wait(chosen.start_timeout)
        for asked in running.values() if chosen.device != "cpu" else ():
            asked.wait(chosen.start_timeout)
        return running


def main(words: list[str]) -> int:
    parser = options.engine_parser("step", "Compare engines with and without serving_ops, all alive at once, in turns.")
    add = parser.add_argument
    add("--engines", type=options.at_least_1, default=5, help="of each variant (default: %(default)s, for an interval)")
    add("--rounds", type=options.at_least_1, default=5, help="turns of each engine (default: %(default)s)")
    add("--batch-sizes", type=options.numbers, help="requests decoding together (default: 1; on CUDA 1,16)")
    add("--prompt-lens", type=options.numbers, help="tokens (default: 512; on CUDA 512,8192)")
    add("--decode-steps", type=options.at_least_1, help="over which TPOT is taken (default: 32 on CPU, 96 on CUDA)")
    add("--lock", type=Path, help="runs that name the same file start together, and measure one at a time")
    chosen = options.complete(parser, parser.parse_args(words), DEFAULTS, lambda chosen: _load(chosen).context)
    load = _load(chosen)
    engines = Engines(chosen, words, load, engine_arguments.of_step(chosen, load), load.labels)
    return session.run(engines.run, engines.measured, chosen.out, chosen.keep_logs)


def _load(chosen: argparse.Namespace) -> StepLoad:
    return StepLoad(chosen.batch_sizes, chosen.prompt_lens, chosen.decode_steps)
