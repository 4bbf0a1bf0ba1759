"""`python -m serving_ops.bench_e2e serve`: a real server with serving_ops and one without, asked in turns.

Both are alive at once, so that start-up is paid once and the two halves of a pair are seconds apart. `--sequential`
has one alive at a time, and starts a server for every turn.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import chat, engine_arguments, options, session, smollm2, turns
from serving_ops.bench_e2e.client import LABELS, METRICS, ServeLoad
from serving_ops.bench_e2e.comparison import Comparison
from serving_ops.bench_e2e.options import at_least_1, at_least_2
from serving_ops.bench_e2e.plugin_log import startup_line
from serving_ops.bench_e2e.process import Child, ChildFailed, Children
from serving_ops.bench_e2e.progress import Progress
from serving_ops.bench_e2e.server import (
    HOST,
    VARIANTS,
    Address,
    engine_environment,
    new_address,
    serve_command,
    wait_until_healthy,
)
from serving_ops.bench_e2e.stats import RATIO_METHOD

CLIENT = [sys.executable, "-m", "serving_ops.bench_e2e.client"]
FIRST_SEED = 1000
WARMUPS = 2  # requests before a server's first turn
LOOKS = (8, 10, 12)
"""Numbers of pairs at which a run ends, at the first where its intervals are as narrow as NARROW. The width decides and
never the ratio, so that the intervals hold: 94% of them, if not 95%, have the true ratio in them."""
NARROW = {"median_ttft_ms": 0.02, "median_tpot_ms": 0.04}  # of the ratio, to each side
# On CPU eager, where the engine runs our ops call by call and start-up is short. On CUDA what one would deploy:
# compiled, with CUDA graphs.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"eager": True, "num_prompts": 4, "input_len": 512, "output_len": 12},
    "cuda": {"eager": False, "num_prompts": 16, "input_len": 512, "output_len": 128},
}
QUICK = {"num_prompts": 2, "input_len": 64, "output_len": 8}


@dataclass
class Serving:
    """What the run needs and measures. pairs, lines: variant -> what came so far."""

    chosen: argparse.Namespace
    load: ServeLoad
    engine_options: dict[str, Any]
    pairs: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {variant: [] for variant in VARIANTS})
    lines: dict[str, list[str | None]] = field(default_factory=lambda: {variant: [] for variant in VARIANTS})

    def run(self, work: Path) -> None:
        """Raises ChildFailed; what is whole until then stays."""
        chosen = self.chosen
        model, tokenizer = options.model_and_tokenizer(chosen, work)
        progress, started = Progress(2 * chosen.looks[-1]), time.monotonic()
        with Children() as children, session.whole_pairs(self.pairs):
            self.work, self.children, self.progress = work, children, progress
            self.model, self.tokenizer = model, tokenizer
            progress.console.print(f"serving {options.model_label(chosen)}; logs in {work}", soft_wrap=True)
            if self.load.input_len is None:
                chat.write_dataset(work / "chats.json", self.load.num_prompts)
            client = self._start_client()
            up = {} if chosen.sequential else self._both()
            client.answer(progress)
            progress.console.print(f"up after {time.monotonic() - started:.0f} s")
            if up and self.load.input_len is None:
                self._show_an_answer(up)
            for number, variant in turns.order(list(VARIANTS), chosen.looks[-1]):
                server, address = up.get(variant) or self._up(variant, self._start(variant))
                progress.phase(f"pair {number} of {chosen.looks[-1]}, {variant}")
                fresh = chosen.sequential or number == 1
                words = self._words(address, FIRST_SEED + number, WARMUPS if fresh else 0)
                found = client.ask(words, progress, needs=[server])
                if found["completed"] != self.load.num_prompts:
                    done = f"{found['completed']:.0f} of {self.load.num_prompts} requests succeeded"
                    raise ChildFailed(done, client.child)
                figures = {name: found[name] for name in METRICS}
                progress.done({LABELS[name]: figures[name] for name in ("median_ttft_ms", "median_tpot_ms")})
                self.pairs[variant].append(figures)
                if chosen.sequential:
                    children.stop(server)
                if len(self.pairs["native"]) == len(self.pairs["serving_ops"]) in chosen.looks and self._is_narrow():
                    break

    def _is_narrow(self) -> bool:
        found = Comparison({}, LABELS, self.pairs, {})
        return all((ratio := found.ratio(figure)) and ratio.reach <= reach for figure, reach in NARROW.items())

    def _show_an_answer(self, up: dict[str, tuple[Child, Address]]) -> None:
        self.progress.phase("one question to each")
        try:
            said = chat.shown({variant: chat.ask(address) for variant, (_, address) in up.items()})
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = f"no answer to show: {error}"
        self.progress.console.print(said, markup=False, soft_wrap=True)

    def _words(self, address: Address, seed: int, warmups: int) -> list[str]:
        """Both halves of a pair have the same prompts."""
        chats, of_model = self.work / "chats.json", (address.name, self.tokenizer)
        return self.load.words(self.chosen.engine, HOST, address.port, *of_model, seed, warmups, chats)

    def _both(self) -> dict[str, tuple[Child, Address]]:
        """Both start at once, beside the load generator's imports."""
        started = {variant: self._start(variant) for variant in VARIANTS}
        return {variant: self._up(variant, server) for variant, server in started.items()}

    def _start(self, variant: str) -> tuple[Child, Address]:
        address = new_address()
        command = serve_command(self.chosen.engine, self.model, self.tokenizer, address, self.engine_options)
        log = self.work / f"{variant}-server-{len(self.lines[variant]) + 1}.log"
        return self.children.start(command, self._environment(variant), log, cwd=self.work), address

    def _up(self, variant: str, started: tuple[Child, Address]) -> tuple[Child, Address]:
        self.progress.phase(f"{variant} starting")
        wait_until_healthy(*started, self.chosen.start_timeout, self.progress.tick)
        self.lines[variant].append(startup_line(started[0].lines()))
        return started

    def _start_client(self) -> turns.Asked:
        folder = self.work / "client"
        folder.mkdir()
        command = [*CLIENT, str(folder), self.chosen.engine]
        environment = self._environment("native")
        child = self.children.start(command, environment, folder / "log", cwd=self.work)
        return turns.Asked("the load generator", child, folder, self.chosen.start_timeout)

    def _environment(self, variant: str) -> dict[str, str]:
        offline = Path(self.model).is_dir()
        return engine_environment(variant, self.chosen.device, self.work, offline, self.chosen.engine)

    def result(self, words: list[str]) -> Comparison | None:
        count = len(self.pairs["native"])
        if not count:
            return None
        asked, alive = self.load, "one server alive at a time" if self.chosen.sequential else "both servers alive"
        tokens_in = f"{asked.input_len} tokens" if asked.input_len else "questions of different lengths"
        looks = ", ".join(map(str, self.chosen.looks[:-1]))
        ended = (
            f" The run ended at the first of {looks} and {self.chosen.looks[-1]} pairs with intervals of the medians "
            f"within {NARROW['median_ttft_ms']:.0%} (TTFT) and {NARROW['median_tpot_ms']:.0%} (TPOT), or at the last."
        )
        method = (
            f"{asked.num_prompts} requests a turn, {tokens_in} in, {asked.output_len} tokens out, "
            f"{asked.concurrency} in flight; {alive}, in turns: median over {count} turn{'s' if count > 1 else ''} "
            f"[lowest-highest]; ratio: {RATIO_METHOD}."
        )
        method += ended if looks else ""
        run = options.described(self.chosen, words, asked, self.engine_options) | {"method": method}
        return Comparison(run, LABELS, self.pairs, self.lines)


