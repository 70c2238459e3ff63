"""The handler: what it remembers, what it refuses, what it asks of the Hub, and how it finds parts of loaded models."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mol.architecture import UniversalArchitectureHandler
from mol.errors import ArchitectureError, CheckpointError, MolError
from tests.architecture.toolkit import write_config
from tests.io.hub_server import serving

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.fusion

CODE = """
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_unheard_of"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 10}


@pytest.fixture
def handler(tmp_path: Path) -> UniversalArchitectureHandler:
    return UniversalArchitectureHandler(cache_dir=tmp_path / "kept")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MOL_"))}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, check=False
    )


def test_the_same_object_until_the_cache_is_cleared(handler: UniversalArchitectureHandler, tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "llama", **TINY)
    first = handler.detect_architecture(name)
    assert handler.detect_architecture(name) is first
    assert handler.architecture_cache == {name: first}
    handler.clear_cache()
    assert handler.architecture_cache == {}
    again = handler.detect_architecture(name)
    assert again is not first
    assert again == first


def test_what_is_on_disk_is_used_by_other_processes_without_transformers(tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "llama", **TINY)
    found = UniversalArchitectureHandler(cache_dir=tmp_path / "kept").detect_architecture(name)
    done = run(
        "import sys\n"
        "from mol.architecture import UniversalArchitectureHandler\n"
        f"info = UniversalArchitectureHandler(cache_dir={str(tmp_path / 'kept')!r}).detect_architecture({name!r})\n"
        "print(repr(info)); print(*{'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    )
    assert done.stdout.splitlines() == [repr(found), ""], done.stderr


def test_where_it_is_kept(tmp_path: Path) -> None:
    code = "from mol.architecture.disk_cache import default_directory; print(default_directory())"
    assert run(code, MOL_CACHE="/kept/here").stdout.strip() == "/kept/here/architectures"
    assert run(code, HOME=str(tmp_path)).stdout.strip() == str(tmp_path / ".cache" / "mol" / "architectures")


def test_another_config_is_another_entry(tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "llama", **TINY)
    kept = tmp_path / "kept"
    UniversalArchitectureHandler(cache_dir=kept).detect_architecture(name)
    write_config(tmp_path / "m", "llama", **TINY | {"num_hidden_layers": 3})
    assert UniversalArchitectureHandler(cache_dir=kept).detect_architecture(name).num_layers == 3
    assert len(list(kept.iterdir())) == 2
    copy = write_config(tmp_path / "copy", "llama", **TINY)
    assert UniversalArchitectureHandler(cache_dir=kept).detect_architecture(copy).model_name == copy
    assert len(list(kept.iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"model_name": "m"}', b'{"architecture_family": "whale"}']
)
def test_a_damaged_entry_is_written_again(tmp_path: Path, damage: bytes) -> None:
    name = write_config(tmp_path / "m", "llama", **TINY)
    kept = tmp_path / "kept"
    found = UniversalArchitectureHandler(cache_dir=kept).detect_architecture(name)
    (entry,) = kept.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage)
    assert UniversalArchitectureHandler(cache_dir=kept).detect_architecture(name) == found
    assert [path.read_bytes() for path in kept.iterdir()] == [whole]


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "llama", **TINY)
    (tmp_path / "kept").write_text("a file")
    assert UniversalArchitectureHandler(cache_dir=tmp_path / "kept").detect_architecture(name).num_layers == 2


def test_trust_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = write_config(tmp_path / "m", "llama", **TINY)
    with caplog.at_level(logging.WARNING, "mol"):
        trusting = UniversalArchitectureHandler(trust_remote_code=True, cache_dir=tmp_path / "kept")
        trusting.detect_architecture(name)
        trusting.clear_cache()
        trusting.detect_architecture(name)
    assert [record.name for record in caplog.records] == ["mol"]
    assert "trust_remote_code" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mol"):
        UniversalArchitectureHandler(cache_dir=tmp_path / "kept").detect_architecture(name)
    assert caplog.records == []


def test_code_of_an_unknown_type_is_not_run_unasked(handler: UniversalArchitectureHandler, tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "own_unheard_of", auto_map=AUTO_MAP)
    (tmp_path / "m" / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    message = r"own_unheard_of.*code of its own.*modeling_own\.OwnConfig.*trust_remote_code=True"
    with pytest.raises(ArchitectureError, match=message) as caught:
        handler.detect_architecture(name)
    assert str(caught.value).startswith(f"{name}: ")
    assert isinstance(caught.value, MolError)
    assert handler.architecture_cache == {}
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "kept").exists()


