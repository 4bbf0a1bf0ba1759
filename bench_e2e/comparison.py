"""Variants of one model, measured in pairs: the result of `serve`, `step` and `training-steps`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.plugin_log import is_active
from serving_ops.bench_e2e.result_file import machine, read
from serving_ops.bench_e2e.stats import LEAST_PAIRS, Ratio, Spread, paired_ratio, spread

BASELINE, OURS = "native", "serving_ops"
OWN = ("labels", "pairs", "plugin_lines")


@dataclass(frozen=True)
class Comparison:
    """run: as `result_file.of_run`, with `engine`, `model`, `mode`, and `method`: how the figures came about.

    labels: each figure's name in JSON -> what a reader sees, in the table's order.
    pairs: variant -> its figures in each pair; what has the same place belongs together.
    plugin_lines: variant -> what the plugin said at the start of each process.
    """

    run: dict[str, Any]
    labels: dict[str, str]
    pairs: dict[str, list[dict[str, float]]]
    plugin_lines: dict[str, list[str | None]]

    @property
    def figures(self) -> dict[str, str]:
        """Labels of those that were measured."""
        measured = next(iter(self.pairs.values()))[0]
        return {figure: label for figure, label in self.labels.items() if figure in measured}

    def values(self, variant: str, figure: str) -> list[float]:
        return [entry[figure] for entry in self.pairs[variant]]

    def spread(self, variant: str, figure: str) -> Spread:
        return spread(self.values(variant, figure))

    def ratio(self, figure: str, variant: str = OURS) -> Ratio | None:
        """A variant over native; None if one of them is missing, or a time is not positive."""
        if not {BASELINE, variant} <= self.pairs.keys():
            return None
        least = self.run.get("least_pairs", LEAST_PAIRS)  # older runs were compared with fewer
        return paired_ratio(self.values(BASELINE, figure), self.values(variant, figure), least)

    @property
    def active(self) -> bool:
        """Whether the plugin was on in every process that was to have it."""
        return all(map(is_active, self.plugin_lines.get(OURS, [])))

    @property
    def title(self) -> str:
        return f"{self.run['model']}, {self.run['mode']}"

    @property
    def circumstances(self) -> str:
        """Versions, machine and day, for a heading."""
        engine, versions = self.run["engine"], self.run["versions"]
        named = f"{engine} {versions[engine]}, torch {versions['torch']}"
        return f"{named}, {machine(self.run)}, {self.run['date'][:10]}"

    def to_json(self) -> dict[str, Any]:
        ratios = {
            variant: {figure: asdict(ratio) for figure in self.figures if (ratio := self.ratio(figure, variant))}
            for variant in self.pairs
            if variant != BASELINE
        }
        own = {name: getattr(self, name) for name in OWN}
        return {**self.run, "plugin_active": self.active, "ratios": ratios, **own}


def of(plain: dict[str, Any]) -> Comparison:
    """From what `read` gave. Raises KeyError for a result of another kind."""
    return Comparison(
        {key: value for key, value in plain.items() if key not in (*OWN, "plugin_active", "ratios")},
        *(plain[name] for name in OWN),
    )


def load(path: Path) -> Comparison:
    """Raises ValueError, with the path, for a file that is no comparison."""
    try:
        return of(read(path))
    except KeyError as error:
        raise ValueError(f"{path} compares no variants: it has no {error}") from error
