"""Names of models: hub ids, revisions, and local paths whatever their letters."""

from __future__ import annotations

from pathlib import Path

import pytest

from mol.config import ModelReference
from mol.config.model_reference import may_be_one, nearby, whole_model
from mol.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "name", "revision"),
    [
        ("gpt2", "gpt2", None),
        ("org/model@main", "org/model", "main"),
        ({"path": "org/model", "revision": "refs/pr/1"}, "org/model", "refs/pr/1"),
        ({"path": "org/model", "revision": None}, "org/model", None),
        ({"model": {"path": "org/model", "revision": "v1"}}, "org/model", "v1"),
        ({"model": {"path": "a+b@c"}}, "a+b@c", None),
        ({"model": "org/model@v1"}, "org/model", "v1"),
        (Path("some@dir"), "some@dir", None),
    ],
)
def test_forms(value: object, name: str, revision: str | None) -> None:
    reference = ModelReference.parse(value)
    assert reference == ModelReference(name, revision)
    assert str(reference) == (name if revision is None else f"{name}@{revision}")
    assert ModelReference.parse(reference.to_plain()) == reference


@pytest.mark.parametrize(
    ("value", "model", "adapter"),
    [
        ("org/model+org/lora", ("org/model", None), ("org/lora", None)),
        ("org/model@v1+org/lora@v2", ("org/model", "v1"), ("org/lora", "v2")),
        ({"model": {"path": "a+b"}, "lora": {"path": "c@d", "revision": "e"}}, ("a+b", None), ("c@d", "e")),
        ({"model": "org/model", "lora": "org/lora@v2"}, ("org/model", None), ("org/lora", "v2")),
    ],
)
def test_a_model_with_an_adapter(value: object, model: tuple[str, str | None], adapter: tuple[str, str | None]) -> None:
    reference = ModelReference.parse(value)
    assert reference == ModelReference(*model, ModelReference(*adapter))
    assert reference.model == ModelReference(*model)
    assert str(reference) == f"{ModelReference(*model)}+{ModelReference(*adapter)}"
    assert ModelReference.parse(reference.to_plain()) == reference
    with pytest.raises(ConfigError, match="which only a merge applies"):
        whole_model(value)


def test_of_several_signs_the_one_between_two_paths_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a+b", "c+d"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelReference.parse("a+b+c+d") == ModelReference("a+b", None, ModelReference("c+d"))
    assert ModelReference.parse("a+b+org/lora") == ModelReference("a+b", None, ModelReference("org/lora"))


def test_revisions_of_one_repository_may_be_one_adapter() -> None:
    with_adapter, other = ModelReference.parse("m+org/l"), ModelReference.parse("m+org/l@v1")
    assert may_be_one(with_adapter, other)
    assert not may_be_one(with_adapter, ModelReference.parse("m"))
    assert not may_be_one(with_adapter, ModelReference.parse("m+org/k"))


@pytest.mark.parametrize("name", ["a+b", "model@home", "a b", "größe/模型", "a+b@c"])
def test_a_local_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for text in (name, str(tmp_path / name)):
        assert ModelReference.parse(text) == ModelReference(text)
    plain = ModelReference.parse(name).to_plain()
    monkeypatch.chdir("/")
    assert ModelReference.parse(plain) == ModelReference(name)


def test_a_revision_after_a_local_path_with_an_at_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model@home").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelReference.parse("model@home@v1") == ModelReference("model@home", "v1")


def test_a_path_that_resembles_another(tmp_path: Path) -> None:
    (tmp_path / "model-base").mkdir()
    (tmp_path / "model-base.txt").touch()
    assert nearby(str(tmp_path / "model-bse")) == f"; did you mean `{tmp_path / 'model-base'}`?"
    assert nearby(str(tmp_path / "zzz")) == ""
    assert nearby(str(tmp_path / "missing" / "x")) == ""
    assert nearby("a\0b") == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "the name of a model is empty"),
        ("a+b+c", "more than one `+`"),
        ("+adapter", "not `model+adapter` either: a part is empty"),
        ("model+", "not `model+adapter` either: a part is empty"),
        ("model@+adapter", "a part is empty"),
        ("org/model@", "a part is empty"),
        ("@main", "a part is empty"),
        ("a@b@c", "more than one `@`"),
        (7, "a model is named by text, not by 7"),
        ({"path": "a", "revision": 7}, "the revision of `a` must be text, not 7; put it in quotes"),
        ({"revision": "main"}, "needs `path`"),
        ({"path": "a", "lora": {"path": "b"}}, "`lora` in a model reference stands next to `model`"),
        ({"model": "a+b", "lora": "c"}, "a model takes one adapter"),
        ({"model": "a", "lora": "b+c"}, "a model takes one adapter"),
        ({"model": "a", "override_architecture": 7}, "is the name of a class, not 7"),
        ({"path": "a", "revison": "b"}, "unknown key `revison` in a model reference, which has `path` and `revision`"),
        ({"model": {"model": {"path": "a"}}}, "nested twice"),
        ({"model": "a", "revision": "b"}, "`{model: {path, revision}}`"),
    ],
)
def test_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelReference.parse(value)
    assert message in str(caught.value)
