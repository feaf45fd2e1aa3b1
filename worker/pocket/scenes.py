"""Procedural landscapes with captions: an endless training set that belongs to nobody.

A scene is a handful of attributes (land, water, hour, sun or moon, clouds) and
a seed. `render` evaluates it as a function of world coordinates (x to the
right, y down, the picture is the unit square), so a crop of a large picture is
drawn directly, without drawing the picture, and a larger picture has more
detail: the fractal outlines get one octave more for each doubling.

Two choices make the pictures learnable by a very small model:

- shapes are crisp and flat, layered from far to near behind haze, rather than
  covered in pixel noise, which no autoencoder of this size can store;
- the place of the sun or moon follows from the caption (its side) and the hour
  (its height) up to a small jitter. With the crop's coordinates a model can
  therefore tell whether a crop contains it, and does not draw one per crop.

`python scenes.py` writes `scenes.png`, a sheet of examples.
"""

import math
import random

import torch
import torch.nn.functional as F

TIMES = ("sunrise", "noon", "sunset", "night", "overcast", "fog")
LANDS = ("mountains", "snowy mountains", "desert dunes", "green hills", "forest", "red canyon")
WATERS = ("", "a lake", "the sea")
LAYERS = 5

# Per hour: zenith, horizon, haze, colour of the light, how much of it.
SKY = {
    "sunrise": ((0.42, 0.55, 0.82), (1.00, 0.80, 0.66), (0.93, 0.74, 0.70), (1.00, 0.82, 0.70), 0.80),
    "noon": ((0.16, 0.44, 0.88), (0.72, 0.88, 0.98), (0.66, 0.80, 0.94), (1.00, 0.99, 0.94), 1.00),
    "sunset": ((0.30, 0.16, 0.42), (1.00, 0.52, 0.20), (0.86, 0.42, 0.30), (1.00, 0.64, 0.44), 0.66),
    "night": ((0.02, 0.04, 0.14), (0.12, 0.18, 0.36), (0.11, 0.17, 0.33), (0.50, 0.62, 0.96), 0.46),
    "overcast": ((0.48, 0.53, 0.60), (0.76, 0.79, 0.82), (0.68, 0.72, 0.76), (0.86, 0.88, 0.92), 0.78),
    "fog": ((0.76, 0.79, 0.81), (0.88, 0.89, 0.89), (0.86, 0.87, 0.88), (0.92, 0.93, 0.94), 0.86),
}
# Per land: lit colour, shaded colour, height of the outline, its base frequency.
GROUND = {
    "mountains": ((0.56, 0.50, 0.48), (0.27, 0.27, 0.33), 0.34, 2.6),
    "snowy mountains": ((0.46, 0.48, 0.54), (0.24, 0.28, 0.38), 0.38, 2.6),
    "desert dunes": ((0.97, 0.79, 0.48), (0.72, 0.47, 0.25), 0.17, 1.6),
    "green hills": ((0.55, 0.78, 0.26), (0.20, 0.50, 0.18), 0.17, 1.7),
    "forest": ((0.20, 0.50, 0.22), (0.07, 0.27, 0.14), 0.16, 1.8),
    "red canyon": ((0.90, 0.46, 0.25), (0.56, 0.21, 0.15), 0.27, 2.4),
}
LAND_WORDS = {
    "mountains": ("rocky mountains", "mountain peaks"),
    "snowy mountains": ("snow covered mountains", "snowy peaks"),
    "desert dunes": ("sand dunes", "a desert"),
    "green hills": ("rolling green hills", "green meadows"),
    "forest": ("a pine forest", "woods"),
    "red canyon": ("a red rock canyon", "red cliffs"),
}
TIME_WORDS = {
    "sunrise": ("at sunrise", "at dawn", "in the early morning"),
    "noon": ("at noon under a blue sky", "at midday", "on a sunny day"),
    "sunset": ("at sunset", "at dusk", "in the evening"),
    "night": ("at night under the stars", "at night", "at midnight"),
    "overcast": ("under a cloudy sky", "under grey clouds", "on an overcast day"),
    "fog": ("in thick fog", "in the mist", "on a foggy day"),
}
WATER_WORDS = {
    "": ("",),
    "a lake": (" with a lake", " beside a lake", " and a calm lake"),
    "the sea": (" by the sea", " and the ocean", " on the coast"),
}
PREFIXES = ("", "", "a photo of ", "a painting of ", "a landscape of ", "a wide view of ")
# Where the sun or moon stands: centre and half-width of its place, in x. An unsaid side is the middle right.
SIDES = {
    "": (0.62, 0.05),
    " on the left": (0.25, 0.05),
    " on the right": (0.80, 0.05),
    " in the middle": (0.48, 0.04),
}
# How high, in y: centre and half-width.
HEIGHTS = {"sunrise": (0.22, 0.03), "noon": (0.14, 0.03), "sunset": (0.23, 0.03), "night": (0.17, 0.03)}
BODY_RADIUS = 0.055


