//! The pages in a headless Chromium: skipped, with a word, where there is none, unless `BROWSER_TESTS=required`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::Coordinator;
use super::{render, view};

/// Where the scripts are that drive a browser, and the browser.
struct Browser {
    scripts: PathBuf,
    chromium: PathBuf,
}

impl Browser {
    /// The browser, if it, Node.js and its modules are here.
    fn find() -> Result<Self, String> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/browser");
        for module in ["playwright-core", "axe-core"] {
            if !scripts.join("node_modules").join(module).is_dir() {
                return Err(format!("`npm ci` in tests/browser was not run: {module} is missing"));
            }
        }
        let found = |name: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|p| p.join(name)).find(|p| p.is_file())
        };
        let chromium = std::env::var_os("CHROMIUM").map(PathBuf::from);
        let chromium = chromium
            .or_else(|| ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(found));
        let chromium = chromium.ok_or("there is no Chromium: install it, or set CHROMIUM")?;
        found("node").ok_or("there is no Node.js")?;
        Ok(Self { scripts, chromium })
    }

    /// `None`, and a word about it, where there is none; a failure where `BROWSER_TESTS=required` is set.
    #[allow(clippy::print_stderr)]
    fn get() -> Option<Self> {
        match Self::find() {
            Ok(found) => Some(found),
            Err(reason) => {
                let required = std::env::var_os("BROWSER_TESTS").is_some_and(|wanted| wanted == "required");
                assert!(!required, "BROWSER_TESTS=required, and {reason}");
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    fn run(&self, script: &str, args: &[&str]) {
        let mut command = Command::new("node");
        let command = command.arg(self.scripts.join(script)).args(args).env("CHROMIUM", &self.chromium);
        let output = command.output().expect("node starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{args:?}\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_pages_work_in_a_browser() {
    let Some(browser) = Browser::get() else { return };
    let folder = tempfile::tempdir().unwrap();
    let drive = |url: &str, args: &[&str]| {
        browser.run("pages.mjs", &[&[url, folder.path().to_str().unwrap()], args].concat());
    };
    let coordinator = Coordinator::start(&["--checkpoint-every", "1s"]);
    let model = "synthetic:side=64,latency=60";
    let _workers = ["rack-1", "rack-2", "rack-3"].map(|name| coordinator.worker(model, name));
    let size = ["--model", "synthetic:side=64", "--width", "4096", "--height", "4096", "--steps", "30"];
    submit_sized(&coordinator, "mountains", &size);
    coordinator.until(&["status", "mountains"], |s| s["patches_done"].as_u64() > Some(2));
    drive(&coordinator.url, &["--farm", "--render", "mountains", "--worker", "rack-2"]);
    coordinator.told(&["cancel", "mountains"]);

    render(folder.path(), "a.dzi");
    let (_shown, url) = view(folder.path(), "a.dzi");
    drive(&url, &["--picture"]);
}

#[test]
fn the_pages_stand_whatever_network_and_server_do() {
    let Some(browser) = Browser::get() else { return };
    let folder = tempfile::tempdir().unwrap();
    browser.run("faults.mjs", &[folder.path().to_str().unwrap()]);
}

#[test]
fn the_pages_cope_with_odd_cases_and_are_accessible() {
    let Some(browser) = Browser::get() else { return };
    let folder = tempfile::tempdir().unwrap();
    browser.run("details.mjs", &[folder.path().to_str().unwrap()]);
}

fn submit_sized(coordinator: &Coordinator, name: &str, size: &[&str]) {
    let settings = ["submit", "-q", "-p", "mountains with a lake", "--name", name];
    coordinator.told(&[&settings[..], size].concat());
    std::thread::sleep(Duration::from_millis(50));
}
