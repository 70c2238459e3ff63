"""Models that are alike and stored differently: renamed wholes, a language model without its tower, fused experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.merge.toolkit import based, linear, llamas, plan, problems, sliced, task
from tests.tiny import headers, llama, llama_config

if TYPE_CHECKING:
    from mol.io.checkpoint import Checkpoint
    from tests.tiny import Shapes

# Where a vision-language model has its language model, its tower, and its head: as transformers 4 saved it, and 5.
OLD, NEW = ("language_model.model.", "", "language_model."), ("model.language_model.", "model.", "")
ADAPTER = "multi_modal_projector.linear.weight"


def vision_language(name: str, prefixes: tuple[str, str, str], *, tied: bool = False, **changes: Any) -> Checkpoint:  # noqa: ANN401
    """A language model of four layers, a tower of three, and what stands between them."""
    language, tower, head = prefixes
    shapes = llama(4, prefix=language, head=False)
    shapes |= {f"{tower}vision_tower.encoder.layers.{i}.self_attn.q_proj.weight": (8, 8) for i in range(3)}
    shapes |= {f"{tower}vision_tower.post_norm.weight": (8,), f"{tower}{ADAPTER}": (8, 8)}
    if not tied:
        shapes[f"{head}lm_head.weight"] = (16, 8)
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": llama_config(4, tied=tied),
        "vision_config": {"num_hidden_layers": 3, "hidden_size": 8},
        "tie_word_embeddings": tied,
    }
    return headers(name, shapes, config | changes)


# Renamed


@pytest.mark.parametrize("ours", [OLD, NEW])
@pytest.mark.parametrize("theirs", [OLD, NEW])
def test_every_tensor_finds_its_partner_across_the_renaming(
    ours: tuple[str, str, str], theirs: tuple[str, str, str]
) -> None:
    a, b = vision_language("a", ours), vision_language("b", theirs)
    planned = plan(linear(0.5, 0.5), a, b)
    assert planned.methods == {"linear": len(a.tensors)}
    assert (planned.copied, planned.dropped) == ((), ())
    assert task(planned, f"{ours[2]}lm_head.weight")[1] == [
        (0, f"{ours[2]}lm_head.weight"),
        (1, f"{theirs[2]}lm_head.weight"),
    ]


def test_heads_of_other_names_are_one_role() -> None:
    shapes = llama()
    shapes["embed_out.weight"] = shapes.pop("lm_head.weight")
    a, b = headers("a", shapes, llama_config()), headers("b", llama(), llama_config())
    planned = plan(linear(0.5, 0.5), a, b)
    assert task(planned, "embed_out.weight")[1] == [(0, "embed_out.weight"), (1, "lm_head.weight")]
    assert planned.dropped == ()


def test_a_role_of_another_shape_is_refused_rather_than_lost() -> None:
    a, b = vision_language("a", NEW), vision_language("b", OLD)
    b.tensors["language_model.lm_head.weight"] = b.tensors["language_model.lm_head.weight"]._replace(shape=(18, 8))
    assert "vocabulary sizes differ: b has 18 rows in `lm_head.weight`" in problems(linear(0.5, 0.5), a, b)


def test_the_norm_of_a_tower_is_not_taken_for_that_of_the_language_model() -> None:
    tower = {f"vision_tower.layers.{i}.fc.weight": (2, 2) for i in range(3)} | {"vision_tower.extra.weight": (8,)}
    a = headers("a", llama() | {"model.extra.weight": (8,)}, llama_config())
    b = headers("b", llama() | tower, llama_config())
    planned = plan(linear(0.5, 0.5), a, b)
    assert planned.copied == ("model.extra.weight: copied from a, lacking in b",)


@pytest.mark.parametrize(("prefixes", "wanted"), [(OLD, "language_model.lm_head.weight"), (NEW, "lm_head.weight")])
def test_a_head_that_the_donor_lacks_is_named_as_the_donor_would(prefixes: tuple[str, str, str], wanted: str) -> None:
    other = OLD if prefixes is NEW else NEW
    planned = plan(linear(0.5, 0.5), vision_language("a", prefixes, tied=True), vision_language("b", other))
    assert task(planned, wanted)[1] == [(0, f"{prefixes[0]}embed_tokens.weight"), (1, f"{other[2]}lm_head.weight")]
    assert planned.model_config["tie_word_embeddings"] is False
    assert planned.dropped == ()


# Without the tower


def text_only(name: str, **changes: Any) -> Checkpoint:  # noqa: ANN401
    return headers(name, llama(4), llama_config(4) | changes)


@pytest.mark.parametrize("prefixes", [OLD, NEW])
def test_a_fine_tune_on_texts_is_merged_into_the_language_part_of_its_base(prefixes: tuple[str, str, str]) -> None:
    a, b = vision_language("a", prefixes), text_only("b")
    planned = plan(based("task_arithmetic", {"weight": 0.5}, "b"), a, b)
    assert {t.name for t in planned.plan.tensors} == set(a.tensors)
    assert planned.methods == {"task_arithmetic": len(llama(4)), "copy": 5}
    tower = f"{prefixes[1]}vision_tower"
    assert planned.copied[-1] == f"{tower}.encoder.layers.0-2 of a (3 tensors): copied, lacking in b"
    assert f"b has no `{tower}.encoder.layers`: it is carried over from a as it is" in planned.notes
    assert (planned.dropped, planned.warnings) == ((), ())
    text = problems(based("task_arithmetic", {"weight": 0.5}, "b"), a, b, strict_tensors=True)
    assert f"`{tower}.encoder.layers` of a is lacking in b (--strict-tensors)" in text


def test_slices_carry_the_tower_along() -> None:
    planned = plan(sliced([("a", 0, 3)], [("b", 2, 4)]), vision_language("a", NEW), text_only("b"))
    assert planned.model_config["text_config"]["num_hidden_layers"] == 5
    assert task(planned, "lm_head.weight")[1] == [(1, "lm_head.weight")]
    assert task(planned, f"model.{ADAPTER}")[1] == [(0, f"model.{ADAPTER}")]


def test_a_tower_that_a_donor_of_texts_lacks_is_left_out_with_a_warning() -> None:
    planned = plan(linear(0.5, 0.5), text_only("a"), vision_language("b", NEW))
    assert planned.methods == {"linear": len(llama(4))}
    assert planned.dropped[0] == "model.vision_tower.encoder.layers.0-2 of b (3 tensors): a has no such layers"
    assert "b has `model.vision_tower.encoder.layers`" in planned.warnings[0]


def test_a_language_model_of_another_type_is_a_crime() -> None:
    a, b = vision_language("a", NEW), text_only("b", model_type="mistral")
    assert "different architectures: a (llava), b (mistral)" in problems(linear(0.5, 0.5), a, b)
    assert plan(linear(0.5, 0.5), a, b, allow_crimes=True).methods["linear"] == len(llama(4))


# Experts


def experts(name: str, *, fused: bool, count: int = 4, lacking: tuple[int, ...] = ()) -> Checkpoint:
    shapes: Shapes = {name: shape for name, shape in llama(3).items() if ".mlp." not in name}
    for i in range(3):
        at = f"model.layers.{i}.mlp"
        shapes[f"{at}.gate.weight"] = (count, 8)
        if fused:
            shapes |= {f"{at}.experts.gate_up_proj": (count, 32, 8), f"{at}.experts.down_proj": (count, 8, 16)}
        else:
            for expert in set(range(count)) - set(lacking):
                shapes |= {f"{at}.experts.{expert}.{p}_proj.weight": (16, 8) for p in ("gate", "up")}
                shapes |= {f"{at}.experts.{expert}.down_proj.weight": (8, 16)}
    return headers(name, shapes, llama_config(3))


def test_fused_experts_against_single_ones_that_lack_some_are_one_line() -> None:
    text = problems(linear(0.5, 0.5), experts("a", fused=False, lacking=(1,)), experts("b", fused=True))
    assert text.splitlines()[1:] == [
        "  - experts are stored in two layouts: one by one in a (`model.layers.*.mlp.experts.0.down_proj.weight`), "
        "fused in b (`model.layers.*.mlp.experts.down_proj`); these cannot be brought into one, so save all models the "
        "same way, with one version of transformers"
    ]
    for fused in (True, False):
        planned = plan(linear(0.5, 0.5), experts("a", fused=fused), experts("b", fused=fused))
        assert set(planned.methods) == {"linear"}


def test_numbers_of_experts_are_reported_as_those_of_layers() -> None:
    b = experts("b", fused=False, lacking=(1, 3))
    del b.tensors["model.layers.1.mlp.experts.0.up_proj.weight"]
    text = problems(linear(0.5, 0.5), experts("a", fused=False), b)
    for projection in ("gate", "down"):
        assert f"`model.layers.*.mlp.experts.*.{projection}_proj.weight` (layers 0-2, experts 1, 3) is lacking" in text
    assert "`model.layers.*.mlp.experts.*.up_proj.weight` (layers 0, 2, experts 1, 3) is lacking" in text
    assert "`model.layers.*.mlp.experts.*.up_proj.weight` (layers 1, experts 0-1, 3) is lacking" in text
    assert len(text.splitlines()) == 5


def test_models_of_one_kind_need_no_word() -> None:
    assert plan(linear(0.5, 0.5), *llamas("a", "b")).notes == ()
