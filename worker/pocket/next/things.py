"""A few things people build: each has a place (`tx`, the side away from the sun or moon) and a size."""

import torch

from canvas import mix, step

WARM = (1.0, 0.80, 0.38)  # a lit window


def glow(b, img, x, y, cx, cy, size, strength):
    """Light around a lamp, at night and in poor light."""
    dark = b.num(
        lambda s: {"night": 1.0, "sunset": 0.5, "fog": 0.45, "overcast": 0.25, "sunrise": 0.25}.get(
            s["time"], 0.0
        )
    )
    dist = ((x - cx) ** 2 + (y - cy) ** 2).sqrt()
    halo = (torch.exp(-dist / size) * strength * dark).unsqueeze(1)
    return img + (b.colour(*WARM) - img * 0.4) * halo


def grain(b, x, y):
    """The fine unevenness of walls, wood and cloth: it shows in large pictures."""
    return b.noise.fbm(x * 55, y * 90, b.res / 90, gain=0.6)


def on(b, img, light, albedo, lit, mask):
    """Paint a lit surface where the mask is."""
    lit = lit * (1 + 0.30 * b.grain)
    return mix(img, light.on(albedo * torch.ones_like(img), lit, 0.6 + 0.4 * lit), mask)


def box(b, x, y, x0, y0, x1, y1):
    """Cover of an upright rectangle with sharp edges: y0 above y1."""
    return b.cover(torch.minimum(x - x0, x1 - x)) * b.cover(torch.minimum(y - y0, y1 - y))


def lighthouse(b, light, img, x, y, base):
    """A tapered white tower with red bands, a gallery, a lamp room and a cap; its beam at night."""
    h, cx = 0.25, b.tx
    b.grain = grain(b, x, y)
    p, q = (x - cx) / h, (base - y) / h
    side = b.towards(x)
    rough = b.noise.fbm(x * 34, y * 40, b.res / 40, gain=0.55)
    reef = 0.155 * (0.30 - q).clamp_min(0.01) ** 0.5 / 0.55 - p.abs() * 0.62 + 0.05 * rough
    reef = b.cover(torch.minimum(reef, 0.055 + 0.10 * rough - q) * h)
    slab = b.emboss(lambda x, y: b.noise.fbm(x * 34, y * 40, b.res / 40, gain=0.55), x, y, 1 / 40)
    img = on(
        b, img, light, b.colour(0.40, 0.36, 0.33), (0.45 + 1.2 * p * side + 0.6 * slab).clamp(0.03, 1), reef
    )
    half = 0.105 - 0.045 * q
    round_ = (p / half.clamp_min(0.02)).clamp(-1, 1)
    lit = (0.52 + 0.48 * round_ * side).clamp(0.05, 1)
    tower = b.cover((half - p.abs()) * h) * b.cover((0.76 - q) * h) * (q > -0.08)
    m = q * 5.2 % 2
    edge = torch.minimum((m - 1).abs(), torch.minimum(m, 2 - m)) / 5.2 * h
    band = b.cover(torch.where(m > 1, edge, -edge)).unsqueeze(1)
    white, red = b.colour(0.95, 0.94, 0.90), b.colour(0.78, 0.16, 0.12)
    img = on(b, img, light, mix(white, red, band), lit, tower)
    for q0 in (0.20, 0.47):  # small windows
        hole = box(b, p * h, q * h, -0.014 * h, q0 * h, 0.014 * h, (q0 + 0.05) * h)
        img = mix(img, b.colour(0.12, 0.12, 0.16), hole * 0.9)
    gallery = b.cover((0.092 - p.abs()) * h) * b.cover((0.018 - (q - 0.765).abs()) * h)
    img = on(b, img, light, b.colour(0.20, 0.21, 0.24), lit, gallery)
    lamp = b.cover((0.047 - p.abs()) * h) * b.cover((0.05 - (q - 0.83).abs()) * h)
    img = mix(img, b.colour(1.0, 0.90, 0.58), lamp)
    cap = b.cover((0.065 * (1 - (q - 0.88) / 0.11) - p.abs()) * h) * (q > 0.88) * b.cover((0.99 - q) * h)
    img = on(b, img, light, red, lit, cap)
    if b.night.any() or b.fog.any():
        dx, dy = x - cx, y - (base - 0.83 * h)
        away = torch.sign(0.5 - b.tx)
        along = dx * away
        wide = 0.012 + 0.13 * along.clamp_min(0)
        beam = (1 - ((dy + 0.06 * along) / wide).abs()).clamp(0, 1) ** 0.7 * torch.exp(
            -along.clamp_min(0) * 4.2
        )
        beam = beam * (along > 0) * (0.55 * b.night + 0.25 * b.fog)
        img = mix(img, b.colour(1.0, 0.93, 0.68), beam * (1 - tower) * (1 - cap))
    return glow(b, img, x, y, cx, base - 0.83 * h, 0.035, 0.85)


