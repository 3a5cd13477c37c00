//! A part of a folder for each of several jobs.
//!
//! ```
//! use dino_server::files::shard::Shard;
//!
//! let parts: Vec<Shard> = ["0/3", "1/3", "2/3"].iter().map(|part| part.parse()).collect::<Result<_, _>>()?;
//! assert_eq!(parts.iter().filter(|part| part.holds("cat/1.jpg")).count(), 1);
//! assert!("3/3".parse::<Shard>().is_err());
//! # Ok::<(), String>(())
//! ```

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

    /// Which part, from 0.
    pub fn index(self) -> u32 {
        self.index
    }

    /// Number of parts.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Whether the file at this place of a list is in this part. All jobs have to have the same list.
    pub fn holds_place(self, place: usize) -> bool {
        place % self.count as usize == self.index as usize
    }

    /// Whether the file of this path below the folder is in this part.
    pub fn holds(self, id: &str) -> bool {
        let hash = Sha256::digest(id.as_bytes());
        let number = hash[..8].iter().fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
        number % u64::from(self.count) == u64::from(self.index)
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self::WHOLE
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

/// Number of parts, where the scheduler says only which part a job is.
const COUNT: &str = "DINO_SHARD_COUNT";

impl Shard {
    /// Reads a flag: `I/N`, or `auto` for what a scheduler has put into the environment; see [`Shard::of_scheduler`].
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn of_flag(text: &str) -> Result<Self, String> {
        if text == "auto" { Self::of_scheduler(|name| std::env::var(name).ok()) } else { text.parse() }
    }

    /// The part that Slurm, Kubernetes or AWS Batch give this process, by the variables that each sets:
    ///
    /// - Slurm's job arrays: `SLURM_ARRAY_TASK_ID`, `_MIN`, `_MAX`, `_STEP` and `_COUNT`;
    /// - tasks that Slurm's `srun` starts: `SLURM_PROCID` and `SLURM_STEP_NUM_TASKS`; in a job array each of its jobs is divided further;
    /// - Kubernetes' indexed jobs: `JOB_COMPLETION_INDEX`, and `DINO_SHARD_COUNT`, because it does not say how many there are;
    /// - AWS Batch's array jobs: `AWS_BATCH_JOB_ARRAY_INDEX` and `AWS_BATCH_JOB_ARRAY_SIZE`.
    ///
    /// Where `DINO_SHARD_COUNT` is set, it counts: it is the number of parts of the whole, and the number of the job, from 0, is then the part;
    /// of a job with T tasks, the part of its first task divided by T. Without it, arrays of one job, of steps, or that begin behind 1 are
    /// refused, because they may be failed jobs of a larger array.
    ///
    /// # Errors
    /// Where there is none of these, more than one, or they do not fit together.
    pub fn of_scheduler(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str| -> Result<Option<u32>, String> {
            let Some(text) = variable(name).filter(|text| !text.is_empty()) else { return Ok(None) };
            text.parse().map(Some).map_err(|_| format!("{name}={text} is no whole number"))
        };
        let needed = |name: &str, beside: &str| number(name)?.ok_or_else(|| format!("{beside} is set and {name} is not"));
        let count = number(COUNT)?;
        let mut found = Vec::new();
        if let Some(part) = of_slurm(&number, count)? {
            found.push(("Slurm", part));
        }
        if let Some(index) = number("JOB_COMPLETION_INDEX")? {
            let count = count.ok_or_else(|| {
                format!("Kubernetes says that this is job {index} (JOB_COMPLETION_INDEX) and not of how many: set {COUNT} to the job's completions")
            })?;
            found.push(("Kubernetes", (index, count)));
        }
        if let Some(index) = number("AWS_BATCH_JOB_ARRAY_INDEX")? {
            let size = match count {
                Some(count) => count,
                None => needed("AWS_BATCH_JOB_ARRAY_SIZE", "AWS_BATCH_JOB_ARRAY_INDEX")?,
            };
            found.push(("AWS Batch", (index, size)));
        }
        match found[..] {
            [(_, (index, count))] if index < count => Ok(Self { index, count }),
            [(scheduler, (index, count))] => Err(format!("{scheduler} says that this is part {index}, counted from 0, of {count}")),
            [] => Err(format!(
                "no scheduler says which part this is: auto needs a job array of Slurm or tasks of its srun, an indexed job of Kubernetes with {COUNT}, \
                 or an array job of AWS Batch; elsewhere write I/N"
            )),
            _ => {
                let names: Vec<&str> = found.iter().map(|(scheduler, _)| *scheduler).collect();
                Err(format!("{} each say which part this is: write I/N", names.join(" and ")))
            }
        }
    }
}

/// Part and number of parts by Slurm's variables.
fn of_slurm(number: &impl Fn(&str) -> Result<Option<u32>, String>, count: Option<u32>) -> Result<Option<(u32, u32)>, String> {
    let array = match (number("SLURM_ARRAY_TASK_ID")?, count) {
        (None, _) => None,
        (Some(id), Some(count)) => Some((id, count)),
        (Some(id), None) => {
            let of_array = |name: &str| number(name)?.ok_or_else(|| format!("SLURM_ARRAY_TASK_ID is set and {name} is not"));
            let (first, last) = (of_array("SLURM_ARRAY_TASK_MIN")?, of_array("SLURM_ARRAY_TASK_MAX")?);
            let (jobs, step) = (of_array("SLURM_ARRAY_TASK_COUNT")?, number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1));
            let is_range = u64::from(jobs) * u64::from(step) == u64::from(last.saturating_sub(first)) + u64::from(step);
            // Some jobs of an array that are started again look like a smaller array, and would take the parts of one.
            if !is_range || jobs == 1 || step != 1 || first > 1 || id < first {
                return Err(format!(
                    "the numbers of this job array ({jobs} from {first} to {last}, in steps of {step}) may be some of a larger one: set {COUNT} to the \
                     number of parts, and number the jobs by their parts, from 0"
                ));
            }
            Some((id - first, jobs))
        }
    };
    let tasks = match (number("SLURM_STEP_NUM_TASKS")?, number("SLURM_PROCID")?) {
        (Some(tasks), Some(task)) => Some((task, tasks)),
        // In the script itself, which runs once, whatever the number of tasks.
        _ => match number("SLURM_NTASKS")? {
            Some(tasks) if tasks > 1 => {
                return Err(format!("Slurm has {tasks} tasks for this job, and this process is none of them: start it with srun"));
            }
            _ => None,
        },
    };
    Ok(match (array, tasks) {
        (Some((job, jobs)), Some((task, tasks))) => {
            let whole = match count {
                Some(count) if !count.is_multiple_of(tasks) => {
                    return Err(format!(
                        "{COUNT}={count} is no multiple of the {tasks} tasks of this job: it is the number of parts of the whole, one for each task \
                         of each job of the array"
                    ));
                }
                Some(count) => count,
                None => jobs.saturating_mul(tasks),
            };
            Some((job.saturating_mul(tasks).saturating_add(task), whole))
        }
        (array, tasks) => array.or(tasks.map(|(task, tasks)| (task, count.unwrap_or(tasks)))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_say_which_part_this_is() {
        const ARRAY: &str = "SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=8 SLURM_ARRAY_TASK_STEP=1 SLURM_ARRAY_TASK_COUNT=8";
        let of_tasks = |job: &str, task: &str, tasks: &str, count: &str| {
            format!("SLURM_ARRAY_TASK_ID={job} SLURM_PROCID={task} SLURM_STEP_NUM_TASKS={tasks} DINO_SHARD_COUNT={count}")
        };
        let table = [
            ("JOB_COMPLETION_INDEX=3 DINO_SHARD_COUNT=16", Ok("3/16")),
            ("JOB_COMPLETION_INDEX=3", Err("set DINO_SHARD_COUNT to the job's completions")),
            ("JOB_COMPLETION_INDEX=16 DINO_SHARD_COUNT=16", Err("Kubernetes says that this is part 16")),
            ("JOB_COMPLETION_INDEX=x DINO_SHARD_COUNT=16", Err("JOB_COMPLETION_INDEX=x is no whole number")),
            ("AWS_BATCH_JOB_ARRAY_INDEX=0 AWS_BATCH_JOB_ARRAY_SIZE=4", Ok("0/4")),
            ("AWS_BATCH_JOB_ARRAY_INDEX=0", Err("AWS_BATCH_JOB_ARRAY_SIZE is not")),
            (&format!("SLURM_ARRAY_TASK_ID=1 {ARRAY}"), Ok("0/8")),
            (&format!("SLURM_ARRAY_TASK_ID=8 {ARRAY} SLURM_PROCID=0 SLURM_NTASKS=1"), Ok("7/8")),
            (&format!("SLURM_ARRAY_TASK_ID=2 {ARRAY} SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4"), Ok("7/32")),
            (&format!("SLURM_ARRAY_TASK_ID=2 {ARRAY} SLURM_NTASKS=4 SLURM_PROCID=0"), Err("start it with srun")),
            (
                "SLURM_ARRAY_TASK_ID=6 SLURM_ARRAY_TASK_MIN=2 SLURM_ARRAY_TASK_MAX=10 SLURM_ARRAY_TASK_STEP=4 SLURM_ARRAY_TASK_COUNT=3",
                Err("may be some of a larger one: set DINO_SHARD_COUNT"),
            ),
            // One job of an array of 16 once more, some that are no range, and some that are one.
            ("SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_MIN=3 SLURM_ARRAY_TASK_MAX=3 SLURM_ARRAY_TASK_COUNT=1", Err("set DINO_SHARD_COUNT")),
            ("SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=0 SLURM_ARRAY_TASK_COUNT=1", Err("set DINO_SHARD_COUNT")),
            ("SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=7 SLURM_ARRAY_TASK_COUNT=3", Err("set DINO_SHARD_COUNT")),
            ("SLURM_ARRAY_TASK_ID=4 SLURM_ARRAY_TASK_MIN=3 SLURM_ARRAY_TASK_MAX=4 SLURM_ARRAY_TASK_COUNT=2", Err("set DINO_SHARD_COUNT")),
            ("SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_MIN=3 SLURM_ARRAY_TASK_MAX=3 DINO_SHARD_COUNT=16", Ok("3/16")),
            // Some jobs of an array of 16 once more.
            ("SLURM_ARRAY_TASK_ID=6 SLURM_ARRAY_TASK_MIN=2 SLURM_ARRAY_TASK_MAX=6 DINO_SHARD_COUNT=16", Ok("6/16")),
            // One job of an array of 8 with 4 tasks each once more: the count is that of all 32 tasks.
            (&of_tasks("2", "0", "4", "32"), Ok("8/32")),
            (&of_tasks("2", "3", "4", "32"), Ok("11/32")),
            (&of_tasks("7", "3", "4", "32"), Ok("31/32")),
            (&of_tasks("8", "0", "4", "32"), Err("Slurm says that this is part 32, counted from 0, of 32")),
            (&of_tasks("2", "0", "4", "8"), Err("Slurm says that this is part 8, counted from 0, of 8")),
            (&of_tasks("2", "0", "4", "30"), Err("DINO_SHARD_COUNT=30 is no multiple of the 4 tasks")),
            (&of_tasks("2", "0", "0", "32"), Err("DINO_SHARD_COUNT=32 is no multiple of the 0 tasks")),
            (&of_tasks("0", "0", "0", "0"), Err("part 0, counted from 0, of 0")),
            (&of_tasks("5", "0", "1", "16"), Ok("5/16")),
            ("SLURM_PROCID=2 SLURM_STEP_NUM_TASKS=3 SLURM_NTASKS=3", Ok("2/3")),
            ("SLURM_PROCID=0 SLURM_NTASKS=1", Err("no scheduler says")),
            ("SLURM_PROCID=0 SLURM_NTASKS=3", Err("start it with srun")),
            ("", Err("elsewhere write I/N")),
            ("DINO_SHARD_COUNT=4", Err("no scheduler says")),
            (
                "SLURM_PROCID=2 SLURM_STEP_NUM_TASKS=3 AWS_BATCH_JOB_ARRAY_INDEX=0 AWS_BATCH_JOB_ARRAY_SIZE=4",
                Err("Slurm and AWS Batch each say"),
            ),
        ];
        for (variables, wanted) in table {
            let of = |name: &str| {
                variables.split(' ').find_map(|one| Some(one.split_once('=')?).filter(|one| one.0 == name).map(|one| one.1.to_owned()))
            };
            match (Shard::of_scheduler(of), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found.to_string(), wanted, "{variables}"),
                (Err(found), Err(wanted)) => assert!(found.contains(wanted), "{variables}: {found}"),
                (found, _) => panic!("{variables}: {found:?}"),
            }
        }
    }

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
