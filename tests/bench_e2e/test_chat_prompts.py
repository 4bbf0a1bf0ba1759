from __future__ import annotations

import json
from pathlib import Path

from serving_ops.bench_e2e.chat_prompts import parts, prompts, spread, write_dataset


def test_every_part_of_the_text_has_its_title_and_some_paragraphs() -> None:
    assert [part.splitlines()[0] for part in parts()] == [
        "How a lighthouse keeps its promise",
        "A letter about bread",
        "How to find the middle of a list without counting it",
        "What the river does in winter",
        "Minutes of the garden association, 14 March",
        "Why the average hides the queue",
    ]
    assert min(part.count("\n\n") for part in parts()) > 2


def test_prompts_are_different_and_vary_in_length() -> None:
    words = sorted(len(prompt.split()) for prompt in prompts())
    assert len(set(prompts())) == len(words) == 14
    assert words[0] < 10
    assert words[-1] > 200


def test_some_prompts_are_from_the_shortest_to_the_longest_and_more_repeat_all() -> None:
    by_length = sorted(prompts(), key=len)
    assert spread(1) == by_length[:1]
    assert spread(4) == [by_length[place] for place in (0, 4, 9, 13)]
    assert spread(14) == by_length
    assert spread(16) == by_length + by_length[:2]


def test_the_dataset_has_two_turns_for_each_prompt_as_the_load_generator_asks(tmp_path: Path) -> None:
    conversations = json.loads(write_dataset(tmp_path / "chats.json", 5).read_text())
    assert [entry["conversations"][0]["value"] for entry in conversations] == spread(5)
    assert {len(entry["conversations"]) for entry in conversations} == {2}
