"""The public face: every import path of the seed, `__all__`, and what an import must not load."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

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
    ("mol.utils", "save_model_safe"),
    *(
        ("mol.utils.safetensors_utils", name)
        for name in (
            "save_model_safe", "load_model_safe", "is_safetensors_available", "SAFETENSORS_AVAILABLE",
            "SafeTensorsManager", "safetensors_manager",
        )
    ),
    *(
        pytest.param(module, name, marks=pytest.mark.fusion)
        for module, name in (
            ("mol.core", "MoLRuntime"), ("mol.core.mol_runtime", "MoLRuntime"), ("mol.core.mol_runtime", "MoLConfig"),
            *(
                (module, name)
                for module in ("mol.training", "mol.training.trainer")
                for name in ("MoLTrainer", "TrainingConfig", "create_simple_dataset")
            ),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), SEED)
def test_import_paths(module: str, name: str) -> None:
    assert getattr(import_module(module), name) is getattr(mol, name)


OF_PARTS = {
    "mol": ["save_model_safe", "load_model_safe", "is_safetensors_available", "push_mol_to_hf"],
    "mol.config": ["SliceConfig"],
    "mol.core": [
        "UniversalArchitectureHandler", "ArchitectureInfo", "LinearAdapter", "BottleneckAdapter", "SimpleRouter",
        "TokenLevelRouter",
    ],
    "mol.core.mol_runtime": ["LayerSpec", "MoLLayer"],
    "mol.core.adapters": ["BaseAdapter", "LinearAdapter", "BottleneckAdapter", "create_adapter"],
    "mol.core.routers": [
        "BaseRouter", "SimpleRouter", "TokenLevelRouter", "create_router", "compute_router_entropy",
        "compute_load_balancing_loss",
    ],
}  # fmt: skip
"""Names of the first implementation that are not all in the face."""


@pytest.mark.fusion
@pytest.mark.parametrize(("module", "names"), OF_PARTS.items())
def test_import_paths_of_parts(module: str, names: list[str]) -> None:
    for name in names:
        exec(f"from {module} import {name}")


@pytest.mark.parametrize(
    "module",
    [
        *(pytest.param(m, marks=pytest.mark.fusion) for m in ("mol", "mol.core", "mol.training")),
        "mol.merge",
        "mol.merge_methods",
    ],
)
def test_all_is_true(module: str) -> None:
    loaded = import_module(module)
    assert sorted(loaded.__all__) == sorted(set(loaded.__all__))
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None
        assert name in dir(loaded)


def test_the_package_has_every_class_that_the_readme_names() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"from mol\.[\w.]+ import .*", "", text)  # what has a home of its own, as adapters and routers
    named = set(re.findall(r"\b(?:MoL[A-Z]\w+|[A-Z]\w+Merge|Merge(?:Config|Options|Report)|Universal\w+)\b", prose))
    assert named <= {*mol.__all__}


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


def test_the_package_loads_no_framework_but_for_fusion() -> None:
    code = (
        "import sys, mol\n"
        "fusion = {name for name in mol.__all__ if name.startswith('MoL')} - {'MoLConfig'}\n"
        "fusion |= {'evaluate', 'push_mol_to_hf', 'suggest_layers'}\n"
        "for name in {*mol.__all__} - fusion: getattr(mol, name)\n"
        "print(*{'torch', 'transformers', 'numpy', 'huggingface_hub', 'safetensors', 'click'} & set(sys.modules))"
    )
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert heavy == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("mol", "HuggingFacePublisher"),
        ("mol.config", "ConfigParser"), ("mol.core", "BlockExtractor"),
        ("mol.merge_methods.base_merge", "LayerSlice"), ("mol.utils", "MemoryManager"),
        ("mol.utils.memory_utils", "MemoryStats"), ("mol.utils.hf_utils", "HF_HUB_AVAILABLE"),
        ("mol.models", "BaseMoLModel"),
        ("mol.core.block_extractor", "BlockExtractor"), ("mol.cli.merge_cli", "main"),
    ],
)  # fmt: skip
def test_names_that_are_not_there_yet_are_reported_as_such(module: str, name: str) -> None:
    with pytest.raises(ImportError, match="comes in a later version of mol; until then "):
        exec(f"from {module} import {name}")


def test_an_unknown_module_is_an_ordinary_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'mol\.slurp'"):
        import_module("mol.slurp")


@pytest.mark.fusion
@pytest.mark.parametrize(
    "line",
    [
        "from mol import MoLForCausalLM as kind",
        "from mol.core import MoLForMaskedLM as kind",
        "from mol.auto import MoLModel as kind",
    ],
)
def test_a_fused_model_is_built_around_a_runtime_whichever_is_imported_first(line: str) -> None:
    said = subprocess.run([sys.executable, "-c", f"{line}\nprint(kind.runtime_class)"], capture_output=True, text=True)
    assert said.stdout == "<class 'mol.core.mol_runtime.MoLRuntime'>\n"


@pytest.mark.fusion
@pytest.mark.parametrize(
    "lines",
    [
        "import mol, transformers",
        "import transformers, mol",
        "from transformers import AutoModelForCausalLM; import mol",
        "import mol; from transformers import AutoModelForCausalLM",
    ],
)
def test_transformers_knows_fused_models_whichever_is_imported_first_and_loads_nothing_for_it(lines: str) -> None:
    code = (
        f"{lines}\nimport sys\nfrom transformers import AutoConfig, AutoModel, AutoModelForCausalLM\n"
        "print('mol.core' in sys.modules)\n"
        "for kind in ('mol', 'mol_mixture'):\n"
        "    config = AutoConfig.for_model(kind)\n"
        "    print(type(config).__name__, AutoModelForCausalLM._model_mapping[type(config)].__name__)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == ["False", "MoLModelConfig MoLForCausalLM", "MoLMixtureConfig MoLMixture"]
