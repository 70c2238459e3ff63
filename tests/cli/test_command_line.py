"""How a command line is understood: the verb that may be missing, options anywhere, what was probably meant."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from mol.cli import cli, main
from mol.cli.console import Console
from mol.cli.options import SAFETENSORS_ONLY, WITHOUT_EFFECT, merge_options
from mol.merge.options import MergeOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

MERGEKIT = (
    "--allow-crimes --no-allow-crimes --unsafe-truncate-embeddings --trust-remote-code --no-trust-remote-code "
    "--transformers-cache --lora-merge-cache --lora-merge-dtype --random-seed --verbose -v --quiet --cuda --no-cuda "
    "--device --low-cpu-memory --no-low-cpu-memory --lazy-unpickle --no-lazy-unpickle --read-to-gpu --multi-gpu "
    "--num-threads -j --gpu-rich --async-write --write-threads --out-shard-size --copy-tokenizer --no-copy-tokenizer "
    "--clone-tensors --write-model-card --no-write-model-card --safe-serialization --no-safe-serialization"
)
SEED = (
    "--device --dtype --verbose --trust-remote-code --low-cpu-mem-usage --no-low-cpu-mem-usage --lazy-unpickle "
    "--allow-crimes --cleanup --use-safetensors --no-safetensors --log-level"
)


def understood(line: Sequence[str]) -> tuple[str, dict[str, object]]:
    """The verb and the options that a line means, without running it."""
    with cli.make_context("mol-merge", list(line), obj=Console(), resilient_parsing=False) as ctx:
        name, verb, rest = cli.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        assert name is not None
        assert verb is not None
        with verb.make_context(name, rest, parent=ctx, obj=ctx.obj) as inner:
            return name, inner.params


@pytest.mark.parametrize(
    "line",
    [
        "config.yml out --threads 4 -v",
        "--threads 4 -v config.yml out",
        "config.yml --threads 4 out -v",
        "-vj 4 config.yml out",
        "-vj4 config.yml out",
        "--threads=4 config.yml -v out",
        "merge config.yml out -j 4 -v",
        "-j 4 merge -v config.yml out",
    ],
)
def test_options_may_stand_anywhere_with_and_without_the_verb(line: str) -> None:
    verb, given = understood(line.split())
    assert verb == "merge"
    assert given["words"] == (Path("config.yml"), Path("out"))
    assert given["threads"] == 4
    assert given["verbose"] == 1


def test_another_verb_may_stand_behind_its_options() -> None:
    verb, given = understood(["--json", "--out-shard-size", "5GB", "plan", "config.yml"])
    assert verb == "plan"
    assert given["config"] == Path("config.yml")
    assert given["out_shard_size"] == "5GB"


def test_behind_two_dashes_nothing_is_a_verb() -> None:
    assert understood(["--", "plan", "out"]) == understood(["merge", "plan", "out"])


def test_one_name_takes_a_value_in_every_verb_or_in_none() -> None:
    takes: dict[str, bool] = {}
    for verb in cli.commands.values():
        for parameter in verb.params:
            if isinstance(parameter, click.Option):
                for name in parameter.opts:
                    assert takes.setdefault(name, not (parameter.is_flag or parameter.count)) == (
                        not (parameter.is_flag or parameter.count)
                    ), name


@pytest.mark.parametrize("name", sorted({*MERGEKIT.split(), *SEED.split()}))
def test_the_options_of_mergekit_and_of_the_seed_are_known(name: str) -> None:
    known = {name for p in cli.commands["merge"].params for name in (*p.opts, *p.secondary_opts)}
    assert name in known


@pytest.mark.parametrize(("name", "declaration", "takes", "reason"), WITHOUT_EFFECT)
def test_an_option_without_effect_says_why_in_one_line(
    name: str, declaration: str, takes: str | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option = declaration.split("/")[0]
    _, given = understood(["config.yml", "out", option, *(["4"] if takes else [])])
    assert given[name] is not None
    merge_options(Console(), {name: given[name]})
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"note: {option} has no effect: {reason}\n"


def test_a_no_without_effect_is_named_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    merge_options(Console(), {"lazy_unpickle": False})
    assert capsys.readouterr().err.startswith("note: --no-lazy-unpickle has no effect: ")


def test_options_that_are_not_given_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _, given = understood(["config.yml", "out"])
    for name in ("words", "out_dir", "verbose", "quiet", "json_", "log_level"):
        del given[name]
    options = merge_options(Console(), dict(given))
    assert capsys.readouterr() == ("", "")
    assert type(options)() == options


@pytest.mark.parametrize("line", ["--device cuda", "--device cuda:1", "--device auto"])
def test_a_device_is_accepted_and_explained(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    merge_options(Console(), {"device": line.split()[1]})
    assert capsys.readouterr().err.startswith(f"note: {line} has no effect: merges run on the CPU")


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(click.UsageError, match="'gpu' is no device"):
        merge_options(Console(), {"device": "gpu"})


@pytest.mark.parametrize("name", [name for name, _ in SAFETENSORS_ONLY])
def test_pickle_files_are_refused_rather_than_noted(name: str) -> None:
    with pytest.raises(click.UsageError, match="pickle files can run code"):
        merge_options(Console(), {name: False})


def test_a_size_that_cannot_be_read_is_wrong_usage() -> None:
    with pytest.raises(click.UsageError, match=r"--out-shard-size: 'much' is not a size"):
        merge_options(Console(), {"out_shard_size": "much"})


@pytest.mark.parametrize(("size", "count"), [("5B", 5 * 10**9), ("5GB", 5 * 10**9), ("500M", 5 * 10**8)])
def test_sizes_of_mergekit_and_of_people_are_read(size: str, count: int) -> None:
    assert merge_options(Console(), {"out_shard_size": size}).out_shard_size == count


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["validat", "config.yml"], "did you mean 'validate'?"),
        (["puhs", "dir", "me/model"], "did you mean 'push'?"),
        (["config.yml", "out", "--thread", "4"], "--threads"),
        (["plan", "config.yml", "--jsn"], "--json"),
        (["push-hf", "me/model"], "Missing option '--mol-checkpoint'"),
        (["merge"], "no recipe is named"),
        (["-v"], "no recipe is named"),
        (["a.yml", "b.yml", "c.yml"], "several recipes need --out-dir DIR"),
        (["x/a.yml", "y/a.yml", "--out-dir", "out"], "two recipes would go to out/a"),
        (["config.yml", "out", "--threads", "many"], "'many' is not a valid integer"),
        (["config.yml", "out", "--no-safe-serialization"], "--no-safe-serialization is refused"),
        (["validate"], "CONFIG..."),
        (["config.yml", ""], "the name is empty"),
        (["", "out"], "the name is empty"),
        (["config.yml", "--out-dir", ""], "the name is empty"),
        (
            ["config.yml", "out", "--out-shard-size", "5", "GB"],
            "--out-shard-size 5 GB: write the size as one word, 5GB",
        ),
        (["plan", "--out-shard-size", "500", "MiB", "config.yml"], "write the size as one word, 500MiB"),
        (["-", "config.yml", "--out-dir", "out"], "a recipe from standard input has no name"),
        (["out", "-"], "CONFIG comes first, then OUT: `mol-merge - out`"),
        (["moe", "config.yml", "out"], "'moe' comes in a later version of mol"),
    ],
)
def test_a_wrong_command_ends_with_2_and_suggests_what_was_probably_meant(
    line: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err


@pytest.mark.parametrize("verb", ["merge", "plan"])
@pytest.mark.parametrize("out", ["out", "new"])
def test_config_and_out_in_the_wrong_order(
    verb: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("r.yml").touch()
    assert main([verb, out, "r.yml"]) == 2
    assert f"CONFIG comes first, then OUT: `mol-merge r.yml {out}`" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("verb", ["merge", "plan", "validate"])
@pytest.mark.parametrize(
    ("there", "named"), [("r.yaml", "r.yml"), ("r.yml", "r.yaml"), ("r.yml", "r"), ("ties_b.yml", "tise_b.yml")]
)
def test_a_recipe_that_is_not_there_and_one_that_is(
    verb: str,
    there: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(there).touch()
    assert main([verb, named, *(["out"] if verb != "validate" else [])]) == 1
    assert f"error: {named}: no such recipe; did you mean {there}?" in " ".join(capsys.readouterr().err.split())


def test_a_directory_instead_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/mergekit_config.yml").touch()
    assert main(["model", "out"]) == 1
    assert "a directory; CONFIG is a recipe, a YAML file, such as model/mergekit_config.yml" in capsys.readouterr().err


def test_help_and_version_are_also_words(capsys: pytest.CaptureFixture[str]) -> None:
    for words, option in ((["help"], ["--help"]), (["version"], ["--version"]), (["help", "plan"], ["plan", "--help"])):
        assert main(words) == 0
        said = capsys.readouterr()
        assert main(option) == 0
        assert capsys.readouterr() == said
        assert said.out
    assert understood(["./help", "out"])[0] == "merge"


@pytest.mark.parametrize("count", [999, 2**64])
def test_threads_are_bounded_by_what_the_machine_can_use(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(count)
    for verb in (["config.yml", "out"], ["plan", "config.yml"], ["diff", "a", "b"], ["verify", "out"]):
        _, given = understood([*verb, "-j", text])
        threads = given["threads"]
        assert isinstance(threads, int)
        assert 16 <= threads < 999 or (os.cpu_count() or 1) > 200
    assert MergeOptions(threads=count).workers == threads
    main(["no.yml", "out", "-j", text])
    assert " is more than this machine can use: " in " ".join(capsys.readouterr().err.split())


def test_a_number_of_threads_that_python_cannot_read() -> None:
    with pytest.raises(click.UsageError, match="not a valid integer"):
        understood(["config.yml", "out", "-j", "9" * 5000])


def test_two_recipes_without_a_directory_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "b.yml"
    other.touch()
    assert main(["a.yml", str(other)]) == 2
    assert "to merge both recipes give --out-dir DIR" in capsys.readouterr().err


def test_a_file_named_like_a_verb_is_pointed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("verify").touch()
    assert main(["verify", "nowhere"]) == 1
    assert "note: `verify` is taken as the verb; to merge the recipe of that name type `mol-merge ./verify OUT`" in (
        capsys.readouterr().err
    )
    assert understood(["./verify", "out"])[0] == "merge"


def test_a_recipe_that_is_almost_named_like_a_verb_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plans").touch()
    assert understood(["plans", "out"])[0] == "merge"


def test_no_arguments_show_the_help_as_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == said.err
    assert said.err.startswith("Usage: mol-merge [OPTIONS] CONFIG [OUT]")


@pytest.mark.parametrize("verb", [None, *cli.commands])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_fits_80_columns(verb: str | None, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option] if verb is None else [verb, option]) == 0
    said = capsys.readouterr()
    assert max(map(len, said.out.splitlines())) <= 80
    assert said.err == ""


def test_a_missing_recipe_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no.yml"), str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert "no.yml" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [["plan"], ["validate"], ["merge", "out"]])
def test_a_working_directory_that_was_removed_is_named(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "config.yml").write_text("merge_method: linear\nmodels: [./a, ./b]\n")
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    verb, *out = line
    assert main([verb, str(tmp_path / "config.yml"), *out]) == 1
    assert "the working directory was removed" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)


def test_with_json_a_refusal_is_a_document_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no.yml"), str(tmp_path / "out"), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["type"] == "FileNotFoundError"
    assert "no.yml" in said.err


def test_with_json_wrong_usage_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "plan", "config.yml", "--thread", "4"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "UsageError"
