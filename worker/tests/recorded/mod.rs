//! Tensors recorded from the reference programs, and how far others are from them.

use std::path::{Path, PathBuf};

use gigasmith_proto::domain::{Array, Conditioning, NoiseTask, PagScale};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)
}

/// One recorded case.
pub(crate) struct Case {
    bytes: Vec<u8>,
    pub(crate) json: Value,
}

impl Case {
    pub(crate) fn read(name: &'static str) -> Self {
        let folder = golden(name);
        Self {
            bytes: std::fs::read(folder.join("trace.safetensors")).unwrap(),
            json: serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap(),
        }
    }

    pub(crate) fn get(&self, tensor: &str) -> Array {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(tensor).unwrap();
        let data = match view.dtype() {
            Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => {
                view.data().as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
            }
            other => panic!("{tensor} is {other:?}"),
        };
        let shape: Vec<usize> = view.shape().to_vec();
        let shape = if shape.len() > 1 && shape[0] == 1 { shape[1..].to_vec() } else { shape };
        Array::new(shape, data).unwrap()
    }

    pub(crate) fn has(&self, tensor: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(tensor).is_ok()
    }

    pub(crate) fn number(&self, key: &str) -> f64 {
        self.json[key].as_f64().unwrap()
    }

    /// What the recorded program conditioned on.
    pub(crate) fn conditioning(&self) -> Conditioning {
        Conditioning {
            prompt: self.get("prompt_embeds"),
            pooled: self.get("pooled_prompt_embeds"),
            negative: (self.number("guidance_scale") > 1.0)
                .then(|| (self.get("negative_prompt_embeds"), self.get("negative_pooled_prompt_embeds"))),
        }
    }

    pub(crate) fn task(
        &self,
        latent: Array,
        timestep: u64,
        time_ids: [f32; 6],
        conditioning: &Conditioning,
    ) -> NoiseTask {
        let scale = self.number("pag_scale") as f32;
        let blocks = self.json["pag_applied_layers"].as_array().unwrap();
        let blocks = blocks.iter().map(|b| b.as_str().unwrap().to_owned()).collect();
        NoiseTask {
            latent: latent.into(),
            wire: Default::default(),
            timestep: timestep as u32,
            time_ids,
            conditioning: conditioning.id(),
            guidance_scale: self.number("guidance_scale") as f32,
            pag: (scale > 0.0).then_some(PagScale { scale, blocks }),
        }
    }
}

/// Relative L2 distance.
pub(crate) fn distance(got: &Array, wanted: &Array) -> f64 {
    assert_eq!(got.shape(), wanted.shape());
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = got.data().iter().zip(wanted.data()).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = wanted.data().iter().map(|v| square(*v)).sum();
    (error / norm.max(1e-30)).sqrt()
}

pub(crate) fn largest_difference(got: &Array, wanted: &Array) -> f32 {
    assert_eq!(got.shape(), wanted.shape());
    got.data().iter().zip(wanted.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Rows `y..y+h` and columns `x..x+w` of every channel.
pub(crate) fn window(array: &Array, y: usize, x: usize, h: usize, w: usize) -> Array {
    let (channels, height, width) = array.chw().unwrap();
    let mut data = Vec::with_capacity(channels * h * w);
    for c in 0..channels {
        for row in y..y + h {
            let start = (c * height + row) * width + x;
            data.extend_from_slice(&array.data()[start..start + w]);
        }
    }
    Array::new([channels, h, w], data).unwrap()
}

pub(crate) fn divided(array: &Array, by: f32) -> Array {
    Array::new(array.shape().to_vec(), array.data().iter().map(|v| v / by).collect()).unwrap()
}

/// The picture as (3, h, w) in [-1, 1].
pub(crate) fn picture(path: &Path) -> Array {
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap())).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    let (w, h) = (info.width as usize, info.height as usize);
    let data = (0..3).flat_map(|c| bytes[..3 * w * h].chunks(3).map(move |p| f32::from(p[c]) / 127.5 - 1.0));
    Array::new([3, h, w], data.collect()).unwrap()
}
