"""DCGAN as the published comparison's own script does it, to measure ours against: results/benchmark.py gans.

Written from facts about that script, not from its code, on the networks of this folder. Float32, convolutions over
separate channels, a loop over the parameters in Adam, noise on every image that the discriminator sees, and pictures
that are resized one by one. No script of this folder uses it.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class PlainDCGAN:
    """Two networks, their optimizers, and an iteration of their game.

    Args:
        generator, discriminator: on their device; the latter returns logits.
        g_lr, d_lr: learning rates of Adam, betas 0.5 and 0.999.
        labels: what the discriminator is asked to answer for (real, fake).
        noise: share of Gaussian noise mixed into every image that the discriminator sees.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        g_lr: float = 1.6e-4,
        d_lr: float = 1.25e-4,
        labels: tuple[float, float] = (0.9, 0.1),
        noise: float = 0.1,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.labels, self.noise = labels, noise
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999), foreach=False, fused=False)
            for network, lr in ((generator, g_lr), (discriminator, d_lr))
        )

    def train_step(self, real: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Update the discriminator, then the generator, on the same fakes.

        Args:
            real: (N, C, H, W) float32.
            z: (N, nz) float32, standard normal.

        Returns:
            The losses of the discriminator and of the generator, () float32.
        """
        loss_d, fake = self.update_discriminator(real, z)
        return loss_d, self.update_generator(fake)

    def update_discriminator(self, real: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the fakes, noise mixed in, with their graph."""
        label_real, label_fake = self.labels
        self.discriminator.zero_grad()
        loss_real = self._loss(self._with_noise(real), label_real)
        loss_real.backward()
        fake = self._with_noise(self.generator(z))
        loss_fake = self._loss(fake.detach(), label_fake)
        loss_fake.backward()
        self.optimizer_d.step()
        return (loss_real + loss_fake).detach(), fake

    def update_generator(self, fake: Tensor) -> Tensor:
        """Return the loss; the discriminator's weight gradients are computed with it and thrown away."""
        self.generator.zero_grad()
        loss = self._loss(fake, self.labels[0])
        loss.backward()
        self.optimizer_g.step()
        return loss.detach()

    def _with_noise(self, images: Tensor) -> Tensor:
        return (1 - self.noise) * images + self.noise * torch.randn_like(images)

    def _loss(self, images: Tensor, label: float) -> Tensor:
        probability = torch.sigmoid(self.discriminator(images))
        return F.binary_cross_entropy(probability, torch.full_like(probability, label))


@torch.no_grad()
def sample(generator: nn.Module, z: Tensor) -> Tensor:
    """Return (N, C, H, W) images of (N, nz) noise, batch norm as a layer of its own."""
    return generator(z)


class Pictures(Dataset):
    """Pictures in memory that are resized, cropped, converted and normalised each time they are asked for.

    Args:
        images: (N, H, W, 3) uint8.
        image_size: wanted, pixels.
    """

    def __init__(self, images: np.ndarray, image_size: int) -> None:
        from torchvision import transforms

        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.Resize(image_size),
                transforms.CenterCrop(image_size),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[index]))


def epoch(images: np.ndarray, image_size: int, batch_size: int, device: torch.device, workers: int = 2) -> Iterator:
    """Yield an epoch of (N, 3, S, S) float32 batches on the device, read by worker processes that end with it."""
    loader = DataLoader(Pictures(images, image_size), batch_size, shuffle=True, num_workers=workers, drop_last=True)
    for batch in loader:
        yield batch.to(device)