def test_code_of_an_unknown_type_is_run_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    name = write_config(tmp_path / "m", "own_unheard_of", auto_map=AUTO_MAP, **TINY)
    (tmp_path / "m" / "modeling_own.py").write_text(CODE, encoding="utf-8")
    trusting = UniversalArchitectureHandler(trust_remote_code=True, cache_dir=tmp_path / "kept")
    info = trusting.detect_architecture(name)
    assert info.requires_remote_code is True
    assert (info.architecture_type, str(info.architecture_family)) == ("own_unheard_of", "decoder_only")
    assert (info.layer_path, info.num_layers, info.supports_causal_lm) == ("model.layers", 2, True)
    assert not (tmp_path / "kept").exists()  # it follows from code, which is not in the name of the entry


def test_code_of_a_known_type_is_ignored(handler: UniversalArchitectureHandler, tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "llama", auto_map=AUTO_MAP, architectures=["OwnForCausalLM"], **TINY)
    info = handler.detect_architecture(name)
    assert info.requires_remote_code is False
    assert info.layer_path == "model.layers"


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ('{"model_type": "lama"}', ArchitectureError, r"does not know the model_type `lama`.*did you mean `llama`.*-U"),
        ("{}", ArchitectureError, r"config\.json has no `model_type`"),
        ('{"model_type": 7}', ArchitectureError, r"config\.json has no `model_type`"),
        ('{"model_type": "mol", "host": "gpt2"}', ArchitectureError, "is a fused model.*ask for its host, gpt2"),
        ('{"model_type": "lama", "auto_map": {}}', ArchitectureError, "does not know the model_type"),
        ('{"model_type": "llama", "hidden_size": "wide"}', ArchitectureError, r"not one of a `llama`.*hidden_size"),
        (
            '{"model_type": "bert", "hidden_size": 7, "num_attention_heads": 2}',
            ArchitectureError,
            r"BertForMaskedLM cannot be built.*multiple of the number of attention",
        ),
        (
            '{"model_type": "llama", "num_hidden_layers": 1000000000}',
            ArchitectureError,
            r"says that .* 1000000000 layers",
        ),
        ("{", CheckpointError, r"config\.json is not JSON.*fetch the file again"),
        ("[]", CheckpointError, r"config\.json holds a list, wanted a JSON object"),
        (None, FileNotFoundError, r"no config\.json"),
    ],
)
def test_what_cannot_be_detected_is_refused(
    handler: UniversalArchitectureHandler, tmp_path: Path, document: str | None, error: type[Exception], message: str
) -> None:
    (tmp_path / "m").mkdir()
    if document is not None:
        (tmp_path / "m" / "config.json").write_text(document, encoding="utf-8")
    with pytest.raises(error, match=message) as caught:
        handler.detect_architecture(str(tmp_path / "m"))
    assert str(tmp_path / "m") in str(caught.value)


def test_a_model_that_is_not_there(handler: UniversalArchitectureHandler, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such directory"):
        handler.detect_architecture(str(tmp_path / "nowhere"))


def test_of_a_hub_repository_config_json_alone_is_fetched(tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "llama", **TINY)
    kept = tmp_path / "kept"
    known = UniversalArchitectureHandler(cache_dir=kept).detect_architecture(name)
    files = {
        "config.json": Path(name, "config.json").read_bytes(),
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "README.md": b"",
    }
    code = (
        "from mol.architecture import UniversalArchitectureHandler\n"
        f"handler = UniversalArchitectureHandler(cache_dir={str(kept)!r})\n"
        "print(handler.detect_architecture({!r}))"
    )
    with serving({"org/model": files}) as hub:
        where = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub")}
        done = run(code.format("org/model"), **where)
        assert done.stdout.strip() == repr(known.named("org/model")), done.stderr
        assert hub.fetched == ["config.json"]
        absent = run(code.format("org/none"), **where)
        assert "FileNotFoundError: org/none: no such directory, and no such repository" in absent.stderr
        hub.gated.add("org/gated")
        hub.repositories["org/gated"] = files
        gated = run(code.format("org/gated"), **where)
        assert "PermissionError: org/gated: the repository is gated" in gated.stderr
        hub.fetched.clear()
        offline = run(code.format("org/model@main"), HF_HUB_OFFLINE="1", **where)
        assert offline.stdout.strip() == repr(known.named("org/model@main")), offline.stderr
        assert hub.fetched == []


def test_the_hubs_cache_and_token_can_be_given(tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "llama", **TINY)
    files = {"config.json": Path(name, "config.json").read_bytes()}
    code = (
        "from mol.architecture import UniversalArchitectureHandler\n"
        f"handler = UniversalArchitectureHandler(cache_dir={str(tmp_path / 'kept')!r}, "
        f"hub_cache_dir={str(tmp_path / 'given')!r}, token='a-token')\n"
        "print(handler.detect_architecture('org/model@v1').num_layers)"
    )
    with serving({"org/model": files}) as hub:
        done = run(code, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hub"))
    assert done.stdout.strip() == "2", done.stderr
    assert hub.tokens == {"Bearer a-token"}
    assert [path.read_bytes() for path in (tmp_path / "given").rglob("snapshots/*/config.json")] == list(files.values())
    assert not (tmp_path / "hub").exists() or not list((tmp_path / "hub").rglob("config.json"))


def small(model_type: str) -> PreTrainedModel:
    """A model with a head and a few weights."""
    import transformers

    model: PreTrainedModel
    if model_type == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=3, n_head=2, vocab_size=11))
    elif model_type == "bert":
        sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
        model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, vocab_size=11))
    else:
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, vocab_size=11)
        )
    return model


