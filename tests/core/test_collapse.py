"""One static model of a fusion: the host with means of experts in its layers, loaded by transformers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mol import MoLConfig, MoLRuntime
from mol.core.pretrained.collapse import collapse
from mol.errors import ConfigError, FusionError, MolError
from tests.core.tokenizers import byte_pairs
from tests.core.zoo import language_model_of, tokens_of

TEXTS = ["the cat sat on the mat and looked at the dog", "def f(x): return x + 1", "a"]
NAMES = ("org/base", "org/chat", "org/code")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of three Llamas of one shape, a wider one, and a BERT-like host's opposite: a Mistral."""
    root = tmp_path_factory.mktemp("org")
    tokenizer = byte_pairs(TEXTS, 300)
    sizes = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    for seed, name in enumerate(NAMES):
        language_model_of("llama", seed=seed, **sizes).save_pretrained(root / name)
    language_model_of("llama", seed=3, **sizes, hidden_size=48).save_pretrained(root / "org" / "wide")
    language_model_of("gpt2", seed=4, **sizes).save_pretrained(root / "org" / "gpt2")
    for path in (root / "org").iterdir():
        tokenizer.save_pretrained(path)
        (path / "README.md").write_text("---\nlicense: mit\n---\n")
    return root


@pytest.fixture(autouse=True)
def _next_to_the_models(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def fusion(layers: dict[int, list[tuple[str, int]]], **settings: object) -> MoLRuntime:
    torch.manual_seed(0)
    names = dict.fromkeys(["org/base", *(name for experts in layers.values() for name, _ in experts)])
    runtime = MoLRuntime(MoLConfig(models=list(names), **settings))
    for position, experts in layers.items():
        runtime.add_layer(experts, position)
    return runtime


def weights_of(name: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(name) / "model.safetensors")


def layer(weights: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    prefix = f"model.layers.{number}."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def test_a_fused_layer_is_the_mean_of_its_experts_and_all_else_is_the_hosts(tmp_path: Path) -> None:
    """Also where the host has no expert in the first or the last layer, and blocks come from other layers."""
    runtime = fusion({0: [("org/chat", 1), ("org/code", 0)], 2: [("org/base", 2), ("org/chat", 0), ("org/code", 2)]})
    done = collapse(runtime, tmp_path / "out")
    base, chat, code = map(weights_of, NAMES)
    out = weights_of(tmp_path / "out")
    assert out.keys() == base.keys()
    for name, value in out.items():
        if not name.startswith(("model.layers.0.", "model.layers.2.")):
            assert torch.equal(value, base[name]), name
    means = {
        0: [layer(chat, 1), layer(code, 0)],
        2: [layer(base, 2), layer(chat, 0), layer(code, 2)],
    }
    for number, experts in means.items():
        for name, value in layer(out, number).items():
            torch.testing.assert_close(
                value, torch.stack([expert[name] for expert in experts]).double().mean(0).float()
            )
    assert done.weights == {0: [0.5, 0.5], 2: [1 / 3] * 3}
    assert "its loss was not measured" in done.lines[-1]


def test_an_expert_alone_gives_its_block_bit_for_bit_and_the_fusions_logits(tmp_path: Path) -> None:
    runtime = fusion({1: [("org/chat", 1)]})
    static = runtime.create_fused_model()
    assert type(static).__name__ == "LlamaForCausalLM"
    ids = tokens_of(2, 9)
    torch.testing.assert_close(static(ids).logits, runtime.as_causal_lm()(ids).logits, rtol=1e-4, atol=1e-4)
    collapse(runtime, tmp_path / "out")
    assert all(
        torch.equal(value, layer(weights_of("org/chat"), 1)[name])
        for name, value in layer(weights_of(tmp_path / "out"), 1).items()
    )


def test_learned_weights_are_the_mean_of_what_the_router_chooses(tmp_path: Path) -> None:
    runtime = fusion({1: [("org/base", 1), ("org/chat", 1)]}, router_type="token_level")
    with torch.no_grad():
        for parameter in runtime.layers[0].router.parameters():
            parameter.add_(torch.randn_like(parameter))
    runtime.calibrate(TEXTS)
    done = collapse(runtime, tmp_path / "out", "learned_weights", texts=TEXTS)
    total = torch.zeros(2, dtype=torch.float64)
    for text in TEXTS[:2]:  # the third has no two tokens
        inputs = runtime.tokenizer(text, return_tensors="pt")
        _, stats = runtime(inputs["input_ids"], inputs["attention_mask"], return_router_stats=True)
        total += stats["layer_1"]["expert_weights"].double().sum((0, 1))
    share = total / total.sum()
    assert done.weights[1] == pytest.approx(share.tolist())
    assert abs(share[0] - 0.5) > 0.01
    base, chat, out = (layer(weights_of(name), 1) for name in ("org/base", "org/chat", tmp_path / "out"))
    for name, value in out.items():
        torch.testing.assert_close(value, (share[0] * base[name].double() + share[1] * chat[name].double()).float())
    ids = tokens_of(1, 8)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(runtime.create_fused_model("learned_weights")(ids).logits, again(ids).logits)


def test_the_best_expert_is_the_model_whose_blocks_alone_have_the_lowest_loss(tmp_path: Path) -> None:
    runtime = fusion({0: [("org/base", 0), ("org/chat", 0)], 2: [("org/chat", 2), ("org/base", 2)]})
    losses = {}
    for name in ("org/base", "org/chat"):
        losses[name] = measured(fusion({0: [(name, 0)], 2: [(name, 2)]}).create_fused_model(), runtime)
    done = collapse(runtime, tmp_path / "out", "best_expert", texts=TEXTS)
    best = min(losses, key=losses.__getitem__)
    assert done.weights == {0: [float(best == n) for n in NAMES[:2]], 2: [float(best == n) for n in NAMES[1::-1]]}
    assert f"the blocks of `{best}`, whose loss is the lowest" in done.lines[1]
    for name, loss in losses.items():
        assert f"{loss:.4f} with those of `{name}`" in done.lines[1]
    assert f"{losses[best]:.4f} of this model, " in done.lines[-1]
    with pytest.raises(FusionError, match="none has one expert in each"):
        collapse(fusion({0: [("org/chat", 0)], 1: [("org/code", 0)]}), tmp_path / "no", "best_expert", texts=TEXTS)


def measured(model: object, runtime: MoLRuntime) -> float:
    total, count = 0.0, 0
    for text in TEXTS[:2]:
        ids = runtime.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)  # type: ignore[operator]
        count += ids.shape[1] - 1
    return total / count


def test_the_losses_that_are_stated_are_those_of_the_two_models(tmp_path: Path) -> None:
    runtime = fusion({1: [("org/base", 1), ("org/chat", 1)]})
    done = collapse(runtime, tmp_path / "out", texts=TEXTS)
    static = measured(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), runtime)
    assert (
        f"{static:.4f} of this model, {measured(runtime.as_causal_lm(), runtime):.4f} of the fusion" in done.lines[-1]
    )


