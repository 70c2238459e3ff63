"""A bundle: a fusion or a mixture saved with copies of what it uses of its models, loaded where those are not."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mol import MoLConfig, MoLMixture, MoLRuntime
from mol.auto import MoLForCausalLM
from mol.errors import CheckpointError, ConfigError, MolError
from tests.core.test_checkpoints import IDS, assert_same, outputs, shaken
from tests.core.tokenizers import word_pieces
from tests.core.zoo import SOURCES, T5_DECODER, language_model_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core.conftest import Fuse


@pytest.fixture
def away(models: Path, tmp_path: Path) -> Path:
    """A directory with gpt2 and llama, which a test may remove."""
    for name in ("gpt2", "llama"):
        shutil.copytree(models / name, tmp_path / "away" / name)
    return tmp_path / "away"


@pytest.fixture
def runtime(away: Path, fuse: Fuse) -> MoLRuntime:
    """Of gpt2 with one block of llama."""
    runtime = fuse(str(away / "gpt2"), str(away / "llama"), layers=())
    runtime.add_layer([(str(away / "gpt2"), 1), (str(away / "llama"), 2)], 1)
    return shaken(runtime)


def test_a_bundle_loads_where_its_models_are_not(runtime: MoLRuntime, away: Path, tmp_path: Path) -> None:
    wanted = outputs(runtime)
    assert runtime.save_checkpoint(tmp_path / "here/model.pt", kind="bundle") == tmp_path / "here/model"
    shutil.rmtree(away)
    (tmp_path / "here").rename(tmp_path / "there")
    for again in (
        MoLRuntime.load_checkpoint(tmp_path / "there/model.pt"),
        MoLRuntime.load_checkpoint(tmp_path / "there/model"),
        MoLRuntime.from_pretrained(tmp_path / "there/model"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "there/model").runtime,
    ):
        for here, there in zip(wanted, outputs(again), strict=True):
            assert torch.equal(here, there)


def test_of_other_models_only_blocks_in_use_are_copied(runtime: MoLRuntime, tmp_path: Path) -> None:
    runtime.save_pretrained(tmp_path / "bundle", kind="bundle")
    copied = load_file(tmp_path / "bundle/models/1/model.safetensors")
    assert copied
    assert all(name.startswith("model.layers.2.") for name in copied)
    assert sorted(path.name for path in (tmp_path / "bundle/models/1").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [*SOURCES, T5_DECODER])
def test_blocks_of_every_kind_are_complete_in_a_bundle(
    kind: str, fuse: Fuse, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "gpt2":
        pytest.skip("it is the host")
    runtime = fuse("gpt2", kind, layers=())
    runtime.add_layer([("gpt2", 0), (kind, 2)], 0)
    runtime.add_layer([(kind, [1, 2])], 2)
    wanted = outputs(shaken(runtime))
    runtime.save_pretrained(tmp_path / "bundle", kind="bundle")
    monkeypatch.chdir(tmp_path)
    settings = json.loads((tmp_path / "bundle/config.json").read_text())
    assert {record["path"] for record in settings["mol_save"]["models"].values()} == {"models/0", "models/1"}
    for here, there in zip(wanted, outputs(MoLRuntime.from_pretrained("bundle")), strict=True):
        assert torch.equal(here, there)


def test_shards_casts_and_models_that_were_loaded_whole_come_back(away: Path, fuse: Fuse, tmp_path: Path) -> None:
    language_model_of("llama", seed=1).save_pretrained(away / "llama", max_shard_size="20KB")
    assert len(list((away / "llama").glob("*.safetensors"))) > 2
    names = [str(away / name) for name in ("gpt2", "llama")]
    runtime = shaken(fuse(*names, dtype="bfloat16", memory_efficient=False, layers=(1,)))
    runtime.save_pretrained(tmp_path / "bundle", kind="bundle")
    shutil.rmtree(away)
    assert_same(runtime, MoLRuntime.from_pretrained(tmp_path / "bundle"))


def test_the_hosts_tokenizer_and_settings_of_generation_are_in_a_bundle(
    runtime: MoLRuntime, away: Path, tmp_path: Path
) -> None:
    word_pieces(["a few words"], 60).save_pretrained(away / "gpt2")
    model = runtime.as_causal_lm()
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path / "bundle", kind="bundle")
    shutil.rmtree(away)
    again = MoLForCausalLM.from_pretrained(tmp_path / "bundle")
    assert again.generation_config.max_new_tokens == 3
    ids = again.runtime.tokenizer("a few words")["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(tmp_path / "bundle")("a few words")["input_ids"]


def test_a_bundle_is_saved_again_over_itself_and_elsewhere(runtime: MoLRuntime, away: Path, tmp_path: Path) -> None:
    runtime.save_pretrained(tmp_path / "bundle", kind="bundle")
    shutil.rmtree(away)
    again = shaken(MoLRuntime.from_pretrained(tmp_path / "bundle"))
    with pytest.raises(ConfigError, match=r'which this save would remove; pass kind="bundle", or save to another'):
        again.save_pretrained(tmp_path / "bundle")
    for _ in range(2):
        again.save_pretrained(tmp_path / "bundle", kind="bundle")
        assert_same(again, MoLRuntime.from_pretrained(tmp_path / "bundle"))
    again.save_pretrained(tmp_path / "other", kind="bundle")
    again.save_checkpoint(tmp_path / "named")
    assert_same(again, MoLRuntime.load_checkpoint(tmp_path / "named"))  # by the copies in the bundle
    shutil.rmtree(tmp_path / "bundle")
    assert_same(again, MoLRuntime.load_checkpoint(tmp_path / "other"))


def test_a_save_without_copies_removes_those_of_an_older_one(runtime: MoLRuntime, tmp_path: Path) -> None:
    runtime.save_pretrained(tmp_path / "fused", kind="bundle")
    runtime.save_pretrained(tmp_path / "fused")
    assert not (tmp_path / "fused/models").exists()
    (tmp_path / "fused/models").mkdir()
    (tmp_path / "fused/models/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"models is there, and no save wrote it"):
        runtime.save_pretrained(tmp_path / "fused", kind="bundle")
    runtime.save_pretrained(tmp_path / "fused")
    assert (tmp_path / "fused/models/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("model", [0, 1])
@pytest.mark.parametrize("where", [4, -1, None])
def test_a_damaged_or_missing_copy_is_refused(
    model: int, where: int | None, runtime: MoLRuntime, away: Path, tmp_path: Path
) -> None:
    runtime.save_pretrained(tmp_path / "bundle", kind="bundle")
    shutil.rmtree(away)
    path = tmp_path / f"bundle/models/{model}/model.safetensors"
    content = bytearray(path.read_bytes())
    if where is None:
        path.unlink()
    else:
        content[where] ^= 1
        path.write_bytes(content)
    with pytest.raises((MolError, FileNotFoundError), match=rf"models/{model}"):
        MoLRuntime.from_pretrained(tmp_path / "bundle")


def test_another_model_instead_of_a_copy_is_refused(
    runtime: MoLRuntime, away: Path, models: Path, tmp_path: Path
) -> None:
    runtime.save_pretrained(tmp_path / "bundle", kind="bundle")
    copy = tmp_path / "bundle/models/1"
    language_model_of("llama", seed=9).save_pretrained(copy)
    with pytest.raises(CheckpointError, match=r"models/1\) is not the model that the fusion was saved with"):
        MoLRuntime.from_pretrained(tmp_path / "bundle")
    shutil.rmtree(copy)  # then the model itself is taken, where it still is
    assert_same(runtime, MoLRuntime.from_pretrained(tmp_path / "bundle"))


def test_files_that_changed_since_they_were_opened_are_not_copied(
    runtime: MoLRuntime, away: Path, tmp_path: Path
) -> None:
    language_model_of("llama", seed=9).save_pretrained(away / "llama")
    with pytest.raises(CheckpointError, match="its files have changed since it was opened, so they are not copied"):
        runtime.save_pretrained(tmp_path / "bundle", kind="bundle")
    assert not list((tmp_path / "bundle").iterdir())


def test_there_are_two_kinds_of_saves(runtime: MoLRuntime, tmp_path: Path) -> None:
    for save in (runtime.save_checkpoint, runtime.save_pretrained):
        with pytest.raises(ConfigError, match="kind is 'fused', wanted one of runtime, bundle"):
            save(tmp_path / "x", kind="fused")  # type: ignore[operator]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("weights", ["posterior", "router"])
def test_a_mixture_is_bundled_too(weights: str, away: Path, tmp_path: Path) -> None:
    tokenizer = word_pieces(["a few words"], 60)
    names = [str(away / name) for name in ("gpt2", "llama")]
    for name in names:
        tokenizer.save_pretrained(name)
    mixture = MoLMixture.from_models(names, weights=weights)  # type: ignore[arg-type]
    wanted = mixture(IDS).logits
    mixture.save_pretrained(tmp_path / "mixture", kind="bundle")
    shutil.rmtree(away)
    again = MoLMixture.from_pretrained(tmp_path / "mixture")
    assert torch.equal(again(IDS).logits, wanted)
    again.save_pretrained(tmp_path / "mixture", kind="bundle")
    assert torch.equal(MoLMixture.from_pretrained(tmp_path / "mixture")(IDS).logits, wanted)
    bare = MoLMixture.from_models([language_model_of("gpt2")])
    with pytest.raises(ConfigError, match="mixed as a model in memory, which has no files to copy"):
        bare.save_pretrained(tmp_path / "bare", kind="bundle")


def test_the_card_says_what_is_in_a_save(runtime: MoLRuntime, away: Path, tmp_path: Path) -> None:
    (away / "gpt2/README.md").write_text("---\nlicense: mit\n---\n")
    (away / "llama/README.md").write_text("---\nlicense: other\nlicense_name: llama3\n---\n")
    runtime.save_pretrained(tmp_path / "fused")
    card = (tmp_path / "fused/README.md").read_text()
    assert "# Fusion of gpt2 and llama\n" in card
    assert "adapters and routers; its models are fetched by name" in card
    assert "- `gpt2` (host)\n- `llama`\n" in card
    assert "do not all state the same license (gpt2: mit; llama: llama3)" in card
    assert "| 1 | `gpt2[1]`, `llama[2]` |" in card
    assert 'model = mol.MoLRuntime.from_pretrained("DIR")' in card
    assert str(tmp_path) not in card
    runtime.save_pretrained(tmp_path / "bundle", kind="bundle")
    assert "in `models/` copies of all that is used" in (tmp_path / "bundle/README.md").read_text()
    shutil.rmtree(away)
    MoLRuntime.from_pretrained(tmp_path / "bundle").save_pretrained(tmp_path / "again", kind="bundle")
    assert "(gpt2: mit; llama: llama3)" in (tmp_path / "again/README.md").read_text()


def test_a_card_that_was_edited_is_left_alone(runtime: MoLRuntime, away: Path, tmp_path: Path) -> None:
    runtime.save_pretrained(tmp_path / "fused")
    (tmp_path / "fused/README.md").write_text("mine")
    word_pieces(["a few words"], 60).save_pretrained(away / "gpt2")
    runtime.save_pretrained(tmp_path / "fused")
    assert (tmp_path / "fused/README.md").read_text() == "mine"
    assert (tmp_path / "fused/tokenizer.json").is_file()


def test_settings_that_differ_from_the_defaults_are_in_the_card(fuse: Fuse, tmp_path: Path) -> None:
    runtime = fuse("gpt2", "llama", temperature=0.5, dtype={"llama": "bfloat16"}, device_map="cpu")
    runtime.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "- temperature: `0.5`\n- dtype: `{'llama': 'bfloat16'}`\n" in card
    assert "device" not in card
    MoLRuntime(MoLConfig(["gpt2"])).save_pretrained(tmp_path)
    assert "## Settings" not in (tmp_path / "README.md").read_text()
