"""How a policy learns from its own answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OnlineConfig(BaseModel):
    """Learning in rounds: the policy answers prompts of the data, a judge scores them, and it learns from that."""

    model_config = ConfigDict(extra="forbid")

    judge: str = Field(
        description="who scores answers: sandbox, gsm8k, package.module:function, reward:RUN, endpoint:URL#MODEL"
    )
    rounds: int = Field(20, ge=1, description="how often the policy answers and learns")
    prompts: int = Field(64, ge=1, description="prompts of a round; as many as batch.size: a round is a step")
    samples: int = Field(2, ge=1, description="answers to each prompt")
    epochs: int = Field(1, ge=1, description="passes over the answers of a round")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="at which answers are sampled")
    max_new_tokens: int = Field(128, ge=1, description="longest answer, in tokens")
    server: str | None = Field(
        None,
        description="URL of a server of the base model that samples in its place, and takes its adapter before each "
        "round: vLLM, or preftune serve --adapters; none: the model at hand samples",
    )
    unfinished: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="taken off the score of an answer that reached no end token"
    )
    labels: Literal["hard", "sampled", "soft"] = Field(
        "hard",
        description="of pairs, with p = sigmoid(label_scale * difference of scores): hard: the higher score is chosen; "
        "sampled: with probability p; soft: it is, with confidence p",
    )
    label_scale: float = Field(1.0, gt=0, allow_inf_nan=False, description="certainty of labels per unit of score")
    reference: Literal["fixed", "last_round", "moving"] = Field(
        "fixed",
        description="fixed: the start, or reference.path; last_round: the policy at the start of each round; moving: "
        "drawn towards the policy before each round (TR-DPO)",
    )
    mix: float = Field(0.6, gt=0, le=1, description="share of the policy in a moving reference, each time")
    value: str | None = Field(
        None,
        description="what a value network begins as: a run or folder of a reward model; none: the judge's, if it is "
        "one, else the policy under a new head",
    )
    rubric: str | None = Field(None, description="text file for a judge behind an endpoint; none: the built-in one")
    max_calls: int = Field(10_000, ge=1, description="most calls of an endpoint, over the whole run")
    held_out: int = Field(64, ge=0, description="held-out prompts answered and scored at each evaluation")
    keep: int = Field(4, ge=0, description="prompts of each round whose answers are kept as text, in rollouts.jsonl")
