"""The routing report: the page is read as a browser reads it, and in a browser where there is one."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mol.core.mol_runtime import MoLConfig, MoLRuntime
from mol.errors import ConfigError
from tests.core.zoo import body_of, language_model_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HOSTILE = (
    "<script>alert('no')</script> & \"both\" $title &amp; </p>\n\n  \u00e9\U0001f600 "
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd\r\n" + "unbroken" * 9
)
Make = Callable[..., MoLRuntime]


class Page(HTMLParser):
    """What a page holds: tags, the text of each row, the title of each of its tokens, and the table's cells."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[str] = []
        self.titles: list[list[str]] = []
        self.marks: list[list[str]] = []
        self.cells: list[str] = []
        self._in_row = self._in_cell = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.attributes += attrs
        if given.get("class") == "row":
            self._in_row = True
            self.rows.append("")
            self.titles.append([])
            self.marks.append([])
        elif self._in_row and tag == "span":
            self.titles[-1].append(given["title"] or "")
            self.marks[-1].append(given.get("data-m") or "")
        if tag == "td":
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_row &= tag != "p"
        self._in_cell &= tag != "td"

    def handle_data(self, data: str) -> None:
        if self._in_row:
            self.rows[-1] += data
        if self._in_cell:
            self.cells[-1] += data


