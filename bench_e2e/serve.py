"""`python -m serving_ops.bench_e2e serve`: a real server with serving_ops and one without, asked in turns.

Both are alive at once, or with `--sequential` one at a time, started for every turn.
"""

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import engine_arguments, options, server, session, smollm2
from serving_ops.bench_e2e.comparison import VARIANTS, startup_line
from serving_ops.bench_e2e.process import Child, ChildFailed, Children
from serving_ops.bench_e2e.server import LABELS, MOST_CHAT_TOKENS, Generator, ServeLoad

FIRST_SEED = 1000
WARMUPS = 2  # requests before a server's first turn
# On CPU eager, where the engine runs our ops call by call and start-up is short. On CUDA what one would deploy:
# compiled, with CUDA graphs.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"pairs": 10, "eager": True, "num_prompts": 4, "input_len": 512, "output_len": 12},
    "cuda": {"pairs": 10, "eager": False, "num_prompts": 16, "input_len": 512, "output_len": 128},
}
QUICK = {"pairs": 1, "num_prompts": 2, "input_len": 64, "output_len": 8}

Server = tuple[Child, int]  # and its port


class Serving(session.EngineRun):
    def run(self, work: Path) -> None:
        chosen, started = self.chosen, time.monotonic()
        self.work = work
        self.model, self.tokenizer = options.model_and_tokenizer(chosen, work)
        session.say(f"serving {chosen.label}; logs in {work}")
        with Children() as both, (work / "client.log").open("w", buffering=1) as log:
            starting = {} if chosen.sequential else {variant: self._start(both, variant) for variant in VARIANTS}
            generator = Generator(chosen.engine, log, Path(self.model).is_dir())  # its imports take as long as a start
            up = {variant: self._up(variant, one) for variant, one in starting.items()}
            session.say(f"up after {time.monotonic() - started:.0f} s")
            if up and self.load.input_len is None:
                session.say(compared({variant: server.answer(port) for variant, (_, port) in up.items()}))
            for number, variant in session.order(VARIANTS, chosen.pairs, session.SPIN_SECONDS):
                with Children() if chosen.sequential else nullcontext(both) as children:
                    child, port = up.get(variant) or self._up(variant, self._start(children, variant))
                    warmups = WARMUPS if chosen.sequential or number == 1 else 0
                    # Both halves of a pair have the same prompts.
                    words = self.load.words(chosen.engine, port, self.tokenizer, FIRST_SEED + number, warmups)
                    try:
                        figures = generator.ask(words, self.load.num_prompts)
                    except RuntimeError as error:
                        raise ChildFailed(f"{variant}: {error}", child) from error
                medians = {LABELS[name]: figures[name] for name in ("median_ttft_ms", "median_tpot_ms")}
                session.say_figures(f"pair {number} of {chosen.pairs}, {variant}", medians)
                self.keep(variant, figures)

    def _start(self, children: Children, variant: str) -> Server:
        port, chosen = server.free_port(), self.chosen
        command = server.serve_command(chosen.engine, self.model, self.tokenizer, port, self.engine_options)
        environment = engine_arguments.environment_of(variant, chosen.device, Path(self.model).is_dir(), chosen.engine)
        log = self.work / f"{variant}-server-{len(self.measured.plugin_lines[variant]) + 1}.log"
        return children.start(command, environment, log, cwd=self.work), port

    def _up(self, variant: str, one: Server) -> Server:
        child, port = one
        child.wait_until(partial(server.is_healthy, port), f"the {variant} server", self.chosen.start_timeout)
        self.measured.plugin_lines[variant].append(startup_line(child.lines()))
        return one

    def keep(self, variant: str, figures: dict[str, float]) -> None:
        self.measured.pairs[variant].append(figures)
        pairs = min(map(len, self.measured.pairs.values()))
        asked, alive = self.load, "one server alive at a time" if self.chosen.sequential else "both servers alive"
        tokens_in = f"{asked.input_len} tokens" if asked.input_len else "questions of different lengths"
        self.measured.run["method"] = (
            f"{asked.num_prompts} requests a turn, {tokens_in} in, {asked.output_len} tokens out, "
            f"{asked.concurrency} in flight; {alive}, in turns: median over {pairs} turn{'s' if pairs > 1 else ''} "
            f"[lowest-highest]"
        )


def compared(answers: dict[str, str]) -> str:
    """The question and its answers by variant: one where they are equal."""
    variants = {answer: [name for name in answers if answers[name] == answer] for answer in answers.values()}
    return "\n".join([f"> {server.QUESTION}", *(f"{' and '.join(of)}: {answer}" for answer, of in variants.items())])


def main(words: list[str]) -> int:
    parser = options.engine_parser("serve", "Serve a model with and without serving_ops and compare TTFT and TPOT.")
    add = parser.add_argument
    add("--pairs", type=options.at_least_1, help="turns of each server (default: 10)")
    add("--num-prompts", type=options.at_least_1, help="requests a turn (default: 4 on CPU, 16 on CUDA)")
    add("--input-len", type=options.at_least_1, help="tokens (default: 512, and questions for smollm2)")
    add("--output-len", type=options.at_least_2, help="tokens (default: 12 on CPU, 128 on CUDA)")
    add("--concurrency", type=options.at_least_1, default=1, help="requests in flight (default: 1)")
    add("--sequential", action="store_true", help="a server at a time, where two do not fit: takes longer")
    add("--quick", action="store_true", help="one tiny pair: does it work at all?")
    chosen = parser.parse_args(words)
    any_length = chosen.input_len is None
    defaults = {device: of | QUICK if chosen.quick else of for device, of in DEFAULTS.items()}
    options.complete(parser, chosen, defaults, lambda of: of.input_len + of.output_len)
    if any_length and (chosen.preset, chosen.engine) == (smollm2.NAME, "vllm"):
        chosen.input_len = None  # questions
    load = ServeLoad(chosen.num_prompts, chosen.input_len, chosen.output_len, chosen.concurrency)
    context = (load.input_len or MOST_CHAT_TOKENS) + load.output_len
    alive = 1 if chosen.sequential else len(VARIANTS)
    arguments = engine_arguments.of(chosen, alive, context, load.concurrency)
    serving = Serving(chosen, words, load, arguments, LABELS)
    return session.run(serving.run, serving.measured, chosen.out, chosen.keep_logs)
