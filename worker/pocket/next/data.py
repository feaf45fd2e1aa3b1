"""Drawn crops, kept as bytes in memory and in files, and held-out ones that training never sees."""

import functools
import glob
import json
import os
import random

import numpy as np
import torch

from scenes import LANDS, WATERS, caption, draw, mirrored

NATIVE = 128
# Side of the whole picture as a multiple of the native side, and how often. Half are whole pictures.
SIZES, WEIGHTS = (1, 1.5, 2, 3, 4, 8, 16, 32), (0.50, 0.03, 0.15, 0.05, 0.13, 0.08, 0.04, 0.02)
CHUNK = 512  # crops in a file


class Data:
    """Crops (n, 3, 128, 128) as bytes, their scenes and time ids. `grow` draws more, up to `wanted`."""

    def __init__(self, folder, wanted, device, seed=0):
        os.makedirs(folder, exist_ok=True)
        self.folder, self.wanted, self.device, self.seed = folder, wanted, device, seed
        self.x, self.ids, self.scenes, self.fresh, self.all = [], [], [], 0, None
        self.files = sorted(f for f in glob.glob(os.path.join(folder, "*.npz")) if ".part" not in f)
        for f in self.files:
            part = np.load(f)
            self._take(
                torch.from_numpy(part["x"]),
                torch.from_numpy(part["ids"]),
                [json.loads(str(s)) for s in part["scenes"]],
            )
        self.rng = np.random.default_rng(seed + len(self.scenes))
        # Batches visit every land and water in turn, sizes and the rest at random.
        self.turn = len(self.scenes) // 8
        print("crops on disk:", len(self.scenes), flush=True)

    def __len__(self):
        return len(self.scenes)

    def _take(self, x, ids, scenes):
        self.x += list(x)
        self.ids += list(ids.float())
        self.scenes += scenes

    def grow(self, n=8):
        """Draw `n` crops of one land and water; every CHUNK of them goes into a file."""
        if len(self) >= self.wanted:
            return False
        rng = random.Random(f"{self.seed} {self.turn}")
        kinds = len(LANDS) * len(WATERS)
        # A stride coprime to the count of kinds spreads them evenly over any stretch of the data.
        kind = self.turn * 8 % kinds
        land, water = LANDS[kind % len(LANDS)], WATERS[kind // len(LANDS)]
        side = int(NATIVE * rng.choices(SIZES, WEIGHTS)[0])
        x, scenes, ids = draw(rng, n, NATIVE, side, self.device, land, water)
        self.turn += 1
        self._take((x * 255 + 0.5).byte().cpu(), ids, scenes)
        self.fresh += n
        if self.fresh >= CHUNK or len(self) >= self.wanted:
            self._save()
        return True

    def _save(self):
        path = os.path.join(self.folder, f"{len(self.files):04}.npz")
        part = slice(len(self) - self.fresh, None)
        np.savez(
            path + ".part.npz",
            x=torch.stack(self.x[part]).numpy(),
            ids=torch.stack(self.ids[part]).long().numpy(),
            scenes=np.array([json.dumps(s) for s in self.scenes[part]]),
        )
        os.rename(path + ".part.npz", path)
        self.files.append(path)
        self.fresh = 0

    def settle(self):
        """Keep all crops in one tensor on the device, once nothing more is drawn."""
        self.all = torch.stack(self.x).to(self.device)

    def crops(self, n, side):
        """`n` random square parts of random crops, in [-1, 1], half of them mirrored."""
        if self.all is not None:
            draws = (self.rng.integers(0, len(self), n), *self.rng.integers(0, NATIVE - side + 1, (2, n)))
            k, t, l = (torch.from_numpy(v).to(self.device).view(-1, 1, 1, 1) for v in draws)
            span, channel = torch.arange(side, device=self.device), torch.arange(3, device=self.device)
            x = self.all[k, channel.view(3, 1, 1), t + span.view(-1, 1), l + span]
            x = torch.cat([x[: n // 2], x[n // 2 :].flip(-1)])
            return x.contiguous(memory_format=torch.channels_last).float() / 127.5 - 1
        out = []
        for k in self.rng.integers(0, len(self), n):
            t, l = self.rng.integers(0, NATIVE - side + 1, 2)
            part = self.x[k][:, t : t + side, l : l + side]
            out.append(part.flip(-1) if self.rng.random() < 0.5 else part)
        return torch.stack(out).to(self.device).float() / 127.5 - 1


def flipped_ids(ids):
    """Time ids of the mirror image: (height, width, top, left, height, width)."""
    ids = ids.clone()
    ids[..., 3] = ids[..., 1] - NATIVE - ids[..., 3]
    return ids


def captions_of(rng, scenes, flips):
    """Captions; the side word is swapped where the picture is mirrored."""
    return [caption(rng, mirrored(s) if f else s) for s, f in zip(scenes, flips)]


@functools.lru_cache
def held_out(device, n=96, multiples=(1, 4)):
    """Scenes that training never sees, in equal parts crops of pictures of these multiples of the side."""
    rng = random.Random(987654321)
    x, scenes, ids = [], [], []
    for m in multiples:
        for part in range(0, n // len(multiples), 8):
            kind = (part // 8 * 5 + m) % 21
            a, s, i = draw(rng, 8, NATIVE, NATIVE * m, device, LANDS[kind % 7], WATERS[kind // 7])
            x.append(a * 2 - 1)
            scenes += s
            ids.append(i)
    return torch.cat(x), [caption(rng, s) for s in scenes], torch.cat(ids).float().to(device), scenes
