"""Imports between the files of mol go downwards only, never in a circle; what a merge imports at once is not heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "mol"

# Each room, and the rooms whose modules it may import at any depth of nesting; its own are always allowed.
BASE = frozenset({"errors", "text", "dtypes", "regex", "_rust"})
ALLOWED = {
    "errors": frozenset(),
    "later": frozenset(),
    "without_effect": frozenset(),
    "_rust": frozenset(),
    "dtypes": frozenset(),
    "regex": frozenset(),
    "text": frozenset({"errors", "regex"}),
    "config": BASE | {"later"},
    "io": BASE | {"config"},
    "structure": BASE | {"config", "io"},
    "architecture": BASE | {"config", "io", "structure"},
    "merge": BASE | {"config", "io", "later", "structure", "without_effect"},
    "merge_methods": BASE | {"config", "io", "structure", "merge", "later"},
    "core": BASE | {"config", "io", "structure", "architecture", "later", "merge"},
    "training": BASE | {"config", "io", "core", "later"},
    "auto": frozenset({"core"}),
    "utils": BASE | {"core", "later"},
    "mergekit": frozenset({"config", "merge"}),
    # The face, mol/__init__.py, and the command share the top floor.
    "cli": BASE | {"config", "io", "structure", "architecture", "merge", "merge_methods", "without_effect", ""},
    "": BASE
    | {
        "config",
        "io",
        "structure",
        "architecture",
        "merge",
        "merge_methods",
        "core",
        "training",
        "auto",
        "cli",
        "later",
        "utils",
    },
}
# The floors of `core` from the ground up, each a list of packages and files; the longest name that fits counts.
FLOORS_OF_CORE = (
    ("linear", "losses", "safetensors_io", "selection", "state_dicts", "top_k", "models.heads", "models.weights"),
    ("adapters", "routers", "cache"),
    ("blocks", "mol_layer", "expert_loads"),  # any block of any model, run alone; and the layer that mixes some
    ("models", "frozen", "running", "reports.notes", "reports.stats", "reports.starved"),
    ("host", "fusion"),  # the host's own forward, with fused layers in it
    ("runtime",),  # what a fused model is
    ("building", "fitting", "reports"),
    ("pretrained",),  # the same model as transformers' models
    ("saved_runtime",),  # how it is saved and loaded
    ("mol_runtime",),  # what it offers
    ("evaluation",),
    ("",),
)
# Imported inside functions only, in rooms where they are imported at all; the rooms of fusion are made of them.
HEAVY = frozenset({"accelerate", "huggingface_hub", "numpy", "safetensors", "torch", "transformers"})
# What is installed with mol, without an extra, by the names under which it is imported; and what only types need.
LISTED = (ROOT / "pyproject.toml").read_text().split("\ndependencies = [")[1].split("]")[0]
INSTALLED = {{"PyYAML": "yaml"}.get(name, name) for name in re.findall(r'"(\w+)', LISTED)}
KNOWN = INSTALLED | sys.stdlib_module_names | {"mol", "typing_extensions"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """The room of a dotted name: `mol.io.hub` is in `io`; `mol` and what the face offers, as `mol.run_merge`, in ``."""
    name = module.split(".")[1] if "." in module else ""
    return name if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() or name == "_rust" else ""


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Those of fusion are made of torch; of training, the settings and the rows of text are not.
LIGHT_TRAINING = {"__init__", "accelerating", "callbacks", "config", "data", "progress"}
HEAVY_FILES = {
    path
    for path in MODULES
    if room(dotted(path)) in {"core", "auto"} or (room(dotted(path)) == "training" and path.stem not in LIGHT_TRAINING)
}

NAMES = {dotted(path) for path in MODULES} | {"mol._rust"}


def imports(path: Path) -> list[tuple[int, str, bool]]:
    """Each import of a file: line, absolute module, whether it runs when the module is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    found = []

    def visit(node: ast.AST, at_once: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((child.lineno, alias.name, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                for alias in child.names:  # `from mol import _rust` names a module, not something in one
                    inner = f"{module}.{alias.name}"
                    found.append((child.lineno, inner if inner in NAMES else module, at_once))
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_for_types(child):
                visit(child, at_once=False)
            else:
                visit(child, at_once)

    visit(tree, at_once=True)
    return found


def circles(imported: dict[str, set[str]]) -> list[set[str]]:
    """Find the groups of files that import each other in a circle, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    waiting: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        waiting.append(name)
        for other in sorted(imported[name]):
            if other not in order:
                visit(other)
            if other in waiting:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            group = set(waiting[waiting.index(name) :])
            del waiting[waiting.index(name) :]
            if len(group) > 1:
                found.append(group)

    for name in sorted(imported):
        if name not in order:
            visit(name)
    return found


def floor_in_core(module: str) -> int:
    """The floor of a file of `core`, by the longest name that it is or is in."""
    name = module.removeprefix("mol.core").removeprefix(".")
    fits = [
        (len(known), number)
        for number, floor in enumerate(FLOORS_OF_CORE)
        for known in floor
        if name == known or (known and name.startswith(f"{known}."))
    ]
    assert fits, f"{module}: a new file of core; give it a floor in this test"
    return max(fits)[1]


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_go_downwards(path: Path) -> None:
    here = room(dotted(path))
    assert here in ALLOWED, f"{path}: a new room `{here}`; give it a floor in this test"
    wrong = [
        f"{path}:{line}: `{here or 'mol'}` imports {module}"
        for line, module, _ in imports(path)
        if module.split(".")[0] == "mol" and room(module) not in ALLOWED[here] | {here}
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    imported = {
        dotted(path): {module for _, module, _ in imports(path) if module in NAMES} - {dotted(path), "mol._rust"}
        for path in MODULES
    }
    found = circles(imported)
    print(f"{len(found)} circles of imports:", *(", ".join(sorted(group)) for group in found), sep="\n  ")
    assert found == []


@pytest.mark.parametrize("path", [p for p in MODULES if room(dotted(p)) == "core"], ids=dotted)
def test_imports_in_core_go_downwards(path: Path) -> None:
    here = floor_in_core(dotted(path))
    wrong = [
        f"{path}:{line}: imports {module}, which is on floor {floor_in_core(module)} and not below {here}"
        for line, module, _ in imports(path)
        if room(module) == "core" and floor_in_core(module) > here
    ]
    assert not wrong


@pytest.mark.parametrize("path", [p for p in MODULES if p not in HEAVY_FILES], ids=dotted)
def test_heavy_packages_wait_until_they_are_used(path: Path) -> None:
    wrong = [
        f"{path}:{line}: imports {module}"
        for line, module, at_once in imports(path)
        if at_once and module.split(".")[0] in HEAVY
    ]
    assert not wrong


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in MODULES
        # Whether a result loads can only be seen with transformers; --check-load asks for that.
        if room(dotted(p)) in {"config", "errors", "io", "structure", "merge"} and dotted(p) != "mol.merge.check_load"
    ],
    ids=dotted,
)
def test_a_merge_imports_only_what_is_installed_with_mol(path: Path) -> None:
    wrong = [
        f"{path}:{line}: imports {module}" for line, module, _ in imports(path) if module.split(".")[0] not in KNOWN
    ]
    assert not wrong


@pytest.mark.parametrize(
    "module", ["mol", "mol.cli", "mol.merge", "mol.merge_methods", "mol.core", "mol.architecture", "mol.training"]
)
def test_an_import_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}\nprint(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
