"""What a user sets in the environment: `VARIABLES` describes each variable, and this file alone says what it may hold.

Only the readers of `SERVING_OPS` raise: the engine plugins stay off where they do. A wrong value of another variable
means its default, and is an error line in the log.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

Mode = Literal["off", "auto", "strict"]
MODES = ("off", "auto", "strict")
OPS = ("fused_add_rms_norm", "qk_norm_rope", "rms_norm", "rms_norm_gated")
CPU_ISAS = ("avx512", "avx2", "neon", "portable")
"""The instruction sets that the C++ library has kernels for, by the names it knows them by."""

NO = dict.fromkeys(("0", "false", "off", "no"), False)
SWITCH = dict.fromkeys(("1", "true", "on", "yes"), True) | NO
"""What each word means."""


@dataclass(frozen=True)
class Variable:
    """An environment variable.

    meaning: for docs/install.md and `doctor`.
    default: what an empty or missing value means, in that page's words.
    read: says what a value means. It gets lower case without surrounding space, never an empty value, and raises
        ValueError, which says what is allowed.
    """

    name: str
    meaning: str
    default: str
    read: Callable[[str], Any]


def _read_choice(value: str) -> list[str]:
    words = [word.strip() for word in value.split(",") if word.strip()]
    if set(words) - {*MODES, *OPS}:
        raise ValueError(f"is not known: allowed are {', '.join(MODES)}, and {', '.join(OPS)}")
    if sum(word in MODES for word in words) > 1:
        raise ValueError(f"names two modes: allowed is one of {', '.join(MODES)}")
    return words


def _read_one_of(words: dict[str, Any]) -> Callable[[str], Any]:
    def read(value: str) -> Any:
        if value not in words:
            raise ValueError(f"is not known: allowed are {', '.join(words)}")
        return words[value]

    return read


CHOICE = Variable(
    "SERVING_OPS",
    "`off`, `auto`, or `strict`: a fallback or failure stops the engine's start-up, with the reason. Names of ops, "
    "alone or after a mode and separated by commas, leave the others to the engine: `rms_norm,fused_add_rms_norm`",
    "off",
    _read_choice,
)
PREWARM = Variable("SERVING_OPS_PREWARM", "`0` turns prewarming at engine start-up off", "1", _read_one_of(SWITCH))
PDL = Variable("SERVING_OPS_PDL", "`0` turns programmatic dependent launch off", "1", _read_one_of(SWITCH))
CPU_ISA = Variable(
    "SERVING_OPS_CPU_ISA",
    "`avx512`, `avx2`, `neon` or `portable`: the instruction set of the CPU kernels",
    "the best that the CPU has",
    _read_one_of({name: name for name in CPU_ISAS}),
)
BUILD = Variable(
    "SERVING_OPS_BUILD",
    "`required`: an install that cannot build the C++ library fails. Read by `pip install` alone",
    "off",
    _read_one_of({"required": True} | NO),
)
VARIABLES = (CHOICE, PREWARM, PDL, CPU_ISA, BUILD)

_logger = logging.getLogger("serving_ops")
_refused: dict[Variable, str] = {}
_said: set[str] = set()


def _read(variable: Variable) -> Any:
    """Say what a variable means, or None where it is empty or not set.

    Raises ValueError for a value that is not allowed.
    """
    given = os.environ.get(variable.name, "")
    value = given.strip().lower()
    try:
        return variable.read(value) if value else None
    except ValueError as error:
        raise ValueError(f"{variable.name}={given!r} {error}") from None


def _read_or_default(variable: Variable) -> Any:
    """Read the same, but log a value that is not allowed, and return None for it."""
    try:
        return _read(variable)
    except ValueError as error:
        _say_once(_line(variable, str(error)))
        return None


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        _logger.error(line)


def _line(variable: Variable, error: str) -> str:
    if variable is CHOICE:
        return f"serving_ops is off: {error}"
    return f"serving_ops: {error}. The default is used: {variable.default}"


def mode() -> Mode:
    """What the engine plugins do, from `SERVING_OPS`: a mode, names of ops, or both, separated by commas.

    `off` (the default): nothing. `auto`: take what gains, stay native where anything is in the way.
    `strict`: the same, but a failure or a fallback stops start-up. Names of ops alone mean `auto`.

    Raises ValueError for any other value.
    """
    words = _read(CHOICE) or []
    return cast(Mode, next((word for word in words if word in MODES), "auto" if words else "off"))


def ops() -> frozenset[str]:
    """The ops that the engine plugins may take: those that `SERVING_OPS` names, or all. Raises as `mode`."""
    return frozenset(word for word in _read(CHOICE) or [] if word in OPS) or frozenset(OPS)


def choice() -> str:
    """Mode and ops, for a person: `auto`, or `auto for rms_norm alone`. Raises as `mode`."""
    chosen = [op for op in OPS if op in ops()]
    return mode() if len(chosen) == len(OPS) else f"{mode()} for {', '.join(chosen)} alone"


def prewarm_enabled() -> bool:
    """Whether engines prewarm the kernels at start-up: yes, unless `SERVING_OPS_PREWARM` says no."""
    return _read_or_default(PREWARM) is not False


def pdl_enabled() -> bool:
    """Whether kernels use programmatic dependent launch where the device has it: `SERVING_OPS_PDL` may say no."""
    return _read_or_default(PDL) is not False


def cpu_isa() -> str | None:
    """The instruction set that `SERVING_OPS_CPU_ISA` asks for, one of `CPU_ISAS`; None for the best there is."""
    return cast("str | None", _read_or_default(CPU_ISA))


def refuse(variable: Variable, reason: str) -> None:
    """Count an allowed value among the errors, because this machine cannot do what it asks for."""
    _refused[variable] = f"{variable.name}={os.environ[variable.name]!r} {reason}"
    _say_once(_line(variable, _refused[variable]))


def wrong() -> dict[Variable, str]:
    """The reason for each variable whose value is not allowed, or that this machine cannot follow."""
    found = dict(_refused)
    for variable in VARIABLES:
        try:
            _read(variable)
        except ValueError as error:
            found[variable] = str(error)
    return found


def errors() -> list[str]:
    """The same as lines of a log, which say what holds instead."""
    return [_line(variable, reason) for variable, reason in wrong().items()]


def unknown() -> list[str]:
    """A line for each variable that starts as ours do and is none of them, with the name that it may have meant."""
    names = [variable.name for variable in VARIABLES]
    strangers = sorted(name for name in os.environ if name.startswith("SERVING_OPS_") and name not in names)
    return [
        f"serving_ops knows no {name}: did you mean {difflib.get_close_matches(name, names, n=1, cutoff=0)[0]}?"
        for name in strangers
    ]


def report(logger: logging.Logger) -> None:
    """Log what is wrong with the variables. The engines' plugins call it at start-up."""
    for line in errors():
        _said.add(line)
        logger.error(line)
    for line in unknown():
        logger.warning(line)
