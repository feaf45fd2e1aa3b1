//! Borrowing a CPU tensor's values as a slice, and making a tensor of a vector.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, bail};

/// The values of an f32 tensor on the CPU, borrowed.
pub(super) struct Host<'a> {
    storage: candle_core::StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Host<'a> {
    /// Borrows `tensor`; any strides.
    pub(super) fn strided(tensor: &'a Tensor) -> Result<Self> {
        if tensor.dtype() != DType::F32 {
            bail!("a CPU kernel was given {:?} values", tensor.dtype());
        }
        let (storage, layout) = tensor.storage_and_layout();
        Ok(Self { storage, layout })
    }

    /// Borrows `tensor`, which must be contiguous.
    pub(super) fn contiguous(tensor: &'a Tensor) -> Result<Self> {
        if !tensor.is_contiguous() {
            bail!("a CPU kernel was given a strided tensor {:?}", tensor.layout());
        }
        Self::strided(tensor)
    }

    /// The values from the tensor's first on: exactly its elements where it is contiguous, at least
    /// all that its strides reach otherwise.
    pub(super) fn values(&self) -> Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => {
                let start = self.layout.start_offset();
                let end = if self.layout.is_contiguous() {
                    start + self.layout.shape().elem_count()
                } else {
                    values.len()
                };
                Ok(&values[start..end])
            }
            _ => bail!("a CPU kernel was given values that are elsewhere"),
        }
    }

    /// The strides, in elements.
    pub(super) fn strides(&self) -> &[usize] {
        self.layout.stride()
    }
}

/// A tensor of `values`, without copying.
pub(super) fn tensor(values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}
