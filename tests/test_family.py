"""The family of examples/family: no leak between its texts, transformers alone loads it, the committed figures hold."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
FAMILY = ROOT / "examples" / "family"
MODELS = FAMILY / "models"
RESULTS = ROOT / "benches" / "evidence" / "results"
NAMES = ("base", "python", "kjv", "wordnet")
# Under load a minute is not enough to load torch and measure.
pytestmark = pytest.mark.timeout(300)
DOMAINS = ("general", "python", "kjv", "wordnet")


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("family_texts", FAMILY / "texts.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of(texts: ModuleType, split: str, domains: tuple[str, ...] = DOMAINS) -> list[str]:
    return [text for domain in domains for text in texts.read(domain, split)]


def test_thirteen_words_in_a_row_are_found(texts: ModuleType) -> None:
    first = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    assert texts.shared([f"Zero; {first.upper()}."], [first]) == 2
    assert texts.shared([first.rsplit(maxsplit=2)[0]], [first]) == 0
    assert texts.shared(["word " * 30], [first, "a word " * 20]) == 0


def test_no_text_of_a_split_is_in_another(texts: ModuleType) -> None:
    test, validation = of(texts, "test"), of(texts, "validation")
    assert texts.shared(test, validation) == 0
    assert texts.shared(of(texts, "train", DOMAINS[1:]), [*test, *validation]) == 0


@pytest.mark.skipif(not (ROOT / "build/family/general.train.jsonl.xz").exists(), reason="the base's text is not made")
def test_the_base_was_not_trained_on_what_is_measured(texts: ModuleType) -> None:
    assert texts.shared(texts.read("general", "train"), [*of(texts, "test"), *of(texts, "validation")]) == 0


def test_what_is_shipped_is_small_and_described() -> None:
    weights = [MODELS / name / "model.safetensors" for name in NAMES]
    assert sum(path.stat().st_size for path in weights) < 40e6
    for name in NAMES:
        head, *log = map(json.loads, (MODELS / name / "log.jsonl").read_text().splitlines())
        assert log[-1]["step"] == head["run"]["steps"]
        assert str(log[-1]["validation_loss"]) in (MODELS / name / "README.md").read_text()


@pytest.mark.fusion
def test_transformers_alone_loads_the_family() -> None:
    code = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for path in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert model.dtype == torch.bfloat16
    text = "In the beginning: def naïve(x):\\n\\treturn x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=3)
assert "mol" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, *(str(MODELS / name) for name in NAMES)], check=True, cwd=MODELS)


@pytest.mark.fusion
@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_the_committed_figures(texts: ModuleType, name: str) -> None:
    import mol

    documents = json.loads((RESULTS / f"{name}.0.json").read_text())["documents"]
    some = {domain: texts.read(domain, "test")[0][:4000] for domain in DOMAINS}
    found = mol.evaluate(MODELS / name, some, stride=256, dtype="float32").domains
    for domain, score in found.items():
        nll, size = documents[domain][0]
        assert score.bytes == size
        assert score.nll == pytest.approx(nll, rel=1e-4)


def test_the_page_is_what_the_results_give(tmp_path: Path) -> None:
    command = [sys.executable, "benches/evidence/run.py", "page", "--docs", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    for name in ("evidence.md", "evidence/rows.svg", "evidence/cost.svg"):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text()
