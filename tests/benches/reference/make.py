"""Writes a model with random weights in the layout of the public SDXL model, for benchmarks of real shapes.

    python make.py KIND DIR [--side N] [--seed N] [--half]

KIND:
- `sd15-widths`: heavy in convolutions: four resolutions of 320/640/1280/1280, one transformer layer each,
  8 heads, native side 64 (512 pixels). 3.8 GB.
- `sdxl-shape`: SDXL's UNet: 320/640/1280, transformer depths 2 and 10, heads of width 64, native side 128.
  10.8 GB.
- `sdxl-half`: the same with half the widths and half the heads. 3.0 GB.

All have SDXL's VAE and conditioning (`text_time`), f32 weights (f16 with `--half`) as diffusers initialises them, two small text
encoders, and the tokenizers and the schedule of tests/golden/tiny-sdxl.
"""

import argparse
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

warnings.filterwarnings("ignore", category=FutureWarning)  # old diffusers, new torch

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tiny-sdxl"
TIME_ID_WIDTH = 256


@dataclass(frozen=True)
class Kind:
    """The shape of a model; lists go from the finest resolution to the coarsest."""

    widths: list[int]
    heads: list[int]  # what diffusers calls attention_head_dim
    depths: list[int]  # transformer layers after each resnet
    attends: list[bool]
    text_widths: tuple[int, int]  # of the two text encoders
    side: int  # native side of the latent


KINDS = {
    "sd15-widths": Kind(
        [320, 640, 1280, 1280], [8] * 4, [1] * 4, [True, True, True, False], (256, 512), 64
    ),
    "sdxl-shape": Kind([320, 640, 1280], [5, 10, 20], [1, 2, 10], [False, True, True], (768, 1280), 128),
    # The finest resolution has no attention, so its number of heads decides nothing.
    "sdxl-half": Kind([160, 320, 640], [5, 5, 10], [1, 2, 10], [False, True, True], (384, 640), 128),
}


def unet_config(kind: Kind) -> dict:
    """Arguments of UNet2DConditionModel."""
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in kind.attends]
    return {
        "sample_size": kind.side,
        "block_out_channels": kind.widths,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "layers_per_block": 2,
        "transformer_layers_per_block": kind.depths,
        "attention_head_dim": kind.heads,
        "cross_attention_dim": sum(kind.text_widths),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_ID_WIDTH,
        "projection_class_embeddings_input_dim": kind.text_widths[1] + 6 * TIME_ID_WIDTH,
    }


def vae_config(kind: Kind) -> dict:
    """Arguments of AutoencoderKL: SDXL's, with tiles of the model's native size."""
    widths = [128, 256, 512, 512]
    return {
        "sample_size": kind.side * 2 ** (len(widths) - 1),
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 2,
        "scaling_factor": 0.13025,
    }


def text_config(width: int, activation: str) -> CLIPTextConfig:
    """A text encoder of two layers, for the golden model's vocabulary."""
    return CLIPTextConfig(
        vocab_size=2014,
        bos_token_id=2012,
        eos_token_id=2013,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        hidden_act=activation,
    )


def save_text(encoder: torch.nn.Module, folder: Path) -> None:
    """Writes a text encoder with the names that the public model has, which newer libraries give up."""
    outside = ("text_model.", "text_projection.")
    weights = encoder.state_dict().items()
    named = {n if n.startswith(outside) else f"text_model.{n}": w.cpu().contiguous() for n, w in weights}
    encoder.config.save_pretrained(folder)
    save_file({n: w for n, w in named.items() if not n.endswith("position_ids")}, folder / "model.safetensors")


def make(kind: Kind, folder: Path, seed: int) -> None:
    """Writes everything, one network after the other, so that no two are held at once."""
    torch.manual_seed(seed)
    UNet2DConditionModel(**unet_config(kind)).save_pretrained(folder / "unet")
    AutoencoderKL(**vae_config(kind)).save_pretrained(folder / "vae")
    first, second = kind.text_widths
    save_text(CLIPTextModel(text_config(first, "quick_gelu")), folder / "text_encoder")
    save_text(CLIPTextModelWithProjection(text_config(second, "gelu")), folder / "text_encoder_2")
    for part in ["tokenizer", "tokenizer_2", "scheduler"]:
        shutil.copytree(GOLDEN / part, folder / part)
    shutil.copy(GOLDEN / "model_index.json", folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--side", type=int, metavar="N", help="another native side of the latent")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--half", action="store_true", help="f16 weights, made on an NVIDIA GPU where there is one")
    arguments = parser.parse_args()
    if arguments.dir.exists() and any(arguments.dir.iterdir()):
        parser.error(f"{arguments.dir} is not empty: choose a new folder")
    kind = KINDS[arguments.kind]
    if arguments.side:
        kind = Kind(**(vars(kind) | {"side": arguments.side}))
    if arguments.half:
        torch.set_default_dtype(torch.half)
        torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    make(kind, arguments.dir, arguments.seed)


if __name__ == "__main__":
    main()
