//! A set of patches, one bit each; as ranges where it is stored, for what is committed is nearly everything before
//! some point.

use super::units::PatchId;

/// Patches of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PatchSet {
    bits: Vec<u64>,
    len: usize,
}

impl PatchSet {
    /// Adds a patch.
    pub fn insert(&mut self, id: PatchId) {
        let (word, bit) = (id.index() / 64, 1u64 << (id.index() % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.len += usize::from(self.bits[word] & bit == 0);
        self.bits[word] |= bit;
    }

    /// Whether a patch is in it.
    pub fn contains(&self, id: PatchId) -> bool {
        self.bits.get(id.index() / 64).is_some_and(|word| word & (1 << (id.index() % 64)) != 0)
    }

    /// Number of patches.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The patches in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PatchId> + '_ {
        let all = (0..self.bits.len() as u32 * 64).map(PatchId);
        all.filter(|&id| self.contains(id))
    }

    /// The same as ranges (first, one past the last), in ascending order.
    pub fn ranges(&self) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for PatchId(id) in self.iter() {
            match ranges.last_mut() {
                Some((_, end)) if *end == id => *end += 1,
                _ => ranges.push((id, id + 1)),
            }
        }
        ranges
    }

    /// A set from ranges, of patches below `patches`; `None` when they reach beyond or run backwards.
    pub fn from_ranges(ranges: &[(u32, u32)], patches: usize) -> Option<Self> {
        let mut set = Self::default();
        let mut before = 0;
        for &(first, end) in ranges {
            if first < before || end <= first || end as usize > patches {
                return None;
            }
            (first..end).for_each(|id| set.insert(PatchId(id)));
            before = end;
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_and_back(ids in prop::collection::btree_set(0u32..300, 0..200)) {
            let mut set = PatchSet::default();
            ids.iter().for_each(|&id| set.insert(PatchId(id)));
            ids.iter().for_each(|&id| set.insert(PatchId(id)));
            prop_assert_eq!(set.len(), ids.len());
            prop_assert_eq!(set.iter().map(|id| id.0).collect::<Vec<_>>(), ids.iter().copied().collect::<Vec<_>>());
            let back = PatchSet::from_ranges(&set.ranges(), 300).unwrap();
            prop_assert_eq!(back.ranges(), set.ranges());
        }
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        for bad in [&[(0, 11)][..], &[(3, 3)], &[(5, 6), (2, 3)], &[(0, 4), (3, 6)]] {
            assert_eq!(PatchSet::from_ranges(bad, 10), None, "{bad:?}");
        }
    }
}
