"""The guides to fusion and evaluation: their examples run one after the other, on tiny models of their names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from mol.cli import main
from tests.fenced import fenced
from tests.seed_models import WIDE, write_seed_models

if TYPE_CHECKING:
    import pytest

GUIDE: Final = Path(__file__).parents[2] / "docs" / "fusion.md"
EVALUATION: Final = GUIDE.with_name("evaluation.md")


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(write_seed_models(tmp_path))
    for name in ("merged", "expert-a", "expert-b"):
        (tmp_path / name).symlink_to("gpt2")
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


def test_the_guide_to_evaluation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_seed_models(tmp_path))
    (tmp_path / "merged").symlink_to("gpt2")
    for name in ("law", "code"):
        (tmp_path / f"{name}.txt").write_text(f"def {name}(): pass")
    page = EVALUATION.read_text(encoding="utf-8")
    for block in fenced(page, "python"):
        exec(compile(block, str(EVALUATION), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["domain", "general", "code", "mean"]
    for command in fenced(page, "bash")[0].splitlines():
        assert main(command.split()[1:]) == 0
        assert "bits_per_byte" in capsys.readouterr().out or "--json" not in command
