//! What a model on a hub is called: `hf://OWNER/NAME[@REVISION][/FILE]`.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::Error;

/// What such names begin with.
pub const SCHEME: &str = "hf://";
/// The branch that is meant where no revision is named.
const MAIN: &str = "main";
/// Bytes of OWNER/NAME, as the hub has it.
const MOST_ID: usize = 96;
/// Bytes of a path in a repository, and of one of its segments: what file systems take.
const MOST_PATH: usize = 1024;
const MOST_SEGMENT: usize = 255;
/// What stays as it is in one segment of a URL.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A model on a hub, or one file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    owner: String,
    model: String,
    revision: Option<String>,
    file: Option<String>,
}

impl Name {
    /// Whether `text` is meant as the name of a model on a hub, and not as a path.
    pub fn is_meant(text: &str) -> bool {
        text.get(..SCHEME.len()).is_some_and(|start| start.eq_ignore_ascii_case(SCHEME))
    }

    /// OWNER/NAME.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.model)
    }

    /// NAME alone.
    pub fn short(&self) -> &str {
        &self.model
    }

    /// The branch, tag or commit: `main` where none is named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The file, or the folder, that is named inside of the repository.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// Whether the revision is a whole commit hash, which always means the same files.
    pub fn is_pinned(&self) -> bool {
        is_commit(self.revision())
    }

    /// The same name at this commit.
    #[must_use]
    pub fn at(&self, commit: &str) -> Self {
        Self { revision: Some(commit.to_owned()), ..self.clone() }
    }

    /// Name of the repository's folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.model)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Name { name: text.to_owned(), reason: reason.to_owned() };
        if !Self::is_meant(text) {
            return Err(wrong("it does not begin with hf://"));
        }
        let mut rest = &text[SCHEME.len()..];
        // The prefix of Hugging Face's own names, which models need not have.
        if let Some(("models", after)) = rest.split_once('/').filter(|(_, after)| after.contains('/')) {
            rest = after;
        }
        let (owner, rest) = rest.split_once('/').ok_or_else(|| wrong("it has no OWNER"))?;
        if ["datasets", "spaces", "kernels", "buckets"].contains(&owner) {
            return Err(wrong("it is of another kind than a model"));
        }
        let end = rest.find(['@', '/']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        for (what, part) in [("OWNER", owner), ("NAME", name)] {
            if !is_plain(part) {
                let reason = format!("{what} has letters, digits, -, _ and . alone, and begins and ends with a letter, digit or _");
                return Err(wrong(&reason));
            }
        }
        if owner.len() + 1 + name.len() > MOST_ID || name.ends_with(".git") {
            return Err(wrong(&format!("OWNER/NAME has at most {MOST_ID} characters and does not end in .git")));
        }
        let (revision, file) = match rest.strip_prefix('@') {
            Some(rest) => {
                let (revision, file) = split_revision(rest);
                let revision = percent_decode_str(revision).decode_utf8().map_err(|_| wrong("its REVISION is not UTF-8"))?;
                if !is_safe_path(&revision) {
                    return Err(wrong("its REVISION is no name of a branch, a tag or a commit"));
                }
                (Some(revision.into_owned()), file)
            }
            None => (None, rest.strip_prefix('/').unwrap_or(rest)),
        };
        let file = file.strip_suffix('/').unwrap_or(file);
        if !file.is_empty() && !is_safe_path(file) {
            return Err(wrong("its FILE is no path inside of a repository"));
        }
        let file = (!file.is_empty()).then(|| file.to_owned());
        Ok(Self { owner: owner.to_owned(), model: name.to_owned(), revision, file })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.owner, self.model)?;
        if let Some(revision) = &self.revision {
            // What parsing would cut at its slash is written in one piece.
            let whole = split_revision(revision).1.is_empty();
            let revision = if whole { revision.clone() } else { revision.replace('/', "%2F") };
            write!(f, "@{revision}")?;
        }
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

