//! Names that come from a server, and what may be made of them. PURE. Nothing a server says leaves the cache folder.

/// Whether a text is a commit as the hub writes it: 40 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// Whether a text is so many lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// The tag inside an `ETag` header: without `W/` and quotes. `None` for an empty one.
pub(super) fn etag(header: &str) -> Option<String> {
    let tag = header.trim();
    let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
    (!tag.is_empty()).then(|| tag.to_owned())
}

/// The file name of a blob with this tag: the tag itself, as every client of the cache has it, or a hash of it where it
/// could not be a file's name, or not on every system, or could be taken for another kind of file.
pub(super) fn blob_name(tag: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let stem = tag.split('.').next().unwrap_or_default();
    let taken = [".incomplete", ".lock", ".tmp"].iter().any(|end| tag.ends_with(end));
    let fits = (1..=128).contains(&tag.len()) && tag.chars().all(is_plain);
    if fits && !tag.starts_with('.') && !tag.ends_with('.') && !taken && !is_device(stem) {
        return tag.to_owned();
    }
    blake3::hash(tag.as_bytes()).to_hex().to_string()
}

/// Names that Windows keeps for devices, whatever follows after a dot.
fn is_device(stem: &str) -> bool {
    let stem = stem.to_ascii_uppercase();
    let numbered = |name: &str| {
        stem.strip_prefix(name).is_some_and(|n| n.len() == 1 && n.chars().all(|c| c.is_ascii_digit()))
    };
    matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL") || numbered("COM") || numbered("LPT")
}

/// Whether a file's path inside a repository stays inside a folder, on every system.
pub(super) fn is_inside(path: &str) -> bool {
    let part = |p: &str| {
        let plain = p
            .chars()
            .all(|c| !c.is_control() && !matches!(c, '\\' | ':' | '<' | '>' | '"' | '|' | '?' | '*'));
        plain
            && !p.is_empty()
            && !p.ends_with(['.', ' '])
            && !is_device(p.split('.').next().unwrap_or_default())
    };
    path.len() <= 1024 && path.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_lose_what_http_puts_around_them() {
        for header in ["abc", "\"abc\"", "W/\"abc\"", " W/\"abc\" "] {
            assert_eq!(etag(header).as_deref(), Some("abc"));
        }
        assert_eq!(etag("\"\""), None);
    }

    #[test]
    fn a_blob_has_its_tag_as_name_or_a_hash_of_it() {
        let sha = "d7edf6bd2a681fb0175f7735299831ee1b22b812";
        assert_eq!(blob_name(sha), sha);
        assert_eq!(blob_name("abc-gzip"), "abc-gzip");
        let odd = [
            "../../x",
            "/etc/passwd",
            "a\\b",
            "a\0b",
            "..",
            ".",
            ".x",
            "x.",
            "C:x",
            "nul",
            "COM1.txt",
            "é",
            "",
            "x.incomplete",
            "x.lock",
        ];
        let mut names: Vec<String> = odd.iter().map(|tag| blob_name(tag)).collect();
        assert!(names.iter().all(|name| is_hex(name, 64)), "{names:?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), odd.len());
        assert!(is_hex(&blob_name(&"a".repeat(129)), 64));
    }

    #[test]
    fn paths_stay_in_their_folder() {
        for good in
            ["model_index.json", "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "a/b/c d.txt"]
        {
            assert!(is_inside(good), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a//b",
            "../a",
            "a/..",
            "a/./b",
            "a\\b",
            "C:/a",
            "C:a",
            "a/nul",
            "a/aux.json",
            "a\0",
            "a.",
        ] {
            assert!(!is_inside(bad), "{bad:?}");
        }
    }

    #[test]
    fn commits_are_forty_digits() {
        assert!(is_commit("0123456789abcdef0123456789ABCDEF01234567"));
        for bad in ["main", "0123456789abcdef", "../../../../../../../../../../etc/passwd12", ""] {
            assert!(!is_commit(bad), "{bad}");
        }
    }
}
