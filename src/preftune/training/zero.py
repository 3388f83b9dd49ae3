"""DeepSpeed's ZeRO 1 and 2: weights stay whole, moments (and with 2, gradients) are shared out over the processes.

Accelerate's own way to DeepSpeed takes the optimiser's step inside the backward of the last forward. Here DeepSpeed's
engine is called directly, behind the same calls as ever, so that a step knows its gradient before a weight changes, and
moments are saved as plain tensors.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from preftune.errors import PreftuneError
from preftune.training.checkpoint import Fragment, Tensors
from preftune.training.processes import ASKED, launched

if TYPE_CHECKING:
    from preftune.config import RunConfig, TrainConfig
    from preftune.training.memory import Estimate

# What else than `ASKED` `accelerate launch` says of DeepSpeed.
STAGE, FILE = "ACCELERATE_DEEPSPEED_ZERO_STAGE", "ACCELERATE_DEEPSPEED_CONFIG_FILE"
OFFLOAD = {
    "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
}
STAGES = ("1", "2")
# Gradients that are exchanged at once. DeepSpeed's default is 5e8: 2 GB, whatever the size of the model.
BUCKET = 200_000_000
# DeepSpeed would compile an exchange between processes on CPUs when it is imported; gloo is there already.
COMPILED_EXCHANGE = "deepspeed_shm_comm"
Named = Iterable[tuple[str, nn.Parameter]]


def zero_stage(config: TrainConfig) -> str | None:
    """The ZeRO stage asked for, as it is written; None if DeepSpeed is not wanted."""
    asked = os.environ.get(ASKED, "false").lower() == "true"
    if config.strategy != "deepspeed" and not (config.strategy == "auto" and asked):
        return None
    return os.environ.get(STAGE, "2")


def check_zero(config: RunConfig) -> None:
    """Refuse what DeepSpeed cannot do right, or what cannot be combined with it.

    Raises:
        PreftuneError: names the key.
    """
    stage = zero_stage(config.train)
    if stage is None:
        return
    if launched() == 1:
        raise PreftuneError(
            "DeepSpeed shares moments out over processes, but this is one process: start it with a launcher "
            "(torchrun --nproc_per_node 8 -m preftune train ...), or set train.strategy=auto"
        )
    if file := os.environ.get(FILE):
        raise PreftuneError(
            f"accelerate's config names a config file of DeepSpeed ({file}), which is not read: give zero_stage: 1 or "
            "2 in accelerate's own config, and everything else in preftune's"
        )
    if stage not in STAGES:
        raise PreftuneError(
            f"accelerate's config says zero_stage: {stage}, expected 1 or 2: set it to 2, or take "
            "train.strategy=fsdp2, which shards what ZeRO-3 shards"
        )
    for key, variable in OFFLOAD.items():
        if (where := os.environ.get(variable, "none")) != "none":
            raise PreftuneError(f"accelerate's config says {key}: {where}, which is not supported: set it to none")
    _check_keys(config)
    if importlib.util.find_spec("deepspeed") is None:
        raise PreftuneError(
            "train.strategy=deepspeed needs DeepSpeed: pip install 'preftune[deepspeed]', or set train.strategy=ddp"
        )


def _check_keys(config: RunConfig) -> None:
    """Keys of preftune's own that do not go with DeepSpeed."""
    tried = {
        "train.compile": (str(config.train.compile).lower(), "false"),
        "train.precision": ("fp16" if config.train.precision == "fp16" else "bf16", "bf16"),
        "model.quantize": (config.model.quantize, "none"),
        "optim.name": (config.optim.name, "adamw"),
    }
    for key, (found, expected) in tried.items():
        if found != expected:
            raise PreftuneError(
                f"{key}={found} does not go with DeepSpeed: set it to {expected}, or set train.strategy=ddp"
            )


