"""Models as people have them, and diffusers' pictures of them.

Usage: reference.py TINY OUT

TINY is a small model in the diffusers layout. For every case, OUT gets a folder NAME with a model, NAME.rgb with
diffusers' picture (8 bits, row by row), and an entry in cases.json that says how it was rendered. Only networks with
random weights are made; nothing is fetched.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

warnings.filterwarnings("ignore")

import diffusers
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_grad_enabled(False)

PROMPT = "a castle on a hill"


class Maker:
    """Makes models out of one, and remembers the cases."""

    def __init__(self, tiny, out):
        self.tiny, self.out, self.cases = Path(tiny), Path(out), []

    def copy(self, name):
        folder = self.out / name
        shutil.copytree(self.tiny, folder, copy_function=shutil.copyfile)
        return folder

    def edited(self, name, scheduler=None, unet=None, drop=()):
        """A copy with other values in its configurations; another UNet gets weights of its own."""
        folder = self.copy(name)
        if scheduler is not None:
            change(folder / "scheduler/scheduler_config.json", scheduler, drop)
            if "_class_name" in scheduler:
                change(folder / "model_index.json", {"scheduler": ["diffusers", scheduler["_class_name"]]})
        if unet is not None:
            config = change(folder / "unet/config.json", unet)
            torch.manual_seed(0)
            network = UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")})
            shutil.rmtree(folder / "unet")
            network.save_pretrained(folder / "unet")
        return folder

    def case(self, name, oracle="ddim", negative=None, steps=5, guidance=7.5, same_as=None, seed=7):
        """Renders the model `name` with diffusers. `oracle`: the scheduler that does it."""
        pipeline = StableDiffusionXLPipeline.from_pretrained(self.out / name, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        side = pipeline.unet.config.sample_size
        shape = (1, pipeline.unet.config.in_channels, side, side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        config = dict(pipeline.scheduler.config)
        if oracle == "ddim":
            # Latents are never clipped, and the last step ends at the clean latent.
            pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=True)
        else:
            # In sigma's terms, an Euler step is DDIM's; it goes from each timestep to the next in its list.
            pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
            pipeline.scheduler.set_timesteps(steps)
            sigma = pipeline.scheduler.sigmas[0]
            noise = noise * (sigma**2 + 1) ** 0.5 / pipeline.scheduler.init_noise_sigma
        image = pipeline(
            prompt=PROMPT,
            negative_prompt=negative,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=noise,
            output_type="np",
        ).images[0]
        (self.out / f"{name}.rgb").write_bytes((image * 255).round().astype(np.uint8).tobytes())
        settings = ["--prompt", PROMPT, "--steps", str(steps), "--guidance-scale", str(guidance), "--seed", str(seed)]
        if negative is not None:
            settings += ["--negative-prompt", negative]
        self.cases.append(dict(name=name, settings=settings, same_as=same_as))


def change(path, values, drop=()):
    config = json.loads(path.read_text())
    config.update(values)
    config = {k: v for k, v in config.items() if k not in drop}
    path.write_text(json.dumps(config, indent=1))
    return config


def whole(tiny):
    """The model's parts in the classes of today, whatever they were saved by."""
    text = []
    for folder, cls in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        config = json.loads((tiny / folder / "config.json").read_text())
        text.append(cls.from_pretrained(tiny / folder, config=CLIPTextConfig(**config), torch_dtype=torch.float32))
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(tiny / "vae", torch_dtype=torch.float32),
        text_encoder=text[0],
        text_encoder_2=text[1],
        tokenizer=CLIPTokenizer.from_pretrained(tiny / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(tiny / "tokenizer_2"),
        unet=UNet2DConditionModel.from_pretrained(tiny / "unet", torch_dtype=torch.float32),
        scheduler=DDIMScheduler.from_pretrained(tiny / "scheduler"),
    )


def bare_names(folder):
    """Takes the inner `text_model` out of an encoder's names, as transformers 5.6 and later save them."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


def main(tiny, out):
    make = Maker(tiny, out)
    make.copy("original")
    make.case("original", negative="blurry")

    # Saved by the diffusers and transformers that are here.
    pipeline = whole(make.tiny)
    pipeline.save_pretrained(make.out / "saved-today")
    make.case("saved-today", negative="blurry", same_as="original")
    # One encoder with transformers' old names, one with the new ones.
    bare_names(make.copy("mixed-names") / "text_encoder")
    make.case("mixed-names", negative="blurry", same_as="original")
    bare_names(make.copy("new-names") / "text_encoder")
    bare_names(make.out / "new-names" / "text_encoder_2")
    make.case("new-names", negative="blurry", same_as="original")
    pipeline.to(dtype=torch.float16).save_pretrained(make.out / "half", variant="fp16")
    shutil.copytree(make.out / "half", make.out / "half-plain")
    for path in (make.out / "half-plain").glob("*/*.fp16.*"):
        path.rename(path.with_name(path.name.replace(".fp16", "")))
    make.case("half-plain")
    shutil.copyfile(make.out / "half-plain.rgb", make.out / "half.rgb")
    make.cases.append(dict(make.cases[-1], name="half", same_as="half-plain"))

    # Schedulers.
    sdxl = dict(interpolation_type="linear", skip_prk_steps=True, use_karras_sigmas=False, sample_max_value=1.0)
    make.edited("euler", scheduler=dict(sdxl, _class_name="EulerDiscreteScheduler"))
    make.case("euler")
    make.edited("euler-unspaced", scheduler=dict(sdxl, _class_name="EulerDiscreteScheduler"), drop=["timestep_spacing"])
    make.case("euler-unspaced", oracle="euler", steps=4)
    turbo = dict(sdxl, _class_name="EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    make.edited("turbo", scheduler=turbo)
    make.case("turbo", steps=4, guidance=0)
    make.edited("trailing", scheduler=dict(sdxl, _class_name="EulerDiscreteScheduler", timestep_spacing="trailing"))
    make.case("trailing", oracle="euler", steps=7)
    make.edited("karras", scheduler=dict(_class_name="DPMSolverMultistepScheduler", use_karras_sigmas=True,
                                         algorithm_type="dpmsolver++", lambda_min_clipped=float("-inf")))
    make.case("karras")
    make.edited("v-prediction", scheduler=dict(prediction_type="v_prediction"))
    make.case("v-prediction")
    make.edited("linear-betas", scheduler=dict(beta_schedule="linear"))
    make.case("linear-betas", guidance=3)

    # Networks.
    asymmetric = dict(
        transformer_layers_per_block=[1, [2, 2], [4, 4]],
        reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
    )
    make.edited("ssd-1b", unet=dict(asymmetric, mid_block_type="UNetMidBlock2D"))
    make.case("ssd-1b")
    make.edited("asymmetric", unet=asymmetric)
    make.case("asymmetric")
    make.edited("koala", unet=dict(mid_block_type=None, layers_per_block=1, transformer_layers_per_block=[1, 2, 5]))
    make.case("koala")

    (make.out / "cases.json").write_text(json.dumps(make.cases))


if __name__ == "__main__":
    main(*sys.argv[1:])
