"""Write the model in the layout of the public SDXL model: half precision, no paths of the machine it was made on."""

import json
import os

import torch
from diffusers import DDIMScheduler

from nets import schedule

LIMIT = 64 << 20  # bytes in all

INDEX = {
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


def save_half(module, folder):
    """Save a network in half precision; the network itself stays as it is."""
    full = {k: v.clone() for k, v in module.state_dict().items()}
    module.half().save_pretrained(folder)
    module.float().load_state_dict(full)
    path = os.path.join(folder, "config.json")
    config = json.load(open(path))
    config.pop("_name_or_path", None)
    json.dump(config, open(path, "w"), indent=2)


def export(model, out):
    """Write all of `model` (a `Pocket`) into the folder `out`."""
    for module, name in (
        (model.vae, "vae"),
        (model.unet, "unet"),
        (model.te, "text_encoder"),
        (model.te2, "text_encoder_2"),
    ):
        save_half(module, os.path.join(out, name))
    for name in ("tokenizer", "tokenizer_2"):
        model.tokenizer.save_pretrained(os.path.join(out, name))
    DDIMScheduler(**schedule(model.kind)).save_pretrained(os.path.join(out, "scheduler"))
    json.dump(INDEX, open(os.path.join(out, "model_index.json"), "w"), indent=2)
    parts = ("vae", "unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    size = sum(
        os.path.getsize(os.path.join(at, f))
        for p in parts
        for at, _, fs in os.walk(os.path.join(out, p))
        for f in fs
    )
    print(f"exported {size / 2**20:.1f} MiB", flush=True)
    if size > LIMIT:
        raise SystemExit(f"the model has {size} bytes: more than {LIMIT}; make the UNet narrower")
