"""Models are distinguished by what they resolve to, not by how they are spelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from mol.config import MergeConfig, ModelReference
from mol.errors import ConfigError


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two directories, a link to the first, and a home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b"):
        Path(name).mkdir()
    Path("link").symlink_to("a")


@pytest.mark.parametrize("other", ["./a", "a/", "b/../a", "link", "link/", "//{root}/a", "{root}/a", "~/a", "a/."])
@pytest.mark.parametrize("method", ["slerp", "task_arithmetic", "ties"])
def test_a_base_spelled_otherwise_is_the_model_of_the_list(other: str, method: str, tmp_path: Path) -> None:
    other = other.format(root=str(tmp_path).lstrip("/") if other.startswith("//") else tmp_path)
    weight = "t: 0.5" if method == "slerp" else "weight: 1"
    text = (
        f"merge_method: {method}\nbase_model: {other}\nmodels:\n- model: a\n- model: b\nparameters: {{{weight}}}\n"
        f"tokenizer_source: {other}\n"
    )
    config = MergeConfig.from_yaml(text)
    assert config.model_references() == (ModelReference("a"), ModelReference("b"))
    assert config.base_model == config.tokenizer_source == ModelReference("a")
    assert config.notes == (f"`{other}` is `a`, spelled another way: they are one model",)


def test_slices_find_their_base_however_it_is_spelled() -> None:
    source = "{{model: {}, layer_range: [0, 2]}}".format
    config = MergeConfig.from_yaml(
        "merge_method: task_arithmetic\nparameters: {weight: 1}\nslices:\n"
        f"- base_model: ./a\n  sources: [{source('a')}, {source('b')}]\n"
        f"- base_model: link\n  sources: [{source('./b')}, {source('a')}]\n"
    )
    assert len(config.model_references()) == 2


def test_weights_by_model_find_it_however_it_is_spelled() -> None:
    config = MergeConfig("linear", ["a", "./b"], {"weights": {"./a": 0.25, "b": 0.75}})
    assert config.models is not None
    assert [source.parameters.to_dict() for source in config.models] == [{"weight": 0.25}, {"weight": 0.75}]
    with pytest.raises(ConfigError, match=r"`weights` names one model twice, as `a` and as `\./a`"):
        MergeConfig("linear", ["a"], {"weights": {"a": 0.25, "./a": 0.75}})


def test_main_is_the_revision_that_is_meant_where_none_is_named() -> None:
    config = MergeConfig.from_yaml(
        "merge_method: slerp\nbase_model: org/x@main\nmodels:\n- model: org/x\n- model: org/y\nparameters: {t: 1}\n"
    )
    assert len(config.model_references()) == 2
    names = [
        ModelReference.parse(text).identity() for text in ("org/x", "org/x@v1", "org/y", "./org/x", "/org/x", "//org/x")
    ]
    assert len(set(names[:5])) == 5
    assert names[4] == names[5]


def test_two_directories_are_two_models() -> None:
    with pytest.raises(ConfigError, match="found 3"):
        MergeConfig.from_yaml(
            "merge_method: slerp\nbase_model: ./link\nmodels:\n- model: b\n- model: c\nparameters: {t: 1}\n"
        )


def test_a_base_that_is_listed_twice_is_refused() -> None:
    """Its difference from itself would count in the divisor of `normalize`."""
    models = "models:\n- model: a\n- model: ./a\n- model: b\nparameters: {weight: 1, normalize: true}\n"
    with pytest.raises(ConfigError, match="the base, a, is listed twice"):
        MergeConfig.from_yaml(f"merge_method: task_arithmetic\nbase_model: link\n{models}")
    assert MergeConfig.from_yaml(f"merge_method: linear\n{models}").models is not None


def test_a_commit_may_turn_out_to_be_the_revision_of_another_name() -> None:
    commit = ModelReference("org/x", "0123456789abcdef0123456789abcdef01234567")
    config = MergeConfig.from_yaml(
        f"merge_method: slerp\nbase_model: {commit}\nmodels:\n- model: org/x\n- model: org/y\nparameters: {{t: 1}}\n"
    )
    base, other = ModelReference("org/x"), ModelReference("org/y")
    one = config.with_one_name_each({commit: base})
    assert (one.base_model, one.model_references()) == (base, (base, other))
    assert one.notes == (f"`{commit}` is the same commit as `org/x`: they are one model",)
    with pytest.raises(ConfigError, match="found 3"):
        config.with_one_name_each({})