/// REVISION and FILE. A revision ends at the first slash, but for the hub's own references to pull requests and conversions.
fn split_revision(text: &str) -> (&str, &str) {
    let slashes = if text.starts_with("refs/pr/") || text.starts_with("refs/convert/") { 3 } else { 1 };
    text.match_indices('/').nth(slashes - 1).map_or((text, ""), |(at, _)| (&text[..at], &text[at + 1..]))
}

/// Whether this is an owner or a name as the hub has them; joined with `--` they name a folder of the cache.
fn is_plain(part: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let whole = part.bytes().all(|byte| inner(byte) || byte == b'-' || byte == b'.');
    let ends = part.bytes().next().is_some_and(inner) && part.bytes().last().is_some_and(inner);
    whole && ends && !part.contains("--") && !part.contains("..")
}

/// Whether `text` is the hash of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether a path of a repository stays below the folder that it is joined to, on every system.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let plain = |segment: &str| !["", ".", ".."].contains(&segment) && segment.len() <= MOST_SEGMENT;
    path.len() <= MOST_PATH && !path.contains('\\') && !path.contains(char::is_control) && path.split('/').all(plain)
}

/// `text` as one segment of a URL.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A path of a repository as a path of a URL.
pub(crate) fn url_path(path: &str) -> String {
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::{Name, is_safe_path};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn names_have_up_to_four_parts() {
        let plain = name("hf://facebook/dinov2-small");
        assert_eq!((plain.repository().as_str(), plain.short()), ("facebook/dinov2-small", "dinov2-small"));
        assert_eq!((plain.revision(), plain.file(), plain.is_pinned()), ("main", None, false));
        let whole = name(&format!("hf://o/n@{COMMIT}/onnx/model.onnx"));
        assert_eq!((whole.revision(), whole.file(), whole.is_pinned()), (COMMIT, Some("onnx/model.onnx"), true));
        let pull = name("hf://o/n@refs/pr/3/a/b.pth");
        assert_eq!((pull.revision(), pull.file()), ("refs/pr/3", Some("a/b.pth")));
        let branch = name("hf://models/o/n@feature%2Fx/f@1.pth");
        assert_eq!((branch.repository().as_str(), branch.revision(), branch.file()), ("o/n", "feature/x", Some("f@1.pth")));
        assert_eq!(name("hf://o/n/").file(), None);
        assert_eq!(name("HF://o/n").repository(), "o/n");
    }

    #[test]
    fn names_are_written_as_they_are_read() {
        for text in ["hf://o/n", "hf://o/n@v1", "hf://o/n/f.pth", "hf://o/n@refs/pr/3/f.pth", "hf://o/n@a%2Fb/c/d.pth"] {
            assert_eq!(name(text).to_string(), text);
        }
        assert_eq!(name("hf://o/n/f.pth").at(COMMIT).to_string(), format!("hf://o/n@{COMMIT}/f.pth"));
    }

    #[test]
    fn other_names_are_refused_with_what_to_write() {
        let bad = [
            "/models/x",
            "hf:/o/n",
            "hf://",
            "hf://o",
            "hf://o/",
            "hf:///n",
            "hf://datasets/o/n",
            "hf://o--x/n",
            "hf://o/../n",
            "hf://o/n@",
            "hf://o/n@../../x",
            "hf://o/n@%2e%2e%2fx",
            "hf://o/n/../x",
            "hf://o/n/a//b",
            "hf://o/n/a\\b",
            "hf://o/n@a\nb",
            "hf://-o/n",
            "hf://o/n.git",
            "hf://o/n m",
            "hf://ö/n",
        ];
        for text in bad {
            let error = text.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains("hf://OWNER/NAME[@REVISION][/FILE]"), "{text}: {error}");
        }
        let long = format!("hf://o/{}", "n".repeat(96));
        assert!(long.parse::<Name>().is_err());
    }

    #[test]
    fn paths_stay_inside() {
        assert!(["a", "a/b.c", "…/ä b", "..a/b..", ".gitattributes"].into_iter().all(is_safe_path));
        assert!(!["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\0b", "C:\\x"].into_iter().any(is_safe_path));
        assert!(!is_safe_path(&"a/".repeat(600)));
        assert!(!is_safe_path(&"a".repeat(256)));
    }
}
