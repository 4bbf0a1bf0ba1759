from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from serving_ops.bench_e2e.engine_arguments import HOST
from serving_ops.bench_e2e.serve import compared
from serving_ops.bench_e2e.server import CHATS, NAME, QUESTION, answer, free_port, is_healthy


@pytest.fixture
def served() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The port of a server that answers the first time, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, **body})
            known = body["model"] == NAME and len(asked) == 1
            answer = {"choices": [{"message": {"content": " Air scatters blue.\n"}}]} if known else {"error": "no such"}
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_answer_is_greedy_and_comes_from_the_chat_endpoint(served: tuple[int, list[dict[str, Any]]]) -> None:
    port, asked = served
    assert answer(port) == "Air scatters blue."
    (request,) = asked
    assert (request["path"], request["temperature"]) == ("/v1/chat/completions", 0)
    assert request["messages"] == [{"role": "user", "content": QUESTION}]


def test_a_server_without_an_answer_is_shown_with_its_words(served: tuple[int, list[dict[str, Any]]]) -> None:
    answer(served[0])
    assert re.match("no answer: 404.*no such", answer(served[0]))
    assert answer(free_port()).startswith("no answer: ConnectionError")


def test_a_server_is_healthy_once_it_says_so(served: tuple[int, list[dict[str, Any]]]) -> None:
    assert is_healthy(served[0])
    assert not is_healthy(free_port())


def test_equal_answers_are_shown_once_and_others_both() -> None:
    same = compared({"native": "It is blue.", "serving_ops": "It is blue."})
    assert same.count("It is blue.") == 1
    assert "native and serving_ops: It is blue." in same
    parted = compared({"native": "It is blue today.", "serving_ops": "It is grey today."})
    assert "native: It is blue today.\nserving_ops: It is grey today." in parted


def test_questions_are_different_and_the_first_four_of_each_length() -> None:
    entries = [entry["conversations"] for entry in json.loads(CHATS.read_text())]
    assert {len(entry) for entry in entries} == {2}  # the load generator leaves out what has no answer
    words = [len(entry[0]["value"].split()) for entry in entries]
    assert len({entry[0]["value"] for entry in entries}) == 14
    assert words[0] == min(words) < 10 < words[1] < 30 < 200 < words[2] < words[3] == max(words)
