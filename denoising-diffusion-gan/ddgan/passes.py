"""Forward passes of both half-updates, from their random inputs to the losses."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from comparison.distributed import world_size
from comparison.gpu.cuda_graphs import Inputs, Outputs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddgan.domain import Domain
from ddgan.draws import roll
from ddgan.losses import fake_loss, finite_difference_penalty, r1_penalty, real_loss, reconstruction_loss
from ddgan.meters import HITS, count_hits
from ddgan.objective import FINITE_DIFFERENCE, Objective
from ddgan.process import DenoisingProcess

Network = Callable[..., Tensor]


def share_gradients(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network in DistributedDataParallel if there are several ranks, to average its gradients over them."""
    if world_size() == 1:
        return network
    # The buffers are constant, so the forward pass need not broadcast them; torch 2.14 renamed the argument.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True, **options
    )


def local_gradients(network: nn.Module, active: bool) -> AbstractContextManager[None]:
    """Return a context that, while `active`, accumulates gradients of `share_gradients` without averaging them."""
    return network.no_sync() if active and isinstance(network, DistributedDataParallel) else nullcontext()


@dataclass(frozen=True)
class Passes:
    """Map inputs (t, z, posterior, x_0, x_t, x_t_plus_1 and optional ones such as labels) to losses.

    Attributes:
        objective: objective of both networks.
        process: diffusion process on the networks' device.
        domain: space of the diffusion.
        r1_gamma: weight of the gradient penalty.
        autocast_dtype: dtype of the network passes; None for float32.
        generator, discriminator: networks for the other network's update, perhaps compiled.
        shared_generator, shared_discriminator: networks for their own updates, with gradients averaged over ranks.
        eager_discriminator: shared_discriminator without compilation, which can be differentiated twice.
    """

    objective: Objective
    process: DenoisingProcess
    domain: Domain
    r1_gamma: float
    autocast_dtype: torch.dtype | None
    generator: Network
    discriminator: Network
    shared_generator: Network
    shared_discriminator: Network
    eager_discriminator: nn.Module

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the autocast context of the network passes."""
        return torch.autocast(device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def _predict(self, call: Network, drawn: Inputs) -> Tensor:
        with self.autocast(drawn["t"].device):
            return call(drawn["x_t_plus_1"], drawn["t"], drawn["z"], *_labels(drawn))

    def _shown(self, x: Tensor, drawn: Inputs) -> Tensor:
        """Return one half of a pair as the discriminator receives it, rolled if `shift` is drawn."""
        if "shift" not in drawn:
            return x
        return self.domain.transform(roll(self.domain.inverse(x), drawn["shift"]))

    def _generated(self, x_0_pred: Tensor, drawn: Inputs) -> Tensor:
        """Return the discriminator's fake input: the predicted clean image, or an x_t sampled from its posterior."""
        if self.objective.discriminator_input == "x_t":
            x_0_pred = self.process.sample_posterior(x_0_pred, drawn["x_t_plus_1"], drawn["t"], drawn["posterior"])
        return self._shown(x_0_pred, drawn)

    def discriminator_losses(self, drawn: Inputs, due: bool) -> tuple[Tensor, Outputs]:
        """Return the total loss, and loss_d with its terms, r1 if `due`, and hits; see `Trainer.update`."""
        t, x_t_plus_1, labels = drawn["t"], self._shown(drawn["x_t_plus_1"], drawn), _labels(drawn)
        real = self._shown(drawn[self.objective.discriminator_input], drawn)
        with torch.no_grad():
            fake = self._generated(self._predict(self.generator, drawn), drawn)
        losses: dict[str, Tensor] = {}
        if due and self.objective.penalty_estimate == "exact":
            # Second derivatives need float32 (bf16 is too coarse) and a network that is not compiled.
            real = real.detach().requires_grad_()
            logits_real = self.eager_discriminator(real, t, x_t_plus_1, *labels)
            losses["r1"] = r1_penalty(logits_real, real)
            with self.autocast(drawn["t"].device):
                logits_fake = self.shared_discriminator(fake, t, x_t_plus_1, *labels)
        elif due:
            # One float32 pass: bf16 would round the small differences to 0.
            parts = [real, fake, real + FINITE_DIFFERENCE * drawn["penalty"]]
            repeated = (torch.cat([value] * len(parts)) for value in (t, x_t_plus_1, *labels))
            logits = self.shared_discriminator(torch.cat(parts), *repeated, parts=len(parts))
            logits_real, logits_fake, logits_moved = logits.chunk(len(parts))
            losses["r1"] = finite_difference_penalty(logits_real, logits_moved, FINITE_DIFFERENCE)
        else:
            twice = (torch.cat([value, value]) for value in (t, x_t_plus_1, *labels))
            with self.autocast(drawn["t"].device):
                logits = self.shared_discriminator(torch.cat([real, fake]), *twice, parts=2)
            logits_real, logits_fake = logits.chunk(2)
        losses |= {"loss_d_real": real_loss(logits_real), "loss_d_fake": fake_loss(logits_fake)}
        losses["loss_d"] = total = losses["loss_d_real"] + losses["loss_d_fake"]
        losses[HITS] = count_hits(logits_real, logits_fake, t, self.process.num_timesteps)
        return total + self.r1_gamma / 2 * losses["r1"] if due else total, losses

    def generator_losses(self, drawn: Inputs) -> tuple[Tensor, Outputs]:
        """Return the generator's total loss, and its terms without gradients."""
        x_0_pred = self._predict(self.shared_generator, drawn)
        pair = (drawn["t"], self._shown(drawn["x_t_plus_1"], drawn), *_labels(drawn))
        with self.autocast(drawn["t"].device):
            logits = self.discriminator(self._generated(x_0_pred, drawn), *pair)
            total = real_loss(logits)
        losses = {"loss_g": total.detach()}
        if "reconstruction_weight" in drawn:
            distance = reconstruction_loss(x_0_pred, drawn["x_0"])
            losses["reconstruction"] = distance.detach()
            total = total + drawn["reconstruction_weight"] * distance
        return total, losses

    def denoiser_losses(self, drawn: Inputs) -> tuple[Tensor, Outputs]:
        """Return the reconstruction loss of the generator's x_0, twice: to minimize and to report."""
        x_0_pred = self._predict(self.shared_generator, drawn)
        loss = reconstruction_loss(x_0_pred, drawn["x_0"])
        return loss, {"reconstruction": loss}


def _labels(drawn: Inputs) -> tuple[Tensor, ...]:
    """Return the labels as a tuple of further network inputs, empty without labels."""
    return (drawn["labels"],) if "labels" in drawn else ()
