"""Fitted adapters: on sources whose right map is known, on trained ones, and what is refused."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from mol.config.mol_config import MoLConfig
from mol.core.fitting.maps import fit_held_out, fit_linear
from mol.core.mol_layer import Expert
from mol.core.mol_runtime import MoLRuntime
from mol.errors import ArchitectureError, ConfigError
from tests.core.tokenizers import byte_pairs, word_pieces
from tests.core.zoo import body_of, language_model_of, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    Make = Callable[..., MoLRuntime]

LICENSE = Path(__file__).parents[2].joinpath("LICENSE").read_text()
TEXT = [LICENSE[:5000]]
VOCABULARY = 400


def turned(host: PreTrainedModel, width: int) -> PreTrainedModel:
    """A model that computes what the host does, in other axes and maybe more of them.

    Its root mean square norms, without weights of their own, turn with the stream; in a wider space they are smaller.
    """
    other = language_model_of("llama", vocab_size=VOCABULARY, hidden_size=width, head_dim=8, rms_norm_eps=NORM_EPS)
    axes = torch.nn.init.orthogonal_(torch.empty(width, 32), generator=torch.Generator().manual_seed(3))
    weights = {}
    for name, weight in host.state_dict().items():
        if re.search(r"embed_tokens|lm_head|q_proj|k_proj|v_proj|gate_proj|up_proj", name):
            weights[name] = weight @ axes.T
        elif re.search(r"o_proj|down_proj", name):
            weights[name] = axes @ weight
        else:
            weights[name] = torch.full((width,), (32 / width) ** 0.5)
    other.config.rms_norm_eps = NORM_EPS * 32 / width
    again = type(other)(other.config)
    again.load_state_dict(weights)
    return again


NORM_EPS = 1e-6


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host, itself in turned axes of the same width and of more, and a BERT with another tokenizer."""
    root = tmp_path_factory.mktemp("pair")
    host = language_model_of("llama", vocab_size=VOCABULARY, rms_norm_eps=NORM_EPS)
    with torch.no_grad():
        for name, weight in host.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
    twice = copy.deepcopy(host)  # whose block 1 is the host's, and whose block 2 adds nothing
    with torch.no_grad():
        for name, weight in twice.named_parameters():
            if re.search(r"layers.2.*(o_proj|down_proj)", name):
                weight.zero_()
    models = {"host": host, "turned": turned(host, 32), "wider": turned(host, 48), "twice": turned(twice, 48)}
    models["bert"] = body_of("bert", seed=5, vocab_size=VOCABULARY)
    models["vit"] = body_of("vit")
    for name, model in models.items():
        model.save_pretrained(root / name)
        (word_pieces if name == "bert" else byte_pairs)(TEXT, VOCABULARY).save_pretrained(root / name)
    return root


@pytest.fixture
def make(pair: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make a runtime of the host and another model."""
    monkeypatch.chdir(pair)

    def runtime(other: str, init: str = "lstsq", **settings: object) -> MoLRuntime:
        torch.manual_seed(0)
        return MoLRuntime(MoLConfig(models=["host", other], adapter_init=init, **settings))  # type: ignore[arg-type]

    return runtime


def logits_of(runtime: MoLRuntime, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return runtime.as_causal_lm()(ids).logits


def expert_of(runtime: MoLRuntime) -> Expert:
    expert = runtime.layers[-1].experts[-1]  # type: ignore[union-attr, index]
    assert isinstance(expert, Expert)
    return expert


@pytest.mark.parametrize(
    ("other", "init", "block"),
    [("turned", "orthogonal", 1), ("turned", "lstsq", 1), ("wider", "lstsq", 1), ("twice", "lstsq", range(1, 3))],
)
def test_a_host_in_other_axes_is_found_again(other: str, init: str, block: int | range, make: Make) -> None:
    ids = tokens_of(2, 12)
    wanted = logits_of(make(other, init), ids)
    fitted = make(other, init)
    fitted.add_layer([(other, block)], 1, calibration=TEXT)
    torch.testing.assert_close(logits_of(fitted, ids), wanted, rtol=1e-4, atol=1e-4)
    plain = make(other, "identity")
    plain.add_layer([(other, block)], 1)
    assert (logits_of(plain, ids) - wanted).abs().max() > 0.1


def test_a_chain_without_the_host_is_fitted_to_all_layers_that_it_replaces(make: Make) -> None:
    ids = tokens_of(2, 12)
    wanted = logits_of(make("turned"), ids)
    chain = make("turned", keep_host_layers=False)
    chain.add_layer([("turned", range(len(chain.open_host())))], 0, calibration=TEXT)
    torch.testing.assert_close(logits_of(chain, ids), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_layers_without_the_host_are_fitted_up_to_the_next(order: tuple[int, int], make: Make) -> None:
    ids = tokens_of(2, 12)
    wanted = logits_of(make("turned"), ids)
    fitted = make("turned", keep_host_layers=False)
    blocks = {0: 0, 1: range(1, len(fitted.open_host()))}
    for position in order:
        fitted.add_layer([("turned", blocks[position])], position, calibration=TEXT)
    torch.testing.assert_close(logits_of(fitted, ids), wanted, rtol=1e-4, atol=1e-4)


def test_procrustes_finds_the_rotation(make: Make) -> None:
    runtime = make("turned", "orthogonal")
    runtime.add_layer([("turned", 2)], 2, calibration=TEXT)
    expert = expert_of(runtime)
    axes = torch.nn.init.orthogonal_(torch.empty(32, 32), generator=torch.Generator().manual_seed(3))
    eye = torch.eye(32)
    with torch.no_grad():
        torch.testing.assert_close(expert.down(eye) - expert.down(0 * eye), axes.T, rtol=0, atol=1e-5)
        torch.testing.assert_close(expert.up(axes.T), eye, rtol=0, atol=1e-5)


def test_another_tokenizer_and_width_and_the_same_text_give_the_same_maps(make: Make) -> None:
    maps = []
    for seed in (0, 1):
        runtime = make("bert")
        torch.manual_seed(seed)
        runtime.calibrate(TEXT)
        runtime.add_layer([("host", 1), ("bert", 0), ("bert", range(1, 3)), ("host", 2)], 1)
        maps.append([value for name, value in runtime.state_dict().items() if "router" not in name])
    assert len(maps[0]) == 3 * 3
    assert all(torch.equal(*both) for both in zip(*maps, strict=True))
    assert all(value.any() for value in maps[0])


def test_the_fit_is_no_worse_than_leaving_the_layer_out(make: Make) -> None:
    """On text it has not seen, a fitted foreign block is nearer to the host's layer than adding nothing."""
    read, unread = LICENSE[:8000], LICENSE[8000:]
    runtime = make("bert")
    runtime.add_layer([("bert", 1)], 1, calibration=[read])
    ids = runtime.tokenizer(unread, return_tensors="pt")["input_ids"][:, :512].reshape(-1, 32)
    with torch.no_grad():
        alone, fitted = make("bert")(ids)[0], runtime(ids)[0]
        expert_of(runtime).up.set_map_(torch.zeros(32, 48))  # type: ignore[operator]
        without = runtime(ids)[0]
    assert (fitted - alone).norm() < 0.9 * (without - alone).norm()


def test_fitted_adapters_are_saved_and_loaded_without_text(make: Make, tmp_path: Path) -> None:
    runtime = make("wider")
    runtime.add_layer([("host", 1), ("wider", 0)], 1, calibration=TEXT)
    ids = tokens_of(2, 8)
    model = runtime.as_causal_lm()
    model.save_pretrained(tmp_path / "fused")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "fused")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_text_given_with_a_layer_goes_before_text_that_is_kept(make: Make) -> None:
    runtime = make("turned")
    runtime.calibrate(TEXT)
    with pytest.raises(ConfigError, match="the calibration text gives 1 tokens"):
        runtime.add_layer([("turned", 0)], 0, calibration=["a"])
    assert not runtime.layers
    runtime.add_layer([("turned", 0)], 0)
    assert runtime.positions == [0]


