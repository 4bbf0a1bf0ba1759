"""`python -m serving_ops.bench_e2e accuracy`: is a model with our norms as near to its fp32 form as with vLLM's?"""

import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from serving_ops.bench_e2e import environment, options, presets, result_file, smollm2
from serving_ops.bench_e2e.comparison import BASELINE, OURS, is_active, startup_line
from serving_ops.bench_e2e.engine_arguments import SPARE_TOKENS, environment_of
from serving_ops.bench_e2e.process import ChildFailed, Children
from serving_ops.bench_e2e.table import Rows, beside, render

KIND = "accuracy"
TEXT = Path(__file__).with_name("text.txt")
MODES = ("eager", "compiled")
NOT_QUANTIZED = "none"
QUANTIZATIONS = (NOT_QUANTIZED, *smollm2.QUANTIZED)
WORKER = [sys.executable, "-m", "serving_ops.bench_e2e.accuracy.engine_logits"]
BESIDE_OTHERS = {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 2**30}
"""Of vLLM on CUDA: it asserts that no other program frees memory while it measures what a cache may take."""
ROWS_AT_ONCE = 256  # bounds the memory: a row has as many values as the vocabulary
HEADER = ("weights, mode", "perplexity", "with serving_ops", "KL from fp32", "with serving_ops", "ratio of KL [95%]")


def main(words: Sequence[str]) -> int:
    """Saves what is measured after each combination. Exit status 1, with a sentence, where the model cannot be had or
    vLLM fails."""
    parser = options.parser(KIND, "Perplexity and divergence from fp32 of SmolLM2, with vLLM's norms and with ours.")
    add = parser.add_argument
    several = {"type": options.names(*QUANTIZATIONS), "default": (NOT_QUANTIZED,)}
    add("--quantizations", **several, help=f"of {', '.join(QUANTIZATIONS)} (default: none)")
    add("--modes", type=options.names(*MODES), default=MODES, help=f"of {', '.join(MODES)} (default: both)")
    chosen = parser.parse_args(words)
    options.check_ready(parser, "vllm")
    chosen.device = environment.detect_device()
    options.check_out(parser, chosen, chosen.device)
    result = result_file.of_run(KIND, words, chosen.device)
    result |= {"engine": "vllm", "model": smollm2.TITLE, "rows": []}
    file, status = chosen.out, 0
    try:
        combinations = itertools.product(chosen.quantizations, chosen.modes)
        with tempfile.TemporaryDirectory(prefix="serving-ops-accuracy-") as work:
            for found in measure(TEXT.read_text(), combinations, chosen.device, Path(work)):
                result |= found
                file = result_file.save(result, file)
    except (smollm2.Unavailable, ChildFailed) as error:
        print(error, file=sys.stderr)
        status = 1
    if result["rows"]:
        print(f"wrote {file}\n\n{markdown(result)}")
    return status


def measure(text: str, combinations: Iterable[tuple[str, str]], device: str, work: Path) -> Iterator[dict[str, Any]]:
    """The figures of the combinations of a quantization and a mode so far, after each of them.

    Raises Unavailable and ChildFailed.
    """
    import transformers

    model = smollm2.checkpoint()
    tokens: list[int] = transformers.AutoTokenizer.from_pretrained(model)(text).input_ids
    print(f"the reference: {len(tokens)} tokens in fp32", flush=True)
    exact = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        reference = exact(torch.tensor([tokens])).logits[0, :-1]
    following, rows = torch.tensor(tokens[1:]), []
    perplexity_of_reference, _ = figures(reference, reference, following)
    for named, mode in combinations:
        quantization = None if named == NOT_QUANTIZED else named
        perplexity, divergences, line = {}, {}, ""
        for variant in (BASELINE, OURS):
            print(f"{quantization or 'bf16'}, {mode}, {variant}", flush=True)
            logits, line = _engine_logits(quantization, mode, variant, tokens, device, work)
            perplexity[variant], divergences[variant] = figures(logits, reference, following)
        row = {"quantization": quantization, "mode": mode, "startup": line, "active": is_active(line)}
        row |= {"perplexity": perplexity, "divergence": {name: float(of.mean()) for name, of in divergences.items()}}
        rows.append(row | {"divergence_ratio": ratio(divergences[OURS], divergences[BASELINE])})
        yield {"tokens": len(tokens), "reference_perplexity": perplexity_of_reference, "rows": rows}


