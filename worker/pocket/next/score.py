"""Numbers and contact sheets: reconstruction, latents, v error by noise level, bodies a picture."""

import os
import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data import NATIVE, held_out
from scenes import LANDS


def psnr(y, x):
    """Mean over pictures, in dB, of images in [-1, 1]."""
    return float((-10 * (((y - x) / 2) ** 2).mean((1, 2, 3)).log10()).mean())


def high_band(x):
    """Energy of the luma above a quarter of Nyquist, per pixel, under a Hann window."""
    side = x.shape[-1]
    hann = torch.hann_window(side, device=x.device)
    luma = (x * torch.tensor([0.3, 0.59, 0.11], device=x.device).view(1, 3, 1, 1)).sum(1)
    power = torch.fft.fft2(luma * hann * hann[:, None]).abs() ** 2 / side**2
    f = torch.fft.fftfreq(side, device=x.device) * 2
    return float((power * ((f**2 + f[:, None] ** 2).sqrt() > 0.25)).mean())


def box_band(x):
    """Power above a 5x5 box filter."""
    return float(((x - F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)) ** 2).mean())


def score_vae(model, n=96):
    """Reconstruction of unseen scenes (whole pictures; crops of 4x), and how the latents are spread."""
    x = held_out(model.device, n)[0]
    z = model.encode(x)
    y = model.decode(z)
    out = {}
    for name, part in (("whole", slice(0, n // 2)), ("4x", slice(n // 2, n))):
        a, b = y[part], x[part]
        out[name] = (psnr(a, b), high_band(a) / high_band(b), box_band(a) / box_band(b))
        print(
            f"vae {name}: PSNR {out[name][0]:.2f} dB, high band {out[name][1]:.3f}, above 5x5 {out[name][2]:.3f}"
        )
    c = z.transpose(0, 1).flatten(1)
    mean, std = c.mean(1), c.std(1)
    kurt = (((c - mean[:, None]) / std[:, None]) ** 4).mean(1)
    show = lambda v: " ".join(f"{float(i):.2f}" for i in v)
    print("latents mean:", show(mean))
    print("latents std:", show(std))
    print("latents kurtosis:", show(kurt), flush=True)
    return out, x, y


@torch.no_grad()
def score_unet(model, n=96):
    """v error on held-out scenes by band of log-SNR; the same for whole pictures and crops of 4x."""
    x, captions, ids, _ = held_out(model.device, n)
    z = model.encode(x)
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(5, 990, n).long()[mixed].to(model.device)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(2)).to(model.device)
    keep = torch.ones(n, device=model.device)
    err = torch.cat(
        [
            model.v_error(
                z[i : i + 32],
                captions[i : i + 32],
                ids[i : i + 32],
                t[i : i + 32],
                noise[i : i + 32],
                keep[i : i + 32],
            )
            for i in range(0, n, 32)
        ]
    )
    ab = model.alphas_cumprod[t]
    snr = (ab / (1 - ab)).log()
    bands = ((-99, -4), (-4, -2), (-2, 0), (0, 2), (2, 4), (4, 99))
    parts = [f"[{lo}, {hi}) {float(err[(snr >= lo) & (snr < hi)].mean()):.4f}" for lo, hi in bands]
    half = n // 2
    print(
        f"v error {float(err.mean()):.4f}, whole {float(err[:half].mean()):.4f}, 4x {float(err[half:].mean()):.4f};"
    )
    print("by log-SNR:", "; ".join(parts), flush=True)
    return float(err.mean())


def bodies(x, radius=0.05 * NATIVE, least=0.025):
    """Suns and moons in each picture of [-1, 1]: how many discs of the drawn size its sky has.

    A place is inside a disc if nine points near it are all brighter, by `least`, than twelve points of a ring
    just outside the disc's edge. Clouds, snow and sails are not that round.
    """

    def points(r, n):
        return [(r * np.sin(2 * np.pi * k / n), r * np.cos(2 * np.pi * k / n)) for k in range(n)]

    size = int(radius * 1.4) + 1
    inner, outer = points(0, 1) + points(radius * 0.5, 8), points(radius * 1.36, 12)
    kernel = torch.zeros(len(inner) + len(outer), 1, 2 * size + 1, 2 * size + 1)
    for k, (i, j) in enumerate(inner + outer):
        kernel[k, 0, size + round(i), size + round(j)] = 1
    luma = ((x.float().cpu().clamp(-1, 1) + 1) / 2 * torch.tensor([0.3, 0.59, 0.11]).view(1, 3, 1, 1)).sum(
        1, True
    )
    luma = F.avg_pool2d(luma, 3, 1, 1, count_include_pad=False)
    seen = F.conv2d(F.pad(luma, (size,) * 4, mode="replicate"), kernel)
    margin = seen[:, : len(inner)].amin(1) - seen[:, len(inner) :].amax(1)
    margin[:, int(0.40 * margin.shape[1]) :] = -1
    return [sum(1 for part in _blobs(m > least) if len(part) > 2) for m in margin.numpy()]


def _blobs(mask):
    """Connected parts of a boolean picture, as lists of (row, column)."""
    todo = {tuple(p) for p in np.argwhere(mask)}
    while todo:
        stack, part = [todo.pop()], []
        while stack:
            i, j = stack.pop()
            part.append((i, j))
            for q in [(i + a, j + c) for a in (-1, 0, 1) for c in (-1, 0, 1)]:
                if q in todo:
                    todo.remove(q)
                    stack.append(q)
        yield part


def save_sheet(x, columns, path, scale=1):
    """A contact sheet of images in [-1, 1]."""
    n, _, side, _ = x.shape
    rows = n // columns
    grid = x[: rows * columns].float().cpu().view(rows, columns, 3, side, side).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * side, columns * side, 3)
    img = Image.fromarray(((grid + 1) * 127.5 + 0.5).clamp(0, 255).byte().numpy())
    if scale != 1:
        img = img.resize((img.width * scale, img.height * scale), Image.NEAREST)
    img.save(path, optimize=True)


PROMPTS = [
    f"{land}{water} {hour}"
    for land in LANDS
    for water, hour in (
        ("", "at sunset, a sun on the left"),
        (" with a lake", "at noon under a blue sky, a sailing boat"),
        (" by the sea", "at night under the stars, a lighthouse, a moon on the right"),
        ("", "in thick fog"),
        (" with a lake", "at sunrise, a cottage with a lit window, a sun"),
        (" by the sea", "under a cloudy sky"),
        ("", "at night under the stars"),
    )
][:48]


def sheets(model, out, guidance=3.0, few=False):
    """`samples.png`: 48 prompts (12 if `few`), nothing picked. `crops.png`: crops of a 4x canvas."""
    prompts = PROMPTS[::4] if few else PROMPTS
    whole = [NATIVE, NATIVE, 0, 0, NATIVE, NATIVE]
    x = torch.cat(
        [
            model.sample(prompts[i : i + 12], [whole] * 12, guidance, seed=1 + i)
            for i in range(0, len(prompts), 12)
        ]
    )
    save_sheet(x, 6 if few else 8, os.path.join(out, "samples.png"))
    counts = bodies(x)
    doubled = sum(c > 1 for c in counts)
    asked = sum(", a sun" in p or ", a moon" in p for p in prompts)
    ref = held_out(model.device, 48, (1,))[0]
    ratio = high_band(x) / high_band(ref)
    print(
        f"samples: {doubled} of {len(x)} with a doubled body, {sum(c > 0 for c in counts)} with one ({asked} asked); high band {ratio:.3f}",
        flush=True,
    )
    if few:
        return
    big = 4 * NATIVE
    places = [(top, left) for top in range(0, 3 * NATIVE, NATIVE) for left in range(0, big, NATIVE)]
    ids = [[big, big, top, left, big, big] for top, left in places]
    rows = [
        model.sample([p] * len(ids), ids, guidance)
        for p in ("mountains at sunset, a sun", "forest with a lake at night under the stars, a moon")
    ]
    save_sheet(torch.cat(rows), 4, os.path.join(out, "crops.png"))
