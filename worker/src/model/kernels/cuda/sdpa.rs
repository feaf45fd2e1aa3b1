//! Attention in one kernel by cuDNN's graph interface: its operation for scaled dot products (since 9.13.1).
//!
//! A description of the operation becomes a plan, which is kept: which of the library's engines computes it, as its
//! heuristics choose by sizes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::rc::Rc;

use candle_core::cuda::cudarc::cudnn::{result::CudnnError, sys};
use candle_core::{DType, Error, Result, Tensor, bail};
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendAttributeType_t as Type;
use sys::cudnnBackendDescriptorType_t as Kind;

use super::engine::Engine;

/// Bytes that rows of heads must be aligned to.
const ALIGNMENT: i64 = 16;

/// Names of the tensors in a plan: queries, keys, values, result, and what scores are multiplied by.
const TENSORS: [i64; 5] = [1, 2, 3, 4, 5];

type Answer<T> = std::result::Result<T, CudnnError>;

/// Plans by what decides how an attention is computed; none where the library has no engine for it.
#[derive(Default)]
pub(super) struct Plans(RefCell<HashMap<Sizes, Option<Rc<Plan>>>>);

/// A tensor (batch, rows, heads, width) whose heads' values lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Layout {
    rows: usize,
    /// From an image, row or head to the next, in values.
    strides: [usize; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sizes {
    batch: usize,
    heads: usize,
    width: usize,
    /// Queries, keys, values.
    inputs: [Layout; 3],
    dtype: DType,
}

struct Plan {
    plan: Descriptor,
    workspace: usize,
    /// What it was made of.
    _parts: Vec<Descriptor>,
}

/// Something that the library knows by its attributes.
struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Descriptor {
    fn new(kind: Kind) -> Answer<Self> {
        let mut made = std::ptr::null_mut();
        // SAFETY: it writes a pointer.
        unsafe { sys::cudnnBackendCreateDescriptor(kind, &raw mut made) }.result()?;
        Ok(Self(made))
    }

    /// `T` must be what values of `kind` are.
    fn set<T>(&self, name: Name, kind: Type, values: &[T]) -> Answer<()> {
        // SAFETY: it copies so many values.
        unsafe {
            sys::cudnnBackendSetAttribute(self.0, name, kind, values.len() as i64, values.as_ptr().cast())
        }
        .result()
    }

    fn set_part(&self, name: Name, part: &Self) -> Answer<()> {
        self.set(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &[part.0])
    }

    /// How many values there are, of which as many as fit are written to `values`.
    fn get<T>(&self, name: Name, kind: Type, values: &mut [T]) -> Answer<usize> {
        let mut count = 0;
        // Asked for none, it only counts if there is nowhere to write them.
        let to = if values.is_empty() { std::ptr::null_mut() } else { values.as_mut_ptr().cast() };
        // SAFETY: it writes so many values at most.
        unsafe { sys::cudnnBackendGetAttribute(self.0, name, kind, values.len() as i64, &raw mut count, to) }
            .result()?;
        Ok(count.max(0) as usize)
    }

    /// No attribute can be set after this.
    fn finish(self) -> Answer<Self> {
        // SAFETY: made by the library.
        unsafe { sys::cudnnBackendFinalize(self.0) }.result()?;
        Ok(self)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by the library, and nobody else has it. What it says changes nothing.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

impl Layout {
    fn of(x: &Tensor) -> Result<Self> {
        let (_, rows, _, _) = x.dims4()?;
        let &[image, row, head, 1] = x.stride() else {
            bail!("attention of heads that are not side by side: {:?}", x.layout());
        };
        Ok(Self { rows, strides: [image, row, head] })
    }
}

impl Sizes {
    fn tensor(&self, name: i64, Layout { rows, strides: [image, row, head] }: Layout) -> Answer<Descriptor> {
        let kind = match self.dtype {
            DType::BF16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            _ => sys::cudnnDataType_t::CUDNN_DATA_HALF,
        };
        let dims = [self.batch, self.heads, rows, self.width].map(|n| n as i64);
        let strides = [image, head, row, 1].map(|n| n as i64);
        let tensor = describe(name, kind, dims, strides)?;
        tensor.set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, Type::CUDNN_TYPE_INT64, &[ALIGNMENT])?;
        tensor.finish()
    }

    fn output(&self) -> Layout {
        let rows = self.inputs[0].rows;
        let row = self.heads * self.width;
        Layout { rows, strides: [rows * row, row, self.width] }
    }
}

fn describe(name: i64, kind: sys::cudnnDataType_t, dims: [i64; 4], strides: [i64; 4]) -> Answer<Descriptor> {
    let tensor = Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, Type::CUDNN_TYPE_INT64, &[name])?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, Type::CUDNN_TYPE_DATA_TYPE, &[kind])?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, Type::CUDNN_TYPE_INT64, &dims)?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_STRIDES, Type::CUDNN_TYPE_INT64, &strides)?;
    Ok(tensor)
}

