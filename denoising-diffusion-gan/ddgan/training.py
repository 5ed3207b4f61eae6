"""One training update of both networks, and everything that a resumed run needs to go on with it."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from comparison import rng
from comparison.replay import Inputs, Outputs, Recorder, Replay, Work
from torch import Tensor, nn

from ddgan.distributed import Place, local_gradients, share_gradients
from ddgan.ema import Ema
from ddgan.losses import fake_loss, r1_penalty, real_loss
from ddgan.process import DenoisingProcess

Network = Callable[..., Tensor]
ALONE = Place()
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


class LossMeter:
    """Means of what the updates report, kept on the device until asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take in scalars; a name may be absent from some updates (r1)."""
        for name, value in losses.items():
            total, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """Return the means since the last call and forget them."""
        means = {name: (total / count).item() for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means


class Batch(NamedTuple):
    """A micro-batch of this process: (n, C, H, W) float32 in [-1, 1], (n,) int64 labels or None, its number."""

    x_0: Tensor
    labels: Tensor | None
    micro_step: int


class PairNoise:
    """The random draws of one half-update from one micro-batch: a pure function of (seed, micro_step, half).

    Args:
        shape: (N, C, H, W) of the micro-batch of all processes together.
        nz: length of the latent.
        num_timesteps: T.
        key: seed, micro_step and "d" or "g".
        device: where they are drawn.
        rows: those of the N that are kept; None for all.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        nz: int,
        num_timesteps: int,
        key: tuple[Any, ...],
        device: torch.device,
        rows: slice | None = None,
    ):
        where: dict[str, Any] = {"device": device, "rows": rows}
        self.t = rng.randint(num_timesteps, shape[:1], *key, "t", **where)
        self.x_t = rng.normal(shape, *key, "x_t", **where)
        self.x_t_plus_1 = rng.normal(shape, *key, "x_t_plus_1", **where)
        self.z = rng.normal((shape[0], nz), *key, "z", **where)
        self.posterior = rng.normal(shape, *key, "posterior", **where)


