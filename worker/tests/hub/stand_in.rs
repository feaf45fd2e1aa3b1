//! A stand-in for the hub on loopback. It answers as the public one does: small files by way of a relative redirect,
//! large ones from a content network at another address that wants no token, with linked tags (SHA-256 for large files,
//! git's SHA-1 for small ones), and a content network that ignores ranges where it may compress. Bad habits can be
//! switched on while it runs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ring::digest::{Digest, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a server makes of `Range`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ranges {
    Honoured,
    /// 200 and everything.
    Ignored,
    /// 416, unless all is asked for.
    Refused,
    /// 206, but from another byte than asked for.
    Wrong,
}

/// How the stand-in behaves.
#[derive(Debug, Clone)]
pub(crate) struct Habits {
    /// What `main` is.
    pub(crate) commit: String,
    pub(crate) ranges: Ranges,
    /// Every answer has this status.
    pub(crate) status: Option<u16>,
    /// So many answers have status 503, with `Retry-After`, before it is well.
    pub(crate) failures: usize,
    /// Every answer is a page of a portal.
    pub(crate) is_rubbish: bool,
    /// Takes connections and says nothing.
    pub(crate) is_silent: bool,
    /// Connections end after so many bytes of a body; so many times.
    pub(crate) cut: Option<(usize, usize)>,
    /// Bodies have no length, but an end.
    pub(crate) is_chunked: bool,
    /// Bodies come with this coding, whatever was asked for.
    pub(crate) coding: Option<&'static str>,
    /// Bytes come that the file does not have: of this file, so many times.
    pub(crate) spoilt: Option<(&'static str, usize)>,
    /// More comes than the file has, so many times.
    pub(crate) longer: usize,
    /// `HEAD` is unknown.
    pub(crate) has_no_head: bool,
    /// Tags are these instead, all files' followed by their names.
    pub(crate) tag: Option<&'static str>,
    /// The list of files says sizes and hashes.
    pub(crate) tells_hashes: bool,
    /// A pause before each 64 KiB of large files.
    pub(crate) pause: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            commit: COMMIT.into(),
            ranges: Ranges::Honoured,
            status: None,
            failures: 0,
            is_rubbish: false,
            is_silent: false,
            cut: None,
            is_chunked: false,
            coding: None,
            spoilt: None,
            longer: 0,
            has_no_head: false,
            tag: None,
            tells_hashes: true,
            pause: Duration::ZERO,
        }
    }
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) coding: String,
    /// It came to the content network.
    pub(crate) is_cdn: bool,
}

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A hub that has one model, `farm/tiny`, and one that wants a token, `farm/gated`.
pub(crate) struct Hub {
    pub(crate) address: String,
    state: Arc<State>,
}

struct State {
    files: Files,
    cdn: String,
    habits: Mutex<Habits>,
    log: Mutex<Vec<Asked>>,
}

impl Hub {
    pub(crate) fn start() -> Self {
        Self::with(repository())
    }

    pub(crate) fn with(files: Files) -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, cdn) = (bind(), bind());
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (address, cdn_address) = (url(&hub), url(&cdn));
        let (habits, log) = (Mutex::new(Habits::default()), Mutex::default());
        let state = Arc::new(State { files, cdn: cdn_address, habits, log });
        // Ends with the test's process.
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    std::thread::spawn(move || Exchange { stream: &stream, state: &state, is_cdn }.run());
                }
            });
        }
        Self { address, state }
    }

    pub(crate) fn habits(&self) -> MutexGuard<'_, Habits> {
        self.state.habits.lock().unwrap()
    }

    /// What was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.log.lock().unwrap())
    }

    /// Paths of what was asked since the last time.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|a| a.path).collect()
    }

    pub(crate) fn files(&self) -> &Files {
        &self.state.files
    }
}

fn hex(digest: &Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors") || file.ends_with(".bin")
}

/// The tag that the public hub has for a file.
pub(crate) fn tag(file: &str, content: &[u8]) -> String {
    if is_large(file) {
        return hex(&digest(&SHA256, content));
    }
    let mut git = format!("blob {}\0", content.len()).into_bytes();
    git.extend_from_slice(content);
    hex(&digest(&SHA1_FOR_LEGACY_USE_ONLY, &git))
}

struct Exchange<'a> {
    stream: &'a TcpStream,
    state: &'a State,
    is_cdn: bool,
}