def main(words: list[str]) -> int:
    """Exit status 1 if a server failed, 3 if serving_ops was not active: the figures are there then."""
    chosen = _parse(words)
    input_len = None if chosen.chats else chosen.input_len
    load = ServeLoad(chosen.num_prompts, input_len, chosen.output_len, chosen.concurrency)
    alive = 1 if chosen.sequential else len(VARIANTS)
    arguments = engine_arguments.of(chosen, alive, chosen.input_len + chosen.output_len, chosen.concurrency)
    serving = Serving(chosen, load, arguments)
    return session.run(serving.run, lambda: serving.result(words), options.out(chosen), chosen.keep_logs)


def _parse(words: list[str]) -> argparse.Namespace:
    """The options, complete. Exits with status 2 and a sentence for what cannot work."""
    parser = options.parser("serve", "Serve a model with and without serving_ops and compare TTFT and TPOT.")
    add = parser.add_argument
    most = f"{LOOKS[0]} to {LOOKS[-1]}, until intervals are narrow"
    add("--pairs", type=at_least_1, help=f"turns of each server (default: {most})")
    add("--num-prompts", type=at_least_1, help="requests a turn (default: 4 on CPU, 16 on CUDA)")
    add("--input-len", type=at_least_1, help="tokens (default: 512, and questions for smollm2)")
    add("--output-len", type=at_least_2, help="tokens (default: 12 on CPU, 128 on CUDA)")
    add("--concurrency", type=at_least_1, default=1, help="requests in flight (default: 1)")
    add("--sequential", action="store_true", help="a server at a time, where two do not fit: takes longer")
    add("--quick", action="store_true", help="one tiny pair: does it work at all?")
    chosen = parser.parse_args(words)
    any_length = chosen.input_len is None
    chosen.looks = (chosen.pairs or 1,) if chosen.pairs or chosen.quick else LOOKS
    options.complete(parser, chosen, DEFAULTS, QUICK if chosen.quick else {}, lambda of: of.input_len + of.output_len)
    chosen.chats = any_length and not chosen.model and (chosen.preset, chosen.engine) == (smollm2.NAME, "vllm")
    chosen.input_len = chat.MOST_TOKENS if chosen.chats else chosen.input_len
    return chosen
