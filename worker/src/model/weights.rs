//! Weights by name, from mapped safetensors files.
//!
//! [`Weights`] is one component's tensors, whatever files they are spread over. [`Scope`] hands
//! them to layers by dotted name, checks every shape, and remembers which were taken, so that
//! [`Weights::finish`] can refuse files with tensors that the network has no place for: such files
//! belong to another network than their configuration says.
//!
//! Half-precision weights widen exactly; narrowing rounds to nearest even.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::error::LoadError;
use super::files::{Blob, ModelFiles};
use super::layout::Variant;

/// Where a tensor lies.
#[derive(Debug, Clone)]
struct Entry {
    blob: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// Whether tensors are read or only checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Names and shapes are checked; every tensor is a scalar zero. Finds every fault of the files
    /// in milliseconds, without touching the weights.
    Check,
    /// Tensors are read.
    Read,
}

/// The tensors of one component.
#[derive(Debug)]
pub(crate) struct Weights {
    /// What to call the whole in messages: the only file, or the index.
    name: String,
    blobs: Vec<(String, Blob)>,
    entries: BTreeMap<String, Entry>,
}

impl Weights {
    /// Opens a component's weights, in (folder, stem): one file, or shards with an index, of the variant that is
    /// wanted most of those there.
    pub(crate) fn open(
        files: &ModelFiles,
        (folder, stem): (&str, &str),
        variant: Variant,
    ) -> Result<Self, LoadError> {
        let Some(path) = super::layout::weights(&|path| files.exists(path), (folder, stem), variant) else {
            return Err(LoadError::MissingFile {
                file: files.name(&format!("{folder}/{stem}.safetensors")),
                remedy: "weights must be safetensors (one file, shards with an index, or the fp16 variant); \
                         convert other formats first"
                    .into(),
            });
        };
        let mut weights = Self { name: files.name(&path), blobs: Vec::new(), entries: BTreeMap::new() };
        if path.ends_with(".json") {
            weights.add_shards(files, folder, &path)?;
        } else {
            weights.add_file(files, &path)?;
        }
        Ok(weights)
    }

    fn add_shards(&mut self, files: &ModelFiles, folder: &str, index: &str) -> Result<(), LoadError> {
        let map = super::layout::weight_map(&files.json(index)?)
            .map_err(|reason| LoadError::Json { file: files.name(index), reason })?;
        let shards: BTreeSet<&String> = map.values().collect();
        for shard in shards {
            self.add_file(files, &format!("{folder}/{shard}"))?;
        }
        for (tensor, shard) in &map {
            let file = files.name(&format!("{folder}/{shard}"));
            let there = self.entries.get(tensor).is_some_and(|e| self.blobs[e.blob].0 == file);
            if !there {
                return Err(LoadError::DamagedWeights {
                    file,
                    reason: format!("the index {index} promises tensor `{tensor}`, which is not in it"),
                });
            }
        }
        Ok(())
    }

    fn add_file(&mut self, files: &ModelFiles, path: &str) -> Result<(), LoadError> {
        let file = files.name(path);
        let blob = files.open(path)?;
        let damaged = |reason: String| LoadError::DamagedWeights { file: file.clone(), reason };
        // `deserialize` checks that the header parses, that tensors neither overlap nor leave
        // holes, and that the file is exactly as long as they need.
        SafeTensors::deserialize(&blob).map_err(|e| damaged(explain(&e, blob.len())))?;
        let (header, metadata) = SafeTensors::read_metadata(&blob).map_err(|e| damaged(e.to_string()))?;
        let index = self.blobs.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                blob: index,
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: header + 8 + start,
                end: header + 8 + end,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(damaged(format!("tensor `{name}` is also in another shard")));
            }
        }
        self.blobs.push((file, blob));
        Ok(())
    }

    /// The number of all values.
    pub(crate) fn count(&self) -> u64 {
        self.entries.values().map(|e| e.shape.iter().product::<usize>() as u64).sum()
    }

    /// Every tensor as (name, number format, shape, bytes), sorted by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, String, &[usize], &[u8])> {
        self.entries.iter().map(|(name, e)| {
            let bytes = &self.blobs[e.blob].1[e.start..e.end];
            (name.as_str(), format!("{:?}", e.dtype), e.shape.as_slice(), bytes)
        })
    }

    /// Runs `build` over all the tensors and refuses what it did not take.
    pub(crate) fn build<T>(
        &self,
        mode: Mode,
        device: &Device,
        dtype: DType,
        build: impl FnOnce(&Scope<'_>) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        let taken = RefCell::new(BTreeSet::new());
        let scope = Scope { weights: self, taken: &taken, mode, device, dtype, prefix: String::new() };
        let built = build(&scope)?;
        self.finish(&taken.borrow())?;
        Ok(built)
    }

    fn finish(&self, taken: &BTreeSet<String>) -> Result<(), LoadError> {
        let mut unused =
            self.entries.iter().filter(|(name, _)| !taken.contains(*name) && !is_known_buffer(name));
        let Some((tensor, entry)) = unused.next() else { return Ok(()) };
        let more = match unused.count() {
            0 => String::new(),
            n => format!(", nor have {n} others"),
        };
        Err(LoadError::UnusedTensor {
            file: self.blobs[entry.blob].0.clone(),
            tensor: tensor.clone(),
            shape: entry.shape.clone(),
            more,
        })
    }
}

