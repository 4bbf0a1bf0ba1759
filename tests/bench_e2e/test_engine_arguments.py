"""What engines are built with, in process and as words of a server's command line."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from serving_ops.bench_e2e import engine_arguments
from serving_ops.bench_e2e.engine_arguments import as_words
from serving_ops.bench_e2e.server import CHATS, ServeLoad, serve_command
from serving_ops.bench_e2e.step_engine import StepLoad

LOAD = StepLoad(batch_sizes=(1, 16), prompt_lens=(512, 8192), decode_steps=96)


def _chosen(engine: str, **more: Any) -> Any:
    chosen = {"device": "cuda", "eager": False, "engines": 4, "model_args": {"load_format": "dummy"}, "engine_args": {}}
    return SimpleNamespace(engine=engine, **(chosen | more))


def _step(engine: str, **more: Any) -> dict[str, Any]:
    return engine_arguments.of_step(_chosen(engine, **more), LOAD)


def test_sglang_captures_graphs_for_the_sizes_that_it_is_asked_for() -> None:
    arguments = _step("sglang")
    assert arguments["cuda_graph_bs_decode"] == [1, 16]
    assert arguments["cuda_graph_bs_prefill"] == [128, 512, 2048, 8192]
    assert "cuda_graph_bs_decode" not in _step("sglang", eager=True)
    assert [_step("sglang", eager=eager)["disable_cuda_graph"] for eager in (False, True)] == [False, True]


def test_neither_engine_answers_from_a_cache_and_both_have_room_for_the_load() -> None:
    vllm, sglang = _step("vllm"), _step("sglang")
    assert vllm["enable_prefix_caching"] is False
    assert sglang["disable_radix_cache"] is True
    assert min(vllm["max_model_len"], vllm["max_num_batched_tokens"], sglang["context_length"]) >= LOAD.context == 8193
    assert sglang["max_total_tokens"] >= LOAD.context
    assert vllm["load_format"] == sglang["load_format"] == "dummy"


def test_each_engine_of_vllms_asks_for_its_share_of_the_gpu() -> None:
    assert _step("vllm")["gpu_memory_utilization"] == round(0.9 / 8, 3)
    assert engine_arguments.of(_chosen("vllm"), 2, 640, 1)["gpu_memory_utilization"] == 0.45


def test_an_idle_sglang_sleeps_while_the_other_is_asked() -> None:
    for device in ("cpu", "cuda"):
        assert engine_arguments.of(_chosen("sglang", device=device), 2, 640, 1)["sleep_on_idle"] is True


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_the_user_gives_wins(engine: str) -> None:
    given = {"load_format": "auto", "skip_tokenizer_init": False, "max_num_seqs": 7}
    found = _step(engine, engine_args=given)
    assert {name: found[name] for name in given} == given


def test_arguments_become_words_of_each_engines_command_line() -> None:
    arguments = {
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "max_num_seqs": 4,
        "sizes": [1, 2],
        "c": {"a": 1},
    }
    rest = ["--max-num-seqs", "4", "--sizes", "1", "2", "--c", '{"a": 1}']
    assert as_words("vllm", arguments) == ["--enforce-eager", "--no-enable-prefix-caching", *rest]
    assert as_words("sglang", arguments) == ["--enforce-eager", *rest]
    served = serve_command("sglang", "model", "tokenizer", 1, arguments)
    assert served[-len(rest) :] == rest
    assert dict(itertools.pairwise(served))["--served-model-name"] == "bench"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_load_generator_is_asked_for_exact_lengths_and_no_check_of_its_own(engine: str) -> None:
    words = ServeLoad(4, 64, 8, 2).words(engine, 1, "tokenizer", seed=7, warmups=0)
    asked = dict(itertools.pairwise(words))
    assert (asked["--random-input-len"], asked["--random-output-len"], asked["--seed"]) == ("64", "8", "7")
    assert asked["--ready-check-timeout-sec"] == "0"
    exact = {"vllm": ["--ignore-eos"], "sglang": ["--tokenize-prompt", "--random-range-ratio"]}
    assert set(exact[engine]) <= set(words)


def test_questions_go_to_the_chat_endpoint_in_the_order_of_their_file() -> None:
    words = ServeLoad(4, None, 8, 2).words("vllm", 1, "tokenizer", seed=7, warmups=0)
    asked = dict(itertools.pairwise(words))
    assert (asked["--backend"], asked["--endpoint"]) == ("openai-chat", "/v1/chat/completions")
    assert (asked["--dataset-path"], asked["--sharegpt-output-len"]) == (str(CHATS), "8")
    assert {"--disable-shuffle", "--ignore-eos"} <= set(words)
    assert not [word for word in words if word.startswith("--random")]
