"""Train the pocket model on procedural scenes and export it as a diffusers folder: one command does it all.

    python train.py --out run --minutes 10                      # everything, on a GPU
    python train.py --out run --minutes 600 --threads 1         # the same, on one core
    python train.py --out run --stages vae --minutes 240        # one stage, or several
    python train.py --out run --stages score                    # sheets, scores and export only

Stages, in order: `vae` (the autoencoder), `unet` (UNet and text encoders on latents encoded once), `score`.
Crops are drawn ahead on a GPU, and between the steps of the autoencoder on a CPU. Every ten minutes a stage
writes OUT/vae.pt or OUT/unet.pt; the same command goes on from there, with the time already spent counted.
OUT gets the layout of the public SDXL model, `samples.png` (48 prompts) and `crops.png` (a 4x canvas).

`scenes.py` draws, `data.py` keeps crops, `nets.py` has the networks, `losses.py` what they are trained on,
`score.py` numbers and sheets, `export.py` the files. Needs torch, diffusers, transformers, numpy, pillow.
"""

import argparse
import math
import os
import random
import time
import warnings

warnings.filterwarnings("ignore")

import numpy as np
import torch
import torch.nn.functional as F

from data import Data, captions_of, flipped_ids
from export import export
from losses import Patches, adaptive_weight, adversary_loss, kl_loss, picture_loss
from muon import optimizers
from nets import Pocket
from score import save_sheet, score_unet, score_vae, sheets


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True, help="folder of the run: model, checkpoints, sheets")
    ap.add_argument("--init", help="exported folder to begin from")
    ap.add_argument("--vae", help="folder of an autoencoder to begin from")
    ap.add_argument(
        "--vae-widths", help="of a new autoencoder (default 32,64,96,128 on a GPU, 16,32,64,96 on a CPU)"
    )
    ap.add_argument("--unet-widths", help="of a new UNet (default 96,128,192)")
    ap.add_argument("--stages", default="vae,unet,score")
    ap.add_argument(
        "--minutes",
        type=float,
        default=10,
        help="for everything, drawing and scores included; CPU time on a CPU",
    )
    ap.add_argument("--vae-share", type=float, default=0.3, help="share of the time for the autoencoder")
    ap.add_argument(
        "--scenes", type=int, default=0, help="crops to draw (default 60000 on a GPU, 16000 on a CPU)"
    )
    ap.add_argument("--cache", help="folder of drawn crops (default OUT/cache)")
    ap.add_argument("--schedule", default="plain", choices=("plain", "zero"), help="zero: zero terminal SNR")
    ap.add_argument(
        "--gan",
        type=float,
        default=2.0,
        help="share of the autoencoder's time after which the adversary joins",
    )
    ap.add_argument("--batch-vae", type=int, default=0, help="64-pixel crops a step")
    ap.add_argument("--batch-unet", type=int, default=0)
    ap.add_argument("--lr-vae", type=float, default=1e-3)
    ap.add_argument("--lr-unet", type=float, default=2e-3)
    ap.add_argument("--guidance", type=float, default=3.0, help="of the contact sheets")
    ap.add_argument("--save-minutes", type=float, default=10, help="wall time between checkpoints")
    ap.add_argument("--score-minutes", type=float, default=15, help="training time between scores and sheets")
    ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--seed", type=int, default=0)
    return ap.parse_args()


