//! From `cpu`, `cuda`, `cuda:1`, `metal`, `auto` to a device, and from a device and a number format
//! to the class of its results.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};
use gigasmith_proto::domain::{Dtype, NumericClass};

use super::error::LoadError;
use super::kernels::simd::Isa;

/// Version of the arithmetic: raised by every change that alters any result's bytes.
const ALGORITHM: u32 = 2;

/// A device as the user names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best there is: CUDA, else Metal, else the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = LoadError;

    fn from_str(name: &str) -> Result<Self, LoadError> {
        let unknown = || LoadError::Device {
            device: name.to_owned(),
            reason: "unknown; use `auto`, `cpu`, `cuda`, `cuda:N` or `metal`".into(),
        };
        let lower = name.to_ascii_lowercase();
        let (kind, index) = match lower.split_once(':') {
            None => (&lower[..], None),
            Some((kind, index)) => (kind, Some(index.parse().map_err(|_| unknown())?)),
        };
        match (kind, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None | Some(0)) => Ok(Self::Cpu),
            // What an Apple GPU is called in PyTorch.
            ("metal" | "mps", None | Some(0)) => Ok(Self::Metal),
            ("gpu", None | Some(0)) if cfg!(feature = "metal") => Ok(Self::Metal),
            ("cuda" | "nvidia" | "gpu", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

/// How many patches go through the network in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BatchChoice {
    /// As many as the device can use, where that changes no result: on a CPU. One on a GPU.
    #[default]
    Auto,
    /// So many. A GPU then always computes so many, and gives results of a class of its own.
    Patches(usize),
}

/// Patches of a call, at most.
const LARGEST_BATCH: usize = 64;
/// Tokens of a call that keep a CPU busy.
const TOKENS: usize = 8192;

impl FromStr for BatchChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "auto" => Ok(Self::Auto),
            Ok(patches) if (1..=LARGEST_BATCH).contains(&patches) => Ok(Self::Patches(patches)),
            _ => Err(format!("use `auto`, or a number of patches from 1 to {LARGEST_BATCH}")),
        }
    }
}

impl fmt::Display for BatchChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Patches(patches) => patches.fmt(f),
        }
    }
}

impl BatchChoice {
    /// The choice that leads to a class of results.
    pub fn of_class(class: &NumericClass) -> Self {
        let patches = class.kernels.split('+').find_map(|part| part.strip_prefix("batch")?.parse().ok());
        patches.map_or(Self::Auto, Self::Patches)
    }

