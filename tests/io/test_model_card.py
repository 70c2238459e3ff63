"""The card: front matter that the Hub reads, and nothing that differs between machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mol.errors import CheckpointError
from mol.io.model_card import CardSource, model_card, read_license

if TYPE_CHECKING:
    from pathlib import Path

MIT = {"license": "mit"}


def card(*sources: CardSource, **changed: Any) -> str:  # noqa: ANN401
    arguments: dict[str, Any] = {
        "method": "linear",
        "method_title": "weighted average",
        "method_url": "https://example.org/linear",
        "sources": sources,
        "recipe": "merge_method: linear\n",
        "dtypes": ["BF16"],
        "tensors": {"linear": 3},
        "sections": {"Notes": [], "Not in this model": ["head.weight: only in b"]},
        "plan_digest": "abc",
        "version": "1.2.3",
        **changed,
    }
    return model_card(**arguments)


def front_matter(text: str) -> Any:  # noqa: ANN401
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_names_hub_sources_and_the_license_they_agree_on() -> None:
    text = card(CardSource("org/a", True, "f" * 40, MIT, "base"), CardSource("org/b", True, None, MIT))
    assert front_matter(text) == {
        "base_model": ["org/a", "org/b"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["mol", "merge", "mergekit"],
        "license": "mit",
    }
    assert f"- `org/a` at revision `{'f' * 40}` (base)\n- `org/b`\n" in text
    assert "```yaml\nmerge_method: linear\n```" in text
    assert "- head.weight: only in b" in text
    assert "## Notes" not in text


def test_a_local_model_is_named_in_the_text_but_not_as_a_repository() -> None:
    text = card(CardSource("a", False, None, {}), CardSource("org/b", True, None, MIT))
    assert front_matter(text)["base_model"] == ["org/b"]
    assert "`a`" in text


def test_licenses_that_differ_are_reported_not_chosen() -> None:
    other = {"license": "other", "license_name": "llama3"}
    text = card(CardSource("org/a", True, None, MIT), CardSource("org/b", True, None, other))
    assert "license" not in front_matter(text)
    assert "org/a: mit; org/b: llama3" in text
    assert front_matter(card(CardSource("org/b", True, None, other)))["license_name"] == "llama3"


def test_a_recipe_cannot_break_out_of_its_fence() -> None:
    text = card(CardSource("a", False, None, {}), recipe="# ```` \nmerge_method: linear\n")
    assert "\n`````yaml\n# ```` \nmerge_method: linear\n`````\n" in text


def test_long_lists_are_cut_and_marked_as_cut() -> None:
    text = card(CardSource("a", False, None, {}), sections={"Notes": [f"note {i}" for i in range(250)]})
    assert "- note 99\n- and 150 more, all in `mol_manifest.json`" in text


def test_a_license_is_read_from_a_card(tmp_path: Path) -> None:
    assert read_license(tmp_path) == {}
    for text, found in (
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A\n", {"license": "apache-2.0"}),
        ("---\r\nlicense: mit\r\n---\r\n", MIT),
        ("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
         {"license": "other", "license_name": "own", "license_link": "LICENSE"}),
        ("# no front matter\n---\nlicense: mit\n---\n", {}),
        ("---\n- license\n---\n", {}),
        ("---\nlicense:\n- mit\n---\n", {}),
        ("---\nlicense: ''\n---\n", {}),
        ('---\n"license": "mit"  # as before\n---\n', MIT),
        ("---\nlicense_name: >\n  own\n\n  words\nlicense: other\n---\n",
         {"license": "other", "license_name": "own\nwords\n"}),
    ):  # fmt: skip
        (tmp_path / "README.md").write_bytes(text.encode())
        assert read_license(tmp_path) == found


@pytest.mark.parametrize(
    "line",
    [
        "date: 2023-02-30", "tags: !!timestamp x", "flag: !!bool x", "x: !!python/object/apply:os.system [ls]",
        "number: " + "9" * 5000, "deep: " + "[" * 20_000, "cut: [", 'wide: "\\UFFFFFFFF"', "a: &a [*a]", "tab:\t- x",
    ],
)  # fmt: skip
def test_nothing_else_in_a_card_prevents_reading_its_license(line: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{line}\nlicense: mit\n---\n")
    assert read_license(tmp_path) == MIT


@pytest.mark.parametrize("value", ["[mit", "[" * 20_000, '"\\UFFFFFFFF"', '"\\UF0000000"', "a: b: c", "'mit"])
def test_a_license_that_cannot_be_read_is_an_error_of_one_kind(value: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {value}\n---\n")
    with pytest.raises(CheckpointError, match=r"README\.md: its front matter cannot be read"):
        read_license(tmp_path)


def test_names_and_licenses_are_no_markup() -> None:
    name = "<img src=x> [x](https://evil.example) *b* `c` www.evil.example \x1b[2J\u202etxt"
    text = card(
        CardSource(name, False, None, {"license": "<script>`"}),
        CardSource("org/b_c", False, None, {"license": "<b>\n# mit"}),
        sections={"Notes": [f"names of {name} are aligned: `a.*` is `b.*`", "one ` alone <b>", "``<b>``"]},
    )
    escaped = r"\<img src=x\> \[x\](https\://evil.example) \*b\* `c` www\.evil.example \\x1b\[2J\\u202etxt"
    lines = text.splitlines()
    assert f"# Merge of {escaped} and org/b_c" in lines
    assert r"- `` <img src=x> [x](https://evil.example) *b* `c` www.evil.example \x1b[2J\u202etxt ``" in lines
    assert "- `org/b_c`" in lines
    assert rf"({escaped}: \<script\>\`; org/b_c: \<b\> \# mit)" in text
    assert f"- names of {escaped} are aligned: `a.*` is `b.*`" in lines
    assert r"- one \` alone \<b\>" in lines
    assert r"- \`\`\<b\>\`\`" in lines
    agreed = card(CardSource("a", False, None, {"license": "`<b>`"}))
    assert "All sources state the license `` `<b>` ``." in agreed
