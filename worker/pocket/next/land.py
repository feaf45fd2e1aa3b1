"""Ranges, hills, dunes and cliffs: outlines against what is behind, relief lit from one side, the near ground."""

import torch

from canvas import Table, mix, smooth, step


class Range:
    """One layer of land: its outline, bare and smoothed, and how far away it is.

    `foot`: the height (in y) it rises from; `rise`: how far its peaks reach above that; `freq`: peaks across
    the picture; `far`: share of the air's colour over it. By the sea, far layers keep to one side of the
    picture, the side where things stand.
    """

    def __init__(self, b, k, shape, foot, rise, freq, far, gap=0.0, coast=0.0):
        self.k, self.shape, self.foot, self.rise, self.freq = k, shape, foot, rise, freq
        self.far = far * (1 - b.fog) + b.fog * min(0.93, 0.30 + 1.6 * far)

        def height(x, most):
            u, row, pixels = x * freq + 5.3 * k, 3.7 * k + 1.1, b.res / freq
            if shape == "alps":
                h = b.noise.line(u, row, pixels, most, 0.50, linear=True)
                return (
                    0.56
                    + 1.5 * b.noise.line(u, row + 20, pixels, min(most, 3), 0.4, ridged=True) * 0.55
                    + 0.62 * h
                )
            if shape == "dunes":
                return 0.55 + 1.25 * b.noise.line(u, row, pixels, min(most, 2), 0.30, ridged=True)
            if shape == "mesa":
                m = (0.55 + 1.3 * b.noise.line(u, row, pixels, min(most, 2), 0.35)).clamp(0, 1) * 3
                m = (m.floor() + smooth((m - m.floor() - 0.40) * 5.5)) / 3
                return m + 0.07 * b.noise.line(u * 5, row + 9, pixels / 5, most, 0.55)
            return 0.55 + 1.1 * b.noise.line(u, row, pixels, min(most, 6), 0.30)

        def top(x, most):
            h = height(x, most)
            if gap:
                h = h * (1 - gap * b.body * torch.exp(-(((x - b.bx) / 0.17) ** 2)))
            y = foot - rise * h
            if coast:
                along = (x - 0.5) * torch.sign(b.tx - 0.5)
                along = along + 0.10 * b.noise.line(x * 4, 31.0 + k, b.res / 4, 4)
                y = y + (1 - step(coast - 0.16, coast + (0.45 if shape == "dunes" else 0.26), along)) * (
                    rise * h + 0.06
                )
            return y

        self.top = Table(b, lambda x: top(x, 11))
        self.soft = Table(b, lambda x: top(x, 3))
        self.b = b

    def below(self, x, y):
        """How far (x, y) is below the outline: negative in the air."""
        return y - self.top.at(x)

    def facing(self, x, e):
        """Slope of the smoothed outline towards the light, about -1 to 1."""
        slope = (self.soft.at(x + e) - self.soft.at(x - e)) / (2 * e)
        return slope * self.b.towards(x)


# ---- surfaces: (colour in white light, share of direct light, share of sky light) -------------


def rock(b, r, x, y, snowy):
    """Faces that alternate between light and shade down from each peak, gullies, snow that lies where it can."""
    d = r.below(x, y)
    f = r.freq
    bend = b.noise2.fbm(x * f * 2.6 + r.k, y * f * 2.0, b.res / f / 2.6, gain=0.55)
    xs = x + bend * (0.11 + d.clamp(0, 0.4)) / f
    face = r.facing(xs, 0.012 * 2.5 / f)

    def relief(x, y):
        return b.noise.fbm(
            x * f * 3.6 + 1.2 * bend, y * f * 2.4 + 3 * r.k, b.res / f / 3.6, gain=0.47, ridged=True
        )

    rough = b.emboss(relief, x, y, 1 / f / 3.6)
    lit = (0.50 + 1.15 * torch.tanh(face * 1.5) * 0.55 + 0.42 * rough).clamp(0, 1)
    lit = lit * lit * (1.6 - 0.6 * lit)
    tone = b.noise2.fbm(x * f * 2 + 40, y * f * 7, b.res / f / 7, most=5)
    brown = b.colour(0.55, 0.49, 0.45) if not snowy else b.colour(0.42, 0.43, 0.48)
    albedo = brown * (1 + 0.5 * tone.unsqueeze(1))
    height = (r.foot - y) / r.rise
    lie = (
        (1.35 if snowy else 0.0)
        + (height - (0.62 if snowy else 0.93)) * 4.0
        + 2.6 * bend
        - 0.8 * rough.clamp(-0.6, 1.0)
    )
    if not snowy:
        grass = step(0.05, 0.35, 0.42 - height + 0.7 * tone + 0.4 * bend)
        albedo = mix(albedo, b.colour(0.33, 0.44, 0.20), grass * 0.85)
    snow = step(-0.15, 0.35, lie)
    albedo = mix(albedo, b.colour(0.96, 0.97, 1.0), snow)
    lit = lit + snow * 0.12
    return albedo, lit, 0.78 + 0.35 * lit


