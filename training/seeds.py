"""One seed for each use of random numbers, so that none of them shifts another's."""

from __future__ import annotations

import hashlib

PURPOSES = ("data_order", "lora_init", "dropout")


def derived_seeds(seed: int) -> dict[str, int]:
    """A seed of 63 bits for each purpose, derived from the job's seed by SHA-256."""
    seeds = {}
    for purpose in PURPOSES:
        digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
        seeds[purpose] = int.from_bytes(digest[:8], "big") >> 1
    return seeds
