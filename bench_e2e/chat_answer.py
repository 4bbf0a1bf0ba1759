"""One answer of a served model, so that a reader sees that it says the same with and without serving_ops."""

from __future__ import annotations

import http.client
import json
from typing import Any

from serving_ops.bench_e2e.server import HOST, Address

QUESTION = "Why is the sky blue? Answer in two sentences."
TOKENS = 60
SECONDS = 120.0


def ask(address: Address, question: str = QUESTION) -> str:
    """The greedy answer. Raises OSError or http.client.HTTPException where the server gives none."""
    asked = {
        "model": address.name,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    connection = http.client.HTTPConnection(HOST, int(address.port), timeout=SECONDS)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"the chat endpoint answers {response.status}: {body[:200]!r}")
        found: dict[str, Any] = json.loads(body)
        return str(found["choices"][0]["message"]["content"]).strip()
    finally:
        connection.close()


def shown(answers: dict[str, str]) -> str:
    """The question and its answers by variant: one where they are equal, else all, with where they part."""
    lines = [f"> {QUESTION}"]
    if len(set(answers.values())) == 1:
        return "\n".join([*lines, next(iter(answers.values())), f"(the same from {' and '.join(answers)})"])
    words = [answer.split() for answer in answers.values()]
    equal = next((n for n, pair in enumerate(zip(*words, strict=False)) if len(set(pair)) > 1), min(map(len, words)))
    lines += [f"{variant}: {answer}" for variant, answer in answers.items()]
    return "\n".join([*lines, f"(equal for {equal} words; a near tie between two tokens falls differently)"])
