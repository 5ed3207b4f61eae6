"""DDGAN training step: both networks, their optimizers and the EMA."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from comparison import rng
from comparison.gpu.cuda_graphs import GraphCapture, GraphedFunction, Inputs, Outputs
from comparison.ranks import RankInfo
from torch import Tensor, nn

from ddgan.domain import PIXELS, Domain
from ddgan.draws import Batch, PairNoise
from ddgan.ema import Ema
from ddgan.meters import HITS, LossMeter
from ddgan.objective import Objective, Phase
from ddgan.passes import Network, Passes, local_gradients, share_gradients
from ddgan.process import DenoisingProcess

LossesOf = Callable[[Inputs], tuple[Tensor, Outputs]]  # total loss, losses to report

SINGLE_PROCESS = RankInfo()
PUBLISHED = Objective()
ADVERSARIAL = Phase()
DENOISER_BETAS = (0.9, 0.99)  # Adam's, for the denoiser's regression loss
LR_FLOOR = 1e-5  # end of the cosine schedule; the published code's eta_min


def cosine_lr(start: float, step: int, last: int) -> float:
    """Return the rate of update `step`, a cosine from `start` to LR_FLOOR at update `last`; constant for `last` 0.

    Loshchilov and Hutter 2017, Eq. 5, without restarts; the published code steps the cosine once per epoch.
    """
    if last == 0:
        return start
    floor = min(LR_FLOOR, start)
    return floor + (start - floor) * (1 + math.cos(math.pi * min(step, last) / last)) / 2


def gradient_norm(network: nn.Module) -> Tensor:
    """Return the norm of all gradients of a network; scalar float32."""
    norms = torch._foreach_norm([p.grad for p in network.parameters() if p.grad is not None])
    return torch.stack(norms).norm()


class Trainer:
    """Both networks with their optimizers and the EMA.

    Args:
        generator, discriminator: networks on their device.
        process: diffusion process on the same device.
        ema: EMA of the generator, or None.
        seed: seed of all noise.
        lr_g, lr_d, beta1, beta2: Adam's learning rates and decays.
        r1_gamma: weight of the gradient penalty; it is not multiplied by `lazy_reg`.
        lazy_reg: updates per gradient penalty.
        objective: objective of both networks.
        t_decay: frequency of t + 1 in the batches relative to t; 1 for a uniform t.
        domain: space of the diffusion, into which images are transformed first; None for pixels.
        lr_denoiser: learning rate of the optimizer of denoising phases, which train the generator as a denoiser.
        denoiser_d_every: updates per update of the discriminator in those phases; 0 for none.
        autocast_dtype: dtype of the network passes; None for float32.
        rank_info: rank of this process; several ranks, in a `distributed.group`, train on their joint batch.
        compile_backend: backend of torch.compile for the networks; None does not compile.
        capture: recorder of `comparison.gpu.cuda_graphs` that captures both half-updates for later ones to replay; None
            runs eagerly, as do several ranks, several micro-batches, exact penalties and denoising updates.

    Attributes:
        meter: sums of the next log row, which the caller adds to; part of the state.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        process: DenoisingProcess,
        ema: Ema | None,
        *,
        seed: int,
        nz: int,
        lr_g: float,
        lr_d: float,
        beta1: float = 0.5,
        beta2: float = 0.9,
        r1_gamma: float = 0.05,
        lazy_reg: int = 1,
        objective: Objective = PUBLISHED,
        t_decay: float = 1.0,
        domain: Domain | None = None,
        lr_denoiser: float = 0.0,
        denoiser_d_every: int = 0,
        autocast_dtype: torch.dtype | None = None,
        rank_info: RankInfo = SINGLE_PROCESS,
        compile_backend: str | None = None,
        capture: GraphCapture | None = None,
    ):
        self.generator, self.discriminator, self.process, self.ema = generator, discriminator, process, ema
        self.rank_info = rank_info
        self.seed, self.nz, self.r1_gamma, self.lazy_reg = seed, nz, r1_gamma, lazy_reg
        self.objective, self.t_decay = objective, t_decay
        self.domain = domain or PIXELS
        self.lr_g, self.lr_d, self.lr_denoiser = lr_g, lr_d, lr_denoiser
        self.denoiser_d_every = denoiser_d_every
        self.autocast_dtype = autocast_dtype
        self.device = next(generator.parameters()).device
        self.meter = LossMeter()
        # The networks as their own updates call them: with gradients averaged over the ranks, perhaps compiled.
        self._shared_g, self._shared_d = (share_gradients(net, self.device) for net in (generator, discriminator))
        self._passes = Passes(
            objective,
            process,
            self.domain,
            r1_gamma,
            autocast_dtype,
            generator=_callable(generator, compile_backend),
            discriminator=_callable(discriminator, compile_backend),
            shared_generator=_callable(self._shared_g, compile_backend),
            shared_discriminator=_callable(self._shared_d, compile_backend),
            eager_discriminator=self._shared_d,
        )
        fused = {"fused": True} if self.device.type in ("cpu", "cuda") else {}
        self.optimizer_g = torch.optim.Adam(generator.parameters(), lr=lr_g, betas=(beta1, beta2), **fused)
        self.optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=lr_d, betas=(beta1, beta2), **fused)
        self.optimizer_denoiser: torch.optim.Adam | None = None
        if objective.denoiser_fraction:
            self.optimizer_denoiser = torch.optim.Adam(
                generator.parameters(), lr=lr_denoiser, betas=DENOISER_BETAS, **fused
            )
        # Graphed gradients: the discriminator's without and with the penalty, and the generator's.
        self._graphed_d: dict[bool, GraphedFunction] = {}
        self._graphed_g: GraphedFunction | None = None
        if capture and rank_info.world_size == 1:
            for due in (False, True) if objective.penalty_estimate == "finite" else (False,):
                losses_of = partial(self._passes.discriminator_losses, due=due)
                work = partial(_gradient, self.optimizer_d, losses_of)
                self._graphed_d[due] = GraphedFunction(work, discriminator.parameters(), capture)
            work = partial(_gradient, self.optimizer_g, self._passes.generator_losses, frozen=discriminator)
            self._graphed_g = GraphedFunction(work, generator.parameters(), capture)

    def set_learning_rates(self, step: int, last: int, factor: float = 1.0, denoiser_factor: float = 0.0) -> None:
        """Set the adversarial rates to `cosine_lr` times a factor, and the denoiser's rate to its own factor.

        In a denoising phase (denoiser_factor above 0) the discriminator keeps its full rate.
        """
        rates = [(self.optimizer_g, factor * cosine_lr(self.lr_g, step, last))]
        rates += [(self.optimizer_d, (1.0 if denoiser_factor else factor) * cosine_lr(self.lr_d, step, last))]
        if self.optimizer_denoiser is not None:
            rates += [(self.optimizer_denoiser, denoiser_factor * self.lr_denoiser)]
        for optimizer, rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def learning_rate(self, phase: Phase = ADVERSARIAL) -> float:
        """Return the generator's current learning rate in a phase."""
        optimizer = self.optimizer_denoiser if phase.denoiser else self.optimizer_g
        assert optimizer is not None
        return optimizer.param_groups[0]["lr"]

    def update(
        self, micro_batches: Sequence[Batch] | Tensor, step: int, phase: Phase = ADVERSARIAL
    ) -> dict[str, Tensor]:
        """Update the discriminator, then the generator, then the EMA.

        Gradients accumulate over the micro-batches; each micro-batch is noised independently for both networks.

        Args:
            micro_batches: micro-batches of equal size; a tensor is one without labels, with the index `step`.
            step: index of the update; decides dropout and whether the penalty is due.
            phase: see `Objective.phase`.

        Returns:
            Scalar means over the micro-batches: loss_d (without the penalty), loss_d_real, loss_d_fake, loss_g, r1 and
            reconstruction if there are any; and hits, (3, T), see `meters.count_hits`. Denoising updates return only
            reconstruction, unless the discriminator was updated too.
        """
        if isinstance(micro_batches, Tensor):
            micro_batches = [Batch(micro_batches, None, step)]
        micro_batches = [batch._replace(x_0=self.domain.transform(batch.x_0)) for batch in micro_batches]
        rank_key = [self.rank_info.rank] if self.rank_info.world_size > 1 else []
        rng.seed_default(self.seed, step, "dropout", *rank_key)
        every = self.denoiser_d_every
        losses = {}
        if not phase.denoiser or (every and step % every == 0):
            losses = self._update_discriminator(micro_batches, step)
        if phase.denoiser:
            losses |= self._update_denoiser(micro_batches)
        else:
            losses |= self._update_generator(micro_batches, phase.reconstruction_weight)
        if self.ema is not None:
            self.ema.update()
        return losses

    def _draw(self, batch: Batch, half: str) -> tuple[PairNoise, Tensor, Tensor]:
        x_0, key = batch.x_0, (self.seed, batch.micro_step, half)
        steps, rows = self.process.num_timesteps, self.rank_info.rows(len(x_0))
        noise = PairNoise(self._joint(x_0), self.nz, steps, key, x_0.device, rows, self.t_decay)
        x_t, x_t_plus_1 = self.process.q_sample_pairs(x_0, noise.t, noise.x_t, noise.x_t_plus_1)
        return noise, x_t, x_t_plus_1

    def _joint(self, x_0: Tensor) -> tuple[int, ...]:
        """Return the shape of the micro-batch of all ranks together."""
        return (len(x_0) * self.rank_info.world_size, *x_0.shape[1:])

    def _inputs(self, batch: Batch, half: str) -> Outputs:
        """Return the inputs of a half-update: pairs (x_t, x_{t+1}), x_0, t, noise and labels."""
        noise, x_t, x_t_plus_1 = self._draw(batch, half)
        drawn = {"t": noise.t, "z": noise.z, "posterior": noise.posterior, "x_t": x_t, "x_t_plus_1": x_t_plus_1}
        drawn["x_0"] = batch.x_0
        if self.objective.discriminator_shift:
            key = (self.seed, batch.micro_step, half, "shift")
            pixels = self.domain.inverse(batch.x_0[:1]).shape[2]
            shape, rows = (self._joint(batch.x_0)[0], 2), self.rank_info.rows(len(batch.x_0))
            drawn["shift"] = rng.randint(pixels, shape, *key, device=batch.x_0.device, rows=rows)
        return drawn if batch.labels is None else {**drawn, "labels": batch.labels}

    def _update_discriminator(self, micro_batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        due = self.r1_gamma > 0 and step % self.lazy_reg == 0
        inputs = (self._discriminator_inputs(batch, due) for batch in micro_batches)
        if due in self._graphed_d and len(micro_batches) == 1:
            losses = self._graphed_d[due](next(inputs))
            self.optimizer_d.step()
            return losses
        losses_of = partial(self._passes.discriminator_losses, due=due)
        return _accumulate(self._shared_d, self.optimizer_d, losses_of, inputs, len(micro_batches))

    def _discriminator_inputs(self, batch: Batch, due: bool) -> Outputs:
        drawn = self._inputs(batch, "d")
        if due and self.objective.penalty_estimate == "finite":
            x_0, key = batch.x_0, (self.seed, batch.micro_step, "d", "penalty", "real")
            rows = self.rank_info.rows(len(x_0))
            drawn["penalty"] = rng.normal(self._joint(x_0), *key, device=x_0.device, rows=rows)
        return drawn

    def _update_generator(self, micro_batches: Sequence[Batch], weight: float = 0.0) -> dict[str, Tensor]:
        inputs = (self._generator_inputs(batch, weight) for batch in micro_batches)
        if self._graphed_g and len(micro_batches) == 1:
            losses = self._graphed_g(next(inputs))
            self.optimizer_g.step()
            return losses
        losses_of = self._passes.generator_losses
        with _frozen(self.discriminator):
            return _accumulate(self._shared_g, self.optimizer_g, losses_of, inputs, len(micro_batches))

    def _generator_inputs(self, batch: Batch, weight: float) -> Outputs:
        drawn = self._inputs(batch, "g")
        if self.objective.reconstruction != "none":  # a tensor, so that a CUDA graph reads its new value
            drawn["reconstruction_weight"] = torch.tensor(weight, device=self.device)
        return drawn

    def _update_denoiser(self, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Train the generator to predict x_0 from x_{t+1} for any latent."""
        assert self.optimizer_denoiser is not None
        inputs = (self._inputs(batch, "g") for batch in micro_batches)
        losses_of = self._passes.denoiser_losses
        return _accumulate(self._shared_g, self.optimizer_denoiser, losses_of, inputs, len(micro_batches))

    def gradient_norms(self) -> dict[str, float]:
        """Return grad_norm_g and grad_norm_d of the last update, without a network that has no gradients."""
        networks = {"grad_norm_g": self.generator, "grad_norm_d": self.discriminator}
        return {
            name: gradient_norm(network).item()
            for name, network in networks.items()
            if any(parameter.grad is not None for parameter in network.parameters())
        }

    def generator_weights(self) -> dict[str, Tensor]:
        """Return the weights to sample with: the EMA weights if there are any."""
        return self.generator.state_dict() if self.ema is None else self.ema.weights

    def state_dict(self) -> dict[str, Any]:
        """Return the state that resuming needs."""
        return {"meter": self.meter.sums, **{name: part.state_dict() for name, part in self._parts()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        for name, part in self._parts():
            part.load_state_dict(state[name])
        sums = state["meter"]
        self.meter.sums = {name: (total.to(self.device), count) for name, (total, count) in sums.items()}

    def _parts(self) -> Iterable[tuple[str, Any]]:
        yield "generator", self.generator
        yield "discriminator", self.discriminator
        yield "optimizer_g", self.optimizer_g
        yield "optimizer_d", self.optimizer_d
        if self.optimizer_denoiser is not None:
            yield "optimizer_denoiser", self.optimizer_denoiser
        if self.ema is not None:
            yield "ema", self.ema


def _gradient(
    optimizer: torch.optim.Optimizer, losses_of: LossesOf, drawn: Inputs, *, frozen: nn.Module | None = None
) -> Outputs:
    """Compute the gradient on one micro-batch, with another network `frozen`; return the losses."""
    optimizer.zero_grad()
    with _frozen(frozen) if frozen else nullcontext():
        total, losses = losses_of(drawn)
        total.backward()
    return {name: value.detach() for name, value in losses.items()}


def _accumulate(
    network: nn.Module, optimizer: torch.optim.Optimizer, losses_of: LossesOf, inputs: Iterable[Inputs], count: int
) -> dict[str, Tensor]:
    """Take an optimizer step on the mean loss of `count` micro-batches; return the mean losses, and the sum of hits."""
    optimizer.zero_grad()
    reports = []
    for number, drawn in enumerate(inputs, 1):
        with local_gradients(network, active=number < count):
            total, losses = losses_of(drawn)
            (total / count).backward()  # penalties are in the total: they must be divided after squaring
        reports.append({name: value.detach() for name, value in losses.items()})
    optimizer.step()
    stacks = {name: torch.stack([report[name] for report in reports]) for name in reports[0]}
    return {name: stack.sum(0) if name == HITS else stack.mean(0) for name, stack in stacks.items()}


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Freeze a network's weights: their gradients would be a third of its backward pass, and unused."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _callable(network: nn.Module, compile_backend: str | None) -> Network:
    """Return the network, compiled if a backend is given."""
    return network if compile_backend is None else torch.compile(network, backend=compile_backend, dynamic=False)