class Stage:
    """The loop of one stage: rates, running averages, checkpoints.

    Rates warm up over 100 steps and fall along a cosine to 3% at the end of the stage's minutes. Two running
    averages are kept, a short and a long one; `finish` leaves the one that `judge` finds better in place.
    """

    DECAYS = (0.995, 0.9995)

    def __init__(self, name, args, minutes, params, lr):
        self.name, self.args, self.minutes, self.params, self.lr = name, args, minutes, params, lr
        self.opts = optimizers(params, lr)
        self.averages = [[p.detach().clone() for p in params] for _ in self.DECAYS]
        self.step, self.spent, self.extra = 0, 0.0, {}
        self.path = os.path.join(args.out, f"{name}.pt")
        if os.path.exists(self.path):
            kept = torch.load(self.path, map_location=params[0].device)
            for p, v in zip(params, kept["params"]):
                p.data.copy_(v)
            for opt, state in zip(self.opts, kept["opts"]):
                opt.load_state_dict(state)
            self.averages, self.step, self.spent = kept["averages"], kept["step"], kept["spent"]
            print(f"{name}: from step {self.step}, {self.spent / 60:.0f} minutes", flush=True)

    def clock(self):
        """Seconds spent computing: a CPU that others use more must not cut the training short."""
        if self.params[0].is_cuda:
            return time.time()
        return time.process_time() / torch.get_num_threads()

    def used(self):
        return self.spent + self.clock() - self.begun

    def part(self):
        return self.used() / (60 * self.minutes)

    def swap(self, which):
        """Exchange the weights with a running average."""
        for p, e in zip(self.params, self.averages[which]):
            kept = p.data.clone()
            p.data.copy_(e)
            e.copy_(kept)

    def save(self):
        state = dict(
            params=[p.data for p in self.params],
            opts=[o.state_dict() for o in self.opts],
            averages=self.averages,
            step=self.step,
            spent=self.used(),
        )
        torch.save(state, self.path + ".part")
        os.replace(self.path + ".part", self.path)

    def run(self, loss_of, checkpoint):
        """Step on `loss_of()` -> (loss, number to print) until the time is over; `checkpoint()` now and then."""
        self.begun, marked = self.clock(), time.time()
        scored = self.spent
        shown, first = [], self.step
        while (part := self.part()) < 1:
            for group in (g for opt in self.opts for g in opt.param_groups):
                cosine = 0.5 * (1 + math.cos(math.pi * part))
                group["lr"] = self.lr * min(1, (self.step - first + 1) / 100) * (0.97 * cosine + 0.03)
            loss, number = loss_of(part)
            for opt in self.opts:
                opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            for opt in self.opts:
                opt.step()
            self.step += 1
            shown.append(number.detach())
            with torch.no_grad():
                for decay, average in zip(self.DECAYS, self.averages):
                    d = min(decay, (1 + self.step) / (20 + self.step))
                    torch._foreach_lerp_(average, list(self.params), 1 - d)
            if self.step % 50 == 0:
                last = float(torch.stack(shown[-200:]).mean())
                print(f"{self.name} {self.step} {self.used() / 60:.1f} min {last:.5f}", flush=True)
                shown = shown[-200:]
            if time.time() - marked > 60 * self.args.save_minutes:
                self.save()
                marked = time.time()
            if self.used() - scored > 60 * self.args.score_minutes:
                self.save()
                self.swap(0)
                checkpoint()
                self.swap(0)
                marked, scored = time.time(), self.used()
        self.save()

    def finish(self, judge):
        """Leave the running average with the lower `judge()` in place."""
        errors = []
        for which in range(len(self.averages)):
            self.swap(which)
            errors.append(judge())
            self.swap(which)
        best = int(np.argmin(errors))
        print(f"{self.name}: averages {errors}, kept {self.DECAYS[best]}", flush=True)
        self.swap(best)


