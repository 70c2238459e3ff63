"""The guide to training: its examples run one after the other, on tiny models of the names that they use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from tests.fenced import fenced
from tests.seed_models import WIDE, write_seed_models

if TYPE_CHECKING:
    import pytest

GUIDE: Final = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(write_seed_models(tmp_path))
    (tmp_path / "corpus.txt").write_text("\n\n".join(WIDE * 2), encoding="utf-8")
    said: dict[str, Any] = {}
    for block in fenced(GUIDE.read_text(encoding="utf-8"), "python"):
        exec(compile(block, str(GUIDE), "exec"), said)
    before, after = (
        float(line.split("'eval_lm_loss': ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()
    )
    assert after < before
    stems = {path.name.split(".")[0] for path in (tmp_path / "checkpoints").iterdir()}
    assert stems == {"best_checkpoint", "final_checkpoint"}
    said["trainer"].train(said["train_dataloader"], said["eval_dataloader"])
    assert said["trainer"].global_step <= 6
    assert torch.isfinite(torch.tensor(said["trainer"].best_loss))