def cottage(b, light, img, x, y, base):
    """A gable house with a lit window, a door, a chimney and its smoke."""
    h, cx = 0.105, b.tx
    b.grain = grain(b, x, y)
    p, q = (x - cx) / h, (base - y) / h
    side = b.towards(x)
    snowy = b.land == "snowy mountains"
    front = (0.80 - 0.12 * side * torch.sign(0.5 - b.tx)).clamp(0.05, 1)
    wall = b.cover((0.62 - p.abs()) * h) * b.cover((0.50 - q) * h) * (q > -0.15)
    planks = (q * 11 % 1 < 0.18) * (b.res * h / 40).clamp(0, 1)
    img = on(b, img, light, b.colour(0.80, 0.70, 0.56), front - 0.25 * planks, wall)
    # A roof of two colours: its long side in view, slightly overhanging.
    roof = (
        b.cover((0.76 - 0.42 * (q - 0.44) / 0.5 - p.abs()) * h)
        * b.cover((0.92 - q) * h)
        * b.cover((q - 0.44) * h)
    )
    tiles = ((q * 16 + 0.4 * (p * 9).floor()) % 1 < 0.22) * (b.res * h / 50).clamp(0, 1)
    cover = b.colour(0.93, 0.95, 1.0) if snowy else b.colour(0.55, 0.22, 0.16)
    img = on(b, img, light, cover, (0.62 + 0.28 * p * side).clamp(0, 1) - 0.2 * tiles, roof)
    stack = box(b, p * h, -q * h, 0.26 * h, -1.12 * h, 0.42 * h, -0.80 * h)
    img = on(b, img, light, b.colour(0.50, 0.34, 0.28), (0.5 + 0.4 * side).clamp(0, 1), stack)
    door = box(b, p * h, -q * h, 0.16 * h, -0.36 * h, 0.36 * h, 0.1 * h)
    img = on(b, img, light, b.colour(0.32, 0.20, 0.13), front * 0.8, door)
    frame = box(b, p * h, -q * h, -0.44 * h, -0.39 * h, -0.06 * h, -0.12 * h)
    img = on(b, img, light, b.colour(0.93, 0.90, 0.84), front, frame)
    pane = box(b, p * h, -q * h, -0.41 * h, -0.365 * h, -0.09 * h, -0.145 * h)
    bars = torch.maximum(b.cover((0.013 - (p + 0.25).abs()) * h), b.cover((0.013 - (q - 0.255).abs()) * h))
    img = mix(
        img,
        b.colour(*WARM) * (1.05 - 0.25 * b.num(lambda s: s["time"] == "noon").unsqueeze(1)),
        pane * (1 - 0.8 * bars),
    )
    rise = (q - 1.12).clamp_min(0)
    drift = p - 0.34 - 0.35 * rise * torch.sign(b.tx - 0.5) - 0.16 * torch.sin(rise * 4 + b.lx * 9) * rise
    puff = b.noise.fbm(p * 3, q * 3 - 4, b.res * h / 3, gain=0.55)
    smoke = (
        (1 - (drift / (0.06 + 0.16 * rise)).abs() + 0.9 * puff).clamp(0, 1)
        * torch.exp(-rise * 1.3)
        * (q > 1.10)
    )
    img = mix(img, (light.air * 0.6 + 0.34).clamp(0, 1), smoke * (0.55 - 0.3 * b.night))
    return glow(b, img, x, y, cx - 0.25 * h, base - 0.25 * h, 0.030, 0.75)


