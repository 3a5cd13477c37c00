//! Files beside pictures: what they are of, and masks that look like pictures.
//!
//! Files that share a key belong together, as in `WebDataset`: `7.jpg`, `7.cls` and `7.mask.png`. `7_mask.png` is of `7` too.
//!
//! ```
//! use dino_vision::bulk::sidecars::{key, masks, of_cls, of_json};
//!
//! assert_eq!(key("train/7.mask.png"), "train/7");
//! assert_eq!(masks(&["7.jpg", "7.mask.png"]), [false, true]);
//! assert_eq!(of_cls(b"cat\n").as_deref(), Some("cat"));
//! assert_eq!(of_json(br#"{"label": 3}"#).as_deref(), Some("3"));
//! ```

use std::collections::HashSet;

use serde_json::Value;

/// Words at the end of a mask's name, before its ending.
const MASKS: [&str; 5] = ["mask", "masks", "seg", "segmentation", "gt"];
/// Fields of a `.json` that name a class, the most telling first.
const FIELDS: [&str; 6] = ["class_name", "label_name", "class", "label", "cls", "category"];

/// Longest name of a class in bytes: one is kept for each picture.
const LONGEST: usize = 255;

/// What a path shares with the others of its sample: its folder and its name up to the first dot.
pub fn key(path: &str) -> &str {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    // The dot of a hidden file is part of its name.
    path[name..].char_indices().skip(1).find(|(_, letter)| *letter == '.').map_or(path, |(dot, _)| &path[..name + dot])
}

/// True where a part of a path begins with a dot, as copies of macOS do (`._7.jpg`), or is the folder of such copies.
pub fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| (part.starts_with('.') && part != "." && part != "..") || part == "__MACOSX")
}

/// Of pictures by name, which are masks of another one of them: `7.mask.png` and `7_mask.png` beside `7.jpg`.
pub fn masks(names: &[&str]) -> Vec<bool> {
    let stem = |name: &'_ str| name.rsplit_once('.').map_or(name.len(), |(stem, _)| stem.len());
    let stems: HashSet<&str> = names.iter().map(|name| &name[..stem(name)]).collect();
    let is_mask = |name: &&str| {
        let own = &name[..stem(name)];
        let Some((of, word)) = own.rsplit_once(['.', '_', '-']) else { return false };
        MASKS.iter().any(|mask| word.eq_ignore_ascii_case(mask)) && stems.contains(of)
    };
    names.iter().map(is_mask).collect()
}

/// The class in the bytes of a `.cls`.
pub fn of_cls(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    (!text.is_empty() && text.len() <= LONGEST && !text.contains('\n')).then(|| text.to_owned())
}

/// The class in the bytes of a `.json`: a string or a whole number in one of the usual fields.
pub fn of_json(bytes: &[u8]) -> Option<String> {
    let Value::Object(fields) = serde_json::from_slice(bytes).ok()? else { return None };
    FIELDS.iter().find_map(|field| match fields.get(*field)? {
        Value::String(name) if !name.trim().is_empty() && name.len() <= LONGEST => Some(name.trim().to_owned()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_keys_and_masks_are_known_by_their_pictures() {
        assert_eq!(["a/b.c/7.seg.png", "7.jpg", "7", ".7.jpg"].map(key), ["a/b.c/7", "7", "7", ".7"]);
        assert!(is_hidden("./a/._7.jpg") && is_hidden("__MACOSX/7.jpg") && !is_hidden("./a/7.jpg"));
        let names = ["7.jpg", "7_mask.png", "7.seg.png", "8_mask.png", "a/7-MASK.png", "a/7.JPG", "mask.png", "9_mask"];
        assert_eq!(masks(&names), [false, true, true, false, true, false, false, false]);
    }

    #[test]
    fn classes_are_read_from_sidecars() {
        assert_eq!(of_cls(b" 7\n").as_deref(), Some("7"));
        assert_eq!((of_cls(b""), of_cls(b"a\nb"), of_cls(&[0xff])), (None, None, None));
        assert_eq!(of_json(br#"{"label": 3, "class_name": "cat"}"#).as_deref(), Some("cat"));
        assert_eq!(of_json(br#"{"label": 3, "class": null}"#).as_deref(), Some("3"));
        assert_eq!((of_json(b"{}"), of_json(b"3"), of_json(br#"{"label": 0.5}"#)), (None, None, None));
    }
}
