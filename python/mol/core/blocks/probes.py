"""Probes what blocks do alone: whether they are causal, keep a cache, or see more than their hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from mol.core.blocks.calls import Arguments, tensors
from mol.core.blocks.driver import REFUSALS
from mol.core.blocks.inputs import CacheMask, Tokens, token_inputs
from mol.core.blocks.lengths import probe_lengths
from mol.core.blocks.prelude import with_cache
from mol.core.cache import ExpertCache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mol.core.blocks.driver import Driver
    from mol.core.blocks.prelude import CallForm
    from mol.core.blocks.runner import BlockRunner

_EXACT: Final = 1e-5
_CACHE_MASKS: Final[tuple[CacheMask, ...]] = ("whole", "new")


def is_causal(driver: Driver, index: int) -> bool:
    """Return whether outputs stay the same when a later token changes, at random since LayerNorm would hide a shift."""
    return _at_lengths(driver, index, 6, lambda length: _is_causal(driver, index, length))


def _at_lengths(driver: Driver, index: int, few: int, probe: Callable[[int], bool]) -> bool:
    """Return whether a probe succeeds at few tokens, and beyond the thresholds in the config."""
    if not probe(few):
        return False
    for length in probe_lengths(driver, index):
        try:
            if not probe(length):
                return False
        except REFUSALS:
            continue  # the block does not run at this length, and will raise then
    return True


def _is_causal(driver: Driver, index: int, length: int) -> bool:
    hidden, tokens = driver.random_hidden(length)
    changed = hidden.clone()
    changed[:, -1] = hidden[:, 0].flip(-1) * 3
    context = driver.context(tokens)
    with torch.no_grad():
        before, after = (driver.run_in_layout(index, h, context, {})[:, :-1] for h in (hidden, changed))
    return torch.allclose(before, after, rtol=0.0, atol=_EXACT)


def keeps_cache(driver: Driver, index: int) -> bool:
    """Return whether a block fed token by token with a cache computes what it does on the whole, with padding too."""
    # What blocks write for others is of the new tokens alone: their prelude has no cache to complete it from.
    if driver.inputs.cache_name is None or driver.is_fixed or driver.calls.writes:
        return False

    def steps(length: int) -> bool:
        first = max(length - 7, 3)  # from below a threshold to beyond it
        return _continues(driver, index, length, ((0, first), *((t, t + 1) for t in range(first, length - 1))))

    return _at_lengths(driver, index, 7, steps)


def takes_chunks(driver: Driver, index: int) -> bool:
    """Return whether a block that continues from its cache token by token does so with several at a time."""
    return _at_lengths(
        driver, index, 7, lambda length: _continues(driver, index, length, ((0, length - 4), (length - 4, length - 1)))
    )


def _continues(driver: Driver, index: int, length: int, cuts: Sequence[tuple[int, int]]) -> bool:
    hidden, tokens = driver.random_hidden(length)
    # Many models make no mask where nothing is padding, so one that does not fit shows here only.
    padded = tokens.mask.clone()
    padded[-1, :2] = 0
    with torch.no_grad():
        return all(_is_whole(driver, index, hidden, mask, tokens.dtype, cuts) for mask in (tokens.mask, padded))


def _is_whole(
    driver: Driver,
    index: int,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    dtype: torch.dtype,
    cuts: Sequence[tuple[int, int]],
) -> bool:
    whole = driver.run_in_layout(index, hidden, driver.context(Tokens.of(mask, hidden.shape[1], dtype)), {})
    cache, other, chunks = ExpertCache(driver.owner.config), ExpertCache(driver.owner.config), []
    for start, end in cuts:
        given = hidden[:, start:end]
        chunk = Tokens.of(mask[:, :end], end - start, dtype)
        try:
            chunks.append(_run_with(driver, index, given, chunk, cache))
            # Another sequence in between reveals state that a block keeps in itself instead of in the cache.
            _run_with(driver, index, given.flip(0), chunk, other)
        except REFUSALS:
            return False  # a block that fails alone with a cache runs without one
    shown = mask[:, : cuts[-1][1]].bool()
    return agree(torch.cat(chunks, 1)[shown], whole[:, : cuts[-1][1]][shown], dtype)


def agree(chunks: torch.Tensor, whole: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether results computed in chunks are those computed at once, except for rounding.

    Args:
        chunks: the results.
        whole: those computed at once.
        dtype: in which they were computed; a T5 in float16 keeps one of its weights, and so its results, in float32.
    """
    scale = max(1.0, whole.abs().max().item())
    return torch.allclose(chunks, whole, rtol=0.0, atol=max(2e-4, 4 * torch.finfo(dtype).eps) * scale)