def train_vae(model, data, minutes, args):
    """Crops of 64 and 128 pixels in turn; every fourth step asks that a resized latent decode to a resized picture."""
    gpu, vae = model.device == "cuda", model.vae
    params = list(vae.parameters())
    stage = Stage("vae", args, minutes, params, args.lr_vae)
    judge = Patches().to(model.device) if args.gan < 1 else None
    opt = torch.optim.Adam(judge.parameters(), lr=2e-4, betas=(0.5, 0.9)) if judge else None
    n64 = args.batch_vae or (512 if gpu else 8)
    # Growing data while training costs a CPU little; early crops must be enough for variety.
    while len(data) < min(data.wanted, 640):
        data.grow(256 if gpu else 8)

    def loss_of(part):
        if not gpu and stage.step % 6 == 0:
            data.grow()
        turn = stage.step % 4
        x = data.crops(n64, 64) if turn in (0, 2) else data.crops(max(1, n64 // 4), 128)
        with model.amp():
            dist = vae.encode(x).latent_dist
        mean, logvar = dist.mean.float(), dist.logvar.float()
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        if turn == 3:
            side = random.choice((64, 96))
            z = F.interpolate(z, size=side // 8, mode="bilinear", antialias=True)
            x = F.interpolate(x, size=side, mode="bilinear", antialias=True)
        with model.amp():
            y = vae.decode(z).sample
        y = y.float()
        loss, shown = picture_loss(y, x)
        if judge and part > args.gan and turn != 3:
            fooled = -judge(y).mean()
            weight = 0.1 * adaptive_weight(loss, fooled, vae.decoder.conv_out.weight)
            for p in judge.parameters():
                p.requires_grad_(True)
            opt.zero_grad()
            adversary_loss(judge, x, y.detach()).backward()
            opt.step()
            loss = loss + weight * fooled
        return loss + 1e-6 * kl_loss(mean, logvar), shown

    def checkpoint():
        from export import save_half

        save_half(vae, os.path.join(args.out, "vae"))
        _, x, y = score_vae(model, 32)
        pairs = torch.stack([x, y], 1).flatten(0, 1)
        save_sheet(pairs[:32], 8, os.path.join(args.out, "vae.png"), 2)

    stage.run(loss_of, checkpoint)
    stage.finish(lambda: -score_vae(model, 96)[0]["whole"][0])
    some = torch.stack([data.x[i] for i in range(0, len(data), max(1, len(data) // 512))])
    mean, std = model.whiten(some.float() / 127.5 - 1)
    print("whitened: mean", [round(float(v), 3) for v in mean], "std", [round(float(v), 3) for v in std])
    checkpoint()
    os.rename(stage.path, os.path.join(args.out, "vae.done.pt"))  # its weights are before whitening


def latents_of(model, data):
    """Latents of all crops and of their mirror images, in half precision: (2, n, 16, 16, 16)."""
    both, batch = ([], []), 512 if model.device == "cuda" else 16
    for i in range(0, len(data), batch):
        x = torch.stack(data.x[i : i + batch]).to(model.device).float() / 127.5 - 1
        for out, part in zip(both, (x, x.flip(-1))):
            out.append(model.encode(part, batch).half())
    z = torch.stack([torch.cat(v) for v in both])
    print("encoded", len(data), "std", float(z[0, :2000].float().std()), flush=True)
    return z


def train_unet(model, data, minutes, args):
    """v-prediction on latents; times logit-normal, so that neither end takes all; text dropped from 12%."""
    gpu = model.device == "cuda"
    while data.grow(256 if gpu else 8):
        pass
    path = os.path.join(args.out, "latents.pt")
    z = torch.load(path, map_location=model.device) if os.path.exists(path) else latents_of(model, data)
    if not os.path.exists(path) and not gpu:
        torch.save(z, path)
    ids = torch.stack(data.ids[: z.shape[1]])
    n = args.batch_unet or (1024 if gpu else 64)
    words = random.Random(args.seed)
    params = [p for m in (model.unet, model.te, model.te2) for p in m.parameters()]
    stage = Stage("unet", args, minutes, params, args.lr_unet)
    rng = np.random.default_rng(args.seed + stage.step)

    def loss_of(part):
        k, f = rng.integers(0, z.shape[1], n), rng.random(n) < 0.5
        flips = torch.from_numpy(f)
        own = torch.where(flips[:, None], flipped_ids(ids[k]), ids[k]).to(model.device)
        x = z[flips.long(), torch.from_numpy(k)].float()
        t = (torch.sigmoid(torch.randn(n, device=model.device)) * 1000).long().clamp(0, 999)
        keep = (torch.rand(n, device=model.device) > 0.12).float()
        captions = captions_of(words, [data.scenes[i] for i in k], f)
        error = model.v_error(x, captions, own, t, torch.randn_like(x), keep).mean()
        return error, error

    def checkpoint():
        score_unet(model)
        sheets(model, args.out, args.guidance, few=True)
        export(model, args.out)

    stage.run(loss_of, checkpoint)
    stage.finish(lambda: score_unet(model))
    export(model, args.out)


def main():
    args = arguments()
    begun = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed + int(begun))
    os.makedirs(args.out, exist_ok=True)
    stages = args.stages.split(",")
    vae_widths, unet_widths = (
        tuple(map(int, v.split(","))) if v else None for v in (args.vae_widths, args.unet_widths)
    )
    resumed = args.out if os.path.exists(os.path.join(args.out, "vae", "config.json")) else None
    model = Pocket(
        device, args.schedule, resumed or args.init, None if resumed else args.vae, vae_widths, unet_widths
    )
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        model.compile()
    wanted = args.scenes or (60000 if device == "cuda" else 16000)
    data = (
        Data(args.cache or os.path.join(args.out, "cache"), wanted, device, args.seed)
        if stages != ["score"]
        else None
    )
    if device == "cuda" and data:
        while data.grow(256):
            pass
        data.settle()
        print(f"drawn {len(data)} in {time.time() - begun:.0f}s", flush=True)
    # What is left is divided; scores, sheets and the export take about 40 s on a GPU, minutes on a CPU.
    left = args.minutes - (time.time() - begun) / 60 - 0.7 if device == "cuda" else args.minutes * 0.95
    alone = len([s for s in stages if s != "score"]) == 1
    if "vae" in stages:
        train_vae(model, data, args.minutes if alone else left * args.vae_share, args)
    if "unet" in stages:
        train_unet(model, data, args.minutes if alone else left * (1 - args.vae_share), args)
    if "score" in stages:
        score_vae(model)
        score_unet(model)
        sheets(model, args.out, args.guidance)
        export(model, args.out)


if __name__ == "__main__":
    main()
