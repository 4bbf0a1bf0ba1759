"""Prompts for a model that can answer: questions of different lengths, some about a text of `accuracy/text.txt`."""

from __future__ import annotations

import json
from pathlib import Path

MOST_TOKENS = 512  # of a prompt, with its chat template
TEXT = Path(__file__).parent / "accuracy" / "text.txt"

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits that are red.",
    "Why is the sky blue? Answer in two sentences.",
    "Write a short poem about the first day of autumn.",
    "What should I pack for a weekend in the mountains? Please answer with a list.",
    "My train leaves at 9:40 and the walk to the station takes 25 minutes. When do I have to leave the house at the "
    "latest, and when would you leave?",
    "Explain to a ten-year-old how a bicycle stays upright while it moves, and why it falls when it stands still.",
    "Write a Python function that returns the longest word of a sentence. If two words have the same length, return "
    "the one that comes first. Explain in one sentence what it does with an empty text.",
)

TASKS = (
    "Summarize the following text in three sentences.",
    "Which advice does the following text give? Answer with a list.",
    "Give the following text a better title, and explain your choice.",
    "Write a letter to a friend in which you tell what you learned from the following text.",
    "Ask three questions that somebody can answer who has read the following text.",
    "Which sentence of the following text is the most important one, and why?",
)


def prompts() -> list[str]:
    """Of 7 to 370 tokens of SmolLM2, in an order that does not change."""
    return [*QUESTIONS, *(f"{task}\n\n{part}" for task, part in zip(TASKS, parts(), strict=True))]


def parts() -> list[str]:
    """The texts of `accuracy/text.txt`, each with its title, which is a line without a full stop before a blank one."""
    paragraphs = TEXT.read_text().strip().split("\n\n")
    found: list[list[str]] = []
    for paragraph in paragraphs:
        if _is_title(paragraph):
            found.append([])
        found[-1].append(paragraph)
    return ["\n\n".join(part) for part in found]


def _is_title(paragraph: str) -> bool:
    return "\n" not in paragraph and paragraph[0].isupper() and paragraph[-1].isalnum()


def write_dataset(file: Path, count: int) -> Path:
    """Write that many prompts, from short to long, as vLLM's load generator reads them, and return the file."""
    file.write_text(json.dumps([{"conversations": [{"value": prompt}, {"value": ""}]} for prompt in spread(count)]))
    return file


def spread(count: int) -> list[str]:
    """That many prompts; if not all, those that lie evenly among all by length. All come again where there are more."""
    by_length = sorted(prompts(), key=len)
    last = len(by_length) - 1
    if count > len(by_length):
        return [by_length[place % len(by_length)] for place in range(count)]
    return [by_length[round(place * last / max(1, count - 1))] for place in range(count)]
