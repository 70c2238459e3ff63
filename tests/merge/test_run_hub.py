"""A merge of models that have to be downloaded, from their ids to the card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from mol import run_merge
from mol.errors import MergeError
from mol.io.layout import ADAPTER, ADAPTER_CONFIG
from tests.io.hub_server import COMMIT, serving, use
from tests.merge.loras import PLAIN, merged, save_adapter
from tests.merge.models import contents_of, make_llama, weights_of

if TYPE_CHECKING:
    from pathlib import Path


def test_models_come_from_the_hub_and_the_card_names_their_revisions(tmp_path: Path) -> None:
    license_card = "---\nlicense: apache-2.0\n---\n"
    for seed, name in enumerate("ab"):
        make_llama(tmp_path / name, seed, README__md=license_card, modeling_own__py="raise SystemExit")
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: slerp\nbase_model: org/a\nparameters: {t: 0.5}\nmodels: [model: org/a, model: org/b@v1]\n"
    )
    code = f"import mol; mol.run_merge({str(recipe)!r}, {str(tmp_path / 'out')!r})"
    with serving({f"org/{name}": contents_of(tmp_path / name) for name in "ab"}) as hub:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "base_model": ["org/a", "org/b"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["mol", "merge", "mergekit"],
        "license": "apache-2.0",
    }
    assert f"- `org/a` at revision `{COMMIT}` (base)\n- `org/b` at revision `{COMMIT}`\n" in card
    manifest = json.loads((tmp_path / "out" / "mol_manifest.json").read_text())
    assert [(source["name"], source["revision"]) for source in manifest["sources"]] == [
        ("org/a", COMMIT),
        ("org/b", COMMIT),
    ]
    assert not (tmp_path / "out" / "modeling_own.py").exists()
    local = {
        "merge_method": "slerp", "base_model": str(tmp_path / "a"), "parameters": {"t": 0.5},
        "models": [{"model": str(tmp_path / "a")}, {"model": str(tmp_path / "b")}],
    }  # fmt: skip
    run_merge(local, tmp_path / "local")
    assert {name: array.tobytes() for name, array in weights_of(tmp_path / "local").items()} == {
        name: array.tobytes() for name, array in weights_of(tmp_path / "out").items()
    }


def test_an_adapter_comes_from_the_hub_and_once_more_from_its_cache(tmp_path: Path) -> None:
    make_llama(tmp_path / "model", 1)
    save_adapter(tmp_path / "lora", PLAIN, base_model_name_or_path="org/model")
    contents = {f"org/{name}": contents_of(tmp_path / name) for name in ("model", "lora")}
    contents["org/lora"] |= {"optimizer.pt": b"", "spiece.model": b""}
    recipe = {"merge_method": "passthrough", "models": [{"model": "org/model+org/lora@main"}]}
    code = f"import mol, sys; print(mol.run_merge({recipe!r}, sys.argv[1]).planned.warnings)"
    wanted = merged(tmp_path / "model", tmp_path / "lora", tmp_path / "local")
    with serving(contents) as hub:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        for out, offline in (("first", "0"), ("second", "1")):
            command = [sys.executable, "-c", code, str(tmp_path / out)]
            done = subprocess.run(
                command, env=environment | {"HF_HUB_OFFLINE": offline}, check=True, capture_output=True, text=True
            )
            assert done.stdout == "()\n"
            assert {name: array.tobytes() for name, array in weights_of(tmp_path / out).items()} == {
                name: array.tobytes() for name, array in wanted.items()
            }
        assert {ADAPTER_CONFIG, ADAPTER} <= set(hub.fetched)
        assert not {"optimizer.pt", "spiece.model"} & set(hub.fetched)
    card = (tmp_path / "first" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["org/model", "org/lora"]
    assert f"- `org/lora` at revision `{COMMIT}` (adapter), SHA-256 `" in card


def test_nothing_is_fetched_while_anything_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_llama(tmp_path / "a", 0)
    save_adapter(tmp_path / "damaged", PLAIN)
    (tmp_path / "damaged" / ADAPTER).write_bytes(b"damaged")
    gone = str(tmp_path / "gone")
    parameters = {"weight": 0.5}
    stage = {
        "name": "stage",
        "merge_method": "linear",
        "models": [{"model": name, "parameters": parameters} for name in ("org/a", "org/b", f"org/a+{gone}")],
    }
    last = {
        "merge_method": "karcher",
        "models": [{"model": f"stage+{name}"} for name in (tmp_path / "damaged", "org/lora")],
        "tokenizer_source": "org/tokens",
    }
    with serving({"org/a": contents_of(tmp_path / "a")}) as hub:
        use(hub, monkeypatch)
        with pytest.raises(MergeError) as caught:
            run_merge("---\n".join(map(yaml.safe_dump, (stage, last))), tmp_path / "out", cache_dir=tmp_path / "hub")
        assert hub.fetched == []
    said = caught.value.problems
    assert len(said) == 5
    for name, problem in zip(("org/b", gone, "org/lora", "org/tokens", "damaged"), said, strict=True):
        assert name in problem
