//! Weights by name, from safetensors files.
//!
//! [`Weights`] is one component's tensors, whatever files they are spread over. [`Scope`] hands
//! them to layers by dotted name, checks every shape, and remembers which were taken, so that
//! [`Weights::finish`] can refuse files with tensors that the network has no place for: such files
//! belong to another network than their configuration says.
//!
//! Half-precision weights widen exactly; narrowing rounds to nearest even.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::error::LoadError;
use super::files::{Blob, ModelFiles};
use super::layout::Variant;
use super::names::Naming;

/// Where a tensor lies.
#[derive(Debug, Clone)]
struct Entry {
    blob: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of the file.
    range: Range<u64>,
}

/// Bytes of a header, at most: many times what any network has.
const LONGEST_HEADER: u64 = 16 << 20;

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
    blobs: Vec<Blob>,
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

    /// The same tensors under the names that this program has for them, without those that nothing reads.
    pub(crate) fn named(mut self, naming: Naming) -> Result<Self, LoadError> {
        let mut named = BTreeMap::new();
        for (name, entry) in std::mem::take(&mut self.entries) {
            let Some(canonical) = naming.canonical(&name) else { continue };
            let file = self.blobs[entry.blob].name().to_owned();
            if named.insert(canonical.clone(), entry).is_some() {
                let reason = format!("tensor `{canonical}` is there under two names");
                return Err(LoadError::DamagedWeights { file, reason });
            }
        }
        self.entries = named;
        Ok(self)
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
            let there = self.entries.get(tensor).is_some_and(|e| self.blobs[e.blob].name() == file);
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
        let blob = files.open(path)?;
        let damaged = |reason: String| LoadError::DamagedWeights { file: blob.name().to_owned(), reason };
        let (header, metadata) = read_header(&blob)?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                blob: self.blobs.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                range: header + start as u64..header + end as u64,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(damaged(format!("tensor `{name}` is also in another shard")));
            }
        }
        self.blobs.push(blob);
        Ok(())
    }

    /// The number of all values.
    pub(crate) fn count(&self) -> u64 {
        self.entries.values().map(|e| e.shape.iter().product::<usize>() as u64).sum()
    }

    /// Every tensor as (name, number format, shape, length in bytes), sorted by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, String, &[usize], u64)> {
        self.entries.iter().map(|(name, e)| {
            (name.as_str(), format!("{:?}", e.dtype), e.shape.as_slice(), e.range.end - e.range.start)
        })
    }

    /// Reads a tensor that [`Self::iter`] gave, in pieces.
    pub(crate) fn read(&self, name: &str, take: impl FnMut(&[u8])) -> Result<(), LoadError> {
        let entry = &self.entries[name];
        self.blobs[entry.blob].read(entry.range.clone(), take)
    }

    /// Fails where a file is no longer what it was when it was opened.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        self.blobs.iter().try_for_each(Blob::check)
    }

    /// Runs `build` over all the tensors and refuses what it did not take, and what was read of files that
    /// changed meanwhile.
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
        if mode == Mode::Read {
            self.check()?;
        }
        Ok(built)
    }

    fn finish(&self, taken: &BTreeSet<String>) -> Result<(), LoadError> {
        let mut unused = self.entries.iter().filter(|(name, _)| !taken.contains(*name));
        let Some((tensor, entry)) = unused.next() else { return Ok(()) };
        let more = match unused.count() {
            0 => String::new(),
            n => format!(", nor have {n} others"),
        };
        Err(LoadError::UnusedTensor {
            file: self.blobs[entry.blob].name().to_owned(),
            tensor: tensor.clone(),
            shape: entry.shape.clone(),
            more,
        })
    }
}

