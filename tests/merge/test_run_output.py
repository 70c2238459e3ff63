"""What stands next to the weights, and where an output may not go."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mol.errors import CheckpointError, MergeError
from mol.merge import plan_recipe, run_merge
from mol.merge.labels import Labels
from mol.merge.output import check_apart, check_output
from tests.merge.models import TOKENIZER, contents_of, llama_config, llama_tensors, make_llama

if TYPE_CHECKING:
    from collections.abc import Iterator


def linear(*models: Path, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    entries = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models]
    return {"merge_method": "linear", "models": entries, **more}


def make_rich(directory: Path, seed: int = 1, **files: object) -> Path:
    """A model with every kind of side file."""
    make_llama(
        directory,
        seed,
        generation_config__json={"eos_token_id": 2},
        tokenizer_config__json={"model_max_length": 512, "chat_template": "old"},
        chat_template__jinja="{{ old }}",
        modeling_own__py="raise SystemExit",
        pytorch_model__bin="pickle",
        README__md="---\nlicense: mit\n---\n# The donor",
        mol_manifest__json={"stale": True},
        LICENSE="MIT",
        **files,
    )
    for name in ("1_Pooling/config.json", "original/params.json", "original/consolidated.00.pth"):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    return directory


def merge(tmp_path: Path, recipe: dict[str, Any], **options: Any) -> tuple[Path, list[str]]:  # noqa: ANN401
    report = run_merge(recipe, tmp_path / "out", **options)
    return report.out, list(report.planned.notes)


def test_side_files_of_the_donor_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    donor, other = make_rich(tmp_path / "a"), make_llama(tmp_path / "b", 2, NOTICE="b")
    out, notes = merge(tmp_path, linear(donor, other))
    assert sorted(contents_of(out)) == [
        "1_Pooling/config.json", "LICENSE", "README.md", "chat_template.jinja", "config.json",
        "generation_config.json", "mergekit_config.yml", "model.safetensors", "mol_manifest.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (donor / name).read_bytes()
    assert "stale" not in (out / "mol_manifest.json").read_text()
    assert "The donor" not in (out / "README.md").read_text()
    assert "Python files not copied without trust_remote_code: modeling_own.py" in notes
    assert "not copied, since they hold other weights: original/, model.safetensors, pytorch_model.bin" not in notes
    assert "not copied, since they hold other weights: original/, pytorch_model.bin" in notes


def test_the_base_is_the_donor(tmp_path: Path) -> None:
    first, base = make_llama(tmp_path / "a", 1, NOTICE="a"), make_llama(tmp_path / "b", 2, LICENSE="b")
    out, _ = merge(tmp_path, linear(first, base, base_model=str(base)))
    assert (out / "LICENSE").is_file()
    assert not (out / "NOTICE").exists()


def test_code_and_what_points_to_it_go_along_only_with_trust(tmp_path: Path) -> None:
    pointing = llama_config() | {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    donor = make_rich(tmp_path / "a", config__json=pointing, processor_config__json=pointing)
    other = make_llama(tmp_path / "b", 2)
    out, notes = merge(tmp_path, linear(donor, other))
    assert not (out / "modeling_own.py").exists()
    for name in ("config.json", "processor_config.json"):
        assert "auto_map" not in json.loads((out / name).read_text())
        assert any(note.startswith(f"{name}: `auto_map` left out") for note in notes)
    out, notes = merge(tmp_path, linear(donor, other, trust_remote_code=True), overwrite=True)
    assert (out / "modeling_own.py").is_file()
    assert json.loads((out / "config.json").read_text())["auto_map"] == pointing["auto_map"]
    assert (out / "processor_config.json").read_bytes() == (donor / "processor_config.json").read_bytes()
    assert not any("auto_map" in note for note in notes)
    assert "trust_remote_code: Python files are copied unread: modeling_own.py" in (out / "README.md").read_text()


def test_a_chat_template_of_the_recipe_replaces_the_donors(tmp_path: Path) -> None:
    donor, other = (
        make_rich(tmp_path / "a", chat_template__json={"chat_template": "old"}),
        make_llama(tmp_path / "b", 2),
    )
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    out, _ = merge(tmp_path, linear(donor, other, chat_template=template))
    assert (out / "chat_template.jinja").read_text() == template
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings == {"model_max_length": 512, "chat_template": template}
    assert not (out / "chat_template.json").exists()


def test_the_chat_template_that_most_inputs_have(tmp_path: Path) -> None:
    settings = {"tokenizer_config__json": {"chat_template": "{{ most }}"}}
    first = make_llama(tmp_path / "a", 1)
    others = [
        make_llama(tmp_path / "b", 2, **settings),
        make_llama(tmp_path / "c", 3, chat_template__jinja="{{ most }}"),
    ]
    out, notes = merge(tmp_path, linear(first, *others, chat_template="auto"))
    assert (out / "chat_template.jinja").read_text() == "{{ most }}"
    assert any("which 2 of 3 inputs have" in note for note in notes)
    out, notes = merge(tmp_path, linear(first, chat_template="auto"), overwrite=True)
    assert not (out / "chat_template.jinja").exists()
    assert any("no input has a chat template" in note for note in notes)


def test_the_tokenizer_of_another_model(tmp_path: Path) -> None:
    donor = make_rich(tmp_path / "a")
    other = make_llama(tmp_path / "b", 2, tokenizer_config__json={"own": True}, NOTICE="b")
    out, notes = merge(tmp_path, linear(donor, other, tokenizer_source=str(other)))
    assert f"the tokenizer is that of {other}" in notes
    assert "- the tokenizer is that of b\n" in (out / "README.md").read_text()
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"own": True}
    assert not (out / "chat_template.jinja").exists()
    assert (out / "LICENSE").is_file()
    assert not (out / "NOTICE").exists()


def test_the_tokenizer_of_the_base(tmp_path: Path) -> None:
    donor, base = make_rich(tmp_path / "a"), make_llama(tmp_path / "b", 2, tokenizer_config__json={"own": True})
    out, _ = merge(tmp_path, linear(donor, base, base_model=str(base), tokenizer_source="base"))
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"own": True}


def test_no_tokenizer_and_no_card_when_requested(tmp_path: Path) -> None:
    donor, other = make_rich(tmp_path / "a"), make_llama(tmp_path / "b", 2)
    out, _ = merge(tmp_path, linear(donor, other), copy_tokenizer=False, write_model_card=False)
    assert not {"README.md", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} & set(contents_of(out))


def test_models_whose_ids_mean_other_tokens_are_refused(tmp_path: Path) -> None:
    swapped = json.loads(json.dumps(TOKENIZER))
    swapped["model"]["vocab"] |= {"token3": 4, "token4": 3}
    donor, other = make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2, tokenizer__json=swapped)
    with pytest.raises(MergeError, match="2 of 12 shared tokens have other ids, the first 'token4': found 3, wanted 4"):
        plan_recipe(linear(donor, other))


def test_a_token_behind_the_last_row_gets_one(tmp_path: Path) -> None:
    longer = TOKENIZER | {"added_tokens": [{"id": 12, "content": "<new>"}]}
    donor, other = make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2, tokenizer__json=longer)
    plan_recipe(linear(donor, other))
    planned = plan_recipe(linear(donor, other, tokenizer_source=str(other)))
    assert planned.model_config["vocab_size"] == 13
    assert "no model has a row for 1 of the output's 13 tokens, e.g. '<new>': zeros" in planned.warnings


def test_the_card(tmp_path: Path) -> None:
    donor, other = make_rich(tmp_path / "a"), make_llama(tmp_path / "b", 2, README__md="---\nlicense: mit\n---\n")
    out, _ = merge(tmp_path, linear(donor, other))
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "library_name": "transformers", "tags": ["mol", "merge", "mergekit"], "license": "mit",
    }  # fmt: skip
    assert "- `a`\n- `b`\n" in card
    assert "merge_method: linear" in card
    assert "model: b\n" in card
    assert "modeling_own.py" in card


def test_a_damaged_side_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    donor, other = make_rich(tmp_path / "a", processor_config__json='{"auto_map": '), make_llama(tmp_path / "b", 2)
    with pytest.raises(CheckpointError, match=r"processor_config\.json is not JSON"):
        merge(tmp_path, linear(donor, other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_leftovers_of_an_earlier_attempt_do_not_get_into_the_output(tmp_path: Path) -> None:
    models = [make_llama(tmp_path / name, seed) for seed, name in enumerate("ab")]

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_merge(linear(*models), tmp_path / "out", on_progress=stop)
    partial = tmp_path / "out.partial"
    assert partial.is_dir()
    (partial / "modeling_old.py").touch()
    (partial / "old").mkdir()
    (partial / "old" / "file").touch()
    out, _ = merge(tmp_path, linear(*models))
    assert not {"modeling_old.py", "old/file", "journal"} & set(contents_of(out))


# Where an output may not go.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_llama(tmp_path / "models" / "a", 1)


@pytest.mark.parametrize("target", ["models/a", "models/a/out", "models", "models/../models/a", "link", "link/out"])
def test_an_output_that_would_touch_an_input_is_refused(model: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(model)
    before = contents_of(tmp_path)
    with pytest.raises(MergeError):
        run_merge(linear(model), tmp_path / target, overwrite=True)
    assert contents_of(tmp_path) == before


def test_relations_to_an_input_are_distinguished(tmp_path: Path) -> None:
    model = tmp_path / "m" / "a"
    for out, says in (
        (model, "is an input"),
        (model / "x", "lies inside the input"),
        (tmp_path / "m", "holds the input"),
    ):
        with pytest.raises(MergeError, match=says):
            check_apart(out, [model])
    with pytest.raises(MergeError, match=r"a\.partial is an input"):
        check_apart(tmp_path / "a", [tmp_path / "a.partial"])
    check_apart(tmp_path / "m" / "ab", [model])


def test_a_foreign_partial_directory_is_refused(model: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").touch()
    with pytest.raises(MergeError, match=r"out\.partial"):
        run_merge(linear(model), tmp_path / "out")
    assert (partial / "thesis.tex").exists()


def test_a_linked_partial_directory_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").symlink_to(model)
    before = contents_of(model)
    with pytest.raises(MergeError, match=r"out\.partial is a link"):
        run_merge(linear(model), tmp_path / "out", discard_partial=True)
    assert contents_of(model) == before


def test_a_full_directory_is_refused_without_overwrite(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run_merge(linear(model), out)  # an empty one is fine
    with pytest.raises(MergeError, match="is not empty; name another directory, or replace it"):
        run_merge(linear(model), out)
    run_merge(linear(model), out, overwrite=True)


def test_what_is_no_model_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(MergeError, match="holds something that is no model"):
        run_merge(linear(model), out, overwrite=True)
    assert (out / "thesis.tex").exists()


def test_a_linked_output_is_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "merged")
    report = run_merge(linear(model), tmp_path / "out")
    assert report.out == tmp_path / "disk" / "merged"
    assert (tmp_path / "out" / "config.json").is_file()


def test_folders_above_the_output_are_made(model: Path, tmp_path: Path) -> None:
    run_merge(linear(model), tmp_path / "x" / "y" / "out")
    assert (tmp_path / "x" / "y" / "out" / "config.json").is_file()


def test_files_and_loops_are_no_output_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_output(tmp_path / "file", overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_output(tmp_path / "file" / "out", overwrite=False)
    with pytest.raises(OSError, match="cannot be an output directory") as caught:
        check_output(tmp_path / "loop", overwrite=False)
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(MergeError, match="root of a file system"):
        check_output(Path("/"), overwrite=True)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's rights, to which nothing is forbidden."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory that others may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_directory_without_the_right_to_write_is_refused(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    with as_nobody(), pytest.raises(PermissionError, match="no right to write there"):
        check_output(open_folder / "new" / "out", overwrite=False)
    open_folder.chmod(0o755)


def test_a_side_file_that_may_not_be_read_is_refused_while_planning(open_folder: Path) -> None:
    donor = make_llama(open_folder / "a", 1, LICENSE="own")
    (donor / "model.safetensors").chmod(0o644)
    (donor / "LICENSE").chmod(0)
    with as_nobody(), pytest.raises(PermissionError, match=r"no right to read it.*LICENSE"):
        plan_recipe(linear(donor))


@pytest.mark.parametrize("harm", ["removed", "cut off", "index"])
def test_a_file_that_is_lost_while_others_are_written_stops_the_merge(harm: str, tmp_path: Path) -> None:
    """The descriptor of a file that was removed takes every write; the next run writes it again."""
    recipe = linear(make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2))
    name = "model.safetensors.index.json" if harm == "index" else "model-00001-of-00002.safetensors"
    lost = tmp_path / "out.partial" / name
    shard = sum(tensor.nbytes for tensor in llama_tensors(1).values()) // 2 + 100

    def lose(*_: int) -> None:
        if lost.exists():
            os.truncate(lost, 10) if harm == "cut off" else lost.unlink()

    with pytest.raises(MergeError, match=rf"changed by another program.*\n.*{name}: "):
        run_merge(recipe, tmp_path / "out", on_progress=lose, out_shard_size=shard)
    assert not (tmp_path / "out").exists()
    run_merge(recipe, tmp_path / "out", out_shard_size=shard)
    run_merge(recipe, tmp_path / "whole", out_shard_size=shard)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


def test_labels_are_short_unique_and_free_of_paths(tmp_path: Path) -> None:
    class Model:
        def __init__(self, path: Path) -> None:
            self.name, self.directory = str(path), path

    paths = [tmp_path / "x" / "m", tmp_path / "y" / "m", tmp_path / "n", tmp_path / "n2"]
    models: Any = [Model(target) for target in paths]
    labels = Labels(models, ["/data/out"])
    assert [labels.of(model) for model in models] == ["x/m", "y/m", "n", "n2"]
    assert labels.clean(f"{paths[3]}, {paths[2]}/config.json, /data/out") == "n2, n/config.json, out"