class ZeroAccelerator(Accelerator):
    """Accelerate for plain processes, but gradients and the optimiser's step are DeepSpeed's.

    Args:
        stage: one of `STAGES`.
        settings: of `Accelerator`.
    """

    def __init__(self, stage: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.stage = int(stage)
        self.engine: Any = None
        self.zero: ZeroOptimizer | None = None

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Policy and optimiser, as DeepSpeed's engine and a `ZeroOptimizer`.

        Raises:
            PreftuneError: if weights that train are not in float32.
        """
        policy, optimizer = args
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        if strange := next((p.dtype for p in trained if p.dtype != torch.float32), None):
            raise PreftuneError(
                f"weights that train are {str(strange).removeprefix('torch.')}, but with DeepSpeed they are to be "
                "float32: set model.dtype=fp32 (train.precision=bf16 still computes in bf16)"
            )
        policy = self.prepare_model(policy, evaluation_mode=True)  # autocast; the exchange is DeepSpeed's
        bucket = min(BUCKET, sum(parameter.numel() for parameter in trained))
        config = {
            "train_micro_batch_size_per_gpu": 1,  # it counts, but what is computed is up to us
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {
                "stage": self.stage,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                "compute_grad_norm": False,  # `clip_grad_norm_` does
            },
        }
        engine, zero, *_ = _deepspeed(self.device).initialize(
            model=policy, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.engine, self.zero = engine, ZeroOptimizer(zero)
        self.engine.set_gradient_accumulation_boundary(True)
        return self.engine, self.zero

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """A forward and backward that is not the last of its optimiser step."""
        self.engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self.engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Gradients, added up over the processes as the stage has it."""
        self.engine.backward(loss)

    @torch.no_grad()
    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """Clip the gradients of all processes to a norm, as `torch.nn.utils.clip_grad_norm_` does. Returns the norm."""
        assert self.zero is not None
        shares = self.zero.gradients()
        square = torch.stack([share.float().square().sum() for share in shares]).sum()
        norm: Tensor = self.reduce(square, "sum").sqrt()
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for share in shares:
            share.mul_(factor)
        return norm


@dataclass(frozen=True)
class Share:
    """What a process holds of one parameter's moments.

    Attributes:
        start: place of its first element in the parameter, elements counted row by row.
        flat: the process's share of all parameters in a group, to which the optimiser's state belongs.
        span: the parameter's elements in it.
    """

    start: int
    flat: Tensor
    span: slice


class ZeroOptimizer:
    """DeepSpeed's optimiser, as a step and a checkpoint see it.

    Args:
        zero: what `deepspeed.initialize` made.
    """

    def __init__(self, zero: Any) -> None:
        self.zero = zero

    @property
    def optimizer(self) -> Any:
        """The optimiser inside, over this process's share."""
        return self.zero.optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of the optimiser inside."""
        groups: list[dict[str, Any]] = self.zero.optimizer.param_groups
        return groups

    def step(self) -> None:
        """Change this process's share of the weights, and exchange shares."""
        with warnings.catch_warnings():
            # torch 2.13 renames the collectives that DeepSpeed calls
            warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
            self.zero.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.zero.zero_grad(set_to_none=set_to_none)

    def gradients(self) -> list[Tensor]:
        """This process's share of the gradients, added up over the processes; between backward and step."""
        return [gradient for group in self.zero.averaged_gradients.values() for gradient in group or ()]

    def moments(self, named: Named) -> dict[str, Fragment]:
        """What the optimiser keeps of each parameter, as far as this process holds it, by "moments.NAME/KEY"."""
        found = dict[str, Fragment]()
        for name, parameter in named:
            if (share := self._share(parameter)) is None:
                continue
            for key, value in self.optimizer.state.get(share.flat, {}).items():
                if value.shape == share.flat.shape:
                    part = Fragment(value[share.span], share.start, tuple(parameter.shape))
                else:  # the number of steps, which is that of all shares
                    part = Fragment(value.reshape(1), 0, ())
                found[f"moments.{name}/{key}"] = part
        return found

    @torch.no_grad()
    def restore(self, named: Named, tensors: Tensors, keys: Mapping[str, list[str]]) -> None:
        """Take over weights that were read into the policy, and moments.

        Args:
            named: the policy's parameters.
            tensors: of a checkpoint, whoever wrote it.
            keys: which moments it has of each parameter.
        """
        self.zero.refresh_fp32_params()
        for name, parameter in named:
            if (share := self._share(parameter)) is None or name not in keys:
                continue
            state = self.optimizer.state[share.flat]
            for key in keys[name]:
                whole = tensors.whole(f"moments.{name}/{key}").to(share.flat.device)
                if key == "step":
                    state[key] = whole
                    continue
                if key not in state:
                    state[key] = torch.zeros_like(share.flat)
                length = share.span.stop - share.span.start
                state[key][share.span] = whole.reshape(-1)[share.start : share.start + length]

    def _share(self, parameter: nn.Parameter) -> Share | None:
        """What this process holds of a parameter; None if nothing."""
        mapping: Any = getattr(parameter, "_hp_mapping", None)  # by which DeepSpeed finds it for its own checkpoints
        if mapping is None:
            return None
        flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
        at = mapping.hp_fragment_address
        return Share(mapping.lp_fragment_address.start, flat, slice(at.start, at.start + at.numel))


def shared_out(estimate: Estimate, accelerator: Accelerator) -> Estimate:
    """An estimate for one process, with moments shared out, and the copy of the weights that DeepSpeed changes."""
    if not isinstance(accelerator, ZeroAccelerator):
        return estimate
    copy = estimate.gradients  # of what trains, likewise in float32
    return replace(estimate, optimizer=(estimate.optimizer + copy) // accelerator.num_processes)


def _deepspeed(device: torch.device) -> Any:
    """The package, told what to run on."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about packages that are not there
        import deepspeed
        from deepspeed.ops import __compatible_ops__ as compiles
        from deepspeed.utils import groups

    groups._release_process_group_references()  # to the processes of a run before this one
    if device.type == "cpu":
        compiles[COMPILED_EXCHANGE] = False
    return deepspeed