/// What a file's header says, and where it ends. Tensors neither overlap nor leave holes, have as many bytes as
/// their shapes call for, and end where the file does.
fn read_header(blob: &Blob) -> Result<(u64, Metadata), LoadError> {
    const SIZE: u64 = 8;
    let damaged = |reason: String| LoadError::DamagedWeights { file: blob.name().to_owned(), reason };
    let wrong = |what: &str| {
        damaged(format!("its {} bytes are not the number its header calls for ({what})", blob.len()))
    };
    if blob.len() < SIZE {
        return Err(wrong("no room for a header"));
    }
    let mut size = Vec::new();
    blob.read(0..SIZE, |piece| size.extend_from_slice(piece))?;
    let length = u64::from_le_bytes(size.try_into().expect("as many bytes as were asked for"));
    if length > LONGEST_HEADER {
        return Err(damaged(format!("a header of {length} bytes; at most {LONGEST_HEADER} are supported")));
    }
    let end = SIZE + length;
    if end > blob.len() {
        return Err(wrong("it is longer"));
    }
    let mut header = Vec::new();
    blob.read(SIZE..end, |piece| header.extend_from_slice(piece))?;
    // Overlaps, holes, overflows and sizes are checked here.
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| damaged(format!("its header: {e}")))?;
    let data = metadata.tensors().into_values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
    if end.checked_add(data) != Some(blob.len()) {
        return Err(wrong(&format!("{data} after the header")));
    }
    Ok((end, metadata))
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
        let file = self.weights.blobs[entry.blob].name();
        if !shapes.contains(&entry.shape.as_slice()) {
            return Err(LoadError::WrongShape {
                file: file.to_owned(),
                tensor: full,
                expected: wanted.to_vec(),
                actual: entry.shape.clone(),
            });
        }
        if !matches!(entry.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(LoadError::WrongDtype {
                file: file.to_owned(),
                tensor: full,
                dtype: format!("{:?}", entry.dtype),
            });
        }
        self.taken.borrow_mut().insert(full);
        if self.mode == Mode::Check {
            return Ok(Tensor::zeros((), self.dtype, &Device::Cpu)?);
        }
        self.place(entry, wanted)
    }

    fn place(&self, entry: &Entry, shape: &[usize]) -> Result<Tensor, LoadError> {
        let (blob, from) = (&self.weights.blobs[entry.blob], entry.dtype);
        let count = shape.iter().product();
        let host = match self.dtype {
            // A file's own half format is copied as it is: no detour through f32.
            DType::F16 if from == Dtype::F16 => {
                Tensor::from_vec(values(blob, entry, count, f16::from_le_bytes)?, shape, &Device::Cpu)?
            }
            DType::BF16 if from == Dtype::BF16 => {
                Tensor::from_vec(values(blob, entry, count, bf16::from_le_bytes)?, shape, &Device::Cpu)?
            }
            dtype => {
                let wide: Vec<f32> = match from {
                    Dtype::F16 => values(blob, entry, count, |b| f16::from_le_bytes(b).to_f32())?,
                    Dtype::BF16 => values(blob, entry, count, |b| bf16::from_le_bytes(b).to_f32())?,
                    Dtype::F64 => values(blob, entry, count, |b| f64::from_le_bytes(b) as f32)?,
                    _ => values(blob, entry, count, f32::from_le_bytes)?,
                };
                Tensor::from_vec(wide, shape, &Device::Cpu)?.to_dtype(dtype)?
            }
        };
        Ok(host.to_device(self.device)?)
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

/// A tensor's values, `N` bytes each.
fn values<T, const N: usize>(
    blob: &Blob,
    entry: &Entry,
    count: usize,
    value: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, LoadError> {
    let mut values = Vec::with_capacity(count);
    blob.read(entry.range.clone(), |piece| {
        values.extend(piece.as_chunks().0.iter().map(|bytes| value(*bytes)));
    })?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FILE: &str = "w/model.safetensors";

    /// A folder with one file of weights: this header, and so many bytes.
    fn folder(header: &str, bytes: usize) -> (tempfile::TempDir, ModelFiles) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("w")).unwrap();
        write(&folder.path().join(FILE), header.len() as u64, header, bytes);
        let files = ModelFiles::Folder(folder.path().to_owned());
        (folder, files)
    }

    fn write(path: &Path, length: u64, header: &str, bytes: usize) {
        let mut file = length.to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend((0..bytes).map(|i| (i % 60) as u8));
        std::fs::write(path, file).unwrap();
    }

    fn open(files: &ModelFiles) -> Result<Weights, LoadError> {
        Weights::open(files, ("w", "model"), Variant::Full)
    }

    fn build(weights: &Weights) -> Result<Tensor, LoadError> {
        weights.build(Mode::Read, &Device::Cpu, DType::F32, |scope| scope.get("a", &[3]))
    }

    const PLAIN: &str = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#;

    #[test]
    fn every_format_is_read_as_it_is_meant() {
        let (_folder, files) = folder(PLAIN, 12);
        let weights = open(&files).unwrap();
        let values: Vec<f32> = build(&weights).unwrap().to_vec1().unwrap();
        let bytes: Vec<u8> = (0..12).collect();
        assert_eq!(values, bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>());
        // Longer than what is read at a time, and from an odd place on.
        let (_folder, files) = folder(
            r#"{"x":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},"a":{"dtype":"F16","shape":[700000],"data_offsets":[3,1400003]}}"#,
            1_400_003,
        );
        let weights = open(&files).unwrap();
        let built = weights.build(Mode::Read, &Device::Cpu, DType::F32, |scope| scope.get("a", &[700_000]));
        assert!(built.unwrap_err().to_string().contains("tensor `x`"), "it was not taken");
        let mut whole = Vec::new();
        weights.read("a", |piece| whole.extend_from_slice(piece)).unwrap();
        assert_eq!(whole, (3..1_400_003).map(|i| (i % 60) as u8).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_header_may_not_say() {
        let tensor = |name: &str, dtype: &str, shape: &str, offsets: &str| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
        };
        let one = |dtype, shape, offsets| format!("{{{}}}", tensor("a", dtype, shape, offsets));
        let huge = format!("[{0},{0}]", 1u64 << 40);
        let cases = [
            (one("F32", "[3]", "[0,16]"), "its header"),
            (one("F32", "[3]", "[4,16]"), "its header"),
            (one("F32", "[3]", "[12,0]"), "its header"),
            (one("F32", "[4]", "[0,16]"), "not the number"),
            (one("F32", "[2]", "[0,8]"), "not the number"),
            (one("F32", &huge, "[0,12]"), "overflow"),
            (one("F32", "[-3]", "[0,12]"), "its header"),
            (one("F32", "[3]", "[0,18446744073709551615]"), "its header"),
            (one("F4", "[3]", "[0,12]"), "its header"),
            (one("\\u001b[2J", "[3]", "[0,12]"), "\\u{1b}[2J"),
            (
                format!(
                    "{{{},{}}}",
                    tensor("a", "F32", "[3]", "[0,12]"),
                    tensor("b", "F32", "[1]", "[8,12]")
                ),
                "its header",
            ),
            ("{".into(), "its header"),
            ("[".repeat(10_000), "its header"),
            (String::new(), "its header"),
        ];
        for (header, reason) in cases {
            let (folder, files) = folder(&header, 12);
            let error = open(&files).unwrap_err().to_string();
            let names_file = error.contains(folder.path().join(FILE).to_str().unwrap());
            assert!(error.contains(reason) && names_file && !error.contains('\x1b'), "{header:.60}: {error}");
        }
        for length in [0, 5, 57, 1 << 30, u64::MAX] {
            let (folder, files) = folder(PLAIN, 12);
            write(&folder.path().join(FILE), length, PLAIN, 12);
            assert!(open(&files).is_err(), "a header of {length} bytes");
        }
        for bytes in 0..8 {
            let (folder, files) = folder(PLAIN, 12);
            std::fs::write(folder.path().join(FILE), vec![0; bytes]).unwrap();
            assert!(open(&files).unwrap_err().to_string().contains("no room for a header"));
        }
    }

    #[test]
    fn a_tensor_of_two_shards_is_refused_and_so_is_a_shard_elsewhere() {
        let (folder, files) = folder(PLAIN, 12);
        let place = |name: &str| folder.path().join("w").join(name);
        std::fs::rename(folder.path().join(FILE), place("1.safetensors")).unwrap();
        std::fs::copy(place("1.safetensors"), place("2.safetensors")).unwrap();
        let index = |map: &str| {
            std::fs::write(place("model.safetensors.index.json"), format!("{{\"weight_map\":{map}}}"))
                .unwrap();
            open(&files).unwrap_err().to_string()
        };
        let error = index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#);
        assert!(error.contains("tensor `a` is also in another shard"), "{error}");
        for outside in ["..", "../w/1.safetensors", "C:x", "/etc/passwd", ""] {
            let error = index(&format!("{{\"a\":\"{outside}\"}}"));
            assert!(error.contains("leaves the folder") && error.contains("index.json"), "{error}");
        }
        let error = index(r#"{"a":"\u001b[2J"}"#);
        assert!(error.contains("leaves the folder") && !error.contains('\x1b'), "{error}");
        let error = index(r#"{"a":"nowhere.safetensors"}"#);
        assert!(error.contains("nowhere.safetensors is missing"), "{error}");
    }

    #[test]
    fn weights_that_change_after_they_were_read_are_not_used() {
        let later = |path: &Path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
        };
        let (folder, files) = folder(PLAIN, 12);
        let path = folder.path().join(FILE);
        let weights = open(&files).unwrap();
        build(&weights).unwrap();
        later(&path);
        let error = build(&weights).unwrap_err().to_string();
        assert!(
            error.contains("changed while this worker used it") && error.contains("written to"),
            "{error}"
        );
        let weights = open(&files).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(70).unwrap();
        let error = build(&weights).unwrap_err().to_string();
        assert!(error.contains(&format!("{} bytes then, 70 now", 8 + PLAIN.len() + 12)), "{error}");
        // The check of names and shapes reads nothing.
        let check = weights.build(Mode::Check, &Device::Cpu, DType::F32, |scope| scope.get("a", &[3]));
        assert!(check.is_ok());
    }
}
