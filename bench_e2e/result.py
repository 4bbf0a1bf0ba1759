"""One experiment's result, and its JSON. The times carry the names that `vllm bench serve` gives them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.environment import Hardware
from serving_ops.bench_e2e.load import METRICS, Load
from serving_ops.bench_e2e.stats import RATIO_METHOD, Ratio, Spread, paired_ratio, spread

SCHEMA = 1
BASELINE, OURS = "native", "serving_ops"


@dataclass(frozen=True)
class Round:
    """One server's life: started, warmed up, measured, stopped."""

    number: int  # from 1; rounds of the same number belong together
    place: int  # which server of its round this was, from 1
    seed: int
    server_start_s: float
    plugin_active: bool
    plugin_line: str | None  # what the plugin said at start-up
    times_ms: dict[str, float]  # METRICS


@dataclass(frozen=True)
class ServedRun:
    """What the results of served models say of their run, of servers and of engines in turns."""

    name: str
    date: str  # ISO 8601, UTC
    command: str
    engine: str
    model: str
    device: str
    eager: bool
    versions: dict[str, str]
    hardware: Hardware

    @property
    def mode(self) -> str:
        return "eager" if self.eager else "compiled"

    @property
    def machine(self) -> str:
        return self.hardware.gpu or f"{self.hardware.cpu}, {self.hardware.cores} cores"

    @property
    def circumstances(self) -> str:
        """Versions, machine and day, for a heading."""
        versions = f"{self.engine} {self.versions[self.engine]}, torch {self.versions['torch']}"
        return f"{versions}, {self.machine}, {self.date[:10]}"

    def described(self) -> dict[str, Any]:
        """These fields as JSON has them."""
        plain = {field.name: getattr(self, field.name) for field in fields(ServedRun)}
        return plain | {"hardware": asdict(self.hardware)}


def description_in(plain: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ServedRun` from what `described` gave. Raises KeyError and TypeError for anything else."""
    kept = {field.name: plain[field.name] for field in fields(ServedRun)}
    return kept | {"hardware": Hardware(**kept["hardware"])}


@dataclass(frozen=True)
class Result(ServedRun):
    serve_command: str
    load: Load
    rounds: dict[str, list[Round]]  # by variant

    def times(self, variant: str, metric: str) -> list[float]:
        """`metric` of each round, in ms."""
        return [entry.times_ms[metric] for entry in self.rounds[variant]]

    def spread(self, variant: str, metric: str) -> Spread:
        return spread(self.times(variant, metric))

    @property
    def compared(self) -> bool:
        """Whether both were measured."""
        return {BASELINE, OURS} <= set(self.rounds)

    def ratio(self, metric: str) -> Ratio | None:
        """serving_ops over native; None if only one of them was measured, or a time is not positive."""
        if not self.compared:
            return None
        return paired_ratio(self.times(BASELINE, metric), self.times(OURS, metric))

    def active(self) -> bool:
        """Whether the plugin was on in every round of the variant that is to have it."""
        return all(entry.plugin_active for entry in self.rounds.get(OURS, []))

    @property
    def rounds_each(self) -> int:
        return len(next(iter(self.rounds.values())))

    def to_json(self) -> dict[str, Any]:
        plain = self.described() | {"serve_command": self.serve_command, "load": asdict(self.load)}
        ratios = {metric: self.ratio(metric) for metric in METRICS}
        summary = {
            "plugin_active": self.active(),
            "ratio_method": RATIO_METHOD,
            "ratios": {metric: asdict(ratio) for metric, ratio in ratios.items() if ratio},
            "variants": {variant: self._variant(variant) for variant in self.rounds},
        }
        return {"schema": SCHEMA, **plain, **summary}

    def _variant(self, variant: str) -> dict[str, Any]:
        medians = {metric: self.spread(variant, metric).median for metric in METRICS}
        rounds = [asdict(entry) for entry in self.rounds[variant]]
        return {**medians, "rounds": [_flatten(entry) for entry in rounds]}


def load_result(path: Path) -> Result:
    """Read what `to_json` wrote. Raises ValueError, with the path, for anything else."""
    try:
        plain = json.loads(path.read_text())
        if plain["schema"] != SCHEMA:
            raise ValueError(f"schema {plain['schema']}, this version reads {SCHEMA}")
        variants = {
            name: [_unflatten(entry) for entry in variant["rounds"]] for name, variant in plain["variants"].items()
        }
        own = {"serve_command": plain["serve_command"], "load": Load(**plain["load"]), "rounds": variants}
        return Result(**description_in(plain), **own)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result of serving_ops.bench_e2e: {error!r}") from error


def _flatten(entry: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in entry.items() if key != "times_ms"}, **entry["times_ms"]}


def _unflatten(entry: dict[str, Any]) -> Round:
    times = {metric: entry[metric] for metric in METRICS}
    return Round(**{key: value for key, value in entry.items() if key not in METRICS}, times_ms=times)
