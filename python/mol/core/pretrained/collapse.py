"""Turns a fusion into one static model of the host's class, by a merge: each fused layer is a mean of its experts."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from mol.config.model_reference import ModelReference
from mol.core.models.heads import CAUSAL_LM, head_of
from mol.core.pretrained.causal_lm import MoLForCausalLM
from mol.core.pretrained.rebuilding import used_models
from mol.errors import ConfigError, FusionError
from mol.io.layout import GENERATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from mol.core.mol_layer import Expert
    from mol.core.runtime import Runtime
    from mol.io.checkpoint import Checkpoint

FusionMethod = Literal["weighted_average", "learned_weights", "best_expert"]
"""How much of each expert goes into a static layer: equal shares, the router's mean weights, or one model's blocks."""
Weights = dict[int, list[float]]
"""By position, the share of each expert."""
_LONGEST: Final = 1024  # tokens of a text, of which losses and routing are measured
_PROBES: Final = 64


class Collapsed(NamedTuple):
    """A static model that was written.

    Attributes:
        weights: the share of each expert.
        lines: what was done and measured, for the card.
    """

    weights: Weights
    lines: list[str]


def collapse(
    runtime: Runtime,
    directory: Path,
    fusion_method: str = "weighted_average",
    *,
    texts: Sequence[str] | None = None,
    drop_adapters: bool = False,
) -> Collapsed:
    """Write a static model of a fusion: the host, with a linear merge of the experts instead of each fused layer.

    Args:
        runtime: the fusion.
        directory: a new directory.
        fusion_method: see `FusionMethod`; the model of "best_expert" is the one with the lowest loss.
        texts: to measure the loss on, and the router's mean weights; needed for all but "weighted_average".
        drop_adapters: leave out adapters that are not the identity, instead of refusing them.

    Raises:
        ConfigError: there is no such method, or it needs texts.
        FusionError: the fusion cannot be one static model; every reason is listed.
        MolError: the experts do not fit together, as the merge says.
        OSError: something cannot be read or written.
    """
    if fusion_method not in get_args(FusionMethod):
        raise ConfigError(f"fusion_method is {fusion_method!r}, wanted one of {', '.join(get_args(FusionMethod))}")
    if texts is None and (fusion_method != "weighted_average" or drop_adapters):
        needs = "drop_adapters states the loss" if fusion_method == "weighted_average" else f"{fusion_method} is chosen"
        raise ConfigError(f"{needs} by measuring on text: give calibration=[...], or call calibrate(texts) before")
    training = runtime.training
    runtime.eval()
    try:
        return _collapse(runtime, directory, fusion_method, texts, drop_adapters=drop_adapters)
    finally:
        runtime.train(training)


def _collapse(
    runtime: Runtime, directory: Path, fusion_method: str, texts: Sequence[str] | None, *, drop_adapters: bool
) -> Collapsed:
    from mol.merge.manifest import put_side_file

    dropped = _check(runtime, drop_adapters=drop_adapters)
    rows = [] if texts is None else _rows(runtime, texts)
    chosen: list[str] = []
    if fusion_method == "learned_weights":
        weights = _mean_routing(runtime, rows)
        chosen.append("shares are the routers' mean weights on the text")
    elif fusion_method == "best_expert":
        weights, chosen = _best_expert(runtime, rows)
    else:
        weights = {position: [1 / len(layer.specs)] * len(layer.specs) for position, layer in _layers(runtime)}
    _merge(runtime, weights, directory)
    generation: Any = runtime.host.model.generation_config  # of the fusion, which may have others than the host's file
    put_side_file(directory, GENERATION, generation.to_json_string().encode())
    lines = [f"method `{fusion_method}`", *chosen, *(f"adapters left out: {line}" for line in dropped)]
    lines += [
        f"layer {position}: "
        + ", ".join(f"{share:.3f} of `{spec}`" for share, spec in zip(weights[position], layer.specs, strict=True))
        for position, layer in _layers(runtime)
    ]
    if rows:
        static, fusion = _loss(_load(directory), rows), _loss(MoLForCausalLM.from_runtime(runtime), rows)
        count = sum(row.shape[1] - 1 for row in rows)
        lines.append(
            f"loss in nats per token, {count:,} tokens of the text: {static:.4f} of this model, {fusion:.4f} of the "
            "fusion that it was made of"
        )
    else:
        lines.append("its loss was not measured, since no text was given (calibration)")
    return Collapsed(weights, lines)


def load_collapsed(runtime: Runtime, fusion_method: str, texts: Sequence[str] | None, *, drop: bool) -> PreTrainedModel:
    """Return the static model in memory."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "fused"
        collapse(runtime, directory, fusion_method, texts=texts, drop_adapters=drop)
        return _load(directory)


