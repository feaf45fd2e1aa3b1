//! What a thread needs to compute on a GPU: handles of libraries, plans, kernels, memory for their work.
//!
//! Everything runs on the device's one stream, so memory that is given back is not used again before what reads
//! it has run.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::cuda::DeviceId;
use candle_core::cuda::cudarc::driver::sys::CUstreamCaptureStatus;
use candle_core::cuda::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Storage, Tensor, bail};
use half::{bf16, f16};

use super::blas::Blas;
#[cfg(feature = "cudnn")]
use super::{dnn::Dnn, sdpa::Plans};

/// `kernels.cu`, compiled.
const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// What the memory of tensors is aligned to, and what libraries expect of it.
const ALIGNMENT: u64 = 256;

pub(super) struct Engine {
    pub(super) device: CudaDevice,
    pub(super) stream: Arc<CudaStream>,
    pub(super) blas: Blas,
    #[cfg(feature = "cudnn")]
    pub(super) dnn: Dnn,
    #[cfg(feature = "cudnn")]
    pub(super) attentions: Plans,
    /// Whether convolutions round f32 values to TF32.
    pub(super) rounds: Cell<bool>,
    functions: RefCell<HashMap<String, CudaFunction>>,
    workspace: RefCell<Option<Arc<CudaSlice<u8>>>>,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg {
    Pointer(u64),
    Int(i32),
    Long(i64),
    Float(f32),
}

/// Blocks, threads of a block, bytes of shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: (usize, usize),
    pub(super) threads: usize,
    pub(super) shared: usize,
}

impl Engine {
    /// The thread's engine for the device of `x`.
    pub(super) fn of(x: &Tensor) -> Result<Rc<Self>> {
        Self::on(x.device().as_cuda_device()?)
    }

    /// The thread's engine for a device.
    pub(super) fn on(device: &CudaDevice) -> Result<Rc<Self>> {
        // The libraries' handles are bound to their thread.
        thread_local! {
            static ENGINES: RefCell<HashMap<DeviceId, Rc<Engine>>> = RefCell::default();
        }
        let known = ENGINES.with_borrow(|engines| engines.get(&device.id()).cloned());
        if let Some(engine) = known {
            return Ok(engine);
        }
        let engine = Rc::new(Self::new(device)?);
        ENGINES.with_borrow_mut(|engines| engines.insert(device.id(), Rc::clone(&engine)));
        Ok(engine)
    }

    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        Ok(Self {
            device: device.clone(),
            blas: Blas::new()?,
            #[cfg(feature = "cudnn")]
            dnn: Dnn::new(&stream)?,
            #[cfg(feature = "cudnn")]
            attentions: Plans::default(),
            stream,
            rounds: Cell::new(false),
            functions: RefCell::default(),
            workspace: RefCell::default(),
        })
    }

    /// A tensor of values that are still to be written.
    pub(super) fn empty(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let (device, count) = (&self.device, shape.iter().product());
        // SAFETY: callers write every value before any is read.
        let storage = unsafe {
            match dtype {
                DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc::<f32>(count)?, device.clone()),
                DType::F16 => CudaStorage::wrap_cuda_slice(device.alloc::<f16>(count)?, device.clone()),
                DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc::<bf16>(count)?, device.clone()),
                other => bail!("a GPU kernel was asked for {other:?} values"),
            }
        };
        Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
    }

    /// Where the values of a contiguous tensor are on the device.
    pub(super) fn pointer(&self, x: &Tensor) -> Result<u64> {
        if !x.is_contiguous() {
            bail!("a GPU kernel was given a strided tensor {:?}", x.layout());
        }
        self.start(x)
    }

    /// Where the first value of a tensor is on the device.
    pub(super) fn start(&self, x: &Tensor) -> Result<u64> {
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            bail!("a GPU kernel was given values that are elsewhere");
        };
        let start = match x.dtype() {
            DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&self.stream).0,
            DType::F16 => storage.as_cuda_slice::<f16>()?.device_ptr(&self.stream).0,
            DType::BF16 => storage.as_cuda_slice::<bf16>()?.device_ptr(&self.stream).0,
            other => bail!("a GPU kernel was given {other:?} values"),
        };
        Ok(start + (layout.start_offset() * x.dtype().size_in_bytes()) as u64)
    }

    /// The tensor contiguous, and aligned as libraries expect.
    pub(super) fn packed(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        if self.pointer(&x)?.is_multiple_of(ALIGNMENT) { Ok(x) } else { x.force_contiguous() }
    }

    /// Where there are at least so many bytes to work in. What is there lasts until the next call.
    pub(super) fn workspace(&self, bytes: usize) -> Result<u64> {
        let mut workspace = self.workspace.borrow_mut();
        let memory = match workspace.take() {
            Some(memory) if memory.len() >= bytes => memory,
            smaller => {
                let none = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
                if self.stream.capture_status().map_err(Error::wrap)? != none {
                    *workspace = smaller;
                    bail!(
                        "a call that is recorded needs more memory to work in than it did when it was sent"
                    );
                }
                drop(smaller);
                // SAFETY: libraries write what they read of it.
                Arc::new(unsafe { self.device.alloc::<u8>(bytes.max(ALIGNMENT as usize))? })
            }
        };
        let pointer = memory.device_ptr(&self.stream).0;
        *workspace = Some(memory);
        Ok(pointer)
    }

    /// The memory to work in: whoever goes on using it must hold it, because the next call may need more.
    pub(super) fn held_workspace(&self) -> Option<Arc<CudaSlice<u8>>> {
        self.workspace.borrow().clone()
    }

    /// Starts a kernel of `kernels.cu`. `width` values of `dtype` are read together.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, and what they point to as large as it takes them to be.
    pub(super) unsafe fn launch(
        &self,
        (kernel, dtype, width): (&str, DType, usize),
        grid: Grid,
        arguments: &[Arg],
    ) -> Result<()> {
        let name = format!("{kernel}_{}_{width}", dtype.as_str());
        let known = self.functions.borrow().get(&name).cloned();
        let function = match known {
            Some(function) => function,
            None => {
                let loaded = self.device.get_or_load_custom_func(&name, "gigasmith", KERNELS)?;
                let function = loaded.into_cuda_function();
                self.functions.borrow_mut().insert(name, function.clone());
                function
            }
        };
        let mut launch = self.stream.launch_builder(&function);
        for argument in arguments {
            match argument {
                Arg::Pointer(value) => launch.arg(value),
                Arg::Int(value) => launch.arg(value),
                Arg::Long(value) => launch.arg(value),
                Arg::Float(value) => launch.arg(value),
            };
        }
        let config = LaunchConfig {
            grid_dim: (grid.blocks.0 as u32, grid.blocks.1 as u32, 1),
            block_dim: (grid.threads as u32, 1, 1),
            shared_mem_bytes: grid.shared as u32,
        };
        // SAFETY: as the caller says.
        unsafe { launch.launch(config) }.map_err(Error::wrap)?;
        Ok(())
    }
}

/// Values of 16 bytes that are read together, if every one of `lengths` is a multiple of so many; else 1.
pub(super) fn width(dtype: DType, lengths: &[usize]) -> usize {
    let together = 16 / dtype.size_in_bytes();
    if lengths.iter().all(|n| n.is_multiple_of(together)) { together } else { 1 }
}
