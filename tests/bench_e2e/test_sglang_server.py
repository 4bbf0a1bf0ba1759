"""The command lines of SGLang's server and load generator, and what the generator saves."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import pytest

from serving_ops.bench_e2e import options, sglang_server
from serving_ops.bench_e2e.load import Load
from serving_ops.bench_e2e.server import Address

ADDRESS = Address(1, "bench")
LOAD = Load(num_prompts=4, input_len=64, output_len=8, concurrency=2, num_warmups=1)


def test_what_the_user_gives_comes_last_and_nothing_is_answered_from_a_cache() -> None:
    words = sglang_server.serve_command("model", "tokenizer", ADDRESS, 136, False, None, ("--context-length", "256"))
    assert words[-2:] == ["--context-length", "256"]
    assert "--disable-radix-cache" in words
    assert "--disable-cuda-graph" not in words


def test_only_on_cpu_the_caches_size_is_said() -> None:
    on_gpu, on_cpu = (
        sglang_server.serve_command("model", "tokenizer", ADDRESS, 136, True, tokens, ()) for tokens in (None, 544)
    )
    assert "--max-total-tokens" not in on_gpu
    assert on_cpu[on_cpu.index("--max-total-tokens") + 1] == "544"
    assert all("--disable-cuda-graph" in words for words in (on_gpu, on_cpu))


def test_prompts_have_exact_lengths() -> None:
    words = sglang_server.client_command(LOAD, ADDRESS, "tokenizer", 7, 60, Path("out"))
    asked = dict(itertools.pairwise(words))
    assert asked["--random-range-ratio"] == "1"
    assert (asked["--random-input-len"], asked["--random-output-len"]) == ("64", "8")
    assert "--tokenize-prompt" in words


def test_the_last_line_that_the_generator_appended_counts(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"completed": count}) + "\n" for count in (1, 4)))
    assert sglang_server.saved(file) == {"completed": 4}


@pytest.mark.parametrize(("device", "eager"), [("cpu", None), ("cuda", False), ("cuda", None), ("cuda", True)])
def test_the_others_are_measured(device: str, eager: bool | None) -> None:
    chosen = argparse.Namespace(engine="sglang", device=device, eager=eager)
    options.check_sglang(argparse.ArgumentParser(), chosen)
