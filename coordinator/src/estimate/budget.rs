//! Limits that a render is to stay within: how they are typed, what exceeds them, and what would help.

use std::str::FromStr;
use std::time::Duration;

use super::{Estimate, bytes, seconds};

impl Estimate {
    /// What exceeds a budget, in words, and what to do about it; empty when nothing does. An error: what the budget
    /// limits is not known.
    pub fn exceeds(&self, budget: &Budget) -> Result<Vec<String>, String> {
        let mut over = Vec::new();
        for &(what, limit) in &budget.0 {
            let value = match what {
                Limit::Calls => self.patches as f64,
                Limit::Time => {
                    self.seconds.ok_or("a budget of time needs --seconds-per-patch or --measure")?
                }
                Limit::Memory => self.coordinator_memory as f64,
                Limit::WorkerMemory => self.worker_memory as f64,
                // A file is made in the scratch folder first.
                Limit::Disk => (self.scratch + 2 * self.output) as f64,
                Limit::Wire => (self.sent + self.received) as f64,
            };
            if value > limit {
                let (value, limit) = (what.show(value), what.show(limit));
                over.push(format!("{}: {value} of {limit}; {}", what.name(), what.remedy()));
            }
        }
        Ok(over)
    }
}

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Calls,
    Time,
    Memory,
    WorkerMemory,
    Disk,
    Wire,
}

impl Limit {
    const ALL: [(&str, Self); 6] = [
        ("calls", Self::Calls),
        ("time", Self::Time),
        ("memory", Self::Memory),
        ("worker-memory", Self::WorkerMemory),
        ("disk", Self::Disk),
        ("wire", Self::Wire),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, limit)| *limit == self).expect("all are listed").0
    }

    /// What makes it less.
    fn remedy(self) -> &'static str {
        match self {
            Self::Calls => "choose a smaller size or fewer steps",
            Self::Time => "choose a smaller size or fewer steps, or take more workers",
            Self::Memory => "choose a smaller size",
            Self::WorkerMemory => "choose --dtype f16 or bf16, or another model",
            Self::Disk => "choose a smaller size, or JPEG with --quality",
            Self::Wire => "choose a smaller size, fewer steps or --wire f16",
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Calls => format!("{value}"),
            Self::Time => seconds(value),
            _ => bytes(value as u64),
        }
    }
}

/// Limits: `calls=5000,time=2h,memory=8GB,worker-memory=12GB,disk=20GB,wire=100GB`, any of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget(Vec<(Limit, f64)>);

impl Budget {
    /// Whether it limits the time.
    pub fn limits_time(&self) -> bool {
        self.0.iter().any(|(limit, _)| *limit == Limit::Time)
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Limit::ALL.map(|(name, _)| name).join(", ");
        let limit = |part: &str| {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` has no value: give for example time=2h"))?;
            let found = Limit::ALL.iter().find(|(n, _)| *n == name.trim());
            let limit = found.ok_or_else(|| format!("`{name}` cannot be limited: give {}", known()))?.1;
            let number = match limit {
                Limit::Calls => value.trim().parse::<u64>().ok().map(|n| n as f64),
                Limit::Time => humantime::parse_duration(value).ok().as_ref().map(Duration::as_secs_f64),
                _ => parse_bytes(value),
            };
            let number = number.ok_or_else(|| {
                format!("`{part}` is not understood: give for example calls=5000, time=2h, memory=8GB")
            })?;
            Ok((limit, number))
        };
        text.split(',').filter(|p| !p.trim().is_empty()).map(limit).collect::<Result<_, String>>().map(Self)
    }
}

/// `8GB`, `512MiB`, `1e9`.
fn parse_bytes(text: &str) -> Option<f64> {
    let text = text.trim();
    let digits = text.find(|c: char| c.is_ascii_alphabetic() && c != 'e').unwrap_or(text.len());
    let unit = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        "tib" => 1099511627776.0,
        _ => return None,
    };
    let number: f64 = text[..digits].trim().parse().ok()?;
    (number >= 0.0 && number.is_finite()).then_some(number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_as_people_write_them() {
        let budget: Budget = "calls=5000, time=1h 30m,memory=8GB,disk=1.5TiB".parse().unwrap();
        assert_eq!(
            budget.0,
            [
                (Limit::Calls, 5000.0),
                (Limit::Time, 5400.0),
                (Limit::Memory, 8e9),
                (Limit::Disk, 1.5 * 1099511627776.0)
            ]
        );
        for (wrong, word) in
            [("time", "no value"), ("money=3", "cannot be limited"), ("memory=8XB", "not understood")]
        {
            assert!(wrong.parse::<Budget>().unwrap_err().contains(word), "{wrong}");
        }
        assert_eq!([bytes(999), bytes(1500), bytes(3_221_225_472)], ["999 B", "1.5 kB", "3.2 GB"]);
    }
}
