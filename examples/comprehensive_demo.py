"""Show all of mol once: detection, a merge, a fusion before and after fitting and training, routing, text, saving.

Everything that is printed, and every number on the page that it writes, is measured in this run. With --small-models
the models are those of packages of the Python package index: SmolLM2-135M as the host, the sentence encoder MiniLM as
the source of foreign blocks, and three BERTs of chemical reactions (rxnfp) to merge. Without it they are models of the
Hub, by name. The text is what every Python has: its manual, its source code, and tables of its modules.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import math
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging

from demo_page import Curve, Page, bars, curves, stacked, table
from mol import MergeConfig, MoLConfig, MoLRuntime, SlerpMerge, UniversalArchitectureHandler

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
FUSED = ("gpt2", "microsoft/DialoGPT-small", "bert-base-uncased")
MERGED = ("gpt2", "microsoft/DialoGPT-small")
PROMPTS = ("The capital of France is", "def fibonacci(n):", "To open a file in Python,")
WINDOW = 128


class Models(NamedTuple):
    """The models of a run: of the fusion the host first, of the merge the base first, and a text for the latter."""

    fused: Sequence[str]
    merged: Sequence[str]
    text: str | None


def small_models(packages: Path | None) -> Models:
    """Write the models of three packages below `build`, unless they are there."""

    def prepare(folder: str) -> Any:  # noqa: ANN401 - a function of an example
        spec = importlib.util.spec_from_file_location(f"prepare_{folder}", HERE / folder / "prepare.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module.prepare(Path("build") / folder, packages)

    reactions = prepare("rxnfp")
    host, encoder = prepare("smollm2")
    return Models([str(host), str(encoder)], ["build/rxnfp/bert_pretrained", "build/rxnfp/bert_ft"], reactions[0])


def domains() -> dict[str, str]:
    """Three kinds of text, of whose first halves it trains, and on whose second halves it measures."""
    topics = importlib.import_module("pydoc_data.topics").topics
    modules = ("argparse", "json.decoder", "textwrap", "shutil", "zipfile", "csv", "statistics", "difflib", "heapq")
    entities = importlib.import_module("html.entities").html5
    types = importlib.import_module("mimetypes").types_map
    return {
        "manual": "\n\n".join(topics[name] for name in sorted(topics)),
        "code": "\n\n".join(inspect.getsource(importlib.import_module(name)) for name in modules),
        "tables": "\n".join(
            [f"{name}\t{value}" for name, value in sorted(types.items())]
            + [f"&{name}\t{ord(value[0]):#x}" for name, value in sorted(entities.items())]
        ),
    }


def windows(tokenizer: Any, text: str, count: int, length: int, *, held_out: bool) -> torch.Tensor:  # noqa: ANN401
    """Return at most `count` windows (N, length) spread over one half of a text."""
    half = len(text) // 2
    part = text[half:] if held_out else text[:half]
    step = len(part) // count
    pieces = [part[at : at + step][: 12 * length] for at in range(0, step * count, step)]
    rows = [tokenizer(piece, add_special_tokens=False)["input_ids"][:length] for piece in pieces]
    return torch.tensor([row for row in rows if len(row) == length])


def perplexity(model: Any, rows: torch.Tensor) -> float:  # noqa: ANN401 - any causal language model
    """Return exp of the mean loss over windows (N, T)."""
    with torch.no_grad():
        losses = [model(ids, labels=ids).loss.item() * len(ids) for ids in rows.split(4)]
    return math.exp(sum(losses) / len(rows))


def detect(page: Page, models: Models) -> None:
    """Print and show what mol knows of each model from its config alone."""
    handler, rows = UniversalArchitectureHandler(), []
    for name in dict.fromkeys([*models.fused, *models.merged]):
        start = time.perf_counter()
        info = handler.detect_architecture(name)
        took = time.perf_counter() - start
        family = str(getattr(info.architecture_family, "value", info.architecture_family))
        rows.append((name, info.architecture_type, family, info.num_layers, info.hidden_dim, f"{took * 1e3:.0f} ms"))
    page.add(
        "Architectures, from the config alone", table(["model", "type", "family", "layers", "width", "time"], rows)
    )


def merged_loss(directory: str, heads: str, text: str | None, rows: torch.Tensor | None) -> float:
    """Return the loss of a merged model or a parent: of masked tokens of a text, or of next tokens of windows."""
    if text is None:
        return math.log(perplexity(AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval(), rows))
    model = AutoModelForMaskedLM.from_pretrained(heads).eval()
    if directory != heads:
        body = AutoModel.from_pretrained(directory, add_pooling_layer=False)
        model.base_model.load_state_dict(body.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(heads)
    ids = tokenizer(text, return_tensors="pt")["input_ids"].repeat(32, 1)
    masked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.15
    masked[:, 0] = masked[:, -1] = False
    with torch.no_grad():
        logits = model(ids.masked_fill(masked, tokenizer.mask_token_id)).logits
    return torch.nn.functional.cross_entropy(logits[masked], ids[masked]).item()


def merge(page: Page, models: Models, out: Path, texts: dict[str, str], *, measure: bool) -> None:
    """Merge two models by SLERP through the Python API."""
    target = out / "merged"
    config = MergeConfig(method="slerp", models=list(models.merged), parameters={"t": 0.5}, output_path=str(target))
    start = time.perf_counter()
    slerp = SlerpMerge(config)
    slerp.save_merged_model(slerp.merge(slerp.load_models()), overwrite=True)
    took = time.perf_counter() - start
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    page.add("A merge", f"<p>SLERP, t = 0.5, of {' and '.join(models.merged)}: {size:,} bytes in {took:.2f} s.</p>")
    if measure:
        rows = None
        if models.text is None:
            rows = windows(AutoTokenizer.from_pretrained(models.merged[0]), texts["manual"], 8, WINDOW, held_out=True)
        names = [*models.merged, str(target)]
        losses = [merged_loss(name, models.merged[0], models.text, rows) for name in names]
        label = "loss of masked tokens of one reaction, nats" if models.text else "loss on the manual, nats"
        page.add("The merge against its parents", bars(label, list(zip(names, losses, strict=True))))


def fuse(models: Sequence[str], init: str, texts: list[str]) -> MoLRuntime:
    """Put a block of each other model next to three layers of the host."""
    mol = MoLRuntime(MoLConfig(models=list(models), adapter_init=init, router_type="token_level", dtype="float32"))
    mol.setup_embeddings()
    mol.setup_lm_head()
    if init != "identity":
        mol.calibrate(texts)
    depth = len(mol.host)
    for layer in sorted({depth * part // 6 for part in (3, 4, 5)}):
        others = [(name, layer * len(mol.source(name)) // depth) for name in models[1:]]
        mol.add_layer([(models[0], layer), *others], layer_idx=layer)
    with torch.no_grad():
        for layer in mol.layers:  # equal weights at first, so that the two ways to start are compared and not luck
            for parameter in layer.router.parameters():
                parameter.zero_()
    return mol


def shares(mol: MoLRuntime, rows: torch.Tensor) -> dict[str, list[float]]:
    """Return the share of each expert, for each fused layer, over windows (N, T)."""
    with torch.no_grad():
        _, stats = mol(rows, return_router_stats=True)
    return {name: layer["expert_weights"].flatten(0, 1).mean(0).tolist() for name, layer in stats.items()}


def show_routing(page: Page, mol: MoLRuntime, held_out: dict[str, torch.Tensor], when: str) -> None:
    """Show which share of each domain's tokens goes to which expert."""
    found = {domain: shares(mol, rows) for domain, rows in held_out.items()}
    for position, layer in sorted(zip(mol.positions, mol.fused, strict=True), key=lambda one: one[0]):
        rows = [(domain, by_layer[f"layer_{position}"]) for domain, by_layer in found.items()]
        page.add(f"Routing {when}: layer {position}", stacked([str(spec) for spec in layer.specs], rows))


