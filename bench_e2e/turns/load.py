"""What an engine is asked in one turn, and the names of the figures that come of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """TPOT for each batch size, with the device time of a decode step on CUDA; TTFT of one prompt of each length."""

    batch_sizes: tuple[int, ...]  # requests decoding together
    prompt_lens: tuple[int, ...]  # tokens
    decode_steps: int  # over which a TPOT is taken
    decode_prompt_len: int = 128  # tokens; the same for every batch size

    @property
    def context(self) -> int:
        """Tokens that the longest request needs."""
        return 1 + max(*self.prompt_lens, self.decode_prompt_len + self.decode_steps)


def tpot(batch_size: int) -> str:
    return f"tpot_ms_batch_{batch_size}"


def device_step(batch_size: int) -> str:
    return f"decode_step_device_ms_batch_{batch_size}"


def ttft(prompt_len: int) -> str:
    return f"ttft_ms_prompt_{prompt_len}"


def labels(load: Load) -> dict[str, str]:
    """Name of each figure in JSON -> what a person reads, in the order of the table."""
    decode = [
        (name(size), f"{label}, batch {size}")
        for size in load.batch_sizes
        for name, label in ((tpot, "TPOT"), (device_step, "device time of a decode step"))
    ]
    return dict([*decode, *((ttft(length), f"TTFT, {length} tokens") for length in load.prompt_lens)])