class Trainer:
    """Both networks with their optimizers and the average, updated together.

    Args:
        generator, discriminator: on their device.
        process: on the same device.
        ema: follows the generator, or None.
        seed: of all noise.
        lr_g, lr_d, beta1, beta2: of Adam.
        r1_gamma: weight of the R1 penalty, which is not multiplied by `lazy_reg`.
        lazy_reg: the penalty is due in every so many updates.
        autocast_dtype: of the network passes; None for float32.
        place: of this process; several, in a `distributed.group`, make the update of their joint batch.
        compile_backend: of torch.compile, which fuses the networks' operations at their first passes; None for none.
        record: records the passes of both half-updates, so that later ones replay them, see `comparison.replay`; None
            for none, as is for several processes. Updates with R1 or of several micro-batches stay as they are.
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
        autocast_dtype: torch.dtype | None = None,
        place: Place = ALONE,
        compile_backend: str | None = None,
        record: Recorder | None = None,
    ):
        self.generator, self.discriminator, self.process, self.ema = generator, discriminator, process, ema
        self.place = place
        self.seed, self.nz, self.r1_gamma, self.lazy_reg = seed, nz, r1_gamma, lazy_reg
        self.lr_g, self.lr_d = lr_g, lr_d
        self.autocast_dtype = autocast_dtype
        self.device = next(generator.parameters()).device
        # The networks as their own updates call them: with gradients averaged over the processes, perhaps compiled.
        self._shared_g, self._shared_d = (share_gradients(net, self.device) for net in (generator, discriminator))
        self._call_g, self._call_d, self._call_shared_g, self._call_shared_d = (
            _callable(network, compile_backend)
            for network in (generator, discriminator, self._shared_g, self._shared_d)
        )
        fused = {"fused": True} if self.device.type in ("cpu", "cuda") else {}
        self.optimizer_g = torch.optim.Adam(generator.parameters(), lr=lr_g, betas=(beta1, beta2), **fused)
        self.optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=lr_d, betas=(beta1, beta2), **fused)
        self._gradient_d: Work | None = None
        self._gradient_g: Work | None = None
        if record and place.world_size == 1:
            self._gradient_d = Replay(self._discriminator_gradient, discriminator.parameters(), record)
            self._gradient_g = Replay(self._generator_gradient, generator.parameters(), record)

    def autocast(self) -> torch.autocast:
        """Return the context of the network passes."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def set_learning_rates(self, step: int, last: int, factor: float = 1.0) -> float:
        """Apply `cosine_lr` times a factor to both optimizers and return the generator's rate."""
        for optimizer, start in ((self.optimizer_g, self.lr_g), (self.optimizer_d, self.lr_d)):
            for group in optimizer.param_groups:
                group["lr"] = factor * cosine_lr(start, step, last)
        return self.optimizer_g.param_groups[0]["lr"]

    def update(self, micro_batches: Sequence[Batch] | Tensor, step: int) -> dict[str, Tensor]:
        """Do update `step` (0, 1, ...) of the discriminator, then of the generator, then of the average.

        The gradients are those of all micro-batches as one batch; each is noised afresh for both halves.

        Args:
            micro_batches: of one size; a tensor is one micro-batch without labels, with the number `step`.
            step: decides whether the penalty is due, and dropout.

        Returns:
            Scalars, means over the micro-batches: loss_d (without the penalty), loss_d_real, loss_d_fake, loss_g, and
            r1 where it was due.
        """
        if isinstance(micro_batches, Tensor):
            micro_batches = [Batch(micro_batches, None, step)]
        several = [self.place.rank] if self.place.world_size > 1 else []
        rng.seed_default(self.seed, step, "dropout", *several)
        losses = self._update_discriminator(micro_batches, step)
        losses["loss_g"] = self._update_generator(micro_batches)
        if self.ema is not None:
            self.ema.update()
        return losses

    def _draw(self, batch: Batch, half: str) -> tuple[PairNoise, Tensor, Tensor]:
        x_0, key = batch.x_0, (self.seed, batch.micro_step, half)
        joint = (len(x_0) * self.place.world_size, *x_0.shape[1:])
        noise = PairNoise(joint, self.nz, self.process.num_timesteps, key, x_0.device, self.place.rows(len(x_0)))
        x_t, x_t_plus_1 = self.process.q_sample_pairs(x_0, noise.t, noise.x_t, noise.x_t_plus_1)
        return noise, x_t, x_t_plus_1

    def _inputs(self, batch: Batch, half: str) -> Outputs:
        """Return the pairs (x_t, x_{t+1}) of a half-update, their indices t, and the generator's latents and noise."""
        noise, x_t, x_t_plus_1 = self._draw(batch, half)
        drawn = {"t": noise.t, "z": noise.z, "posterior": noise.posterior, "x_t": x_t, "x_t_plus_1": x_t_plus_1}
        return drawn if batch.labels is None else {**drawn, "labels": batch.labels}

    def _generate(self, call: Network, drawn: Inputs) -> Tensor:
        """Return a generated x_t: the predicted clean image, noised back by the posterior."""
        t, x_t_plus_1 = drawn["t"], drawn["x_t_plus_1"]
        with self.autocast():
            x_0_pred = call(x_t_plus_1, t, drawn["z"], *_labels(drawn))
        return self.process.sample_posterior(x_0_pred, x_t_plus_1, t, drawn["posterior"])

    def _update_discriminator(self, micro_batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        due = self.r1_gamma > 0 and step % self.lazy_reg == 0
        if self._gradient_d and not due and len(micro_batches) == 1:
            losses = self._gradient_d(self._inputs(micro_batches[0], "d"))
            self.optimizer_d.step()
            return losses
        self.optimizer_d.zero_grad()
        reports = []
        for batch in micro_batches:
            with local_gradients(self._shared_d, active=batch is not micro_batches[-1]):
                losses = self._discriminator_losses(self._inputs(batch, "d"), due)
                # The mean over the window, penalty included: its gradient must not be divided before it is squared.
                total = losses["loss_d"] + (self.r1_gamma / 2 * losses["r1"] if due else 0)
                (total / len(micro_batches)).backward()
            reports.append({name: value.detach() for name, value in losses.items()})
        self.optimizer_d.step()
        return {name: torch.stack([report[name] for report in reports]).mean() for name in reports[0]}

    def _discriminator_gradient(self, drawn: Inputs) -> Outputs:
        """Leave the discriminator's gradient of one micro-batch without R1, and return the losses."""
        self.optimizer_d.zero_grad()
        losses = self._discriminator_losses(drawn, due=False)
        losses["loss_d"].backward()
        return {name: value.detach() for name, value in losses.items()}

    def _discriminator_losses(self, drawn: Inputs, due: bool) -> Outputs:
        t, x_t, x_t_plus_1, labels = drawn["t"], drawn["x_t"], drawn["x_t_plus_1"], _labels(drawn)
        with torch.no_grad():
            x_t_fake = self._generate(self._call_g, drawn)
        losses: dict[str, Tensor] = {}
        if due:
            # Twice differentiated: in float32, as bf16's 8 bits do not carry the second derivative, and not compiled.
            x_t.requires_grad_()
            logits_real = self._shared_d(x_t, t, x_t_plus_1, *labels)
            losses["r1"] = r1_penalty(logits_real, x_t)
            with self.autocast():
                logits_fake = self._call_shared_d(x_t_fake, t, x_t_plus_1, *labels)
        else:
            twice = (torch.cat([value, value]) for value in (t, x_t_plus_1, *labels))
            with self.autocast():
                logits = self._call_shared_d(torch.cat([x_t, x_t_fake]), *twice, parts=2)
            logits_real, logits_fake = logits.chunk(2)
        losses["loss_d_real"], losses["loss_d_fake"] = real_loss(logits_real), fake_loss(logits_fake)
        losses["loss_d"] = losses["loss_d_real"] + losses["loss_d_fake"]
        return losses

    def _update_generator(self, micro_batches: Sequence[Batch]) -> Tensor:
        if self._gradient_g and len(micro_batches) == 1:
            loss = self._gradient_g(self._inputs(micro_batches[0], "g"))["loss_g"]
            self.optimizer_g.step()
            return loss
        self.optimizer_g.zero_grad()
        reports = []
        with _frozen(self.discriminator):
            for batch in micro_batches:
                with local_gradients(self._shared_g, active=batch is not micro_batches[-1]):
                    loss_g = self._generator_loss(self._inputs(batch, "g"))
                    (loss_g / len(micro_batches)).backward()
                reports.append(loss_g.detach())
        self.optimizer_g.step()
        return torch.stack(reports).mean()

    def _generator_gradient(self, drawn: Inputs) -> Outputs:
        """Leave the generator's gradient of one micro-batch, and return its loss."""
        self.optimizer_g.zero_grad()
        with _frozen(self.discriminator):
            loss_g = self._generator_loss(drawn)
            loss_g.backward()
        return {"loss_g": loss_g.detach()}

    def _generator_loss(self, drawn: Inputs) -> Tensor:
        x_t_fake = self._generate(self._call_shared_g, drawn)
        with self.autocast():
            return real_loss(self._call_d(x_t_fake, drawn["t"], drawn["x_t_plus_1"], *_labels(drawn)))

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
        if self.ema is not None:
            yield "ema", self.ema


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Want no gradients of a network's weights: they would be a third of its backward pass, unused."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _labels(drawn: Inputs) -> tuple[Tensor, ...]:
    """Return the labels as what follows a network's other inputs: nothing where there are none."""
    return (drawn["labels"],) if "labels" in drawn else ()


def _callable(network: nn.Module, compile_backend: str | None) -> Network:
    """Return what to call in place of a network."""
    if compile_backend is None:
        return network
    return torch.compile(network, backend=compile_backend, dynamic=False)