def hill(b, r, x, y, colours, fields):
    """Grass over soft slopes; fields with hedges; shade from the slope and from the lie of the land."""
    d = r.below(x, y)
    f = r.freq

    def lie(x, y):
        return b.noise.fbm(x * f * 2.2, y * f * 5 + 3 * r.k, b.res / f / 5, most=5, gain=0.4)

    lump = b.emboss(lie, x, y, 0.5 / f / 2.2)
    face = r.facing(x + 0.15 * d, 0.02)
    lit = (0.60 + 0.8 * face + 0.9 * lump + 0.25 * torch.exp(-d * 22) - 0.8 * d.clamp(0, 0.25)).clamp(0.05, 1)
    tone = b.noise2.fbm(x * 9 + r.k, y * 22, b.res / 22, gain=0.55)
    light_green, dark_green = (b.colour(*c) for c in colours)
    albedo = mix(dark_green, light_green, (0.55 + 0.9 * tone).clamp(0, 1))
    if fields:
        u = x * 5 + 2.2 * b.noise.fbm(x * 2, y * 5, b.res / 5, most=2) + d * 6
        v = (d + 0.02).clamp_min(1e-3).log() * 1.7 + 0.6 * (x - 0.5)
        pick = b.noise2.cell(u.floor() + 11 * r.k, v.floor() + 30)
        kind = (pick * 5).floor()
        crop = mix(albedo, b.colour(0.80, 0.72, 0.32), ((kind == 1) * 0.75))
        crop = mix(crop, b.colour(0.42, 0.58, 0.22), ((kind == 2) * 0.8))
        crop = mix(crop, b.colour(0.56, 0.42, 0.28), ((kind == 3) * 0.55))
        albedo = mix(albedo, crop, step(0.004, 0.012, d) * 0.9)
        edge = torch.minimum((u - u.round()).abs() / 5, (v - v.round()).abs() * (d + 0.02) * 0.55)
        hedge = b.cover(0.0022 + 0.004 * tone - edge) * step(0.006, 0.02, d)
        albedo = mix(albedo, dark_green * 0.7, hedge)
        lit = lit * (1 - 0.3 * hedge)
    return albedo, lit, 0.85 + 0.3 * lit


def dune(b, r, x, y):
    """A lit and a shaded side that meet at a sharp winding crest, and ripples."""
    d = r.below(x, y)
    f = r.freq
    curve = b.noise2.fbm(x * f * 0.8 + 7 * r.k, y * f * 3.0, b.res / f / 3, most=3, gain=0.35)
    xs = x + 0.55 * d * torch.sign(b.tx - 0.5) + curve * (0.02 + 1.2 * d) / f * 1.3
    face = r.facing(xs, 0.010)
    lit = (0.56 + 0.46 * torch.tanh(face * 9)).clamp(0.05, 1) - 0.4 * d.clamp(0, 0.3)
    w = (y - b.level + 0.05).clamp_min(0.02)
    phase = (w.log() * 46 + (x - 0.5) / w * 2.6 + 9 * curve) * 1.0
    seen = ((w * b.res / 46 / 1.2 - 1.0) / 2.5).clamp(0, 1)
    ripple = torch.sin(phase * 2.2 + 2.2 * torch.sin(phase * 0.31)) * seen
    lit = lit + (0.80 - lit) * step(0.3, 1.3, d / r.rise) * (r.k == 2)
    lit = (lit + 0.11 * ripple * (0.4 + lit)).clamp(0, 1.1)
    tone = b.noise.fbm(x * 6, y * 26, b.res / 26, gain=0.55)
    albedo = b.colour(0.93, 0.73, 0.46) * (1 + 0.16 * tone.unsqueeze(1))
    return albedo, lit, 0.80 + 0.3 * lit


def cliff(b, r, x, y):
    """Strata, upright cracks, talus at the foot of each wall."""
    d = r.below(x, y)
    f = r.freq
    wob = b.noise2.fbm(x * f * 1.6, y * 4 + r.k, b.res / f / 2, gain=0.5)
    bands = b.noise.line((y + 0.012 * wob) * 34 + 3 * r.k, 7.5, b.res / 34, 4, 0.6)
    u = x * f * 9 + 1.1 * wob

    def crack(x, y):
        return b.noise.fbm(x * f * 6 + 2.2 * wob, y * f * 2.6 + r.k, b.res / f / 6, gain=0.52, ridged=True)

    wall = b.emboss(crack, x, y, 1 / f / 6)
    face = torch.tanh(r.facing(x, 0.012) * 0.9)
    broad = b.noise2.fbm(u * 0.22, y * 0.7 + 9 * r.k, b.res / f / 2, most=3)
    lit = (0.55 + 0.30 * face + 0.24 * wall + 0.9 * broad * b.towards(x) + 0.16 * bands).clamp(0.03, 1)
    cap = torch.exp(-d * 120)
    albedo = mix(b.colour(0.62, 0.27, 0.17), b.colour(0.90, 0.56, 0.36), (0.5 + 1.5 * bands).clamp(0, 1))
    albedo = mix(albedo, b.colour(0.93, 0.70, 0.50), cap * 0.5)
    return albedo, lit, 0.78 + 0.3 * lit