def _layers(runtime: Runtime) -> list[tuple[int, Any]]:
    return sorted(zip(runtime.positions, runtime.fused, strict=True), key=lambda one: one[0])


def _check(runtime: Runtime, *, drop_adapters: bool) -> list[str]:
    """Refuse what cannot be static; return the adapters that are left out.

    Raises:
        FusionError: listing every reason.
    """
    problems: list[str] = []
    host = runtime.open_host()
    if head_of(host.model.config) is not CAUSAL_LM:
        problems.append(f"the host {host.name} ({type(host.model).__name__}) does not predict the next token")
    if not len(runtime.layers):
        problems.append("no layer was added, so it is the host as it is")
    uses = used_models(runtime)
    for name, source in runtime.fusion().sources.items():
        if source.checkpoint is None:
            problems.append(f"{name} was not loaded from files, which a merge reads")
        elif uses[name].changed:
            problems.append(f"the files of {name} have changed since it was opened")
        elif uses[name].runs_own_code:
            problems.append(f"{name} brings code of its own, so that no library knows its layers")
    left_out = []
    for position, layer in _layers(runtime):
        for expert in layer.built:
            spec = expert.spec
            source = runtime.source(spec.model)
            if len(spec.blocks) != 1:
                problems.append(f"layer {position}: `{spec}` runs {len(spec.blocks)} blocks, a static layer is one")
            if source.width != host.width:
                problems.append(
                    f"layer {position}: `{spec}` is {source.width} wide and the host {host.name} {host.width}, so "
                    "there is no mean of their weights"
                )
            elif not _is_identity(expert):
                left_out.append(f"layer {position}: `{spec}`")
    if left_out and not drop_adapters:
        problems += [
            f"{line} has adapters that are not the identity, and a static layer has none; drop_adapters=True leaves "
            "them out, at a loss that is then measured"
            for line in left_out
        ]
    if problems:
        raise FusionError.listing(
            "this fusion cannot become one static model; push it as fusion_type='runtime' or 'bundle', or change it",
            problems,
        )
    return left_out


def _is_identity(expert: Expert) -> bool:
    """Return whether both adapters return what they are given, bit for bit."""
    if expert.is_exact:
        return True
    weight = next(expert.parameters(), torch.zeros(()))
    probes = torch.randn(_PROBES, expert.down.input_dim, generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        return all(torch.equal(adapter(probes), probes) for adapter in (expert.down, expert.up))


def _rows(runtime: Runtime, texts: Sequence[str]) -> list[torch.Tensor]:
    """Return the tokens of each text, (1, T), those beyond the longest that all models read left out.

    Raises:
        ConfigError: there is nothing to predict in any.
    """
    most = MoLForCausalLM.from_runtime(runtime).config.max_position_embeddings or _LONGEST
    tokenizer, device = runtime.load_tokenizer(), runtime.host.model.device
    rows = [
        tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][:, : min(most, _LONGEST)].to(device)
        for text in texts
    ]
    rows = [row for row in rows if row.shape[1] > 1]
    if not rows:
        raise ConfigError("no text of the calibration has two tokens, so there is nothing to predict")
    return rows


def _mean_routing(runtime: Runtime, rows: Sequence[torch.Tensor]) -> Weights:
    """Return the mean weight of each expert over all tokens."""
    totals = {position: torch.zeros(len(layer.specs), dtype=torch.float64) for position, layer in _layers(runtime)}
    with torch.no_grad():
        for row in rows:
            _, stats = runtime(row, torch.ones_like(row), return_router_stats=True)
            for position, total in totals.items():
                total += stats[f"layer_{position}"]["expert_weights"].double().sum((0, 1))
    return {position: (total / total.sum()).tolist() for position, total in totals.items()}


