"""The configuration of a run: the tree of its components' own configs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from preftune.data.dataset import DataConfig
from preftune.objectives.registry import DEFAULT
from preftune.policy.loading import ModelConfig
from preftune.policy.reference import ReferenceConfig
from preftune.rlhf.config import OnlineConfig
from preftune.training.batches import BatchConfig
from preftune.training.doctor.config import DoctorConfig
from preftune.training.held_out import EvaluateConfig
from preftune.training.optim import OptimConfig
from preftune.training.run_folder import OutputConfig


class TrainConfig(BaseModel):
    """How long to train, where and in which precision."""

    model_config = ConfigDict(extra="forbid")

    epochs: float = Field(1.0, gt=0, allow_inf_nan=False, description="passes over the training data")
    max_steps: int | None = Field(None, ge=1, description="optimiser steps, instead of epochs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the computation; auto: bf16 on CUDA devices that have it, else fp32"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, then mps, then cpu")
    strategy: Literal["auto", "ddp", "fsdp2", "deepspeed"] = Field(
        "auto",
        description="of several processes: ddp: each holds all weights; fsdp2: each a share of weights, gradients and "
        "moments; deepspeed: each all weights and a share of the rest (ZeRO 1 or 2); auto: what accelerate launch was "
        "told, else ddp",
    )
    compile: bool = Field(
        False, description="compile the model's layers: up to a minute first, then faster where texts are long"
    )
    log_every: int = Field(10, ge=1, description="optimiser steps between two lines of metrics")
    check_start: bool = Field(True, description="stop if a reference declared as the policy's start differs from it")
    check_memory: bool = Field(True, description="estimate memory, and stop if training will not fit")
    grace_seconds: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="between SIGTERM and the kill: in that time a checkpoint is saved"
    )


class RunConfig(BaseModel):
    """Everything that decides a run."""

    model_config = ConfigDict(extra="forbid")

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    objective: Any = Field(
        DEFAULT, description="name, or mapping with name and fields, or a list of those with weights"
    )
    online: OnlineConfig | None = Field(None, description="learn in rounds from the policy's own answers")
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    doctor: DoctorConfig = Field(default_factory=DoctorConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, data order, dropout and sampling")