def sample_scene(rng):
    """Draw the attributes of one scene from `rng` (a `random.Random`)."""
    time = rng.choice(TIMES)
    body = ""
    if time in ("sunrise", "noon", "sunset") and rng.random() < 0.6:
        body = "a sun"
    if time == "night" and rng.random() < 0.7:
        body = "a moon"
    side = rng.choice(("", "", "", " on the left", " on the right", " in the middle"))
    (x, dx), (y, dy) = SIDES[side], HEIGHTS.get(time, (0.2, 0.03))
    return dict(
        time=time,
        land=rng.choice(LANDS),
        water=rng.choice(WATERS),
        body=body,
        side=side if body else "",
        bx=x + rng.uniform(-dx, dx),
        by=y + rng.uniform(-dy, dy),
        horizon=rng.uniform(0.47, 0.57),
        clouds=rng.uniform(0.6, 1.0) if time in ("overcast", "fog") else rng.uniform(0.0, 0.8),
        seed=rng.randrange(1 << 30),
    )


def caption(rng, scene):
    """Say what a scene shows. Wording varies with `rng`; the scene alone decides what is true."""

    def first(words):
        return words[0] if rng.random() < 0.6 else rng.choice(words)

    land = first((scene["land"],) + LAND_WORDS[scene["land"]])
    body = ""
    if scene["body"]:
        names = {"a sun": ("a sun", "the sun"), "a moon": ("a moon", "the moon", "a full moon")}[
            scene["body"]
        ]
        body = ", " + first(names) + scene["side"]
    sky = ""
    if scene["time"] not in ("overcast", "fog") and rng.random() < 0.3:
        sky = ", clear sky" if scene["clouds"] < 0.25 else ", clouds" if scene["clouds"] > 0.5 else ""
    tail = [body, sky] if rng.random() < 0.7 else [sky, body]
    return (
        rng.choice(PREFIXES)
        + land
        + rng.choice(WATER_WORDS[scene["water"]])
        + " "
        + first(TIME_WORDS[scene["time"]])
        + "".join(tail)
    )


def smooth(x):
    return x * x * (3 - 2 * x)


