"""Where merges of the engine's tests work, and work that outlasts a look at it, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.processes import make_work

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.processes import Work


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "out.partial"


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make_work(tmp_path_factory.mktemp("work"))
