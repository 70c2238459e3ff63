"""The page that mol was made after: every block of it runs as it stands there, offline, on tiny models of its names."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from mol.errors import MergeError
from tests.fenced import fenced
from tests.io.hub_server import Hub, serving, use

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.fusion, pytest.mark.timeout(300)]  # the commands are processes that import torch

PAGE: Final = Path(__file__).parent / "data" / "seed.md"
SEED: Final = PAGE.read_text(encoding="utf-8")
BLOCKS: Final = [*fenced(SEED, "python"), *fenced(SEED, "bash")]

# What each block holds, and no other block does.
FIRST_MERGE, DOMAINS, CHAT_MERGE, TIES = 'distilgpt2"],\n    parameters', "# Conversational", "DialoGPT-large", "poetry"
CHATS, PUSH, SAVING, SECURITY = "core.mol_runtime", "# Option 1", "loaded_mol", "config_trusted"
FAMILIES, HANDLER, TRAINING, PARTS = "# Encoder-decoder", "arch_info", "trainer.train", "linear_adapter"
COMMANDS, DEMO, SLERP, PIP = "# Validate", "comprehensive_demo", "./balanced_model", "pip install huggingface_hub"
PUSH_COMMANDS, CODE_COMMANDS, INSTALL = "push-hf", "# CLI with security", "requirements.txt"
SIGNS: Final = (
    FIRST_MERGE, DOMAINS, CHAT_MERGE, TIES, CHATS, PUSH, SAVING, SECURITY, FAMILIES, HANDLER, TRAINING, PARTS,
    COMMANDS, DEMO, SLERP, PIP, PUSH_COMMANDS, CODE_COMMANDS, INSTALL,
)  # fmt: skip


@pytest.fixture(scope="module")
def seed_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.seed_models import write_seed_models

    return write_seed_models(tmp_path_factory.mktemp("seed"))


@pytest.fixture(autouse=True)
def workdir(seed_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where the names of the page are models, and its commands are on the path."""
    for name in seed_models.iterdir():
        (tmp_path / name.name).symlink_to(name)
    programs = tmp_path.parent / f"{tmp_path.name}-bin"
    programs.mkdir()
    for name, module in (("python", ""), ("mol-merge", "-m mol.cli "), ("pip", "-m pip ")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block(sign: str) -> str:
    """The one block that holds `sign`."""
    (found,) = (block for block in BLOCKS if sign in block)
    return found


def run(*signs: str, **given: Any) -> dict[str, Any]:  # noqa: ANN401 - names of a block
    """Run blocks one after the other, with these names given, and return the names afterwards."""
    names = dict(given)
    for sign in signs:
        exec(compile(block(sign), str(PAGE), "exec"), names)
    return names


def shell(lines: str) -> list[tuple[int, str]]:
    """Run the commands of a block, and return how each ended and what it printed."""
    commands = re.sub(r"\\\n\s*", "", lines).splitlines()
    done = [
        subprocess.run(["bash", "-c", line], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in commands
        if line.strip() and not line.lstrip().startswith("#")
    ]
    return [(each.returncode, each.stdout) for each in done]


def read_logits(directory: str) -> Any:  # noqa: ANN401 - a tensor, where torch is not imported at once
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(directory)(torch.arange(8)[None]).logits


def test_every_block_of_the_page_is_known_here() -> None:
    """All but the two that push to the Hub, PUSH and PUSH_COMMANDS, are run below."""
    assert [sum(sign in block for sign in SIGNS) for block in BLOCKS] == [1] * len(SIGNS)
    assert SEED.count("\n```") == 2 * len(BLOCKS)


def test_the_first_commands(workdir: Path) -> None:
    (workdir / "openai-community").mkdir()
    (workdir / "openai-community/gpt2").symlink_to(workdir / "gpt2")
    (workdir / "distilbert").mkdir()
    (workdir / "distilbert/distilgpt2").symlink_to(workdir / "distilgpt2")
    assert [code for code, _ in shell("mol-merge examples ./configs")] == [0]
    (workdir / "config.yml").write_text((workdir / "configs/slerp_example.yml").read_text())
    (workdir / "configs/slerp_example.yml").unlink()
    for code, said in shell(block(COMMANDS)):
        assert code == 0, said
    assert read_logits("./merged_model").isfinite().all()
    for code, said in shell(block(SLERP).replace("mol-merge examples", "mol-merge examples --overwrite")):
        assert code == 0, said
    assert read_logits("./balanced_model").equal(read_logits("./merged_model"))


def test_a_merge_by_slerp() -> None:
    names = run(FIRST_MERGE)
    assert names["models"].keys() == {"gpt2", "distilgpt2"}
    logits = [read_logits(name) for name in ("./merged_model", "gpt2", "distilgpt2")]
    assert logits[0].isfinite().all()
    assert not any(logits[0].equal(other) for other in logits[1:])


def test_chat_models_of_unequal_width_are_refused() -> None:
    with pytest.raises(MergeError, match=r"(?s)DialoGPT-large.*wanted"):
        run(CHAT_MERGE)
    assert not Path("balanced_chatbot").exists()


def test_capabilities_by_ties() -> None:
    from mol import MergeConfig, TiesMerge

    names = run(TIES, MergeConfig=MergeConfig)
    ties = TiesMerge(names["config"])
    ties.save_merged_model(ties.merge(ties.load_models()))
    logits = [read_logits(name) for name in ("./enhanced_gpt2", "gpt2", "gpt2-finetuned-code")]
    assert not any(logits[0].equal(other) for other in logits[1:])


def test_a_chatbot_of_three_domains(capsys: pytest.CaptureFixture[str]) -> None:
    run(DOMAINS)
    assert capsys.readouterr().out.count("Expert selection: ") == 3


def test_two_chat_models_are_saved_and_loaded(tmp_path: Path) -> None:
    import torch

    from mol import MoLRuntime
    from mol.training import TrainingConfig

    names = run(CHATS, SAVING, model=torch.nn.Linear(3, 2), TrainingConfig=TrainingConfig)
    assert names["training_config"].output_dir == "./checkpoints"
    assert (tmp_path / "model.safetensors").is_file()
    assert names["metadata"] == {"version": "1.0"}
    inputs, loaded = names["inputs"], names["loaded_mol"]
    assert isinstance(loaded, MoLRuntime)
    again, _ = loaded(inputs["input_ids"], inputs["attention_mask"])
    assert torch.equal(again, names["hidden_states"])


def test_adapters_and_routers_are_trained(tmp_path: Path) -> None:
    import torch
    from torch.utils.data import DataLoader

    from mol import MoLRuntime
    from mol.training import create_simple_dataset
    from tests.seed_models import CHAT, gpt2_tokenizer

    rows = create_simple_dataset(list(CHAT), gpt2_tokenizer(), max_length=16)
    loaders = {name: DataLoader(rows, batch_size=2) for name in ("train_dataloader", "eval_dataloader")}
    names = run(CHATS, TRAINING, **loaders)
    mol, inputs = names["mol"], names["inputs"]
    after, _ = mol(inputs["input_ids"], inputs["attention_mask"])
    assert not torch.equal(after, names["hidden_states"])
    again, _ = MoLRuntime.load_checkpoint(tmp_path / "mol_checkpoints/final_checkpoint")(inputs["input_ids"])
    assert torch.equal(again, after)


DEMO_MODELS = """
import shutil
from pathlib import Path

def prepare(directory, package=None):
    for here, there in {models}.items():
        shutil.copytree(there, directory / here, dirs_exist_ok=True)
    return {answer}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo(workdir: Path) -> None:
    """The programs that fetch the small models' packages are replaced by ones that copy models of the page."""
    (workdir / "examples").mkdir()
    (workdir / "examples/comprehensive_demo.py").symlink_to(PAGE.parents[2] / "examples/comprehensive_demo.py")
    bert = str(workdir / "bert-base-uncased")
    parents = {"bert_pretrained": bert, "bert_ft": bert}
    small = {"host": str(workdir / "gpt2"), "minilm": bert}
    answers = {"rxnfp": '["Hello, how are you today?"]', "smollm2": 'directory / "host", directory / "minilm"'}
    for folder, models in (("rxnfp", parents), ("smollm2", small)):
        (workdir / "examples" / folder).mkdir()
        text = DEMO_MODELS.format(models=models, answer=answers[folder])
        (workdir / "examples" / folder / "prepare.py").write_text(text)
    lines = [line for line in block(DEMO).splitlines() if line and not line.startswith("#")]
    sections = []
    for line in lines:
        ((code, said),) = shell(f"{line} --steps 2")
        assert code == 0, said
        page = (workdir / "build/demo/demo.html").read_text()
        assert "http" not in page
        assert "<script" not in page
        assert "DIFFERENT" not in page
        assert ">nan<" not in page
        sections.append(re.findall(r"<h2>(.*?)</h2>", page))
    inference, small_run, large_run = sections
    assert "Training" not in inference
    assert {"A merge", "The fusion", "Text", "Saved and loaded"} < set(inference)
    assert {"The merge against its parents", "Training", "Perplexity: code", "Routing after training: layer 6"} < set(
        small_run
    )
    assert small_run == large_run


@pytest.fixture
def hub(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, which is the one in use, also of commands."""
    with serving({}) as server:
        server.owner = "your-username"
        use(server, monkeypatch)
        monkeypatch.setenv("HF_HOME", str(workdir / "home"))
        yield server


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own
def test_models_are_pushed(hub: Hub) -> None:
    """In Python and by the commands, each as a runtime and as a static model."""
    import torch
    from transformers import AutoModelForCausalLM

    from mol import MoLRuntime

    names = run(CHATS, PUSH)
    assert hub.messages == ["Upload MoL runtime", "Upload fused model"]
    names["mol"].save_checkpoint("./model.pt")
    pushed = dict(hub.repositories)
    hub.repositories.clear()
    hub.commits.clear()
    for code, said in shell(block(PUSH_COMMANDS)):
        assert code == 0, said
    for name, files in pushed.items():
        assert files.keys() == hub.repositories[name].keys()
        # In config.json each save has a number of its own; what was loaded states its dtypes.
        differ = {file for file in files if files[file] != hub.repositories[name][file]}
        assert differ <= ({"config.json", "README.md"} if name.endswith("mol-model") else set())
    inputs = names["inputs"]
    again, _ = MoLRuntime.from_pretrained("your-username/mol-model", cache_dir="cache")(**inputs)
    assert torch.equal(again, names["hidden_states"])
    fused = AutoModelForCausalLM.from_pretrained("your-username/fused-model", cache_dir="cache")
    assert type(fused).__name__ == "GPT2LMHeadModel"
    assert fused(**inputs).logits.isfinite().all()


def test_code_of_a_model_is_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    from mol import MoLConfig

    with caplog.at_level(logging.WARNING, "mol"):
        names = run(SECURITY, MoLConfig=MoLConfig)
    assert [names["config"].trust_remote_code, names["config_trusted"].trust_remote_code] == [False, True]
    assert len([record for record in caplog.records if "trust_remote_code" in record.message]) == 1


def test_three_families() -> None:
    import torch

    mol = run(FAMILIES)["mol_runtime"]
    hidden, stats = mol(torch.arange(8)[None], return_router_stats=True)
    assert stats["layer_0"]["experts"] == ["gpt2[0]", "bert-base-uncased[0]", "t5-small[0]"]
    assert mol.lm_head(hidden).isfinite().all()


def test_what_a_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    run(HANDLER)
    assert "Layers: 24\nHidden Dim: 64\nLayer Path: transformer.h\n" in capsys.readouterr().out


def test_a_configuration_of_models_of_unequal_width_is_refused(workdir: Path) -> None:
    commands, settings = block(CODE_COMMANDS).split("# Configuration file\n")
    (workdir / "config.yml").write_text(settings)
    for code, said in shell(commands):
        assert code == 1
        assert "bert-base-uncased" in said
    assert not (workdir / "output").exists()
    (workdir / "config.yml").write_text(settings.replace("bert-base-uncased", "distilgpt2"))
    for code, said in shell(commands.replace("./output ", "./output --overwrite ")):
        assert code == 0, said
    assert read_logits("./output").isfinite().all()


def test_parts_by_themselves() -> None:
    import torch

    names = run(PARTS)
    narrow, wide = torch.randn(2, 5, 512), torch.randn(2, 5, 768)
    assert torch.equal(names["linear_adapter"](narrow)[..., :512], narrow)
    assert names["bottleneck_adapter"](narrow).shape == wide.shape
    for router in ("simple_router", "token_router"):
        assert names[router].eval()(wide)[0].shape == (2, 5, 3)


def test_the_lines_of_pip_name_what_is_there() -> None:
    assert [code for code, _ in shell(block(PIP))] == [0]
    lines = block(INSTALL).splitlines()
    assert lines == ["pip install -r requirements.txt", "pip install -e ."]
    root = PAGE.parents[2]
    ((code, said),) = shell(f"cd {root} && {lines[0]} --no-deps")
    assert code == 0, said
    assert (root / "pyproject.toml").is_file()  # `pip install -e .` builds the extension: tests/test_install.py
