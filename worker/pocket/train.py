"""Train the pocket model on procedural scenes and export it as a diffusers folder.

    python train.py --out run                 # everything, from nothing
    python train.py --out run2 --init run --cache run/cache --stages unet --minutes 60
    python train.py --out run3 --init run --stages ""   # samples, scores and export only

Stages, in order; `--minutes` gives the wall time of each that is trained:

- `draw`: draw `--scenes` crops and keep them in OUT/cache (skipped when they are there);
- `vae`: the autoencoder on 64-pixel crops of them, all of it;
- `decoder`: its decoder alone, on whole crops, behind the encoder as it is;
- `unet`: UNet and both text encoders, on latents encoded once.

Runs on CUDA when there is one, else on a CPU; reads nothing but `scenes.py` and the
vocabulary in `tokenizer/`. OUT gets the layout of the public SDXL model in half
precision, and contact sheets: `samples.png` (24 prompts at native size) and
`crops.png` (crops of a canvas of four times the side, with their time ids).
Needs torch, diffusers, transformers, numpy and pillow.
"""

import argparse
import glob
import json
import math
import os
import random
import time
import warnings

warnings.filterwarnings("ignore")

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from scenes import LANDS, caption, draw

HERE = os.path.dirname(os.path.abspath(__file__))
# Side of the whole picture as a multiple of the native side, and how often.
SIZES, WEIGHTS = (1, 1.5, 2, 3, 4, 8), (0.46, 0.04, 0.22, 0.04, 0.18, 0.06)
CHUNK = 400  # crops in a file of the cache
SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    steps_offset=1,
)


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True, help="folder to write the model into")
    ap.add_argument("--init", help="exported folder to continue from")
    ap.add_argument("--stages", default="draw,vae,decoder,unet")
    ap.add_argument("--minutes", default="30,10,60", help="of the trained stages among --stages, in order")
    ap.add_argument("--native", type=int, default=128, help="native side in image pixels")
    ap.add_argument("--scenes", type=int, default=8000, help="crops to draw")
    ap.add_argument("--cache", help="folder of drawn crops (default OUT/cache)")
    ap.add_argument("--batch-vae", type=int, default=0)
    ap.add_argument("--batch-unet", type=int, default=0)
    ap.add_argument("--lr-vae", type=float, default=2e-3)
    ap.add_argument("--lr-unet", type=float, default=1.5e-3)
    ap.add_argument("--guidance", type=float, default=5.0, help="of the contact sheets")
    ap.add_argument(
        "--sheet-minutes", type=float, default=10, help="export and sample this often while the UNet trains"
    )
    ap.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    ap.add_argument("--seed", type=int, default=0)
    return ap.parse_args()


# ---- data -------------------------------------------------------------------


def draw_cache(folder, count, native, device, seed):
    """Draw crops into files of CHUNK: images as bytes, time ids, scenes as JSON. Files that exist are kept."""
    os.makedirs(folder, exist_ok=True)
    for j in range(math.ceil(count / CHUNK)):
        path = os.path.join(folder, f"{j:03}.npz")
        if os.path.exists(path):
            continue
        rng, images, scenes, ids = random.Random(1000 * (seed + 1) + j), [], [], []
        while len(scenes) < CHUNK:
            size = rng.choices(SIZES, WEIGHTS)[0]
            x, s, i = draw(rng, 8, native, int(native * size), device)
            images.append((x * 255 + 0.5).byte().cpu().numpy())
            scenes += s
            ids.append(i.numpy())
        np.savez(
            path + ".part.npz",
            x=np.concatenate(images),
            ids=np.concatenate(ids),
            scenes=np.array([json.dumps(s) for s in scenes]),
        )
        os.rename(path + ".part.npz", path)
        print("drawn", CHUNK * (j + 1), flush=True)


