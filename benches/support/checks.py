"""The checks of one type: replay, host, expert next to two hosts, causality, greedy and beam search with a cache."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from inputs import Drawer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from mol.config.mol_config import MoLConfig
from mol.core.blocks.calls import argument, output_at
from mol.core.blocks.dispatch import call_block, intercepted
from mol.core.blocks.inputs import Tokens
from mol.core.blocks.probes import tensors
from mol.core.blocks.source import Source
from mol.core.fusion import Fusion, Pass
from mol.core.mol_layer import Expert, ExpertSpec, MoLLayer
from mol.core.mol_runtime import MoLRuntime
from mol.errors import MolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAILURES: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MolError,
    NameError,
    NotImplementedError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""Whatever the code of a model says to a config or an input that it cannot take."""
HOSTS: Final = ("gpt2", "llama")
MOST_BLOCKS: Final = 4
_BATCH, _LENGTH, _NEW = 2, 8, 5
_PADDED: Final = 3
_EXACT, _CLOSE = 1e-5, 1e-4
_TOKEN_RANGE: Final = (5, 128)
_HOST_CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "gpt2": {"n_embd": 48, "n_head": 4, "n_layer": MOST_BLOCKS, "n_positions": 64},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": MOST_BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


class Failed(Exception):
    """A check that ran and did not hold."""


