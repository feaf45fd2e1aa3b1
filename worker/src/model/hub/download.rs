//! One file from the hub into the cache: resumed where it broke off, checked, and only then given its name.
//!
//! What is there of a file lies beside its place as `<name>.incomplete`. The name is made of the file's tag, so that a
//! part of another version is never continued. Whatever a connection does, the part only grows by what the server says
//! comes at its end; a server that cannot begin there makes us start over in a new file. Pieces are written at their
//! positions, and starting over never shortens a file that another process may be writing to, so that even where a file
//! system's locks hold nobody away, parts are never mixed.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::write::MultiGzDecoder;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, TRANSFER_ENCODING};
use reqwest::{Response, Url};

use super::checksum::Checksum;
use super::client::{Client, TRIES};
use super::error::{HubError, Problem};
use super::lock::is_at;
use super::progress::Progress;
use super::remote::cut;

/// A file to fetch.
pub(super) struct Wanted<'a> {
    /// Its path in the repository.
    pub(super) file: &'a str,
    pub(super) url: Url,
    /// Where it goes.
    pub(super) blob: &'a Path,
    /// Its size, if anybody says.
    pub(super) size: Option<u64>,
    pub(super) checksum: Checksum,
    pub(super) is_shown: bool,
}

impl Wanted<'_> {
    /// Where it is until it is whole.
    pub(super) fn partial(blob: &Path) -> PathBuf {
        let mut name = blob.file_name().unwrap_or_default().to_owned();
        name.push(".incomplete");
        blob.with_file_name(name)
    }

    /// Fetches it. The caller holds its lock.
    pub(super) fn fetch(&self, client: &Client<'_>) -> Result<(), HubError> {
        let mut progress = Progress::new(self.file, self.size, self.is_shown);
        let disk = |error: io::Error| Problem::from(error).explain(client.subject, self.file, 1);
        let mut part = Part::open(Self::partial(self.blob)).map_err(disk)?;
        for is_last in [false, true] {
            self.complete(client, &mut part, &mut progress)?;
            if self.checksum.is_met(&part.path).map_err(disk)? {
                return part.finish(self.blob).map_err(disk);
            }
            // Perhaps what was there before was damaged: a machine that lost power keeps a file's length and not its
            // bytes.
            part.restart().map_err(disk)?;
            if !is_last {
                tracing::warn!("{} is not what its hash says; fetching it again", self.file);
            }
        }
        let reason = "what comes is not what its hash says, twice: something on the way changes it";
        Err(Problem::Garbled(reason.into()).explain(client.subject, self.file, 1))
    }

    /// Connects until the part is as long as it should be, or it gets no further.
    fn complete(
        &self,
        client: &Client<'_>,
        part: &mut Part,
        progress: &mut Progress,
    ) -> Result<(), HubError> {
        let (mut fruitless, mut furthest) = (0, part.length);
        loop {
            let Err(problem) = self.attempt(client, part, progress) else { return Ok(()) };
            fruitless = if part.length > furthest { 0 } else { fruitless + 1 };
            furthest = furthest.max(part.length);
            if !problem.passes() || fruitless >= TRIES {
                return Err(match problem {
                    Problem::Transport(reason) if furthest > 0 => {
                        let reason = format!(
                            "it broke off at byte {furthest}: {reason} ({fruitless} tries); start again to go on from \
                             there"
                        );
                        Problem::Garbled(reason).explain(client.subject, self.file, 1)
                    }
                    other => other.explain(client.subject, self.file, fruitless),
                });
            }
            tracing::debug!(?problem, file = self.file, at = part.length, "the download broke off; going on");
            client.pause(&problem, fruitless);
        }
    }

    /// Brings the part as far as one connection does. `Ok` when it is as long as it should be.
    fn attempt(&self, client: &Client<'_>, part: &mut Part, progress: &mut Progress) -> Result<(), Problem> {
        if self.size.is_some_and(|size| part.length > size) {
            part.restart()?;
        }
        if self.size == Some(part.length) {
            return Ok(());
        }
        let mut response = client.open(&self.url, part.length)?;
        if !self.continues(&response, part)? {
            part.restart()?;
            if response.status().as_u16() != 200 {
                response = client.open(&self.url, 0)?;
            }
        }
        let coding = response
            .headers()
            .get(CONTENT_ENCODING)
            .map(|c| String::from_utf8_lossy(c.as_bytes()).into_owned());
        let mut decoder = match coding.as_deref() {
            None | Some("identity" | "") => None,
            Some("gzip" | "x-gzip") => Some(MultiGzDecoder::new(Vec::new())),
            Some(other) => {
                let other = cut(other);
                return Err(Problem::Garbled(format!(
                    "it comes as {other:?}, although it was asked for as it is"
                )));
            }
        };
        let size = self.size.or_else(|| size(&response, part.length));
        if size.is_none() && decoder.is_none() && !is_chunked(&response) {
            return Err(Problem::Garbled(
                "nobody says how long it is, so that its end cannot be known".into(),
            ));
        }
        while let Some(chunk) = client.chunk(&mut response)? {
            match &mut decoder {
                None => part.write(chunk.as_ref())?,
                Some(decoder) => {
                    decoder.write_all(chunk.as_ref()).map_err(not_gzip)?;
                    part.write(&std::mem::take(decoder.get_mut()))?;
                }
            }
            if size.is_some_and(|size| part.length > size) {
                part.restart()?;
                return Err(Problem::Transport("more comes than the file is long".into()));
            }
            progress.at(part.length);
        }
        if let Some(decoder) = &mut decoder {
            decoder.try_finish().map_err(not_gzip)?;
            part.write(&std::mem::take(decoder.get_mut()))?;
        }
        match size {
            Some(size) if part.length != size => {
                Err(Problem::Transport(format!("the connection ended at byte {} of {size}", part.length)))
            }
            _ => Ok(()),
        }
    }

    /// Whether what comes belongs at the end of the part.
    fn continues(&self, response: &Response, part: &Part) -> Result<bool, Problem> {
        match response.status().as_u16() {
            206 if response.headers().contains_key(CONTENT_ENCODING) => Ok(false),
            206 => {
                let range =
                    response.headers().get(CONTENT_RANGE).and_then(|r| r.to_str().ok()).and_then(range);
                let same_size = |total| self.size.is_none_or(|size| total == size);
                Ok(range.is_some_and(|(from, total)| from == part.length && total.is_none_or(same_size)))
            }
            416 if part.length == 0 => {
                Err(Problem::Garbled("it says that a whole file is too much to ask".into()))
            }
            416 => Ok(false),
            200 => Ok(part.length == 0),
            other => Err(Problem::Garbled(format!("status {other}, which no download has"))),
        }
    }
}

