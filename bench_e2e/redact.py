"""Leaves secrets out of what is recorded: result files are committed, and read by others.

A secret is known by the name of its variable or option, or by its shape.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

REDACTED = "REDACTED"

# A whole word of API_KEY, api-key or apiKey, and not the start of TOKENIZER, tokens or keyfile.
_SECRET_WORD = re.compile(
    r"(?i:keys?|token|secrets?|password|passwd|passphrase|pwd|credentials?|auth|authorization|bearer|cookie)"
    r"(?![a-z])(?!(?<=[A-Z])[A-Z])"
)
_NUMBER = re.compile(r"-?\d{1,6}")
_SHAPES = (
    re.compile(r"(?<![\w-])(sk-|gsk_|hf_|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|nvapi-)(?=[\w-]*\d)[\w-]{16,}"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}"),  # a JSON web token
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    re.compile(r"\bBearer\s+\S", re.IGNORECASE),
    re.compile(r"://[^/\s:@]*:[^/\s@]+@"),  # user:password@host
)
_RANDOM = re.compile(r"[0-9a-fA-F]{32,}|(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[A-Za-z0-9+=_]{32,}")


def value_of(name: str, value: str) -> str:
    """What to record for a variable or an option. Of JSON and of quoted words, only the secrets are replaced."""
    if _names_a_secret(name, value):
        return REDACTED
    return value if "revision" in name.lower() else _inside(value)  # a revision is random, and public


def words(command: Sequence[str]) -> list[str]:
    """A command line without its secrets. Every value after an option that names a secret is one."""
    found, option = [], ""
    for word in command:
        is_option = word.startswith("-") and not re.search(r"\s", word)
        name, equals, value = word.partition("=")
        if not is_option and _names_a_secret(option, word):
            found.append(REDACTED)
        elif equals and re.fullmatch(r"[\w.-]+", name):
            found.append(f"{name}={value_of(name, value)}")
        else:
            found.append(word if is_option else value_of(option, word))
        option = name if is_option else option
    return found


def plain(value: Any, name: str = "") -> Any:
    """The same for a value that JSON can hold."""
    if value is None or isinstance(value, bool):
        return value
    if _names_a_secret(name, str(value)):
        return REDACTED
    if isinstance(value, dict):
        return {key: plain(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value_of(name, value) if isinstance(value, str) else value


def _names_a_secret(name: str, value: str) -> bool:
    """A number behind "token" is a setting such as `long_prefill_token_threshold`."""
    found = list(_SECRET_WORD.finditer(name))
    if _NUMBER.fullmatch(value):
        found = [word for word in found if word[0].lower() != "token" or word.end() == len(name)]
    return bool(found)


def _inside(text: str) -> str:
    redacted = _without_secrets(text)
    return REDACTED if _looks_secret(redacted) else redacted


def _without_secrets(text: str) -> str:
    """JSON, or words of a command line, without those that are secrets."""
    if text[:1] in ("{", "[") and (held := _json(text)) is not None:
        kept: Any = plain(held)
        return text if kept == held else json.dumps(kept)
    if not (text.startswith("-") or re.search(r"\s", text)):
        return text
    try:
        inner = shlex.split(text)
    except ValueError:
        return text
    kept = words(inner)
    return text if kept == inner else shlex.join(kept)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _looks_secret(text: str) -> bool:
    return _RANDOM.fullmatch(text) is not None or any(shape.search(text) for shape in _SHAPES)
