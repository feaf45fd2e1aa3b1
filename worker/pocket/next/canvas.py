"""The ground that the painters stand on: coordinates of a batch of crops, band-limited noise, light, blending.

World coordinates: the whole picture is the unit square, x to the right, y down. A crop knows how many
pixels the whole picture has (`res`); every noise fades out the octaves that are finer than a pixel of it
and adds those that a larger picture can show. So a small picture looks like a large one, made smaller.
"""

import math

import torch
import torch.nn.functional as F

MOST_OCTAVES = 11
LEFT, SPAN = -0.25, 1.5  # what tables over x cover


def smooth(x):
    """The cubic step on [0, 1]."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def step(a, b, x):
    """0 below a, 1 above b, smooth between."""
    return smooth((x - a) / (b - a))


def mix(a, b, m):
    """Blend colours: `a` where m is 0, `b` where it is 1. A mask (n, h, w) serves all channels."""
    m = m.unsqueeze(1) if m.dim() == 3 else m
    return a + (b - a) * m


def patch(img, mask, x, y, paint):
    """`paint(img, x, y)` on the rows where the mask has anything: most things fill a part of the picture."""
    rows = mask.any(0).any(-1).nonzero()[:, 0]
    if len(rows) == 0:
        return img
    if len(rows) == img.shape[2]:
        return paint(img, x, y)
    out = img.clone()
    out[:, :, rows] = paint(img[:, :, rows], x[:, rows], y[:, rows])
    return out


class Noise:
    """Value noise for a batch: scene i has its own wrapping lattice, drawn from its seed."""

    def __init__(self, seeds, device, size=64):
        self.size = size
        lattices = [torch.rand(1, size, size, generator=torch.Generator().manual_seed(s)) for s in seeds]
        self.lattice = F.pad(torch.stack(lattices), (0, 1, 0, 1), mode="circular").to(device)

    def at(self, x, y, linear=False):
        """Noise in [-0.5, 0.5] at lattice coordinates (n, h, w); `linear` leaves creases at lattice lines."""
        xf, yf = x.floor(), y.floor()
        x, y = x - xf, y - yf
        if not linear:
            x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
        scale = 2 / self.size
        grid = torch.stack(
            [(xf.remainder(self.size) + x) * scale - 1, (yf.remainder(self.size) + y) * scale - 1], -1
        )
        found = F.grid_sample(self.lattice, grid, mode="bilinear", align_corners=True, padding_mode="border")
        return found[:, 0] - 0.5

    def cell(self, i, j):
        """The random number in [0, 1] of the integer cell (i, j)."""
        return self.at(i, j, True) + 0.5

    def fbm(self, x, y, pixels, most=MOST_OCTAVES, gain=0.5, ridged=False, linear=False):
        """Octaves of noise about 0, the first with the height of `at`.

        `pixels`: how many pixels a cell of the first octave has (a number, or a tensor that broadcasts).
        Octaves fade between five pixels a cell and two. Each is turned, so that no lattice shows.
        `ridged` folds each octave at its middle: sharp crests.
        """
        largest = float(pixels.max()) if torch.is_tensor(pixels) else pixels
        octaves = min(most, max(1, math.ceil(math.log2(max(largest, 1.9) / 1.8))))
        total, amp = 0.0, 1.0
        for o in range(octaves):
            n = self.at(x, y, linear)
            if ridged:
                n = 0.17 - n.abs()
                n = 2 * n
            fade = (pixels / 2**o - 1.8) / 3.0
            fade = fade.clamp(0, 1) if torch.is_tensor(fade) else min(1.0, max(0.0, fade))
            total = total + n * (fade * amp)
            x, y = 1.6 * x + 1.2 * y + 17.3, 1.6 * y - 1.2 * x + 9.1
            amp *= gain
        return total

    def line(self, x, row, pixels, most=MOST_OCTAVES, gain=0.5, ridged=False, linear=False):
        """`fbm` along a line: octaves are not turned, for an outline needs one coordinate only."""
        largest = float(pixels.max()) if torch.is_tensor(pixels) else pixels
        octaves = min(most, max(1, math.ceil(math.log2(max(largest, 1.9) / 1.8))))
        total, amp, y = 0.0, 1.0, torch.full_like(x, row)
        for o in range(octaves):
            n = self.at(x, y, linear)
            if ridged:
                n = 2 * (0.17 - n.abs())
            fade = ((pixels / 2**o - 1.8) / 3.0).clamp(0, 1)
            total = total + n * (fade * amp)
            x, y = 2 * x + 17.3, y + 7.1
            amp *= gain
        return total


class Table:
    """A function of x alone, tabulated at two places a pixel."""

    def __init__(self, b, f):
        width = min(12288, int(2 * SPAN * float(b.res.max())) + 2)
        x = torch.linspace(LEFT, LEFT + SPAN, width, device=b.device).view(1, 1, -1).expand(b.n, 1, -1)
        self.values = f(x.contiguous())

    def at(self, x):
        spot = torch.stack([(x - LEFT) / SPAN * 2 - 1, torch.zeros_like(x)], -1)
        found = F.grid_sample(
            self.values.unsqueeze(1), spot, mode="bilinear", align_corners=True, padding_mode="border"
        )
        return found[:, 0]


class Canvas:
    """Scenes of one land and one water, and the part of each that is drawn."""

    def __init__(self, scenes, res, top, left, px, device):
        self.scenes, self.n, self.device = scenes, len(scenes), device
        self.land, self.water = scenes[0]["land"], scenes[0]["water"]
        self.noise = Noise([s["seed"] for s in scenes], device)
        self.noise2 = Noise([s["seed"] ^ 0x5BD1E995 for s in scenes], device)
        index = torch.arange(px, device=device) + 0.5
        top, left, self.res = (
            torch.tensor(v, device=device).float().view(-1, 1, 1) for v in (top, left, res)
        )
        shape = (self.n, px, px)
        y = ((top + index.view(1, px, 1)) / self.res).expand(shape).contiguous()
        x = ((left + index.view(1, 1, px)) / self.res).expand(shape).contiguous()
        mirror = self.num(lambda s: s["mirror"])
        self.x, self.y = x + (1 - 2 * x) * mirror, y
        self.level, self.lx = self.num(lambda s: s["horizon"]), self.num(lambda s: s["lx"])
        self.bx, self.by = self.num(lambda s: s["bx"]), self.num(lambda s: s["by"])
        self.body = self.num(lambda s: s["body"] != "")
        self.moon = self.num(lambda s: s["body"] == "a moon")
        self.night = self.num(lambda s: s["time"] == "night")
        self.fog = self.num(lambda s: s["time"] == "fog")
        self.tx = self.num(lambda s: s["tx"])

    def num(self, f):
        """One number a scene, as (n, 1, 1)."""
        return torch.tensor([float(f(s)) for s in self.scenes], device=self.device).view(-1, 1, 1)

    def rgb(self, f):
        """One colour a scene, as (n, 3, 1, 1)."""
        return torch.tensor([f(s) for s in self.scenes], device=self.device).float().view(-1, 3, 1, 1)

    def colour(self, *rgb):
        return torch.tensor(rgb, device=self.device).view(1, 3, 1, 1)

    def cover(self, distance):
        """Share of a pixel inside a shape, from the signed distance to its edge in world units."""
        return (distance * self.res + 0.5).clamp(0, 1)

    def hash(self, i, k):
        """Random numbers in [0, 1] of integer places `i`, the k-th set."""
        return self.noise2.cell(i, torch.full_like(i, float(k)))

    def towards(self, x):
        """Where the light comes from at x: -1 from the left, 1 from the right, soft in between."""
        return torch.tanh((self.lx - x) * 5)

    def emboss(self, f, x, y, scale):
        """Slope of the height `f(x, y)` towards the light, times `scale` (world units): light on relief."""
        e = 0.8 / self.res
        return (f(x, y) - f(x + e * self.towards(x), y - 0.7 * e)) / e * scale
