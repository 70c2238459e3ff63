"""The guide to fusion: its examples run one after the other, on tiny models of the names that they use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from tests.fenced import fenced
from tests.seed_models import WIDE, write_seed_models

if TYPE_CHECKING:
    import pytest

GUIDE: Final = Path(__file__).parents[2] / "docs" / "fusion.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(write_seed_models(tmp_path))
    (tmp_path / "corpus.txt").write_text("\n\n".join(WIDE * 3), encoding="utf-8")
    said: dict[str, Any] = {}
    for block in fenced(GUIDE.read_text(encoding="utf-8"), "python"):
        exec(compile(block, str(GUIDE), "exec"), said)
    printed = capsys.readouterr().out
    assert "layer_4: gpt2[4]" in printed
    assert "layer_5: gpt2[5]" in printed
    assert "bert-base-uncased[5-6]" in printed
    assert (tmp_path / "routing.html").stat().st_size > 1000
    with torch.no_grad():
        logits = [model(**said["inputs"]).logits for model in (said["again"], said["model"])]
    assert torch.equal(*logits)
