"""What is asked of a server, and the figures that come of it."""

from __future__ import annotations

from dataclasses import dataclass

METRICS = tuple(f"{figure}_{metric}_ms" for metric in ("ttft", "tpot") for figure in ("mean", "median", "p90", "p99"))


@dataclass(frozen=True)
class Load:
    """What is asked of the server. Lengths are exact: random prompts, greedy, and no early end."""

    num_prompts: int
    input_len: int  # tokens
    output_len: int  # tokens
    concurrency: int  # requests in flight
    num_warmups: int  # requests before the measured ones
