"""TrainingConfig: its defaults, what it refuses and why."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields

import pytest

from mol.errors import ConfigError
from mol.training import TrainingConfig
from mol.training.accelerating import check_distribution

PROMISED = {
    "learning_rate": 1e-4, "router_learning_rate": 1e-5, "weight_decay": 0.01, "batch_size": 8, "max_epochs": 10,
    "max_steps": None, "warmup_steps": 100, "logging_steps": 10, "eval_steps": 100, "save_steps": 500,
    "gradient_clip_norm": 1.0, "freeze_experts": True, "use_gradient_checkpointing": False, "use_safetensors": True,
    "output_dir": "./mol_checkpoints", "run_name": None, "use_wandb": False,
}  # fmt: skip


def test_fields_have_the_promised_names_and_defaults() -> None:
    config = TrainingConfig()
    assert {name: getattr(config, name) for name in PROMISED} == PROMISED
    assert {"entropy_penalty_coeff", "load_balancing_coeff"} <= {item.name for item in fields(config)}
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_it_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainingConfig().learning_rate = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0, wanted a number of 0 or more"),
        ({"router_learning_rate": float("nan")}, "router_learning_rate is nan"),
        ({"weight_decay": "0.1"}, "weight_decay is '0.1'"),
        ({"batch_size": 0}, "batch_size is 0, wanted a whole number of at least 1"),
        ({"batch_size": True}, "batch_size is True"),
        ({"max_epochs": 1.5}, "max_epochs is 1.5"),
        ({"max_steps": 0}, "max_steps is 0, wanted a whole number of at least 1, or None"),
        ({"save_steps": -1}, "save_steps is -1"),
        ({"gradient_clip_norm": 0.0}, "gradient_clip_norm is 0.0, wanted a number above 0, or None to clip nothing"),
        ({"entropy_penalty_coeff": float("inf")}, "entropy_penalty_coeff is inf, wanted a finite number"),
        (
            {"lr_scheduler_type": "polynomial"},
            "lr_scheduler_type is 'polynomial', wanted one of linear, cosine, consta",
        ),
        ({"output_dir": 3}, "output_dir is 3, wanted the name of a directory"),
        ({"run_name": 3}, "run_name is 3, wanted a name, or None"),
        ({"report_to": "wandb"}, "report_to is 'wandb', wanted some of wandb, tensorboard, trackio, in a list"),
        ({"report_to": ["mlflow"]}, "wanted some of wandb, tensorboard, trackio"),
        ({"use_wandb": 1}, "use_wandb is 1, wanted True or False"),
        ({"mixed_precision": "fp16"}, 'do not fit its range: use "bf16"'),
        ({"mixed_precision": "int8"}, "mixed_precision is 'int8', wanted 'no' or 'bf16', or None"),
        ({"freeze_experts": False}, "fine-tune a model by itself, save it, and fuse that"),
        ({"use_safetensors": False}, "mol writes no pickles, which run code when they are loaded: leave it out"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**settings)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_all_that_is_wrong_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(learning_rate=-1.0, batch_size=0, freeze_experts=False)
    assert all(word in str(caught.value) for word in ("learning_rate", "batch_size", "freeze_experts"))


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_ways_that_split_what_is_trained_are_refused(way: str) -> None:
    with pytest.raises(ConfigError, match=f"accelerate was set to use {way}, .* start processes without it"):
        check_distribution(way)
    check_distribution("NO")
    check_distribution("MULTI_CPU")


@pytest.mark.parametrize(
    "settings", [{"use_wandb": True}, {"report_to": ("wandb",)}, {"report_to": ("trackio", "wandb")}]
)
def test_a_tracker_that_is_not_installed_is_one_line(settings: dict[str, object]) -> None:
    config = TrainingConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"wandb.* not installed: `pip install .*wandb`, or leave out") as caught:
        config.check_trackers()
    assert "\n" not in str(caught.value)
