"""What the scripts here share: how PyTorch is set up, and how a model directory is opened.

The settings are those that make PyTorch fast in f32 on a CPU: convolutions of oneDNN (PyTorch's default) on
channels-last memory, fused attention, no denormal numbers, no gradients, and an allocator that keeps the memory
it has (fresh pages for every activation cost a fifth of the time). Import this before torch: OpenMP reads its
wait policy when it is loaded.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave their core to others

import argparse
import ctypes
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=FutureWarning)  # old diffusers, new torch

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

LAST = torch.channels_last


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Adds `--threads`."""
    help = "threads of PyTorch; all cores unless given"
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help=help)


def set_up_cpu(threads: int) -> None:
    """Sets allocator, number modes and threads, before any arithmetic: threads inherit modes as they start."""
    keep_memory()
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)


def keep_memory() -> None:
    """Tells glibc to give nothing back to the system, and to take it in large pieces."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        for option, value in [(trim_threshold, -1), (top_pad, 256 << 20), (mmap_max, 0)] if mallopt else []:
            mallopt(option, value)


def set_up_cuda() -> None:
    """An NVIDIA GPU in half precision, with the fastest convolutions that can be found by trying."""
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.half)
    torch.backends.cudnn.benchmark = True


def open_unet(model: Path) -> UNet2DConditionModel:
    """The noise predictor, ready to run."""
    return _ready(UNet2DConditionModel.from_pretrained(model, subfolder="unet"))


def open_vae(model: Path) -> AutoencoderKL:
    """The VAE, ready to run."""
    return _ready(AutoencoderKL.from_pretrained(model, subfolder="vae"))


def open_scheduler(model: Path) -> DDIMScheduler:
    """The model's noise schedule, whatever scheduler its file names; the value before the last timestep is 1."""
    return DDIMScheduler.from_pretrained(model, subfolder="scheduler", set_alpha_to_one=True)


def pooled_width(unet: UNet2DConditionModel) -> int:
    """Width of the pooled text state: what the six time ids leave of the added conditioning."""
    return unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim


def _ready(network: torch.nn.Module) -> torch.nn.Module:
    network.set_attn_processor(AttnProcessor2_0())
    # As it was set up, in f32 or f16; on the device that things are being made on.
    network = network.to(torch.empty(0).device, torch.get_default_dtype())
    return network.eval().to(memory_format=LAST)
