"""Execution ids: UUID version 7 (RFC 9562, 5.7), so that they sort by the millisecond they were made in."""

from __future__ import annotations

import os
import time


def mint_exec_id() -> str:
    """Return a new id: 48 bits of Unix time in milliseconds, 74 random bits, version and variant."""
    random = int.from_bytes(os.urandom(10))
    low = (random & 0x3FFF_FFFF_FFFF_FFFF) | 0x8000_0000_0000_0000
    value = ((time.time_ns() // 1_000_000) << 80) | (0x7000 | (random >> 62 & 0xFFF)) << 64 | low
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