# ---- the near ground ---------------------------------------------------------------------------


def ground(b, light, kind, x, y):
    """Flat ground in perspective below the last range: (albedo, lit, sky share)."""
    w = (y - b.level + 0.04).clamp_min(0.02)
    u, v = (x - 0.5) / w, w.log() * 2.6
    pixels = b.res * w / 2.6
    patch = b.noise.fbm(u * 0.8 + 3, v * 0.8, pixels / 0.8, most=4, gain=0.5)

    def rough(x, y):
        w = (y - b.level + 0.04).clamp_min(0.02)
        return b.noise2.fbm((x - 0.5) / w * 3, w.log() * 7.8, pixels / 3, gain=0.55)

    bump = b.emboss(rough, x, y, 0.4 * w / 8)
    fine = rough(x, y)
    if kind == "snow":
        lit = (0.66 + 0.9 * patch + 0.55 * bump).clamp(0.1, 1)
        return b.colour(0.95, 0.96, 1.0) * torch.ones_like(x).unsqueeze(1), lit, 0.9 + 0.15 * lit
    if kind == "sand":
        phase = v * 9 + 2.4 * patch + u * 0.7
        wave = torch.sin(phase * 2 + 1.6 * torch.sin(u * 1.3 + 5 * patch)) * ((pixels / 18 - 0.35) * 2).clamp(
            0, 1
        )
        lit = (0.70 + 0.35 * patch + 0.22 * bump + (0.0 if b.water else 0.12) * wave).clamp(0.1, 1.05)
        return b.colour(0.91, 0.75, 0.51) * (1 + 0.15 * patch.unsqueeze(1)), lit, 0.9 + 0.1 * lit
    if kind == "red":
        lit = (0.60 + 0.5 * patch + 0.9 * bump).clamp(0.05, 1)
        albedo = mix(b.colour(0.72, 0.36, 0.22), b.colour(0.90, 0.58, 0.38), (0.5 + fine + patch).clamp(0, 1))
        return albedo, lit, 0.8 + 0.2 * lit
    # Grass in tufts whose size grows towards the viewer.
    blade = b.noise.fbm(u * 9, v * 10, pixels / 10, gain=0.62)
    lit = (0.64 + 0.5 * patch + 0.40 * bump + 0.55 * blade).clamp(0.05, 1.1)
    dry = kind == "leaves"
    a, c = ((0.32, 0.20, 0.10), (0.72, 0.42, 0.16)) if dry else ((0.17, 0.34, 0.10), (0.46, 0.62, 0.20))
    if kind == "moss":
        a, c = (0.10, 0.22, 0.09), (0.27, 0.40, 0.15)
    albedo = mix(b.colour(*a), b.colour(*c), (0.5 + 0.8 * patch + 0.8 * blade).clamp(0, 1))
    if kind == "grass":
        albedo = flowers(b, albedo, u, v, pixels)
    path = b.num(lambda s: s["path"])
    if path.any() and not b.water:
        bend = 0.35 * torch.sin(v * 0.9 + 6 * b.tx) + 0.55 * torch.sign(0.5 - b.tx) * (w - 0.1)
        away = 0.16 + 0.05 * blade + 0.10 * patch - (u - bend).abs()
        path = path * (away * w * b.res + 0.5).clamp(0, 1)
        albedo = mix(albedo, b.colour(0.72, 0.58, 0.40) * (1 + 0.5 * fine.unsqueeze(1)), path)
        lit = mix(lit.unsqueeze(1), (0.75 + 0.5 * bump).clamp(0, 1).unsqueeze(1), path)[:, 0]
    return albedo, lit, 0.8 + 0.2 * lit


def flowers(b, albedo, u, v, pixels):
    """Dots of one colour a scene, in drifts."""
    drift = b.noise2.fbm(u * 0.5 + 20, v * 0.9, pixels / 0.9, most=3)
    p, q = u * 11, v * 8
    i, j = p.floor(), q.floor()
    on = b.noise2.cell(i, j)
    r1, r2 = b.noise.cell(i, j), b.noise.cell(j + 5, i + 9)
    away = ((p - i - 0.25 - 0.5 * r1) ** 2 + ((q - j - 0.25 - 0.5 * r2) * 1.3) ** 2).sqrt()
    dot = ((0.22 - away) * pixels / 9 + 0.5).clamp(0, 1) * (pixels / 14).clamp(0, 1)
    hue = b.rgb(lambda s: s["flower"])
    return mix(albedo, hue, dot * (on < 0.25 + 1.1 * drift))