/// A number that is given along with a call.
fn number(name: i64) -> Answer<Descriptor> {
    let number = describe(name, sys::cudnnDataType_t::CUDNN_DATA_FLOAT, [1; 4], [1; 4])?;
    number.set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, Type::CUDNN_TYPE_INT64, &[size_of::<f32>() as i64])?;
    number.set(Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE, Type::CUDNN_TYPE_BOOLEAN, &[true])?;
    number.finish()
}

impl Plan {
    /// None if the library can't.
    fn new(handle: sys::cudnnHandle_t, sizes: &Sizes) -> Answer<Option<Self>> {
        let [q, k, v, out, scale] = TENSORS;
        let mut parts = vec![
            sizes.tensor(q, sizes.inputs[0])?,
            sizes.tensor(k, sizes.inputs[1])?,
            sizes.tensor(v, sizes.inputs[2])?,
            sizes.tensor(out, sizes.output())?,
            number(scale)?,
        ];
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR)?;
        let names = [
            Name::CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC,
            Name::CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC,
            Name::CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC,
            Name::CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC,
            Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC,
        ];
        for (name, tensor) in names.into_iter().zip(&parts) {
            operation.set_part(name, tensor)?;
        }
        let operation = operation.finish()?;
        let graph = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Type::CUDNN_TYPE_HANDLE, &[handle])?;
        graph.set_part(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operation)?;
        let graph = graph.finish()?;
        let heuristics = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        let mode = sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A;
        heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, Type::CUDNN_TYPE_HEUR_MODE, &[mode])?;
        heuristics.set_part(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &graph)?;
        let heuristics = heuristics.finish()?;
        let name = Name::CUDNN_ATTR_ENGINEHEUR_RESULTS;
        let kind = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        let count = heuristics.get::<sys::cudnnBackendDescriptor_t>(name, kind, &mut [])?;
        let engines: Vec<_> = (0..count)
            .map(|_| Descriptor::new(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
            .collect::<Answer<_>>()?;
        let mut room: Vec<_> = engines.iter().map(|engine| engine.0).collect();
        let count = heuristics.get(name, kind, &mut room)?;
        parts.extend([operation, graph, heuristics]);
        for engine in engines.into_iter().take(count) {
            // The first that the library can start, best first: not every one suits every GPU.
            match Self::of(handle, &engine) {
                Ok((plan, workspace)) => {
                    parts.push(engine);
                    return Ok(Some(Self { plan, workspace, _parts: parts }));
                }
                Err(failure) if is_momentary(failure) => return Err(failure),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// A plan with an engine, and the bytes that it works in.
    fn of(handle: sys::cudnnHandle_t, engine: &Descriptor) -> Answer<(Descriptor, usize)> {
        let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, Type::CUDNN_TYPE_HANDLE, &[handle])?;
        plan.set_part(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine)?;
        let plan = plan.finish()?;
        let mut bytes = [0i64];
        plan.get(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, Type::CUDNN_TYPE_INT64, &mut bytes)?;
        Ok((plan, bytes[0].max(0) as usize))
    }

    /// # Safety
    /// The pointers must be to tensors on the device as they were described, and `workspace` to as many bytes as the
    /// plan says.
    unsafe fn run(
        &self,
        handle: sys::cudnnHandle_t,
        tensors: [u64; 4],
        scale: f32,
        workspace: u64,
    ) -> Answer<()> {
        let [q, k, v, out] = tensors.map(|at| at as *mut c_void);
        let pointers = [q, k, v, out, std::ptr::from_ref(&scale).cast_mut().cast()];
        let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        pack.set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, Type::CUDNN_TYPE_INT64, &TENSORS)?;
        pack.set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, Type::CUDNN_TYPE_VOID_PTR, &pointers)?;
        let workspace = [workspace as *mut c_void];
        pack.set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, Type::CUDNN_TYPE_VOID_PTR, &workspace)?;
        let pack = pack.finish()?;
        // SAFETY: as the caller says.
        unsafe { sys::cudnnBackendExecute(handle, self.plan.0, pack.0) }.result()
    }
}

