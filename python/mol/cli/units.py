"""Bytes, counts and seconds as people read them."""

from __future__ import annotations

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def size(count: int | float) -> str:
    """Bytes in decimal units with three figures: `2.20 GB`, `612 MB`, `48 bytes`."""
    for unit, scale in _UNITS:
        if count >= 0.9995 * scale:
            return f"{_three(count / scale)} {unit}"
    return "1 byte" if count == 1 else f"{count:.0f} bytes"


def seconds(span: float) -> str:
    """A span of time: `7 ms`, `0.84 s`, `12 s`, `3 min 20 s`, `1 h 4 min`."""
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
    """A span of time as a clock shows it, of one width for long: `0:07`, `3:20`, `1:04:10`."""
    whole = round(span)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def amount(count: int, noun: str) -> str:
    """A count with its noun: `1 tensor`, `1,204 tensors`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def parameters(count: int) -> str:
    """A number of parameters: `1.10B`, `125M`, `48,000`."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if count >= 0.9995 * scale:
            return f"{_three(count / scale)}{unit}"
    return f"{count:,}"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
