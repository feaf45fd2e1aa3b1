//! A grid of windows in raster order whose overlaps are dealt anew at every step, so that seams move.

use super::{Draws, Geometry};

/// The windows of one step as (top, left), in raster order.
pub(super) fn windows(geometry: Geometry, draws: &mut Draws) -> Vec<(usize, usize)> {
    let Geometry { canvas, window, zone } = geometry;
    let tops = starts(canvas.height, window.height, zone, draws);
    let lefts = starts(canvas.width, window.width, zone, draws);
    tops.iter().flat_map(|&top| lefts.iter().map(move |&left| (top, left))).collect()
}

/// Starts of the windows of side `side` along an axis of `length`.
fn starts(length: usize, side: usize, zone: usize, draws: &mut Draws) -> Vec<usize> {
    if length <= side {
        return vec![0];
    }
    // An eighth of a window, and wider than the zone, so that the zone ends inside the overlap.
    let overlap = (side / 8).max(zone + 1).min(side / 2);
    let stride = side - overlap;
    let slack = |n: usize| (n * stride + overlap).checked_sub(length);
    // A quarter of a window of slack lets seams move; windows of a few pixels have no room for it.
    let room = |n: usize| (n - 1) * (stride - 1);
    let fits = |&n: &usize| slack(n).is_some_and(|s| s * 4 >= side);
    let least = (2..).find(|&n| slack(n).is_some()).expect("slack grows with n");
    let n =
        (least..least + 2).find(fits).filter(|&n| slack(n).is_some_and(|s| s <= room(n))).unwrap_or(least);
    let slack = slack(n).expect("n is at least the least");

    // Each of the n - 1 overlaps grows by a random share of the slack; none may reach a whole window.
    let mut cuts: Vec<usize> = (0..n - 2).map(|_| draws.below(slack as u64 + 1) as usize).collect();
    cuts.sort_unstable();
    cuts.push(slack);
    let mut starts = vec![0];
    let (mut given, mut last) = (0, 0);
    for (i, cut) in cuts.into_iter().enumerate() {
        let remaining = n - 2 - i;
        let (low, high) = (slack.saturating_sub(given + remaining * (stride - 1)), stride - 1);
        let share = cut.saturating_sub(given).clamp(low.min(high), high);
        given += share;
        last += stride - share;
        starts.push(last);
    }
    debug_assert_eq!(last + side, length, "the last window ends with the axis");
    starts
}
