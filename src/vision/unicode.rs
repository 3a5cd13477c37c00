//! One form for texts that look the same: `ü` is one character or a `u` and a mark, and file systems, keyboards and programs
//! disagree on which. Labels, filters and the names of files are compared in the composed form (NFC).
//!
//! ```
//! assert_eq!(dino_vision::unicode::nfc("Tu\u{308}r"), "Tür");
//! ```

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// The composed form of a text (NFC, Unicode Standard Annex 15).
pub fn nfc(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.nfc().collect())
}

/// The decomposed form of a text (NFD), which other programs may have written.
pub fn nfd(text: &str) -> Cow<'_, str> {
    if text.is_ascii() { Cow::Borrowed(text) } else { Cow::Owned(text.nfd().collect()) }
}

#[cfg(test)]
mod tests {
    use super::{nfc, nfd};

    #[test]
    fn texts_that_look_the_same_are_the_same() {
        for (composed, decomposed) in [("Tür", "Tu\u{308}r"), ("각", "\u{1100}\u{1161}\u{11a8}"), ("ệ", "e\u{302}\u{323}"), ("a", "a")]
        {
            assert_eq!(nfc(decomposed), composed);
            assert_eq!(nfc(composed), composed);
            assert_eq!(nfc(&nfd(composed)), composed);
        }
        // Characters that only resemble others stay what they are.
        assert_eq!(nfc("ﬁ²"), "ﬁ²");
        assert_eq!(nfc("\0\u{1}\u{308}"), "\0\u{1}\u{308}");
    }
}