impl Exchange<'_> {
    fn run(&self) {
        let mut lines =
            BufReader::new(self.stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty());
        let Some(request) = lines.next() else { return };
        let headers: BTreeMap<String, String> = lines
            .filter_map(|l| l.split_once(':').map(|(k, v)| (k.to_lowercase(), v.trim().to_owned())))
            .collect();
        let header = |name: &str| headers.get(name).cloned();
        let mut words = request.split(' ');
        let asked = Asked {
            method: words.next().unwrap_or_default().to_owned(),
            path: words.next().unwrap_or("/").to_owned(),
            range: header("range"),
            token: header("authorization"),
            coding: header("accept-encoding").unwrap_or_default(),
            is_cdn: self.is_cdn,
        };
        self.state.log.lock().unwrap().push(asked.clone());
        self.answer(&asked);
    }

    fn habits(&self) -> MutexGuard<'_, Habits> {
        self.state.habits.lock().unwrap()
    }

    fn answer(&self, asked: &Asked) {
        let habits = self.habits().clone();
        if habits.is_silent {
            std::thread::sleep(Duration::from_secs(3600));
        }
        if habits.is_rubbish {
            return self.reply(
                asked,
                "200 OK",
                "Content-Type: text/html\r\n",
                b"<html>Log in to the network</html>",
            );
        }
        if let Some(status) = habits.status {
            return self.reply(asked, &format!("{status} No"), "", b"no");
        }
        if habits.failures > 0 {
            self.habits().failures -= 1;
            return self.reply(asked, "503 Busy", "Retry-After: 0\r\n", b"no");
        }
        if habits.has_no_head && asked.method == "HEAD" {
            return self.reply(asked, "405 No", "", b"");
        }
        if self.is_cdn {
            return self.cdn(asked);
        }
        let path = asked.path.split('?').next().unwrap_or_default();
        let id = ["farm/tiny", "farm/gated"].into_iter().find(|id| path.contains(id));
        let Some(id) = id else { return self.reply(asked, "404 Not Found", "", b"no") };
        if id == "farm/gated" && asked.token.as_deref() != Some("Bearer secret") {
            return self.reply(asked, "401 Unauthorized", "", b"no");
        }
        let commit = habits.commit.as_str();
        if path == format!("/api/models/{id}/revision/main")
            || path == format!("/api/models/{id}/revision/{commit}")
        {
            return self.json(asked, &self.info(id, &habits));
        }
        if path == format!("/api/models/{id}/tree/{commit}") {
            return self.json(asked, &self.tree());
        }
        let resolve = format!("/{id}/resolve/{commit}/");
        let cache = format!("/api/resolve-cache/models/{id}/{commit}/");
        let found = |prefix: &str| {
            let (name, content) = self.state.files.get_key_value(path.strip_prefix(prefix)?)?;
            Some((name.as_str(), content.as_slice()))
        };
        if let Some((file, content)) = found(&resolve) {
            return self.redirect(asked, file, content, &format!("{cache}{file}"));
        }
        match found(&cache) {
            Some((file, content)) => {
                let extra = format!("ETag: \"{}\"\r\nX-Repo-Commit: {commit}\r\n", self.tag(file, content));
                self.file(asked, file, content, &extra);
            }
            None => self.reply(asked, "404 Not Found", "", b"no"),
        }
    }

    fn tag(&self, file: &str, content: &[u8]) -> String {
        self.habits().tag.map_or_else(|| tag(file, content), |odd| format!("{odd}{}", file.replace('/', "-")))
    }

    fn json(&self, asked: &Asked, json: &serde_json::Value) {
        self.reply(asked, "200 OK", "Content-Type: application/json\r\n", json.to_string().as_bytes());
    }

    fn info(&self, id: &str, habits: &Habits) -> serde_json::Value {
        let sibling = |(file, content): (&String, &Vec<u8>)| {
            let mut sibling = serde_json::json!({"rfilename": file});
            if habits.tells_hashes {
                sibling["size"] = content.len().into();
                sibling["blobId"] = tag("x", content).into();
                if is_large(file) {
                    let (hash, size) = (tag(file, content), content.len());
                    sibling["lfs"] = serde_json::json!({"sha256": hash, "size": size, "pointerSize": 130});
                }
            }
            sibling
        };
        let siblings: Vec<_> = self.state.files.iter().map(sibling).collect();
        serde_json::json!({"id": id, "sha": habits.commit, "private": false, "tags": [], "downloads": 0, "likes": 0,
            "siblings": siblings})
    }

    fn tree(&self) -> serde_json::Value {
        let entry = |(file, content): (&String, &Vec<u8>)| {
            let (size, hash) = (content.len(), tag("x", content));
            let mut entry = serde_json::json!({"type": "file", "path": file, "size": size, "oid": hash});
            if is_large(file) {
                entry["lfs"] =
                    serde_json::json!({"oid": tag(file, content), "size": content.len(), "pointerSize": 130});
            }
            entry
        };
        self.state.files.iter().map(entry).collect()
    }

    fn redirect(&self, asked: &Asked, file: &str, content: &[u8], cache: &str) {
        let commit = self.habits().commit.clone();
        if !is_large(file) {
            return self.reply(
                asked,
                "307 Temporary Redirect",
                &format!("Location: {cache}\r\n"),
                b"Temporary Redirect",
            );
        }
        let extra = format!(
            "Location: {}/cdn/{file}?signature=abc\r\nX-Repo-Commit: {commit}\r\nX-Linked-ETag: \"{}\"\r\n\
             X-Linked-Size: {}\r\nETag: \"of-the-pointer\"\r\n",
            self.state.cdn,
            self.tag(file, content),
            content.len()
        );
        self.reply(asked, "302 Found", &extra, b"Found. Redirecting");
    }

    fn cdn(&self, asked: &Asked) {
        if asked.token.is_some() {
            // A signed address and a token are one permission too many.
            return self.reply(asked, "400 Bad Request", "", b"no");
        }
        let path = asked.path.split('?').next().unwrap_or_default();
        match path.strip_prefix("/cdn/").and_then(|file| self.state.files.get_key_value(file)) {
            Some((file, content)) => self.file(asked, file, content, "ETag: \"of-the-network\"\r\n"),
            None => self.reply(asked, "404 Not Found", "", b"no"),
        }
    }

    fn file(&self, asked: &Asked, file: &str, content: &[u8], extra: &str) {
        let mut content = content.to_vec();
        let (coding, ranges) = {
            let mut habits = self.habits();
            if asked.method == "GET" {
                if let Some((spoilt, times)) =
                    habits.spoilt.filter(|(name, times)| *name == file && *times > 0)
                {
                    content[0] ^= 1;
                    habits.spoilt = Some((spoilt, times - 1));
                }
                if habits.longer > 0 {
                    habits.longer -= 1;
                    content.extend_from_slice(b"and more");
                }
            }
            // As the public network does: what it may compress it sends whole.
            let packs = asked.coding.contains("gzip") && !is_large(file);
            (habits.coding.or(packs.then_some("gzip")), habits.ranges)
        };
        if let Some(coding) = coding {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&content).unwrap();
            let packed = encoder.finish().unwrap();
            return self.reply(asked, "200 OK", &format!("{extra}Content-Encoding: {coding}\r\n"), &packed);
        }
        let from = asked
            .range
            .as_deref()
            .and_then(|r| r.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok());
        match (from, ranges) {
            (None, _) | (_, Ranges::Ignored) => self.reply(asked, "200 OK", extra, &content),
            (Some(from), ranges) if from < content.len() && ranges != Ranges::Refused => {
                let from = if ranges == Ranges::Wrong { from / 2 } else { from };
                let (last, all) = (content.len() - 1, content.len());
                let extra = format!("{extra}Content-Range: bytes {from}-{last}/{all}\r\n");
                self.reply(asked, "206 Partial Content", &extra, &content[from..]);
            }
            _ => self.reply(asked, "416 Range Not Satisfiable", "", b""),
        }
    }

    /// Sends an answer; of a file's content only as much as the habits allow.
    fn reply(&self, asked: &Asked, status: &str, extra: &str, body: &[u8]) {
        let (is_chunked, pause, cut) = {
            let mut habits = self.habits();
            let is_content =
                status.starts_with("20") && !asked.path.contains("/api/models/") && asked.method == "GET";
            let cut = habits.cut.filter(|(at, times)| is_content && *times > 0 && *at < body.len());
            if let Some((at, times)) = cut {
                habits.cut = Some((at, times - 1));
            }
            (habits.is_chunked && is_content, habits.pause, cut.map(|(at, _)| at))
        };
        let length = match is_chunked {
            true => "Transfer-Encoding: chunked\r\n".to_owned(),
            false => format!("Content-Length: {}\r\n", body.len()),
        };
        let mut out = self.stream;
        let mut send = |bytes: &[u8]| out.write_all(bytes).is_ok();
        send(format!("HTTP/1.1 {status}\r\n{length}Connection: close\r\n{extra}\r\n").as_bytes());
        if asked.method == "HEAD" {
            return;
        }
        for piece in body[..cut.unwrap_or(body.len())].chunks(64 << 10) {
            if body.len() > 200_000 {
                std::thread::sleep(pause);
            }
            let sent = match is_chunked {
                true => send(format!("{:x}\r\n", piece.len()).as_bytes()) && send(piece) && send(b"\r\n"),
                false => send(piece),
            };
            if !sent {
                return;
            }
        }
        if is_chunked && cut.is_none() {
            send(b"0\r\n\r\n");
        }
    }
}

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// The files of the model, and some that nobody needs.
pub(crate) fn repository() -> Files {
    let mut files = Files::new();
    let mut add = |root: PathBuf, prefix: &str| {
        for entry in std::fs::read_dir(root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                files.insert(format!("{prefix}{name}"), std::fs::read(path).unwrap());
            }
        }
    };
    let model = golden().join("exotic/mixed");
    add(model.clone(), "");
    for part in ["unet", "vae", "text_encoder", "text_encoder_2", "scheduler"] {
        add(model.join(part), &format!("{part}/"));
    }
    for part in ["tokenizer", "tokenizer_2"] {
        add(golden().join("tiny-sdxl").join(part), &format!("{part}/"));
    }
    files.insert("unet/diffusion_pytorch_model.bin".into(), b"never fetched".to_vec());
    files.insert("README.md".into(), b"never fetched".to_vec());
    files
}
