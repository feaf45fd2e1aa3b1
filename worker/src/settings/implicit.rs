//! What a settings file that nobody named may decide.
//!
//! `gigasmith.toml` of the working folder may have come with a checkout or an archive. Whoever wrote it must
//! not learn a secret by naming a file of ours as the token and a machine of theirs as the coordinator. So,
//! for commands that talk to a coordinator, such a file
//!
//! 1. may name a coordinator, a token and a certificate only if it belongs to the user who runs the command
//!    (or to root), and not everybody may write to it;
//! 2. may name only secrets that lie in its own folder or below, links followed;
//! 3. may not name the coordinator that a token from elsewhere (`--token-file`, `GIGASMITH_TOKEN_FILE`) goes to.
//!
//! A file that is named, by `--config` or `GIGASMITH_CONFIG`, may do all of that.

use std::fs::Metadata;
use std::path::Path;

use toml::Value;

/// The flag that says to whom a command talks.
pub(super) const ADDRESS: &str = "coordinator";
const TOKEN: &str = "token-file";
/// Files that say who we are.
const SECRETS: [&str; 3] = [TOKEN, "tls-cert", "tls-key"];

/// Fails when the file decides more than it may. `setting`: what it says about a flag of the command;
/// `given`: whether the command line or the environment wins over it.
pub(super) fn check<'a>(
    file: &Path,
    setting: impl Fn(&str) -> Option<&'a Value>,
    given: impl Fn(&str) -> bool,
) -> Result<(), String> {
    let decides = |flag: &str| setting(flag).filter(|_| !given(flag));
    let address = decides(ADDRESS);
    let secrets: Vec<(&str, &Value)> = SECRETS.into_iter().filter_map(|s| Some((s, decides(s)?))).collect();
    if address.is_none() && secrets.is_empty() {
        return Ok(());
    }
    let trusted = format!("pass --config {} if it is to be trusted", file.display());
    let metadata = file.metadata().map_err(|e| e.to_string())?;
    if let Some(reason) = suspicion(&metadata) {
        let flag = address.map_or_else(|| secrets[0].0, |_| ADDRESS);
        return Err(format!("`{flag}` is not taken from a file that {reason}: {trusted}"));
    }
    for (flag, value) in secrets {
        if let Some(path) = value.as_str().filter(|path| !lies_beside(file, Path::new(path))) {
            return Err(format!(
                "`{flag}` names {path}, which lies outside the folder of this file that nobody named: {trusted}"
            ));
        }
    }
    if let Some(Value::String(address)) = address.filter(|_| given(TOKEN)) {
        return Err(format!(
            "the token from elsewhere is not shown to the coordinator {address}, which only this file names: pass \
             --coordinator {address}, or {trusted}"
        ));
    }
    Ok(())
}

/// Whether a file lies in the other's folder or below. One that is not there is told of when it is read.
fn lies_beside(settings: &Path, path: &Path) -> bool {
    let folder = settings.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), path.canonicalize()) {
        (Ok(folder), Ok(path)) => path.starts_with(folder),
        (_, there) => there.is_err(),
    }
}

/// Why the file may be somebody else's.
#[cfg(unix)]
fn suspicion(metadata: &Metadata) -> Option<&'static str> {
    use std::os::unix::fs::MetadataExt;
    let ours = [0, rustix::process::geteuid().as_raw()];
    match metadata {
        m if !ours.contains(&m.uid()) => Some("belongs to another user"),
        m if m.mode() & 0o002 != 0 => Some("everybody may write to"),
        _ => None,
    }
}

#[cfg(not(unix))]
fn suspicion(_: &Metadata) -> Option<&'static str> {
    None
}