def test_the_result_loads_where_there_is_no_mol(tmp_path: Path) -> None:
    collapse(fusion({1: [("org/base", 1), ("org/chat", 1)]}), tmp_path / "out")
    code = (
        "import sys; sys.modules['mol'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r})\n"
        f"ids = AutoTokenizer.from_pretrained({str(tmp_path / 'out')!r})('the cat', return_tensors='pt')\n"
        "print(type(model).__name__, model(**ids).logits.shape[-1])"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "LlamaForCausalLM 300\n"


def test_only_the_layers_that_were_added_are_there_without_the_hosts_own(tmp_path: Path) -> None:
    runtime = fusion({0: [("org/base", 0), ("org/chat", 0)], 2: [("org/chat", 2)]}, keep_host_layers=False)
    collapse(runtime, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 2
    chat, out = weights_of("org/chat"), weights_of(tmp_path / "out")
    assert all(torch.equal(value, layer(chat, 2)[name]) for name, value in layer(out, 1).items())


def test_trained_adapters_are_refused_or_left_out_with_the_loss(tmp_path: Path) -> None:
    runtime = fusion({1: [("org/base", 1), ("org/chat", 1)]})
    before = collapse(runtime, tmp_path / "before")
    with torch.no_grad():
        runtime.layers[0].built[1].up.projection.weight[3, 4] += 0.5
    with pytest.raises(
        FusionError, match=r"layer 1: `org/chat\[1\]` has adapters that are not the identity.*drop_adapters=True"
    ):
        collapse(runtime, tmp_path / "out")
    with pytest.raises(ConfigError, match="drop_adapters states the loss by measuring on text: give calibration"):
        collapse(runtime, tmp_path / "out", drop_adapters=True)
    assert not (tmp_path / "out").exists()
    done = collapse(runtime, tmp_path / "out", drop_adapters=True, texts=TEXTS)
    assert "adapters left out: layer 1: `org/chat[1]`" in done.lines
    static, fused = (
        measured(model, runtime)
        for model in (AutoModelForCausalLM.from_pretrained(tmp_path / "out"), runtime.as_causal_lm())
    )
    assert f"{static:.4f} of this model, {fused:.4f} of the fusion" in done.lines[-1]
    assert f"{static:.4f}" != f"{fused:.4f}"
    assert before.weights == done.weights


def test_what_cannot_be_static_is_refused_with_every_reason(tmp_path: Path) -> None:
    runtime = fusion({0: [("org/wide", 0), ("org/base", 0)]})
    runtime.add_layer([("org/base", range(1, 3))], 1)
    with pytest.raises(FusionError) as caught:
        runtime.create_fused_model()
    assert [problem.split(" ", 2)[:2] for problem in caught.value.problems] == [["layer", "0:"], ["layer", "1:"]]
    assert "`org/wide[0]` is 48 wide and the host org/base 32" in str(caught.value)
    assert "`org/base[1-2]` runs 2 blocks, a static layer is one" in str(caught.value)
    with pytest.raises(FusionError, match="no layer was added"):
        fusion({}).create_fused_model()
    with pytest.raises(MolError, match="gpt2"):  # equal widths, another architecture: the merge's own words
        fusion({0: [("org/base", 0), ("org/gpt2", 0)]}).create_fused_model()


def test_a_method_that_does_not_exist_or_lacks_text() -> None:
    runtime = fusion({0: [("org/base", 0)]})
    with pytest.raises(ConfigError, match="fusion_method is 'mean', wanted one of weighted_average, learned_weights"):
        runtime.create_fused_model("mean")  # type: ignore[arg-type]
    for method in ("learned_weights", "best_expert"):
        with pytest.raises(ConfigError, match=f"{method} is chosen by measuring on text: give calibration"):
            runtime.create_fused_model(method)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no text of the calibration has two tokens"):
        runtime.create_fused_model("learned_weights", calibration=["a"])
