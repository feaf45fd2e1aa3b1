"""Procedural landscapes with captions: an endless training set that belongs to nobody.

A scene is a handful of attributes (land, water, hour, sun or moon, a thing) and a seed. `render` evaluates
it as a function of world coordinates (x to the right, y down, the picture is the unit square), so a crop of
a large picture is drawn directly, without drawing the picture, with detail down to its own pixels. The
painters are in `canvas.py` (noise, light), `sky.py`, `land.py`, `trees.py`, `things.py`.

What makes the pictures learnable by a small model: the sun or moon is there at most once, at a height that
follows from the hour and a side that the caption says (unsaid is the middle); things that people built stand
on the other side; light comes from where the sun is.

    python scenes.py                    # writes sheet.png: one scene of each land and hour
    python scenes.py --zoom 16          # the same scene at 1, 4 and 16 times the side, at 1:1
"""

import argparse
import random

import torch

from canvas import Canvas, Table, mix, patch, step
from land import Range, cliff, dune, ground, hill, rock
from sky import Light, paint_sky
from things import bridge, cottage, lighthouse, sail
from trees import Row, plant

TIMES = ("sunrise", "noon", "sunset", "night", "overcast", "fog")
LANDS = (
    "mountains",
    "snowy mountains",
    "desert dunes",
    "green hills",
    "forest",
    "autumn forest",
    "red canyon",
)
WATERS = ("", "a lake", "the sea")
THINGS = {
    "": ("",),
    "a lake": ("", "a sailing boat", "a cottage", "a stone bridge"),
    "the sea": ("", "a sailing boat", "a lighthouse"),
}
LAND_WORDS = {
    "mountains": ("rocky mountains", "mountain peaks"),
    "snowy mountains": ("snow covered mountains", "snowy peaks"),
    "desert dunes": ("sand dunes", "a desert"),
    "green hills": ("rolling green hills", "green meadows"),
    "forest": ("a pine forest", "woods"),
    "autumn forest": ("an autumn forest", "trees in autumn"),
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
THING_WORDS = {
    "a sailing boat": ("a sailing boat", "a sailboat"),
    "a cottage": ("a cottage with a lit window", "a cottage", "a small house"),
    "a lighthouse": ("a lighthouse",),
    "a stone bridge": ("a stone bridge", "a bridge"),
}
BODY_WORDS = {"a sun": ("a sun", "the sun"), "a moon": ("a moon", "the moon", "a full moon")}
PREFIXES = ("", "", "a photo of ", "a painting of ", "a landscape of ", "a wide view of ")
# Where the sun or moon stands: centre and half-width of its place, in x. An unsaid side is the middle.
SIDES = {" on the left": (0.23, 0.04), " on the right": (0.77, 0.04), " in the middle": (0.5, 0.05)}
SWAPPED = {" on the left": " on the right", " on the right": " on the left"}
# How high, in y: centre and half-width.
HEIGHTS = {"sunrise": (0.29, 0.03), "noon": (0.13, 0.02), "sunset": (0.31, 0.03), "night": (0.16, 0.03)}
LENS = 0.14  # share of each neighbour in a pixel
FLOWERS = ((0.95, 0.86, 0.25), (0.93, 0.30, 0.30), (0.96, 0.95, 0.98), (0.66, 0.42, 0.86))


def sample_scene(rng, land=None, water=None, time=None, body=None, thing=None):
    """Draw the attributes of one scene from `rng` (a `random.Random`); what is given is kept."""
    time = time or rng.choice(TIMES)
    if body is None:
        body = ""
        if time in HEIGHTS and rng.random() < 0.66:
            body = "a moon" if time == "night" else "a sun"
    side = rng.choice(tuple(SIDES))
    (x, dx), (y, dy) = SIDES[side], HEIGHTS.get(time, (0.2, 0.03))
    bx = x + rng.uniform(-dx, dx)
    left = bx < 0.5 if body else rng.random() < 0.5
    water = rng.choice(WATERS) if water is None else water
    land = land or rng.choice(LANDS)
    if thing is None:
        options = THINGS[water]
        if water == "" and land in ("mountains", "snowy mountains", "green hills", "forest", "autumn forest"):
            options = ("", "", "a cottage")
        if land in ("desert dunes", "red canyon"):
            options = tuple(o for o in options if o != "a cottage")
        thing = rng.choice(options)
    return dict(
        time=time,
        land=land,
        water=water,
        body=body,
        side=side if body else "",
        said=side != " in the middle" or rng.random() < 0.4,
        thing=thing,
        bx=bx,
        by=y + rng.uniform(-dy, dy),
        lx=bx if body else (-0.25 if left else 1.25),
        tx=(0.72 if left else 0.28) + rng.uniform(-0.04, 0.04),
        horizon=rng.uniform(0.48, 0.56),
        clouds=rng.uniform(0.75, 1.1) if time in ("overcast", "fog") else rng.uniform(0.0, 0.85),
        streaks=rng.uniform(-1, 1),
        flower=rng.choice(FLOWERS),
        path=rng.random() < 0.5,
        mirror=rng.random() < 0.5,
        seed=rng.randrange(1 << 30),
    )


def mirrored(scene):
    """The scene whose picture is the mirror image. Time ids: left becomes width - crop - left."""
    return dict(scene, mirror=not scene["mirror"])


def caption(rng, scene):
    """Say what a scene shows. Wording varies with `rng`; the scene alone decides what is true."""

    def first(words):
        return words[0] if rng.random() < 0.6 else rng.choice(words)

    land = first((scene["land"],) + LAND_WORDS[scene["land"]])
    if land in ("forest", "autumn forest") and rng.random() < 0.3:
        land = "a " + land if land == "forest" else "an " + land
    water = rng.choice(WATER_WORDS[scene["water"]])
    thing = ""
    if scene["thing"]:
        name = first(THING_WORDS[scene["thing"]])
        thing = (" and " if " with" in water else " with ") + name if rng.random() < 0.5 else ", " + name
    body = ""
    if scene["body"]:
        side = scene["side"] if scene["said"] else ""
        side = SWAPPED.get(side, side) if scene["mirror"] else side
        body = ", " + first(BODY_WORDS[scene["body"]]) + side
    sky = ""
    if scene["time"] in HEIGHTS and rng.random() < 0.3:
        sky = ", clear sky" if scene["clouds"] < 0.25 else ", clouds" if scene["clouds"] > 0.5 else ""
    tail = [body, sky] if rng.random() < 0.7 else [sky, body]
    late = thing if thing.startswith(",") else ""
    return (
        rng.choice(PREFIXES)
        + land
        + water
        + (thing if not late else "")
        + " "
        + first(TIME_WORDS[scene["time"]])
        + late
        + "".join(tail)
    )


# ---- composition --------------------------------------------------------------------------------


def layers(b):
    """The ranges of a land from far to near: (range, surface of (x, y), rows of trees on it)."""
    h, sea = b.level, b.water == "the sea"
    coast = lambda c: c if sea else 0.0

    def R(k, shape, lower, *a, **more):
        # By the sea land stands on the horizon, and what is near stands higher above it.
        return Range(b, k, shape, h + (0.012 + 0.1 * lower if sea else lower), *a, **more)

    firs = lambda k, cells, share, tall, r, kind="fir": Row(k, cells, share, tall, r.top.at, kind)
    if b.land in ("mountains", "snowy mountains"):
        snowy = b.land == "snowy mountains"
        kind = "snow fir" if snowy else "fir"
        r0 = R(0, "alps", 0.03, 0.20, 2.6, 0.40, gap=0.5, coast=coast(-0.20))
        r1 = R(1, "alps", 0.06, 0.34, 1.7, 0.12, gap=0.66, coast=coast(-0.02))
        r2 = R(2, "hills", 0.085, 0.05, 2.6, 0.05, coast=coast(0.10))
        greens = (
            ((0.90, 0.93, 1.0), (0.72, 0.78, 0.90)) if snowy else ((0.36, 0.47, 0.20), (0.16, 0.28, 0.12))
        )
        trees = [firs(0, 30, 0.8, 0.065, r2, kind), firs(1, 17, 0.55, 0.085, r2, kind)]
        return [
            (r0, lambda x, y: rock(b, r0, x, y, snowy), []),
            (r1, lambda x, y: rock(b, r1, x, y, snowy), []),
            (r2, lambda x, y: hill(b, r2, x, y, greens, False), trees),
        ]
    if b.land == "desert dunes":
        r0 = R(0, "dunes", 0.03, 0.07 if sea else 0.10, 2.2, 0.30, gap=0.4, coast=coast(-0.15))
        r1 = R(1, "dunes", 0.06, 0.08 if sea else 0.15, 1.5, 0.12, gap=0.5, coast=coast(-0.02))
        r2 = R(2, "dunes", 0.09, 0.045 if sea else 0.07, 1.9, 0.04, coast=coast(0.12))
        return [(r, lambda x, y, r=r: dune(b, r, x, y), []) for r in (r0, r1, r2)]
    if b.land == "red canyon":
        r0 = R(0, "mesa", 0.03, 0.19, 2.3, 0.34, gap=0.5, coast=coast(-0.20))
        r1 = R(1, "mesa", 0.06, 0.30, 1.5, 0.10, gap=0.6, coast=coast(0.0))
        r2 = R(2, "mesa", 0.085, 0.05, 2.0, 0.04, coast=coast(0.12))
        return [(r, lambda x, y, r=r: cliff(b, r, x, y), []) for r in (r0, r1, r2)]
    green = ((0.47, 0.66, 0.22), (0.21, 0.42, 0.13))
    if b.land == "green hills":
        r0 = R(0, "hills", 0.02, 0.14, 2.4, 0.34, gap=0.4, coast=coast(-0.20))
        r1 = R(1, "hills", 0.05, 0.16, 1.7, 0.10, gap=0.4, coast=coast(-0.02))
        r2 = R(2, "hills", 0.09, 0.09, 1.5, 0.03, coast=coast(0.10))
        trees = [
            Row(1, 15, 0.45, 0.060, r2.top.at, "leaf"),
            Row(2, 9, 0.40, 0.10, r2.top.at, "leaf", sink=0.014),
        ]
        return [
            (
                r0,
                lambda x, y: hill(b, r0, x, y, ((0.36, 0.52, 0.24), (0.18, 0.36, 0.18)), False),
                [Row(0, 46, 0.5, 0.022, r0.top.at, "leaf")],
            ),
            (r1, lambda x, y: hill(b, r1, x, y, green, True), [Row(3, 30, 0.35, 0.036, r1.top.at, "leaf")]),
            (r2, lambda x, y: hill(b, r2, x, y, green, True), trees),
        ]
    gold = b.land == "autumn forest"
    kind = "gold" if gold else "fir"
    far, mid = (
        (((0.50, 0.33, 0.12), (0.36, 0.18, 0.08)), ((0.46, 0.30, 0.12), (0.30, 0.16, 0.07)))
        if gold
        else (((0.16, 0.34, 0.18), (0.08, 0.20, 0.12)), ((0.15, 0.30, 0.14), (0.07, 0.18, 0.09)))
    )
    r0 = R(0, "hills", 0.02, 0.19, 2.0, 0.36, gap=0.5, coast=coast(-0.20))
    r1 = R(1, "hills", 0.05, 0.10, 2.1, 0.12, gap=0.4, coast=coast(-0.04))
    r2 = R(2, "hills", 0.09, 0.05, 1.8, 0.03, coast=coast(0.08))
    return [
        (r0, lambda x, y: hill(b, r0, x, y, far, False), [Row(0, 52, 0.9, 0.045, r0.top.at, kind)]),
        (r1, lambda x, y: hill(b, r1, x, y, mid, False), [Row(1, 30, 0.9, 0.085, r1.top.at, kind)]),
        (
            r2,
            lambda x, y: hill(b, r2, x, y, mid, False),
            [Row(2, 19, 0.85, 0.13, r2.top.at, kind), Row(3, 13, 0.7, 0.16, r2.top.at, kind, sink=0.02)],
        ),
    ]


NEAR = {  # the near ground, and the trees at the sides of the picture
    "mountains": ("grass", "fir", 7, 0.26),
    "snowy mountains": ("snow", "snow fir", 7, 0.26),
    "desert dunes": ("sand", "cactus", 6, 0.17),
    "green hills": ("grass", "leaf", 4, 0.34),
    "forest": ("moss", "fir", 7, 0.40),
    "autumn forest": ("leaves", "gold", 5, 0.38),
    "red canyon": ("red", "cactus", 6, 0.17),
}


def background(b, light, x, y, shore):
    """Sky, ranges, trees and things at world places, which may be mirrored ones."""
    img = torch.zeros_like(x).unsqueeze(1) + light.horizon
    img = patch(img, y < b.level + 0.12, x, y, lambda img, x, y: paint_sky(b, light, x, y))
    for k, (r, surface, rows) in enumerate(layers(b)):

        def paint(img, x, y):
            below = r.below(x, y)
            deep = (below / (r.rise + 0.08)).clamp(0, 1) * 0.5
            colour = mix(light.on(*surface(x, y)), light.air, (r.far * (0.75 + deep)).clamp(0, 1))
            return mix(img, colour, b.cover(below * 0.8))

        # What the nearer ground hides is not drawn.
        seen = (r.below(x, y) > -2 / b.res) & (y < r.foot + (0.06 if k < 2 else 9))
        img = patch(img, seen, x, y, paint)
        for row in rows:
            row.dry = shore - 0.004 if b.water else None
            img = plant(b, light, img, row, x, y, r.far * 0.8)
        if k == 2:
            at = foot(b, r, shore)
            for name, build, place, tall in (
                ("a cottage", cottage, at, 0.30),
                ("a lighthouse", lighthouse, at, 0.36),
                ("a stone bridge", bridge, shore, 0.12),
            ):
                here = b.num(lambda s: s["thing"] == name)
                if here.any():
                    band = (here > 0) & (y > place - tall) & (y < place + 0.08)
                    img = patch(
                        img, band, x, y, lambda img, x, y: mix(img, build(b, light, img, x, y, place), here)
                    )
    return img


def foot(b, r, shore):
    """Where a thing stands: on the nearest range, not under water."""
    at = r.soft.at(b.tx) + 0.018
    return torch.minimum(at, shore - 0.004) if b.water else at


def waves(b, x, y, w):
    """Height of the water's surface, larger towards the viewer."""
    sea = b.water == "the sea"
    near = w + 0.035
    u, v = (x - 0.5) / near, near.log()
    return b.noise2.fbm(u * (2.6 if sea else 1.8), v * (19 if sea else 14), b.res * near / 19, gain=0.56)


def paint_water(b, light, img, x, y, shore):
    """Tint of the water over what it mirrors: deep and dark below the viewer, light on wave tops, the sun's path."""
    sea, w = b.water == "the sea", (y - shore).clamp_min(0)
    wave = waves(b, x, y, w)
    deep = b.colour(0.02, 0.20, 0.27) if sea else b.colour(0.03, 0.17, 0.20)
    body = deep * (light.sky * 1.3 + light.sun * 0.35)
    steep = b.emboss(lambda x, y: waves(b, x, y, (y - shore).clamp_min(0)), x, y, 0.05 * (w + 0.03))
    view = (0.16 + (1.9 if sea else 1.1) * w + 1.1 * (wave.clamp(-0.3, 0.3) if sea else 0.5 * wave)).clamp(
        0.06, 0.80
    )
    water = mix(img, body, view)
    water = water * (1 + 0.55 * steep.clamp(-0.5, 0.6)).unsqueeze(1)
    path = torch.exp(-(((x - b.bx) / (0.035 + 0.22 * w)) ** 2)) * step(0.02, 0.22, wave + 0.10) * b.body
    path = (
        path
        * (1 - 1.6 * w).clamp(0, 1)
        * (0.85 - 0.30 * b.moon)
        * b.num(lambda s: s["time"] != "noon").clamp(0.35, 1)
    )
    water = mix(water, (light.sun * 0.75 + 0.25).clamp(0, 1), path)
    if sea:  # crests break near the beach
        foam = (
            step(0.20, 0.36, wave + 0.15 * (w - 0.16)) * step(0.04, 0.22, w) * (0.4 + 2 * steep).clamp(0, 1)
        )
        water = mix(water, light.on(b.colour(0.92, 0.95, 0.97), torch.full_like(x, 0.75)), foam * 0.75)
    return water


def render_group(scenes, res, top, left, px, device):
    """`render` for scenes of one land and one water."""
    b = Canvas(scenes, res, top, left, px, device)
    light = Light(b)
    sea, x, y = b.water == "the sea", b.x, b.y
    shore = b.level + (0.004 if sea else 0.095)
    if b.water:
        w = (y - shore).clamp_min(0)
        wave = waves(b, x, y, w)
        wet = y > shore
        shake = wave * ((0.10 if sea else 0.035) * (w + 0.05))
        ym = torch.where(wet, (shore - w * (0.95 if sea else 0.9) - shake.abs() * 0.6 + shake), y)
        xm = torch.where(wet, x + 0.6 * shake, x)
        img = background(b, light, xm, ym, shore)
        wet = y > shore - 2 / b.res
        img = patch(
            img,
            wet,
            x,
            y,
            lambda img, x, y: mix(img, paint_water(b, light, img, x, y, shore), b.cover(y - shore)),
        )
        thing = b.num(lambda s: s["thing"] == "a sailing boat")
        if thing.any():
            band = (thing > 0) & (y > shore - 0.15) & (y < shore + 0.27)
            img = patch(img, band, x, y, lambda img, x, y: mix(img, sail(b, light, img, x, y, shore), thing))
    else:
        img = background(b, light, x, y, shore)
    # The near ground.
    kind, trees, cells, tall = NEAR[b.land]
    if sea and kind in ("grass", "moss", "leaves"):
        kind = "sand"
    line = (0.865 if sea else 0.845) if b.water else b.level + 0.115
    bend = 0.05 if b.water else 0.03
    edge = Table(b, lambda x: line + bend * b.noise2.line(x * 2.1, 50.0, b.res / 2.1, 5, 0.42) + 0 * x)

    def near_ground(img, x, y):
        below = y - edge.at(x)
        if sea:
            swash = torch.exp(-(((below + 0.006) / 0.006) ** 2)) * (
                0.5 + 1.5 * waves(b, x, y, y - shore)
            ).clamp(0, 1)
            img = mix(img, light.on(b.colour(0.94, 0.96, 0.97), torch.full_like(x, 0.8)), swash)
        near = light.on(*ground(b, light, kind, x, y))
        if sea:
            near = near * (0.72 + 0.28 * step(0.0, 0.05, below)).unsqueeze(1)
        far = torch.exp(-below.clamp_min(0) * 9) * (0.0 if b.water else 0.10) + b.fog * 0.30 * (1.15 - y)
        return mix(img, mix(near, light.air, far.clamp(0, 1)), b.cover(below))

    img = patch(img, y > edge.at(x) - 0.02, x, y, near_ground)
    share = 0.0 if sea and trees != "cactus" else 0.62
    if share:
        base = lambda cx: (edge.at(cx) + 0.05).clamp_min(0.93)
        row = Row(9, cells, share, tall, base, trees, edge=0.27)
        img = plant(b, light, img, row, x, y, b.fog * 0.16)
    return img.clamp(0, 1)


def render(scenes, res, top, left, px, device="cpu"):
    """Draw `px`-sided crops at (top, left) of `res`-sided pictures: (n, 3, px, px) in [0, 1].

    Painters sample points. A small blur then stands for the lens: without it a picture has more energy near
    Nyquist than any photograph.
    """
    out = torch.empty(len(scenes), 3, px + 2, px + 2, device=device)
    top, left = [t - 1 for t in top], [v - 1 for v in left]
    groups = {}
    for i, s in enumerate(scenes):
        groups.setdefault((s["land"], s["water"]), []).append(i)
    for of in groups.values():
        take = lambda v: [v[i] for i in of]
        out[of] = render_group(take(scenes), take(res), take(top), take(left), px + 2, device)
    out = LENS * (out[..., 2:, :] + out[..., :-2, :]) + (1 - 2 * LENS) * out[..., 1:-1, :]
    return LENS * (out[..., 2:] + out[..., :-2]) + (1 - 2 * LENS) * out[..., 1:-1]


def draw(rng, n, px, res, device="cpu", land=None, water=None):
    """Draw `n` random crops of pictures of side `res`: (images in [0, 1], scenes, time ids).

    One land and one water a call keep a batch together, which is faster.
    """
    scenes = [sample_scene(rng, land, water) for _ in range(n)]
    top = [rng.randint(0, (res - px) // 8) * 8 for _ in scenes]
    left = [rng.randint(0, (res - px) // 8) * 8 for _ in scenes]
    ids = torch.tensor([[res, res, t, l, res, res] for t, l in zip(top, left)])
    return render(scenes, [res] * n, top, left, px, device), scenes, ids


def main():
    from PIL import Image

    ap = argparse.ArgumentParser()
    ap.add_argument("--side", type=int, default=128)
    ap.add_argument("--seed", type=int, default=3)
    ap.add_argument("--land", default="")
    ap.add_argument("--out", default="sheet.png")
    args = ap.parse_args()
    torch.set_num_threads(1)
    rng, side, rows = random.Random(args.seed), args.side, []
    for k, land in enumerate([args.land] * 4 if args.land else LANDS):
        scenes = [sample_scene(rng, land, WATERS[(k + j) % 3], t) for j, t in enumerate(TIMES)]
        rows.append(render(scenes, [side] * 6, [0] * 6, [0] * 6, side))
        for s in scenes:
            print(caption(rng, s))
    img = torch.cat(rows)
    sheet = (
        img.view(len(rows), 6, 3, side, side).permute(0, 3, 1, 4, 2).reshape(len(rows) * side, 6 * side, 3)
    )
    Image.fromarray((sheet * 255 + 0.5).byte().numpy()).save(args.out)


if __name__ == "__main__":
    main()
