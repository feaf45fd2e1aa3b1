//! Values on their way to a device and back.
//!
//! To and from an NVIDIA GPU they go through page-locked memory, which the GPU reads and writes on its own: nobody
//! waits for a copy, so that a call can be prepared, and the one before it answered, while the GPU computes.

#[cfg(feature = "cuda")]
use candle_core::Device;
#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::cuda::cudarc::driver::{CudaEvent, PinnedHostSlice};
use candle_core::{Result, Tensor};

/// The memory for copies, which is kept, with when the last copy from or to it is done: the library's own record of
/// that is off, with all the others (see `cuda::open`).
#[derive(Debug, Default)]
pub(crate) struct Staging {
    #[cfg(feature = "cuda")]
    spare: Vec<(PinnedHostSlice<f32>, Arc<CudaEvent>)>,
}

/// Values that are coming.
#[derive(Debug)]
pub(crate) enum Download {
    Here(Vec<f32>),
    #[cfg(feature = "cuda")]
    Coming(Coming),
}

/// A copy on its way to page-locked memory.
#[cfg(feature = "cuda")]
#[derive(Debug)]
pub(crate) struct Coming {
    memory: Option<PinnedHostSlice<f32>>,
    copied: Arc<CudaEvent>,
}

#[cfg(feature = "cuda")]
impl Drop for Coming {
    fn drop(&mut self) {
        if self.memory.is_some()
            && let Err(error) = self.copied.synchronize()
        {
            tracing::warn!(%error, "a copy that nobody wants any more failed");
        }
    }
}

impl Download {
    /// Whether they are here, so that nobody has to wait for them.
    pub(crate) fn is_here(&self) -> bool {
        match self {
            Self::Here(_) => true,
            #[cfg(feature = "cuda")]
            // A device that failed says so when it is waited for.
            Self::Coming(coming) => coming.copied.try_is_complete().unwrap_or(true),
        }
    }
}

impl Staging {
    /// Starts the copy of a tensor of f32.
    pub(crate) fn download(&mut self, tensor: &Tensor) -> Result<Download> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = tensor.device() {
            return self.download_pinned(tensor, device);
        }
        tensor.flatten_all()?.to_vec1().map(Download::Here)
    }

    /// Waits for the values.
    pub(crate) fn finish(&mut self, download: Download) -> Result<Vec<f32>> {
        match download {
            Download::Here(values) => Ok(values),
            #[cfg(feature = "cuda")]
            Download::Coming(mut coming) => {
                use candle_core::Error;
                coming.copied.synchronize().map_err(Error::wrap)?;
                let memory = coming.memory.take().expect("there until it is finished");
                let all = memory.as_slice().map_err(Error::wrap)?.to_vec();
                self.spare.insert(0, (memory, Arc::clone(&coming.copied)));
                Ok(all)
            }
        }
    }
}

#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "memory that is written before it is read")]
mod pinned {
    use std::sync::Arc;

    use candle_core::cuda::cudarc::driver::{CudaEvent, PinnedHostSlice};
    use candle_core::{CudaDevice, Error, Result, Storage, Tensor, bail};

    use super::{Coming, Download, Staging};
    use crate::model::kernels::cuda::Fill;

    /// Pieces of memory that are kept for other sizes than the latest.
    const SPARE: usize = 8;

    impl Staging {
        /// Page-locked memory for so many values, and no more: copies are of the whole of it. With when the last copy
        /// is done, if there was one.
        fn take(
            &mut self,
            count: usize,
            device: &CudaDevice,
        ) -> Result<(PinnedHostSlice<f32>, Option<Arc<CudaEvent>>)> {
            if let Some(at) = self.spare.iter().position(|(spare, _)| spare.len() == count) {
                let (memory, copied) = self.spare.remove(at);
                return Ok((memory, Some(copied)));
            }
            for (_, copied) in self.spare.drain(SPARE.min(self.spare.len())..) {
                copied.synchronize().map_err(Error::wrap)?;
            }
            let stream = device.cuda_stream();
            // Without flags: memory for writing alone is slow to read.
            // SAFETY: callers write what they, or a GPU, read of it.
            let memory = unsafe { stream.context().alloc_pinned_with_flags::<f32>(count, 0) };
            Ok((memory.map_err(Error::wrap)?, None))
        }

        /// Starts the copy of `values` over those of a tensor.
        pub(in super::super) fn fill(
            &mut self,
            values: &[f32],
            to: &Tensor,
            device: &CudaDevice,
        ) -> Result<()> {
            if values.len() != to.elem_count() {
                bail!("{} values for a tensor of {:?}", values.len(), to.dims());
            }
            let (mut host, copied) = self.take(values.len(), device)?;
            if let Some(copied) = copied {
                copied.synchronize().map_err(Error::wrap)?;
            }
            host.as_mut_slice().map_err(Error::wrap)?.copy_from_slice(values);
            to.inplace_op1(&Fill(&host))?;
            let copied = device.cuda_stream().record_event(None).map_err(Error::wrap)?;
            self.spare.push((host, Arc::new(copied)));
            Ok(())
        }

        pub(super) fn download_pinned(&mut self, tensor: &Tensor, device: &CudaDevice) -> Result<Download> {
            let tensor = tensor.contiguous()?;
            let (stream, count) = (device.cuda_stream(), tensor.elem_count());
            // A copy from it that is still to be made is made before.
            let (mut values, _) = self.take(count, device)?;
            let (storage, layout) = tensor.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else { bail!("values that are not on the GPU") };
            let start = layout.start_offset();
            let there = storage.as_cuda_slice::<f32>()?.slice(start..start + count);
            stream.memcpy_dtoh(&there, &mut values).map_err(Error::wrap)?;
            let copied = stream.record_event(None).map_err(Error::wrap)?;
            Ok(Download::Coming(Coming { memory: Some(values), copied: Arc::new(copied) }))
        }
    }
}
