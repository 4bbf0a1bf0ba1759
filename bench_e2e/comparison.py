"""Variants of one model, measured in pairs: the result of `serve`, `step` and `training-steps`, and its tables."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from serving_ops.bench_e2e.result_file import circumstances, read, shown_command
from serving_ops.bench_e2e.stats import Ratio, paired_ratio, spread
from serving_ops.bench_e2e.table import Rows, render

VARIANTS = BASELINE, OURS = "native", "serving_ops"
_VARIABLES = ("VLLM_BATCH_INVARIANT=1", "VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER=0")
SETTINGS = {**{variable: variable for variable in _VARIABLES}, "enable_deterministic_inference": "deterministic"}
"""Settings of engines, as a command has them and as a title: they change what every figure is compared with."""
OWN, DERIVED = ("labels", "pairs", "plugin_lines"), ("plugin_active", "ratios")  # of a result, beside its run
INACTIVE = "serving_ops was not active: this compares native with itself"

# "serving_ops 0.1.0 (auto, cpu): on for 13 of 13 RMSNorm; ...", behind the prefix of the engine's logger. Where
# SERVING_OPS names ops, "auto for rms_norm, rms_norm_gated alone" stands in the place of "auto".
STARTUP = re.compile(r"\bserving_ops \S+ \([^)]+\): on for .*")
NOTHING_ON = ": on for no layer"
OFF = "serving_ops is off: "
IN_VLLMS_PASS = "our kernels run"
"""Said where no layer is ours, and vLLM's fusion pass calls our kernels all the same."""
STEADY = re.compile(r"decode_step_device_ms_batch_\d+|ttft_ms_prompt_8192")
"""On CUDA a summary shows these figures alone. In the others is the host's time, which scatters."""


@dataclass(frozen=True)
class Comparison:
    """run: as `result_file.of_run`, with `engine`, `model`, `mode`, and `method`: how the figures came about.

    labels: each figure's name in JSON -> what a reader sees, in the table's order.
    pairs: variant -> its figures in each pair; what has the same place belongs together.
    plugin_lines: variant -> what the plugin said at the start of each process.
    """

    run: dict[str, Any]
    labels: dict[str, str]
    pairs: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {name: [] for name in VARIANTS})
    plugin_lines: dict[str, list[str | None]] = field(default_factory=lambda: {name: [] for name in VARIANTS})

    @property
    def figures(self) -> dict[str, str]:
        """Labels of those that were measured."""
        measured = next(iter(self.pairs.values()))[0]
        return {figure: label for figure, label in self.labels.items() if figure in measured}

    def values(self, variant: str, figure: str) -> list[float]:
        return [entry[figure] for entry in self.pairs[variant]]

    def ratio(self, figure: str, variant: str = OURS) -> Ratio | None:
        """A variant over native; None if a time is not positive."""
        return paired_ratio(self.values(BASELINE, figure), self.values(variant, figure))

    @property
    def active(self) -> bool:
        """Whether the plugin was on in every process that was to have it."""
        return all(map(is_active, self.plugin_lines.get(OURS, [])))

    @property
    def mode(self) -> str:
        """With the settings that change what every figure is compared with."""
        words = self.run["command"]
        return ", ".join([self.run["mode"], *(f"`{shown}`" for given, shown in SETTINGS.items() if given in words)])

    @property
    def title(self) -> str:
        return f"{self.run['model']}, {self.mode}"

    def to_json(self) -> dict[str, Any]:
        ratios = {figure: asdict(ratio) for figure in self.figures if (ratio := self.ratio(figure))}
        own = {name: getattr(self, name) for name in OWN}
        return {**self.run, "plugin_active": self.active, "ratios": {OURS: ratios}, **own}

    def markdown(self) -> str:
        """A line a figure. Older results have variants that are shown by their ratio alone."""
        compared = [variant for variant in self.pairs if variant != BASELINE]
        ratios = [f"{variant} / {BASELINE}{', 95% interval' if variant == OURS else ''}" for variant in compared]
        lines = []
        for figure, label in self.figures.items():
            spreads = [spread(self.values(variant, figure)) for variant in VARIANTS]
            lines.append([label, *spreads, *(str(self.ratio(figure, variant) or "none") for variant in compared)])
        table = render([["ms", *VARIANTS, *ratios], *lines])
        head = f"**{self.title}**: {circumstances(self.run)}{'' if self.active else f'. **{INACTIVE}.**'}"
        return f"{head}\n\n{table}\n\n{self.run['method']}. `{shown_command(self.run)}`"

    def show(self, console: Console) -> None:
        console.print(Markdown(self.markdown()))
        for line in dict.fromkeys([] if self.active else self.plugin_lines[OURS]):
            console.print(f"serving_ops says: {line or 'nothing'}", markup=False, soft_wrap=True)


def of(plain: dict[str, Any]) -> Comparison:
    """From what `read` gave. Raises KeyError for a result of another kind."""
    run = {name: value for name, value in plain.items() if name not in (*OWN, *DERIVED)}
    return Comparison(run, *(plain[name] for name in OWN))


def load(path: Path) -> Comparison:
    """Raises ValueError, with the path, for a file that is no comparison."""
    try:
        return of(read(path))
    except KeyError as error:
        raise ValueError(f"{path} compares no variants: it has no {error}") from error


def markdown(plain: dict[str, Any]) -> str:
    return of(plain).markdown()


def compared(a: dict[str, Any], b: dict[str, Any]) -> Rows:
    """A line a figure: what changed on the machine between the runs is in B / A."""
    first, second = of(a), of(b)
    lines = []
    for figure in (figure for figure in first.figures if figure in second.figures):
        ours, native = ([run.values(variant, figure) for run in (first, second)] for variant in (OURS, BASELINE))
        changes = [f"{median(after) / median(before):.3f}" for before, after in (ours, native)]
        ratios = [str(run.ratio(figure) or "none") for run in (first, second)]
        lines.append([first.figures[figure], *map(spread, ours), *changes, *ratios])
    ratios = [f"{OURS} / {BASELINE} {name}" for name in "AB"]
    return [["ms", f"{OURS} A", f"{OURS} B", "B / A", f"{BASELINE} B / A", *ratios], *lines]


def summary(plains: Sequence[dict[str, Any]]) -> str:
    """A line a result, a column a figure: serving_ops over native. Of several engines each line has its name."""
    results = [of(plain) for plain in plains]
    columns = {figure: label for result in results for figure, label in result.figures.items()}
    columns = {figure: label for figure, label in columns.items() if STEADY.fullmatch(figure)} or columns
    several = len({result.run["engine"] for result in results}) > 1
    rows: Rows = [[f"{OURS} / {BASELINE}", *columns.values()]]
    for result in results:
        ratios = [str(result.ratio(figure) or "none") if figure in result.figures else "" for figure in columns]
        rows.append([f"{result.run['engine']}, {result.title}" if several else result.title, *ratios])
    return render(rows)


def startup_line(log: Iterable[str]) -> str | None:
    """The plugin's own words at start-up. None if it said nothing, or if a worker said that it is off.

    Of several workers, one on which nothing is on speaks for all.
    """
    lines = list(log)
    found = [match.group(0) for line in lines if (match := STARTUP.search(line))]
    if not found or any(OFF in line for line in lines):
        return None
    return next((line for line in found if not is_active(line)), found[-1])


def is_active(line: str | None) -> bool:
    return line is not None and (NOTHING_ON not in line or IN_VLLMS_PASS in line)