def build(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Make the bare model of a config with weights large enough to matter, drawn from a seed."""
    kind = AutoModel if config.model_type in MODEL_MAPPING_NAMES else AutoModelForCausalLM
    torch.manual_seed(seed)
    config = copy.deepcopy(config)
    config.architectures = config.architectures or []  # it is looked through where a type has several classes
    model = kind.from_config(config)
    return randomised(model, seed)


def randomised(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Draw the weights of a model anew: matrices that keep the size of what goes through them, vectors moved a little.

    Fresh models hold zeros where training starts from an identity, and a block that does nothing shows nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(noise * 0.1)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * fan_in**-0.5)
    model.tie_weights()
    return model.train(mode=False)


def tokens(source: Source, length: int) -> Tokens:
    """Describe a batch without padding."""
    return Tokens.of(torch.ones(_BATCH, length, dtype=torch.long), length, source.dtype)


def replay(source: Source) -> str:
    """Check that blocks run one by one, in a blank context, give what the model that drives them gives.

    Returns:
        `content` where that takes a context of the same content, else an empty string.

    Raises:
        Failed: they do not.
    """
    where = tokens(source, _LENGTH)
    inputs = source.driver.inputs_for(where, content=torch.Generator().manual_seed(1))
    taken: list[torch.Tensor] = []
    given: list[torch.Tensor] = []

    def record(block: torch.nn.Module, call: Any) -> Any:  # noqa: ANN401 - as the block returns it
        form = source.calls.form_of(len(given), block)
        taken.append(argument(call, form.hidden_in).clone())
        result = call_block(block, call)
        given.append(output_at(result, form.result.port).clone())
        return result

    def fresh() -> dict[str, Any]:
        return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}

    with torch.no_grad():
        with intercepted(source.blocks, record):
            wanted = source.owner(**fresh())
        if not all(tensor.isfinite().all() for tensor in given):
            raise Failed("its own forward is not finite")
        blank = source.context(where)
        real, _ = source.calls.capture(lambda: source.owner(**fresh()))
        start = source.layout.from_block(taken[0], _BATCH)
        results = []
        for context in (blank, real):
            hidden, live = start, {}
            for index in range(len(source)):
                hidden = source.run_block(index, hidden, context, live=live)
            results.append(source.layout.to_block(hidden))
        exact = [torch.equal(result, given[-1]) for result in results]
        if not any(exact):
            raise Failed(f"differs by {(results[1] - given[-1]).abs().max():.1g}")
        _, replayed = source.calls.capture(lambda: source.owner(**fresh()), last=results[exact.index(True)])
    _same_output(replayed, wanted)
    return "" if exact[0] else "content"


def host(model: PreTrainedModel, source: Source) -> None:
    """Check that the model's own forward, driven with its own blocks as experts, gives its own output bit for bit.

    Raises:
        Failed: it does not, or no input is known that the model takes.
    """
    reason: Exception | None = None
    for inputs in Drawer(model).candidates():
        fresh = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        try:
            with torch.no_grad():
                torch.manual_seed(0)
                wanted = source.model(**inputs)
        except FAILURES as error:
            reason = reason or error
            continue
        layers = {
            index: MoLLayer([Expert.build(ExpertSpec("own", (index,)), source.width, source.width, None)], None)
            for index in range(len(source))
        }
        first = next(iter(inputs.values()))
        mask = inputs.get("attention_mask", torch.ones(first.shape[0], _LENGTH, dtype=torch.long))
        run = Pass(Fusion(source, {"own": source}, "own", layers, True), mask, mask.shape[1], None)
        with torch.no_grad():
            torch.manual_seed(0)
            driven = run.run_host(lambda fresh=fresh: source.model(**fresh))
        _same_output(driven, wanted)
        return
    raise Failed(f"no input: {type(reason).__name__}: {reason}")


def _same_output(got: Any, wanted: Any) -> None:  # noqa: ANN401 - what models return
    pairs = list(zip(tensors(got), tensors(wanted), strict=True))
    if not pairs:
        raise Failed("its output has no tensor")
    if not all(torch.equal(mine, theirs) for mine, theirs in pairs):
        raise Failed("its output differs")


def fused(host_type: str, source: Source) -> MoLRuntime:
    """Make a host whose layers are shared with blocks of a source, one each, four at most.

    Raises:
        MolError: the source cannot be fused with it.
    """
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            host_type, vocab_size=_TOKEN_RANGE[1], bos_token_id=1, eos_token_id=2, pad_token_id=0,
            **_HOST_CONFIGS[host_type],
        )
    )  # fmt: skip
    torch.manual_seed(0)
    runtime = MoLRuntime(MoLConfig(models=["host", "source"]))
    # The models are made here, not loaded: there is nothing to load.
    runtime.opened |= {"host": Source(randomised(made, 1), "host"), "source": source}
    for position, block in enumerate(blocks_of(source)):
        runtime.add_layer([("host", position), ("source", block)], position)
    return runtime


def blocks_of(source: Source) -> list[int]:
    """Choose the blocks that are made experts: all of few, else some from first to last."""
    if len(source) <= MOST_BLOCKS:
        return list(range(len(source)))
    return [round(i * (len(source) - 1) / (MOST_BLOCKS - 1)) for i in range(MOST_BLOCKS)]


def ids(seed: int = 0, length: int = _LENGTH) -> torch.Tensor:
    """Draw tokens of a host."""
    return torch.randint(*_TOKEN_RANGE, (_BATCH, length), generator=torch.Generator().manual_seed(seed))


def expert(runtime: MoLRuntime, source: Source) -> None:
    """Check that the fused model is finite, that its adapters learn, and that every block of the source matters.

    Raises:
        Failed: one of them does not hold.
    """
    model = runtime.as_causal_lm()
    output = model(ids(), labels=ids())
    if not output.logits.isfinite().all():
        raise Failed("the output is not finite")
    output.loss.backward()
    for layer in runtime.layers:
        for half in (layer.experts[1].down, layer.experts[1].up):
            gradients = [parameter.grad for parameter in half.parameters() if parameter.grad is not None]
            if not all(gradient.isfinite().all() for gradient in gradients):
                raise Failed("a gradient is not finite")
            if not any(gradient.any() for gradient in gradients):
                raise Failed("an adapter gets no gradient")
    runtime.zero_grad()
    with torch.no_grad():
        for index in blocks_of(source):
            block = source.calls.forms[index].block
            kept = {name: value.clone() for name, value in block.named_parameters()}
            before = model(ids()).logits
            generator = torch.Generator().manual_seed(5)
            for parameter in block.parameters():
                if parameter.is_floating_point():
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
            after = model(ids()).logits
            for name, parameter in block.named_parameters():
                parameter.copy_(kept[name])
            if torch.allclose(before, after, rtol=0.0, atol=1e-6):
                raise Failed(f"block {index} does not matter")


def causal(runtime: MoLRuntime) -> None:
    """Check that outputs before a changed last token stay as they are.

    Raises:
        Failed: they do not.
    """
    model = runtime.as_causal_lm()
    other = ids()
    other[:, -1] = ids(9)[:, 0]
    with torch.no_grad():
        apart = (model(ids()).logits - model(other).logits)[:, :-1].abs().max().item()
    if not apart <= _EXACT:
        raise Failed(f"a later token moves earlier outputs by {apart:.1g}")


def padding(runtime: MoLRuntime, source: Source) -> str:
    """Check that neither padding before a text nor another text next to it changes what comes of it.

    Returns:
        `unpadded` where such padding is refused, else an empty string.

    Raises:
        Failed: something moves.
    """
    if minds_padding(source):
        return "unpadded"
    model = runtime.as_causal_lm()
    both, mask = padded()
    with torch.no_grad():
        whole, short = model(both, attention_mask=mask).logits, model(both[1:, _PADDED:]).logits[0]
        apart = max((whole[1, _PADDED:] - short).abs().max(), (whole[0] - model(both[:1]).logits[0]).abs().max()).item()
    if not apart <= _CLOSE:
        raise Failed(f"padding moves outputs by {apart:.1g}")
    return ""


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Draw tokens of a host, the last row padded on the left, and their mask."""
    tokens, mask = ids(), torch.ones_like(ids())
    tokens[-1, :_PADDED] = mask[-1, :_PADDED] = 0
    return tokens, mask


def minds_padding(source: Source) -> bool:
    """Return whether padding before a text is refused because of a block that was made an expert."""
    return any(source.minds_padding(block, before=True) for block in blocks_of(source))


def generated(runtime: MoLRuntime, source: Source, beams: int) -> None:
    """Check that generation writes the same with and without a cache, and with padding where it is not refused.

    Raises:
        Failed: it does not.
    """
    model = runtime.as_causal_lm()
    given, mask = (ids(), torch.ones_like(ids())) if minds_padding(source) else padded()
    settings = {"attention_mask": mask, "max_new_tokens": _NEW, "do_sample": False, "num_beams": beams}
    settings |= {"pad_token_id": 0, "eos_token_id": None}
    if not torch.equal(model.generate(given, **settings), model.generate(given, use_cache=False, **settings)):
        raise Failed("another text")


Check = tuple[str, "Callable[[], object]"]


def fused_checks(host_type: str, source: Source) -> Iterator[Check]:
    """Yield the checks next to a host by name, cheapest first."""
    runtime = fused(host_type, source)
    yield "expert", lambda: expert(runtime, source)
    yield "causal", lambda: causal(runtime)
    yield "padding", lambda: padding(runtime, source)
    yield "greedy", lambda: generated(runtime, source, 1)
    yield "beams", lambda: generated(runtime, source, 3)
