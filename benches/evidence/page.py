"""Writes docs/evidence.md and its plots from the results of rows."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import goals
import plots
from names import BLOCKS, EXPERTS, MERGES, MIXTURES, SINGLES, SOUPS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLUMNS: Final = (*EXPERTS, "switching", "general")
GROUPS: Final = (
    ("Single models", (*SINGLES, *BLOCKS)),
    ("Merges: one model, one model's cost", MERGES),
    ("Mixtures of the outputs of the three experts", (*MIXTURES, "mixture_router")),
    (
        "Fusions of the experts' blocks, and what they are held against",
        (
            "fused_identity_untrained", "fused_lstsq_untrained", "fused_identity", "fused_lstsq", "fused_token_router",
            "control", "fused_prefix_top1", "fused_token_top2", "chain_untrained", "chain", "chain_lstsq",
            "chain_no_domains", "chain_prefix_top1", "chain_control", "lora_base", "lora_merge",
        ),
    ),
)  # fmt: skip
NAMES: Final = {
    "blocks_python": "the base with the blocks of python",
    "blocks_kjv": "the base with the blocks of kjv",
    "blocks_wordnet": "the base with the blocks of wordnet",
    "fused_identity_untrained": "dense, untrained",
    "fused_lstsq_untrained": "dense, fitted adapters, untrained",
    "fused_identity": "dense",
    "fused_lstsq": "dense, fitted adapters",
    "fused_token_router": "dense, a router per token",
    "control": "control of dense: the base's blocks for the experts'",
    "fused_prefix_top1": "top-1 by the mean of the tokens so far",
    "fused_token_top2": "top-2 by each token",
    "chain_untrained": "chain, dense, untrained",
    "chain": "chain, dense",
    "chain_lstsq": "chain, dense, fitted adapters, no domains, 120 steps",
    "chain_no_domains": "chain, dense, no domains, 120 steps",
    "chain_prefix_top1": "chain, top-1 by the mean of the tokens so far",
    "chain_control": "control of the chain: the base's blocks",
    "lora_base": "LoRA in the base, as many parameters",
    "lora_merge": "LoRA in the merge by task arithmetic, as many parameters",
    "mixture_uniform": "uniform mixture",
    "mixture_posterior": "posterior mixture",
    "mixture_router": "mixture by a trained router",
    "constant_last": "constant rate: last checkpoint",
    "constant_soup": "constant rate: mean of the last",
    "decayed_last": "falling rate: last checkpoint",
    "decayed_soup": "falling rate: mean of the last",
}


class Row(NamedTuple):
    """The seeds of a row, together."""

    name: str
    seeds: int
    mean: float
    error: float | None
    columns: dict[str, float]
    first: dict[str, Any]

    @property
    def shown(self) -> str:
        return NAMES.get(self.name, self.name.replace("_", " ") if self.name in EXPERTS else self.name)

    def of_mean(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.error:.3f}" if self.error is not None else "")


def load(results: Path) -> dict[str, Row]:
    """Return all rows that were measured, by name."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(results.glob("*.json")):
        one = json.loads(path.read_text())
        found[one["row"]].append(one)
    rows = {}
    for name, seeds in found.items():
        means = [one["mean"] for one in seeds]
        count = len(means)
        average = sum(means) / count
        deviation = math.sqrt(sum((one - average) ** 2 for one in means) / (count - 1)) if count > 1 else 0.0
        columns = {key: sum(one["bits_per_byte"][key] for one in seeds) / count for key in COLUMNS}
        rows[name] = Row(name, count, average, deviation / math.sqrt(count) if count > 1 else None, columns, seeds[0])
    return rows


def oracle(rows: dict[str, Row]) -> dict[str, float]:
    """Return bits per byte where each document is given to the model that is best on it."""
    singles = [rows[name].first["documents"] for name in SINGLES]
    found = {}
    for domain in COLUMNS:
        best = [min(nll for nll, _ in scores) for scores in zip(*(one[domain] for one in singles), strict=True)]
        found[domain] = math.fsum(best) / sum(size for _, size in singles[0][domain]) / math.log(2)
    found["mean"] = sum(found[domain] for domain in EXPERTS) / len(EXPERTS)
    return found


def table(rows: Sequence[Row], best: dict[str, float] | None = None) -> str:
    """Return a table of rows, with that of the oracle if it is given."""
    lines = [
        "| | mean of the three | " + " | ".join(COLUMNS) + " | trained | MFLOP/token | tokens/s | MB | seeds |",
        "|---|" + "---:|" * (len(COLUMNS) + 6),
    ]
    for row in rows:
        first = row.first
        trained = f"{first['trained_parameters']:,}" if first["trained_parameters"] else "0"
        cells = [row.of_mean(), *(f"{row.columns[key]:.3f}" for key in COLUMNS), trained]
        cells += [f"{first['mflops_per_token']:.1f}", f"{first['tokens_per_cpu_second']:,}"]
        cells += [f"{first['megabytes_of_weights']:.1f}", str(row.seeds)]
        lines.append(f"| {row.shown} | " + " | ".join(cells) + " |")
    if best is not None:
        cells = [f"{best[key]:.3f}" for key in ("mean", *COLUMNS)]
        lines.append("| oracle: the best of base and experts per document | " + " | ".join(cells) + " | | | | | |")
    return "\n".join(lines)


