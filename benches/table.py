"""What benchmarks of merges share: runs of mol, `cp` and mergekit, the figures found, and the table that is printed."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import recipes
from measure import Taken, cool, populate, run, warm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MAKE_FAMILY = Path(__file__).with_name("make_family.py")
MOL = str(Path(sys.executable).with_name("mol-merge"))
MB = 1e6
# Its default threads burn more CPU than one does, and which is faster depends on the machine: the faster counts.
PEER_THREADS = {"mergekit": (), "mergekit -j 1": ("-j", "1")}


@dataclass
class Line:
    """One line of the table: a figure, and what the issue asks of it."""

    what: str
    value: float
    unit: str
    must: float | None = None
    goal: float | None = None
    more: bool = False  # more is better
    note: str = ""
    cpu: float | None = None  # the same by CPU seconds, where that is a comparison of two

    def verdict(self) -> str:
        for limit, word in ((self.goal, "goal"), (self.must, "met")):
            if limit is not None and (self.value >= limit if self.more else self.value <= limit):
                return word
        return "-" if self.must is None and self.goal is None else "MISSED" if self.must is not None else "not yet"


@dataclass
class Bench:
    """Where things are, how often they are run, and what was found."""

    directory: Path
    rounds: int
    peer_rounds: int
    mergekit: Path | None
    trial: bool = False  # small models: they only show that the rows run
    peers: tuple[str, ...] = tuple(PEER_THREADS)
    peer_walls: dict[str, dict[str, float]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    runs: list[tuple[str, list[Taken]]] = field(default_factory=list)

    def make(self, *options: str) -> None:
        trial = ["--trial"] if self.trial else []
        subprocess.run([sys.executable, str(MAKE_FAMILY), str(self.directory), *options, *trial], check=True)

    def weights(self, models: Iterable[str]) -> list[Path]:
        return [self.directory / name / "model.safetensors" for name in models]

    def settle(self) -> None:
        """Drop what earlier rows read from the page cache, or their files are thrown out at this row's expense."""
        self.cool(self.directory.glob("*/*.safetensors"))

    def cool(self, files: Iterable[Path]) -> str:
        """Drop files from the page cache, and return by which means."""
        return "left warm" if self.trial else cool(files)

    def recipe(self, name: str) -> Path:
        """The recipe `name` as a file, model paths absolute."""
        path = self.directory / f"{name}.yml"
        path.write_text(recipes.text(name, self.directory))
        return path

    def fresh(self, name: str) -> Path:
        """A path for an output that is not there, with the disk at rest and memory at hand."""
        path = self.directory / f"out-{name}"
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        if not self.trial:
            subprocess.run(["sync"], check=True)
            populate()
        return path

    def discard(self, *names: str) -> None:
        for name in names:
            self.fresh(name)

    def remove(self, names: Iterable[str]) -> None:
        for path in (self.directory / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove the models, recipes, logs and outputs, and nothing else."""
        self.remove(name for _, (names, _) in sorted(recipes.RECIPES.items()) for name in names)
        self.remove(f"{name}.yml" for name in recipes.RECIPES)
        self.remove(path.name for kind in ("out-*", "log-*") for path in self.directory.glob(kind))

    def mol(self, name: str, *, out: str = "mol", prefix: Sequence[str] = (), sync: bool = False) -> Taken:
        """A merge that leaves its result in the page cache, as `cp` and mergekit do; with `sync` as by default."""
        command = [MOL, str(self.recipe(name)), str(self.fresh(out)), "--quiet", *([] if sync else ["--no-sync"])]
        return run(command, log=self.directory / "log-mol", prefix=prefix)

    def peer(self, name: str, how: str) -> Taken:
        """A merge by mergekit, with the threads that `how` names."""
        assert self.mergekit is not None
        command = [str(self.mergekit / "bin" / "mergekit-yaml"), str(self.recipe(name)), str(self.fresh("mergekit"))]
        tokenizer = [] if "tokenizer_source" in recipes.RECIPES[name][1] else ["--no-copy-tokenizer"]
        return run([*command, *tokenizer, *PEER_THREADS[how]], log=self.directory / "log-mergekit", every=0.02)

    def walls_of_peer(self, name: str) -> dict[str, float]:
        """Run mergekit on a recipe with each choice of threads, once for all rows; one that fails is left out."""
        if name in self.peer_walls or self.mergekit is None or not self.peer_rounds:
            return self.peer_walls.get(name, {})
        walls = self.peer_walls[name] = {}
        for how in self.peers:
            try:
                taken = []
                for _ in range(self.peer_rounds):
                    warm(self.weights(recipes.models(name)))
                    taken.append(self.peer(name, how))
                    self.discard("mergekit")
            except RuntimeError as error:
                print(f"{name}: {how} failed: {error}", file=sys.stderr, flush=True)
            else:
                walls[how] = self.keep(f"{name}: {how}", taken)
        return walls

    def against_peer(self, what: str, name: str, merged: list[Taken], *limits: float | None, times: int = 1) -> None:
        """Compare runs with the faster of mergekit's on a recipe, which does one part of `times` of their work."""
        walls = self.walls_of_peer(name)
        if walls:
            fastest = min(walls, key=lambda how: walls[how])
            ratio = walls[fastest] * times / statistics.median(one.wall for one in merged)
            self.add(Line(f"{what}: mol against the faster, {fastest}", ratio, "x faster", *limits, more=True))

    def anonymous(self, what: str, taken: list[Taken], *limits: float) -> None:
        """Add the largest RssAnon of runs."""
        self.add(Line(f"{what}: RssAnon of the process", max(one.anonymous for one in taken) / MB, "MB", *limits))

    def cp(self, source: str = "base", prefix: Sequence[str] = ()) -> Taken:
        command = ["cp", str(self.weights([source])[0]), str(self.fresh("cp"))]
        return run(command, log=self.directory / "log-cp", prefix=prefix)

    def cp_and_sync(self, source: str = "base") -> Taken:
        """`cp` until the copy and its name are on the disk: what a merge without `--no-sync` is compared with."""
        command = ["sh", "-c", 'cp "$0" "$1" && sync "$1" "$(dirname "$1")"']
        files = [str(self.weights([source])[0]), str(self.fresh("cp"))]
        return run([*command, *files], log=self.directory / "log-cp")

    def in_turns(self, runs: Mapping[str, tuple[str, Callable[[], Taken]]]) -> list[list[Taken]]:
        """Note runs by their names, in rounds: before each the inputs of its recipe are read into the page cache."""
        taken: dict[str, list[Taken]] = {what: [] for what in runs}
        self.settle()
        # Not counted: the first run of a program reads it from the disk and writes Python's compiled modules.
        self.mol(next(iter(runs.values()))[0])
        for _ in range(self.rounds):
            for what, (recipe, start) in runs.items():
                warm(self.weights(recipes.models(recipe)))
                taken[what].append(start())
        self.discard("cp", "mol")
        for what, each in taken.items():
            self.keep(what, each)
        return list(taken.values())

    def keep(self, what: str, taken: list[Taken]) -> float:
        """Note runs for the table of runs and give the median of their wall time."""
        self.runs.append((what, taken))
        return statistics.median(one.wall for one in taken)

    def compare(
        self,
        what: str,
        taken: list[Taken],
        other: list[Taken],
        unit: str,
        *limits: float | None,
        per: float = 1,
        note: str = "",
    ) -> Line:
        """How many times longer runs took than others in the same rounds, by medians; each `per` times as much work."""
        (wall, cpu), (other_wall, other_cpu) = (
            [statistics.median(getattr(one, key) for one in runs) for key in ("wall", "cpu")] for runs in (taken, other)
        )
        by_cpu = cpu / other_cpu / per if other_cpu else None
        return Line(what, wall / other_wall / per, unit, *limits, cpu=by_cpu, note=note)

    def add(self, *lines: Line) -> None:
        self.lines.extend(lines)


def kept(bench: Bench, row: str, runs: int, lines: int) -> None:
    """Print what a row found, from these numbers of runs and lines on, and keep it in DIR/results.json."""
    of_row = Bench(bench.directory, 0, 0, None, bench.trial, lines=bench.lines[lines:], runs=bench.runs[runs:])
    print(f"## {row}\n\n{report(of_row)}\n", flush=True)
    path = bench.directory / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found[row] = {
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "runs": {what: [asdict(one) for one in taken] for what, taken in of_row.runs},
        "figures": [asdict(line) | {"verdict": line.verdict()} for line in of_row.lines],
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def report(bench: Bench) -> str:
    """Every run, then the table of ratios, both in Markdown."""
    out = [
        "| run | rounds | wall s, median | fastest | slowest | CPU s | RssAnon MB | VmPTE MB | peak RSS MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for what, taken in bench.runs:
        walls = [one.wall for one in taken]
        cpu = statistics.median(one.cpu for one in taken)
        peaks = [max(getattr(one, key) for one in taken) / MB for key in ("anonymous", "tables", "resident")]
        out.append(
            f"| {what} | {len(taken)} | {statistics.median(walls):.3f} | {min(walls):.3f} | {max(walls):.3f} "
            f"| {cpu:.2f} | {' | '.join(f'{peak:.1f}' for peak in peaks)} |"
        )
    if bench.trial:
        out += ["", "Small models, to see that the rows run: no figure here counts."]
    out += ["", "| what | measured | by CPU s | must | goal | verdict |", "|---|---|---|---|---|---|"]
    for line in bench.lines:
        sign = ">=" if line.more else "<="
        limits = [f"{sign} {limit:g}" if limit is not None else "" for limit in (line.must, line.goal)]
        note = f" ({line.note})" if line.note else ""
        cpu = "" if line.cpu is None else f"{line.cpu:.3g}"
        verdict = "" if bench.trial else line.verdict()
        out.append(
            f"| {line.what}{note} | {line.value:.3g} {line.unit} | {cpu} | {limits[0]} | {limits[1]} | {verdict} |"
        )
    return "\n".join(out)
