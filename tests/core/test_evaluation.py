"""mol.evaluate and `mol-merge eval`: bits per byte against a naive sum, the same for every way to name a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import mol
from mol.cli import main
from mol.core import MoLConfig, MoLForCausalLM, MoLMixture, MoLRuntime
from mol.errors import ConfigError, FusionError, MolError
from tests.core.tokenizers import byte_pairs
from tests.core.zoo import body_of, language_model_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOMAINS = {
    "law": ["the court finds that the party of the first part shall pay. " * 3, "Adjourned."],
    "code": ["def f(x):\n\treturn x + 1\r\n" * 6],
    "names": ["Ünïcode, mañana"],
}
LENGTH = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of models with their tokenizer: two of one shape, and one encoder."""
    root = tmp_path_factory.mktemp("evaluation")
    tokenizer = byte_pairs([text for texts in DOMAINS.values() for text in texts], 300)
    for name, seed in (("a", 1), ("b", 2)):
        language_model_of("llama", seed, vocab_size=len(tokenizer)).save_pretrained(root / name)
    language_model_of("bert", 3, vocab_size=len(tokenizer)).save_pretrained(root / "encoder")
    body_of("t5", 3, vocab_size=len(tokenizer)).save_pretrained(root / "t5")
    language_model_of("gpt2", 4, vocab_size=len(tokenizer)).save_pretrained(root / "bare")
    for name in ("a", "b", "encoder", "t5"):
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture
def models(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def naive(model: Any, tokenizer: Any, text: str, length: int, stride: int) -> float:  # noqa: ANN401
    """The sum of the tokens' negative log likelihoods in float64, a forward for each of them."""
    ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    total = 0.0
    for target in range(1, len(ids)):
        # The last token that the window of this target scores, and with it the first that it reads.
        last = length if target <= length else length + math.ceil((target - length) / stride) * stride
        first = max(min(last, len(ids) - 1) - length, 0)
        with torch.no_grad():
            logits = model(torch.tensor([ids[first:target]])).logits[0, -1]
        total -= float(logits.double().log_softmax(-1)[ids[target]])
    return total


def bits(found: mol.Evaluation) -> dict[str, float]:
    return {name: score.bits_per_byte for name, score in found.domains.items()}


@pytest.mark.parametrize("stride", [1, 10, LENGTH])
def test_bits_per_byte_are_the_naive_sum_over_the_bytes(models: Path, stride: int) -> None:
    model = AutoModelForCausalLM.from_pretrained("a")
    tokenizer = mol.MoLRuntime(MoLConfig(models=["a"])).tokenizer
    found = mol.evaluate("a", DOMAINS, max_length=LENGTH, stride=stride)
    for name, texts in DOMAINS.items():
        score = found.domains[name]
        nll = sum(naive(model, tokenizer, text, LENGTH, stride) for text in texts)
        size = sum(len(text.encode()) for text in texts)
        tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
        assert (score.documents, score.bytes, score.tokens) == (len(texts), size, tokens)
        assert score.nll == pytest.approx(nll, rel=1e-6)
        assert score.bits_per_byte == pytest.approx(nll / size / math.log(2), rel=1e-6)
        assert score.perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(sum(bits(found).values()) / 3)
    assert found.first_token == "<end>"


def test_the_size_of_a_batch_changes_nothing(models: Path) -> None:
    found = [bits(mol.evaluate("a", DOMAINS, max_length=LENGTH, batch_size=size)) for size in (1, 3, 100)]
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def test_a_longer_context_for_each_token_changes_the_score(models: Path) -> None:
    fast, exact = (mol.evaluate("a", DOMAINS, max_length=LENGTH, stride=stride) for stride in (LENGTH, 1))
    assert bits(fast)["names"] == pytest.approx(bits(exact)["names"])  # one window
    assert bits(fast)["law"] != pytest.approx(bits(exact)["law"], rel=1e-4)


def test_every_way_to_name_a_model_gives_its_score(models: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    runtime = MoLRuntime(MoLConfig(models=["a", "b"]))
    runtime.add_layer([("a", 1), ("b", 1)], 1)
    live = runtime.as_causal_lm()
    runtime.save_pretrained(tmp_path / "fused")
    runtime.save_pretrained(tmp_path / "bundle", kind="bundle")
    runtime.save_checkpoint(tmp_path / "runtime")
    wanted = bits(mol.evaluate(runtime, DOMAINS))
    for given in (live, tmp_path / "fused", str(tmp_path / "bundle"), tmp_path / "runtime", tmp_path / "runtime.pt"):
        assert bits(mol.evaluate(given, DOMAINS)) == pytest.approx(wanted, rel=1e-6)
    mixture = MoLMixture.from_models(["a", "b"])
    mixture.save_pretrained(tmp_path / "mixture")
    tokenizer = runtime.tokenizer
    wanted = bits(mol.evaluate(mixture, DOMAINS, tokenizer=tokenizer))
    assert bits(mol.evaluate(tmp_path / "mixture", DOMAINS)) == pytest.approx(wanted, rel=1e-6)
    plain = AutoModelForCausalLM.from_pretrained("a").train()
    assert bits(mol.evaluate(plain, DOMAINS)) == bits(mol.evaluate("a", DOMAINS))
    assert plain.training  # as it was


def test_a_fused_identity_scores_as_its_host(models: Path) -> None:
    runtime = MoLRuntime(MoLConfig(models=["a", "b"]))
    runtime.add_layer([("a", 2)], 2)
    assert bits(mol.evaluate(runtime, DOMAINS)) == pytest.approx(bits(mol.evaluate("a", DOMAINS)), rel=1e-6)


def test_a_merge_is_measured_like_any_directory(models: Path, tmp_path: Path) -> None:
    each = [{"model": name, "parameters": {"weight": 0.5}} for name in ("a", "b")]
    mol.run_merge({"merge_method": "linear", "models": each}, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = MoLRuntime(MoLConfig(models=["a"])).tokenizer
    found = mol.evaluate(tmp_path / "merged", DOMAINS, dtype="float32", device="cpu")
    assert bits(found) == bits(mol.evaluate(loaded, DOMAINS, tokenizer=tokenizer))


def test_texts_come_as_strings_files_and_domains(models: Path, tmp_path: Path) -> None:
    for name, texts in DOMAINS.items():
        (tmp_path / f"{name}.txt").write_bytes(texts[0].encode())
    lines = "\n\n".join(json.dumps({"text": text, "id": 1}) for text in DOMAINS["law"])
    (tmp_path / "law.jsonl").write_text(lines)
    wanted = bits(mol.evaluate("a", DOMAINS))
    for texts, names in (
        ([tmp_path / "code.txt", tmp_path / "names.txt"], {"code": "code", "names": "names"}),
        ({"law": tmp_path / "law.jsonl"}, {"law": "law"}),
        (DOMAINS["names"], {"texts": "names"}),
        ({"one": DOMAINS["code"][0]}, {"one": "code"}),
    ):
        found = bits(mol.evaluate("a", texts))
        assert found == pytest.approx({called: wanted[name] for called, name in names.items()}, rel=1e-6)
    both = mol.evaluate("a", [tmp_path / "law.txt", tmp_path / "law.jsonl"])
    assert [*both.domains] == [str(tmp_path / "law.txt"), str(tmp_path / "law.jsonl")]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], ["there are none|no document"]),
        ({}, ["there are none"]),
        ({"law": [], "code": ["", "x", " \n"]}, ["law has no document", "document 1 of code", "document 3 of code"]),
        (
            [Path("empty.txt"), Path("latin.txt")],
            [r"document 1 of empty\.txt is empty", r"latin\.txt is no text in UTF-8"],
        ),
        ([Path("bad.jsonl")], [r"bad\.jsonl, line 2: .* is no JSON object with a `text`"]),
        ([Path("empty.txt"), "x"], ["strings and paths"]),
        ({"law": [3]}, ["law holds a int"]),
    ],
)
def test_texts_that_cannot_be_measured_are_refused(
    texts: Any,  # noqa: ANN401
    says: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes(b"\xe9t\xe9")
    Path("bad.jsonl").write_text('{"text": "x"}\n{"words": 1}\n')
    with pytest.raises(ConfigError, match="(?s)" + ".*".join(says)):
        mol.evaluate("never opened", texts)


@pytest.mark.parametrize(
    ("model", "options", "error", "says"),
    [
        (
            "encoder",
            {},
            FusionError,
            "encoder .BertLMHeadModel. cannot be measured: its outputs depend on later tokens",
        ),
        ("t5", {}, FusionError, "t5 is a t5, of which transformers has no causal language model"),
        ("bare", {}, OSError, "no tokenizer next to its config.json"),
        ("a", {"max_length": 1000}, ConfigError, "max_length is 1000, and a is made for 64 tokens"),
        ("a", {"stride": 65}, ConfigError, "stride is 65, more than max_length, 64"),
        ("a", {"batch_size": 0}, ConfigError, "batch_size is 0, wanted a whole number of at least 1"),
        ("a", {"dtype": "int8"}, MolError, "int8"),
        ("missing", {}, (MolError, OSError), "missing"),
        (3, {}, ConfigError, "the model is a int"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    models: Path,
    model: Any,  # noqa: ANN401
    options: Mapping[str, Any],
    error: type[Exception] | tuple[type[Exception], ...],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        mol.evaluate(model, DOMAINS, **options)


def test_a_loaded_model_is_refused_options_of_loading_and_a_foreign_tokenizer(models: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained("a")
    with pytest.raises(ConfigError, match="dtype is for a model that is given by name"):
        mol.evaluate(loaded, DOMAINS, dtype="float64")
    loaded.name_or_path = loaded.config.name_or_path = ""
    with pytest.raises(ConfigError, match="no tokenizer that can be found: give tokenizer="):
        mol.evaluate(loaded, DOMAINS)
    small = language_model_of("llama", vocab_size=20)
    tokenizer = MoLRuntime(MoLConfig(models=["a"])).tokenizer
    with pytest.raises(ConfigError, match="and LlamaForCausalLM 20 tokens: give its own tokenizer"):
        mol.evaluate(small, DOMAINS, tokenizer=tokenizer)
    with torch.no_grad():
        loaded.lm_head.weight[0] = math.nan
    with pytest.raises(MolError, match="returns NaN or infinity for document 1 of law"):
        mol.evaluate(loaded, DOMAINS, tokenizer=tokenizer)


def test_the_command_prints_a_table_or_a_document(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, texts in DOMAINS.items():
        (tmp_path / f"{name}.txt").write_bytes(texts[0].encode())
    files = [str(tmp_path / f"{name}.txt") for name in DOMAINS]
    assert main(["eval", "a", "--texts", *files, "--max-length", "24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = mol.evaluate("a", {name: texts[0] for name, texts in DOMAINS.items()}, max_length=24)
    assert found == json.loads(json.dumps(wanted.to_dict()))
    assert main(["eval", "a", "--texts", *files, "--max-length", "24"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == str(wanted).splitlines()
    assert "window" not in shown.err  # no bar outside of a terminal
    assert shown.out.splitlines()[0] == "domain  documents  bytes  tokens  bits/byte  perplexity"
    assert main(["eval", "encoder", "--texts", *files]) == 1
    assert "cannot be measured" in capsys.readouterr().err
    assert main(["eval", "a", "--texts", "nothing.txt"]) == 2
    assert main(["eval", "a"]) == 2


@pytest.mark.parametrize("kind", ["merged", "fused"])
def test_lm_eval_agrees_on_a_directory(
    models: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install lm_eval")
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    if kind == "merged":
        each = [{"model": name, "parameters": {"weight": 0.5}} for name in ("a", "b")]
        mol.run_merge({"merge_method": "linear", "models": each}, tmp_path / kind)
    else:
        runtime = MoLRuntime(MoLConfig(models=["a", "b"]))
        runtime.add_layer([("a", 1), ("b", 1)], 1)
        runtime.save_pretrained(tmp_path / kind)
        assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / kind), MoLForCausalLM)
    texts = DOMAINS["law"] + DOMAINS["code"]
    (tmp_path / "documents.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    task = {
        "task": "documents",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "documents.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    }
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "documents.yaml").write_text(json.dumps(task))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / kind), "max_length": LENGTH, "dtype": "float32"},
        tasks=["documents"],
        task_manager=tasks.TaskManager(include_path=str(tmp_path / "task"), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
    )["results"]["documents"]
    mine = mol.evaluate(tmp_path / kind, texts, max_length=LENGTH, stride=LENGTH, dtype="float32")
    assert found["bits_per_byte,none"] == pytest.approx(mine.bits_per_byte, rel=1e-5)
    assert found["byte_perplexity,none"] == pytest.approx(2**mine.bits_per_byte, rel=1e-5)