def test_without_text_the_error_names_the_way_out(make: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        make("bert").add_layer([("bert", 0)], 0)
    assert str(caught.value) == (
        "adapters cannot be fitted (adapter_init='lstsq'; 'identity' fits none):\n"
        "  - there is no text to fit on: pass add_layer(..., calibration=[...]) or call calibrate([...])"
    )


def test_the_hosts_own_block_needs_no_text(make: Make) -> None:
    runtime = make("bert")
    runtime.add_layer([("host", 0)], 0)
    assert expert_of(runtime).is_exact


def test_what_no_fitted_map_can_be_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"bert\[1\] is 48 wide and the host 32: 'orthogonal' needs equal widths"):
        make("bert", "orthogonal").add_layer([("host", 0), ("bert", 1)], 0, calibration=TEXT)
    with pytest.raises(ConfigError, match="a bottleneck adapter is not a linear map: set adapter_type='linear'"):
        make("bert", adapter_type="bottleneck").add_layer([("bert", 1)], 0, calibration=TEXT)


def test_a_model_that_reads_no_text_is_refused(make: Make) -> None:
    with pytest.raises(ArchitectureError, match=r"vit \(\w+\) reads no text.*adapter_init='identity'"):
        make("vit").add_layer([("vit", 1)], 0, calibration=TEXT)


def test_too_little_text_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"tokens to fit bert\[0\] on, and maps between widths 32 and 48 need 48"):
        make("bert").add_layer([("bert", 0)], 0, calibration=[TEXT[0][:60]])


@pytest.mark.parametrize("text", ["one text", [], [""], [3]])
def test_calibration_is_a_list_of_texts(text: list, make: Make) -> None:
    with pytest.raises(ConfigError, match="a list of texts, none of them empty"):
        make("bert").calibrate(text)
    with pytest.raises(ConfigError, match="a list of texts, none of them empty"):
        make("bert").add_layer([("bert", 0)], 0, calibration=text)


def test_the_ridge_is_the_one_that_does_best_on_rows_held_out() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 60, generator=generator, dtype=torch.float64)
    true = torch.randn(5, 60, generator=generator, dtype=torch.float64)
    clean = fit_held_out(x, x @ true.T + 2.0)
    assert clean.ridge == 1e-9
    assert clean.held_out == pytest.approx(1.0)
    torch.testing.assert_close(clean.weight, true)
    torch.testing.assert_close(clean.bias, torch.full((5,), 2.0, dtype=torch.float64))
    noisy = x @ true.T + 60 * torch.randn(800, 5, generator=generator, dtype=torch.float64)
    found = fit_held_out(x, noisy)
    weight, bias = fit_linear(x, noisy, ridge=found.ridge)
    assert found.ridge >= 1.0
    torch.testing.assert_close(found.weight, weight)
    torch.testing.assert_close(found.bias, bias)
    plain = fit_held_out(x, x @ true.T, bias=False)
    assert not plain.bias.any()
    torch.testing.assert_close(plain.weight, true)
    assert fit_held_out(x * 0 + 0.1, noisy).weight.abs().max() < 1e-6
