"""The upscale stage of Pixelsmith (Tragakis et al., arXiv 2406.07251) in PyTorch and diffusers, for benchmarks.

    python published.py DIR --plan PLAN.json --base BASE.png --out OUT.png [--from PICTURE.png] [settings]

PLAN.json is what `gigasmith render --save-plan` wrote: the same windows in the same order, so that both
programs do the same work. Steps and sizes are the plan's; the other settings are, in this order, those given,
those of the picture of `--from` (a PNG made by gigasmith), and the published defaults. As published, patches go
through the network one at a time and the VAE works in tiles. Random numbers are PyTorch's own, so the pictures
differ in their noise; without perturbed-attention guidance. Prints JSON: seconds of every part (`load` is not
in `total`), and the number of patch calls.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models import LAST, add_threads, open_scheduler, open_unet, open_vae, set_up_cpu

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

# A patch, its timestep, its time ids -> the network's output after guidance.
Predict = Callable[[Tensor, int, Tensor], Tensor]


@dataclass
class Plan:
    """The windows of one upscale stage; sizes in latent pixels."""

    canvas: tuple[int, int]
    window: tuple[int, int]
    zone: int
    paper: bool  # windows read what earlier ones of their step wrote
    steps: list[list[tuple[int, int, bool]]]  # per step: top, left, chessboard bit

    @staticmethod
    def read(path: Path, stage: int) -> "Plan":
        """Reads a stage of a plan file, 1 for the first."""
        plan = json.loads(path.read_text())
        if plan["version"] != 1:
            raise SystemExit(f"{path} has version {plan['version']}: this program reads version 1")
        if not 1 <= stage <= len(plan["stages"]):
            raise SystemExit(f"{path} has {len(plan['stages'])} upscale stages: there is no stage {stage}")
        plan = plan["stages"][stage - 1]
        height, width = plan["canvas"]
        steps = [[] for _ in range(1 + max(patch[0] for patch in plan["patches"]))]
        for step, top, left, bit in plan["patches"]:
            steps[step].append((top, left, bool(bit)))
        window = min(plan["patch_side"], height), min(plan["patch_side"], width)
        return Plan((height, width), window, plan["transition_width"], plan["kind"] == "paper", steps)


@dataclass
class Schedule:
    """DDIM with eta 0 (Song et al., arXiv 2010.02502)."""

    timesteps: list[int]
    alphas_cumprod: list[float]  # at the timesteps, and 1 at the end
    v_prediction: bool

    @staticmethod
    def open(model: Path, steps: int) -> "Schedule":
        scheduler = open_scheduler(model)
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.tolist()
        values = [scheduler.alphas_cumprod[t].item() for t in timesteps] + [1.0]
        return Schedule(timesteps, values, scheduler.config.prediction_type == "v_prediction")

    def advance(self, step: int, x: Tensor, output: Tensor) -> Tensor:
        """One step, with what the network says of `x`."""
        now, after = self.alphas_cumprod[step], self.alphas_cumprod[step + 1]
        signal, noise = now**0.5, (1 - now) ** 0.5
        e = signal * output + noise * x if self.v_prediction else output
        x0 = (x - noise * e) / signal
        return after**0.5 * x0 + (1 - after) ** 0.5 * e


def mix_phases(x: Tensor, guide: Tensor) -> Tensor:
    """Keeps the magnitudes |F| of x's spectrum and takes the phases of F/|F| + G/|G|."""
    own, other = (torch.fft.rfft2(t, norm="ortho") for t in (x, guide))
    mixed = own.abs() * unit(unit(own) + unit(other))
    # Bins that are their own conjugates are real: equal signs keep F, opposite ones cancel.
    (height, width), bins = x.shape[-2:], own.shape[-1]
    rows = [0] if height % 2 else [0, height // 2]
    columns = [0] if width % 2 else [0, bins - 1]
    real = (..., torch.tensor(rows)[:, None], torch.tensor(columns))
    own, other = own[real].real, other[real].real
    mixed[real] = torch.where((own < 0) == (other < 0), own, 0.0).to(mixed.dtype)
    return torch.fft.irfft2(mixed, s=(height, width), norm="ortho")


def unit(z: Tensor) -> Tensor:
    """z/|z|; the phase of 0 is 0."""
    return torch.where(z == 0, 1, torch.sgn(z))


def denoise(
    plan: Plan, schedule: Schedule, guide: Tensor, noise: Tensor, slider: int, predict: Predict, crops: str
) -> Tensor:
    """Denoises a canvas patch by patch; `guide` and `noise` are (1, channels, height, width)."""

    def guidance(step: int, window: tuple) -> Tensor:
        value = schedule.alphas_cumprod[step]
        return value**0.5 * guide[window] + (1 - value) ** 0.5 * noise[window]

    height, width = plan.window
    chessboard = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    size = [8 * side for side in plan.canvas]
    canvas = guidance(0, (...,)) if slider else noise.clone()
    for step, (timestep, patches) in enumerate(zip(schedule.timesteps, plan.steps, strict=True)):
        before = canvas.clone()
        pending = torch.ones(plan.canvas, dtype=torch.bool)
        guided = 0 < step < slider
        for top, left, bit in patches:
            place = slice(top, top + height), slice(left, left + width)
            window = (..., *place)
            fresh = pending[place]
            x = before[window]
            if guided and plan.paper:
                x = torch.where(fresh, mix_phases(canvas[window], guidance(step, window)), x)
            elif guided:
                x = mix_phases(x, guidance(step, window))
            corner = [8 * (left if crops == "published" else top), 8 * left]
            result = schedule.advance(step, x, predict(x, timestep, torch.tensor([size + corner + size])))
            if step + 1 < slider:
                result = torch.where(chessboard == bit, guidance(step + 1, window), result)
            old = canvas[window]
            near = F.max_pool2d(fresh[None].float(), 2 * plan.zone + 1, 1, plan.zone)[0] > 0
            canvas[window] = torch.where(fresh, result, torch.where(near, (old + result) / 2, old))
            pending[place] = False
    return canvas


def predictor(unet: torch.nn.Module, states: Tensor, pooled: Tensor, scale: float) -> Predict:
    """Classifier-free guidance; `states` and `pooled` have one row for the negative prompt, one for the prompt.
    A scale of 1 or less means no guidance, and a batch of one."""
    rows = 2 if scale > 1 else 1
    states, pooled = states[-rows:], pooled[-rows:]

    def predict(x: Tensor, timestep: int, time_ids: Tensor) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": time_ids.float().expand(rows, 6)}
        x = x.expand(rows, -1, -1, -1).contiguous(memory_format=LAST)
        output = unet(x, timestep, states, added_cond_kwargs=added, return_dict=False)[0]
        if rows == 1:
            return output
        negative, positive = output.chunk(2)
        return negative + scale * (positive - negative)

    return predict


def open_text(model: Path) -> list[tuple[CLIPTokenizer, torch.nn.Module]]:
    """Both tokenizers, each with its text encoder."""
    return [
        (
            CLIPTokenizer.from_pretrained(model, subfolder=f"tokenizer{suffix}"),
            encoder.from_pretrained(model, subfolder=f"text_encoder{suffix}").float().eval(),
        )
        for suffix, encoder in [("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)]
    ]


def encode_text(parts: list, prompt: str, negative: str | None) -> tuple[Tensor, Tensor]:
    """Text states and pooled states, the negative prompt's first; a missing one is all zeros."""
    texts = [prompt] if negative is None else [negative, prompt]
    states = []
    for tokenizer, encoder in parts:
        tokens = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        output = encoder(tokens.input_ids, output_hidden_states=True)
        states.append(output.hidden_states[-2])
    states, pooled = torch.cat(states, dim=-1), output.text_embeds
    if negative is None:
        states, pooled = (torch.cat([torch.zeros_like(t), t]) for t in (states, pooled))
    return states, pooled


def encode_picture(vae: torch.nn.Module, picture: Image.Image, size: tuple[int, int], noise: Tensor) -> Tensor:
    """The picture, enlarged to `size` (width, height), as a guide."""
    pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    pixels = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    encoded = vae.tiled_encode(pixels).latent_dist
    return vae.config.scaling_factor * (encoded.mean + encoded.std * noise)


def decode(vae: torch.nn.Module, canvas: Tensor) -> Image.Image:
    """The canvas as a picture."""
    latent = (canvas / vae.config.scaling_factor).contiguous(memory_format=LAST)
    pixels = vae.tiled_decode(latent, return_dict=False)[0]
    pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())


@dataclass
class Settings:
    """What a stage is made with."""

    prompt: str
    negative_prompt: str | None
    guidance_scale: float
    slider: int
    seed: int
    crops: str

    @staticmethod
    def resolve(arguments: argparse.Namespace, steps: int) -> "Settings":
        """What is given, else what a picture made before says, else the published defaults."""
        shares = [0.4, 0.6]  # sliders 20 and 30 of 50 steps
        slider = round(steps * shares[min(arguments.stage - 1, 1)])
        values = {"prompt": "", "negative_prompt": None, "guidance_scale": 7.5, "slider": slider, "seed": 0}
        values["crops"] = "published"
        if arguments.picture:
            spec = json.loads(Image.open(arguments.picture).info["gigasmith"])["spec"]
            if spec["pag"]:
                raise SystemExit(f"{arguments.picture} has perturbed-attention guidance, which is not done here")
            values |= {key: spec[key] for key in values if key in spec}
            values["slider"] = spec["upscales"][arguments.stage - 1]["slider"]
        given = {key: getattr(arguments, key) for key in values}
        return Settings(**(values | {key: value for key, value in given.items() if value is not None}))


class Clock:
    """Seconds since it was last asked, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = now - self.last
        self.last = now


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> dict:
    """The stage, from picture to picture."""
    plan = Plan.read(arguments.plan, arguments.stage)
    settings = Settings.resolve(arguments, len(plan.steps))
    clock = Clock()
    text, unet, vae = open_text(arguments.dir), open_unet(arguments.dir), open_vae(arguments.dir)
    schedule = Schedule.open(arguments.dir, len(plan.steps))
    clock.lap("load")
    states, pooled = encode_text(text, settings.prompt, settings.negative_prompt)
    clock.lap("text")
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (1, unet.config.in_channels, *plan.canvas)
    encode_noise, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    height, width = plan.canvas
    guide = encode_picture(vae, Image.open(arguments.base), (8 * width, 8 * height), encode_noise)
    clock.lap("encode")
    predict = predictor(unet, states, pooled, settings.guidance_scale)
    canvas = denoise(plan, schedule, guide, noise, settings.slider, predict, settings.crops)
    clock.lap("denoise")
    picture = decode(vae, canvas)
    clock.lap("decode")
    picture.save(arguments.out)
    clock.lap("write")
    total = sum(clock.seconds.values()) - clock.seconds["load"]
    calls = sum(map(len, plan.steps))
    return {"seconds": clock.seconds | {"total": total}, "calls": calls, "settings": vars(settings)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, help="a model in the diffusers layout")
    parser.add_argument("--plan", type=Path, required=True, metavar="PLAN.json")
    parser.add_argument("--base", type=Path, required=True, metavar="BASE.png")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.png")
    parser.add_argument("--from", type=Path, dest="picture", metavar="PICTURE.png")
    parser.add_argument("--stage", type=int, default=1, metavar="N", help="which of the plan's, 1 unless given")
    parser.add_argument("--prompt")
    parser.add_argument("--negative-prompt")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--slider", type=int, help="number of guided steps")
    parser.add_argument("--seed", type=int)
    crops = "what the network is told of where a patch lies: published writes the column twice"
    parser.add_argument("--crops", choices=["published", "true"], help=crops)
    add_threads(parser)
    arguments = parser.parse_args()
    set_up_cpu(arguments.threads)
    print(json.dumps(run(arguments)))


if __name__ == "__main__":
    main()
