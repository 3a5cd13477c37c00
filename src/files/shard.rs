//! A part of a folder for each of several jobs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One part of N. A file belongs to exactly one part, by a hash of its path: jobs that list a folder at different
/// moments, or on different machines, still never do the same file twice or leave one out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    index: u32,
    count: u32,
}

impl Shard {
    /// Everything.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Whether the file of this path below the folder is in this part.
    pub fn holds(self, id: &str) -> bool {
        let hash = Sha256::digest(id.as_bytes());
        let number = hash[..8].iter().fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
        number % u64::from(self.count) == u64::from(self.index)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.index, self.count)
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl TryFrom<String> for Shard {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no part: write I/N with I from 0 to N-1, such as 0/4");
        let (index, count) = text.split_once('/').ok_or_else(wrong)?;
        let (index, count) = (index.parse().map_err(|_| wrong())?, count.parse().map_err(|_| wrong())?);
        if index < count { Ok(Self { index, count }) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_in_one_part_and_parts_are_of_similar_size() {
        let parts: Vec<Shard> = (0..7).map(|index| format!("{index}/7").parse().unwrap()).collect();
        let mut sizes = [0; 7];
        for file in 0..7000 {
            let id = format!("class {}/{file}.jpg", file % 10);
            let holders: Vec<usize> = (0..7).filter(|&part| parts[part].holds(&id)).collect();
            assert_eq!(holders.len(), 1, "{id}");
            sizes[holders[0]] += 1;
            assert!(Shard::WHOLE.holds(&id));
        }
        assert!(sizes.iter().all(|size| (850..1150).contains(size)), "{sizes:?}");
        // Jobs of different versions of this program share work too: the division must never change.
        let part: Vec<bool> = ["a", "b/c.jpg", "züg/1.png"].iter().map(|id| "1/2".parse::<Shard>().unwrap().holds(id)).collect();
        assert_eq!(part, [false, true, false]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "1", "1/1", "2/1", "0/0", "-1/2", "a/b", "1/2/3", "0/4294967296"] {
            assert!(text.parse::<Shard>().unwrap_err().contains("0/4"), "{text}");
        }
        assert_eq!("3/4".parse::<Shard>().unwrap().to_string(), "3/4");
    }
}
