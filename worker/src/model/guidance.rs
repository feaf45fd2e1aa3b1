//! Classifier-free and perturbed-attention guidance: which rows the network runs, and how their
//! outputs become one. Pure.

use gigasmith_proto::domain::NoiseTask;

use crate::backend::BackendError;

/// The self-attentions that `names` address, given the model's own names. `down`, `mid` and `up`
/// mean all of that part.
pub(crate) fn resolve_blocks(names: &[String], known: &[String]) -> Result<Vec<String>, BackendError> {
    let mut chosen = vec![false; known.len()];
    for name in names {
        let letter = match name.as_str() {
            "down" => Some('d'),
            "mid" => Some('m'),
            "up" => Some('u'),
            _ => None,
        };
        let mut found = false;
        for (chosen, known) in chosen.iter_mut().zip(known) {
            let hit = letter.map_or(known == name, |l| known.starts_with(l));
            *chosen |= hit;
            found |= hit;
        }
        if !found {
            return Err(BackendError::UnknownPagBlock { name: name.clone(), available: phrase(known) });
        }
    }
    Ok(known.iter().zip(chosen).filter(|(_, c)| *c).map(|(n, _)| n.clone()).collect())
}

/// `down (d0 to d3), mid (m0), up (u0 to u5)`.
fn phrase(known: &[String]) -> String {
    let parts = [("down", 'd'), ("mid", 'm'), ("up", 'u')].into_iter().filter_map(|(part, letter)| {
        let mut names = known.iter().filter(|n| n.starts_with(letter));
        let first = names.next()?;
        Some(match names.next_back() {
            Some(last) => format!("{part} ({first} to {last})"),
            None => format!("{part} ({first})"),
        })
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// One value of the guided output from those of the rows: negative (where g > 1), prompt, perturbed
/// (where there is perturbed-attention guidance).
///
/// - `e = e_neg + g (e_pos - e_neg)` (Ho and Salimans, arXiv 2207.12598)
/// - `e = e_pos + (g - 1) (e_pos - e_neg) + p (e_pos - e_pert)` (Ahn et al., arXiv 2403.17377,
///   section 4.3)
/// - `e = e_pos + p (e_pos - e_pert)` where g <= 1
pub(crate) fn combine(task: &NoiseTask, rows: &[&[f32]]) -> Vec<f32> {
    let g = task.guidance_scale;
    let n = rows[0].len();
    let row = |i: usize| rows[i];
    let p = task.pag.as_ref().map(|pag| pag.scale);
    let each = |f: &dyn Fn(usize) -> f32| (0..n).map(f).collect();
    match (task.uses_negative(), p) {
        (false, None) => row(0).to_vec(),
        (true, None) => {
            let (neg, pos) = (row(0), row(1));
            each(&|i| neg[i] + g * (pos[i] - neg[i]))
        }
        (true, Some(p)) => {
            let (neg, pos, pert) = (row(0), row(1), row(2));
            each(&|i| pos[i] + (g - 1.0) * (pos[i] - neg[i]) + p * (pos[i] - pert[i]))
        }
        (false, Some(p)) => {
            let (pos, pert) = (row(0), row(1));
            each(&|i| pos[i] + p * (pos[i] - pert[i]))
        }
    }
}

#[cfg(test)]
mod tests {
    use gigasmith_proto::domain::{Array, ConditioningId, PagScale};

    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn block_names_are_parts_or_single_attentions() {
        let known = strings(&["d0", "d1", "m0", "u0", "u1", "u2"]);
        let resolve = |names: &[&str]| resolve_blocks(&strings(names), &known);
        assert_eq!(resolve(&["mid"]).unwrap(), ["m0"]);
        assert_eq!(resolve(&["u1", "down", "d1"]).unwrap(), ["d0", "d1", "u1"]);
        assert_eq!(
            resolve(&["u3"]).unwrap_err().to_string(),
            "unknown attention block `u3` for perturbed-attention guidance; use down (d0 to d1), mid (m0), \
             up (u0 to u2)"
        );
    }

    #[test]
    fn guidance_follows_its_formulas() {
        let pag = PagScale { scale: 3.0, blocks: strings(&["mid"]) };
        let task = |guidance_scale, pag: Option<&PagScale>| NoiseTask {
            latent: Array::zeros([1, 1, 1]).into(),
            wire: Default::default(),
            timestep: 1,
            time_ids: [0.0; 6],
            conditioning: ConditioningId([0; 32]),
            guidance_scale,
            pag: pag.cloned(),
        };
        let (neg, pos, pert) = (1.0, 2.0, 5.0);
        let combine = |task: NoiseTask, rows: &[f32]| combine(&task, &rows.chunks(1).collect::<Vec<_>>());
        assert_eq!(combine(task(1.0, None), &[pos]), [2.0]);
        assert_eq!(combine(task(7.5, None), &[neg, pos]), [1.0 + 7.5]);
        assert_eq!(combine(task(5.0, Some(&pag)), &[neg, pos, pert]), [2.0 + 4.0 - 9.0]);
        assert_eq!(combine(task(1.0, Some(&pag)), &[pos, pert]), [2.0 - 9.0]);
    }
}