/// Attention of half precision without a mask: q (batch, sq, heads, width), k and v (batch, sk, heads, width), perhaps
/// strided -> (batch, sq, heads width). None if the library has none for these sizes.
pub(in super::super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Option<Tensor>> {
    let (batch, sq, heads, width) = q.dims4()?;
    let sk = k.dim(1)?;
    if k.dims() != [batch, sk, heads, width] || v.dims() != k.dims() {
        bail!("attention of {:?}, {:?} and {:?}", q.dims(), k.dims(), v.dims());
    }
    if !matches!(q.dtype(), DType::F16 | DType::BF16) || k.dtype() != q.dtype() || v.dtype() != q.dtype() {
        bail!("attention of {:?}, {:?} and {:?} values", q.dtype(), k.dtype(), v.dtype());
    }
    let engine = Engine::of(q)?;
    let (q, k, v) = (rows_aligned(&engine, q)?, rows_aligned(&engine, k)?, rows_aligned(&engine, v)?);
    let inputs = [Layout::of(&q)?, Layout::of(&k)?, Layout::of(&v)?];
    let sizes = Sizes { batch, heads, width, inputs, dtype: q.dtype() };
    let Some(plan) = engine.attentions.plan(engine.dnn.handle(), sizes)? else { return Ok(None) };
    let out = engine.empty(q.dtype(), &[batch, sq, heads * width])?;
    let tensors = [engine.start(&q)?, engine.start(&k)?, engine.start(&v)?, engine.start(&out)?];
    let workspace = engine.workspace(plan.workspace)?;
    let scale = 1.0 / (width as f32).sqrt();
    // SAFETY: tensors of the sizes and strides that the plan was made for.
    unsafe { plan.run(engine.dnn.handle(), tensors, scale, workspace) }.map_err(Error::wrap)?;
    Ok(Some(out))
}

/// Whether memory was short, which another time it may not be: sizes alone must decide what is computed how.
fn is_momentary(failure: CudnnError) -> bool {
    format!("{failure:?}").contains("ALLOC")
}

/// The tensor as it is if the library can read it there, else a copy.
fn rows_aligned(engine: &Engine, x: &Tensor) -> Result<Tensor> {
    let multiple = ALIGNMENT as usize / x.dtype().size_in_bytes();
    let strides = x.stride();
    let is_aligned = engine.start(x)?.is_multiple_of(ALIGNMENT as u64)
        && strides[3] == 1
        && strides[..3].iter().all(|n| n.is_multiple_of(multiple));
    if is_aligned { Ok(x.clone()) } else { x.force_contiguous() }
}

impl Plans {
    fn plan(&self, handle: sys::cudnnHandle_t, sizes: Sizes) -> Result<Option<Rc<Plan>>> {
        if let Some(known) = self.0.borrow().get(&sizes) {
            return Ok(known.clone());
        }
        let made = match Plan::new(handle, &sizes) {
            Err(failure) if is_momentary(failure) => return Err(Error::wrap(failure)),
            Ok(Some(plan)) => Some(Rc::new(plan)),
            other => {
                let failure = other.err();
                tracing::debug!(?sizes, ?failure, "cuDNN has no attention of these sizes");
                None
            }
        };
        self.0.borrow_mut().insert(sizes, made.clone());
        Ok(made)
    }
}
