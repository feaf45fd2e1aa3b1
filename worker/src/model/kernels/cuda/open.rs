//! Opening a GPU, what its results depend on, and its memory.

use candle_core::cuda::cudarc::cublaslt::sys::cublasLtGetVersion;
use candle_core::cuda::cudarc::driver::sys::{
    CUmemPool_attribute, CUmemoryPool, cuDeviceGetDefaultMemPool, cuDeviceGraphMemTrim,
    cuMemPoolSetAttribute, cuMemPoolTrimTo,
};
use candle_core::{CudaDevice, Device, Error, Result};

/// Opens a GPU: with a stream of its own, and memory that is kept until it is given back.
pub(in crate::model) fn open(index: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: the device has one stream, so that whatever is started first is done first.
    unsafe { cuda.disable_event_tracking() };
    // Memory that is given back to the driver between calls costs more than the kernels that want it again.
    let keep = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the threshold is a number of 64 bits.
    unsafe { cuMemPoolSetAttribute(pool(cuda)?, threshold, (&raw const keep).cast_mut().cast()) }
        .result()
        .map_err(Error::wrap)?;
    Ok(device)
}

/// Where the device's tensors are.
fn pool(device: &CudaDevice) -> Result<CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    let ordinal = device.cuda_stream().context().cu_device();
    // SAFETY: the device is open.
    unsafe { cuDeviceGetDefaultMemPool(&raw mut pool, ordinal) }.result().map_err(Error::wrap)?;
    Ok(pool)
}

/// See [`super::super::give_back`].
pub(in super::super) fn give_back(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    stream.synchronize().map_err(Error::wrap)?;
    // SAFETY: they take what nothing is in.
    unsafe {
        cuMemPoolTrimTo(pool(device)?, 0).result().map_err(Error::wrap)?;
        cuDeviceGraphMemTrim(stream.context().cu_device()).result().map_err(Error::wrap)
    }
}

/// See [`super::super::free_bytes`].
pub(in super::super) fn free_bytes(device: &CudaDevice) -> Result<u64> {
    let (free, _) = device.cuda_stream().context().mem_get_info().map_err(Error::wrap)?;
    Ok(free as u64)
}

/// What decides how libraries compute: the GPU's model, and their versions: `nvidia-h200+cublas13.1.0+cudnn9.19.0`.
pub(in crate::model) fn class(device: &Device) -> Result<String> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let name = stream.context().name().map_err(Error::wrap)?.to_lowercase();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    // SAFETY: it only answers.
    let blas = version(unsafe { cublasLtGetVersion() });
    Ok(format!("{}+cublas{blas}{}", words.collect::<Vec<_>>().join("-"), convolution()))
}

/// 130100 is 13.1.0.
fn version(number: usize) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

#[cfg(feature = "cudnn")]
fn convolution() -> String {
    format!("+cudnn{}", version(candle_core::cuda::cudarc::cudnn::result::get_version()))
}

#[cfg(not(feature = "cudnn"))]
fn convolution() -> String {
    String::new()
}
