"""A merge of `model+adapter` computes what peft's unmerged adapter computes, for adapters that peft itself made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mol import run_merge
from tests.merge.test_run_transformers import PROMPT, gpt2, llama, load, make, torch

if TYPE_CHECKING:
    from pathlib import Path

peft = pytest.importorskip("peft", reason="the oracle of tests/merge/test_adapters.py, where it is installed")

pytestmark = pytest.mark.fusion

# Name -> config of the model, settings of the adapter.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "LoRA": (llama(), {"target_modules": ["q_proj", "down_proj"]}),
    "rsLoRA": (llama(), {"target_modules": "all-linear", "use_rslora": True}),
    "patterns": (
        llama(),
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 5, "up_proj": 3},
            "alpha_pattern": {r"layers.0.*.v_proj": 7, "up_proj": 1},
        },
    ),
    "DoRA": (llama(), {"target_modules": ["q_proj", "gate_proj"], "use_dora": True}),
    "DoRA and rsLoRA": (llama(), {"target_modules": ["o_proj"], "use_dora": True, "use_rslora": True}),
    "Conv1D": (gpt2(), {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "DoRA of Conv1D": (gpt2(), {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "modules_to_save": (llama(), {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "embedding": (llama(), {"target_modules": ["embed_tokens", "v_proj"]}),
    "head": (llama(), {"target_modules": ["lm_head"]}),
    "some layers": (llama(), {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "tied, the embedding": (llama(tie_word_embeddings=True), {"target_modules": ["embed_tokens"]}),
    "tied, the head": (llama(tie_word_embeddings=True), {"target_modules": ["lm_head"]}),
    "tied, both as a whole": (
        llama(tie_word_embeddings=True),
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "tied, neither": (llama(tie_word_embeddings=True), {"target_modules": ["q_proj"]}),
    "tied, kept so as a whole": (
        llama(tie_word_embeddings=True),
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied, kept so": (
        llama(tie_word_embeddings=True),
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_a_merged_adapter_computes_what_the_unmerged_one_does(case: str, tmp_path: Path) -> None:
    config, asked = CASES[case]
    model = make(tmp_path / "model", config, 1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **asked)).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.add_((0.3 if "lora_" in name else 0.05) * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    # As it is loaded, since peft ties some of what it trained apart.
    base = type(model).from_pretrained(tmp_path / "model")
    wanted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(PROMPT).logits
    assert not torch.allclose(wanted, load(tmp_path / "model")(PROMPT).logits, atol=1e-3)
    run_merge(
        {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'model'}+{tmp_path / 'adapter'}"}]},
        tmp_path / "out",
    )
    torch.testing.assert_close(load(tmp_path / "out")(PROMPT).logits, wanted, rtol=1e-5, atol=2e-6)
