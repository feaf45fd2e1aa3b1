//! `--seed 7`, `--seed 1,5,9`, `--seed 1..4`, `--seed random`: which seeds to render, and what to call the pictures.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// More seeds than anybody means.
const MOST: u64 = 10_000;

/// One or more seeds, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seeds(pub(super) Vec<u64>);

/// Seeds as they are typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SeedsArg {
    /// These.
    Given(Seeds),
    /// One that nobody has thought of.
    Random,
}

impl FromStr for SeedsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            // What other programs take for it.
            "random" | "-1" => Ok(Self::Random),
            text => text.parse().map(Self::Given),
        }
    }
}

impl SeedsArg {
    /// The seeds. `draw` gives a number that cannot be foreseen, of which 32 bits are used: other programs take no
    /// more.
    pub(super) fn resolve(&self, draw: impl FnOnce() -> u64) -> Seeds {
        match self {
            Self::Given(seeds) => seeds.clone(),
            Self::Random => Seeds(vec![draw() & u64::from(u32::MAX)]),
        }
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |s: &str| {
            s.trim().parse::<u64>().map_err(|_| {
                format!("`{s}` is no seed: give 0 to {}, a list 1,5,9, a range 1..4, or random", u64::MAX)
            })
        };
        let mut seeds = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                None => seeds.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
                    if last < first || last - first >= MOST {
                        return Err(format!(
                            "the range {part} holds no seeds or more than {MOST}; both ends are included"
                        ));
                    }
                    seeds.extend(first..=last);
                }
            }
        }
        if seeds.len() as u64 > MOST {
            return Err(format!("{} seeds are more than {MOST}", seeds.len()));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = seeds.iter().find(|&&s| !seen.insert(s)) {
            return Err(format!("seed {twice} is given twice"));
        }
        Ok(Self(seeds))
    }
}

impl Seeds {
    /// The file for one of the seeds: `name` itself for a single seed, else `stem-SEED.ext`.
    pub(super) fn file(&self, name: &Path, seed: u64) -> PathBuf {
        if self.0.len() == 1 {
            return name.to_owned();
        }
        let stem = name.file_stem().unwrap_or_default().to_string_lossy();
        let extension = name.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
        name.with_file_name(format!("{stem}-{seed}{extension}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        let seeds = |s: &str| s.parse::<Seeds>().map(|s| s.0);
        assert_eq!(seeds("7"), Ok(vec![7]));
        assert_eq!(seeds("3,1..4 ,18446744073709551615").map_err(|_| ()), Err(()), "3 is given twice");
        assert_eq!(seeds("1..3,9"), Ok(vec![1, 2, 3, 9]));
        for bad in ["", "x", "-1", "1.5", "4..1", "0..99999999", "1,1", "1..", "..3"] {
            assert!(seeds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_seed_may_be_drawn() {
        let resolve = |text: &str| text.parse::<SeedsArg>().unwrap().resolve(|| u64::MAX - 1);
        for text in ["random", "-1", " -1 "] {
            assert_eq!(resolve(text), Seeds(vec![u64::from(u32::MAX) - 1]));
        }
        assert_eq!(resolve("3,5"), Seeds(vec![3, 5]));
        assert!("-2".parse::<SeedsArg>().unwrap_err().contains("random"));
    }

    #[test]
    fn several_pictures_get_several_names() {
        let two: Seeds = "1,2".parse().unwrap();
        assert_eq!(two.file(Path::new("a/out.png"), 2), Path::new("a/out-2.png"));
        assert_eq!("1".parse::<Seeds>().unwrap().file(Path::new("out.png"), 1), Path::new("out.png"));
    }
}
