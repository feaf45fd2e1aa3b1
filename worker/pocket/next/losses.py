"""What the networks are trained on: picture losses of the autoencoder, its adversary, and the UNet's objective."""

import torch
import torch.nn as nn
import torch.nn.functional as F

# ---- autoencoder -------------------------------------------------------------


def grads(x):
    """First differences of an image, down and across."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def windows(x, side, shift):
    """Non-overlapping Hann windows of `side` pixels, beginning at `shift`: (n, windows, side, side)."""
    x = x[..., shift:, shift:]
    h, w = x.shape[-2] // side * side, x.shape[-1] // side * side
    x = x[..., :h, :w].unflatten(-2, (h // side, side)).unflatten(-1, (w // side, side))
    hann = torch.hann_window(side + 2, periodic=False, device=x.device)[1:-1]
    return x.transpose(-3, -2) * hann[:, None] * hann


def spectral_loss(y, x, sides=(16, 32, 64), floor=0.02):
    """L1 between log magnitudes of windowed spectra: texture keeps its strength where its phase is lost.

    Images are in [-1, 1]. With the orthonormal transform, white noise of 40 dB has a magnitude of about
    `floor` in every bin; whatever is weaker than that does not count.
    """
    total = 0.0
    for side in sides:
        if side > x.shape[-1]:
            continue
        room = min(side, x.shape[-1] - side)
        shift = int(torch.randint(0, room + 1, ())) if room else 0
        logs = [
            torch.log(torch.fft.rfft2(windows(v.float(), side, shift), norm="ortho").abs() + floor)
            for v in (y, x)
        ]
        total = total + F.l1_loss(*logs)
    return total / len(sides)


def chroma(x):
    """Two colour differences after lifting the darks, so that a dark green is not rounded to grey."""
    x = ((x + 1) / 2).clamp_min(0).add(0.03).sqrt()
    r, g, b = x.unbind(1)
    luma = 0.3 * r + 0.59 * g + 0.11 * b
    return torch.stack([r - luma, b - luma], 1)


def picture_loss(y, x):
    """The autoencoder's loss on images in [-1, 1], and the plain L1 to print.

    L1 and squared error hold the picture (the square weighs the rare large errors, which PSNR sees), first
    differences hold edges, chroma holds dark colours, the block mean holds brightness, spectra hold texture.
    """
    l1, pool = F.l1_loss, lambda v: F.avg_pool2d(v, 8)
    edges = sum(l1(a, b) for a, b in zip(grads(y), grads(x)))
    cy, cx = chroma(y), chroma(x)
    plain = l1(y, x)
    loss = plain + 5 * F.mse_loss(y, x) + 0.5 * edges + l1(pool(y), pool(x)) + l1(cy, cx)
    return loss + 0.02 * spectral_loss(y, x), plain.detach()


def kl_loss(mean, logvar):
    """KL divergence from the standard normal, per latent number."""
    return 0.5 * torch.mean(mean**2 + logvar.exp() - 1 - logvar)


class Patches(nn.Module):
    """A PatchGAN of three strided layers: one judgement per patch of about 46 pixels."""

    def __init__(self, width=64):
        super().__init__()
        chans = (3, width, 2 * width, 4 * width)
        layers = []
        for a, b in zip(chans, chans[1:]):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(8, b), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(chans[-1], 1, 3, 1, 1))

    def forward(self, x):
        return self.net(x)


def adversary_loss(judge, real, fake):
    """Hinge loss of the discriminator."""
    return F.relu(1 - judge(real)).mean() + F.relu(1 + judge(fake)).mean()


def adaptive_weight(loss, fooled, last, most=10.0):
    """The weight that makes both gradients at the decoder's last layer equally long (Esser et al. 2012.09841)."""
    a = torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
    b = torch.autograd.grad(fooled, last, retain_graph=True)[0].norm()
    return (a / (b + 1e-4)).clamp(0, most).detach()
