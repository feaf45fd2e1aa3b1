"""Sky, stars, sun and moon, clouds, and the light that each hour gives."""

import torch

from canvas import mix, smooth, step

BODY_RADIUS = 0.05

# Per hour: zenith, middle, horizon, colour of the air between things, direct light, light from the sky.
HOURS = {
    "sunrise": (
        (0.24, 0.40, 0.74),
        (0.66, 0.66, 0.80),
        (1.00, 0.79, 0.56),
        (0.80, 0.66, 0.66),
        (1.00, 0.74, 0.50),
        (0.36, 0.38, 0.52),
    ),
    "noon": (
        (0.08, 0.33, 0.76),
        (0.28, 0.57, 0.91),
        (0.70, 0.87, 0.97),
        (0.56, 0.73, 0.91),
        (0.86, 0.82, 0.72),
        (0.30, 0.36, 0.46),
    ),
    "sunset": (
        (0.17, 0.12, 0.36),
        (0.66, 0.27, 0.40),
        (1.00, 0.62, 0.22),
        (0.70, 0.34, 0.34),
        (1.00, 0.56, 0.26),
        (0.24, 0.20, 0.34),
    ),
    "night": (
        (0.01, 0.02, 0.09),
        (0.04, 0.08, 0.22),
        (0.13, 0.21, 0.40),
        (0.10, 0.17, 0.34),
        (0.38, 0.44, 0.62),
        (0.10, 0.14, 0.25),
    ),
    "overcast": (
        (0.38, 0.43, 0.51),
        (0.55, 0.60, 0.66),
        (0.80, 0.83, 0.85),
        (0.62, 0.68, 0.74),
        (0.30, 0.30, 0.30),
        (0.50, 0.53, 0.58),
    ),
    "fog": (
        (0.66, 0.70, 0.73),
        (0.76, 0.79, 0.80),
        (0.87, 0.88, 0.87),
        (0.82, 0.84, 0.84),
        (0.26, 0.26, 0.25),
        (0.52, 0.54, 0.56),
    ),
}


class Light:
    """The colours of the hour, as (n, 3, 1, 1)."""

    def __init__(self, b):
        stops = [b.rgb(lambda s, i=i: HOURS[s["time"]][i]) for i in range(6)]
        self.zenith, self.middle, self.horizon, self.air, self.sun, self.sky = stops

    def on(self, albedo, lit, shade=None):
        """Light on a surface: `lit` in [0, 1] of the direct light, `shade` of the sky's."""
        sky = self.sky if shade is None else self.sky * shade.unsqueeze(1)
        return albedo * (sky + self.sun * lit.clamp(0, 1.25).unsqueeze(1))


def clear_sky(b, light, x, y):
    """The sky without clouds, lighter around the sun or moon."""
    t = (y / b.level).clamp(0, 1.2).unsqueeze(1)
    low = smooth((t - 0.45) / 0.6)
    img = mix(mix(light.zenith, light.middle, smooth(t / 0.72)), light.horizon, low)
    dist = ((x - b.bx) ** 2 + (y - b.by) ** 2).sqrt()
    halo = b.body * (0.55 * torch.exp(-dist * 13) + 0.26 * torch.exp(-dist * 4)) * (1 - 0.45 * b.moon)
    warm = (light.sun * 0.75 + 0.25).clamp(0, 1)
    return img + (warm - img * 0.55) * halo.unsqueeze(1), dist


def stars(b, x, y):
    """Stars of two sizes: one in some cells of a lattice. None is smaller than a pixel; it is dimmer then."""
    total = 0.0
    for k, (cells, share, size) in enumerate(((13, 0.45, 0.0038), (34, 0.30, 0.0021))):
        u, v = x * cells + 40 * k, y * cells
        i, j = u.floor(), v.floor()
        on = b.noise2.cell(i, j)
        r1, r2 = b.noise.cell(i, j), b.noise.cell(j + 7, i)
        du, dv = u - i - 0.2 - 0.6 * r1, v - j - 0.2 - 0.6 * r2
        radius = size * (0.5 + 0.8 * r2)
        wide = torch.maximum(radius, 0.55 / b.res)
        disc = ((wide - (du**2 + dv**2).sqrt() / cells) * b.res + 0.5).clamp(0, 1)
        total = total + disc * (on > 1 - share) * (radius / wide) ** 1.4 * (0.5 + 0.5 * r1)
    return total * b.night * (1.15 - y / b.level).clamp(0, 1)


