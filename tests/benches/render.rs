//! Whole upscale renders with the embedded model against the published method in PyTorch.
//!
//! `cargo build --release`, then
//! `GIGASMITH_PYTHON=python3 cargo bench -p gigasmith-tests --bench render -- [threads=N] [rounds=N] [scale=N]`,
//! with a Python that has what `tests/benches/reference/requirements.txt` says; without one, only our own times
//! are printed. Both start from the same picture, and have the same weights, prompt, settings and windows (the
//! plan `paper` as `gigasmith` lays it). Ours is the wall time of the whole process, weights and start-up
//! included; PyTorch's leaves its start and the loading of its models out. `balanced` is the plan that gigasmith
//! takes by default, with the published settings otherwise. All run in turn, each pinned to the first N
//! processors where there is `taskset`; a row has the medians, and the median, least and largest of the rounds'
//! ratios to PyTorch's.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::Value;

const PROMPT: &str = "snowy mountains with a lake at sunset, a sun";

fn main() -> anyhow::Result<()> {
    let (mut threads, mut rounds, mut scale) = (2, 3, 4);
    for word in std::env::args().skip(1).filter(|a| a != "--bench") {
        match word.split_once('=') {
            Some(("threads", n)) => threads = n.parse().context("threads=N")?,
            Some(("rounds", n)) => rounds = n.parse().context("rounds=N")?,
            Some(("scale", n)) => scale = n.parse().context("scale=N")?,
            _ => bail!("unknown word `{word}`: use threads=N, rounds=N, scale=N"),
        }
    }
    let work = tempfile::tempdir()?;
    let bench = Bench {
        gigasmith: program()?,
        python: std::env::var_os("GIGASMITH_PYTHON").map(PathBuf::from),
        folder: work.path().to_owned(),
        threads,
        scale,
    };
    let base = bench.file("base.png");
    bench.gigasmith(&["--prompt", PROMPT, "--scale", "1", "--seed", "7", "-o", &base])?;
    println!("{threads} threads, {rounds} rounds, {scale}x");
    println!("{:<22} {:>9} {:>7} {:>15}", "", "s", "ratio", "least..largest");
    let mut rows: [(&str, Vec<f64>); 3] =
        [("published, PyTorch", vec![]), ("paper", vec![]), ("balanced", vec![])];
    for _ in 0..rounds {
        rows[1].1.push(bench.ours("paper")?);
        rows[2].1.push(bench.ours("balanced")?);
        if let Some(seconds) = bench.theirs()? {
            rows[0].1.push(seconds);
        }
    }
    let reference = rows[0].1.clone();
    if reference.is_empty() {
        println!("skipped: PyTorch; set GIGASMITH_PYTHON to a Python that has it");
    }
    for (name, seconds) in rows.into_iter().filter(|(_, seconds)| !seconds.is_empty()) {
        let ratios: Vec<f64> = seconds.iter().zip(&reference).map(|(a, b)| a / b).collect();
        let (seconds, ratios) = (sorted(seconds), sorted(ratios));
        let ratio = ratios.get(ratios.len() / 2).map_or(String::new(), |ratio| {
            format!("{ratio:>7.2} {:>15}", format!("{:.2}..{:.2}", ratios[0], ratios[ratios.len() - 1]))
        });
        println!("{name:<22} {:>9.2} {ratio}", seconds[seconds.len() / 2]);
    }
    Ok(())
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The program, which `cargo build --release` leaves in the folder above this one's.
fn program() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let program =
        here.parent().and_then(Path::parent).context("a folder above this program")?.join("gigasmith");
    if !program.exists() {
        bail!("there is no {}: run `cargo build --release` first", program.display());
    }
    Ok(program)
}

struct Bench {
    gigasmith: PathBuf,
    python: Option<PathBuf>,
    folder: PathBuf,
    threads: usize,
    scale: usize,
}

impl Bench {
    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// A program on so many processors.
    fn pinned(&self, program: &Path) -> Command {
        let taskset = Command::new("taskset").arg("--version").stdout(Stdio::null()).status();
        let mut command = if taskset.is_ok_and(|status| status.success()) {
            let mut command = Command::new("taskset");
            command.args(["-c", &format!("0-{}", self.threads - 1)]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.env("RAYON_NUM_THREADS", self.threads.to_string());
        command
    }

    /// Wall time of a render.
    fn gigasmith(&self, arguments: &[&str]) -> anyhow::Result<f64> {
        let start = Instant::now();
        let done = self.pinned(&self.gigasmith).args(["render", "--quiet"]).args(arguments).status()?;
        if !done.success() {
            bail!("gigasmith render {arguments:?} failed");
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// The upscale stage by a plan, as published otherwise.
    fn ours(&self, plan: &str) -> anyhow::Result<f64> {
        let (scale, base) = (self.scale.to_string(), self.file("base.png"));
        let (picture, saved) = (self.file(&format!("{plan}.png")), self.file(&format!("{plan}.json")));
        self.gigasmith(&[
            "--image",
            &base,
            "--prompt",
            PROMPT,
            "--stages",
            &scale,
            "--seed",
            "7",
            "--paper",
            "--plan",
            plan,
            "--save-plan",
            &saved,
            "-o",
            &picture,
        ])
    }

    /// The same in PyTorch, by the plan `paper` that was saved.
    fn theirs(&self) -> anyhow::Result<Option<f64>> {
        let Some(python) = &self.python else { return Ok(None) };
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let output = self
            .pinned(python)
            .arg(here.join("benches/reference/published.py"))
            .arg(here.join("../worker/pocket"))
            .args(["--plan", &self.file("paper.json"), "--base", &self.file("base.png")])
            .args(["--from", &self.file("paper.png"), "--out", &self.file("published.png")])
            .args(["--threads", &self.threads.to_string()])
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            bail!("{} failed", here.join("benches/reference/published.py").display());
        }
        let answer: Value = serde_json::from_slice(&output.stdout).context("what published.py printed")?;
        Ok(Some(answer["seconds"]["total"].as_f64().context("its seconds")?))
    }
}