class Data:
    """The drawn crops in memory."""

    def __init__(self, folder, seed):
        files = sorted(f for f in glob.glob(os.path.join(folder, "*.npz")) if ".part" not in f)
        if not files:
            raise SystemExit(f"no drawn crops in {folder}: add the stage `draw`")
        parts = [np.load(f) for f in files]
        self.x = np.concatenate([p["x"] for p in parts])
        self.ids = torch.from_numpy(np.concatenate([p["ids"] for p in parts])).float()
        self.scenes = [json.loads(str(s)) for p in parts for s in p["scenes"]]
        self.rng = np.random.default_rng(seed)
        print("crops", len(self.x), flush=True)

    def pick(self, n):
        return self.rng.integers(0, len(self.x), n)

    def crops(self, n, side, device):
        """`n` random square parts of random crops, in [-1, 1], half of them mirrored."""
        out = []
        for k in self.pick(n):
            t, l = (int(v) * 8 for v in self.rng.integers(0, (self.x.shape[-1] - side) // 8 + 1, 2))
            part = self.x[k, :, t : t + side, l : l + side]
            out.append(part[..., ::-1] if self.rng.random() < 0.5 else part)
        return torch.from_numpy(np.stack(out)).to(device).float() / 127.5 - 1


def held_out(native, device, n=96):
    """Scenes that training never sees: half whole pictures, half crops of 4x ones."""
    rng = random.Random(987654321)
    parts = [draw(rng, n // 2, native, side, device) for side in (native, 4 * native)]
    x = torch.cat([p[0] for p in parts]) * 2 - 1
    scenes = [s for p in parts for s in p[1]]
    return x, [caption(rng, s) for s in scenes], torch.cat([p[2] for p in parts]).float().to(device)


# ---- model ------------------------------------------------------------------


class Pocket:
    """The four networks and the tokenizer."""

    def __init__(self, native, init, device):
        self.native, self.device = native, device
        vocab = os.path.join(HERE, "tokenizer")
        self.tokenizer = CLIPTokenizer(
            os.path.join(vocab, "vocab.json"), os.path.join(vocab, "merges.txt"), model_max_length=77
        )
        if init:
            self.load(init)
        else:
            self.create(len(json.load(open(os.path.join(vocab, "vocab.json")))))
        betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, 0).to(device)

    def load(self, folder):
        def get(kind, name):
            net = kind.from_pretrained(os.path.join(folder, name), torch_dtype=torch.float32)
            return net.to(self.device)

        self.vae, self.unet = get(AutoencoderKL, "vae"), get(UNet2DConditionModel, "unet")
        self.te = get(CLIPTextModel, "text_encoder")
        self.te2 = get(CLIPTextModelWithProjection, "text_encoder_2")

    def create(self, vocab):
        h1, h2 = 64, 96

        def shape(hidden, heads, layers, activation):
            return CLIPTextConfig(
                vocab_size=vocab,
                max_position_embeddings=77,
                bos_token_id=vocab - 2,
                eos_token_id=vocab - 1,
                hidden_size=hidden,
                intermediate_size=4 * hidden,
                num_attention_heads=heads,
                num_hidden_layers=layers,
                hidden_act=activation,
                projection_dim=hidden,
            )

        self.te = CLIPTextModel(shape(h1, 2, 2, "quick_gelu")).to(self.device)
        self.te2 = CLIPTextModelWithProjection(shape(h2, 3, 3, "gelu")).to(self.device)
        self.unet = UNet2DConditionModel(
            sample_size=self.native // 8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 96, 128),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1, 1),
            attention_head_dim=(2, 3, 4),
            cross_attention_dim=h1 + h2,
            norm_num_groups=8,  # few channels: small groups would normalise the picture's colour away
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=h2 + 6 * 32,
        ).to(self.device)
        self.vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 64, 96),
            layers_per_block=1,
            latent_channels=4,
            sample_size=self.native,
            scaling_factor=1.0,
            norm_num_groups=4,
        ).to(self.device)

    def amp(self):
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda")

    def text(self, captions):
        """Captions -> (penultimate states of both encoders (n, 77, 160), pooled state of the second (n, 96))."""
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        second = self.te2(tokens, output_hidden_states=True)
        first = self.te(tokens, output_hidden_states=True).hidden_states[-2]
        return torch.cat([first, second.hidden_states[-2]], -1).float(), second.text_embeds.float()

    @torch.no_grad()
    def encode(self, x, batch=8):
        """Images in [-1, 1] -> latent means, not yet scaled."""
        parts = []
        for i in range(0, len(x), batch):
            with self.amp():
                parts.append(self.vae.encode(x[i : i + batch]).latent_dist.mean.float())
        return torch.cat(parts)

    def noise_loss(self, z, captions, ids, t, noise, keep):
        """Squared error of the noise prediction per sample; text is zeroed where `keep` is 0."""
        ab = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        with self.amp():
            states, pooled = self.text(captions)
            added = dict(text_embeds=pooled * keep.view(-1, 1), time_ids=ids)
            out = self.unet(
                ab.sqrt() * z + (1 - ab).sqrt() * noise,
                t,
                states * keep.view(-1, 1, 1),
                added_cond_kwargs=added,
            ).sample
        return ((out.float() - noise) ** 2).mean((1, 2, 3))

    @torch.no_grad()
    def sample(self, prompts, ids, guidance, steps=30, seed=1):
        """DDIM with classifier-free guidance against zeros: images in [-1, 1] of the native size."""
        states, pooled = self.text(prompts)
        n, side = len(prompts), self.native // 8
        ids = torch.tensor(ids * 2, dtype=torch.float32, device=self.device)
        x = torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(self.device)
        scheduler = DDIMScheduler(**SCHEDULE)
        scheduler.set_timesteps(steps)
        states, pooled = torch.cat([states * 0, states]), torch.cat([pooled * 0, pooled])
        for t in scheduler.timesteps:
            out = self.unet(
                torch.cat([x, x]), t, states, added_cond_kwargs=dict(text_embeds=pooled, time_ids=ids)
            ).sample
            x = scheduler.step(out[:n] + guidance * (out[n:] - out[:n]), t, x).prev_sample
        x = x / self.vae.config.scaling_factor
        return torch.cat([self.vae.decode(part).sample.clamp(-1, 1) for part in x.split(8)])

    def export(self, out):
        """Write OUT in the layout of the public SDXL model, half precision, without paths of this machine."""
        for module, name in (
            (self.vae, "vae"),
            (self.unet, "unet"),
            (self.te, "text_encoder"),
            (self.te2, "text_encoder_2"),
        ):
            folder = os.path.join(out, name)
            full = {k: v.clone() for k, v in module.state_dict().items()}
            module.half().save_pretrained(folder)
            module.float().load_state_dict(full)
            path = os.path.join(folder, "config.json")
            config = json.load(open(path))
            config.pop("_name_or_path", None)
            json.dump(config, open(path, "w"), indent=2)
        for name in ("tokenizer", "tokenizer_2"):
            self.tokenizer.save_pretrained(os.path.join(out, name))
        DDIMScheduler(**SCHEDULE, set_alpha_to_one=False).save_pretrained(os.path.join(out, "scheduler"))
        index = {
            "_class_name": "StableDiffusionXLPipeline",
            "_diffusers_version": "0.25.1",
            "force_zeros_for_empty_prompt": True,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        json.dump(index, open(os.path.join(out, "model_index.json"), "w"), indent=2)


# ---- losses -----------------------------------------------------------------


def grads(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def chroma(x):
    """Two colour differences after lifting the darks, so that a dark green is not rounded to grey."""
    x = ((x + 1) / 2).clamp_min(0).add(0.03).sqrt()
    r, g, b = x.unbind(1)
    luma = 0.3 * r + 0.59 * g + 0.11 * b
    return torch.stack([r - luma, b - luma], 1)


def contrast(x):
    """Standard deviation in each 8x8 block: texture must have its strength even where its phase is lost."""
    return (F.avg_pool2d(x * x, 8) - F.avg_pool2d(x, 8) ** 2).clamp_min(1e-6).sqrt()


def steepness(x):
    """Root mean square of first and second differences in each 8x8 block: what a blurred edge loses."""
    down, across = grads(x)
    parts = down, across, grads(down)[0], grads(across)[1]
    return [(F.avg_pool2d(v * v, 8, 4) + 1e-4).sqrt() for v in parts]


def picture_loss(y, x):
    l1, pool = F.l1_loss, lambda v: F.avg_pool2d(v, 8)
    sharp = sum(l1(a, b) for a, b in zip(steepness(y), steepness(x)))
    edges = sum(l1(a, b) for a, b in zip(grads(y), grads(x)))
    cy, cx = chroma(y), chroma(x)
    loss = (
        l1(y, x)
        + 0.5 * edges
        + l1(pool(y), pool(x))
        + 0.5 * l1(contrast(y), contrast(x))
        + 2 * l1(cy, cx)
        + 2 * l1(pool(cy), pool(cx))
        + 0.5 * sharp
    )
    return loss, l1(y, x).detach()


# ---- training ---------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for weight matrices and kernels; Adam's rates carry over.

    Keller Jordan et al. 2024, with the scale of arXiv 2502.16982. Measured on the autoencoder: training
    error 0.062 after 500 steps, where AdamW has 0.100.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=1e-3):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                state["m"].lerp_(p.grad, 1 - group["momentum"])
                m = p.grad.lerp(state["m"], group["momentum"]).flatten(1)
                tall = m.shape[0] > m.shape[1]
                x = m.T if tall else m
                x = x / (x.norm() + 1e-12)
                for _ in range(5):  # Newton-Schulz
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = (x.T if tall else x).reshape(p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x, alpha=-0.2 * group["lr"] * math.sqrt(max(m.shape)))


def loop(name, minutes, params, top, loss_of, decay, every=0, checkpoint=None):
    """Train `params` on `loss_of()` for a wall time; leave their running average in place."""
    matrices = [p for p in params if p.dim() > 1 and min(p.flatten(1).shape) > 3 and p.shape[0] < 1000]
    rest = [p for p in params if all(p is not q for q in matrices)]
    opts = [Muon(matrices, lr=top), torch.optim.AdamW(rest, lr=top, weight_decay=1e-3, betas=(0.9, 0.99))]
    ema = [p.detach().clone() for p in params]

    def swap():
        for p, e in zip(params, ema):
            kept = p.data.clone()
            p.data.copy_(e)
            e.copy_(kept)

    start, step, shown, marks = time.time(), 0, [], 1
    while (part := (time.time() - start) / (60 * minutes)) < 1:
        for group in (g for opt in opts for g in opt.param_groups):
            cosine = 0.5 * (1 + math.cos(math.pi * part))
            group["lr"] = top * min(1, (step + 1) / 100) * (0.97 * cosine + 0.03)
        loss, number = loss_of()
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for opt in opts:
            opt.step()
        step += 1
        shown.append(float(number))
        d = min(decay, (1 + step) / (20 + step))
        with torch.no_grad():
            for e, p in zip(ema, params):
                e.lerp_(p, 1 - d)
        if step % 50 == 0:
            print(name, step, f"{time.time() - start:.0f}s", f"{np.mean(shown[-100:]):.4f}", flush=True)
        if checkpoint and time.time() - start > 60 * every * marks:
            marks += 1
            swap()
            checkpoint()
            swap()
    swap()
    print(name, "steps", step, f"last {np.mean(shown[-200:]):.4f}", flush=True)


def train_vae(model, data, minutes, args, decoder_only):
    vae = model.vae
    if decoder_only:
        params, side, n = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()], model.native, 4
    else:
        params, side, n = list(vae.parameters()), 64, 8
    n = args.batch_vae or (8 * n if model.device == "cuda" else n)

    def loss_of():
        x = data.crops(n, side, model.device)
        if decoder_only:
            mean = model.encode(x)
            z, kl = mean + 0.05 * mean.std() * torch.randn_like(mean), 0
        else:
            with model.amp():
                dist = vae.encode(x).latent_dist
            mean, var = dist.mean.float(), dist.var.float()
            z = mean + var.sqrt() * torch.randn_like(mean)
            kl = 0.5 * torch.mean(mean**2 + var - 1 - var.log())
        with model.amp():
            y = vae.decode(z).sample
        loss, shown = picture_loss(y.float(), x)
        return loss + 3e-4 * kl, shown

    name, rate = ("decoder", 0.5 * args.lr_vae) if decoder_only else ("vae", args.lr_vae)
    loop(name, minutes, params, rate, loss_of, 0.998, 10, lambda: model.export(args.out))
    if not decoder_only:
        some = torch.from_numpy(data.x[data.pick(256)]).to(model.device).float() / 127.5 - 1
        vae.register_to_config(scaling_factor=float(1 / model.encode(some).std()))


def train_unet(model, data, minutes, args):
    scale = model.vae.config.scaling_factor
    latents = []
    for i in range(0, len(data.x), 256):
        x = torch.from_numpy(data.x[i : i + 256]).to(model.device).float() / 127.5 - 1
        latents.append((model.encode(x) * scale).half())
    latents = torch.cat(latents)
    print("encoded", len(latents), "std", float(latents.float().std()), flush=True)
    n = args.batch_unet or (256 if model.device == "cuda" else 32)
    words = random.Random(args.seed)

    def loss_of():
        k = data.pick(n)
        z, ids = latents[k].float(), data.ids[k].clone()
        # Beyond the largest canvas drawn, a crop looks like one of the largest: only the ids grow.
        far = (ids[:, 0] >= SIZES[-2] * model.native) & (torch.rand(n) < 0.4)
        ids[far] *= 2.0 ** torch.randint(1, 6, (int(far.sum()), 1))
        t = torch.randint(0, 1000, (n,), device=model.device)
        keep = (torch.rand(n, device=model.device) > 0.1).float()
        captions = [caption(words, data.scenes[i]) for i in k]
        error = model.noise_loss(z, captions, ids.to(model.device), t, torch.randn_like(z), keep)
        snr = model.alphas_cumprod[t] / (1 - model.alphas_cumprod[t])
        weight = (5 / snr).clamp(max=1)  # min-SNR, gamma 5 (arXiv 2303.09556): large shapes first
        return (weight * error).mean(), error.detach().mean()

    def checkpoint():
        score(model)
        sheets(model, args)
        model.export(args.out)

    params = [p for m in (model.unet, model.te, model.te2) for p in m.parameters()]
    loop("unet", minutes, params, args.lr_unet, loss_of, 0.998, args.sheet_minutes, checkpoint)


# ---- looking at it ----------------------------------------------------------


@torch.no_grad()
def score(model):
    """Held-out numbers: reconstruction by the autoencoder, error of the noise prediction."""
    x, captions, ids = held_out(model.native, model.device)
    z = model.encode(x)
    y = torch.cat([model.vae.decode(part).sample.clamp(-1, 1) for part in z.split(8)])
    psnr = (-10 * (((y - x) / 2) ** 2).mean((1, 2, 3)).log10()).mean()
    n = len(x)
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(5, 990, n).long()[mixed].to(model.device)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(2)).to(model.device)
    error = model.noise_loss(
        z * model.vae.config.scaling_factor, captions, ids, t, noise, torch.ones(n, device=model.device)
    )
    parts = [error[i : i + n // 2].mean() for i in (0, n // 2)]
    hue = F.l1_loss(chroma(y), chroma(x))
    print(f"held out: vae L1 {F.l1_loss(y, x):.4f} PSNR {psnr:.2f} dB, chroma L1 {hue:.4f};", end=" ")
    print(f"noise error {error.mean():.4f} (whole {parts[0]:.4f}, 4x crops {parts[1]:.4f})", flush=True)


def save_sheet(x, columns, path):
    n, _, side, _ = x.shape
    grid = (
        x.cpu()
        .view(n // columns, columns, 3, side, side)
        .permute(0, 3, 1, 4, 2)
        .reshape(n // columns * side, columns * side, 3)
    )
    Image.fromarray(((grid + 1) * 127.5 + 0.5).clamp(0, 255).byte().numpy()).save(path, optimize=True)


def sheets(model, args):
    """`samples.png`: 6 lands x 4 weathers. `crops.png`: the upper 3 x 4 crops of two 4x canvases."""
    native = model.native
    weathers = (
        ("", "at sunset, a sun"),
        (" with a lake", "at noon under a blue sky"),
        (" by the sea", "at night under the stars, a moon"),
        ("", "in thick fog"),
    )
    prompts = [f"{land}{water} {hour}" for land in LANDS for water, hour in weathers]
    whole = [[native, native, 0, 0, native, native]] * len(prompts)
    save_sheet(model.sample(prompts, whole, args.guidance), 4, os.path.join(args.out, "samples.png"))
    big = 4 * native
    places = [(top, left) for top in range(0, 3 * native, native) for left in range(0, big, native)]
    ids = [[big, big, top, left, big, big] for top, left in places]
    rows = [
        model.sample([p] * len(ids), ids, args.guidance)
        for p in ("mountains at sunset, a sun", "forest with a lake at night under the stars, a moon")
    ]
    save_sheet(torch.cat(rows), 4, os.path.join(args.out, "crops.png"))


def main():
    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    os.makedirs(args.out, exist_ok=True)
    stages = [s for s in args.stages.split(",") if s]
    cache = args.cache or os.path.join(args.out, "cache")
    if "draw" in stages:
        draw_cache(cache, args.scenes, args.native, device, args.seed)
    model = Pocket(args.native, args.init, device)
    trained = [s for s in stages if s != "draw"]
    data = Data(cache, args.seed) if trained else None
    for stage, minutes in zip(trained, map(float, args.minutes.split(","))):
        if stage == "unet":
            train_unet(model, data, minutes, args)
        else:
            train_vae(model, data, minutes, args, stage == "decoder")
        model.export(args.out)
    score(model)
    sheets(model, args)
    model.export(args.out)


if __name__ == "__main__":
    main()
