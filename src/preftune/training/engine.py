"""Accelerate, set up: on which device, in which precision, and how weights lie on several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor

from preftune.errors import PreftuneError
from preftune.policy.loading import sendable
from preftune.policy.policy import PolicyModule
from preftune.training.processes import ASKED, environment, launched, runs_on_cpu
from preftune.training.zero import ZeroAccelerator, zero_stage

if TYPE_CHECKING:
    from preftune.config import RunConfig, TrainConfig
    from preftune.training.run_folder import RunFolder

T = TypeVar("T")

SHARDS = "ACCELERATE_USE_FSDP"  # how `accelerate launch` says that weights are to be sharded
COMPUTED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def make_accelerator(config: TrainConfig, trackers: Sequence[str], folder: RunFolder) -> Accelerator:
    """Accelerate, for the device, precision and strategy asked for. Several processes have been joined before.

    Raises:
        PreftuneError: for a device that is not there, a tracker that is not installed, or a strategy that does not fit.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True, "auto": True}
    if not available[config.device]:
        raise PreftuneError(f"train.device={config.device} is not available on this machine: set it to auto or cpu")
    precision = config.precision
    if precision == "auto":
        cuda = available["cuda"] and config.device != "cpu"
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    sharded, stage = shards(config), zero_stage(config)
    # a second run in the same process may differ in precision or device; Accelerate's singletons would keep the first's
    AcceleratorState._reset_state(reset_partial_state=True)
    cpu = config.device == "cpu" or (launched() > 1 and runs_on_cpu(config.device))
    with environment(ASKED, "false"):  # DeepSpeed is called directly, see training/zero.py
        state = PartialState(cpu=cpu)
    if sharded and state.distributed_type == DistributedType.MULTI_CPU:
        # on CPUs, Accelerate would leave the plugin aside without a word; it shards what it takes for GPUs
        state.distributed_type = DistributedType.MULTI_GPU
    try:
        settings: dict[str, Any] = {
            "mixed_precision": "no" if precision == "fp32" else precision,
            "cpu": cpu,
            "log_with": list(trackers) or None,
            "project_dir": str(folder.path),
            "fsdp_plugin": _plugin(precision) if sharded else None,
            "kwargs_handlers": [DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        }
        with environment(SHARDS, "true" if sharded else "false"), environment(ASKED, "false"):
            accelerator = Accelerator(**settings) if stage is None else ZeroAccelerator(stage, **settings)
        accelerator.init_trackers("preftune")
    except (ValueError, ImportError) as error:
        raise PreftuneError(f"cannot set up training as configured: {error}") from error
    if sharded and not accelerator.is_fsdp2:
        raise PreftuneError(
            f"train.strategy=fsdp2 cannot shard on {accelerator.device.type} with this version of Accelerate: set it "
            "to ddp"
        )
    return accelerator


def shards(config: TrainConfig) -> bool:
    """True if weights, gradients and moments are to be shared out over the processes.

    Raises:
        PreftuneError: if they cannot be.
    """
    configured = os.environ.get(SHARDS, "false").lower() == "true"
    wanted = config.strategy == "fsdp2" or (config.strategy == "auto" and configured)
    if wanted and launched() == 1:
        raise PreftuneError(
            "weights are to be sharded (FSDP2), but this is one process: start it with a launcher "
            "(torchrun --nproc_per_node 8 -m preftune train ...), or set train.strategy=auto"
        )
    if wanted and configured and os.environ.get("FSDP_VERSION", "2") != "2":
        raise PreftuneError("accelerate's config says fsdp_version: 1, which is not supported: set it to 2")
    return wanted


def check_sharded(config: RunConfig) -> None:
    """Refuse what cannot be combined with sharded weights.

    Raises:
        PreftuneError: names the key.
    """
    if not shards(config.train):
        return
    if config.train.compile:
        raise PreftuneError("train.compile=true does not go with sharded weights (FSDP2): set it to false")
    if config.model.quantize != "none":
        raise PreftuneError(
            f"model.quantize={config.model.quantize} does not go with sharded weights (FSDP2): set train.strategy=ddp, "
            "or model.quantize=none"
        )
    if config.optim.name != "adamw":
        raise PreftuneError(
            f"optim.name={config.optim.name} does not go with sharded weights (FSDP2): set it to adamw, whose moments "
            "are sharded, too"
        )
    if config.train.precision == "fp16":
        raise PreftuneError("train.precision=fp16 does not go with sharded weights (FSDP2): set it to bf16 or fp32")


def _plugin(precision: str) -> FullyShardedDataParallelPlugin:
    """FSDP2 as Accelerate's environment describes it, each decoder layer a unit; log-probs leave it as they are."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, cpu_ram_efficient_loading=True, auto_wrap_policy="transformer_based_wrap"
    )
    computed = COMPUTED.get(precision)
    # Accelerate's own would cast what forwards give to the precision of the computation
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
    return plugin


def prepare(
    accelerator: Accelerator, policy: PolicyModule, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Policy and optimiser, wrapped.

    Raises:
        PreftuneError: if weights that are to be sharded are not.
    """
    if accelerator.is_fsdp2:
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = sendable(policy.base)
    try:
        prepared, wrapped = accelerator.prepare(policy, optimizer)
    except (ValueError, KeyError) as error:
        if not accelerator.is_fsdp2:
            raise
        raise PreftuneError(f"this model cannot be sharded ({error}): set train.strategy=ddp") from error
    if accelerator.is_fsdp2 and not all(isinstance(p, DTensor) for p in prepared.parameters()):
        raise PreftuneError("not all of this model's weights were sharded (FSDP2): set train.strategy=ddp")
    return prepared, wrapped


def prepare_reference(accelerator: Accelerator, module: PolicyModule) -> PolicyModule:
    """A model that only answers, in the policy's precision, and sharded where that is."""
    if not accelerator.is_fsdp2:
        whole: PolicyModule = accelerator.prepare_model(module, evaluation_mode=True)
        return whole
    plugin: Any = accelerator.state.fsdp_plugin
    # what it made of the policy's layers before: these may be others
    plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = transformer_auto_wrap_policy, None
    plugin.cpu_ram_efficient_loading = sendable(module.base)
    sharded: PolicyModule = fsdp2_prepare_model(accelerator, module)
    plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = transformer_auto_wrap_policy, None
    return sharded


def used(policy: PolicyModule, function: Callable[[nn.Module], T]) -> T:
    """What a function makes of the language model, as `PolicyModule.generating` gives it. Where weights are sharded, it
    runs inside a forward, which puts them together layer by layer: on all processes, and the same on all."""
    with policy.generating() as lm:
        if not isinstance(policy, FSDPModule):
            return function(lm)
        found: T = policy("call", {"function": function})["found"]
        return found


def whole_state(accelerator: Accelerator, prepared: nn.Module) -> dict[str, Tensor]:
    """All weights of a wrapped policy, whole, on the main process; all processes must ask. Weights that are one (tied
    ones) stay one."""
    state: dict[str, Tensor] = accelerator.get_state_dict(prepared)
    first: dict[int, str] = {}
    if accelerator.is_fsdp2 and state:
        for name, parameter in prepared.named_parameters(remove_duplicate=False):
            state[name] = state[first.setdefault(id(parameter), name)]
    return state


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, on all processes, which must ask for it all; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