def byte_level() -> PreTrainedTokenizerFast:
    vocabulary = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def word_pieces() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["[CLS]", "[SEP]", "[UNK]", "fuse", "##d", "model"])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make a runtime whose host has a tokenizer, with routers that choose."""
    monkeypatch.chdir(tmp_path)
    language_model_of("gpt2", vocab_size=400, n_positions=512).save_pretrained("gpt2")
    body_of("llama", max_position_embeddings=512).save_pretrained("owner/llama")

    def run(tokenizer: PreTrainedTokenizerBase | None = None, **settings: object) -> MoLRuntime:
        (tokenizer or byte_level()).save_pretrained("gpt2")
        torch.manual_seed(0)
        runtime = MoLRuntime(MoLConfig(models=["gpt2", "owner/llama"], router_type="token", **settings))
        runtime.add_layer([("gpt2", 0), ("owner/llama", 0)], 0)
        runtime.add_layer([("gpt2", 2), ("gpt2", 1), ("owner/llama", range(2))], 2)
        with torch.no_grad():
            for layer in runtime.layers:
                layer.router.classifier.weight.mul_(20)
        return runtime

    return run


def weights_in(titles: list[str]) -> torch.Tensor:
    """Read weights (T, E) out of the titles of tokens."""
    return torch.tensor([[float(line.rsplit(" ", 1)[1]) for line in title.splitlines()[1:]] for title in titles])


def test_the_page_holds_the_text_and_the_routers_weights(make: Make) -> None:
    runtime = make()
    texts = [HOSTILE, "Short."]
    path = runtime.routing_report(texts, "page.html")
    assert path == Path("page.html")
    source = path.read_bytes().decode()
    page = Page(source)
    # A parser of HTML reads a raw CR LF as LF, this one does not; escaped it stays what it is.
    assert page.rows == [text for text in texts for _ in range(2)]
    assert "\r" not in source
    assert (page.tags.count("script"), page.tags.count("p")) == (1, 2 + 4)
    row = 0
    for text in texts:
        ids = runtime.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            _, stats = runtime(ids, return_router_stats=True)
        for name in ("layer_0", "layer_2"):
            weights = stats[name]["expert_weights"][0]
            torch.testing.assert_close(weights_in(page.titles[row]), weights, rtol=0, atol=5.1e-7)
            row += 1
    experts = [[line.rsplit(" ", 1)[0] for line in titles[0].splitlines()[1:]] for titles in page.titles[:2]]
    assert experts == [["A gpt2[0]", "B owner/llama[0]"], ["A gpt2[2]", "C gpt2[1]", "B owner/llama[0-1]"]]


def test_a_letter_stands_where_the_heaviest_expert_changes(make: Make) -> None:
    runtime = make()
    page = Page(runtime.routing_report("A sentence of some length.", "page.html").read_text(encoding="utf-8"))
    best = ["AB"[choice] for choice in weights_in(page.titles[0]).argmax(-1).tolist()]
    assert len(set(best)) == 2
    assert page.marks[0] == [b if at == 0 or b != best[at - 1] else "" for at, b in enumerate(best)]


def test_shares_and_entropies(make: Make) -> None:
    runtime = make()
    texts = ["One text, ", "and a second that is longer."]
    page = Page(runtime.routing_report(texts, "page.html").read_text(encoding="utf-8"))
    first = torch.cat([weights_in(page.titles[0]), weights_in(page.titles[2])])
    entropy = -(first * first.clamp(min=1e-9).log()).sum(-1).mean()
    share = first.mean(0)
    assert f"gpt2[0] {share[0]:.1%}" in page.cells[0]
    assert f"owner/llama[0] {share[1]:.1%}" in page.cells[0]
    assert page.cells[1] == f"{entropy:.2f} of {math.log(2):.2f}"
    second = torch.cat([weights_in(page.titles[1]), weights_in(page.titles[3])]).mean(0)
    assert f"gpt2 {(share[0] + second[0]) / 2:.1%}" in page.cells[4]
    assert f"gpt2 (2) {second[1] / 2:.1%}" in page.cells[4]


def test_nothing_is_fetched(make: Make) -> None:
    source = make().routing_report(HOSTILE).read_text(encoding="utf-8")
    assert Path("routing.html").read_text(encoding="utf-8") == source
    assert not re.search(r"https?:|//\w|@import|url\(", source)
    names = {name for name, _ in Page(source).attributes}
    assert names.isdisjoint({"src", "href", "srcset", "action", "onload", "onclick"})
    assert "default-src 'none'" in source


def test_text_that_no_token_has_and_tokens_that_have_no_text(make: Make) -> None:
    page = Page(make(word_pieces()).routing_report("  Fused  MODEL\n", "page.html").read_text(encoding="utf-8"))
    assert page.rows[0] == "  Fused  MODEL\n"
    assert [title.splitlines()[0] for title in page.titles[0]] == [
        "1: [CLS]",
        "2: Fuse",
        "3: d",
        "4: MODEL",
        "5: [SEP]",
    ]
    assert page.marks[0][0].endswith("[CLS]")
    assert page.marks[0][4].endswith("[SEP]")


def test_a_character_of_several_tokens_is_shown_once(make: Make) -> None:
    page = Page(make().routing_report("\U0001f600!\n", "page.html").read_text(encoding="utf-8"))
    assert page.rows[0] == "\U0001f600!\n"
    assert [title.splitlines()[0][3:] for title in page.titles[0]] == ["\U0001f600"] * 4 + ["!", "\u21b5"]
    assert [mark.lstrip("AB") for mark in page.marks[0]] == ["", "\u00b7", "\u00b7", "\u00b7", "", "\u21b5"]


def test_a_tokenizer_without_offsets(make: Make) -> None:
    runtime = make(ByT5Tokenizer())
    assert not runtime.tokenizer.is_fast
    page = Page(runtime.routing_report("Plain & <plain>", "page.html").read_text(encoding="utf-8"))
    assert page.rows[0] == "Plain & <plain>"
    assert page.marks[0][-1].endswith("</s>")


def test_control_signs_are_shown_as_pictures(make: Make) -> None:
    page = Page(make().routing_report("a\0b\x7f\tc", "page.html").read_text(encoding="utf-8"))
    assert page.rows[0] == "a\u2400b\u2421\tc"


def test_what_cannot_be_reported_is_refused(make: Make) -> None:
    runtime = make()
    with pytest.raises(ConfigError, match=r"text 1 has 0 tokens.*\n.*text 2 has 600 tokens, wanted 1 to 512"):
        runtime.routing_report(["", "x" * 600])
    for wrong in ([], ["good", 7]):
        with pytest.raises(ConfigError, match="wanted a string or several"):
            runtime.routing_report(wrong)  # type: ignore[arg-type]
    runtime.train()
    with pytest.raises(ConfigError, match=r"call eval\(\)"):
        runtime.routing_report("text")
    with pytest.raises(ConfigError, match="no layer was added"):
        MoLRuntime(MoLConfig(models=["gpt2"])).routing_report("text")
    assert not Path("routing.html").exists()


def test_a_browser_reads_it(make: Make, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    path = make().routing_report(HOSTILE, tmp_path / "page.html")
    probe = (
        "<script>const press = key => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: "
        "true})); document.querySelector('.row').focus(); press('End'); press('ArrowDown'); press('ArrowLeft');"
        # A browser without a window may act as one in the background, which gets no focus events.
        "document.hasFocus() || document.activeElement.dispatchEvent(new FocusEvent('focusin', {bubbles: true}));"
        "document.body.dataset.said = document.querySelector('output').textContent;</script></body>"
    )
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8", newline="")
    line = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, timeout=50, check=True)
    assert b"CONSOLE" not in done.stderr
    page = Page(done.stdout.decode())
    assert page.rows == [HOSTILE] * 2
    said = dict(page.attributes)["data-said"]
    assert said == page.titles[1][-2]
