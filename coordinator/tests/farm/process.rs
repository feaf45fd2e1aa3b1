//! Coordinators and workers as processes, ended with the test whatever happens.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No step of a test takes longer, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Numbers that look random: which worker dies next, and when (a linear congruence after Knuth).
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status();
        assert!(sent.expect("`kill` is there").success());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn end(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("it can be waited for") {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gigasmith"));
    // What the machine that runs the tests has set must not matter.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GIGASMITH_") {
            command.env_remove(name);
        }
    }
    command
}

/// A coordinator with its store in a folder of its own.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) folder: Arc<tempfile::TempDir>,
    pub(crate) url: String,
    args: Vec<String>,
    process: Option<Running>,
}

impl Coordinator {
    pub(crate) fn start(args: &[&str]) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let mut coordinator = Self { folder, url: String::new(), args, process: None };
        coordinator.serve("127.0.0.1:0");
        coordinator
    }

    /// Another coordinator on the same store, at an address of its own.
    pub(crate) fn beside(&self) -> Self {
        let (folder, args) = (self.folder.clone(), self.args.clone());
        let mut coordinator = Self { folder, url: String::new(), args, process: None };
        coordinator.serve("127.0.0.1:0");
        coordinator
    }

    fn serve(&mut self, listen: &str) {
        let mut child = program()
            .current_dir(self.folder.path())
            .args(["serve", "--listen", listen, "--store", "store"])
            .args(&self.args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("it is piped"));
        said.read_line(&mut line).expect("it says where it listens");
        let url = line.split_whitespace().find_map(|w| w.strip_suffix(',').filter(|w| w.contains("://")));
        self.url = url.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        self.process = Some(Running(child));
    }

    /// Ends the coordinator as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process.take().expect("it runs");
    }

    pub(crate) fn process(&self) -> &Running {
        self.process.as_ref().expect("it runs")
    }

    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let mut process = self.process.take().expect("it runs");
        process.signal("TERM");
        process.end()
    }

    /// Waits for it to end by itself.
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.process.take().expect("it runs").end()
    }

    /// Starts again at the same address, on the same store.
    pub(crate) fn restart(&mut self) {
        let address = self.url.split("://").nth(1).expect("a URL").to_owned();
        // The port may be held for a moment by connections that are closing.
        std::thread::sleep(Duration::from_millis(100));
        self.serve(&address);
    }

    pub(crate) fn worker(&self, model: &str, name: &str) -> Running {
        self.worker_with(model, name, &[])
    }

    /// The slim program where it was built beside ours, as `cargo test --workspace` does.
    pub(crate) fn worker_with(&self, model: &str, name: &str, more: &[&str]) -> Running {
        let slim = PathBuf::from(env!("CARGO_BIN_EXE_gigasmith")).with_file_name("gigasmith-worker");
        let mut command = program();
        if slim.exists() && name.ends_with("slim") {
            command = Command::new(slim);
        } else {
            command.arg("worker");
        }
        let child = command
            .current_dir(self.folder.path())
            .args(["--coordinator", &self.url, "--model", model, "--name", name])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        Running(child)
    }

    pub(crate) fn ask(&self, args: &[&str]) -> Output {
        program()
            .current_dir(self.folder.path())
            .env("GIGASMITH_COORDINATOR", &self.url)
            .args(args)
            .output()
            .expect("it starts")
    }

    /// What a command prints; it must succeed.
    pub(crate) fn told(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it prints text").trim().to_owned()
    }

    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let args = [args, &["--json"]].concat();
        serde_json::from_str(&self.told(&args)).expect("it prints JSON")
    }

    /// Waits until what `args` prints as JSON is as wanted.
    pub(crate) fn until(
        &self,
        args: &[&str],
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let started = Instant::now();
        loop {
            let json = self.json(args);
            if wanted(&json) {
                return json;
            }
            assert!(started.elapsed() < PATIENCE, "it never comes: {json:#}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    pub(crate) fn until_done(&self, id: &str) {
        let ended = |s: &serde_json::Value| ["done", "failed", "cancelled"].iter().any(|e| s["state"] == *e);
        let status = self.until(&["status", id], ended);
        assert_eq!(status["state"], "done", "{status:#}");
    }

    /// Picture and latents of a finished render.
    pub(crate) fn results(&self, id: &str) -> (Vec<u8>, Vec<u8>) {
        let fetch = |part: &str, file: &str| {
            self.told(&["fetch", id, "--part", part, "-o", file, "-q"]);
            std::fs::read(self.folder.path().join(file)).expect("it was written")
        };
        (fetch("picture", "fetched.png"), fetch("latents", "fetched.safetensors"))
    }
}

/// Picture and latents of the same settings from one embedded worker.
pub(crate) fn reference(folder: &Path, settings: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let output = program()
        .current_dir(folder)
        .args(["render", "-q", "-o", "reference.png", "--save-latents", "reference.safetensors"])
        .args(settings)
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read(folder.join(name)).expect("it was written");
    (read("reference.png"), read("reference.safetensors"))
}