class Noise:
    """Value noise for a batch: scene i has its own wrapping lattice, drawn from its seed."""

    def __init__(self, seeds, device, size=64):
        self.size = size
        lattices = [torch.rand(1, size, size, generator=torch.Generator().manual_seed(s)) for s in seeds]
        self.lattice = F.pad(torch.stack(lattices), (0, 1, 0, 1), mode="circular").to(device)

    def at(self, x, y, linear=False):
        """Noise in [0, 1] at lattice coordinates (n, h, w); `linear` leaves creases at the lattice lines."""
        xf, yf = x.floor(), y.floor()
        ease = (lambda v: v) if linear else smooth
        x = xf.remainder(self.size) + ease(x - xf)
        y = yf.remainder(self.size) + ease(y - yf)
        grid = torch.stack([x, y], -1) / self.size * 2 - 1
        return F.grid_sample(self.lattice, grid, mode="bilinear", align_corners=True, padding_mode="border")[
            :, 0
        ]

    def fbm(self, x, y, octaves, gain=0.5, linear=False):
        """A sum of `octaves` of noise, each at twice the frequency and `gain` times the height."""
        total, amp, norm = torch.zeros_like(x), 1.0, 0.0
        for o in range(octaves):
            total += amp * self.at(x * 2**o + 17.3 * o, y * 2**o + 9.1 * o, linear)
            norm += amp
            amp *= gain
        return total / norm


class Batch:
    """Scenes, and the part of each that is drawn, as tensors that broadcast over (n, h, w) or (n, 3, h, w)."""

    def __init__(self, scenes, res, top, left, px, device):
        self.scenes, self.n, self.device = scenes, len(scenes), device
        self.noise = Noise([s["seed"] for s in scenes], device)
        self.noise2 = Noise([s["seed"] ^ 0x5BD1E995 for s in scenes], device)
        index = torch.arange(px, device=device) + 0.5
        top, left, self.res = (
            torch.tensor(v, device=device).float().view(-1, 1, 1) for v in (top, left, res)
        )
        shape = (self.n, px, px)
        self.y = ((top + index.view(1, px, 1)) / self.res).expand(shape).contiguous()
        self.x = ((left + index.view(1, 1, px)) / self.res).expand(shape).contiguous()
        self.row = self.x[:, :1].contiguous()
        self.octaves = max(0, int(math.log2(max(res) / 128)))
        self.edge = self.res * 1.6  # outlines are one pixel sharp at every size

        hour = [self.rgb(lambda s, i=i: SKY[s["time"]][i]) for i in range(4)]
        self.zenith, self.horizon, self.haze, self.light = hour
        self.amount = self.num(lambda s: SKY[s["time"]][4]).unsqueeze(1)
        self.level = self.num(lambda s: s["horizon"])
        self.bx, self.by = self.num(lambda s: s["bx"]), self.num(lambda s: s["by"])
        self.body, self.moon = self.num(lambda s: s["body"] != ""), self.num(lambda s: s["body"] == "a moon")
        self.night, self.fog = (
            self.num(lambda s: s["time"] == "night"),
            self.num(lambda s: s["time"] == "fog"),
        )
        self.water, self.sea = (
            self.num(lambda s: s["water"] != ""),
            self.num(lambda s: s["water"] == "the sea"),
        )
        self.rocks, self.snowy = self.land("mountains", "snowy mountains"), self.land("snowy mountains")
        self.dunes, self.canyon = self.land("desert dunes"), self.land("red canyon")
        self.hills, self.forest = self.land("green hills"), self.land("forest")
        self.lit, self.shaded = (self.rgb(lambda s, i=i: GROUND[s["land"]][i]) for i in range(2))
        self.tall, self.freq = (self.num(lambda s, i=i: GROUND[s["land"]][i]) for i in (2, 3))

    def num(self, f):
        return torch.tensor([float(f(s)) for s in self.scenes], device=self.device).view(-1, 1, 1)

    def rgb(self, f):
        return torch.tensor([f(s) for s in self.scenes], device=self.device).float().view(-1, 3, 1, 1)

    def colour(self, *rgb):
        return torch.tensor(rgb, device=self.device).view(1, 3, 1, 1)

    def land(self, *names):
        return self.num(lambda s: s["land"] in names)


def mix(a, b, m):
    """Blend colours: `a` where m is 0, `b` where it is 1."""
    m = m.unsqueeze(1) if m.dim() == 3 else m
    return a + (b - a) * m


