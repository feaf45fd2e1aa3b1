"""The four networks in the shapes of the public SDXL model's, small; text, encoding, the objective, sampling."""

import json
import os
import re

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
CHANNELS = 16
TEXT = (96, 128)  # widths of the two text encoders
WIDTHS, DEPTHS = (96, 128, 192), (1, 1, 2)  # of the UNet: 15 M parameters; its first level has no attention
VAE_WIDTHS = {"cuda": (32, 64, 96, 128), "cpu": (16, 32, 64, 96)}  # 3.0 M and 1.75 M parameters

# Both schedules have less noise at every time than SD's: 16x16 latents need less than 64x64 (Hoogeboom et al.
# 2301.11093). `plain` ends at abar = 0.005; `zero` is rescaled to end at 0 (Lin et al. 2305.08891).
SCHEDULES = {
    "plain": dict(
        beta_start=0.00001, beta_end=0.016, rescale_betas_zero_snr=False, timestep_spacing="leading"
    ),
    "zero": dict(
        beta_start=0.00001, beta_end=0.0017, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
}


def schedule(kind):
    """The scheduler's configuration."""
    return dict(
        SCHEDULES[kind],
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=kind == "zero",
        steps_offset=1 if kind == "plain" else 0,
    )


def make_vae(widths, groups=4):
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=CHANNELS,
        sample_size=128,
        scaling_factor=1.0,
        norm_num_groups=groups,
    )


def make_text(vocab, kind, width, layers, activation):
    return kind(
        CLIPTextConfig(
            vocab_size=vocab,
            max_position_embeddings=77,
            bos_token_id=vocab - 2,
            eos_token_id=vocab - 1,
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=width // 32,
            num_hidden_layers=layers,
            hidden_act=activation,
            projection_dim=width,
        )
    )


def make_unet(widths=WIDTHS, depths=DEPTHS):
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        transformer_layers_per_block=depths,
        attention_head_dim=tuple(w // 32 for w in widths),  # diffusers reads it as the number of heads
        cross_attention_dim=sum(TEXT),
        norm_num_groups=8,  # few channels: small groups would normalise the picture's colour away
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=TEXT[1] + 6 * 32,
    )


