"""A diffusion of latents: a small variational autoencoder, its latents, and samples decoded.

`encode` trains the autoencoder on `fashion16` (half a minute) and writes the latents
of all images, 4 x 4 x 4 floats of each, with the classes. `decode` makes images of samples of a
model that `softtrunc train` learned of them. docs/latents.md goes the whole way.

Run: python examples/latents.py encode FOLDER
     python examples/latents.py decode FOLDER SAMPLES.npy PICTURE.png      # or IMAGES.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from softtrunc.data import open_dataset
from softtrunc.data.pictures import save_grid

STEPS, BATCH, KL = 800, 64, 1e-3
CHANNELS, LIMIT = 4, 6.0  # of the latents, and the range [-LIMIT, LIMIT] in which they lie


class Autoencoder(nn.Module):
    """Images in [0, 1], (N, 1, 16, 16), to latents (N, 4, 4, 4) of mean 0 and spread 1, and back.

    The encoder tells a mean and a spread of each latent, and one draw of them is what is learned:
    latents of a plain autoencoder would have no noise that hides what the decoder does not need.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(32, 32, 3, 1, 1), nn.SiLU(), nn.Conv2d(32, 2 * CHANNELS, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 32, 3, 1, 1), nn.SiLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 32, 3, 1, 1), nn.SiLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 16, 3, 1, 1), nn.SiLU(), nn.Conv2d(16, 1, 3, 1, 1),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(CHANNELS, 1, 1))
        self.register_buffer("std", torch.ones(CHANNELS, 1, 1))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, before they are brought to one scale."""
        mean, log_var = self.encoder(images).chunk(2, dim=1)
        return mean, log_var.clamp(-12.0, 4.0)

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of each image's latents."""
        mean, log_var = self.posterior(images)
        z = mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=generator)
        return ((z - self.mean) / self.std).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1]. Samples are cut to where latents lie: a model's may leave it."""
        latents = latents.clamp(-LIMIT, LIMIT)
        return self.decoder(latents * self.std + self.mean).sigmoid()


def train(images: Tensor, steps: int = STEPS) -> Autoencoder:
    """Fit the autoencoder: squared error, and a little of the distance to a standard normal law."""
    torch.manual_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        x = images[torch.randint(len(images), (BATCH,))]
        mean, log_var = model.posterior(x)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        error = (model.decoder(z).sigmoid() - x).square().flatten(1).sum(1)
        kl = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).flatten(1).sum(1)
        loss = (error + KL * kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 200 == 0:
            told = error.detach().mean() / images[0].numel()
            print(f"step {step + 1}: mean squared error {float(told):.4f}", flush=True)
    with torch.no_grad():
        means = model.posterior(images)[0]
        model.mean.copy_(means.mean((0, 2, 3))[:, None, None])
        model.std.copy_(means.std((0, 2, 3))[:, None, None])
    return model


def encode(folder: Path, steps: int = STEPS) -> None:
    """Train the autoencoder; write its weights and the latents of both splits."""
    splits = {split: open_dataset("fashion16", split) for split in ("train", "test")}
    images = {s: torch.from_numpy(d.images).float() / 255.0 for s, d in splits.items()}
    model = train(images["train"], steps)
    generator = torch.Generator().manual_seed(0)
    tensors = {f"x_{s}": model.encode(x, generator) for s, x in images.items()}
    tensors |= {f"y_{s}": torch.from_numpy(d.labels) for s, d in splits.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / "autoencoder.safetensors"))
    save_file(tensors, folder / "latents.safetensors")
    print(f"{folder / 'latents.safetensors'}: within [{-LIMIT:g}, {LIMIT:g}]")


def decode(folder: Path, samples: Path, out: Path) -> None:
    """Decode samples into a picture of some (.png), or into uint8 images of all (.npz)."""
    model = Autoencoder()
    load_model(model, str(folder / "autoencoder.safetensors"))
    images = model.decode(torch.from_numpy(np.load(samples))).mul(255.0).round().to(torch.uint8)
    if out.suffix == ".npz":
        np.savez_compressed(out, images=images.permute(0, 2, 3, 1).numpy())
    else:
        save_grid(images[:64], out)


if __name__ == "__main__":
    verb, *paths = sys.argv[1:] or [""]
    if (verb, len(paths)) not in (("encode", 1), ("decode", 3)):
        sys.exit(__doc__)
    (encode if verb == "encode" else decode)(*map(Path, paths))
