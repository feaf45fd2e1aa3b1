//! Cleaning of a text before it is split into words, and the printable symbols of bytes. Pure.

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

/// What is removed: Unicode's "other" categories (control, format, surrogate, private use,
/// unassigned) and the replacement character. Tab and line ends are white space instead.
pub(super) const CONTROLS: &str = r"[\p{C}\u{FFFD}&&[^\t\n\r]]";

/// Control characters are removed, CJK ideographs set apart by spaces, the rest composed (NFC),
/// white space collapsed, and each word put in lower case. Accents and punctuation stay.
pub(super) fn clean(text: &str, controls: &Regex) -> String {
    let kept = controls.replace_all(text, "");
    let mut spaced = String::with_capacity(kept.len());
    for c in kept.chars() {
        if is_ideograph(c) {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    let composed: String = spaced.nfc().collect();
    // Word by word: whether a final sigma is final must not depend on what follows the space.
    composed.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// The blocks that the reference implementation takes for Chinese characters.
fn is_ideograph(c: char) -> bool {
    matches!(u32::from(c),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F
        | 0x2B820..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}

/// The printable character that stands for a byte in the vocabulary (Radford et al. 2019, GPT-2):
/// printable Latin-1 bytes stand for themselves, the others for U+0100 onwards in order.
pub(super) fn byte_symbol(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_distinct_symbols() {
        let mut symbols: Vec<char> = (0..=255).map(byte_symbol).collect();
        assert_eq!(symbols[usize::from(b' ')], 'Ġ');
        assert_eq!(symbols[0], 'Ā');
        assert_eq!(symbols[usize::from(b'a')], 'a');
        symbols.sort_unstable();
        symbols.dedup();
        assert_eq!(symbols.len(), 256);
    }

    #[test]
    fn cleaning_keeps_accents_and_loses_controls() {
        let controls = Regex::new(CONTROLS).unwrap();
        let clean = |text| clean(text, &controls);
        assert_eq!(clean("  A\tB\r\nC  "), "a b c");
        assert_eq!(clean("a\u{0}b\u{200d}c\u{fffd}d\u{ad}e"), "abcde");
        assert_eq!(clean("Cafe\u{301} \u{C9}"), "café é");
        assert_eq!(clean("x日本y"), "x 日 本 y");
        assert_eq!(clean("ΟΔΟΣ ΣΑΣ"), "οδος σας");
        assert_eq!(clean("a\u{2028}b\u{3000}c"), "a b c");
    }
}
