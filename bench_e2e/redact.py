"""Leaves secrets out of what is recorded: result files are committed, and read by others.

A secret is known by the name of its variable, option or field, or by its shape.
"""

from __future__ import annotations

import json
import re
from typing import Any

REDACTED = "REDACTED"

# A whole word of API_KEY, api-key or apiKey, and not the start of TOKENIZER, tokens or keyfile.
_WORD = (
    r"(?i:keys?|token|secrets?|password|passwd|passphrase|pwd|credentials?|auth|authorization|bearer|cookie)"
    r"(?![a-z])(?!(?<=[A-Z])[A-Z])"
)
_NAME = rf"[\w.-]*{_WORD}[\w.-]*"
_VALUE = r"""(?:"[^"]*"|'[^']*'|\{[^{}]*\}|\[[^\[\]]*\]|[^\s"',}\]]+)"""
_NAMED = (
    re.compile(rf"(?P<name>(?<![\w-])-{_NAME})(?P<between> +)(?P<value>(?!-){_VALUE}(?: (?!-){_VALUE})*)"),
    re.compile(rf"(?P<name>{_NAME}\"?)(?P<between>\s*[:=]\s*)(?P<value>{_VALUE})"),
)
_SHAPES = (
    r"(?<![\w-])(?:sk-|gsk_|hf_|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|nvapi-)(?=[\w-]*\d)[\w-]{16,}",
    r"\bAKIA[0-9A-Z]{16}\b",
    r"\beyJ[\w-]{8,}\.[\w.-]{8,}",  # a JSON web token
    r"-----BEGIN [A-Z ]*PRIVATE KEY[^\"']*",
    r"(?i)\bBearer\s+[^\s\"']+",
    r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)",  # user:password@host
    r"(?<!revision[ =])(?<![\w/.-])[0-9a-fA-F]{32,}(?![\w/.-])",  # a revision is random, and public
    r"(?<![\w/.-])(?=\S*[a-z])(?=\S*[A-Z])(?=\S*\d)[A-Za-z0-9+=_]{32,}(?![\w/.-])",
)


def text(recorded: str) -> str:
    """A command line, or JSON, without its secrets."""
    for shape in _SHAPES:
        recorded = re.sub(shape, REDACTED, recorded)
    for named in _NAMED:
        recorded = named.sub(_without_value, recorded)
    return recorded


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """The same for what JSON can hold."""
    return dict(json.loads(text(json.dumps(options))))


def _without_value(found: re.Match[str]) -> str:
    """A number behind a word such as "token" is a setting: `long_prefill_token_threshold`."""
    is_last_word = re.search(rf"{_WORD}\"?$", found["name"])
    if found["value"] in ("null", "true", "false") or (re.fullmatch(r"-?\d{1,6}", found["value"]) and not is_last_word):
        return found[0]
    quoted = found["name"].endswith('"') and ":" in found["between"]
    return found["name"] + found["between"] + (f'"{REDACTED}"' if quoted else REDACTED)