    /// Patches of a call on `device`, for a network of patches of `side` latent pixels.
    pub(crate) fn patches(self, device: &Device, side: usize) -> usize {
        match self {
            Self::Patches(patches) => patches,
            Self::Auto if device.is_cpu() => {
                // Two rows a patch: with guidance.
                (TOKENS / (2 * side.pow(2)).max(1)).clamp(1, 8)
            }
            Self::Auto => 1,
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    pub(crate) fn open(self) -> Result<Device, LoadError> {
        let fail = |reason: String| LoadError::Device { device: self.to_string(), reason };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if cfg!(feature = "cuda") => Ok(or_cpu(cuda(0))),
            Self::Auto if cfg!(feature = "metal") => Ok(or_cpu(Device::new_metal(0))),
            Self::Auto => Ok(Device::Cpu),
            Self::Cuda(index) if cfg!(feature = "cuda") => {
                cuda(index).map_err(|e| fail(format!("it cannot be opened: {e}")))
            }
            Self::Metal if cfg!(feature = "metal") => {
                Device::new_metal(0).map_err(|e| fail(format!("it cannot be opened: {e}")))
            }
            Self::Cuda(_) => Err(fail(absent("cudnn"))),
            Self::Metal => Err(fail(absent("metal"))),
        }
    }
}

/// An NVIDIA GPU.
fn cuda(index: usize) -> candle_core::Result<Device> {
    #[cfg(feature = "cuda")]
    return super::kernels::cuda::open(index);
    #[cfg(not(feature = "cuda"))]
    Device::new_cuda(index)
}

/// The GPU where there is one. A driver that fails is worth a word: the CPU is far slower.
fn or_cpu(gpu: candle_core::Result<Device>) -> Device {
    gpu.unwrap_or_else(|error| {
        tracing::warn!(%error, "no GPU can be opened; computing on the CPU");
        Device::Cpu
    })
}

fn absent(feature: &str) -> String {
    format!("this binary was built without it; build with `--features {feature}`, or use `cpu`")
}

/// The number format to compute in: as asked, else f32 on a CPU and f16 on a GPU.
pub(crate) fn dtype_for(device: &Device, asked: Option<Dtype>) -> Dtype {
    asked.unwrap_or(if device.is_cpu() { Dtype::F32 } else { Dtype::F16 })
}

/// The same in candle's terms.
pub(crate) fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

/// The class of results computed on `device` in `dtype`, `batch` patches a call.
pub(crate) fn numeric_class(device: &Device, dtype: Dtype, batch: usize) -> NumericClass {
    let (backend, mut kernels) = match device {
        // Products of bf16 round activations: other results than those of widened weights.
        Device::Cpu if dtype == Dtype::Bf16 && Isa::best().has_bf16() => {
            ("cpu", format!("{}+bf16", Isa::best().class()))
        }
        Device::Cpu => ("cpu", Isa::best().class().to_owned()),
        Device::Cuda(_) => ("cuda", cuda_kernels(device, dtype)),
        Device::Metal(_) => ("metal", "metal".to_owned()),
    };
    if !device.is_cpu() && batch > 1 {
        kernels += &format!("+batch{batch}");
    }
    NumericClass { backend: backend.to_owned(), kernels, dtype, algorithm: ALGORITHM }
}

/// What decides how libraries compute: the GPU's model and the libraries' versions; and which library's
/// attention in one kernel is used, if any.
#[cfg(feature = "cuda")]
fn cuda_kernels(device: &Device, dtype: Dtype) -> String {
    super::kernels::cuda::class(device).unwrap_or_else(|_| "unknown".to_owned())
        + fused_attention(device, candle_dtype(dtype))
}

#[cfg(feature = "cudnn")]
fn fused_attention(device: &Device, dtype: DType) -> &'static str {
    use super::kernels::fused::{Fused, usable};
    match usable(device, dtype) {
        Some(Fused::Cudnn) => "+sdpa",
        #[cfg(feature = "flash-attn")]
        Some(Fused::Flash) => "+flash",
        None => "",
    }
}

#[cfg(all(feature = "cuda", not(feature = "cudnn")))]
fn fused_attention(_: &Device, _: DType) -> &'static str {
    ""
}

#[cfg(not(feature = "cuda"))]
fn cuda_kernels(_: &Device, _: Dtype) -> String {
    "none".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_explained() {
        for name in ["auto", "cpu", "cuda:1", "metal"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for (other, device) in
            [("CUDA:1", "cuda:1"), ("nvidia", "cuda:0"), ("mps", "metal"), ("cpu:0", "cpu")]
        {
            assert_eq!(other.parse::<DeviceChoice>().unwrap().to_string(), device);
        }
        let gpu = if cfg!(feature = "metal") { DeviceChoice::Metal } else { DeviceChoice::Cuda(0) };
        assert_eq!("gpu".parse::<DeviceChoice>().unwrap(), gpu);
        for name in ["tpu", "cuda:", "cuda:x", "cpu:1", "auto:0", ""] {
            let error = name.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains("use `auto`"), "{error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_built_in_is_refused_with_a_remedy() {
        let error = DeviceChoice::Cuda(0).open().unwrap_err().to_string();
        assert_eq!(
            error,
            "device `cuda:0`: this binary was built without it; build with `--features cudnn`, or use `cpu`"
        );
    }
}