def scales(rows: dict[str, Row]) -> str:
    """Return what was chosen on validation text."""
    lines = ["| method | settings tried | chosen |", "|---|---:|---|"]
    for name in GROUPS[1][1]:
        settings = dict(rows[name].first["settings"]) if name in rows else {}
        tried = settings.pop("tried", [])
        if tried:
            chosen = ", ".join(f"`{key}` {value:g}" for key, value in settings.items())
            lines.append(f"| {name} | {len(tried)} | {chosen} |")
    return "\n".join(lines)


def write(results: Path, docs: Path) -> None:
    """Write the page and its plots."""
    rows = load(results)
    best = oracle(rows)
    parts = [HEAD]
    shown: list[Row] = []
    for title, names in GROUPS:
        some = [rows[name] for name in names if name in rows]
        if title.startswith("Merges"):
            some.sort(key=lambda row: row.mean)
        shown += some
        missing = [NAMES.get(name, name) for name in names if name not in rows]
        parts.append(f"## {title}\n\n{table(some, best if names[0] == 'base' else None)}")
        if missing:
            parts.append("Not measured yet: " + "; ".join(missing) + ".")
        if title.startswith("Merges"):
            parts.append(MERGES + "\n\n" + scales(rows))
        if title.startswith("Fusions"):
            parts.append(FUSIONS)
    parts.append(
        "## The last checkpoints of one run\n\n" + SOUP + "\n\n" + table([rows[n] for n in SOUPS if n in rows])
    )
    parts += [goals.section(rows, best), WHY]
    folder = docs / "evidence"
    folder.mkdir(exist_ok=True)
    folder.joinpath("rows.svg").write_text(plots.bars([(row.shown, row.mean) for row in shown], best["mean"]))
    folder.joinpath("cost.svg").write_text(
        plots.scatter([(row.shown, row.first["mflops_per_token"], row.mean) for row in shown], best["mean"])
    )
    commits = sorted({row.first["commit"][:10] for row in rows.values()})
    parts.append(
        f"Measured at {', '.join(commits)}; a `+` means with changes that were not committed. Of the first "
        "rows the commits were rebased afterwards, which put changes of others before them."
    )
    docs.joinpath("evidence.md").write_text("\n\n".join(parts) + "\n")


HEAD: Final = """# Evidence: does it help?

`make evidence` wrote this page. Measured are merges and fusions of the small family in `examples/family`: a base of
2.6 million parameters that was trained on documentation for programmers, and three experts that start from it, for
sources in Python, the King James Bible (kjv) and WordNet's definitions. The base has seen no text of these domains.

```sh
make evidence               # every row that is not measured yet; this page
make evidence ROWS=quick    # two rows again, and whether they agree with what is committed
```

Every figure is bits per byte of test text by `mol.evaluate` (lower is better), in windows of 256 tokens, of documents
cut to 4,000 characters. No 13 words in a row of it are in train or validation text. `switching` is 60 documents of
three passages of 250 characters, one of each domain. `general` is the base's own kind of text, which the mean leaves
out. MFLOP/token counts what a forward runs of rows of 256 tokens; tokens/s is tokens per CPU second in one thread; MB
is all weights in memory, in float32. The error is that of the mean over seeds; without one there is one seed. Each
result, with seed, commit, settings and losses per document, is in `benches/evidence/results`.

![mean bits per byte of every row](evidence/rows.svg)

![mean bits per byte against operations per token](evidence/cost.svg)"""

MERGES: Final = """All treat the three experts alike. Where a method has scales, settings were tried on validation
text, and the best was measured on test text, once. Methods without scales, and `slerp` (two experts half and half,
then a third of the third), were merged once. `nearswap` and `arcee_fusion` take one other model and `nuslerp` two, so
they are not here."""

FUSIONS: Final = """The base is the host; each of its layers runs the blocks of the three experts behind linear
adapters, and a router weighs them, by the mean of the tokens so far unless something else is said. A chain has one
router, before the four blocks of each expert in a row. Adapters start as the identity, which is what experts of one
base need, or fitted (`adapter_init="lstsq"`) to what the base's own block in that layer does. `MoLTrainer` trained
all for 80 steps of 2,048 tokens of the experts' train text, adapters at a rate of 1e-3, routers, which see the domain
of each row (`domain_loss_coeff=0.1`), at 1e-2. The rows without domains were a first try: 120 steps, routers at 1e-3
too. Rows that choose started with all experts. LoRA and the router of the mixture had the same texts and steps, and
no domains. A control has the same adapters and routers over the base's own blocks three times: what it gains is due
to training adapters, not to the experts. `dispatch="sequence"` has no row: it chooses by the first 16 tokens, so it
does not predict these, and `mol.evaluate` refuses to score it."""

WHY: Final = """### Why some are not met

- Merges: what the experts learned adds up in the same weights. At the scale that is best for all three, the mean is
  about as far from the oracle as from the base. No method that was tried changes that.
- Fusions: what an expert learned is in its embeddings, which are its head, too, and a fusion has those of its host. The
  base with the blocks of one expert is a row of the first table: a fusion that always chose right would be about that
  good in its domain without training. Mixtures have the whole models.
- The chain with fitted adapters: they are fitted to what the first block of the base returns, while all four blocks of
  the experts run there and no other of the base, so they start far off. In its last 50 steps its router gave the expert
  of kjv 0.4% of the tokens, which `MoLTrainer` warned of.
- Seeds: all rows have one so far, and no error is known."""

SOUP: Final = """Two runs of the python expert: as shipped, with a learning rate that falls to a tenth, and one at a
constant rate. Of checkpoints 20 steps apart the last two, three, four or six are averaged by `merge_method: average`,
as many as are best on validation text of python."""
