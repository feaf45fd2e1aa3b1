"""Times PyTorch on request: reads JSON lines from standard input, answers each with one on standard output.

    python serve.py [DIR] [--threads N] [--cuda [--compile]]

Requests (`repeat`: how often to measure, 1 unless given; `calls`: runs of a measurement, 1 unless given, of which
the mean counts; `"warm": true`: one more measurement before, not counted):
- `{"do": "unet", "side": 32, "batch": 2}`: one call of the UNet of DIR with random inputs; with
  `"input_file"` (safetensors: latents, states, pooled, time_ids, timestep) with those, and with
  `"output_file"` the last result is written there as `noise`.
- `{"do": "decode", "side": 64}`: the VAE of DIR decodes one random latent, at once.
- `{"do": "op", "name": ...}`: one operation; the functions of `OPERATIONS` say which there are, and their
  parameters which sizes they need.
- `{"do": "versions"}`: versions and settings.

Answers: `{"seconds": [...]}`, or `{"error": "..."}`. Networks are loaded when they are first needed.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from models import LAST, add_threads, open_unet, open_vae, pooled_width, set_up_cpu, set_up_cuda

import diffusers
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

TOKENS = 77
Run = Callable[[], Tensor]


def image(batch: int, channels: int, side: int) -> Tensor:
    """Random values in channels-last memory, as convolutions want them."""
    return torch.randn(batch, channels, side, side).to(memory_format=LAST)


def kernel(outputs: int, inputs: int, side: int) -> Tensor:
    """Random weights of a convolution."""
    return (torch.randn(outputs, inputs, side, side) / (inputs * side * side) ** 0.5).to(memory_format=LAST)


def conv3x3(channels_in: int, channels_out: int, side: int, batch: int = 1) -> Run:
    """A 3x3 convolution with bias."""
    x, weight, bias = image(batch, channels_in, side), kernel(channels_out, channels_in, 3), torch.randn(channels_out)
    return lambda: F.conv2d(x, weight, bias, padding=1)


def conv1x1(channels_in: int, channels_out: int, side: int, batch: int = 1) -> Run:
    """A 1x1 convolution with bias."""
    x, weight, bias = image(batch, channels_in, side), kernel(channels_out, channels_in, 1), torch.randn(channels_out)
    return lambda: F.conv2d(x, weight, bias)


def linear(rows: int, inputs: int, outputs: int) -> Run:
    """A linear layer with bias."""
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    return lambda: F.linear(x, weight, bias)


def attention(batch: int, heads: int, queries: int, keys: int, width: int) -> Run:
    """Attention with heads of `width`, on views of (batch, tokens, heads x width) as in a network."""
    q, k, v = (torch.randn(batch, n, heads, width).transpose(1, 2) for n in (queries, keys, keys))
    return lambda: F.scaled_dot_product_attention(q, k, v)


def group_norm_silu(channels: int, side: int, batch: int = 1, groups: int = 32) -> Run:
    """Group normalisation, then SiLU."""
    x, weight, bias = image(batch, channels, side), torch.randn(channels), torch.randn(channels)
    return lambda: F.silu(F.group_norm(x, groups, weight, bias, 1e-5))


def layer_norm(rows: int, width: int) -> Run:
    """Layer normalisation."""
    x, weight, bias = torch.randn(rows, width), torch.randn(width), torch.randn(width)
    return lambda: F.layer_norm(x, (width,), weight, bias, 1e-5)


def geglu(rows: int, inputs: int, outputs: int) -> Run:
    """A linear layer to twice the outputs; one half times the GELU of the other."""
    double = linear(rows, inputs, 2 * outputs)

    def run() -> Tensor:
        value, gate = double().chunk(2, dim=-1)
        return value * F.gelu(gate)

    return run


def upsample_conv(channels: int, side: int, batch: int = 1) -> Run:
    """Every pixel four times, then a 3x3 convolution; `side` is that of the input."""
    x, weight, bias = image(batch, channels, side), kernel(channels, channels, 3), torch.randn(channels)
    return lambda: F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


OPERATIONS = {
    f.__name__: f
    for f in [conv3x3, conv1x1, linear, attention, group_norm_silu, layer_norm, geglu, upsample_conv]
}


def measure(run: Run, device: torch.device, repeat: int, calls: int, warm: bool) -> tuple[list[float], Tensor]:
    """Seconds per run of every counted measurement, and the last result."""
    seconds = []
    for _ in range(repeat + warm):
        finish(device)
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        finish(device)
        seconds.append((time.perf_counter() - start) / calls)
    return seconds[warm:], result


def finish(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Server:
    """Answers requests about one model."""

    def __init__(self, model: Path | None, device: torch.device, compiles: bool):
        self.model = model
        self.device = device
        self.compiles = compiles

    @cached_property
    def unet(self) -> torch.nn.Module:
        unet = open_unet(self.folder())
        if not self.compiles:
            return unet
        # Sizes are compiled in: what takes any size is slower.
        return torch.compile(unet, mode="reduce-overhead", fullgraph=True, dynamic=False)

    @cached_property
    def vae(self) -> torch.nn.Module:
        return open_vae(self.folder())

    def folder(self) -> Path:
        if self.model is None:
            raise ValueError("this needs a model: start serve.py with its folder")
        return self.model

    def answer(self, do: str, repeat: int = 1, calls: int = 1, warm: bool = False, **sizes) -> dict:
        """One request, its keys as arguments."""
        output = None
        # Only while things are made: it slows every operation.
        with self.device:
            match do:
                case "versions":
                    return self.versions()
                case "unet":
                    output = sizes.pop("output_file", None)
                    run = self.noise(**sizes)
                case "decode":
                    run = self.decode(**sizes)
                case "op":
                    name = sizes.pop("name")
                    if name not in OPERATIONS:
                        raise ValueError(f"no operation {name}: there are {', '.join(OPERATIONS)}")
                    run = OPERATIONS[name](**sizes)
                case _:
                    raise ValueError(f"cannot do {do}: unet, decode, op, versions")
        if repeat < 1 or calls < 1:
            raise ValueError(f"repeat is {repeat} and calls {calls}: 1 or more are needed")
        seconds, result = measure(run, self.device, repeat, calls, warm)
        if output:
            save_file({"noise": result.float().cpu().contiguous()}, output)
        return {"seconds": seconds}

    def noise(self, side: int = 32, batch: int = 2, input_file: str | None = None) -> Run:
        """One call of the UNet."""
        if input_file:
            inputs = {name: value.to(torch.empty(0)) for name, value in load_file(input_file).items()}
            batch = len(inputs["latents"])
        else:
            inputs = self.random_inputs(side, batch)
        latents = inputs["latents"].contiguous(memory_format=LAST)
        time_ids = inputs["time_ids"].float().reshape(-1, 6).expand(batch, 6)
        added = {"text_embeds": inputs["pooled"], "time_ids": time_ids}
        timestep, states = inputs["timestep"].reshape(()), inputs["states"]
        unet = self.unet
        return lambda: unet(latents, timestep, states, added_cond_kwargs=added, return_dict=False)[0]

    def random_inputs(self, side: int, batch: int) -> dict[str, Tensor]:
        pixels = float(8 * side)
        return {
            "latents": torch.randn(batch, self.unet.config.in_channels, side, side),
            "states": torch.randn(batch, TOKENS, self.unet.config.cross_attention_dim),
            "pooled": torch.randn(batch, pooled_width(self.unet)),
            "time_ids": torch.tensor([pixels, pixels, 0, 0, pixels, pixels]),
            "timestep": torch.tensor(501),
        }

    def decode(self, side: int) -> Run:
        """The VAE decodes one latent."""
        vae, latent = self.vae, image(1, self.vae.config.latent_channels, side)
        return lambda: vae.decode(latent, return_dict=False)[0]

    def versions(self) -> dict:
        return {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if self.device.type == "cuda" else None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, nargs="?", help="a model in the diffusers layout")
    add_threads(parser)
    parser.add_argument("--cuda", action="store_true", help="on an NVIDIA GPU, in f16")
    parser.add_argument("--compile", action="store_true", help="the UNet through torch.compile")
    arguments = parser.parse_args()
    # Whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if arguments.cuda:
        set_up_cuda()
    else:
        set_up_cpu(arguments.threads)
    server = Server(arguments.dir, torch.device("cuda" if arguments.cuda else "cpu"), arguments.compile)
    with torch.inference_mode():
        for line in filter(str.strip, sys.stdin):
            try:
                answer = server.answer(**json.loads(line))
            except Exception as error:  # whatever it is, the next request may do better
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
