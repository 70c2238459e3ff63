"""The rows of the evidence that are trained: mixtures of outputs, fusions of blocks, their control, and LoRA."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from merges import chosen
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import mol
from measure import EXPERTS, MODELS, WINDOW, read
from mol import MoLConfig, MoLMixture, MoLRuntime, MoLTrainer, TrainingConfig

STEPS: Final = 80
LONGER: Final = 240
NARROWING: Final = 40
BATCH: Final = 8
RATE: Final = 1e-3
FAST: Final = 1e-2
ROUTER_RATE: Final = 1e-2
LAYERS: Final = 4
BASE: Final = str(MODELS / "base")
# Names of one directory: blocks of a model that is not the host by name get adapters.
ALIASES: Final = ("/", "/.", "/./")


class Trained(NamedTuple):
    """A model, what was trained of it, and how."""

    model: Any
    parameters: int
    settings: dict[str, Any]


class Fused(NamedTuple):
    """How a fusion of the experts' blocks in a host is built, and trained.

    Attributes:
        host: "base", or "merge", that by task arithmetic.
        init: of adapters.
        router: its type.
        dispatch: as in `MoLConfig`.
        top: how many experts a token is given; all if None.
        chain: all blocks of an expert in a row, before one router.
        control: the host's blocks for the experts'.
        mlps: of the experts' blocks the MLPs alone, with attention and norms of the merge; adapters are not trained.
        domains: routers see which domain a row is of.
        steps: of training.
        rate: of adapters.
    """

    host: str = "base"
    init: str = "identity"
    router: str = "simple"
    dispatch: str = "dense"
    top: int | None = None
    chain: bool = False
    control: bool = False
    mlps: bool = False
    domains: bool = True
    steps: int = STEPS
    rate: float = RATE


FUSIONS: Final = {
    "fused_identity_untrained": Fused(steps=0),
    "fused_lstsq_untrained": Fused(init="lstsq", steps=0),
    "control": Fused(control=True),
    "fused_identity": Fused(),
    "fused_lstsq": Fused(init="lstsq"),
    "fused_prefix_top1": Fused(dispatch="token", top=1),
    "fused_token_top2": Fused(router="token", dispatch="token", top=2),
    "chain_untrained": Fused(chain=True, steps=0),
    "chain": Fused(chain=True),
    "chain_no_domains": Fused(chain=True, domains=False),
    "chain_prefix_top1": Fused(chain=True, dispatch="token", top=1),
    "chain_control": Fused(chain=True, control=True),
    "merged_chain_untrained": Fused("merge", chain=True, steps=0),
    "merged_chain": Fused("merge", chain=True, rate=FAST),
    "merged_chain_top1": Fused("merge", dispatch="token", top=1, chain=True, steps=LONGER, rate=FAST),
    "merged_chain_top1_control": Fused(
        "merge", dispatch="token", top=1, chain=True, control=True, steps=LONGER, rate=FAST
    ),
    "bar": Fused("merge", mlps=True),
}


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(BASE)


def rows(steps: int, seed: int) -> list[dict[str, Any]]:
    """Return windows of the experts' train texts for so many steps, as many of each domain, and their domains."""
    tokens, found = tokenizer(), []
    draw = torch.Generator().manual_seed(seed)
    wanted = math.ceil(steps * BATCH / len(EXPERTS))
    for number, domain in enumerate(EXPERTS):
        texts = read(domain, "train")
        ids: list[int] = []
        for at in torch.randperm(len(texts), generator=draw).tolist():
            ids += [tokens.eos_token_id, *tokens(texts[at], verbose=False)["input_ids"]]
            if len(ids) >= wanted * WINDOW:
                break
        windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)[:wanted]
        mask = torch.ones(WINDOW, dtype=torch.long)
        found += [{"input_ids": one, "attention_mask": mask, "domains": torch.tensor(number)} for one in windows]
    return [found[at] for at in torch.randperm(len(found), generator=draw).tolist()][: steps * BATCH]


def build(kind: Fused, models: Path, scratch: Path, seed: int) -> MoLRuntime:
    """Put the experts' blocks into the host: one of each in every layer, or all four in a row."""
    host = BASE if kind.host == "base" else str(chosen("task_arithmetic", models, scratch / "host", seed))
    names = [str(models / name) for name in EXPERTS]
    if kind.control:
        names = [host + alias for alias in ALIASES]
    elif kind.mlps:
        names = [str(with_mlps(host, name, scratch)) for name in names]
    torch.manual_seed(seed)
    runtime = MoLRuntime(
        MoLConfig(
            models=[host, *names],
            adapter_init=kind.init,
            router_type=kind.router,
            dispatch=kind.dispatch,
            top_k_experts=kind.top,
            keep_host_layers=not kind.chain,
            dtype="float32",
        )
    )
    if kind.init != "identity":
        runtime.calibrate([read(domain, "train")[at][:1000] for domain in EXPERTS for at in range(8)])
    if kind.chain:
        runtime.add_layer([(name, range(LAYERS)) for name in names], 0)
    for layer in range(0 if kind.chain else LAYERS):
        runtime.add_layer([(name, layer) for name in names], layer)
    return runtime


