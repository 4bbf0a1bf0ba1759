"""A run of engines in turns, and its JSON."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.result import BASELINE, OURS, ServedRun, description_in
from serving_ops.bench_e2e.stats import Ratio, Spread, paired_ratio, spread
from serving_ops.bench_e2e.turns.load import Load

SCHEMA = 1
KIND = "turns"
RATIO_METHOD = (
    "geometric mean over pairs of engines of the ratio of their medians over the rounds; "
    "95% interval by Student's t on the pairs' logarithms"
)


@dataclass(frozen=True)
class EngineRun:
    """One engine's life: what the plugin said at its start, and its figures, a dictionary a round."""

    plugin_line: str | None
    rounds: list[dict[str, float]]

    def typical(self, figure: str) -> float:
        """The median: what else the machine does makes a turn longer, never shorter."""
        return statistics.median(entry[figure] for entry in self.rounds)


@dataclass(frozen=True)
class TurnsResult(ServedRun):
    engine_options: dict[str, Any]
    load: Load
    engines: dict[str, list[EngineRun]]  # by variant; engines of the same place are a pair

    def figures(self) -> list[str]:
        return list(self.engines[BASELINE][0].rounds[0])

    def spread(self, variant: str, figure: str) -> Spread:
        return spread([run.typical(figure) for run in self.engines[variant]])

    def ratio(self, figure: str, variant: str = OURS) -> Ratio | None:
        """A variant over native; None if a time is not positive."""
        native, other = ([run.typical(figure) for run in self.engines[name]] for name in (BASELINE, variant))
        return paired_ratio(native, other)

    def to_json(self) -> dict[str, Any]:
        plain = self.described() | {"engine_options": self.engine_options, "load": asdict(self.load)}
        plain["engines"] = {variant: [asdict(run) for run in runs] for variant, runs in self.engines.items()}
        others = [variant for variant in self.engines if variant != BASELINE]
        ratios = {variant: self._ratios(variant) for variant in others}
        return {"schema": SCHEMA, "kind": KIND, **plain, "ratio_method": RATIO_METHOD, "ratios": ratios}

    def _ratios(self, variant: str) -> dict[str, Any]:
        found = {figure: self.ratio(figure, variant) for figure in self.figures()}
        return {figure: asdict(ratio) for figure, ratio in found.items() if ratio}


def load_result(path: Path) -> TurnsResult:
    """Read what `to_json` wrote. Raises ValueError, with the path, for anything else."""
    try:
        plain = json.loads(path.read_text())
        if (plain["kind"], plain["schema"]) != (KIND, SCHEMA):
            raise ValueError(f"{plain['kind']} of schema {plain['schema']}; this version reads {KIND} of {SCHEMA}")
        load = {name: tuple(value) if isinstance(value, list) else value for name, value in plain["load"].items()}
        engines = {variant: [EngineRun(**run) for run in runs] for variant, runs in plain["engines"].items()}
        own = {"engine_options": plain["engine_options"], "load": Load(**load), "engines": engines}
        return TurnsResult(**description_in(plain), **own)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result of serving_ops.bench_e2e --turns: {error!r}") from error