/// Tensors that some exporters store although they are no weights.
pub(crate) fn is_known_buffer(name: &str) -> bool {
    name.ends_with("embeddings.position_ids") || name == "logit_scale"
}

fn explain(error: &safetensors::SafeTensorError, length: usize) -> String {
    use safetensors::SafeTensorError as E;
    match error {
        E::HeaderTooSmall | E::InvalidHeaderLength | E::MetadataIncompleteBuffer => {
            format!("its {length} bytes are not the number its header calls for ({error})")
        }
        other => other.to_string(),
    }
}

/// A view of the weights under one dotted prefix.
pub(crate) struct Scope<'a> {
    weights: &'a Weights,
    taken: &'a RefCell<BTreeSet<String>>,
    mode: Mode,
    device: &'a Device,
    dtype: DType,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The scope `self.name`.
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Scope<'a> {
        Scope { prefix: self.full(&name.to_string()), ..*self }
    }

    /// Whether the tensor exists.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.entries.contains_key(&self.full(name))
    }

    /// The tensor `name`, which must have `shape`.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        self.get_any(name, &[shape])
    }

    /// The tensor `name`, which must have one of `shapes` (of equal size), in the first of them.
    pub(crate) fn get_any(&self, name: &str, shapes: &[&[usize]]) -> Result<Tensor, LoadError> {
        let full = self.full(name);
        let wanted = shapes[0];
        let Some(entry) = self.weights.entries.get(&full) else {
            return Err(LoadError::MissingTensor {
                file: self.weights.name.clone(),
                tensor: full,
                expected: wanted.to_vec(),
            });
        };
        let (file, blob) = &self.weights.blobs[entry.blob];
        if !shapes.contains(&entry.shape.as_slice()) {
            return Err(LoadError::WrongShape {
                file: file.clone(),
                tensor: full,
                expected: wanted.to_vec(),
                actual: entry.shape.clone(),
            });
        }
        if !matches!(entry.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(LoadError::WrongDtype {
                file: file.clone(),
                tensor: full,
                dtype: format!("{:?}", entry.dtype),
            });
        }
        self.taken.borrow_mut().insert(full);
        if self.mode == Mode::Check {
            return Ok(Tensor::zeros((), self.dtype, &Device::Cpu)?);
        }
        let bytes = &blob[entry.start..entry.end];
        Ok(self.place(bytes, entry.dtype, wanted)?)
    }

    fn place(&self, bytes: &[u8], from: Dtype, shape: &[usize]) -> candle_core::Result<Tensor> {
        let host = match self.dtype {
            // A file's own half format is copied as it is: no detour through f32.
            DType::F16 if from == Dtype::F16 => {
                Tensor::from_vec(pairs(bytes).map(f16::from_le_bytes).collect(), shape, &Device::Cpu)?
            }
            DType::BF16 if from == Dtype::BF16 => {
                Tensor::from_vec(pairs(bytes).map(bf16::from_le_bytes).collect(), shape, &Device::Cpu)?
            }
            dtype => {
                let wide: Vec<f32> = match from {
                    Dtype::F16 => pairs(bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
                    Dtype::BF16 => pairs(bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
                    Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
                    _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                };
                Tensor::from_vec(wide, shape, &Device::Cpu)?.to_dtype(dtype)?
            }
        };
        host.to_device(self.device)
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = [u8; 2]> {
    bytes.as_chunks().0.iter().copied()
}
