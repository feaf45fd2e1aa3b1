//! How far computed values lie from recorded ones, and whether that is near enough.

use gigasmith_proto::domain::Array;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use super::trace::TraceTensor;

/// The largest error that passes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tolerance {
    /// Relative L2 error: norm of the difference over norm of the recorded value.
    pub relative_l2: f64,
    /// The same where the record is in half precision.
    pub relative_l2_half: f64,
    /// Absolute error, for values where only that makes sense.
    pub absolute: f64,
}

impl Tolerance {
    /// Not a bit of difference.
    pub const EXACT: Self = Self { relative_l2: 0.0, relative_l2_half: 0.0, absolute: 0.0 };
    /// Text embeddings, and what follows in one step: rounding of one network.
    pub const EMBEDDING: Self = Self::relative(1e-5);
    /// Encoded moments. The recorded ones carry the rounding of the program that recorded them: 1.2e-5
    /// from the same network in f64 (this program: 1.5e-6), so less cannot be asked for.
    pub const MOMENT: Self = Self::relative(2e-5);
    /// Latents and noise predictions: rounding accumulated over steps.
    pub const LATENT: Self = Self::relative(1e-4);
    /// Decoded images.
    pub const IMAGE: Self = Self::relative(1e-4);
    /// Moments of a picture that was computed here, where a few 8-bit levels may have rounded the other
    /// way: a level is 4e-3 of the range.
    pub const LEVELS: Self = Self::relative(2e-3);
    /// 8-bit levels that may round the other way.
    pub const LEVEL: Self =
        Self { relative_l2: f64::INFINITY, relative_l2_half: f64::INFINITY, absolute: 1.0 };

    const fn relative(relative_l2: f64) -> Self {
        // Half precision keeps 11 bits: relative errors of 5e-4 at the worst, plus our own.
        Self { relative_l2, relative_l2_half: 2e-3, absolute: f64::INFINITY }
    }
}

/// One computed value against the record.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The part of the method.
    pub part: &'static str,
    /// The tensor.
    pub name: String,
    /// Largest absolute error; absent when there is no record.
    pub max_abs: Option<f64>,
    /// Relative L2 error; absent when there is no record.
    pub relative_l2: Option<f64>,
    /// Whether it is near enough; absent when there is no record.
    pub pass: Option<bool>,
    /// Why no error can be given, where none can.
    pub problem: Option<String>,
    /// What would have been near enough.
    #[serde(skip)]
    tolerance: Tolerance,
}

/// Everything that was computed, and how it compares.
#[derive(Debug, Default)]
pub struct Report {
    comparisons: Vec<Comparison>,
    skipped: Vec<(&'static str, String)>,
    computed: Vec<(String, Array)>,
}

impl Report {
    pub(super) fn add(
        &mut self,
        part: &'static str,
        name: &str,
        value: Array,
        record: Option<&TraceTensor>,
        tolerance: Tolerance,
    ) {
        let limit = match record {
            Some(TraceTensor { half: true, .. }) => {
                Tolerance { relative_l2: tolerance.relative_l2_half, ..tolerance }
            }
            _ => tolerance,
        };
        self.judge(part, name, &value, record.map(|r| &r.array), limit);
        self.computed.push((name.to_owned(), value));
    }

    /// A value whose record is no tensor of the trace file.
    pub(super) fn add_plain(
        &mut self,
        part: &'static str,
        name: &str,
        value: Array,
        record: Option<&Array>,
        tolerance: Tolerance,
    ) {
        self.judge(part, name, &value, record, tolerance);
        self.computed.push((name.to_owned(), value));
    }

    pub(super) fn skip(&mut self, part: &'static str, reason: &str) {
        self.skipped.push((part, reason.to_owned()));
    }

    fn judge(
        &mut self,
        part: &'static str,
        name: &str,
        value: &Array,
        record: Option<&Array>,
        tolerance: Tolerance,
    ) {
        let errors = record.map(|record| errors(value, record));
        let known = errors.as_ref().and_then(|e| e.as_ref().ok()).copied();
        let near = |(abs, rel): (f64, f64)| abs <= tolerance.absolute && rel <= tolerance.relative_l2;
        self.comparisons.push(Comparison {
            part,
            name: name.to_owned(),
            max_abs: known.map(|e| e.0),
            relative_l2: known.map(|e| e.1),
            pass: errors.as_ref().map(|_| known.is_some_and(near)),
            problem: errors.and_then(Result::err),
            tolerance,
        });
    }

    /// Every comparison, in the order they were made.
    pub fn comparisons(&self) -> &[Comparison] {
        &self.comparisons
    }

    /// A value as computed here.
    pub fn computed(&self, name: &str) -> Option<&Array> {
        self.computed.iter().find(|(n, _)| n == name).map(|(_, array)| array)
    }

    /// Whether nothing failed, and something beyond the schedule was compared.
    pub fn passed(&self) -> bool {
        let judged = || self.comparisons.iter().filter_map(|c| Some((c.part, c.pass?)));
        judged().any(|(part, _)| part != "schedule") && judged().all(|(_, pass)| pass)
    }

