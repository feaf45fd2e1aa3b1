//! Linear layers by cuBLASLt, which adds bias and residual as it writes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;

use candle_core::cuda::cudarc::cublaslt::{result, sys};
use candle_core::{DType, Error, Result, Tensor, bail};

use super::engine::Engine;

/// Bytes that a product may work in: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    plans: RefCell<HashMap<Sizes, Plan>>,
}

/// What decides how a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
    dtype: DType,
    has_bias: bool,
    has_residual: bool,
}

/// Descriptions of a product and its matrices, and how the library wants to compute it: chosen by sizes alone.
#[derive(Clone, Copy)]
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    input: sys::cublasLtMatrixLayout_t,
    output: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn set<T>(
    product: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    let from = std::ptr::from_ref(value).cast::<c_void>();
    // SAFETY: callers give the attribute's own type.
    unsafe { result::set_matmul_desc_attribute(product, attribute, from, size_of::<T>()) }
        .map_err(Error::wrap)
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, sizes: Sizes) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let kind = match sizes.dtype {
            DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            other => bail!("a product of {other:?} values"),
        };
        let (rows, inputs, outputs) = (sizes.rows as u64, sizes.inputs as u64, sizes.outputs as u64);
        // The library has columns side by side: its matrices are ours transposed, and out^T = W x^T.
        let matrix = |height: u64, width: u64| {
            result::create_matrix_layout(kind, height, width, height as i64).map_err(Error::wrap)
        };
        let (weight, input, output) =
            (matrix(inputs, outputs)?, matrix(inputs, rows)?, matrix(outputs, rows)?);
        // Sums of f32, whatever the values are: no TF32.
        let product = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        )
        .map_err(Error::wrap)?;
        // CUBLAS_OP_T, of `cublasOperation_t`.
        set(product, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &1i32)?;
        if sizes.has_bias {
            let bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set(product, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &bias)?;
        }
        let preference = result::create_matmul_pref().map_err(Error::wrap)?;
        let limit = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = std::ptr::from_ref(&WORKSPACE).cast::<c_void>();
        // SAFETY: the limit is a number of bytes, of the size of a pointer; all handles were made above.
        let chosen = unsafe {
            result::set_matmul_pref_attribute(preference, limit, bytes, size_of::<usize>())
                .and_then(|()| {
                    result::get_matmul_algo_heuristic(
                        handle, product, weight, input, output, output, preference,
                    )
                })
                .map_err(Error::wrap)?
        };
        // SAFETY: made above, and not used any more.
        unsafe { result::destroy_matmul_pref(preference) }.map_err(Error::wrap)?;
        Ok(Self { product, weight, input, output, algorithm: chosen.algo })
    }
}

impl Blas {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { handle: result::create_handle().map_err(Error::wrap)?, plans: RefCell::default() })
    }

    fn plan(&self, sizes: Sizes) -> Result<Plan> {
        if let Some(plan) = self.plans.borrow().get(&sizes) {
            return Ok(*plan);
        }
        let plan = Plan::new(self.handle, sizes)?;
        self.plans.borrow_mut().insert(sizes, plan);
        Ok(plan)
    }
}

/// `x W^T + b + residual` for `x` (batch, rows, in) and `weight` (out, in).
pub(in super::super) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, rows, inputs) = x.dims3()?;
    let (outputs, expected) = weight.dims2()?;
    if inputs != expected {
        bail!("{inputs} inputs for a layer of {expected}");
    }
    if residual.is_some_and(|r| r.dims() != [batch, rows, outputs]) {
        bail!("a residual of another shape than {batch}x{rows}x{outputs}");
    }
    let engine = Engine::of(x)?;
    let (x, weight) = (engine.packed(x)?, engine.packed(weight)?);
    let residual = residual.map(|r| engine.packed(r)).transpose()?;
    let out = engine.empty(x.dtype(), &[batch, rows, outputs])?;
    let plan = engine.blas.plan(Sizes {
        rows: batch * rows,
        inputs,
        outputs,
        dtype: x.dtype(),
        has_bias: bias.is_some(),
        has_residual: residual.is_some(),
    })?;
    if let Some(bias) = bias {
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        set(plan.product, attribute, &engine.pointer(bias)?)?;
    }
    let at = |tensor: &Tensor| Ok::<_, Error>(engine.pointer(tensor)? as *mut c_void);
    let (one, beta) = (1f32, if residual.is_some() { 1f32 } else { 0f32 });
    let workspace = engine.workspace(WORKSPACE)? as *mut c_void;
    let output = at(&out)?;
    let addend = residual.as_ref().map(at).transpose()?.unwrap_or(output);
    // SAFETY: all tensors are contiguous and of the sizes that the plan was made for.
    unsafe {
        result::matmul(
            engine.blas.handle,
            plan.product,
            std::ptr::from_ref(&one).cast(),
            std::ptr::from_ref(&beta).cast(),
            at(&weight)?,
            plan.weight,
            at(&x)?,
            plan.input,
            addend,
            plan.output,
            output,
            plan.output,
            &raw const plan.algorithm,
            workspace,
            WORKSPACE,
            engine.stream.cu_stream().cast(),
        )
    }
    .map_err(Error::wrap)?;
    Ok(out)
}
