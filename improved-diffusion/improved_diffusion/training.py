"""One optimizer step at a time: microbatches, mixed precision, moving averages, loss statistics.

Nothing in this module waits for the device: statistics stay on it until `LossMeter.read`.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .dist_util import add_member, get_world_size
from .gaussian_diffusion import GaussianDiffusion
from .nn import update_ema, warmed_up_rate

INITIAL_LOG_LOSS_SCALE = 20.0  # fp16 only
QUARTILES = 4

Inputs = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
Work = Callable[[Inputs], Outputs]  # which also leaves the gradients of some parameters


class LossMeter:
    """Running means of losses, over all timesteps and by quartile of t, kept on the device.

    Quartile q holds the timesteps in [q T / 4, (q + 1) T / 4), so q0 is the least noisy one.

    Args:
        num_timesteps: T.
    """

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps
        self.reset()

    def reset(self) -> None:
        """Clear the sums."""
        self._sums: dict[str, Tensor] = {}
        self._counts: Tensor | None = None
        self._grad_norm: Tensor | None = None
        self._updates = 0

    def add_losses(self, losses: dict[str, Tensor], t: Tensor) -> None:
        """Add the losses of images, each (N,), at timesteps t, (N,)."""
        quartile = (QUARTILES * t // self.num_timesteps).long()
        zeros = torch.zeros(QUARTILES, device=t.device)
        for name, values in losses.items():
            total = zeros.index_add(0, quartile, values.detach().float())
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        counts = zeros.index_add(0, quartile, torch.ones_like(t, dtype=torch.float32))
        self._counts = counts if self._counts is None else self._counts + counts

    def add_grad_norm(self, grad_norm: Tensor) -> None:
        """Add the gradient norm of one update, ()."""
        self._grad_norm = grad_norm if self._grad_norm is None else self._grad_norm + grad_norm
        self._updates += 1

    def read(self) -> dict[str, float]:
        """Return the means since the last reset, of all processes together, and reset.

        A quartile without images is left out. The only place where the host waits for the device; every process
        calls it at the same step.
        """
        if self._counts is None or self._grad_norm is None:
            return {}
        counts, *sums = self._totals(self._counts).tolist()
        means = {}
        for name, values in zip(self._sums, sums, strict=True):
            means[name] = sum(values) / sum(counts)
            for q in range(QUARTILES):
                if counts[q]:
                    means[f"{name}_q{q}"] = values[q] / counts[q]
        means["grad_norm"] = self._grad_norm.item() / self._updates
        self.reset()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last reset, of all processes together; every process calls it at the same step."""
        if self._counts is None or self._grad_norm is None:
            return {}
        sums = dict(zip(["counts", *self._sums], self._totals(self._counts), strict=True))
        return {"sums": sums, "grad_norm": self._grad_norm.item(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device, first: bool) -> None:
        """Go on from sums of `state_dict`; `first` in one process, the others then add to its sums."""
        self.reset()
        if not state:
            return
        zeros = torch.zeros(QUARTILES, device=device)
        sums = {name: value.to(device) if first else zeros for name, value in state["sums"].items()}
        self._counts, self._sums = sums.pop("counts"), sums
        self._grad_norm, self._updates = torch.tensor(state["grad_norm"], device=device), state["updates"]

    def _totals(self, counts: Tensor) -> Tensor:
        """Return counts and sums of all processes, (1 + names, 4), on the CPU."""
        totals = torch.stack([counts, *self._sums.values()]).cpu()
        if get_world_size() > 1:
            torch.distributed.all_reduce(totals)
        return totals


class Trainer:
    """A network in training, with its optimizer and its moving averages.

    With several processes each one gives its own part of the batch, all parts of one size, and all make the same
    update: that of the joint batch.

    Args:
        model: on its device.
        diffusion: process whose loss is minimised.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        beta2: decay of AdamW's mean squared gradient; a short run does well with 0.99.
        ema_rates: EMA rates of the weights.
        ema_rule: (rate, updates made) -> the rate at an update; the default lowers it while few updates are made.
        ema_every: updates between moves of the averages, each by the rate to this power.
        microbatch: images per forward pass, 0 or less for the whole batch.
        lr_anneal_steps: updates after which the learning rate has fallen linearly to 0; 0 for constant.
        autocast_dtype: type of the network's passes; None for float32. float16 scales the loss dynamically.
        fp16_scale_growth: growth of the loss scale's base-2 logarithm per update.
        compile_network: fuse its operations by torch.compile, at the first update.
        replayed: stands in for the passes of an update, given these and the parameters: what records them as a CUDA
            graph, say. They wait for nothing. None for none, as is for several processes and for float16.
    """

    def __init__(
        self,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        *,
        lr: float,
        weight_decay: float = 0.0,
        beta2: float = 0.999,
        ema_rates: Sequence[float] = (0.9999,),
        ema_rule: Callable[[float, int], float] = warmed_up_rate,
        ema_every: int = 1,
        microbatch: int = 0,
        lr_anneal_steps: int = 0,
        autocast_dtype: torch.dtype | None = None,
        fp16_scale_growth: float = 1e-3,
        compile_network: bool = False,
        replayed: Callable[[Work, Iterable[nn.Parameter]], Work] | None = None,
    ) -> None:
        self.model = model
        self.diffusion = diffusion
        self.lr = lr
        self.ema_rule, self.ema_every = ema_rule, ema_every
        self.microbatch = microbatch
        self.lr_anneal_steps = lr_anneal_steps
        self.autocast_dtype = autocast_dtype
        self.device = next(model.parameters()).device
        self._network: nn.Module = model
        if get_world_size() > 1:
            self._network = _distributed(model, self.device)
            add_member(self)
        self._call_network = torch.compile(self._network) if compile_network else self._network
        self.ema = {rate: copy.deepcopy(model).eval().requires_grad_(False) for rate in ema_rates}
        fused = self.device.type in ("cpu", "cuda")
        options: dict[str, Any] = {"lr": lr, "betas": (0.9, beta2), "weight_decay": weight_decay, "fused": fused}
        self.optimizer = torch.optim.AdamW(model.parameters(), **options)
        self.scaler = torch.amp.GradScaler(
            self.device.type,
            init_scale=2.0**INITIAL_LOG_LOSS_SCALE,
            growth_factor=2.0**fp16_scale_growth,
            growth_interval=1,
            enabled=autocast_dtype == torch.float16,
        )
        self.meter = LossMeter(diffusion.num_timesteps)
        # Several processes must not hold a cycle: it would keep their connections beyond the end of the group.
        self._replayed: Work | None = None
        if replayed and get_world_size() == 1 and not self.scaler.is_enabled():
            self._replayed = replayed(self._gradient, model.parameters())

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of the network's passes."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def update(
        self,
        step: int,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor,
        factors: Tensor | None = None,
        model_kwargs: dict[str, Tensor] | None = None,
        lr_factor: float | None = None,
    ) -> Tensor:
        """Make one update from one batch.

        Args:
            step: updates made before this one.
            x_start: (N, C, H, W) float32 in [-1, 1].
            t: (N,) int64 in [0, T).
            noise: standard normal like x_start.
            factors: (N,) importance weights of the losses; None for ones.
            model_kwargs: conditions of the network, each (N, ...): `y` (int64 classes), `low_res`.
            lr_factor: multiple of the learning rate; None leaves the optimizer's as it is.

        Returns:
            (N,) float32, the losses of the images without their factors.
        """
        losses = self.accumulate(x_start, t, noise, factors, model_kwargs)
        self.optimize(step, lr_factor)
        return losses

    def accumulate(
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor,
        factors: Tensor | None = None,
        model_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Compute the gradient of one batch, the first half of `update`; arguments of `update`."""
        self.model.train()
        inputs = {"x_start": x_start, "t": t, "noise": noise, **{f"y_{k}": v for k, v in (model_kwargs or {}).items()}}
        if factors is not None:
            inputs["factors"] = factors
        losses = self._replayed(inputs) if self._replayed else self._gradient(inputs)
        self.meter.add_losses({name: values for name, values in losses.items() if name != "plain"}, t)
        return losses["plain"]

    def _gradient(self, inputs: Inputs) -> Outputs:
        """Compute the gradient of a batch; arguments of `accumulate`, those of the network with y_ before their name.

        Returns:
            The losses of the images, each (N,): by name as the process has them, times their factors, and `plain`, the
            loss without its factor.
        """
        self.optimizer.zero_grad(set_to_none=True)
        x_start, t, noise, factors = inputs["x_start"], inputs["t"], inputs["noise"], inputs.get("factors")
        n = len(x_start)
        size = self.microbatch if self.microbatch > 0 else n
        found: list[Outputs] = []
        for start in range(0, n, size):
            part = slice(start, start + size)
            kwargs = {name[2:]: value[part] for name, value in inputs.items() if name.startswith("y_")}
            with self._no_sync() if start + size < n else nullcontext():
                losses = self.diffusion.training_losses(self._forward, x_start[part], t[part], kwargs, noise[part])
                plain = losses["loss"].detach()
                if factors is not None:
                    losses = {name: values * factors[part] for name, values in losses.items()}
                # Divided by the whole batch, so that the parts' gradients add up to the whole's, uneven parts too;
                # processes are averaged.
                self.scaler.scale(losses["loss"].sum() / n).backward()
            found.append({**{name: values.detach() for name, values in losses.items()}, "plain": plain})
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def optimize(self, step: int, lr_factor: float | None = None) -> None:
        """Update the weights and their EMA by the gradient, the second half of `update`.

        Args:
            step: updates made before this one.
            lr_factor: multiple of the learning rate; None leaves the optimizer's as it is.
        """
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.meter.add_grad_norm(torch.nn.utils.get_total_norm(gradients))
        if self.lr_anneal_steps:
            lr_factor = max(0.0, 1 - step / self.lr_anneal_steps)
        if lr_factor is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * lr_factor
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if (step + 1) % self.ema_every == 0:
            for rate, ema in self.ema.items():
                power = self.ema_rule(rate, step + 1) ** self.ema_every
                update_ema(ema.parameters(), self.model.parameters(), power)

    def _forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.autocast():
            return self._call_network(*args, **kwargs)

    def _no_sync(self) -> AbstractContextManager[None]:
        network = self._network
        return network.no_sync() if isinstance(network, nn.parallel.DistributedDataParallel) else nullcontext()

    def leave_group(self) -> None:
        """Release the process group, which ends; training continues alone."""
        self._network = self._call_network = self.model

    def is_finite(self) -> bool:
        """Return True if every weight is finite; waits for the device."""
        weights = [p.detach() for p in self.model.parameters()]
        return bool(torch.stack(torch._foreach_norm(weights)).isfinite().all())

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state dict, with the loss scale's beside it."""
        return {**self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Restore `optimizer_state`; learning rate, betas and weight decay stay those of the constructor.

        Raises:
            ValueError, KeyError: the state belongs to another network.
        """
        groups = [
            {**saved, **{name: own[name] for name in ("lr", "betas", "weight_decay", "fused")}}
            for saved, own in zip(state["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        parameters = list(self.model.parameters())
        for index, moments in state["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != parameters[index].shape:
                    raise ValueError(f"{name} of parameter {index} has the shape {tuple(moments[name].shape)}")
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


def _distributed(model: nn.Module, device: torch.device) -> nn.parallel.DistributedDataParallel:
    """Average a network's gradients over the processes, in buckets of 25 MB while the backward pass goes on."""
    constructor = nn.parallel.DistributedDataParallel
    # Its buffers are constants, so nothing is to be sent in the forward pass; torch 2.14 renamed the argument.
    renamed = "forward_sync_buffers" in inspect.signature(constructor).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return constructor(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **options,
    )