    /// A table for people: one line per tensor, patches summed up in their worst.
    pub fn table(&self) -> String {
        let mut lines = vec![format!(
            "{:<17} {:<31} {:>11} {:>12} {:>9}  {}",
            "part", "tensor", "max abs", "relative L2", "limit", ""
        )];
        for (label, rows) in grouped(&self.comparisons) {
            let worst =
                rows.iter().filter(|c| c.pass.is_some()).max_by(|a, b| severity(a).total_cmp(&severity(b)));
            let part = rows[0].part;
            lines.push(match worst {
                Some(Comparison {
                    max_abs: Some(abs),
                    relative_l2: Some(rel),
                    pass: Some(pass),
                    tolerance,
                    ..
                }) => {
                    let limit = match tolerance.absolute {
                        a if a.is_finite() && tolerance.relative_l2 > 0.0 => format!("abs {a}"),
                        _ => format!("{:.0e}", tolerance.relative_l2),
                    };
                    let verdict = if *pass { "pass" } else { "FAIL" };
                    format!("{part:<17} {label:<31} {abs:>11.2e} {rel:>12.2e} {limit:>9}  {verdict}")
                }
                Some(Comparison { problem: Some(problem), .. }) => {
                    format!("{part:<17} {label:<31} {problem}  FAIL")
                }
                _ => format!(
                    "{part:<17} {label:<31} {:>11} {:>12} {:>9}  computed, not recorded",
                    "-", "-", "-"
                ),
            });
        }
        lines.extend(self.skipped.iter().map(|(part, reason)| format!("{part:<17} skipped: {reason}")));
        lines.join("\n")
    }

    /// Every comparison as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "passed": self.passed(), "comparisons": self.comparisons, "skipped": self.skipped })
    }

    /// Every computed value as a safetensors file, in f32, with the trace's batch axis.
    pub fn dump(&self) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let tensors = self.computed.iter().map(|(name, array)| {
            let batched = name.ends_with(".time_ids") || array.shape().len() == 1 && !name.contains("pooled");
            let batch: &[usize] = if batched { &[] } else { &[1] };
            let shape = batch.iter().chain(array.shape()).copied().collect();
            Ok((name, TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(array.data()))?))
        });
        let tensors = tensors.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        safetensors::serialize(tensors, None)
    }
}

/// Largest absolute and relative L2 error, or why there is none. A record with fewer rows was cropped:
/// only those count.
fn errors(value: &Array, record: &Array) -> Result<(f64, f64), String> {
    let cropped;
    let value = match (value.chw(), record.chw()) {
        (Some((c, h, w)), Some((rc, rh, rw))) if (rc, rw) == (c, w) && rh < h => {
            let rows = value.data().chunks_exact(h * w).flat_map(|plane| plane[..rh * w].iter().copied());
            cropped = Array::new([c, rh, w], rows.collect()).expect("fewer rows of the same planes");
            &cropped
        }
        _ => value,
    };
    if value.shape() != record.shape() {
        return Err(format!("computed {:?}, recorded {:?}", value.shape(), record.shape()));
    }
    if !value.is_finite() {
        return Err("not finite".into());
    }
    let pairs = || value.data().iter().zip(record.data()).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let max_abs = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let difference: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f64 = pairs().map(|(_, b)| b * b).sum();
    let relative = if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() };
    Ok((max_abs, relative))
}

/// How far beyond its limit an error is.
fn severity(c: &Comparison) -> f64 {
    let over = |error: Option<f64>, limit: f64| match error.unwrap_or(0.0) {
        0.0 => 0.0,
        error => error / limit,
    };
    let over = over(c.max_abs, c.tolerance.absolute).max(over(c.relative_l2, c.tolerance.relative_l2));
    if c.problem.is_some() { f64::INFINITY } else { over }
}

/// Comparisons under one label: patches by what they hold, all else alone.
fn grouped(comparisons: &[Comparison]) -> Vec<(String, Vec<&Comparison>)> {
    let mut groups: Vec<(String, Vec<&Comparison>)> = Vec::new();
    for c in comparisons {
        let label = match c.name.split_once('.') {
            Some((patch, what)) if patch.starts_with("patch") => format!("patch*.{what}"),
            _ => c.name.clone(),
        };
        match groups.iter_mut().find(|(l, _)| *l == label) {
            Some((_, rows)) => rows.push(c),
            None => groups.push((label, vec![c])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(array: Array) -> TraceTensor {
        TraceTensor { array, half: false }
    }

    fn row(values: &[f32]) -> Array {
        Array::new([values.len()], values.to_vec()).unwrap()
    }

    #[test]
    fn a_deviation_fails_and_a_missing_record_does_not() {
        let mut report = Report::default();
        report.add("text", "a", row(&[1.0, 2.0]), Some(&record(row(&[1.0, 2.0]))), Tolerance::EMBEDDING);
        report.add("text", "b", row(&[1.0]), None, Tolerance::EMBEDDING);
        assert!(report.passed());
        report.add("text", "c", row(&[1.0, 2.0]), Some(&record(row(&[1.0, 2.1]))), Tolerance::EMBEDDING);
        assert!(!report.passed());
        assert!(report.table().contains("FAIL") && report.table().contains("not recorded"));
    }

    #[test]
    fn nan_and_other_shapes_never_pass_and_nothing_compared_is_no_pass() {
        assert!(!Report::default().passed());
        let mut schedule = Report::default();
        schedule.add_plain("schedule", "timesteps", row(&[1.0]), Some(&row(&[1.0])), Tolerance::EXACT);
        assert!(!schedule.passed(), "a schedule alone is no evidence");
        for value in [row(&[f32::NAN, 1.0]), row(&[1.0])] {
            let mut report = Report::default();
            report.add("text", "a", value, Some(&record(row(&[1.0, 1.0]))), Tolerance::LEVEL);
            assert!(!report.passed());
        }
    }

    #[test]
    fn a_cropped_record_is_compared_by_its_rows() {
        let value = Array::new([1, 3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let top = Array::new([1, 2, 2], vec![1.0, 2.0, 3.0, 4.5]).unwrap();
        assert_eq!(errors(&value, &top).unwrap().0, 0.5);
    }
}
