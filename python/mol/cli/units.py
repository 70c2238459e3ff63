"""Bytes, counts and seconds as people read them."""

from __future__ import annotations

from mol.text import write_count
from mol.text import write_size as size

__all__ = ["amount", "clock", "parameters", "seconds", "size"]


def seconds(span: float) -> str:
    """Format a span of time: `7 ms`, `0.84 s`, `12 s`, `3 min 20 s`, `1 h 4 min`."""
    if span < 0.0995:
        return f"{max(span, 0.001) * 1000:.0f} ms"
    if span < 9.95:
        return f"{span:.2f} s" if span < 1 else f"{span:.1f} s"
    whole = round(span)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock(span: float) -> str:
    """Format a span of time as a clock shows it: `0:07`, `3:20`, `1:04:10`."""
    whole = round(span)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def amount(count: int, noun: str) -> str:
    """Format a count with its noun: `1 tensor`, `1,204 tensors`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def parameters(count: int) -> str:
    """Format a number of parameters: `1.10B`, `125M`, `48,000`."""
    return write_count(count) if count >= 999_500 else f"{count:,}"
