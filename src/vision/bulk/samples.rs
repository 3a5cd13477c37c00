//! The pictures of a tar file, each with what lies beside it and names its class.
//!
//! ```
//! use dino_vision::bulk::samples::of;
//!
//! let file = tempfile::NamedTempFile::new()?;
//! let mut archive = tar::Builder::new(file.reopen()?);
//! for (name, bytes) in [("7.jpg", "a picture"), ("7.cls", "cat")] {
//!     let mut header = tar::Header::new_gnu();
//!     header.set_size(bytes.len() as u64);
//!     archive.append_data(&mut header, name, bytes.as_bytes())?;
//! }
//! archive.finish()?;
//! let samples = of(file.path())?.found;
//! assert_eq!((samples.len(), samples[0].member.name.as_str()), (1, "7.jpg"));
//! assert_eq!(samples[0].class(file.path()).as_deref(), Some("cat"));
//! # Ok::<(), std::io::Error>(())
//! ```

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::shards::{self, Member};
use super::{sidecars, tree};

/// Longest sidecar that is read, in bytes.
const LONGEST_SIDECAR: u64 = 1 << 20;

/// A picture in a tar file. Masks, hidden files and members of other endings are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Where the picture is.
    pub member: Member,
    sidecar: Option<Sidecar>,
}

/// A small member that names the class of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sidecar {
    offset: u64,
    len: u64,
    is_json: bool,
}

/// What a tar file holds.
#[derive(Debug)]
pub struct Samples {
    /// Its pictures, in their order.
    pub found: Vec<Sample>,
    /// Why nothing behind the last of them was read, where the file is damaged.
    pub damage: Option<String>,
}

impl Sample {
    /// What the picture of `shard` shows: as the `.cls` or `.json` beside it says, else the uppermost folder inside of the tar file.
    pub fn class(&self, shard: &Path) -> Option<String> {
        let named = self.sidecar.and_then(|Sidecar { offset, len, is_json }| {
            let bytes = shards::read(shard, offset, len).ok()?;
            if is_json { sidecars::of_json(&bytes) } else { sidecars::of_cls(&bytes) }
        });
        named.or_else(|| tree::uppermost(&self.member.name).map(str::to_owned))
    }
}

/// The pictures of a plain tar file; the members are looked through, and none is read.
///
/// # Errors
/// When the file cannot be opened.
pub fn of(shard: &Path) -> io::Result<Samples> {
    let (mut members, damage) = shards::index(shard)?;
    let damage = damage.map(|reason| format!("is damaged after {} members ({reason}): the rest of it is left out", members.len()));
    members.retain(|member| !sidecars::is_hidden(&member.name));
    let mut beside: HashMap<&str, Sidecar> = HashMap::new();
    for member in members.iter().filter(|member| member.len <= LONGEST_SIDECAR) {
        let key = sidecars::key(&member.name);
        let sidecar = |is_json| Sidecar { offset: member.offset, len: member.len, is_json };
        match &member.name[key.len()..] {
            ".cls" => _ = beside.insert(key, sidecar(false)),
            // A .cls says nothing but the class.
            ".json" => _ = beside.entry(key).or_insert(sidecar(true)),
            _ => {}
        }
    }
    let pictures: Vec<&Member> = members.iter().filter(|member| tree::is_named_as_picture(Path::new(&member.name))).collect();
    let masks = sidecars::masks(&pictures.iter().map(|member| member.name.as_str()).collect::<Vec<_>>());
    let sample = |member: &Member| Sample { member: member.clone(), sidecar: beside.get(sidecars::key(&member.name)).copied() };
    let found = pictures.iter().zip(masks).filter(|(_, is_mask)| !is_mask).map(|(member, _)| sample(member)).collect();
    Ok(Samples { found, damage })
}