def read(table, at):
    """Values of a table (n, 1, w) over x in [-0.3, 1.3] at the places `at` (n, h, w)."""
    spot = torch.stack([(at + 0.3) / 1.6 * 2 - 1, torch.zeros_like(at)], -1)
    found = F.grid_sample(
        table.unsqueeze(1), spot, mode="bilinear", align_corners=True, padding_mode="border"
    )
    return found[:, 0]


def clear_sky(b, y, x):
    """Colour of the sky at (x, y), lighter around the sun or moon, and the distance from it."""
    t = (y / b.level).clamp(0, 1)
    base = mix(b.zenith, b.horizon, smooth(t) * 0.5 + 0.5 * t**1.5)
    dist = ((x - b.bx) ** 2 + (y - b.by) ** 2).sqrt()
    halo = b.body * (0.42 * torch.exp(-dist * 9) + 0.16 * torch.exp(-dist * 2.6)) * (1 - 0.35 * b.moon)
    return base + (b.light - base * 0.6) * halo.unsqueeze(1), dist


def stars(b):
    """One in some cells of a lattice, jittered; half a pixel wide at native size, so they show when enlarged."""
    u, v = b.x * 30, b.y * 30
    on = b.noise2.at(u.floor(), v.floor())
    du, dv = u - u.floor() - 0.3 - 0.4 * (on * 37 % 1), v - v.floor() - 0.3 - 0.4 * (on * 91 % 1)
    disc = torch.sigmoid((0.09 - (du**2 + dv**2).sqrt()) * b.res / 30 * 2.5)
    return 0.9 * disc * ((on - 0.78) * 5).clamp(0, 1) * b.night * (1.1 - b.y / b.level).clamp(0, 1)


def paint_sky(b):
    """Sky, stars, clouds, then the sun or moon in front of the clouds, which keep away from it."""
    img, dist = clear_sky(b, b.y, b.x)
    img = img + stars(b).unsqueeze(1)
    cover = b.num(lambda s: s["clouds"])
    depth = 0.45 + 1.3 * (b.y / b.level).clamp(0, 1)  # streaks, thicker towards the horizon
    c = b.noise.fbm(b.x * 3.2 / depth.clamp(0.5, 1.4) + 3, b.y * 9 * depth, 4 + b.octaves, 0.45)
    puff = ((c - (0.66 - 0.24 * cover)) * 7).clamp(0, 1) * (0.35 + 0.5 * cover)
    puff = puff * (1 - 0.85 * b.body * torch.exp(-((dist / 0.11) ** 2)))
    cloud = (b.horizon * 0.45 + b.light * 0.55) * (0.62 + 0.38 * (1 - b.night.unsqueeze(1)))
    under = (0.80 + 0.28 * ((c - 0.5) * 4).clamp(-0.5, 0.5)).unsqueeze(1)
    img = mix(img, (cloud * under * 1.12).clamp(0, 1), puff)
    sun = (b.light * 0.25 + 0.75).clamp(0, 1) * torch.ones_like(img)
    disc = torch.sigmoid((BODY_RADIUS - dist) * b.res * 1.2)
    return mix(img, mix(sun, b.colour(0.93, 0.94, 0.88), b.moon), b.body * disc)


