"""Hooks for all tests: those of fusion need the extra, the Hub is a server of the tests, no shell sets a width."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# The Hub of the tests is a server on this machine; it stores no Xet. huggingface_hub reads both when it is imported.
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ["HF_HUB_DISABLE_XET"] = "1"

# Without the extra, what imports torch as it is collected is left out, and the other tests of fusion are skipped.
MISSING = [package for package in ("torch", "transformers") if find_spec(package) is None]
EXTRA = "needs the extra: pip install 'mol-merge[fusion]'"
collect_ignore = ["core", "training"] if MISSING else []


def pytest_report_header() -> list[str]:
    return (
        [f"no {' and no '.join(MISSING)}: tests/core, tests/training are left out, tests marked fusion are skipped"]
        if MISSING
        else []
    )


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {Path(__file__).parent / "core", Path(__file__).parent / "training"} & {*item.path.parents}:
            item.add_marker(pytest.mark.fusion)
        if MISSING and item.get_closest_marker("fusion"):
            item.add_marker(pytest.mark.skip(reason=EXTRA))


@pytest.fixture(autouse=True)
def unset_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are compared whole, whatever width the shell exports; tests of wrapping set their own."""
    monkeypatch.delenv("COLUMNS", raising=False)