class Pocket:
    """The four networks and the tokenizer. `init` and `vae`: folders to begin from."""

    def __init__(self, device, kind="plain", init=None, vae=None, vae_widths=None, unet_widths=None):
        self.device, self.kind, self.words = device, kind, {}
        self.bf16 = device == "cuda" or "avx512_bf16" in open("/proc/cpuinfo").read()
        words = os.path.join(HERE, "..", "tokenizer")
        vocab, merges = (os.path.join(words, f) for f in ("vocab.json", "merges.txt"))
        self.tokenizer = CLIPTokenizer(vocab, merges, model_max_length=77)
        size = len(json.load(open(vocab)))

        def get(cls, name, make):
            folder = os.path.join(init or "", name)
            there = init and os.path.exists(os.path.join(folder, "config.json"))
            return cls.from_pretrained(folder, torch_dtype=torch.float32) if there else make()

        self.unet = get(UNet2DConditionModel, "unet", lambda: make_unet(unet_widths or WIDTHS))
        self.te = get(
            CLIPTextModel, "text_encoder", lambda: make_text(size, CLIPTextModel, TEXT[0], 2, "quick_gelu")
        )
        self.te2 = get(
            CLIPTextModelWithProjection,
            "text_encoder_2",
            lambda: make_text(size, CLIPTextModelWithProjection, TEXT[1], 3, "gelu"),
        )
        if vae:
            self.vae = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32)
        else:
            self.vae = get(AutoencoderKL, "vae", lambda: make_vae(vae_widths or VAE_WIDTHS[device]))
        for net in (self.unet, self.te, self.te2, self.vae):
            net.to(device)
        if device == "cuda":
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        self.scheduler = DDIMScheduler(**schedule(kind))
        self.alphas_cumprod = self.scheduler.alphas_cumprod.to(device)
        self.run_unet, self.run_encode, self.run_decode = self.unet, self.vae.encode, self.vae.decode

    def compile(self):
        """Compile what training calls (a GPU's work; on a CPU the compiler takes longer than it saves)."""
        self.run_unet = torch.compile(self.unet)

    def amp(self):
        """bf16 for products where the device has it: a third less time on a CPU with AVX512-BF16."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)

    def tokens(self, captions):
        """Token ids (n, 77), word by word from a cache: the tokenizer is slower than a GPU's training step."""
        out = torch.full((len(captions), 77), self.tokenizer.pad_token_id)
        for i, text in enumerate(captions):
            ids = [self.tokenizer.bos_token_id]
            for word in re.findall(r"[a-z]+|[^\sa-z]+", text.lower()):
                if word not in self.words:
                    self.words[word] = self.tokenizer(word).input_ids[1:-1]
                ids += self.words[word]
            ids = ids[:76] + [self.tokenizer.eos_token_id]
            out[i, : len(ids)] = torch.tensor(ids)
        return out

    def text(self, captions):
        """Captions -> (penultimate states of both encoders (n, 77, 224), pooled state of the second (n, 128))."""
        tokens = self.tokens(captions).to(self.device)
        second = self.te2(tokens, output_hidden_states=True)
        first = self.te(tokens, output_hidden_states=True).hidden_states[-2]
        return torch.cat([first, second.hidden_states[-2]], -1).float(), second.text_embeds.float()

    @torch.no_grad()
    def encode(self, x, batch=16):
        """Images in [-1, 1] -> scaled latent means."""
        parts = []
        for part in x.split(batch):
            parts.append(self.vae.encode(part.to(self.device)).latent_dist.mean.float())
        return torch.cat(parts) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, z, batch=16):
        """Scaled latents -> images in [-1, 1]."""
        z = z / self.vae.config.scaling_factor
        return torch.cat([self.vae.decode(part).sample.float().clamp(-1, 1) for part in z.split(batch)])

    @torch.no_grad()
    def whiten(self, x):
        """Fold a per-channel mean 0 and deviation 1 of the latents of images `x` into the 1x1 convolutions."""
        self.vae.register_to_config(scaling_factor=1.0)
        z = self.encode(x).transpose(0, 1).flatten(1)
        mean, std = z.mean(1), z.std(1)
        before, after = self.vae.quant_conv, self.vae.post_quant_conv
        after.bias += (after.weight[..., 0, 0] * mean).sum(1)
        after.weight *= std.view(1, -1, 1, 1)
        c = CHANNELS
        before.weight[:c] /= std.view(-1, 1, 1, 1)
        before.bias[:c] = (before.bias[:c] - mean) / std
        before.bias[c:] -= 2 * std.log()
        return mean, std

    def v_error(self, z, captions, ids, t, noise, keep):
        """Squared error of v per sample (Salimans and Ho 2202.00512); text is zeroed where `keep` is 0."""
        ab = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        a, s = ab.sqrt(), (1 - ab).sqrt()
        with self.amp():
            states, pooled = self.text(captions)
            added = dict(text_embeds=pooled * keep.view(-1, 1), time_ids=ids)
            out = self.run_unet(
                a * z + s * noise, t, states * keep.view(-1, 1, 1), added_cond_kwargs=added
            ).sample
        return ((out.float() - (a * noise - s * z)) ** 2).mean((1, 2, 3))

    @torch.no_grad()
    def sample(self, prompts, ids, guidance=3.0, steps=24, seed=1, interval=(0.0, 1.0)):
        """DDIM with classifier-free guidance against zeros inside `interval` (shares of the steps)."""
        states, pooled = self.text(prompts)
        n = len(prompts)
        ids = torch.tensor(ids, dtype=torch.float32, device=self.device)
        x = torch.randn(n, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(seed)).to(self.device)
        self.scheduler.set_timesteps(steps)
        for k, t in enumerate(self.scheduler.timesteps):

            def run(keep):
                added = dict(text_embeds=pooled * keep, time_ids=ids)
                return self.unet(x, t, states * keep, added_cond_kwargs=added).sample

            out = run(1.0)
            if interval[0] <= k / steps < interval[1] and guidance != 1:
                free = run(0.0)
                out = free + guidance * (out - free)
            x = self.scheduler.step(out, t, x).prev_sample
        return self.decode(x)
