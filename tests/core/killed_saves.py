"""Saves over an older save again and again, killed at one call of the file system later each time; prints what loads.

Run as a program, `python -m tests.core.killed_saves MODELS WORK KIND`: a process that dies takes nothing else with it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from mol.auto import MoLForCausalLM
from mol.config.mol_config import MoLConfig
from mol.core.mol_runtime import MoLRuntime

STEPS = ("open", "os.link", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile")


def save(model: MoLForCausalLM, directory: Path, kind: str, kill_at: int) -> bool:
    """Save in a process of its own that dies before the given step, and return whether it did."""
    child = os.fork()
    if child == 0:
        left = [kill_at]

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event in STEPS and str(arguments[0]).startswith(str(directory)):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(watch)
        model.save_pretrained(directory, kind=kind)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def main(models: Path, work: Path, kind: str) -> None:
    """Print old or new for each step, or neither."""
    ids = torch.arange(5, 13)[None]
    wanted, fusions = {}, {}
    for name, seed in (("old", 0), ("new", 1)):
        torch.manual_seed(seed)
        names = [str(models / "gpt2"), str(models / "llama")]
        runtime = MoLRuntime(MoLConfig(models=names, temperature=1.0 + seed))
        runtime.add_layer([(each, seed) for each in names], seed)
        fusions[name] = runtime.as_causal_lm()
        with torch.no_grad():
            for parameter in fusions[name].parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        wanted[name] = fusions[name](ids).logits
    fusions["old"].save_pretrained(work / "old", kind=kind)
    step, died = 0, True
    while died:
        shutil.copytree(work / "old", work / "over")
        died = save(fusions["new"], work / "over", kind, step)
        found = MoLForCausalLM.from_pretrained(work / "over")(ids).logits
        print(next((name for name, logits in wanted.items() if torch.equal(found, logits)), "neither"))
        fusions["new"].save_pretrained(work / "over", kind=kind)
        found = MoLForCausalLM.from_pretrained(work / "over")(ids).logits
        assert torch.equal(found, wanted["new"])
        assert not list((work / "over").glob(".mol-save-*"))
        shutil.rmtree(work / "over")
        step += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
