//! The text in which other programs keep how a picture was made: AUTOMATIC1111's `parameters`, which many
//! follow.
//!
//! The prompt comes first, over any number of lines, then the negative prompt, then a last line of
//! `Key: value` pairs.

/// What is taken from such a text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Foreign {
    /// What was drawn.
    pub prompt: String,
    /// What was steered away from.
    pub negative_prompt: Option<String>,
    /// Denoising steps.
    pub steps: Option<u32>,
    /// Classifier-free guidance scale.
    pub guidance_scale: Option<f32>,
    /// The seed.
    pub seed: Option<u64>,
    /// Width and height of the final picture in pixels.
    pub size: Option<(u32, u32)>,
    /// The model's name there.
    pub model: Option<String>,
    /// The sampler's name there.
    pub sampler: Option<String>,
}

impl Foreign {
    /// Takes a text apart; `None` for a text of another kind.
    pub fn parse(text: &str) -> Option<Self> {
        const NEGATIVE: &str = "Negative prompt:";
        let lines: Vec<&str> = text.trim().lines().collect();
        let settings = lines.iter().rposition(|line| line.trim_start().starts_with("Steps: "))?;
        let negative = lines[..settings].iter().position(|line| line.starts_with(NEGATIVE));
        let prompt = lines[..negative.unwrap_or(settings)].join("\n");
        let negative_prompt =
            negative.map(|first| lines[first..settings].join("\n")[NEGATIVE.len()..].trim().to_owned());
        let pairs = pairs(&lines[settings..].join(" "));
        let value = |key: &str| pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        let size = |key: &str| {
            let (width, height) = value(key)?.split_once('x')?;
            Some((width.trim().parse::<u32>().ok()?, height.trim().parse::<u32>().ok()?))
        };
        let enlarged = |(width, height): (u32, u32)| {
            let scale = value("Hires upscale").and_then(|v| v.parse::<f64>().ok()).filter(|s| *s >= 1.0);
            let side = |pixels: u32| (f64::from(pixels) * scale.unwrap_or(1.0)).round() as u32;
            (side(width), side(height))
        };
        Some(Self {
            prompt,
            negative_prompt,
            steps: value("Steps").and_then(|v| v.parse().ok()),
            guidance_scale: value("CFG scale").and_then(|v| v.parse().ok()),
            seed: value("Seed").and_then(|v| v.parse().ok()),
            size: size("Pixelsmith size")
                .or_else(|| size("Hires resize"))
                .or_else(|| size("Size").map(enlarged)),
            model: value("Model").map(str::to_owned),
            sampler: value("Sampler").map(str::to_owned),
        })
    }
}

/// `Key: value, Key: "a value, with a comma"`.
fn pairs(line: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = line.trim();
    while let Some((key, after)) = rest.split_once(':') {
        let after = after.trim_start();
        let (value, left) = match serde_json::Deserializer::from_str(after).into_iter::<String>().next() {
            Some(Ok(value)) if after.starts_with('"') => {
                let end = serde_json::to_string(&value).map_or(0, |s| s.len());
                // What escapes were written otherwise is looked for.
                let end = after.get(end..).and_then(|s| s.find(',')).map_or(after.len(), |at| end + at);
                (value, &after[end..])
            }
            _ => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        pairs.push((key.trim().to_owned(), value));
        rest = left.trim_start_matches(',').trim_start();
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Settings;

    #[test]
    fn the_usual_text_is_taken_apart() {
        let text = "a fox, (forest:1.2),\nwatercolour\nNegative prompt: blurry,\nugly\nSteps: 25, Sampler: DPM++ 2M, \
                    CFG scale: 6.5, Seed: 4294967296, Size: 512x768, Model hash: abc, Model: sd_xl, \
                    Lora hashes: \"a: 1, b: 2\", Hires upscale: 1.5, Version: v1.9";
        let expected = Foreign {
            prompt: "a fox, (forest:1.2),\nwatercolour".into(),
            negative_prompt: Some("blurry,\nugly".into()),
            steps: Some(25),
            guidance_scale: Some(6.5),
            seed: Some(4_294_967_296),
            size: Some((768, 1152)),
            model: Some("sd_xl".into()),
            sampler: Some("DPM++ 2M".into()),
        };
        assert_eq!(Foreign::parse(text), Some(expected));
        assert_eq!(
            Foreign::parse("Steps: 1, Seed: x").map(|f| (f.prompt, f.seed)),
            Some((String::new(), None))
        );
        assert_eq!(Foreign::parse("a photograph of steps"), None);
    }

    #[test]
    fn our_own_text_is_understood() {
        let settings = Settings::new(crate::spec::tests::spec());
        let found = Foreign::parse(&settings.to_parameters()).unwrap();
        assert_eq!((found.prompt, found.seed), (settings.spec.prompt, Some(settings.spec.seed)));
        assert_eq!(found.size, Some((32, 32)));
    }
}
