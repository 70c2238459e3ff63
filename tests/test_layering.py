"""Imports between the packages of mol go downwards only, and nothing that a merge imports at once is heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "mol"

# Each room, and the rooms whose modules it may import at any depth of nesting; its own are always allowed.
ALLOWED = {
    "errors": frozenset(),
    "later": frozenset(),
    "size": frozenset({"errors"}),
    "_rust": frozenset(),
    "config": frozenset({"size", "later", "errors"}),
    "io": frozenset({"size", "errors", "config", "_rust"}),
    "architecture": frozenset({"errors", "config", "_rust", "io"}),
    "merge": frozenset({"size", "errors", "config", "_rust", "io", "architecture", "without_effect"}),
    "merge_methods": frozenset({"later", "errors", "config", "_rust", "io", "architecture", "merge"}),
    "core": frozenset({"size", "later", "errors", "config", "_rust", "io", "architecture"}),
    "auto": frozenset({"core"}),
    "mergekit": frozenset({"config", "merge"}),
    "without_effect": frozenset(),
    # The face, mol/__init__.py, and the command share the top floor.
    "cli": frozenset(
        {"size", "errors", "config", "_rust", "io", "architecture", "merge", "merge_methods", "without_effect", ""}
    ),
    "": frozenset(
        {
            "size",
            "later",
            "errors",
            "config",
            "_rust",
            "io",
            "architecture",
            "merge",
            "merge_methods",
            "cli",
            "core",
            "auto",
        }
    ),
}
# Imported inside functions only, in rooms where they are imported at all; the rooms of fusion are made of them.
HEAVY = frozenset({"accelerate", "huggingface_hub", "numpy", "safetensors", "torch", "transformers"})
# Not even there: what runs a merge must work without the extra.
FUSION = frozenset({"accelerate", "torch", "transformers"})

MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """The room of a dotted name: `mol.io.hub` is in `io`; `mol` and what the face offers, as `mol.run_merge`, in ``."""
    name = module.split(".")[1] if "." in module else ""
    return name if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() or name == "_rust" else ""


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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
                if module == "mol":  # `from mol import _rust` names a module, not something in one
                    found.extend((child.lineno, f"mol.{alias.name}", at_once) for alias in child.names)
                else:
                    found.append((child.lineno, module, at_once))
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_for_types(child):
                visit(child, at_once=False)
            else:
                visit(child, at_once)

    visit(tree, at_once=True)
    return found


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


@pytest.mark.parametrize("path", [p for p in MODULES if room(dotted(p)) not in {"core", "auto"}], ids=dotted)
def test_heavy_packages_wait_until_they_are_used(path: Path) -> None:
    wrong = [
        f"{path}:{line}: imports {module}"
        for line, module, at_once in imports(path)
        if at_once and module.split(".")[0] in HEAVY
    ]
    assert not wrong


@pytest.mark.parametrize(
    "path", [p for p in MODULES if room(dotted(p)) in {"config", "errors", "io", "merge"}], ids=dotted
)
def test_what_a_merge_runs_never_names_torch(path: Path) -> None:
    wrong = [f"{path}:{line}: imports {module}" for line, module, _ in imports(path) if module.split(".")[0] in FUSION]
    assert not wrong


@pytest.mark.parametrize("module", ["mol", "mol.cli", "mol.merge", "mol.merge_methods", "mol.core", "mol.architecture"])
def test_an_import_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}\nprint(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
