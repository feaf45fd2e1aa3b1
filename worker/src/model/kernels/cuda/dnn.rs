//! Convolutions by cuDNN on channels-last images: the layout that its kernels for tensor cores are written for.
//! Bias and residual are added as it writes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda::cudarc::cudnn::{result, sys};
use candle_core::cuda::cudarc::driver::CudaStream;
use candle_core::{DType, Error, Result, Tensor, bail};

use super::engine::Engine;

/// The one algorithm that can add as it writes. On tensor cores it is also what the library's own choice is.
const ALGORITHM: sys::cudnnConvolutionFwdAlgo_t =
    sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
const LAYOUT: sys::cudnnTensorFormat_t = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;

pub(super) struct Dnn {
    handle: sys::cudnnHandle_t,
    /// None: the result as it is.
    activation: sys::cudnnActivationDescriptor_t,
    plans: RefCell<HashMap<Sizes, Plan>>,
}

/// What decides how a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sizes {
    /// (batch, in, h, w)
    input: [usize; 4],
    /// (out, in, kh, kw)
    filters: [usize; 4],
    stride: usize,
    padding: usize,
    dtype: DType,
    rounds: bool,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    input: sys::cudnnTensorDescriptor_t,
    filters: sys::cudnnFilterDescriptor_t,
    bias: sys::cudnnTensorDescriptor_t,
    output: sys::cudnnTensorDescriptor_t,
    convolution: sys::cudnnConvolutionDescriptor_t,
    workspace: usize,
}

impl Dnn {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let handle = result::create_handle().map_err(Error::wrap)?;
        let activation = result::create_activation_descriptor().map_err(Error::wrap)?;
        // SAFETY: both were made above; the stream lives as long as its device.
        unsafe {
            result::set_stream(handle, stream.cu_stream().cast())
                .and_then(|()| {
                    result::set_activation_descriptor(
                        activation,
                        sys::cudnnActivationMode_t::CUDNN_ACTIVATION_IDENTITY,
                        sys::cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN,
                        0.0,
                    )
                })
                .map_err(Error::wrap)?;
        }
        Ok(Self { handle, activation, plans: RefCell::default() })
    }

    pub(super) fn handle(&self) -> sys::cudnnHandle_t {
        self.handle
    }

    fn plan(&self, sizes: Sizes) -> Result<Plan> {
        if let Some(plan) = self.plans.borrow().get(&sizes) {
            return Ok(*plan);
        }
        let plan = Plan::new(self.handle, sizes).map_err(Error::wrap)?;
        self.plans.borrow_mut().insert(sizes, plan);
        Ok(plan)
    }
}

impl Sizes {
    /// (batch, out, h', w')
    fn output(&self) -> [usize; 4] {
        let ([batch, _, h, w], [outputs, _, kh, kw]) = (self.input, self.filters);
        let length = |n: usize, k: usize| (n + 2 * self.padding - k) / self.stride + 1;
        [batch, outputs, length(h, kh), length(w, kw)]
    }
}