def _engine_logits(
    quantization: str | None, mode: str, variant: str, tokens: list[int], device: str, work: Path
) -> tuple[Any, str]:
    """The logits, and what serving_ops said at start-up."""
    room = len(tokens) + SPARE_TOKENS
    arguments = {
        "model": str(smollm2.checkpoint(quantization)),
        "enforce_eager": mode == "eager",
        "max_model_len": room,
        "max_num_batched_tokens": room,  # the text in one step
        "enable_prefix_caching": False,
        **(BESIDE_OTHERS if device == "cuda" else {}),
        **presets.loading_args(quantization),
    }
    job, out, log = (work / f"{variant}.{ending}" for ending in ("json", "pt", "log"))
    job.write_text(json.dumps({"engine_arguments": arguments, "tokens": tokens, "out": str(out)}))
    with Children() as children:
        child = children.start([*WORKER, str(job)], environment_of(variant, device, True), log, cwd=work)
        if status := child.wait():
            raise ChildFailed(f"vLLM ended with status {status} ({mode}, {variant})", child)
    return torch.load(out), startup_line(child.lines()) or ""


def figures(logits: Tensor, reference: Tensor, tokens: Tensor) -> tuple[float, Tensor]:
    """The perplexity, and of each position the Kullback-Leibler divergence of the engine from the reference, in nats.

    logits, reference: (positions, vocabulary) in any floating dtype; tokens: (positions,), the text's next ones.
    """
    divergences, surprise = [], torch.zeros((), dtype=torch.float64)
    for *rows, following in zip(*(tensor.split(ROWS_AT_ONCE) for tensor in (logits, reference, tokens)), strict=True):
        ours, exact = (part.double().log_softmax(-1) for part in rows)
        divergences.append(functional.kl_div(ours, exact, reduction="none", log_target=True).sum(-1))
        surprise += functional.nll_loss(ours, following, reduction="sum")
    return float((surprise / len(tokens)).exp()), torch.cat(divergences)


def ratio(ours: Tensor, engine: Tensor) -> tuple[float, float, float]:
    """Our mean divergence over the engine's, with its 95% interval. Both have the same positions, in pairs."""
    quotient = float(ours.mean() / engine.mean())
    # The delta method: the quotient of two means varies as the mean of these residuals does.
    residuals = (ours - quotient * engine) / engine.mean()
    margin = 1.96 * float(residuals.std()) / len(residuals) ** 0.5
    return quotient, quotient - margin, quotient + margin


def markdown(result: dict[str, Any]) -> str:
    table: Rows = [HEADER]
    for row in result["rows"]:
        middle, low, high = row["divergence_ratio"]
        perplexity = [f"{value:.3f}" for value in row["perplexity"].values()]
        divergence = [f"{value:.3g}" for value in row["divergence"].values()]
        ratio = f"{middle:.3f} [{low:.3f}, {high:.3f}]" if row["active"] else "vLLM's norms run"
        table.append([f"{row['quantization'] or 'bf16'}, {row['mode']}", *perplexity, *divergence, ratio])
    return f"{render(table)}\n\n{result_file.circumstances(result)}: `{result_file.shown_command(result)}`"


def compared(a: dict[str, Any], b: dict[str, Any]) -> Rows:
    divergences = (
        {f"{row['quantization'] or 'bf16'}, {row['mode']}": row["divergence"][OURS] for row in result["rows"]}
        for result in (a, b)
    )
    return beside(f"KL from fp32, {OURS}", *divergences)
