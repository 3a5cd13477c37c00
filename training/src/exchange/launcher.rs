//! What the programs that start the processes of a run tell each of them in its environment: torchrun, Open MPI's `mpirun`, and
//! Slurm's `srun`.
//!
//! ```
//! use dino_train::exchange::launcher::Launched;
//!
//! // None in a process that was started by itself.
//! if let Some(launched) = Launched::from_environment()? {
//!     assert!(launched.place.rank < launched.place.world);
//! }
//! # Ok::<(), dino_train::exchange::Error>(())
//! ```

use std::net::Ipv4Addr;

use super::Error;
use super::meeting::{Machines, Place};

/// First of the ports that are chosen by the number of a job, and how many there are.
const PORTS: (u64, u64) = (15_000, 15_000);

/// A process that a launcher started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Where it stands among all.
    pub place: Place,
    /// Its number among the processes of its machine, from 0: the GPU that it takes.
    pub local_rank: usize,
    /// Processes of the run on its machine, which share its cores and its memory.
    pub local_world: usize,
}

impl Launched {
    /// What the environment says, of the first that is there:
    ///
    /// - `WORLD_SIZE`, `RANK`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`, as torchrun sets them;
    /// - `OMPI_COMM_WORLD_SIZE` and its neighbours, as Open MPI does;
    /// - `SLURM_STEP_NUM_TASKS`, `SLURM_PROCID`, `SLURM_LOCALID`, as `srun` does. A batch script that does not call `srun` has no step, and is
    ///   one process.
    ///
    /// `MASTER_ADDR` and `MASTER_PORT` say where rank 0 listens. Without them it is the first host of Slurm's list, or this machine where all
    /// processes are on it, at a port that follows from the number of the job. Where not all processes are on
    /// one machine, rank 0 is open to others, whatever address its name has there.
    ///
    /// # Errors
    /// When a variable is missing or makes no sense.
    pub fn from_environment() -> Result<Option<Self>, Error> {
        Self::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    fn from_variables(variable: Variables<'_>) -> Result<Option<Self>, Error> {
        let launchers = [
            ("WORLD_SIZE", torchrun as fn(Variables<'_>) -> Result<Self, Error>),
            ("OMPI_COMM_WORLD_SIZE", open_mpi),
            ("SLURM_STEP_NUM_TASKS", slurm),
        ];
        // One task of Slurm or MPI may start the processes itself, with --processes.
        let starts = |name: &str, count: &str| name == "WORLD_SIZE" || count.trim() != "1";
        let launcher = launchers.into_iter().find(|(name, _)| variable(name).is_some_and(|count| starts(name, &count)));
        launcher.map(|(_, read)| read(variable)).transpose()
    }
}

type Variables<'a> = &'a dyn Fn(&'static str) -> Option<String>;

fn torchrun(variable: Variables<'_>) -> Result<Launched, Error> {
    let (rank, world) = numbers(variable, "RANK", "WORLD_SIZE")?;
    let local_world = optional(variable, "LOCAL_WORLD_SIZE")?;
    let machines = Machines::of(local_world, world);
    let place = if world == 1 {
        Place { rank, world, address: loopback(), port: 0, machines }
    } else {
        let port = master_port(variable)?.ok_or_else(|| no_port(variable))?;
        // Newer versions of torchrun keep this port for a store of their own.
        let port = port.checked_add(u16::from(variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True")));
        let port = port.ok_or_else(|| no_port(variable))?;
        Place { rank, world, address: variable("MASTER_ADDR").unwrap_or_else(loopback), port, machines }
    };
    Ok(Launched { place, local_rank: optional(variable, "LOCAL_RANK")?.unwrap_or(0), local_world: local_world.unwrap_or(1).max(1) })
}

fn open_mpi(variable: Variables<'_>) -> Result<Launched, Error> {
    let (rank, world) = numbers(variable, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
    let local_world = optional(variable, "OMPI_COMM_WORLD_LOCAL_SIZE")?;
    let machines = Machines::of(local_world, world);
    let here = (machines == Machines::One).then(loopback);
    let address = variable("MASTER_ADDR").or(here).ok_or_else(|| Error::Setting {
        name: "MASTER_ADDR",
        value: String::new(),
        wanted: "Open MPI does not say where rank 0 runs: give its name or address to all, as in `mpirun -x MASTER_ADDR=node1`".to_owned(),
    })?;
    // Open MPI 5 and 4 name the job like this, the same for all its processes.
    let job = variable("PMIX_NAMESPACE").or_else(|| variable("OMPI_MCA_ess_base_jobid")).unwrap_or_default();
    let number = job.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let place = Place { rank, world, address, port: master_port(variable)?.unwrap_or_else(|| port_of(number)), machines };
    let local_rank = optional(variable, "OMPI_COMM_WORLD_LOCAL_RANK")?.unwrap_or(0);
    Ok(Launched { place, local_rank, local_world: local_world.unwrap_or(1).max(1) })
}

fn slurm(variable: Variables<'_>) -> Result<Launched, Error> {
    let (rank, world) = numbers(variable, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")?;
    let node = optional(variable, "SLURM_NODEID")?.unwrap_or(0);
    let local_world = variable("SLURM_STEP_TASKS_PER_NODE").and_then(|counts| tasks_of(&counts, node));
    let machines = Machines::of(local_world, world);
    let hosts = variable("SLURM_STEP_NODELIST").or_else(|| variable("SLURM_JOB_NODELIST")).unwrap_or_default();
    let here = (machines == Machines::One).then(loopback);
    let address = variable("MASTER_ADDR").or(here).or_else(|| first_host(&hosts)).ok_or_else(|| Error::Setting {
        name: "SLURM_STEP_NODELIST",
        value: hosts,
        wanted: "a list of hosts is wanted, as in node[01-04]".to_owned(),
    })?;
    // Several steps of a job may run at once.
    let number = |name| variable(name).and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0);
    let number = number("SLURM_JOB_ID").wrapping_mul(7).wrapping_add(number("SLURM_STEP_ID"));
    let place = Place { rank, world, address, port: master_port(variable)?.unwrap_or_else(|| port_of(number)), machines };
    Ok(Launched { place, local_rank: optional(variable, "SLURM_LOCALID")?.unwrap_or(0), local_world: local_world.unwrap_or(1) })
}

fn loopback() -> String {
    Ipv4Addr::LOCALHOST.to_string()
}

fn port_of(number: u64) -> u16 {
    u16::try_from(PORTS.0 + number % PORTS.1).unwrap_or(u16::MAX)
}

fn no_port(variable: Variables<'_>) -> Error {
    let value = variable("MASTER_PORT").unwrap_or_default();
    Error::Setting { name: "MASTER_PORT", value, wanted: "a port from 1 to 65534 is wanted, the same for all processes".to_owned() }
}

fn master_port(variable: Variables<'_>) -> Result<Option<u16>, Error> {
    let Some(value) = variable("MASTER_PORT") else { return Ok(None) };
    let port = value.trim().parse().ok().filter(|port| *port > 0);
    port.map(Some).ok_or_else(|| no_port(variable))
}

/// A number, where the variable is there.
fn optional(variable: Variables<'_>, name: &'static str) -> Result<Option<usize>, Error> {
    let Some(value) = variable(name) else { return Ok(None) };
    let number = value.trim().parse().map(Some);
    number.map_err(|_| Error::Setting { name, value, wanted: "a number is wanted".to_owned() })
}

/// Rank and number of processes, of these names.
fn numbers(variable: Variables<'_>, rank: &'static str, world: &'static str) -> Result<(usize, usize), Error> {
    let missing = |name, wanted: &str| Error::Setting { name, value: String::new(), wanted: wanted.to_owned() };
    let count = optional(variable, world)?.filter(|world| *world > 0);
    let count = count.ok_or_else(|| missing(world, "the number of processes is wanted"))?;
    let wanted = format!("this process's number is wanted, from 0 up to, but not, the {count} of {world}");
    let number = optional(variable, rank)?.ok_or_else(|| missing(rank, &wanted))?;
    if number >= count {
        return Err(Error::Setting { name: rank, value: number.to_string(), wanted });
    }
    Ok((number, count))
}

/// Tasks on a node, of a list like `4(x2),1`.
fn tasks_of(counts: &str, node: usize) -> Option<usize> {
    let mut before = 0;
    for group in counts.split(',') {
        let (tasks, nodes) = match group.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (group, 1),
        };
        before += nodes;
        if node < before {
            return tasks.trim().parse().ok().filter(|tasks| *tasks > 0);
        }
    }
    None
}

/// The first host of a list like `node[07-09,11],login1`.
fn first_host(hosts: &str) -> Option<String> {
    let mut name = String::new();
    let mut rest = hosts.trim();
    while let Some(at) = rest.find(['[', ',']) {
        name.push_str(&rest[..at]);
        if rest[at..].starts_with(',') {
            return Some(name).filter(|name| !name.is_empty());
        }
        let (numbers, after) = rest[at + 1..].split_once(']')?;
        name.push_str(numbers.split([',', '-']).next()?);
        rest = after;
    }
    name.push_str(rest);
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launched(variables: &[(&str, &str)]) -> Result<Option<Launched>, Error> {
        Launched::from_variables(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    fn place(variables: &[(&str, &str)]) -> Place {
        launched(variables).unwrap().unwrap().place
    }

    #[test]
    fn torchruns_variables_are_read() {
        assert_eq!(launched(&[("RANK", "3")]).unwrap(), None);
        let all = [("WORLD_SIZE", "4"), ("RANK", "3"), ("MASTER_PORT", "29500"), ("MASTER_ADDR", "node1")];
        let machines = Machines::Unknown;
        assert_eq!(place(&all), Place { rank: 3, world: 4, address: "node1".to_owned(), port: 29500, machines });
        let agent = [&all[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(place(&agent).port, 29501, "torchrun holds its own port");
        assert_eq!(place(&all[..3]).address, "127.0.0.1", "loopback unless told otherwise");
        let local = [&all[..], &[("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")]].concat();
        let local = launched(&local).unwrap().unwrap();
        assert_eq!((local.local_rank, local.local_world, local.place.machines), (1, 2, Machines::Several));
        let here = [&all[..], &[("LOCAL_WORLD_SIZE", "4")]].concat();
        assert_eq!(place(&here).machines, Machines::One);
    }

    #[test]
    fn open_mpis_variables_are_read() {
        let here = [
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("PMIX_NAMESPACE", "prterun-node1-2411@1"),
        ];
        let found = launched(&here).unwrap().unwrap();
        assert_eq!((found.local_rank, found.local_world), (1, 2));
        assert_eq!((found.place.rank, found.place.world, found.place.address.as_str()), (1, 2, "127.0.0.1"));
        assert_eq!(found.place.machines, Machines::One);
        assert_eq!(place(&here[..4]).port, 15_000);
        assert!((15_000..30_000).contains(&found.place.port));
        let apart = [here[0], here[1], ("OMPI_COMM_WORLD_LOCAL_SIZE", "1")];
        let said = launched(&apart).unwrap_err().to_string();
        assert!(said.contains("mpirun -x MASTER_ADDR"), "{said}");
        let apart = place(&[&apart[..], &[("MASTER_ADDR", "node1"), ("MASTER_PORT", "7")]].concat());
        assert_eq!((apart.port, apart.machines), (7, Machines::Several));
    }

    #[test]
    fn slurms_variables_are_read() {
        // A batch script without `srun` is one process, however many tasks its job has.
        assert_eq!(launched(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0"), ("SLURM_JOB_ID", "7")]).unwrap(), None);
        assert_eq!(launched(&[("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")]).unwrap(), None);
        let step = [
            ("SLURM_STEP_NUM_TASKS", "6"),
            ("SLURM_PROCID", "5"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x3)"),
            ("SLURM_STEP_NODELIST", "gpu[07-09]"),
            ("SLURM_JOB_ID", "4711"),
            ("SLURM_STEP_ID", "0"),
        ];
        let found = launched(&step).unwrap().unwrap();
        let port = 15_000 + (7 * 4711 % 15_000) as u16;
        assert_eq!(found.place, Place { rank: 5, world: 6, address: "gpu07".to_owned(), port, machines: Machines::Several });
        assert_eq!((found.local_rank, found.local_world), (1, 2));
        let one_node = [("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "0"), ("SLURM_STEP_TASKS_PER_NODE", "2")];
        assert_eq!((place(&one_node).address.as_str(), place(&one_node).machines), ("127.0.0.1", Machines::One));
        assert!(launched(&one_node[..2]).unwrap_err().to_string().contains("SLURM_STEP_NODELIST"));
    }

    #[test]
    fn lists_of_slurm_are_read() {
        for (list, host) in [
            ("node1", Some("node1")),
            ("node[01-04]", Some("node01")),
            ("a[3,5-7]b[2-4],c", Some("a3b2")),
            ("login1,node[1-2]", Some("login1")),
            ("", None),
            ("node[1-2", None),
        ] {
            assert_eq!(first_host(list).as_deref(), host, "{list}");
        }
        assert_eq!([0, 1, 2, 3].map(|node| tasks_of("4(x2),1", node)), [Some(4), Some(4), Some(1), None]);
    }

    #[test]
    fn variables_that_make_no_sense_are_named() {
        for (variables, name) in [
            (&[("WORLD_SIZE", "two")][..], "WORLD_SIZE"),
            (&[("WORLD_SIZE", "0")], "WORLD_SIZE"),
            (&[("WORLD_SIZE", "2")], "RANK"),
            (&[("WORLD_SIZE", "2"), ("RANK", "2"), ("MASTER_PORT", "1")], "RANK"),
            (&[("WORLD_SIZE", "2"), ("RANK", "1")], "MASTER_PORT"),
            (&[("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_PORT", "65536")], "MASTER_PORT"),
            (&[("SLURM_STEP_NUM_TASKS", "2")], "SLURM_PROCID"),
        ] {
            let said = launched(variables).unwrap_err().to_string();
            assert!(said.contains(&format!("variable {name} is")), "{said}");
        }
    }
}
