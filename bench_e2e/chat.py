"""Questions for a model that can answer, and an answer of each server, which shows that both say the same."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path

from serving_ops.bench_e2e.server import Address, fetch

QUESTION = "Why is the sky blue? Answer in two sentences."
TOKENS, SECONDS = 60, 120.0  # of an answer
MOST_TOKENS = 512  # of a prompt, with its chat template
TEXT = Path(__file__).parent / "accuracy" / "text.txt"

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits that are red.",
    QUESTION,
    "Write a short poem about the first day of autumn.",
    "What should I pack for a weekend in the mountains? Please answer with a list.",
    "My train leaves at 9:40 and the walk to the station takes 25 minutes. When do I have to leave the house at the "
    "latest, and when would you leave?",
    "Explain to a ten-year-old how a bicycle stays upright while it moves, and why it falls when it stands still.",
    "Write a Python function that returns the longest word of a sentence. If two words have the same length, return "
    "the one that comes first. Explain in one sentence what it does with an empty text.",
)
TASKS = (  # each about one of the parts of TEXT
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
    found: list[list[str]] = []
    for paragraph in TEXT.read_text().strip().split("\n\n"):
        if "\n" not in paragraph and paragraph[0].isupper() and paragraph[-1].isalnum():
            found.append([])
        found[-1].append(paragraph)
    return ["\n\n".join(part) for part in found]


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


def ask(address: Address, question: str = QUESTION) -> str:
    """The greedy answer. Raises OSError or http.client.HTTPException, or ValueError for an answer that is none."""
    asked = {"model": address.name, "messages": [{"role": "user", "content": question}]}
    asked |= {"max_tokens": TOKENS, "temperature": 0}
    try:
        found = fetch(address, "/v1/chat/completions", SECONDS, asked)
        return str(found["choices"][0]["message"]["content"]).strip()
    except urllib.error.HTTPError as error:
        raise ValueError(f"the chat endpoint answers {error.code}: {error.read()[:200]!r}") from error


def shown(answers: dict[str, str]) -> str:
    """The question and its answers by variant: one where they are equal, else all, with where they part."""
    lines = [f"> {QUESTION}"]
    if len(set(answers.values())) == 1:
        return "\n".join([*lines, next(iter(answers.values())), f"(the same from {' and '.join(answers)})"])
    words = [answer.split() for answer in answers.values()]
    equal = next((n for n, pair in enumerate(zip(*words, strict=False)) if len(set(pair)) > 1), min(map(len, words)))
    lines += [f"{variant}: {answer}" for variant, answer in answers.items()]
    return "\n".join([*lines, f"(equal for {equal} words; a near tie between two tokens falls differently)"])
