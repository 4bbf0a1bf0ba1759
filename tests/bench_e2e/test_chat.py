from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving_ops.bench_e2e.chat import QUESTION, ask, parts, prompts, shown, spread, write_dataset
from serving_ops.bench_e2e.server import HOST, Address


@pytest.fixture
def served() -> Iterator[tuple[Address, list[dict[str, Any]]]]:
    """A server that answers a model named `one`, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, **body})
            known = body["model"] == "one"
            answer = {"choices": [{"message": {"content": " Air scatters blue.\n"}}]} if known else {"error": "no such"}
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Address(server.server_address[1], "one"), asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_answer_is_greedy_and_comes_from_the_chat_endpoint(served: tuple[Address, list[dict[str, Any]]]) -> None:
    address, asked = served
    assert ask(address) == "Air scatters blue."
    (request,) = asked
    assert (request["path"], request["temperature"]) == ("/v1/chat/completions", 0)
    assert request["messages"] == [{"role": "user", "content": QUESTION}]


def test_a_server_without_an_answer_is_an_error_with_its_words(served: tuple[Address, list[dict[str, Any]]]) -> None:
    with pytest.raises(ValueError, match=r"404.*no such"):
        ask(Address(served[0].port, "another"))


def test_equal_answers_are_shown_once_and_others_with_where_they_part() -> None:
    same = shown({"native": "It is blue.", "serving_ops": "It is blue."})
    assert same.count("It is blue.") == 1
    assert "the same from native and serving_ops" in same
    parted = shown({"native": "It is blue today.", "serving_ops": "It is grey today."})
    assert "native: It is blue today." in parted
    assert "serving_ops: It is grey today." in parted
    assert "equal for 2 words" in parted


def test_an_answer_that_goes_on_where_the_other_ends_parts_there() -> None:
    assert "equal for 2 words" in shown({"native": "It is", "serving_ops": "It is blue."})


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
