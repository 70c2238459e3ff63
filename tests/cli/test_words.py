"""How things are said: widths, colours, JSON, sizes and times, progress."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from typing import TYPE_CHECKING

import pytest

from mol.cli import _Bug, main, refuse, units
from mol.cli.console import Console, field, listing, style, wrap
from mol.cli.errors import describe
from mol.cli.progress import Progress
from mol.errors import ConfigError, FusionError, InternalError, MergeError

if TYPE_CHECKING:
    from pathlib import Path


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that rise on request."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.00 kB"), (2_200_000_000, "2.20 GB"),
     (999_900, "1.00 MB"), (48_512_345, "48.5 MB"), (612_000_000, "612 MB"), (5 * 10**12, "5.00 TB")],
)  # fmt: skip
def test_sizes(count: int, said: str) -> None:
    assert units.size(count) == said


@pytest.mark.parametrize(
    ("span", "said"),
    [(0.0004, "1 ms"), (0.043, "43 ms"), (0.84, "0.84 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"),
     (200, "3 min 20 s"), (3840, "1 h 4 min")],
)  # fmt: skip
def test_times(span: float, said: str) -> None:
    assert units.seconds(span) == said


@pytest.mark.parametrize(("span", "said"), [(7, "0:07"), (200, "3:20"), (3850, "1:04:10")])
def test_clock(span: float, said: str) -> None:
    assert units.clock(span) == said


def test_counts() -> None:
    assert units.amount(1, "tensor") == "1 tensor"
    assert units.amount(1204, "tensor") == "1,204 tensors"
    assert units.parameters(1_100_048_384) == "1.10B"
    assert units.parameters(125_000_000) == "125M"


def test_names_and_paths_are_never_broken() -> None:
    name = "model." + "layers." * 20 + "weight"
    assert wrap(f"tensor {name} is damaged", 80, hang=2) == ["tensor", f"  {name}", "  is damaged"]
    assert all(len(line) <= 80 for line in wrap("many short words " * 20, 80, hang=2))


def test_a_field_is_80_columns_wide_and_hangs() -> None:
    lines = field("tensors", "many short words " * 20).splitlines()
    assert lines[0].startswith("tensors   many")
    assert all(line.startswith(" " * 10 + "many") or line.startswith(" " * 10) for line in lines[1:])
    assert max(map(len, lines)) <= 80


def test_a_listing_says_how_many_it_leaves_out() -> None:
    assert listing("copied", ["a: x", "b: y", "c: z"], limit=2) == [
        "copied    a: x", "          b: y", "          ... and 1 more (-v lists all)",
    ]  # fmt: skip
    assert listing("copied", [], limit=2) == []


def test_colour_is_for_terminals_and_obeys_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert style("error:", "red", Terminal()) != "error:"
    assert style("error:", "red", io.StringIO()) == "error:"
    monkeypatch.setenv("NO_COLOR", "1")
    assert style("error:", "red", Terminal()) == "error:"


def test_json_has_one_document_and_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.configure(quiet=False, verbose=0, json=True)
    console.result("for people")
    console.document({"cosine": math.nan, "list": (1.5, math.inf)})
    console.document({"again": 1})
    assert json.loads(capsys.readouterr().out) == {"cosine": None, "list": [1.5, None]}


def test_a_large_entry_of_a_document_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.configure(quiet=False, verbose=0, json=True)
    console.document({"bytes": 1, "name": "a\x7f"}, plan='{"tasks": [0.10]}')
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"bytes": 1, "name": "a\x7f", "plan": {"tasks": [0.1]}}
    assert printed.endswith(',\n  "plan": {"tasks": [0.10]}\n}\n')


def test_quiet_says_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.configure(quiet=True, verbose=0, json=False)
    console.note("n")
    console.warning("w")
    console.status("s")
    console.error("e")
    assert capsys.readouterr() == ("", "error: e\n")


def test_an_error_of_the_system_is_said_without_its_number() -> None:
    assert describe(PermissionError(13, "Permission denied", "/out")) == "/out: Permission denied"
    assert describe(FileNotFoundError("no such recipe")) == "no such recipe"
    assert describe(ConfigError("wrong")) == "wrong"


def test_a_bug_is_reported_as_one_and_traced_with_verbose_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    error = RuntimeError("boom")
    _Bug(console)(RuntimeError, error, None)
    said = capsys.readouterr().err
    assert "error: RuntimeError: boom" in said
    assert "This is a bug in mol. Please report it to " in said
    console.configure(quiet=False, verbose=1, json=False)
    try:
        raise error
    except RuntimeError:
        _Bug(console)(*sys.exc_info())  # type: ignore[arg-type]
    assert "Traceback" in capsys.readouterr().err


def test_a_lack_of_memory_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    _Bug(Console())(MemoryError, MemoryError(), None)
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory: free some, or raise the limit")
    assert "bug" not in said


def test_a_panic_of_the_engine_is_a_bug_and_a_refusal_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    refuse(Console(), InternalError("index out of bounds"))
    assert "error: index out of bounds\nThis is a bug in mol." in capsys.readouterr().err
    for refusal in (MergeError("shapes differ"), FusionError("shapes differ")):
        refuse(Console(), refusal)
        assert capsys.readouterr().err == "error: shapes differ\n"


def test_progress_in_a_log_is_a_plain_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(Console(), "merging", clock=clock) as progress:
        for second in range(13):
            clock.now = second
            progress(second * 200_000_000, 4_000_000_000, second * 100_000_000, 2_000_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "merging  25%  read 1.00 GB, wrote 500 MB, 300 MB/s, 0:15 left",
        "merging  50%  read 2.00 GB, wrote 1.00 GB, 300 MB/s, 0:10 left",
    ]


def test_progress_does_not_take_what_an_earlier_run_did_for_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(Console(), "merging", clock=clock) as progress:
        progress(3_000_000_000, 4_000_000_000, 0, 0)
        clock.now = 5.0
        progress(3_500_000_000, 4_000_000_000, 0, 0)
    assert capsys.readouterr().err == "merging  87%  read 3.50 GB, 100 MB/s, 0:05 left\n"


def test_progress_on_a_terminal_is_one_line_within_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    clock, console = Clock(), Console()
    with Progress(console, "comparing", clock=clock) as progress:
        for step in range(4):
            clock.now += 600.0
            progress(step * 10**12, 999 * 10**12, step * 10**12, 999 * 10**12)
        console.note("said in between")
    written = terminal.getvalue()
    assert written.count("\n") == 1
    assert written.endswith("said in between\n")
    drawn = [part.removeprefix("\x1b[K") for part in written.split("\r")]
    assert any("[..........]" in line for line in drawn)
    assert max(len(line) for line in drawn if "read" in line) < 80


def test_progress_is_silent_with_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    clock, console = Clock(), Console()
    console.configure(quiet=True, verbose=0, json=False)
    with Progress(console, "merging", clock=clock) as progress:
        for second in range(20):
            clock.now = second
            progress(second, 20, second, 20)
    assert capsys.readouterr() == ("", "")


def test_plan_says_what_steps_take_on_the_disk(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a step that is read several times, as many of the largest tensors as are merged at a time."""
    step = "then: {merge_method: slerp, base_model: ./base, models: [./base, merged], parameters: {t: 0.5}}\n"
    recipe.write_text(recipe.read_text() + step)
    assert main(["plan", "--threads", "1", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^disk      \S+ kB needed \(512 bytes of it while steps are merged\), \S+ GB free$", said, re.MULTILINE
    )
    assert main(["plan", "--json", "--threads", "3", str(recipe)]) == 0
    assert json.loads(capsys.readouterr().out)["bytes_of_steps"] == 3 * 512
