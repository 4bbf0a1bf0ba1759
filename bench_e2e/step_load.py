"""What an engine is asked in one turn of `step`, the figures that come of it, and how they are compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RATIO_METHOD = (
    "geometric mean over pairs of engines of the ratio of their medians over the rounds; "
    "95% interval by Student's t on the pairs' logarithms"
)

LAYER = "layer"
"""What an engine is asked for instead of figures: the kernels of one layer."""


@dataclass(frozen=True)
class StepLoad:
    """TPOT for each batch size, with the device time of a decode step on CUDA; TTFT of one prompt of each length."""

    batch_sizes: Sequence[int]  # requests decoding together
    prompt_lens: Sequence[int]  # tokens
    decode_steps: int  # over which a TPOT is taken
    decode_prompt_len: int = 128  # tokens; the same for every batch size

    @property
    def context(self) -> int:
        """Tokens that the longest request needs."""
        return 1 + max(*self.prompt_lens, self.decode_prompt_len + self.decode_steps)

    @property
    def labels(self) -> dict[str, str]:
        """Name of each figure in JSON -> what a person reads, in the order of the table."""
        decode = [
            (name(size), f"{label}, batch {size}")
            for size in self.batch_sizes
            for name, label in ((tpot, "TPOT"), (device_step, "device time of a decode step"))
        ]
        return dict([*decode, *((ttft(length), f"TTFT, {length} tokens") for length in self.prompt_lens)])

    def method(self, engines: int, rounds: int) -> str:
        of_each = f"{engines} engine{'s' if engines > 1 else ''} of each variant"
        turns = f"{rounds} round{'s' if rounds > 1 else ''}"
        return (
            f"{of_each}, alive at once, in turns over {turns}: median over engines of their medians over rounds "
            f"[lowest-highest]. TPOT over {self.decode_steps} steps behind a prompt of {self.decode_prompt_len} "
            f"tokens. Ratio: {RATIO_METHOD}."
        )


def tpot(batch_size: int) -> str:
    return f"tpot_ms_batch_{batch_size}"


def device_step(batch_size: int) -> str:
    return f"decode_step_device_ms_batch_{batch_size}"


def ttft(prompt_len: int) -> str:
    return f"ttft_ms_prompt_{prompt_len}"


def typical(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure: what else the machine does makes a turn longer, never shorter."""
    return {figure: statistics.median(entry[figure] for entry in rounds) for figure in rounds[0]}
