//! Convolution of channels-last images: Winograd's way where it pays, otherwise a product of each pixel's
//! neighbours, read where they lie, with the filters.
//!
//! Unsafe code: parts of the output are written by several threads.
#![allow(unsafe_code)]

use candle_core::{Result, Tensor, bail};

use super::Padding;
use super::host::{self, Host, source};
use super::product::{Output, Packed, Panel, multiply};
use super::simd::{self, Isa};
use super::winograd;

/// Filters, packed: inputs by tap, then channel.
#[derive(Debug, Clone)]
pub(super) struct Filters {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kh: usize,
    pub(super) kw: usize,
    pub(super) packed: Packed,
}

impl Filters {
    /// Packs filters (outputs, inputs, kh, kw).
    pub(super) fn new(weight: &Tensor) -> Result<Self> {
        let (outputs, inputs, kh, kw) = weight.dims4()?;
        let weight = weight.contiguous()?;
        let taps = kh * kw;
        let index = |k: usize, c: usize| Some((c * inputs + k % inputs) * taps + k / inputs);
        let packed = source(&weight, |values| Packed::new(&values, (taps * inputs, outputs), inputs, index))?;
        Ok(Self { inputs, outputs, kh, kw, packed })
    }
}

/// What is added to a convolution's result.
pub(super) struct Extras<'a> {
    pub(super) bias: &'a [f32],
    /// (batch, outputs).
    pub(super) shift: Option<&'a [f32]>,
    /// Shaped as the result.
    pub(super) residual: Option<&'a Tensor>,
}

impl Extras<'_> {
    /// They must have the sizes of the result that they are added to.
    fn check(&self, batch: usize, outputs: usize, (ho, wo): (usize, usize)) -> Result<()> {
        let shift = self.shift.map(<[f32]>::len);
        let residual = self.residual.map(Tensor::dims);
        if self.bias.len() != outputs
            || shift.is_some_and(|n| n != batch * outputs)
            || residual.is_some_and(|dims| dims != [batch, outputs, ho, wo])
        {
            let bias = self.bias.len();
            bail!("a bias of {bias}, a shift of {shift:?}, {residual:?} onto {batch}x{outputs}x{ho}x{wo}");
        }
        Ok(())
    }

    /// Adds bias, shift and `residual` to the sums of a pixel's panel.
    pub(super) fn finish(
        &self,
        isa: Isa,
        entry: usize,
        panel: Panel,
        sums: &mut [f32],
        residual: Option<&[f32]>,
    ) {
        simd::add(isa, sums, &self.bias[panel.first..][..panel.columns]);
        if let Some(shift) = self.shift {
            simd::add(isa, sums, &shift[entry * self.bias.len() + panel.first..][..panel.columns]);
        }
        if let Some(residual) = residual {
            simd::add(isa, sums, residual);
        }
    }
}

/// Sizes of a convolution, and which pixel of the image each place of the padded, resized image is.
pub(super) struct Geometry {
    pub(super) batch: usize,
    pub(super) inputs: usize,
    pub(super) ho: usize,
    pub(super) wo: usize,
    pub(super) stride: usize,
    w: usize,
    h: usize,
    rows: Vec<Option<usize>>,
    columns: Vec<Option<usize>>,
}

impl Geometry {
    /// The channels at a place of the padded, resized image; zeros outside.
    pub(super) fn pixel<'a>(
        &self,
        xs: &'a [f32],
        entry: usize,
        y: usize,
        x: usize,
        zeros: &'a [f32],
    ) -> &'a [f32] {
        let place = (self.rows.get(y).copied().flatten(), self.columns.get(x).copied().flatten());
        match place {
            (Some(y), Some(x)) => &xs[((entry * self.h + y) * self.w + x) * self.inputs..][..self.inputs],
            _ => zeros,
        }
    }
}

/// Place i of an axis that is resized from `from` to `to` and padded: pixel floor(i from / to) of it.
fn axis(from: usize, to: usize, padding: Padding) -> Vec<Option<usize>> {
    let inside = (0..to).map(|i| Some(i * from / to));
    let outside = |n| std::iter::repeat_n(None, n);
    outside(padding.before).chain(inside).chain(outside(padding.after)).collect()
}

/// See [`super::conv2d`]; `resized` is the size that the image is first resized to.
pub(super) fn conv2d(
    x: &Tensor,
    filters: &Filters,
    (stride, padding): (usize, Padding),
    (height, width): (usize, usize),
    extras: &Extras<'_>,
) -> Result<Tensor> {
    let (batch, inputs, h, w) = x.dims4()?;
    let (rows, columns) = (axis(h, height, padding), axis(w, width, padding));
    if inputs != filters.inputs || rows.len() < filters.kh || columns.len() < filters.kw {
        let Filters { inputs: ci, outputs: co, kh, kw, .. } = filters;
        bail!("a {co}x{ci}x{kh}x{kw} convolution does not fit an image of {inputs}x{height}x{width}");
    }
    if stride == 0 || [h, w, height, width].contains(&0) {
        bail!("a convolution of {h}x{w} pixels, resized to {height}x{width}, {stride} apart");
    }
    let (ho, wo) = ((rows.len() - filters.kh) / stride + 1, (columns.len() - filters.kw) / stride + 1);
    extras.check(batch, filters.outputs, (ho, wo))?;
    let g = Geometry { batch, inputs, ho, wo, stride, w, h, rows, columns };
    let x = host::channels_last(x)?;
    let x = Host::contiguous(&x)?;
    let xs = x.values()?;
    if winograd::pays(filters, &g) {
        winograd::conv2d(xs, filters, &g, extras)
    } else {
        direct(xs, filters, &g, extras)
    }
}

/// One product: a row per pixel.
fn direct(xs: &[f32], filters: &Filters, g: &Geometry, extras: &Extras<'_>) -> Result<Tensor> {
    let isa = Isa::best();
    let outputs = filters.outputs;
    let zeros = vec![0f32; g.inputs];
    let residual = extras.residual.map(host::channels_last).transpose()?;
    let residual = Host::optional(residual.as_ref())?;
    let residual = Host::some(&residual)?;
    let plane = g.ho * g.wo;
    let out = Output::new(g.batch * plane * outputs);
    multiply(
        &filters.packed,
        filters.kh * filters.kw,
        g.batch * plane,
        |r, tap| {
            let (y, x) = (r % plane / g.wo * g.stride, r % g.wo * g.stride);
            g.pixel(xs, r / plane, y + tap / filters.kw, x + tap % filters.kw, &zeros)
        },
        |r, panel, sums| {
            let sums = &mut sums[..panel.columns];
            let at = r * outputs + panel.first;
            extras.finish(isa, r / plane, panel, sums, residual.map(|v| &v[at..][..panel.columns]));
            // SAFETY: every (pixel, panel) is finished once.
            unsafe { out.write(at, sums) };
        },
    );
    // SAFETY: every panel of every pixel was written.
    host::image(unsafe { out.finish() }, [g.batch, outputs, g.ho, g.wo])
}