def train(page: Page, mol: MoLRuntime, batches: torch.Tensor, held_out: torch.Tensor, steps: int, out: Path) -> None:
    """Train adapters and routers, and draw the curve of the loss."""
    from mol.training import MoLTrainer, TrainingCallback, TrainingConfig

    seen: list[dict[str, float]] = []
    checked: list[tuple[int, float]] = []

    class Watch(TrainingCallback):
        def on_step_end(self, trainer: Any, metrics: Any) -> None:  # noqa: ANN401
            seen.append({**metrics, "step": trainer.global_step})

        def on_evaluate(self, trainer: Any, metrics: Any) -> None:  # noqa: ANN401
            checked.append((trainer.global_step, metrics["eval_lm_loss"]))

    config = TrainingConfig(
        learning_rate=1e-3, router_learning_rate=1e-3, batch_size=2, max_steps=steps, warmup_steps=steps // 10,
        lr_scheduler_type="cosine", eval_steps=max(steps // 4, 1), save_steps=None, output_dir=str(out / "training"),
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in batches]
    start = time.perf_counter()
    trainer = MoLTrainer(mol, config, callbacks=[Watch()])
    trainer.train(rows, [{"input_ids": row, "labels": row} for row in held_out])
    took = time.perf_counter() - start
    page.add(
        "Training",
        curves("loss of the host's head, nats", "step", [
            Curve("batches", [(one["step"], one["lm_loss"]) for one in seen]), Curve("held out", checked),
        ])
        + curves("entropy of the routers, nats", "step", [
            Curve("batches", [(one["step"], one["router_entropy"]) for one in seen]),
        ])
        + f"<p>{trainer.global_step} steps of {2 * batches.shape[1]} tokens in {took:.0f} s, evaluations included.</p>",
    )  # fmt: skip


def write(mol: MoLRuntime, prompt: str) -> str:
    """Generate a continuation of a prompt, the likeliest token each time."""
    given = mol.tokenizer(prompt, return_tensors="pt")
    ids = mol.generate(given["input_ids"], given["attention_mask"], max_new_tokens=20, do_sample=False)
    return str(mol.tokenizer.decode(ids[0], skip_special_tokens=True))


def save(page: Page, mol: MoLRuntime, rows: torch.Tensor, out: Path) -> None:
    """Save the fusion both ways, load it, and compare the outputs bit for bit."""
    found = []
    with torch.no_grad():
        wanted, _ = mol(rows[:1])
        for kind in ("runtime", "bundle"):
            path = mol.save_checkpoint(out / f"fusion_{kind}", kind=kind)
            size = sum(
                file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
            )
            again, _ = MoLRuntime.load_checkpoint(path)(rows[:1])
            found.append((kind, path.name, f"{size:,}", "equal" if torch.equal(wanted, again) else "DIFFERENT"))
    page.add("Saved and loaded", table(["kind", "name", "bytes", "hidden states"], found))


def main() -> int:
    parser = argparse.ArgumentParser(description="show detection, a merge, a fusion, its training and its routing")
    parser.add_argument("--inference-only", action="store_true", help="neither train nor measure perplexities")
    parser.add_argument("--train", action="store_true", help="train adapters and routers")
    parser.add_argument("--eval", action="store_true", help="measure perplexities on held-out text")
    parser.add_argument("--small-models", action="store_true", help="models of packages, without the Hub")
    parser.add_argument("--models", nargs="+", default=FUSED, help="of the fusion, the host first")
    parser.add_argument("--merge", nargs=2, default=MERGED, metavar="MODEL", help="two models to merge")
    parser.add_argument("--package", type=Path, help="folder of the downloaded wheels of --small-models")
    parser.add_argument("--steps", type=int, default=24, help="training steps of 256 tokens (default: 24)")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="where to write (default: build/demo)")
    given = parser.parse_args()
    if given.inference_only and (given.train or given.eval):
        parser.error("--inference-only excludes --train and --eval")
    train_it, measure = given.train, given.eval
    if not (given.inference_only or given.train or given.eval):
        train_it = measure = True
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    start = time.monotonic()

    models = small_models(given.package) if given.small_models else Models(given.models, given.merge, None)
    texts, page = domains(), Page("mol: one run of everything")
    given.out.mkdir(parents=True, exist_ok=True)
    detect(page, models)
    merge(page, models, given.out, texts, measure=measure)

    tokenizer = AutoTokenizer.from_pretrained(models.fused[0])
    plain = fuse(models.fused, "identity", [])
    length = min(plain.as_causal_lm().config.max_position_embeddings or WINDOW, WINDOW)
    seen = torch.cat([windows(tokenizer, text, 16, length, held_out=False) for text in texts.values()])
    held_out = {domain: windows(tokenizer, text, 4, length, held_out=True) for domain, text in texts.items()}
    calibration = tokenizer.batch_decode(seen[::3])
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))
    measured: list[tuple[str, list[float]]] = []
    written: list[tuple[str, ...]] = []

    def look(label: str, mol: MoLRuntime) -> None:
        if measure:
            found = [perplexity(mol.as_causal_lm(), rows) for rows in held_out.values()]
            measured.append((label, found))
            print(f"{label:32}", *(f"{domain} {value:.2f}" for domain, value in zip(held_out, found, strict=True)))
        written.append((label, *(write(mol, prompt) for prompt in PROMPTS)))

    look("host alone", MoLRuntime(MoLConfig(models=[models.fused[0]], dtype="float32")))
    look("fusion, identity adapters", plain)
    mol = fuse(models.fused, "lstsq", calibration)
    page.add("The fusion", f"<pre>{page.escape(str(mol.summary()))}</pre>")
    look("fusion, fitted adapters", mol)
    if train_it:
        show_routing(page, mol, held_out, "before training")
        train(page, mol, seen[order], torch.cat([rows[:2] for rows in held_out.values()]), given.steps, given.out)
        look("fusion, fitted and trained", mol)
    show_routing(page, mol, held_out, "after training" if train_it else "of the fitted fusion")
    if measured:
        tokens = sum(rows.numel() for rows in held_out.values())
        for number, domain in enumerate(held_out):
            rows = [(label, found[number]) for label, found in measured]
            page.add(f"Perplexity: {domain}", bars(f"perplexity on held-out text ({domain})", rows))
        page.add("Held-out text", f"<p>{tokens} tokens in windows of {length}.</p>")
    page.add("Text", table(["model", *PROMPTS], written))
    save(page, mol, held_out["manual"], given.out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    threads = torch.get_num_threads()
    page.add(
        "This run", f"<p>{time.monotonic() - start:.0f} s, {threads} threads, at most {peak:.1f} GiB of memory.</p>"
    )
    print(page.write(given.out / "demo.html"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
