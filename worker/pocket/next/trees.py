"""Trees in rows: every tree stands at a place of its own, with a trunk, and branches or leaf clusters."""

import torch

from canvas import mix, patch, step


class Row:
    """`cells` places across the picture, `share` of them taken; heights in world units; feet on `base`."""

    def __init__(self, k, cells, share, tall, base, kind, sink=0.004, edge=None, dry=None):
        self.k, self.cells, self.share, self.tall, self.base = k, cells, share, tall, base
        self.kind, self.sink, self.edge, self.dry = kind, sink, edge, dry


def plant(b, light, img, row, x, y, air=0.0):
    """Paint a row of trees over `img`. `air`: share of the air's colour over them."""
    feet = row.base(torch.linspace(-0.1, 1.1, 240, device=b.device).view(1, 1, -1).expand(b.n, 1, -1))
    band = (y > feet.amin(-1, True) - 1.45 * row.tall) & (
        y < feet.amax(-1, True) + row.sink + 0.07 * row.tall
    )
    return patch(img, band, x, y, lambda img, x, y: _plant(b, light, img, row, x, y, air))


def _plant(b, light, img, row, x, y, air):
    shape = {"fir": fir, "snow fir": fir, "leaf": leafy, "gold": leafy, "cactus": cactus}[row.kind]
    u = x * row.cells + 13.7 * row.k
    for j in (-1, 1, 0):
        i = u.floor() + j
        r = [b.hash(i, 40 + 4 * row.k + n) for n in range(4)]
        cx = (i + 0.2 + 0.6 * r[0] - 13.7 * row.k) / row.cells
        tall = row.tall * (0.62 + 0.70 * r[1])
        taken = r[2] < row.share
        if row.edge is not None:  # only near the sides of the picture
            taken = taken & ((cx - 0.5).abs() > row.edge)
        base = row.base(cx) + row.sink
        if row.dry is not None:  # not in the water
            taken = taken & (base - row.sink < row.dry)
        p, q = (x - cx) / tall, (base - y) / tall
        near = taken & (p.abs() < 0.7) & (q > -0.05) & (q < 1.1)
        if not bool(near.any()):
            continue
        albedo, lit, cover = shape(b, row, p, q, tall, r[3], x, y)
        colour = light.on(albedo, lit, 0.55 + 0.5 * lit)
        if torch.is_tensor(air) or air:
            colour = mix(colour, light.air, air)
        img = mix(img, colour, cover * near)
    return img


def fir(b, row, p, q, tall, r, x, y):
    """Tiers of hanging branches, lit from one side, darker under each tier; snow on top of them."""
    scale = b.res * tall  # pixels a tree
    needles = b.noise.fbm(p * 9 + 50 * r, q * 13 + 9 * r, scale / 13, gain=0.6)
    tiers = 5 + 4 * r
    s = (q + 0.28 * p.abs()).clamp_min(0) ** 0.9 * tiers + r
    f = s - s.floor()
    half = (0.235 + 0.05 * r) * (1.0 - q) * (1.12 - 0.55 * f) + 0.065 * needles
    cover = ((half - p.abs()) * scale * 0.8 + 0.5).clamp(0, 1) * (q > 0.09 + 0.03 * needles)
    trunk = ((0.022 - p.abs()) * scale + 0.5).clamp(0, 1) * (q < 0.2) * (q > -0.02)
    across = p / (half.clamp_min(0.02))
    lit = 0.46 + 0.42 * across * b.towards(x) + 0.9 * needles + 0.25 * (0.5 - f)
    albedo = mix(b.colour(0.08, 0.24, 0.14), b.colour(0.22, 0.42, 0.20), (0.5 + needles).clamp(0, 1))
    if row.kind == "snow fir":
        snow = step(0.05, 0.30, 0.52 - f + 0.9 * needles)
        albedo, lit = mix(albedo, b.colour(0.93, 0.95, 1.0), snow * 0.92), lit + 0.25 * snow
    wood = trunk * (1 - cover)
    albedo = mix(albedo, b.colour(0.30, 0.21, 0.15), wood)
    return albedo, lit.clamp(0.02, 1.1), torch.maximum(cover, trunk)


LUMPS = (
    (0.0, 0.70, 0.27),
    (-0.21, 0.58, 0.20),
    (0.22, 0.60, 0.20),
    (-0.09, 0.86, 0.16),
    (0.13, 0.80, 0.17),
    (0.02, 0.52, 0.20),
)


