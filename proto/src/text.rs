//! Texts that somebody else wrote, on their way to a person's terminal or into a path: printed so that
//! they can do nothing but be read, and names that can stand in a URL.

use std::fmt;

/// Characters of a text that [`Shown`] prints.
const LONGEST: usize = 1000;
/// Bytes of a worker's name.
const LONGEST_NAME: usize = 128;
/// Characters of a name that is refused, in the message.
const LONGEST_SHOWN: usize = 40;

/// Prints a text of unknown origin: control and format characters (escape sequences of terminals, reversed
/// writing, line breaks) as `\u{1b}` and the like, and of a long text the beginning.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::fmt::Write;
        let mut characters = self.0.chars();
        for c in characters.by_ref().take(LONGEST) {
            match is_visible(c) {
                true => f.write_char(c)?,
                false => write!(f, "{}", c.escape_default())?,
            }
        }
        match characters.count() {
            0 => Ok(()),
            more => write!(f, "... and {more} more"),
        }
    }
}

/// Whether a character shows, and moves nothing else: no control, no format character, none without meaning.
fn is_visible(c: char) -> bool {
    // The standard library knows what is printable, but tells it of marks only where they follow something.
    c.is_ascii_graphic()
        || c.is_alphanumeric()
        || ['a', c].iter().collect::<String>().escape_debug().count() == 2
}

/// What is wrong with a worker's name, if anything, as a phrase. It stands in logs, on pages and in their
/// addresses, where `.` and `..` mean something else.
pub fn check_name(name: &str) -> Result<(), String> {
    let name = name.trim();
    let reason = match name {
        "" => "it is empty".to_owned(),
        "." | ".." => "addresses of pages cannot hold it".to_owned(),
        _ if name.len() > LONGEST_NAME => format!("it has {} bytes", name.len()),
        _ if !name.chars().all(is_visible) => "it has characters that cannot be seen".to_owned(),
        _ => return Ok(()),
    };
    // What is too long to be a name is too long for a message.
    let start: String = name.chars().take(LONGEST_SHOWN).collect();
    let rest = if start.len() < name.len() { "..." } else { "" };
    Err(format!(
        "{:?} is no name for a worker: {reason}; use 1 to {LONGEST_NAME} bytes of visible characters",
        format!("{}{rest}", Shown(start.as_str()))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shown_without_effect() {
        let shown = |text: &str| Shown(text).to_string();
        assert_eq!(shown("unet/été 日本 it's \"C:\\x\""), "unet/été 日本 it's \"C:\\x\"");
        assert_eq!(shown("\x1b[2Ja\nb\u{202e}c\u{9b}d\x7f"), "\\u{1b}[2Ja\\nb\\u{202e}c\\u{9b}d\\u{7f}");
        let long = shown(&"x".repeat(LONGEST + 7));
        assert!(long.ends_with("... and 7 more") && long.len() < LONGEST + 20, "{long}");
    }

    #[test]
    fn names_can_stand_in_an_address() {
        for good in [
            "a",
            "host-cuda0",
            "Käthe's \"GPU\"",
            "a/b?c#d%e<f",
            "עִבְרִית",
            "हिन्दी",
            "e\u{301}",
            "...",
            " padded ",
        ] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", " ", ".", " .. ", "..", "a\nb", "\x1b[2J", "a\u{202e}b", "\u{200b}", &"x".repeat(129)]
        {
            let error = check_name(bad).unwrap_err();
            assert!(error.contains("1 to 128 bytes") && !error.contains('\x1b'), "{error}");
        }
    }
}
