//! Conditions and ranges of requests (RFC 9110, sections 13 and 14). Pure.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderName, header};

/// The tags of a header, which is a list and may be given several times.
fn tags(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Whether the asker has what bears `tag` (`If-None-Match`). A proxy that compresses makes a tag weak, and it
/// still names the same.
pub(super) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let same = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag;
    tags(headers, header::IF_NONE_MATCH).any(same)
}

/// Whether the asker wants something else than what bears `tag` (`If-Match`).
pub(super) fn is_refused(headers: &HeaderMap, tag: &str) -> bool {
    let mut wanted = tags(headers, header::IF_MATCH).peekable();
    wanted.peek().is_some() && !wanted.any(|wanted| wanted == "*" || wanted == tag)
}

/// What of a file is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    All,
    /// These bytes, at least one.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Nothing,
}

/// What of a file of `length` bytes that bears the strong `tag` is asked for. Several ranges, other units and
/// what makes no sense count as not asked, as the RFC allows; so does a range of another version.
pub(super) fn wanted(headers: &HeaderMap, tag: &str, length: u64) -> Wanted {
    let one = |name| {
        let mut lines = headers.get_all(name).iter();
        lines.next().filter(|_| lines.next().is_none()).and_then(|line| line.to_str().ok()).map(str::trim)
    };
    if headers.contains_key(header::IF_RANGE) && one(header::IF_RANGE) != Some(tag) {
        return Wanted::All;
    }
    one(header::RANGE).and_then(|range| part(range, length)).unwrap_or(Wanted::All)
}

fn part(range: &str, length: u64) -> Option<Wanted> {
    let (unit, range) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let bytes = match (first.trim(), last.trim()) {
        ("", last) => length.saturating_sub(number(last)?)..length,
        (first, "") => number(first)?..length,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(length)
        }
    };
    Some(if bytes.is_empty() { Wanted::Nothing } else { Wanted::Part(bytes) })
}

/// A number of any size: one that we cannot count to lies beyond every file.
fn number(digits: &str) -> Option<u64> {
    let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    all.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_known_tag_is_found_weak_and_in_lists() {
        let known = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| (header::IF_NONE_MATCH, *line)).collect();
            is_known(&headers(&lines), "\"ab\"")
        };
        for lines in [&["\"ab\""][..], &["W/\"ab\""], &["\"x\", W/\"ab\""], &["\"x\"", "\"ab\""], &["*"]] {
            assert!(known(lines), "{lines:?}");
        }
        for lines in [&[][..], &["\"abc\""], &["ab"], &["w/\"ab\""], &[""]] {
            assert!(!known(lines), "{lines:?}");
        }
    }

    #[test]
    fn another_version_is_refused() {
        let refused = |line| is_refused(&headers(&[(header::IF_MATCH, line)]), "\"ab\"");
        assert!(!is_refused(&HeaderMap::new(), "\"ab\""));
        assert!(!refused("*") && !refused("\"x\", \"ab\""));
        assert!(refused("\"x\"") && refused("W/\"ab\""), "a weak tag names no bytes");
    }

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let asked = |range: &str| wanted(&headers(&[(header::RANGE, range)]), "\"ab\"", 100);
        for (range, bytes) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-99", 0..100),
            ("bytes=40-", 40..100),
            ("bytes=40-1000", 40..100),
            ("bytes=99-99999999999999999999999", 99..100),
            ("bytes=-1", 99..100),
            ("bytes=-1000", 0..100),
            ("BYTES = 2-3", 2..4),
        ] {
            assert_eq!(asked(range), Wanted::Part(bytes), "{range}");
        }
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(asked(range), Wanted::Nothing, "{range}");
        }
        for range in
            ["bytes=5-2", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "lines=1-2", "bytes=0-1,4-5", "0-1"]
        {
            assert_eq!(asked(range), Wanted::All, "{range}");
        }
    }

    #[test]
    fn a_range_of_another_version_is_all_of_this_one() {
        let asked = |if_range| {
            wanted(&headers(&[(header::RANGE, "bytes=1-1"), (header::IF_RANGE, if_range)]), "\"ab\"", 9)
        };
        assert_eq!(asked("\"ab\""), Wanted::Part(1..2));
        for other in ["\"x\"", "W/\"ab\"", "Mon, 30 Nov 2026 19:00:00 GMT"] {
            assert_eq!(asked(other), Wanted::All, "{other}");
        }
        let twice = headers(&[(header::RANGE, "bytes=1-1"), (header::RANGE, "bytes=2-2")]);
        assert_eq!(wanted(&twice, "\"ab\"", 9), Wanted::All);
    }
}