def leafy(b, row, p, q, tall, r, x, y):
    """A trunk that forks, and a crown of six leaf clusters, each a lit ball with leaves on it."""
    scale = b.res * tall
    side = b.towards(x)
    leaves = b.noise.fbm(p * 7 + 50 * r, q * 7 + 9 * r, scale / 7, gain=0.66)
    best, lit = torch.full_like(p, -9.0), torch.zeros_like(p)
    for n, (cx, cy, size) in enumerate(LUMPS):
        wave = torch.sin(40 * r + 2.4 * n)
        dx, dy = p - cx * (1 + 0.25 * wave), q - cy - 0.04 * torch.cos(30 * r + 1.7 * n)
        size = size * (1 + 0.18 * torch.sin(23 * r + 3.1 * n))
        away = (dx * dx + 1.25 * dy * dy).sqrt()
        inside = size - away
        facing = 0.40 + 0.42 * (0.65 * dx * side + 0.85 * dy) / size
        lit = torch.where(inside > best, facing, lit)
        best = torch.maximum(best, inside)
    best = best + 0.16 * leaves
    crown = (best * scale * 0.8 + 0.5).clamp(0, 1)
    lit = (lit + 1.05 * leaves + 0.25 * (q - 0.6)).clamp(0.02, 1.1)
    wide = 0.030 + 0.03 * torch.exp(-q.clamp_min(0) * 14)
    trunk = wide - (p - 0.02 * torch.sin(q * 7 + 30 * r)).abs()
    fork = torch.maximum(0.014 - (p - (q - 0.30) * 0.55).abs(), 0.014 - (p + (q - 0.34) * 0.6).abs())
    fork = torch.where((q > 0.30) & (q < 0.62), fork, -torch.ones_like(p))
    trunk = torch.where(q < 0.62, torch.maximum(trunk, fork), -torch.ones_like(p))
    trunk = (trunk * scale + 0.5).clamp(0, 1) * (q > -0.02)
    if row.kind == "gold":
        pick = (r * 7 % 1).unsqueeze(1)
        dark = mix(b.colour(0.50, 0.12, 0.05), b.colour(0.60, 0.36, 0.05), pick)
        bright = mix(b.colour(0.93, 0.40, 0.12), b.colour(0.98, 0.76, 0.20), pick)
    else:
        dark, bright = b.colour(0.09, 0.23, 0.07), b.colour(0.38, 0.55, 0.17)
    albedo = mix(dark, bright, (0.45 + 1.0 * leaves + 0.3 * (r - 0.5)).clamp(0, 1))
    bark = 0.40 + 0.5 * (p / 0.04 * side).clamp(-0.7, 0.7)
    albedo = mix(b.colour(0.30, 0.22, 0.16) * torch.ones_like(albedo), albedo, crown)
    return albedo, lit * crown + bark * (1 - crown), torch.maximum(crown, trunk)


def capsule(p, q, ax, ay, bx, by, radius):
    """Signed distance into a rod from a to b, and the offset across it."""
    dx, dy = bx - ax, by - ay
    t = (((p - ax) * dx + (q - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    ex, ey = p - ax - t * dx, q - ay - t * dy
    return radius - (ex * ex + ey * ey).sqrt(), ex / radius


def cactus(b, row, p, q, tall, r, x, y):
    """A column with two arms, ribs along it."""
    s = torch.where(r > 0.5, 1.0, -1.0)
    p = p * s
    parts = (
        (0, 0.0, 0, 0.88, 0.085),
        (0, 0.36 + 0.1 * r, 0.24, 0.36 + 0.1 * r, 0.05),
        (0.24, 0.36 + 0.1 * r, 0.24, 0.66, 0.055),
        (0, 0.26, -0.21, 0.26, 0.045),
        (-0.21, 0.26, -0.21, 0.50 + 0.1 * r, 0.05),
    )
    best, across = torch.full_like(p, -9.0), torch.zeros_like(p)
    for part in parts:
        inside, side = capsule(p, q, *part)
        across = torch.where(inside > best, side, across)
        best = torch.maximum(best, inside)
    scale = b.res * tall
    ribs = torch.sin(across * 9) * (scale / 60).clamp(0, 1)
    lit = (0.5 + 0.5 * across * s * b.towards(x) + 0.16 * ribs).clamp(0.03, 1)
    albedo = b.colour(0.24, 0.42, 0.22) * torch.ones_like(p).unsqueeze(1)
    return albedo, lit, (best * scale + 0.5).clamp(0, 1)
