//! What the hub says: the list of a repository's files, and the headers that describe one. PURE.

use std::collections::BTreeMap;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use serde::{Deserialize, Serialize};

use super::names::{self, is_commit, is_hex};

/// What a repository holds at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RepoInfo {
    pub(super) commit: String,
    pub(super) files: Files,
}

/// Files by their paths.
pub(super) type Files = BTreeMap<String, Listed>;

/// What the list of files says of one; all of it optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listed {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    /// The git hash of a file that lies in git itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) git: Option<String>,
    /// The SHA-256 of a large file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

/// Reads the answer to "what does the repository hold?". Files whose names leave the folder are left out: no model
/// needs one.
pub(super) fn read_info(body: &[u8]) -> Result<RepoInfo, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|e| format!("not the JSON expected: {e}"))?;
    if !is_commit(&answer.sha) {
        return Err(format!("the commit {:?} is not 40 hexadecimal digits", cut(&answer.sha)));
    }
    let listed = |s: Sibling| {
        let is_large = s.lfs.is_some();
        let sha256 = s.lfs.as_ref().and_then(|lfs| lfs.sha256.clone()).filter(|sha| is_hex(sha, 64));
        let size = s.lfs.and_then(|lfs| lfs.size).or(s.size);
        let git = s.blob_id.filter(|id| !is_large && is_hex(id, 40));
        (s.rfilename, Listed { size, git, sha256 })
    };
    let files = answer.siblings.into_iter().filter(|s| names::is_inside(&s.rfilename)).map(listed).collect();
    Ok(RepoInfo { commit: answer.sha.to_ascii_lowercase(), files })
}

/// What the hub says of a file without sending it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileMeta {
    /// Its tag, which names it in the cache.
    pub(super) etag: Option<String>,
    /// Bytes.
    pub(super) size: Option<u64>,
}

/// Reads the headers of an answer to `HEAD`. They may be a redirect's: then its length and its own body's coding say
/// nothing of the file.
pub(super) fn read_meta(status: StatusCode, headers: &HeaderMap, commit: &str) -> Result<FileMeta, String> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    if let Some(other) = text("x-repo-commit").filter(|c| !c.eq_ignore_ascii_case(commit)) {
        return Err(format!("it was asked for commit {commit} and answers with {:?}", cut(other)));
    }
    let number = |name: &str| text(name).and_then(|n| n.trim().parse().ok());
    let is_file = status.is_success() && !headers.contains_key(CONTENT_ENCODING);
    Ok(FileMeta {
        etag: text("x-linked-etag").and_then(names::etag).or_else(|| text("etag").and_then(names::etag)),
        size: number("x-linked-size").or_else(|| number(CONTENT_LENGTH.as_str()).filter(|_| is_file)),
    })
}

/// The beginning of what a server says.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_list_tells_git_from_large_files_and_drops_what_leaves_the_folder() {
        let (git, sha) = ("a".repeat(40), "b".repeat(64));
        let body = serde_json::json!({"sha": COMMIT, "siblings": [
            {"rfilename": "a.json", "size": 3, "blobId": git},
            {"rfilename": "w.safetensors", "size": 130, "blobId": git, "lfs": {"sha256": sha, "size": 9}},
            {"rfilename": "plain"},
            {"rfilename": "../../etc/passwd"},
            {"rfilename": "C:\\x"},
        ]});
        let info = read_info(body.to_string().as_bytes()).unwrap();
        let expected = [
            ("a.json", Listed { size: Some(3), git: Some(git), sha256: None }),
            ("plain", Listed::default()),
            ("w.safetensors", Listed { size: Some(9), git: None, sha256: Some(sha) }),
        ];
        assert_eq!(info.files, expected.map(|(name, listed)| (name.to_owned(), listed)).into());
    }

    #[test]
    fn a_commit_that_is_none_is_refused_and_shown_escaped() {
        let error = read_info(br#"{"sha": "../\u001b[31m", "siblings": []}"#).unwrap_err();
        assert!(error.contains(r"../\u{1b}[31m") && !error.contains('\u{1b}'), "{error}");
        assert!(read_info(b"<html>").unwrap_err().contains("not the JSON expected"));
    }

    #[test]
    fn a_redirect_describes_the_file_and_not_itself() {
        let linked = headers(&[
            ("etag", "\"own\""),
            ("x-linked-etag", "\"linked\""),
            ("x-linked-size", "7"),
            ("content-length", "20"),
            ("x-repo-commit", COMMIT),
        ]);
        let meta = read_meta(StatusCode::FOUND, &linked, COMMIT).unwrap();
        assert_eq!(meta, FileMeta { etag: Some("linked".into()), size: Some(7) });
        let bare = headers(&[("etag", "W/\"own\""), ("content-length", "20")]);
        let size = |status| read_meta(status, &bare, COMMIT).unwrap().size;
        assert_eq!((size(StatusCode::FOUND), size(StatusCode::OK)), (None, Some(20)));
        let packed = headers(&[("content-length", "20"), ("content-encoding", "gzip")]);
        assert_eq!(read_meta(StatusCode::OK, &packed, COMMIT).unwrap(), FileMeta { etag: None, size: None });
        let other = headers(&[("x-repo-commit", "1123456789abcdef0123456789abcdef01234567")]);
        assert!(read_meta(StatusCode::OK, &other, COMMIT).unwrap_err().contains("answers with"));
    }
}
