//! diffusers' pipeline classes: which ones are made of SDXL's parts, and what the others are. Pure.

/// Why a pipeline is none that makes pictures of texts with SDXL's parts; `None` where it is one.
pub(crate) fn refusal(class: &str) -> Option<String> {
    let what = match class.strip_prefix("StableDiffusionXL") {
        Some(kind) if kind.contains("ControlNet") => "a ControlNet",
        Some(kind) if kind.contains("Adapter") => "a T2I adapter",
        Some(kind) if kind.contains("InstructPix2Pix") => "an editing model (InstructPix2Pix)",
        Some(_) => return None,
        None => family(class),
    };
    Some(format!("it is {what}; only SDXL models (StableDiffusionXLPipeline) are supported"))
}

/// What a pipeline of another family is.
fn family(class: &str) -> &'static str {
    // The longer names first.
    let families = [
        ("StableDiffusion3", "Stable Diffusion 3"),
        ("StableDiffusionControlNet", "a ControlNet of Stable Diffusion 1 or 2"),
        ("StableDiffusionInpaint", "an inpainting model of Stable Diffusion 1 or 2"),
        ("StableDiffusionInstructPix2Pix", "an editing model (InstructPix2Pix) of Stable Diffusion 1"),
        ("StableDiffusionDepth2Img", "the depth model of Stable Diffusion 2"),
        ("StableDiffusionUpscale", "an upscaling model of Stable Diffusion 2"),
        ("StableDiffusionLatentUpscale", "an upscaling model of Stable Diffusion 2"),
        ("StableDiffusion", "Stable Diffusion 1 or 2"),
        ("StableVideoDiffusion", "a video model"),
        ("StableCascade", "Stable Cascade"),
        ("LatentConsistencyModel", "an LCM of Stable Diffusion 1"),
        ("Flux", "FLUX"),
        ("Kolors", "Kolors (another text encoder than SDXL's)"),
        ("PixArt", "PixArt"),
        ("Sana", "Sana"),
        ("HunyuanDiT", "Hunyuan-DiT"),
        ("HunyuanVideo", "a video model"),
        ("AnimateDiff", "a video model"),
        ("CogVideoX", "a video model"),
        ("Wan", "a video model"),
        ("LTX", "a video model"),
        ("Kandinsky", "Kandinsky"),
        ("Wuerstchen", "Wuerstchen"),
        ("AuraFlow", "AuraFlow"),
        ("ZImage", "Z-Image"),
        ("QwenImage", "Qwen-Image"),
        ("Lumina", "Lumina"),
        ("Chroma", "Chroma"),
        ("IF", "DeepFloyd IF"),
    ];
    let found = families.into_iter().find(|(start, _)| class.starts_with(start));
    found.map_or("another kind of model", |(_, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelines_of_other_models_are_named() {
        for class in
            ["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLPAGPipeline"]
        {
            assert_eq!(refusal(class), None);
        }
        for (class, what) in [
            ("StableDiffusionPipeline", "it is Stable Diffusion 1 or 2;"),
            ("StableDiffusion3Pipeline", "it is Stable Diffusion 3;"),
            ("FluxPipeline", "it is FLUX;"),
            ("StableDiffusionXLControlNetPipeline", "it is a ControlNet;"),
            ("SomethingPipeline", "it is another kind of model;"),
        ] {
            assert!(refusal(class).unwrap().starts_with(what), "{class}");
        }
    }
}