def outline(b, k, x, octaves):
    """Height above its foot of layer `k` (0 is the farthest) along x of (n, 1, w): bare ground, and trees on it.

    `octaves` is added to those of a native picture; a negative number leaves the large shapes alone.
    """
    row = torch.full_like(x, 3.7 * k + 1.1)
    u = x * b.freq * (1 + 0.28 * k) + 5.3 * k
    jagged = b.noise.fbm(u, row, max(2, 5 + octaves), 0.42, linear=True)
    jagged = (jagged - 0.5) * 1.5 + 0.5
    soft = b.noise.fbm(u, row, max(2, 3 + octaves), 0.32)
    crest = 1 - (2 * b.noise.fbm(u * 0.8, row, 2, 0.25) - 1).abs()  # smooth slopes, sharp crests
    mesa = b.noise.fbm(u * 1.1, row, max(1, 2 + octaves), 0.3) * 4.2
    mesa = (mesa.floor() + smooth(((mesa - mesa.floor()) * 3.2 - 1.1).clamp(0, 1))) / 4.2
    ground = b.rocks * jagged + b.dunes * crest + b.canyon * mesa + (b.hills + b.forest) * soft
    # A forest is a comb of triangles with tiered edges; hills have a few round bushes instead.
    cells = x * (46 - 7 * k) * (0.9 + 0.2 * b.rocks) + 3.1 * k
    place = cells - cells.floor() - 0.5
    height = b.noise2.at(cells.floor(), row + 0.5)
    tier = (1 - 2.1 * place.abs()).clamp(0, 1) * 5
    tier = (tier.floor() + (tier - tier.floor()) ** 2) / 5
    bush = (1 - (2.6 * place) ** 2).clamp(0, 1).sqrt()
    trees = b.forest * tier * (0.35 + 0.9 * height) * 1.6 + b.hills * bush * (height > 0.66) * 0.55
    return ground, trees * (0.030 + 0.017 * k)


def ground_colour(b, k, below, rise, tex):
    """Colour of layer `k` at the depth `below` its outline, in white light."""
    f = k / (LAYERS - 1)
    side = torch.where(b.bx > 0.5, 1.0, -1.0)  # where the light comes from
    # Which way a face looks: the slope of the bare outline, read along a line that winds down from the crest.
    table = torch.linspace(-0.3, 1.3, 641, device=b.device).view(1, 1, -1).expand(b.n, 1, -1).contiguous()
    height, _ = outline(b, k, table, -3)
    slope = F.pad(height[..., 8:] - height[..., :-8], (4, 4), mode="replicate") * rise
    wind = 0.10 * (b.noise2.at(below * 14 + 7 * k, torch.full_like(below, 0.5 + k), linear=True) - 0.5)
    face = read(slope, b.x + wind + below * 0.15 * side)
    sharp = 260 * b.rocks + 240 * b.dunes + 60 * b.hills + 40 * b.forest + 50 * b.canyon
    lit, green = torch.sigmoid(face * -side * sharp), b.hills + b.forest
    lit = lit * (1 - 0.55 * green) + green * 0.55 * torch.exp(-below * 14)
    lit = (lit + (tex - 0.5) * (0.45 + 0.5 * b.forest + 0.3 * b.canyon)).clamp(0, 1)
    bands = b.canyon * (b.noise.at(b.y * 26 + 0.6 * tex + 2 * k, torch.full_like(tex, 7.5)) - 0.5) * 0.6
    sand = b.dunes * 0.06 * ((b.res - 128) / 256).clamp(0, 1) * torch.sin(b.y * 420 + tex * 22)
    base = mix(b.shaded, b.lit, lit) * (1 + (bands + sand).unsqueeze(1))
    patches = b.noise2.at(b.x * 13 + 3 * k, b.y * 3, linear=True)
    depth = (0.055 + 0.11 * (patches - 0.3) + 0.06 * (tex - 0.5)) * (1.5 - 0.5 * f)
    snow = mix(b.colour(0.68, 0.78, 0.98), torch.ones_like(base) * 1.18, lit)
    return mix(base, snow, b.snowy * torch.sigmoid((depth - below) * 130))