def with_mlps(host: str, expert: str, scratch: Path) -> Path:
    """Write a model that is the host but for the MLPs, which are an expert's."""
    out = scratch / f"{Path(expert).name}-mlps"
    rules = [{"filter": "mlp", "copy": expert}]
    models = [{"model": host, "parameters": {"weight": 1.0}}, {"model": expert, "parameters": {"weight": 0.0}}]
    mol.run_merge({"merge_method": "linear", "models": models, "rules": rules}, out)
    return out


def fuse(kind: Fused, models: Path, scratch: Path, seed: int) -> Trained:
    """Build a fusion and train its adapters and routers."""
    runtime = build(kind, models, scratch, seed)
    trained = [one for layer in runtime.layers for one in (layer.router if kind.mlps else layer).parameters()]
    count = sum(one.numel() for one in trained)
    settings: dict[str, Any] = kind._asdict()
    steps = kind.steps
    if steps:
        # A router that chooses one or two from the start stays with them, so the choice narrows over the first steps.
        sparse = kind.top is not None
        config = TrainingConfig(
            learning_rate=0.0 if kind.mlps else kind.rate,
            router_learning_rate=ROUTER_RATE,
            batch_size=BATCH,
            max_steps=steps,
            max_epochs=1,
            warmup_steps=20,
            lr_scheduler_type="cosine",
            mixed_precision="bf16",
            logging_steps=50,
            eval_steps=None,
            save_steps=None,
            domain_loss_coeff=0.1 if kind.domains else 0.0,
            dense_steps=NARROWING if sparse else 0,
            output_dir=str(scratch),
            seed=seed,
        )
        MoLTrainer(runtime, config).train(rows(steps, seed))
        settings |= {"rate": config.learning_rate, "router_rate": ROUTER_RATE, "tokens": steps * BATCH * WINDOW}
        settings["domain_loss"] = config.domain_loss_coeff
    return Trained(runtime.as_causal_lm().eval(), count if steps else 0, settings)


def mix(weights: str, models: Path, seed: int, steps: int = STEPS) -> Trained:
    """Mix the outputs of the experts; a router is trained."""
    torch.manual_seed(seed)
    loaded = [AutoModelForCausalLM.from_pretrained(models / name, dtype="float32") for name in EXPERTS]
    mixture = MoLMixture.from_models(loaded, weights)  # type: ignore[arg-type]
    if weights != "router":
        return Trained(mixture, 0, {"weights": weights})
    train(mixture, list(mixture.parameters()), steps, seed, ROUTER_RATE)
    settings = {"steps": steps, "rate": ROUTER_RATE}
    return Trained(mixture.eval(), sum(one.numel() for one in mixture.parameters()), settings)


class LowRank(nn.Module):
    """A frozen linear layer plus the product of two matrices, the second of which starts at 0."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:  # noqa: D107
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / math.sqrt(layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


def lora(start: str, parameters: int, seed: int, steps: int, rate: float) -> Trained:
    """Train low-rank changes to all linear layers of the blocks of a model, with as many parameters as a fusion."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(start, dtype="float32").requires_grad_(requires_grad=False)
    linear = [
        (parent, name, child) for parent in model.model.layers.modules() for name, child in parent.named_children()
    ]
    linear = [one for one in linear if isinstance(one[2], nn.Linear)]
    rank = parameters // sum(child.in_features + child.out_features for _, _, child in linear)
    for parent, name, child in linear:
        setattr(parent, name, LowRank(child, rank))
    trained = [one for one in model.parameters() if one.requires_grad]
    train(model, trained, steps, seed, rate)
    return Trained(model.eval(), sum(one.numel() for one in trained), {"rank": rank, "steps": steps, "rate": rate})


def train(model: nn.Module, parameters: list[nn.Parameter], steps: int, seed: int, rate: float) -> None:
    """Train parameters as `MoLTrainer` trains those of a fusion: the same texts, rate, schedule and precision."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    found = rows(steps, seed)
    model.train()
    for step in range(steps):
        done = max(0, step - 20) / (steps - 20)
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * done))
        ids = torch.stack([row["input_ids"] for row in found[step * BATCH : (step + 1) * BATCH]])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
