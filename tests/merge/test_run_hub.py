"""A merge of models that have to be downloaded, from their ids to the card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import yaml

from mol import run_merge
from tests.io.hub_server import COMMIT, serving
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