def paint_layer(b, k, tex):
    """Layer `k` behind its haze: (colour, cover, outline without trees)."""
    f = k / (LAYERS - 1)
    ground, trees = outline(b, k, b.row, b.octaves)
    foot = b.level + 0.035 + 0.30 * f * f + 0.05 * f
    rise = b.tall * (1 - 0.62 * f)
    if k >= 2:  # in front of the water: lower, and lower still by the sea
        foot = foot + b.water * (0.10 + 0.03 * k) + b.sea * (0.07 + 0.07 * f)
        rise = rise * (1 - 0.55 * b.water)
    bare = foot - rise * ground
    below = (b.y - bare + trees).clamp(0, 1)
    colour = ground_colour(b, k, below, rise, tex) * b.light * b.amount * (1.04 - 0.25 * f)
    far = (1 - f) ** 1.4 * 0.62 * (1 - b.fog) + b.fog * (0.93 - 0.50 * f) + 0.04
    colour = mix(colour, b.haze, far)
    colour = mix(colour, b.haze, (below * (1 - f) * 1.6).clamp(0, 0.45))  # mist in the valleys
    return colour, torch.sigmoid((b.y - bare + trees) * b.edge), bare


def paint_water(b, shore, behind):
    """Water from `shore` down: sky and the layers `behind` mirrored, ripples, and the light's path."""
    wy = (b.y - shore).clamp(0, 1)
    ripple = b.noise2.fbm(b.x * 5 / (wy * 5 + 0.25), 14 * (wy + 0.03).log(), 3 + b.octaves, 0.55)
    water, _ = clear_sky(b, (b.level - wy * 0.9).clamp(0, 1), b.bx + 10)
    for colour, bare in behind:
        inside = torch.sigmoid((2 * shore - bare - b.y + (ripple - 0.5) * 0.02) * b.res * 0.7)
        water = mix(water, colour.mean((2, 3), keepdim=True) * 0.9, inside * (1 - 0.5 * b.sea) * 0.8)
    water = water * (0.84 + 0.32 * (ripple - 0.5)).unsqueeze(1) + b.colour(0.0, 0.03, 0.05) * b.amount
    path = torch.exp(-(((b.x - b.bx) / (0.035 + 0.20 * wy)) ** 2)) * ((ripple - 0.45) * 8).clamp(0, 1)
    path = path * (1 - 2.2 * wy).clamp(0, 1) * b.body * (0.65 - 0.25 * b.moon)
    return mix(mix(water, b.light * torch.ones_like(water), path), b.haze, 0.12 + 0.55 * b.fog)


def render(scenes, res, top, left, px, device="cpu"):
    """Draw `px`-sided crops at (top, left) of `res`-sided pictures: (n, 3, px, px) in [0, 1]."""
    b = Batch(scenes, res, top, left, px, device)
    img, shore, behind = paint_sky(b), b.level + 0.045, []
    tex = b.noise2.fbm(b.x * 10, b.y * 20, 3 + b.octaves, 0.55)
    for k in range(LAYERS):
        colour, cover, bare = paint_layer(b, k, tex)
        img = mix(img, colour, cover)
        if k < 2:
            behind.append((colour, bare))
        if k == 1:
            water = paint_water(b, shore, behind)
            img = mix(img, water, b.water * torch.sigmoid((b.y - shore) * b.edge))
    return img.clamp(0, 1)


def draw(rng, n, px, res, device="cpu"):
    """Draw `n` random crops of pictures of side `res`: (images in [0, 1], scenes, time ids)."""
    scenes = [sample_scene(rng) for _ in range(n)]
    top = [rng.randint(0, (res - px) // 8) * 8 for _ in scenes]
    left = [rng.randint(0, (res - px) // 8) * 8 for _ in scenes]
    ids = torch.tensor([[res, res, t, l, res, res] for t, l in zip(top, left)])
    return render(scenes, [res] * n, top, left, px, device), scenes, ids


if __name__ == "__main__":
    from PIL import Image

    rng, side = random.Random(3), 256
    img, scenes, _ = draw(rng, 24, side, side)
    for scene in scenes:
        print(caption(rng, scene))
    sheet = img.view(4, 6, 3, side, side).permute(0, 3, 1, 4, 2).reshape(4 * side, 6 * side, 3)
    Image.fromarray((sheet * 255).byte().numpy()).save("scenes.png")