def find_cache_mask(runner: BlockRunner) -> CacheMask | None:
    """Find which mask a causal model's own forward takes next to a cache, by what a forward without a cache returns.

    Returns:
        "whole" for most, "new" for state spaces; None if neither is right, so that the model must run without a cache.
    """

    def steps(mask: CacheMask, length: int) -> bool:
        first = max(length - 7, 5)  # from below a threshold to beyond it
        return _model_continues(runner, mask, length, ((0, first), *((t, t + 1) for t in range(first, length))))

    return next(
        (mask for mask in _CACHE_MASKS if all(steps(mask, length) for length in (7, *_model_lengths(runner)))), None
    )


def model_takes_chunks(runner: BlockRunner, mask: CacheMask) -> bool:
    """Return whether a model that continues from its cache token by token does so with several at a time."""
    return all(
        _model_continues(runner, mask, length, ((0, length - 3), (length - 3, length)))
        for length in (7, *_model_lengths(runner))
    )


def _model_lengths(runner: BlockRunner) -> list[int]:
    """Return the lengths at which none of its blocks is too large to be probed, all of them at once."""
    lengths = [probe_lengths(runner.driver, index, len(runner)) for index in range(len(runner))]
    return sorted(set[int].intersection(*map(set, lengths))) if lengths else []


@torch.no_grad()
def _model_continues(runner: BlockRunner, cache_mask: CacheMask, length: int, cuts: Sequence[tuple[int, int]]) -> bool:
    generator = torch.Generator().manual_seed(0)
    model = runner.model
    most = model.config.get_text_config().vocab_size
    ids = torch.randint(0, most, (2, length), generator=generator).to(runner.device)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    with runner.visiting():
        whole = model(**token_inputs(model, ids, mask, positions=True)).logits
        cache, chunks = runner.new_cache(), []
        try:
            for start, end in cuts:
                cache.seen = start
                inputs = token_inputs(
                    model, ids[:, start:end], mask[:, :end], cache, positions=True, cache_mask=cache_mask
                )
                chunks.append(model(**inputs).logits)
        except REFUSALS:
            return False  # it takes no such mask
    return agree(torch.cat(chunks, 1)[mask.bool()], whole[mask.bool()], runner.dtype)


def _run_with(driver: Driver, index: int, hidden: torch.Tensor, tokens: Tokens, cache: ExpertCache) -> torch.Tensor:
    # The prelude's cache is another one, which nothing was written into, as in a fused model.
    measure = ExpertCache(driver.owner.config)
    cache.seen = measure.seen = tokens.mask.shape[1] - tokens.length
    context = driver.context(tokens, measure)
    context[index] = with_cache(context[index], cache)
    return driver.run_in_layout(index, hidden, context, {})


def sees_content(driver: Driver) -> bool:
    """Return whether two preludes of different content hand blocks anything different next to hidden states."""
    _, tokens = driver.random_hidden(6)
    first, second = (driver.context(tokens, content=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    return _differ(driver, first, second)


def minds_padding(driver: Driver, index: int, *, before: bool) -> bool:
    """Return whether padding before the tokens of a row, or else behind them, changes what a block computes."""
    return not _at_lengths(driver, index, 8, lambda length: not _minds(driver, index, length, before=before))


def _minds(driver: Driver, index: int, length: int, *, before: bool) -> bool:
    hidden, tokens = driver.random_hidden(length)
    mask = tokens.mask.clone()
    mask[-1, slice(0, 3) if before else slice(length - 3, length)] = 0
    shown = mask[-1].bool()
    with torch.no_grad():
        padded = driver.run_in_layout(index, hidden, driver.context(Tokens.of(mask, length, tokens.dtype)), {})[
            -1, shown
        ]
        alone = driver.context(Tokens.of(mask[:, shown], length - 3, tokens.dtype))
        return not agree(padded, driver.run_in_layout(index, hidden[:, shown], alone, {})[-1], hidden.dtype)


def _differ(driver: Driver, first: list[Arguments], second: list[Arguments]) -> bool:
    for form, one, other in zip(driver.calls.forms, first, second, strict=True):
        given, instead = (list(tensors(form.with_hidden(call, None))) for call in (one, other))
        if len(given) != len(instead):  # a mask that hides nothing may be left out
            return True
        pairs = zip(given, instead, strict=True)
        if any(a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
            return True
    return False


def kind_of(form: CallForm, call: Arguments) -> tuple[object, ...]:
    """Return what a block is apart from its weights and number: blocks of one kind need one probe."""
    settings = [
        (path, name, value)
        for path, module in form.block.named_modules()
        for name, value in sorted(vars(module).items())
        if isinstance(value, (bool, str)) or (isinstance(value, int) and "layer" not in name and "idx" not in name)
    ]
    shapes = tuple(parameter.shape for parameter in form.block.parameters())
    given = [tensor.flatten().tolist() for tensor in tensors(form.with_hidden(call, None))]
    return type(form.block), shapes, repr(settings), repr(given)
