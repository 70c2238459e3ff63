"""The README.md of a saved fusion or mixture: its models with their licenses, its layers, how it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mol.io.model_card import CardSource, code, front_matter, inline, joined, license_line, source_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OF_MODELS: Final = {
    "runtime": "It holds what was trained, adapters and routers; its models are fetched by name when it is loaded, and "
    "checked by the digests in `config.json`.",
    "bundle": "It holds what was trained, adapters and routers, and in `models/` copies of all that is used of its "
    "models.",
}


def fusion_card(
    *,
    title: str,
    kind: str,
    sources: Sequence[CardSource],
    layers: Sequence[tuple[int, Sequence[str]]],
    settings: Mapping[str, object],
    load: str,
    version: str,
    sections: Mapping[str, Sequence[str]],
) -> str:
    """Write the card; the same arguments give the same text.

    Args:
        title: what it is, "Fusion" or "Mixture".
        kind: "runtime" or "bundle".
        sources: its models, the host first.
        layers: position in the host, and the experts there.
        settings: that differ from the defaults.
        load: the expression that loads it, where `DIR` is its directory.
        version: mol's version.
        sections: title -> lines to list; empty ones are left out.
    """
    names = joined([inline(source.name) for source in sources])
    parts = [
        front_matter(sources, "mol-merge", ["mol", title.lower()]),
        f"# {title} of {names}",
        f"This {title.lower()} was saved by mol {version}. {_OF_MODELS[kind]}",
        "## Models",
        "\n".join(source_line(source) for source in sources),
        license_line(sources),
        "## How to load it",
        f"```bash\npip install 'mol-merge[fusion]'\n```\n\n```python\nimport mol\n\nmodel = {load}\n```",
    ]
    if layers:
        rows = [f"| {position} | {', '.join(map(code, experts))} |" for position, experts in layers]
        parts += ["## Layers", "\n".join(["| layer of the host | experts |", "|---|---|", *rows])]
    if settings:
        parts += ["## Settings", "\n".join(f"- {name}: {code(str(value))}" for name, value in settings.items())]
    for heading, lines in sections.items():
        if lines:
            parts += [f"## {heading}", "\n".join(f"- {inline(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"
