"""One training update of both networks, and everything that a resumed run needs to go on with it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from comparison import rng
from comparison.gpu.replay import Inputs, Outputs, Recorder, Replay, Work
from comparison.places import Place
from torch import Tensor, nn

from ddgan.domain import PIXELS, Domain
from ddgan.draws import Batch, PairNoise, penalty_noise
from ddgan.ema import Ema
from ddgan.meters import HITS
from ddgan.objective import Objective, Phase
from ddgan.passes import Network, Passes, local_gradients, share_gradients
from ddgan.process import DenoisingProcess

ALONE = Place()
PUBLISHED = Objective()
ADVERSARIAL = Phase()
DENOISER_BETAS = (0.9, 0.99)  # of Adam for the denoiser, whose loss is a plain regression
LR_FLOOR = 1e-5  # where the cosine schedule ends; the published code's eta_min


def cosine_lr(start: float, step: int, last: int) -> float:
    """Return the learning rate of update `step` (0, 1, ...): half a cosine from `start` to LR_FLOOR at update `last`.

    Loshchilov and Hutter 2017, Eq. 5, without restarts. `last` 0 keeps it constant. The published code takes one step
    of the cosine per epoch.
    """
    if last == 0:
        return start
    floor = min(LR_FLOOR, start)
    return floor + (start - floor) * (1 + math.cos(math.pi * min(step, last) / last)) / 2


def gradient_norm(network: nn.Module) -> Tensor:
    """Return the norm of all gradients of a network as one vector; scalar float32."""
    norms = torch._foreach_norm([p.grad for p in network.parameters() if p.grad is not None])
    return torch.stack(norms).norm()


class Trainer:
    """Both networks with their optimizers and the average, updated together.

    Args:
        generator, discriminator: on their device.
        process: on the same device.
        ema: follows the generator, or None.
        seed: of all noise.
        lr_g, lr_d, beta1, beta2: of Adam.
        r1_gamma: weight of the gradient penalty, which is not multiplied by `lazy_reg`.
        lazy_reg: the penalty is due in every so many updates.
        objective: what the networks are trained for.
        t_decay: frequency of t + 1 in the batches relative to that of t; 1 for equal ones.
        domain: of what is diffused; images are transformed before all else. None for pixels.
        lr_denoiser: of the optimizer that trains the generator as a denoiser, in phases of that kind.
        denoiser_d_every: in those, the discriminator is updated too in every so many updates; 0 for never.
        autocast_dtype: of the network passes; None for float32.
        place: of this process; several, in a `distributed.group`, make the update of their joint batch.
        compile_backend: of torch.compile, which fuses the networks' operations at their first passes; None for none.
        record: records the passes of both half-updates, so that later ones replay them, see `comparison.gpu.replay`;
            None for none, as is for several processes. Updates with an exact penalty, of several micro-batches, or of
            the denoiser stay as they are.
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
        place: Place = ALONE,
        compile_backend: str | None = None,
        record: Recorder | None = None,
    ):
        self.generator, self.discriminator, self.process, self.ema = generator, discriminator, process, ema
        self.place = place
        self.seed, self.nz, self.r1_gamma, self.lazy_reg = seed, nz, r1_gamma, lazy_reg
        self.objective, self.t_decay = objective, t_decay
        self.domain = domain or PIXELS
        self.lr_g, self.lr_d, self.lr_denoiser = lr_g, lr_d, lr_denoiser
        self.denoiser_d_every = denoiser_d_every
        self.autocast_dtype = autocast_dtype
        self.device = next(generator.parameters()).device
        # The networks as their own updates call them: with gradients averaged over the processes, perhaps compiled.
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
            plain_discriminator=self._shared_d,
        )
        fused = {"fused": True} if self.device.type in ("cpu", "cuda") else {}
        self.optimizer_g = torch.optim.Adam(generator.parameters(), lr=lr_g, betas=(beta1, beta2), **fused)
        self.optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=lr_d, betas=(beta1, beta2), **fused)
        self.optimizer_denoiser: torch.optim.Adam | None = None
        if objective.denoiser_fraction:
            self.optimizer_denoiser = torch.optim.Adam(
                generator.parameters(), lr=lr_denoiser, betas=DENOISER_BETAS, **fused
            )
        # What leaves the discriminator's gradient without and with the penalty, and the generator's.
        self._gradient_d: dict[bool, Work] = {}
        self._gradient_g: Work | None = None
        if record and place.world_size == 1:
            self._gradient_d = {
                due: Replay(partial(self._discriminator_gradient, due), discriminator.parameters(), record)
                for due in ((False, True) if objective.penalty_estimate == "finite" else (False,))
            }
            self._gradient_g = Replay(self._generator_gradient, generator.parameters(), record)

    def set_learning_rates(self, step: int, last: int, factor: float = 1.0, denoiser_factor: float = 0.0) -> None:
        """Apply `cosine_lr` times a factor to both adversarial optimizers, and a factor to the denoiser's.

        While the denoiser is trained, its factor above 0, a discriminator beside it keeps the full rate.
        """
        _set_rate(self.optimizer_g, factor * cosine_lr(self.lr_g, step, last))
        _set_rate(self.optimizer_d, (1.0 if denoiser_factor else factor) * cosine_lr(self.lr_d, step, last))
        if self.optimizer_denoiser is not None:
            _set_rate(self.optimizer_denoiser, denoiser_factor * self.lr_denoiser)

    def learning_rate(self, phase: Phase = ADVERSARIAL) -> float:
        """Return the generator's present rate in a phase."""
        optimizer = self.optimizer_denoiser if phase.denoiser else self.optimizer_g
        assert optimizer is not None
        return optimizer.param_groups[0]["lr"]

    def update(
        self, micro_batches: Sequence[Batch] | Tensor, step: int, phase: Phase = ADVERSARIAL
    ) -> dict[str, Tensor]:
        """Do update `step` (0, 1, ...) of the discriminator, then of the generator, then of the average.

        The gradients are those of all micro-batches as one batch; each is noised afresh for both halves.

        Args:
            micro_batches: of one size; a tensor is one micro-batch without labels, with the number `step`.
            step: decides whether the penalty is due, and dropout.
            phase: see `Objective.phase`.

        Returns:
            Scalars, means over the micro-batches: loss_d (without the penalty), loss_d_real, loss_d_fake, loss_g, r1
            where it was due, reconstruction where there is one; and hits, (3, T), see `Objective.hits`. In a
            denoiser's update reconstruction alone, unless the discriminator was updated too.
        """
        if isinstance(micro_batches, Tensor):
            micro_batches = [Batch(micro_batches, None, step)]
        micro_batches = [batch._replace(x_0=self.domain.transform(batch.x_0)) for batch in micro_batches]
        several = [self.place.rank] if self.place.world_size > 1 else []
        rng.seed_default(self.seed, step, "dropout", *several)
        every = self.denoiser_d_every
        losses = {}
        if not phase.denoiser or (every and step % every == 0):
            losses = self._update_discriminator(micro_batches, step)
        losses |= (
            self._update_denoiser(micro_batches)
            if phase.denoiser
            else self._update_generator(micro_batches, phase.reconstruction_weight)
        )
        if self.ema is not None:
            self.ema.update()
        return losses

    def _draw(self, batch: Batch, half: str) -> tuple[PairNoise, Tensor, Tensor]:
        x_0, key = batch.x_0, (self.seed, batch.micro_step, half)
        steps, rows = self.process.num_timesteps, self.place.rows(len(x_0))
        noise = PairNoise(self._joint(x_0), self.nz, steps, key, x_0.device, rows, self.t_decay)
        x_t, x_t_plus_1 = self.process.q_sample_pairs(x_0, noise.t, noise.x_t, noise.x_t_plus_1)
        return noise, x_t, x_t_plus_1

    def _joint(self, x_0: Tensor) -> tuple[int, ...]:
        """Return the shape of the micro-batch of all processes together."""
        return (len(x_0) * self.place.world_size, *x_0.shape[1:])

    def _inputs(self, batch: Batch, half: str) -> Outputs:
        """Return the pairs (x_t, x_{t+1}) of a half-update, x_0, the indices t, and the generator's random inputs."""
        noise, x_t, x_t_plus_1 = self._draw(batch, half)
        drawn = {"t": noise.t, "z": noise.z, "posterior": noise.posterior, "x_t": x_t, "x_t_plus_1": x_t_plus_1}
        drawn["x_0"] = batch.x_0
        if self.objective.discriminator_shift:
            key = (self.seed, batch.micro_step, half, "shift")
            pixels = self.domain.inverse(batch.x_0[:1]).shape[2]
            shape, rows = (self._joint(batch.x_0)[0], 2), self.place.rows(len(batch.x_0))
            drawn["shift"] = rng.randint(pixels, shape, *key, device=batch.x_0.device, rows=rows)
        return drawn if batch.labels is None else {**drawn, "labels": batch.labels}

    def _discriminator_inputs(self, batch: Batch, due: bool) -> Outputs:
        drawn = self._inputs(batch, "d")
        if due and self.objective.penalty_estimate == "finite":
            x_0, key = batch.x_0, (self.seed, batch.micro_step, "d")
            drawn["penalty"] = penalty_noise(self._joint(x_0), key, x_0.device, self.place.rows(len(x_0)))
        return drawn

    def _update_discriminator(self, micro_batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        due = self.r1_gamma > 0 and step % self.lazy_reg == 0
        if due in self._gradient_d and len(micro_batches) == 1:
            losses = self._gradient_d[due](self._discriminator_inputs(micro_batches[0], due))
            self.optimizer_d.step()
            return losses
        self.optimizer_d.zero_grad()
        reports = []
        for batch in micro_batches:
            with local_gradients(self._shared_d, active=batch is not micro_batches[-1]):
                losses = self._passes.discriminator_losses(self._discriminator_inputs(batch, due), due)
                # The mean over the window, penalty included: its gradient must not be divided before it is squared.
                (self._passes.discriminator_total(losses) / len(micro_batches)).backward()
            reports.append({name: value.detach() for name, value in losses.items()})
        self.optimizer_d.step()
        return _means(reports)

    def _discriminator_gradient(self, due: bool, drawn: Inputs) -> Outputs:
        """Leave the discriminator's gradient of one micro-batch, and return the losses."""
        self.optimizer_d.zero_grad()
        losses = self._passes.discriminator_losses(drawn, due)
        self._passes.discriminator_total(losses).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _update_generator(self, micro_batches: Sequence[Batch], weight: float = 0.0) -> dict[str, Tensor]:
        if self._gradient_g and len(micro_batches) == 1:
            losses = self._gradient_g(self._generator_inputs(micro_batches[0], weight))
            self.optimizer_g.step()
            return losses
        self.optimizer_g.zero_grad()
        reports = []
        with _frozen(self.discriminator):
            for batch in micro_batches:
                with local_gradients(self._shared_g, active=batch is not micro_batches[-1]):
                    total, losses = self._passes.generator_losses(self._generator_inputs(batch, weight))
                    (total / len(micro_batches)).backward()
                reports.append(losses)
        self.optimizer_g.step()
        return _means(reports)

    def _generator_inputs(self, batch: Batch, weight: float) -> Outputs:
        drawn = self._inputs(batch, "g")
        if self.objective.reconstruction != "none":  # a tensor, so that replayed work sees it change
            drawn["reconstruction_weight"] = torch.tensor(weight, device=self.device)
        return drawn

    def _generator_gradient(self, drawn: Inputs) -> Outputs:
        """Leave the generator's gradient of one micro-batch, and return its losses."""
        self.optimizer_g.zero_grad()
        with _frozen(self.discriminator):
            total, losses = self._passes.generator_losses(drawn)
            total.backward()
        return losses

    def _update_denoiser(self, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Train the generator to predict x_0 from x_{t+1}, whatever the latent."""
        assert self.optimizer_denoiser is not None
        self.optimizer_denoiser.zero_grad()
        reports = []
        for batch in micro_batches:
            with local_gradients(self._shared_g, active=batch is not micro_batches[-1]):
                distance = self._passes.denoiser_loss(self._inputs(batch, "g"))
                (distance / len(micro_batches)).backward()
            reports.append({"reconstruction": distance.detach()})
        self.optimizer_denoiser.step()
        return _means(reports)

    def generator_weights(self) -> dict[str, Tensor]:
        """Return the weights to sample with: the average if there is one."""
        return self.generator.state_dict() if self.ema is None else self.ema.weights

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `update` depends on besides its arguments."""
        return {name: part.state_dict() for name, part in self._parts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        for name, part in self._parts():
            part.load_state_dict(state[name])

    def _parts(self) -> Iterable[tuple[str, Any]]:
        yield "generator", self.generator
        yield "discriminator", self.discriminator
        yield "optimizer_g", self.optimizer_g
        yield "optimizer_d", self.optimizer_d
        if self.optimizer_denoiser is not None:
            yield "optimizer_denoiser", self.optimizer_denoiser
        if self.ema is not None:
            yield "ema", self.ema


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _means(reports: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the means over micro-batches, of hits the sum."""
    stacks = {name: torch.stack([report[name] for report in reports]) for name in reports[0]}
    return {name: stack.sum(0) if name == HITS else stack.mean(0) for name, stack in stacks.items()}


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Want no gradients of a network's weights: they would be a third of its backward pass, unused."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _callable(network: nn.Module, compile_backend: str | None) -> Network:
    """Return what to call in place of a network."""
    if compile_backend is None:
        return network
    return torch.compile(network, backend=compile_backend, dynamic=False)
