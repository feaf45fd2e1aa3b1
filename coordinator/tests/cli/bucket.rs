//! As much of S3 as a small render needs, on a port of this machine, with the faults of stores that are not
//! Amazon's. For as long as the test runs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use crate::command;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// Conditional writes are not implemented.
    NoConditions,
    /// Conditions are not looked at.
    IgnoresConditions,
    /// Nothing may be written.
    ReadOnly,
    /// Every request is refused with a status and a code.
    Refuses(u16, &'static str),
}

/// An empty bucket called `bucket`.
#[derive(Clone)]
pub(crate) struct Bucket {
    address: SocketAddr,
    fault: Fault,
    objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

struct Request {
    method: String,
    /// Without the bucket.
    key: String,
    query: String,
    is_conditional: bool,
    body: Vec<u8>,
}

impl Bucket {
    pub(crate) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let bucket = Self { address, fault, objects: Arc::default(), requests: Arc::default() };
        let serving = bucket.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(socket));
            }
        });
        bucket
    }

    /// Runs the program with credentials and endpoint of this bucket, and `variables`; one set to nothing is
    /// left out.
    pub(crate) fn run(&self, folder: &Path, args: &[&str], variables: &[(&str, &str)]) -> Output {
        let endpoint = format!("http://{}", self.address);
        let usual = [
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &*endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            // Nobody answers there.
            ("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9"),
        ];
        let mut command: Command = command(folder, args);
        command.envs(usual.into_iter().chain(variables.iter().copied()));
        variables.iter().filter(|(_, value)| value.is_empty()).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.output().expect("the binary starts")
    }

    /// The keys that are there.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    /// Methods and keys of what was asked, in order.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn serve(&self, socket: TcpStream) {
        let mut reader = BufReader::new(socket);
        while let Some(request) = read(&mut reader) {
            self.requests
                .lock()
                .unwrap()
                .push(format!("{} {}?{}", request.method, request.key, request.query));
            let (status, body) = self.answer(&request);
            let length = body.len();
            let body = if request.method == "HEAD" { Vec::new() } else { body };
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nETag: \"e\"\r\nLast-Modified: Thu, 01 Jan 2026 \
                 00:00:00 GMT\r\n\r\n"
            );
            if reader.get_mut().write_all(&[head.as_bytes(), &body].concat()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> (u16, Vec<u8>) {
        let refuse = |status: u16, code: &str| {
            (status, format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>").into_bytes())
        };
        if let Fault::Refuses(status, code) = self.fault {
            return refuse(status, code);
        }
        let mut objects = self.objects.lock().unwrap();
        match &*request.method {
            "PUT" | "DELETE" | "POST" if self.fault == Fault::ReadOnly => refuse(403, "AccessDenied"),
            "PUT" if request.is_conditional && self.fault == Fault::NoConditions => {
                refuse(501, "NotImplemented")
            }
            "PUT"
                if request.is_conditional
                    && self.fault != Fault::IgnoresConditions
                    && objects.contains_key(&request.key) =>
            {
                refuse(412, "PreconditionFailed")
            }
            "PUT" => {
                objects.insert(request.key.clone(), request.body.clone());
                (200, Vec::new())
            }
            "DELETE" => {
                objects.remove(&request.key);
                (204, Vec::new())
            }
            // Many know no request that deletes several.
            "POST" => refuse(501, "NotImplemented"),
            _ if request.query.contains("list-type") => (200, list(&objects, &request.query).into_bytes()),
            _ => {
                objects.get(&request.key).map_or_else(|| refuse(404, "NoSuchKey"), |body| (200, body.clone()))
            }
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&n| n > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut length, mut is_conditional) = (0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim_end().to_ascii_lowercase();
        match header.split_once(": ") {
            None => break,
            Some(("content-length", value)) => length = value.parse().ok()?,
            Some(("if-none-match", _)) => is_conditional = true,
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let key = path.trim_start_matches('/').trim_start_matches("bucket").trim_start_matches('/');
    Some(Request { method, key: key.to_owned(), query: query.to_owned(), is_conditional, body })
}

fn list(objects: &BTreeMap<String, Vec<u8>>, query: &str) -> String {
    let part = |name: &str| {
        let found = query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().replace("%2F", "/")
    };
    let (prefix, delimiter) = (part("prefix"), part("delimiter"));
    let mut folders = std::collections::BTreeSet::new();
    let mut xml = String::from("<ListBucketResult><IsTruncated>false</IsTruncated>");
    for (key, body) in objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        match key[prefix.len()..].split_once('/').filter(|_| !delimiter.is_empty()) {
            Some((folder, _)) => {
                folders.insert(format!("{prefix}{folder}/"));
            }
            None => xml.push_str(&format!(
                "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"e\"</ETag>\
                 <Size>{}</Size></Contents>",
                body.len()
            )),
        }
    }
    for folder in folders {
        xml.push_str(&format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"));
    }
    xml + "</ListBucketResult>"
}