impl Plan {
    fn new(handle: sys::cudnnHandle_t, sizes: Sizes) -> std::result::Result<Self, result::CudnnError> {
        use sys::cudnnDataType_t as Data;
        use sys::cudnnMathType_t as Math;
        let (kind, math) = match sizes.dtype {
            DType::F16 => (Data::CUDNN_DATA_HALF, Math::CUDNN_TENSOR_OP_MATH),
            DType::BF16 => (Data::CUDNN_DATA_BFLOAT16, Math::CUDNN_TENSOR_OP_MATH),
            _ if sizes.rounds => (Data::CUDNN_DATA_FLOAT, Math::CUDNN_TENSOR_OP_MATH),
            _ => (Data::CUDNN_DATA_FLOAT, Math::CUDNN_FMA_MATH),
        };
        let tensor = |dims: [usize; 4]| {
            let tensor = result::create_tensor_descriptor()?;
            // SAFETY: made above.
            unsafe { result::set_tensor4d_descriptor(tensor, LAYOUT, kind, dims.map(|n| n as i32)) }?;
            Ok(tensor)
        };
        let (input, output) = (tensor(sizes.input)?, tensor(sizes.output())?);
        let bias = tensor([1, sizes.filters[0], 1, 1])?;
        let filters = result::create_filter_descriptor()?;
        let convolution = result::create_convolution_descriptor()?;
        let (padding, stride) = (sizes.padding as i32, sizes.stride as i32);
        // SAFETY: everything was made above. Sums are f32, whatever the values are.
        let workspace = unsafe {
            let dims = sizes.filters.map(|n| n as i32);
            result::set_filter4d_descriptor(filters, kind, LAYOUT, dims)?;
            result::set_convolution2d_descriptor(
                convolution,
                padding,
                padding,
                stride,
                stride,
                1,
                1,
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                Data::CUDNN_DATA_FLOAT,
            )?;
            result::set_convolution_math_type(convolution, math)?;
            result::get_convolution_forward_workspace_size(
                handle,
                input,
                filters,
                convolution,
                output,
                ALGORITHM,
            )?
        };
        Ok(Self { input, filters, bias, output, convolution, workspace })
    }
}

/// `x` (batch, h, w, in), `filters` (out, kh, kw, in), `residual` as the result: (batch, h', w', out).
pub(super) fn conv2d(
    x: &Tensor,
    filters: &Tensor,
    bias: &Tensor,
    (stride, padding): (usize, usize),
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, h, w, inputs) = x.dims4()?;
    let (outputs, kh, kw, expected) = filters.dims4()?;
    if inputs != expected || h + 2 * padding < kh || w + 2 * padding < kw {
        bail!("a {outputs}x{expected}x{kh}x{kw} convolution does not fit an image of {inputs}x{h}x{w}");
    }
    let engine = Engine::of(x)?;
    let sizes = Sizes {
        input: [batch, inputs, h, w],
        filters: [outputs, inputs, kh, kw],
        stride,
        padding,
        dtype: x.dtype(),
        rounds: engine.rounds.get(),
    };
    let [_, _, ho, wo] = sizes.output();
    let largest = sizes.input.iter().product::<usize>().max(sizes.output().iter().product());
    if i32::try_from(largest).is_err() {
        bail!("an image of {largest} values is more than cuDNN takes; use smaller tiles");
    }
    if residual.is_some_and(|r| r.dims() != [batch, ho, wo, outputs]) {
        bail!("a residual of another shape than {batch}x{ho}x{wo}x{outputs}");
    }
    let plan = engine.dnn.plan(sizes)?;
    let (x, filters, bias) = (engine.packed(x)?, engine.packed(filters)?, engine.packed(bias)?);
    let residual = residual.map(|r| engine.packed(r)).transpose()?;
    let out = engine.empty(x.dtype(), &[batch, ho, wo, outputs])?;
    let at = |tensor: &Tensor| Ok::<_, Error>(engine.pointer(tensor)? as *mut c_void);
    let workspace = engine.workspace(plan.workspace)? as *mut c_void;
    let (one, factor) = (1f32, if residual.is_some() { 1f32 } else { 0f32 });
    let output = at(&out)?;
    let addend = residual.as_ref().map(at).transpose()?.unwrap_or(output);
    // SAFETY: all tensors are contiguous and of the sizes that the plan was made for.
    unsafe {
        result::convolution_bias_activation_forward(
            engine.dnn.handle,
            std::ptr::from_ref(&one).cast(),
            plan.input,
            at(&x)?,
            plan.filters,
            at(&filters)?,
            plan.convolution,
            ALGORITHM,
            workspace,
            plan.workspace,
            std::ptr::from_ref(&factor).cast(),
            plan.output,
            addend,
            plan.bias,
            at(&bias)?,
            engine.dnn.activation,
            plan.output,
            output,
        )
    }
    .map_err(Error::wrap)?;
    Ok(out)
}