fn not_gzip(error: io::Error) -> Problem {
    Problem::Transport(format!("what comes is not the gzip it says it is, or ends early: {error}"))
}

/// Where a `Content-Range` begins, and how long the whole is.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (span, total) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    Some((span.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()))
}

/// How long the whole file is, by an answer that begins at byte `from`.
fn size(response: &Response, from: u64) -> Option<u64> {
    let headers = response.headers();
    if headers.contains_key(CONTENT_ENCODING) {
        return None;
    }
    let total =
        headers.get(CONTENT_RANGE).and_then(|r| r.to_str().ok()).and_then(range).and_then(|(_, total)| total);
    let rest = || headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse::<u64>().ok();
    total.or_else(|| rest().and_then(|rest| rest.checked_add(from)))
}

/// Whether the transport itself says where a body ends.
fn is_chunked(response: &Response) -> bool {
    response.headers().get(TRANSFER_ENCODING).is_some_and(|t| t.to_str().is_ok_and(|t| t.contains("chunked")))
}

/// What is there of a file.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
    /// Bytes that are there from the beginning on.
    length: u64,
}

impl Part {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { path, file, length })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Begins anew, in a new file.
    fn restart(&mut self) -> io::Result<()> {
        if self.length == 0 {
            return Ok(());
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        *self = Self::open(self.path.clone())?;
        Ok(())
    }

    /// Gives the file its name.
    fn finish(self, name: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        if !is_at(&self.file, &self.path) {
            return Err(io::Error::other(format!(
                "another process has taken {} away: do the locks of this file system work?",
                self.path.display()
            )));
        }
        drop(self.file);
        std::fs::rename(&self.path, name)?;
        sync_folder(name);
        Ok(())
    }
}

/// Makes a rename last, where folders can be synced.
pub(super) fn sync_folder(path: &Path) {
    if let Some(folder) = path.parent()
        && let Ok(folder) = File::open(folder)
    {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        for bad in ["5-9/10", "bytes */10", "bytes x-9/10", ""] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_part_goes_on_where_it_ended_and_begins_anew_in_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.incomplete");
        Part::open(path.clone()).unwrap().write(b"abc").unwrap();
        let mut part = Part::open(path.clone()).unwrap();
        assert_eq!(part.length, 3);
        let mut other = Part::open(path.clone()).unwrap();
        part.restart().unwrap();
        part.write(b"x").unwrap();
        // Who still writes to the old file spoils nothing.
        other.write(b"def").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        assert!(other.finish(&folder.path().join("a")).is_err() || cfg!(not(unix)));
        part.finish(&folder.path().join("a")).unwrap();
        assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"x");
    }
}