@pytest.mark.parametrize(("model_type", "layers"), [("gpt2", 3), ("bert", 2), ("t5", 2)])
def test_parts_of_a_loaded_model(
    handler: UniversalArchitectureHandler, tmp_path: Path, model_type: str, layers: int
) -> None:
    model = small(model_type)
    model.config.save_pretrained(tmp_path / "m")
    info = handler.detect_architecture(str(tmp_path / "m"))
    blocks = handler.get_layers(model, info)
    assert len(blocks) == info.num_layers == layers
    assert handler.get_embeddings(model, info) is model.get_input_embeddings()
    assert handler.get_lm_head(model, info) is model.get_output_embeddings()
    # The same model without its head, in which all paths are shorter.
    bare = model.base_model
    assert handler.get_layers(bare, info) is blocks
    assert handler.get_embeddings(bare, info) is model.get_input_embeddings()
    if bare is not model:
        assert handler.get_lm_head(bare, info) is None


def test_an_info_of_a_bare_model_fits_one_with_a_head(handler: UniversalArchitectureHandler, tmp_path: Path) -> None:
    model = small("bert")
    model.config.architectures = ["BertModel"]
    model.config.save_pretrained(tmp_path / "m")
    info = handler.detect_architecture(str(tmp_path / "m"))
    assert (info.layer_path, info.lm_head_path) == ("encoder.layer", None)
    assert len(handler.get_layers(model, info)) == 2
    assert handler.get_lm_head(model, info) is None


def test_an_info_of_another_model_is_refused(handler: UniversalArchitectureHandler, tmp_path: Path) -> None:
    info = handler.detect_architecture(write_config(tmp_path / "m", "llama", **TINY))
    with pytest.raises(ArchitectureError, match=r"GPT2LMHeadModel has no `model\.layers`, the layer_path of llama"):
        handler.get_layers(small("gpt2"), info)
    none = handler.detect_architecture(write_config(tmp_path / "n", "mobilenet_v2"))
    with pytest.raises(ArchitectureError, match="has no layer_path"):
        handler.get_layers(small("gpt2"), none)


def test_signature_and_rope_by_name(handler: UniversalArchitectureHandler, tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "llama", **TINY)
    info = handler.detect_architecture(name)
    assert handler.get_parameter_signature(name) is info.model_signature
    assert handler.get_rope_info(name) is info.rope_info


def test_capabilities(handler: UniversalArchitectureHandler, tmp_path: Path) -> None:
    model = small("gpt2")
    model.config.save_pretrained(tmp_path / "m")
    found = handler.analyze_model_capabilities(model, str(tmp_path / "m"))
    assert found["architecture_family"] == "decoder_only"
    assert found["block_class"] == "GPT2Block"
    assert found["num_blocks"] == 3
    assert found["has_lm_head"] is True
    assert found["has_tied_head"] is True
    assert found["supports_generation"] is True
    assert found["has_rotary_positions"] is False
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    json.dumps(found)
    bare = handler.analyze_model_capabilities(model.base_model, str(tmp_path / "m"))
    assert (bare["has_lm_head"], bare["supports_generation"]) == (False, False)
