"""mol-merge inspect: tensors and sizes as they are in the files, the architecture or why there is none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mol.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = "model.layers.1.mlp.up_proj.weight"
AUTO_MAP = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_unheard_of"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
# Finds modules as Python does, but for torch and transformers: what a plain installation has.
WITHOUT_EXTRA = """
import sys
from importlib.machinery import PathFinder

class Plain(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in ("torch", "transformers") else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Plain
from mol.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where architectures are kept."""
    where = tmp_path_factory.mktemp("kept")
    monkeypatch.setenv("MOL_CACHE", str(where))
    return where / "architectures"


@pytest.fixture
def odd(family: Path) -> Callable[..., Path]:
    """Make a checkpoint `odd` with the tensors of `base` and another config.json."""

    def make(**config: Any) -> Path:  # noqa: ANN401 - whatever JSON holds
        shutil.copytree(family / "base", family / "odd", dirs_exist_ok=True)
        (family / "odd" / "config.json").write_text(json.dumps(config))
        return family / "odd"

    return make


def entries(said: str) -> dict[str, str]:
    """Read the labelled lines of the output; what is wrapped is joined."""
    found: dict[str, str] = {}
    label = ""
    for line in said[said.index("\nmodel  ") :].splitlines()[1:]:
        label = line[:10].strip() or label
        found[label] = f"{found[label]} {line.strip()}" if label in found else line[10:]
    return found


def test_inspect_lists_tensors_layers_and_totals(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "base"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^model\.embed_tokens\.weight +F32 +16x8 +512 bytes$", said, re.MULTILINE)
    assert re.search(r"^model\.norm\.weight +F32 +8 +32 bytes$", said, re.MULTILINE)
    assert "model     base: LlamaForCausalLM, model_type llama" in said
    assert "layers    2 x model.layers" in said
    assert "dtypes    9 F32" in said
    assert "total     9 tensors, 664 parameters, 2.66 kB in 1 file" in said
    assert max(map(len, said.splitlines())) <= 80


def test_inspect_as_json(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "base", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameters"] == 664
    assert document["layers"] == {"model.layers": 2}
    assert {"name": NAME, "dtype": "F32", "shape": [16, 8], "bytes": 512, "file": "model.safetensors"} in (
        document["tensors"]
    )


@pytest.mark.fusion
def test_inspect_shows_the_architecture(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "base"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    found = entries(said)
    assert found["family"] == "decoder_only (llama): causal language model"
    assert found["sizes"] == "2 layers, 2 heads, 2,048 positions, width 8, inner width 16, vocabulary 16"
    assert found["modules"] == "blocks model.layers, embeddings model.embed_tokens, head lm_head"
    assert "code" not in found


@pytest.mark.fusion
def test_the_architecture_as_json(family: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "base", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = document["architecture"]
    assert document["architecture_problem"] is None
    assert found["model_name"] == "base"
    assert found["architecture_family"] == "decoder_only"
    assert (found["supports_causal_lm"], found["supports_masked_lm"], found["requires_remote_code"]) == (
        True, False, False,
    )  # fmt: skip
    assert (found["layer_path"], found["num_layers"], found["hidden_dim"]) == ("model.layers", 2, 8)
    assert len(list(kept.iterdir())) == 1


@pytest.mark.fusion
def test_a_second_inspection_loads_neither_torch_nor_transformers(
    family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "base"]) == 0
    first = capsys.readouterr().out
    code = (
        "import sys; from mol.cli import main; main(['inspect', 'base'])\n"
        "print(*{'torch', 'transformers'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr.strip()) == (first, "")


def test_without_the_extra_config_json_speaks_for_itself(odd: Callable[..., Path]) -> None:
    odd(model_type="llava", text_config={"hidden_size": 8, "num_hidden_layers": 2}, vision_config={"image_size": 9},
        vocab_size=16, bos_token_id=1)  # fmt: skip
    line = [sys.executable, "-c", WITHOUT_EXTRA, "inspect", "odd"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = entries(done.stdout)
    assert found["config"] == "text_config.hidden_size 8, text_config.num_hidden_layers 2, vocab_size 16"
    assert re.match(
        r"unknown: odd: .* takes torch and transformers; .*`pip install 'mol-merge\[fusion\]'`", found["family"]
    )
    assert "total" in found
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["architecture"] is None
    assert "mol-merge[fusion]" in document["architecture_problem"]
    assert document["parameters"] == 664


@pytest.mark.fusion
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "has no `model_type`"),
        ({"model_type": "lama"}, "does not know the model_type `lama` of its config.json (did you mean `llama`?)"),
        ({"model_type": "bert", "hidden_size": 7, "num_attention_heads": 2}, "cannot be built from its config.json"),
        (
            {"model_type": "own_unheard_of", "auto_map": AUTO_MAP},
            "(auto_map: modeling_own.OwnConfig), which is not run by default; read that code and pass "
            "trust_remote_code=True (--trust-remote-code)",
        ),
    ],
)
def test_a_checkpoint_of_no_known_architecture_is_inspected_all_the_same(
    config: dict[str, Any], says: str, odd: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    odd(**config)
    assert main(["inspect", "odd"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert says in entries(said)["family"]
    assert "9 tensors, 664 parameters" in entries(said)["total"]


@pytest.mark.fusion
@pytest.mark.parametrize(
    ("config", "message", "sizes"),
    [
        (
            {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 3, "num_heads": 2,
             "vocab_size": 11, "architectures": ["T5ForConditionalGeneration"]},
            "encoder_decoder (t5): no causal or masked language model",
            "3 layers, 2 heads, width 8, inner width 12, vocabulary 11",
        ),
        (
            {"model_type": "llava",
             "text_config": {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12,
                             "num_attention_heads": 2, "vocab_size": 11, "max_position_embeddings": 7},
             "vision_config": {"model_type": "clip_vision_model", "hidden_size": 6, "num_hidden_layers": 1,
                               "num_attention_heads": 2, "intermediate_size": 5, "image_size": 4, "patch_size": 2}},
            "multimodal (llava): no causal or masked language model",
            "2 layers, 2 heads, 7 positions, width 8, inner width 12, vocabulary 11",
        ),
        (
            {"model_type": "vit", "hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 5, "image_size": 4, "patch_size": 2},
            "vision (vit): no causal or masked language model",
            "1 layer, 2 heads, width 6, inner width 5",
        ),
    ],
)  # fmt: skip
def test_other_families(
    config: dict[str, Any], message: str, sizes: str, odd: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    odd(**config)
    assert main(["inspect", "odd"]) == 0
    found = entries(capsys.readouterr().out)
    assert (found["family"], found["sizes"]) == (message, sizes)


@pytest.mark.fusion
def test_code_of_a_model_is_run_when_requested(
    odd: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    where = odd(model_type="own_unheard_of", auto_map=AUTO_MAP, **sizes)
    (where / "modeling_own.py").write_text(CODE)
    assert main(["inspect", "odd", "--trust-remote-code"]) == 0
    said = capsys.readouterr()
    found = entries(said.out)
    assert found["family"] == "decoder_only (own_unheard_of): causal language model"
    assert found["code"] == "of its own (modeling_own.OwnConfig, modeling_own.OwnForCausalLM); it was run, as requested"
    assert said.err.count("warning: trust_remote_code") == 1
    odd(model_type="llama", auto_map=AUTO_MAP, **sizes)
    assert main(["inspect", "odd"]) == 0
    code = entries(capsys.readouterr().out)["code"]
    assert code.endswith("it is not run: transformers knows the type")


def test_a_second_set_of_weights_is_warned_of(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(family / "base" / "model.safetensors", family / "base" / "model-00001-of-00001.safetensors")
    assert main(["inspect", str(family / "base")]) == 0
    captured = " ".join(capsys.readouterr().err.split())
    assert "base holds more than one set of weights: model.safetensors was read" in captured