def paint_body(b, light, img, dist, x, y):
    """The disc: a plain sun; a moon with seas."""
    disc = b.cover(BODY_RADIUS - dist) * b.body
    sun = (light.sun * 0.36 + 0.68).clamp(0, 1) * torch.ones_like(img)
    if b.moon.any():
        seas = b.noise.fbm((x - b.bx) * 26 + 5, (y - b.by) * 26 + 5, b.res / 26, gain=0.45)
        face = (0.96 - 0.20 * step(-0.02, 0.24, seas)).unsqueeze(1) * b.colour(1.0, 0.99, 0.93)
        sun = mix(sun, face, b.moon)
    return mix(img, sun, disc)


def clouds(b, light, img, dist, x, y):
    """Streaks high up, and heaps with a lit and a shaded side, flatter towards the horizon."""
    cover = b.num(lambda s: s["clouds"])
    grey = b.num(lambda s: s["time"] in ("overcast", "fog"))
    high = ((b.level - y) / b.level).clamp(0.0, 1.2)
    # Streaks.
    q = b.noise.fbm(x * 1.7 + 0.35 * y + 9, y * 11 + 1.5 * x, b.res / 11, gain=0.58)
    clear = 1 - b.body * torch.exp(-((dist / 0.085) ** 4))
    thin = step(0.10, 0.55, q + 0.22 * b.num(lambda s: s["streaks"])) * 0.55 * (1 - b.night * 0.7) * clear
    bright = (light.horizon * 0.35 + light.sun * 0.5 + 0.2).clamp(0, 1)
    img = mix(img, bright, thin * (high * 4).clamp(0, 1) * (1 - grey))

    # Heaps, on a logarithmic height: they shrink towards the horizon as a real ceiling of clouds does.
    w = 0.16 + 0.9 * high
    pixels = b.res * w / 2.7
    near = (b.body * torch.exp(-((dist / 0.13) ** 2)) * 0.6) if b.body.any() else 0.0

    def density(x, y):
        w = 0.16 + 0.9 * ((b.level - y) / b.level).clamp(0.0, 1.2)
        u, v = (x - 0.5) / w * 1.25 + 3.1, w.log() * 1.9
        return b.noise.fbm(u, v, pixels, gain=0.52)

    d0 = density(x, y)
    d = d0 + 0.52 * cover - 0.36 - near
    reach = 0.022 * w + 0.003
    shadow = density(x + reach * b.towards(x), y - 0.8 * reach) - d0
    lit = (0.62 - 3.2 * shadow - 0.35 * d.clamp(0, 1)).clamp(0, 1)
    alpha = clear * step(0.0, 0.13, d) * (0.94 - 0.2 * b.night) * (high * 9).clamp(0, 1)
    rim = torch.exp(-dist * 5) * b.body * (1 - step(0.0, 0.3, d)) * 0.5
    dark = light.sky * 0.95 + light.horizon * 0.22 + light.middle * 0.10
    full = (light.sun * 0.78 + light.sky * 0.75).clamp(0, 1)
    tone = mix(dark, full, lit) + light.sun * rim.unsqueeze(1)
    plain = mix(light.zenith * 0.86, light.horizon, (lit * 0.8).clamp(0, 1))
    tone = mix(tone, plain, grey)
    return mix(img, tone, alpha * (1 - 0.55 * b.fog))


def paint_sky(b, light, x, y):
    """Everything above the land at world places (x, y): (n, 3, h, w)."""
    if not bool((y < b.level + 0.06).any()):
        return clear_sky(b, light, x, y)[0]
    img, dist = clear_sky(b, light, x, y)
    if b.night.any():
        milky = b.noise2.fbm((x + y) * 3.1, (x - y) * 1.4 + 5, b.res / 3.1, gain=0.55)
        band = torch.exp(-(((x * 0.6 + y - 0.45) / 0.12) ** 2)) * (0.5 + 1.2 * milky).clamp(0, 1)
        img = img + b.colour(0.10, 0.10, 0.17) * (band * b.night * (1.0 - y / b.level).clamp(0, 1)).unsqueeze(
            1
        )
        img = img + stars(b, x, y).unsqueeze(1)
    img = paint_body(b, light, img, dist, x, y)
    return clouds(b, light, img, dist, x, y)