def _best_expert(runtime: Runtime, rows: Sequence[torch.Tensor]) -> tuple[Weights, list[str]]:
    """Return the shares that take one model's blocks everywhere, of the model with the lowest loss, and all losses.

    Raises:
        FusionError: no model has one expert in each fused layer.
    """
    layers = _layers(runtime)
    candidates: dict[str, Weights] = {}
    for name in runtime.config.models:
        shares = {position: [float(spec.model == name) for spec in layer.specs] for position, layer in layers}
        if all(sum(share) == 1 for share in shares.values()):
            candidates[name] = shares
    if not candidates:
        raise FusionError(
            "best_expert takes the blocks of one model in every fused layer, and none has one expert in each; choose "
            "another fusion_method"
        )
    losses = {}
    for name, shares in candidates.items():
        with tempfile.TemporaryDirectory() as folder:
            _merge(runtime, shares, Path(folder) / "fused")
            losses[name] = _loss(_load(Path(folder) / "fused"), rows)
    best = min(losses, key=lambda name: losses[name])
    listed = ", ".join(f"{loss:.4f} with those of `{name}`" for name, loss in losses.items())
    return candidates[best], [f"the blocks of `{best}`, whose loss is the lowest: {listed}"]


def _merge(runtime: Runtime, weights: Weights, directory: Path) -> None:
    """Run the merge that a static model is."""
    from mol.merge.run import run_merge

    checkpoints = {name: use.checkpoint for name, use in used_models(runtime).items()}
    references = {
        name: ModelReference(name, runtime.config.revisions.get(name) if checkpoint.revision else None)
        for name, checkpoint in checkpoints.items()
    }
    recipe = _recipe(runtime, weights, {name: str(reference) for name, reference in references.items()})
    opened: dict[ModelReference, Checkpoint] = {references[name]: each for name, each in checkpoints.items()}
    run_merge(recipe, directory, checkpoints=opened)


def _recipe(runtime: Runtime, weights: Weights, names: dict[str, str]) -> dict[str, Any]:
    """Return the recipe: a slice for each fused layer, and one for each run of the host's own.

    What lies before and after the layers is made of the first and the last slice, and is to be the host's alone: there
    the host takes part in every slice, with no share in the layer itself where it has none.
    """
    host = runtime.host_name
    inside = rf"re:(^|\.){re.escape(runtime.host.block_path(0).split('.')[-2])}\.\d+\."
    fused = dict(_layers(runtime))
    kept = range(len(runtime.host)) if runtime.config.keep_host_layers else sorted(fused)
    slices: list[dict[str, Any]] = []
    for position in kept:
        if position not in fused:
            if slices and position - 1 not in fused:
                slices[-1]["sources"][0]["layer_range"][1] += 1
            else:
                whole = {"model": names[host], "layer_range": [position, position + 1], "parameters": {"weight": 1.0}}
                slices.append({"sources": [whole]})
            continue
        shares = zip(fused[position].specs, weights[position], strict=True)
        parts = [[spec.model, spec.blocks[0], share] for spec, share in shares if share]
        end = position in (kept[0], kept[-1])
        own = next((part for part in parts if part[0] == host), None)
        if end and own is None:
            parts.insert(0, own := [host, position, 0.0])
        slices.append({"sources": [
            {
                "model": names[model],
                "layer_range": [block, block + 1],
                "parameters": {
                    "weight": [{"filter": inside, "value": share}, {"value": float(part is own)}] if end else share
                },
            }
            for part in parts
            for model, block, share in [part]
        ]})  # fmt: skip
    return {"merge_method": "linear", "slices": slices, "tokenizer_source": names[host]}


def _load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def _loss(model: Any, rows: Sequence[torch.Tensor]) -> float:  # noqa: ANN401 - a causal model of any class
    """Return the mean loss of the next token over all rows, in nats."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            row = row.to(model.device)
            logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, :-1].float()
            total += functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
            count += row.shape[1] - 1
    return total / count
