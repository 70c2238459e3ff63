"""Write the model card of each model of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = {
    "general": "Perl's pods (GPL-1+ or Artistic), the Debian reference (GPL-2+) and the jargon file (public domain)",
    "python": "sources of Python's standard library (PSF-2.0)",
    "kjv": "the King James Bible (public domain)",
    "wordnet": "words and definitions of WordNet 3.0 (WordNet licence)",
}


def write_card(out: Path, head: dict[str, Any], log: list[dict[str, Any]]) -> None:
    """Write README.md of a model from the first and the other lines of its log."""
    run = head["run"]
    name, start, last = run["name"], run["start"], log[-1]
    seen = run["steps"] * head["batch"] * head["window"]
    metadata = [
        "---",
        "license: apache-2.0",
        "language: en",
        "library_name: transformers",
        "pipeline_tag: text-generation",
    ]
    if start:
        metadata.append("base_model: ../base")
    begin = f"the `{start}` model next to it" if start else "weights drawn at random"
    schedule = "falls as a cosine to a tenth" if run["decay"] else "stays constant"
    out.joinpath("README.md").write_text(
        "\n".join(metadata)
        + f"""
---

# {name}

A Llama of 2.6 million parameters in bf16, one of a small family on which merges and fusions are measured. It reads
at most {head["window"]} tokens, and is made for nothing else.

- Trained on {TEXTS[run["domain"]]}:
  {seen:,} tokens, of {head["windows"] * head["window"]:,}. It starts from {begin}.
- {run["steps"]} steps of {head["batch"]} windows of {head["window"]} tokens in bf16 autocast, AdamW, weight decay 0.1.
  The learning rate rises to {run["rate"]:g} in 50 steps and {schedule}. Seed {head["seed"]}, torch {head["torch"]}.
- Loss per token, in nats: {last["train_loss"]} in the last steps of training, {last["validation_loss"]} on validation
  text. `log.jsonl` has all of them.

Made by `python examples/family/train.py`, which describes the texts and what they are licensed under next to it.
"""
    )
