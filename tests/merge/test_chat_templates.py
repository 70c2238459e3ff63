"""Chat templates that a recipe names: what transformers makes of a conversation, as the models' pages have it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mol.config.chat_templates import CHAT_TEMPLATES, SPECIAL_TOKENS
from mol.merge import plan_recipe, run_merge
from tests.merge.models import TOKENIZER, make_llama
from tests.merge.toolkit import linear

if TYPE_CHECKING:
    from pathlib import Path

sandbox = pytest.importorskip("jinja2.sandbox", reason="needs the extra: pip install 'mol-merge[fusion]'")
SYSTEM, HI, HELLO = (
    {"role": r, "content": c} for r, c in (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"))
)
BYE = {"role": "user", "content": "Bye"}

WANTED = {
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
        "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nHi<|im_end|>\n",
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
        "\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    ),
    "alpaca": (
        "<s>Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n### Instruction:\nBye\n\n### Response:\n",
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHi\n\n",
    ),
    "mistral": ("<s>[INST] Be kind.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]", "<s>[INST] Hi [/INST]"),
    "exaone": (
        "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n[|user|]Bye\n[|assistant|]",
        "[|system|][|endofturn|]\n[|user|]Hi\n",
    ),
}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_template_writes_the_published_format(tmp_path: Path, name: str) -> None:
    models = [make_llama(tmp_path / n, seed, tokenizer_config__json={}) for seed, n in enumerate("ab")]
    out = run_merge(linear(0.5, 0.5, names=[str(m) for m in models], chat_template=name), tmp_path / "out").out
    text = (out / "chat_template.jinja").read_text()
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == text
    template = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    long = template.render(messages=[SYSTEM, HI, HELLO, BYE], add_generation_prompt=True, **tokens)
    short = template.render(messages=[HI], add_generation_prompt=False, **tokens)
    assert (long, short) == WANTED[name]


def test_tokens_that_the_tokenizer_lacks_are_warned_of(tmp_path: Path) -> None:
    special = [{"id": 12 + i, "content": token} for i, token in enumerate(SPECIAL_TOKENS["chatml"])]
    make_llama(tmp_path / "a", 1)
    make_llama(tmp_path / "b", 2, tokenizer__json=TOKENIZER | {"added_tokens": special})
    recipe = linear(0.5, 0.5, names=[str(tmp_path / n) for n in "ab"], chat_template="chatml")
    (warning,) = (line for line in plan_recipe(recipe).warnings if "chat_template" in line)
    assert warning.startswith(
        "chat_template chatml writes <|im_start|>, <|im_end|>, which the output's tokenizer splits"
    )
    planned = plan_recipe(recipe | {"tokenizer_source": "union"})
    assert not [line for line in planned.warnings if "chat_template" in line]


@pytest.mark.parametrize("chosen", ["chatml", "auto"])
def test_other_templates_of_the_tokenizer_stay(tmp_path: Path, chosen: str) -> None:
    named = [{"name": "rag", "template": "{{ 'rag' }}"}, {"name": "default", "template": "{{ 'of b' }}"}]
    make_llama(tmp_path / "a", 1, tokenizer_config__json={"chat_template": named})
    make_llama(tmp_path / "b", 2, tokenizer_config__json={"chat_template": named[1]["template"]})
    recipe = linear(0.5, 0.5, names=[str(tmp_path / name) for name in "ab"], chat_template=chosen)
    wanted = "{{ 'of b' }}" if chosen == "auto" else CHAT_TEMPLATES[chosen]
    listed = [{"name": "default", "template": wanted}, named[0]]
    out = run_merge(recipe, tmp_path / "out").out
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == listed
    assert not (out / "chat_template.jinja").exists()  # loaders would read it instead of the list
    more = tmp_path / "a" / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("{{ 'rag' }}")
    out = run_merge(recipe, tmp_path / "files").out
    assert (out / "chat_template.jinja").read_text() == wanted
    assert (out / "additional_chat_templates" / "rag.jinja").read_text() == "{{ 'rag' }}"
