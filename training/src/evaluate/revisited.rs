//! Retrieval on revisited Oxford and Paris (Radenović et al. 2018): which pictures show the landmark of a query, easy or hard to see.
//!
//! ```
//! use dino_train::evaluate::revisited::{Protocol, Truth};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("gnd_example.json");
//! let truth = r#"{"imlist": ["a", "b", "c"], "qimlist": ["q"], "gnd": [{"easy": [1], "hard": [2], "junk": [0]}]}"#;
//! std::fs::write(&path, truth)?;
//!
//! let truth = Truth::read(&path)?;
//! // The query finds b first, then c; a does not count.
//! assert_eq!(truth.evaluate(&[vec![1, 0, 2]], Protocol::Medium).unwrap().map, 100.0);
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use dino_vision::bulk;
use serde::{Deserialize, Serialize};

use super::ranking::{average_precision, places, precision_at};
use crate::weights::plain_pickle;

/// What the file of ground truth holds; regions of queries are not used, as in the public evaluation of DINO.
#[derive(Debug, Deserialize)]
pub struct Truth {
    /// Names of the pictures to search in, without their extension.
    pub imlist: Vec<String>,
    /// Names of the queries.
    pub qimlist: Vec<String>,
    /// What each query finds.
    gnd: Vec<Judged>,
}

/// Pictures of `imlist` by how well they show the landmark of a query; all others do not.
#[derive(Debug, Deserialize)]
struct Judged {
    easy: Vec<usize>,
    hard: Vec<usize>,
    junk: Vec<usize>,
}

/// Which pictures have to be found; the others that show the landmark are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Those where it is easy to see.
    Easy,
    /// Those where it is easy or hard to see.
    Medium,
    /// Those where it is hard to see.
    Hard,
}

/// Figures over the queries that have something to find, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Mean average precision.
    pub map: f64,
    /// Mean precision of the first picture.
    pub mp1: f64,
    /// Of the first five.
    pub mp5: f64,
    /// Of the first ten.
    pub mp10: f64,
}

impl Truth {
    /// Reads `gnd_NAME.pkl` as it is published, or the same as JSON.
    ///
    /// # Errors
    /// Where it is neither, or its numbers do not fit each other.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let read = || -> anyhow::Result<Self> {
            let bytes = bulk::read(path)?;
            let is_json = path.extension().is_some_and(|end| end == "json");
            let truth: Self = if is_json {
                serde_json::from_slice(&bytes)?
            } else {
                let plain =
                    plain_pickle::read(&bytes).context("a pickle of other things can be written as JSON by Python, to gnd_NAME.json")?;
                serde_json::from_value(plain).context("it needs imlist, qimlist and gnd with easy, hard and junk for each query")?
            };
            ensure!(
                truth.gnd.len() == truth.qimlist.len() && !truth.gnd.is_empty(),
                "it has {} queries, and judges {}",
                truth.qimlist.len(),
                truth.gnd.len()
            );
            let all = truth.gnd.iter().flat_map(|judged| judged.easy.iter().chain(&judged.hard).chain(&judged.junk));
            let count = truth.imlist.len();
            ensure!(all.max().is_none_or(|last| *last < count), "it judges pictures beyond the {count} of imlist");
            Ok(truth)
        };
        read().with_context(|| path.display().to_string())
    }

    /// Figures of the order in which each query finds the pictures; `None` where no query has anything to find.
    ///
    /// # Panics
    /// If there is not an order for each query.
    pub fn evaluate(&self, orders: &[Vec<usize>], protocol: Protocol) -> Option<Figures> {
        assert_eq!(orders.len(), self.gnd.len(), "one order for each query");
        let (mut sums, mut count) = ([0.0; 4], 0);
        for (order, judged) in orders.iter().zip(&self.gnd) {
            let Judged { easy, hard, junk } = judged;
            let (relevant, ignored): ([&[usize]; 2], [&[usize]; 2]) = match protocol {
                Protocol::Easy => ([easy, &[]], [junk, hard]),
                Protocol::Medium => ([easy, hard], [junk, &[]]),
                Protocol::Hard => ([hard, &[]], [junk, easy]),
            };
            let set = |parts: [&[usize]; 2]| parts.concat().into_iter().collect::<HashSet<usize>>();
            let relevant = set(relevant);
            if relevant.is_empty() {
                continue;
            }
            let places = places(order, &relevant, &set(ignored));
            let found =
                [average_precision(&places, relevant.len()), precision_at(&places, 1), precision_at(&places, 5), precision_at(&places, 10)];
            sums.iter_mut().zip(found).for_each(|(sum, found)| *sum += found);
            count += 1;
        }
        let [map, mp1, mp5, mp10] = sums.map(|sum| 100.0 * sum / f64::from(count));
        (count > 0).then_some(Figures { map, mp1, mp5, mp10 })
    }
}
