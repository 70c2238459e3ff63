"""The public face: every import path of the seed, `__all__`, and what an import must not load."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import mol

SEED = [
    ("mol", "SlerpMerge"),
    ("mol", "TiesMerge"),
    ("mol", "TaskArithmeticMerge"),
    ("mol", "LinearMerge"),
    ("mol", "BaseMergeMethod"),
    ("mol", "MergeConfig"),
    ("mol", "run_merge"),
    ("mol.config", "MergeConfig"),
    ("mol.merge_methods.base_merge", "MergeConfig"),
    ("mol.merge_methods.base_merge", "BaseMergeMethod"),
    ("mol.merge_methods", "SlerpMerge"),
    ("mol.merge_methods", "TiesMerge"),
    ("mol.merge_methods", "TaskArithmeticMerge"),
    ("mol.merge_methods", "LinearMerge"),
    ("mol.merge_methods", "BaseMergeMethod"),
    ("mol", "MoLConfig"),
    ("mol.core", "MoLRuntime"),
    ("mol.core.mol_runtime", "MoLRuntime"),
    ("mol.core.mol_runtime", "MoLConfig"),
]


@pytest.mark.parametrize(("module", "name"), SEED)
def test_import_paths(module: str, name: str) -> None:
    assert getattr(import_module(module), name) is getattr(mol, name)


@pytest.mark.parametrize("module", ["mol", "mol.core", "mol.merge", "mol.merge_methods"])
def test_all_is_true(module: str) -> None:
    loaded = import_module(module)
    assert sorted(loaded.__all__) == sorted(set(loaded.__all__))
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None
        assert name in dir(loaded)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mol' has no attribute 'SlurpMerge'"):
        _ = mol.SlurpMerge  # type: ignore[attr-defined]


def test_the_version_is_the_extensions() -> None:
    from mol import _rust

    assert mol.__version__ == _rust.__version__


def test_importing_loads_next_to_nothing() -> None:
    code = "import sys, mol; print(*sorted(name for name in sys.modules if name.startswith('mol')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == ["mol"]


def test_the_face_loads_no_framework_but_for_fusion() -> None:
    code = (
        "import sys, mol\n"
        "fusion = {'MoLForCausalLM', 'MoLMixture', 'MoLRuntime', 'suggest_layers'}\n"
        "for name in {*mol.__all__} - fusion: getattr(mol, name)\n"
        "print(*{'torch', 'transformers', 'numpy', 'huggingface_hub', 'safetensors', 'click'} & set(sys.modules))"
    )
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert heavy == []