def bridge(b, light, img, x, y, shore):
    """A stone bridge on round arches across the water, a parapet on top."""
    deck, period = shore - 0.085, 0.24
    b.grain = grain(b, x, y)
    across = (x - b.tx) / period + 0.5
    p = (across - across.floor() - 0.5) * period
    arch = torch.minimum(0.098 - p.abs(), 0.098 - (p * p + ((y - shore) * 1.35) ** 2).sqrt())
    body = b.cover(y - deck) * (y < shore + 0.02)
    hole = b.cover(arch)
    stones = b.noise2.fbm(x * 60, (y * 70).floor() * 3.7, b.res / 70, most=4, gain=0.6)
    row = ((y * 70) % 1 < 0.2) * (b.res / 700).clamp(0, 1)
    rim = b.cover(0.012 - (arch + 0.006).abs()) * (1 - hole)
    lit = (0.55 + 0.20 * b.towards(x) * torch.sign(0.5 - b.tx) + 0.7 * stones + 0.14 * rim - 0.3 * row).clamp(
        0.05, 1
    )
    img = on(b, img, light, b.colour(0.66, 0.59, 0.51), lit, body * (1 - hole))
    rail = b.cover(0.006 - (y - deck + 0.004).abs())
    img = on(b, img, light, b.colour(0.76, 0.70, 0.61), lit + 0.15, rail)
    post = ((x / period * 6) % 1 - 0.5).abs() < 0.16
    posts = post * b.cover(torch.minimum(deck - y, y - deck + 0.017))
    return on(b, img, light, b.colour(0.70, 0.63, 0.54), lit, posts)


def sail(b, light, img, x, y, shore):
    """A boat with two sails on the water, and its mirror image."""
    h, cx, line = 0.19, b.tx, shore + 0.06
    wave = b.noise2.fbm(x * 9, y * 60, b.res / 60, most=4) * 0.02
    under = y > line
    yy = torch.where(under, 2 * line - y, y)
    xx = x + torch.where(under, wave, torch.zeros_like(x))
    p, q = (xx - cx) / h, (line - yy) / h
    b.grain = grain(b, xx, yy)
    before = img
    side = b.towards(x)
    hull = b.cover((0.30 + 0.35 * q - 0.06 * q - p.abs()) * h) * b.cover((0.115 - q) * h)
    img = on(b, img, light, b.colour(0.45, 0.20, 0.12), 0.55 + 0.3 * side * p / 0.3, hull)
    stripe = b.cover((0.012 - (q - 0.10).abs()) * h) * b.cover((0.335 - p.abs()) * h)
    img = on(b, img, light, b.colour(0.95, 0.93, 0.88), torch.ones_like(x), stripe)
    mast = b.cover((0.010 - (p + 0.02).abs()) * h) * b.cover((1.0 - q) * h) * (q > 0.1)
    img = on(b, img, light, b.colour(0.35, 0.24, 0.16), torch.ones_like(x), mast)
    main_ = torch.minimum(torch.minimum(p - 0.0, q - 0.16), 0.36 * (0.97 - q) / 0.81 + 0.02 - p)
    curve = 0.05 * torch.sin((q - 0.16).clamp(0, 0.8) * 3.8)
    jib = torch.minimum(torch.minimum(-0.04 - p, q - 0.18), p + 0.29 * (0.86 - q) / 0.70 + curve)
    for shape, colour, tone in ((main_, (0.97, 0.95, 0.90), 0.85), (jib, (0.93, 0.86, 0.78), 0.68)):
        seam = ((q * 9) % 1 < 0.07) * (b.res * h / 90).clamp(0, 1)
        lit = (tone + 0.5 * p * side - 0.12 * seam).clamp(0.1, 1)
        img = on(b, img, light, b.colour(*colour), lit, b.cover(shape * h))
    return torch.where(under.unsqueeze(1), before + (img - before) * 0.62, img)
