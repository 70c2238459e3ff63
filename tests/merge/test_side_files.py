"""Which files a merge copies from whom, what it leaves out and says of it, and what a hostile input cannot slip in."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.numpy import save_file

from mol.errors import CheckpointError, MergeError
from mol.merge import plan_recipe, run_merge
from tests.merge.models import contents_of, llama_config, llama_tensors, make_llama
from tests.merge.test_run_output import linear, make_rich, merge

if TYPE_CHECKING:
    from collections.abc import Callable

OWN = {"AutoModelForCausalLM": "modeling_own.Own"}


def write(directory: Path, *names: str, text: str = "private") -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def test_what_is_no_file_of_a_model_is_left_out_with_one_note(tmp_path: Path) -> None:
    donor, other = make_llama(tmp_path / "a", 1, LICENSE="MIT"), make_llama(tmp_path / "b", 2)
    write(
        donor, "wandb/run-1/files/output.log", "runs/events.out.tfevents.1", "nohup.out", "trainer_state.json",
        "data/train.jsonl", "id_rsa", "notebook.ipynb", "mergekit_config.yml", "optimizer.pt", "checkpoint-5/x.bin",
    )  # fmt: skip
    out, notes = merge(tmp_path, linear(donor, other))
    assert sorted(contents_of(out)) == [
        "LICENSE", "README.md", "config.json", "mergekit_config.yml", "model.safetensors", "mol_manifest.json",
        "tokenizer.json",
    ]  # fmt: skip
    assert not any(b"private" in content for content in contents_of(out).values())
    assert "not copied, since they hold other weights: checkpoint-5/, optimizer.pt" in notes
    assert (
        "not copied, since they are not known to be part of a model: data/, id_rsa, nohup.out, notebook.ipynb, runs/, "
        "trainer_state.json, wandb/"
    ) in notes
    for name in ("README.md", "mol_manifest.json"):  # which are published, and names of files may be private
        assert "id_rsa" not in (out / name).read_text()


def test_a_long_list_of_what_stays_behind_is_cut(tmp_path: Path) -> None:
    donor = make_llama(tmp_path / "a", 1)
    write(donor, *(f"figure{i:02}.png" for i in range(25)))
    notes = plan_recipe(linear(donor)).notes
    assert any(note.endswith("figure18.png, figure19.png, and 5 more") for note in notes)


def test_a_name_of_what_stays_behind_cannot_break_the_line(tmp_path: Path) -> None:
    donor = make_llama(tmp_path / "a", 1)
    write(donor, "x\ny\x1b[2J", os.fsdecode(b"\xff"))
    notes = plan_recipe(linear(donor)).notes
    assert r"not copied, since they are not known to be part of a model: 'x\ny\x1b[2J', '\udcff'" in notes


def test_every_file_is_listed_with_its_size_before_the_merge(tmp_path: Path) -> None:
    donor, other = make_rich(tmp_path / "a"), make_llama(tmp_path / "b", 2, tokenizer_config__json={"own": True})
    recipe = linear(donor, other, tokenizer_source=str(other))
    planned = plan_recipe(recipe)
    out, _ = merge(tmp_path, recipe, out_shard_size=1500)
    listed = {file.name: file for file in planned.side_files}
    index = "model.safetensors.index.json"
    assert listed.keys() == {name for name in contents_of(out) if not name.endswith(".safetensors")} - {index}
    for name, file in listed.items():
        if name == "mol_manifest.json":
            assert file.size >= (out / name).stat().st_size + (out / index).stat().st_size
        else:
            assert file.size == (out / name).stat().st_size
    assert listed["LICENSE"].source == str(donor)
    assert listed["tokenizer_config.json"].source == str(other)
    assert listed["config.json"].source is None


def test_the_manifest_names_every_other_file_with_size_and_digest(tmp_path: Path) -> None:
    out, _ = merge(tmp_path, linear(make_rich(tmp_path / "a"), make_llama(tmp_path / "b", 2)), out_shard_size=1500)
    entries = json.loads((out / "mol_manifest.json").read_text())["side_files"]
    found = contents_of(out)
    assert [entry["name"] for entry in entries] == sorted(
        name for name in found if not name.endswith(".safetensors") and name != "mol_manifest.json"
    )
    for entry in entries:
        data = found[entry["name"]]
        assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("name", ["LICENSE", "vocab.txt", "tokenizer_config.json", "1_Pooling/config.json"])
def test_a_link_to_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    donor = make_llama(tmp_path / "a", 1)
    (tmp_path / "secret").write_text("{}")
    (donor / name).parent.mkdir(exist_ok=True)
    (donor / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to .*secret, outside of the model's directory"):
        merge(tmp_path, linear(donor))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "secret"]


def test_links_of_what_is_not_copied_are_no_fault(tmp_path: Path) -> None:
    donor = make_llama(tmp_path / "a", 1)
    (donor / "debug.log").symlink_to("gone")
    (donor / "passwords").symlink_to("/etc/passwd")
    (donor / "wandb").symlink_to(tmp_path)
    os.mkfifo(donor / "pipe")
    out, notes = merge(tmp_path, linear(donor))
    assert "not copied, since they are not known to be part of a model: debug.log, passwords, pipe, wandb" in notes
    assert not {"debug.log", "passwords", "pipe"} & set(contents_of(out))


def test_a_chat_template_that_is_a_link_elsewhere_is_not_taken(tmp_path: Path) -> None:
    donor, other = make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2)
    (other / "chat_template.jinja").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="is a link to /etc/passwd"):
        merge(tmp_path, linear(donor, other, chat_template="auto"))


def test_a_pipe_with_the_name_of_a_side_file_is_refused(tmp_path: Path) -> None:
    donor = make_llama(tmp_path / "a", 1)
    os.mkfifo(donor / "merges.txt")
    with pytest.raises(CheckpointError, match=r"merges\.txt is a pipe"):
        merge(tmp_path, linear(donor))


@pytest.mark.parametrize("name", ["tokenizer.model", "merges.txt", "processor_config.json", "1_Pooling/config.json"])
def test_a_pointer_instead_of_a_side_file_is_refused(name: str, tmp_path: Path) -> None:
    donor = make_llama(tmp_path / "a", 1)
    write(donor, name, text="version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4241003\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a git-lfs pointer for a file of 4.24 MB"):
        merge(tmp_path, linear(donor))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("processor_config.json", json.dumps({"auto_map": OWN})),
        ("tokenizer_config.json", '{"\\u0061uto_map": {"AutoTokenizer": ["own.Slow", null]}}'),
        ("tokenizer_config.json", json.dumps({"a": [{"b": {"auto_map": OWN}}]})),
        ("generation_config.json", json.dumps({"auto_map": OWN, "eos_token_id": 2})),
        ("video_preprocessor_config.json", json.dumps({"deep": {"auto_map": OWN, "kept": 1}})),
        ("1_Pooling/config.json", json.dumps({"auto_map": OWN})),
        ("special_tokens_map.json", json.dumps({"auto_map": OWN})),
        ("config.json", json.dumps(llama_config() | {"text_config": {"auto_map": OWN}})),
        ("config.json", json.dumps(llama_config() | {"custom_pipelines": {"x": {"impl": "own.Pipeline"}}})),
    ],
)
def test_what_points_to_code_is_taken_out_wherever_it_stands(name: str, text: str, tmp_path: Path) -> None:
    donor = make_llama(tmp_path / "a", 1)
    write(donor, name, text=text)
    write(donor, "modeling_own.py", text="raise SystemExit")
    out, notes = merge(tmp_path, linear(donor))
    kept = json.dumps(json.loads((out / name).read_text()))
    assert "auto_map" not in kept
    assert "custom_pipelines" not in kept
    assert any(note.startswith(f"{name}: `") and "left out" in note for note in notes)
    out, notes = merge(tmp_path, linear(donor), overwrite=True, trust_remote_code=True)
    assert json.loads((out / name).read_text()) == json.loads(text)
    assert not any("left out" in note for note in notes)


def test_a_token_may_have_the_name_of_a_setting(tmp_path: Path) -> None:
    vocabulary = {"model": {"vocab": {"auto_map": 0, "b": 1}}, "added_tokens": []}
    donor = make_llama(tmp_path / "a", 1, tokenizer__json=vocabulary, modules__json=[{"idx": 0, "path": ""}])
    out, _ = merge(tmp_path, linear(donor))
    for name in ("tokenizer.json", "modules.json"):
        assert (out / name).read_bytes() == (donor / name).read_bytes()


def test_stages_of_a_sentence_transformer_are_copied_unmerged_with_a_note(tmp_path: Path) -> None:
    donor, other = make_llama(tmp_path / "a", 1, modules__json=[]), make_llama(tmp_path / "b", 2)
    (donor / "2_Dense").mkdir()
    save_file({"linear.weight": llama_tensors(1)["model.norm.weight"]}, donor / "2_Dense" / "model.safetensors")
    write(donor, "2_Dense/config.json", text="{}")
    out, notes = merge(tmp_path, linear(donor, other))
    assert contents_of(out)["2_Dense/model.safetensors"] == contents_of(donor)["2_Dense/model.safetensors"]
    assert f"copied from {donor} as they are, not merged: 2_Dense/model.safetensors" in notes


def test_a_side_file_that_changes_during_the_run_is_not_taken(tmp_path: Path) -> None:
    donor = make_llama(tmp_path / "a", 1, LICENSE="MIT")

    def swap(*_: int) -> None:
        (donor / "LICENSE").unlink()
        (donor / "LICENSE").symlink_to("/etc/passwd")

    with pytest.raises(MergeError, match="LICENSE changed while the merge ran"):
        run_merge(linear(donor), tmp_path / "out", on_progress=swap)
    assert not (tmp_path / "out").exists()


# A card quotes what the inputs' own cards say; nothing of that may end a merge, least of all after the weights.


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("gone")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_value_without_end(path: Path) -> None:
    path.write_text("---\nlicense: " + "[" * 10_000 + "\n---\n")


@pytest.mark.parametrize("make", [a_pipe, a_link_to_nowhere, a_directory, a_value_without_end])
def test_a_card_that_cannot_be_read_is_not_quoted(make: Callable[[Path], None], tmp_path: Path) -> None:
    donor, other = make_llama(tmp_path / "a", 1, README__md="---\nlicense: mit\n---\n"), make_llama(tmp_path / "b", 2)
    make(other / "README.md")
    assert any(
        f"the license of {other} is not quoted in the card: " in note
        for note in plan_recipe(linear(donor, other)).notes
    )
    out, _ = merge(tmp_path, linear(donor, other))
    assert "(a: mit; b: not stated)" in (out / "README.md").read_text()
    _, notes = merge(tmp_path, linear(donor, other), overwrite=True, write_model_card=False)
    assert not any("is not quoted" in note for note in notes)


def test_nothing_that_is_optional_is_read_after_the_weights(tmp_path: Path) -> None:
    donor, other = make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2, README__md="---\nlicense: mit\n---\n")
    template = make_llama(tmp_path / "c", 3, chat_template__jinja="{{ c }}")

    def take_away(*_: int) -> None:
        for path in (other / "README.md", template / "chat_template.jinja"):
            path.unlink(missing_ok=True)

    run_merge(linear(donor, other, template, chat_template="auto"), tmp_path / "out", on_progress=take_away)
    assert "b: mit" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ c }}"


def test_a_local_model_keeps_the_name_of_its_publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_llama(Path("org/one"), 1)
    make_llama(Path("deep/er/two"), 2)
    out, _ = merge(tmp_path, linear(Path("org/one"), Path("deep/er/two"), Path("./org/one")))
    card = (out / "README.md").read_text()
    assert "- `org/one`\n- `two`\n" in card
    assert "base_model" not in card


def test_a_directory_named_like_a_snapshot_claims_no_base_model(tmp_path: Path) -> None:
    alike = make_llama(tmp_path / "models--meta-llama--Llama" / "snapshots" / ("a" * 40), 1)
    out, _ = merge(tmp_path, linear(alike))
    assert "base_model" not in (out / "README.md").read_text()
    assert json.loads((out / "mol_manifest.json").read_text())["sources"][0]["revision"] is None


def test_what_travels_with_a_merge_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    donor, other = make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2)
    write(donor, "README.md", text="---\nlicense: [\n---\n")
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"# made by /home/somebody/run.sh, see ~/notes/merge.txt\nmerge_method: linear\nmodels:\n- model: {donor}/\n"
        f"  parameters: {{weight: 1}}\n- model: '{other}'\n  parameters: {{weight: 1}}\n"
        f'output_path: "{tmp_path}/o u t"\ntokenizer_source: {other}\n'
    )
    out = run_merge(recipe).out
    for name in ("README.md", "mol_manifest.json", "mergekit_config.yml"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text, name
        assert "somebody" not in text
        assert "~" not in text
    assert (out / "mergekit_config.yml").read_text().startswith("# made by run.sh, see merge.txt\nmerge_method: linear")
