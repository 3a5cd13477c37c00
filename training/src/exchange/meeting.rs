//! How the processes of a run find each other: all call at rank 0, which tells everyone where the others listen.
//!
//! All numbers are sent as this machine holds them in memory: a process of the other byte order does not know the first word, and is refused.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Error;
use super::channel::{Channel, Secret};

/// First word of every greeting: name and version of the protocol.
const MAGIC: u32 = 0x6469_6e01;
/// Pause between two looks at a socket.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a process that has connected may take to say its rank.
const GREETING: Duration = Duration::from_secs(5);

/// Where a process stands among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Name or address of the machine of rank 0.
    pub address: String,
    /// Port on which rank 0 listens.
    pub port: u16,
    /// Where the others are.
    pub machines: Machines,
}

/// Where the processes of a run are, as far as is known before they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machines {
    /// All on this one.
    One,
    /// Some on others.
    Several,
    /// Nobody says.
    Unknown,
}

impl Machines {
    /// With `local` of the `world` processes on this machine, where that is said.
    pub(super) fn of(local: Option<usize>, world: usize) -> Self {
        match local {
            Some(local) if local == world => Self::One,
            Some(local) if (1..world).contains(&local) => Self::Several,
            _ => Self::Unknown,
        }
    }
}

impl Place {
    fn network(&self, what: impl Into<String>, source: std::io::Error) -> Error {
        Error::Network { rank: self.rank, what: what.into(), source }
    }

    fn resolve(&self) -> Result<SocketAddr, Error> {
        let name = format!("{}:{}", self.address, self.port);
        let mut found = (self.address.as_str(), self.port).to_socket_addrs().map_err(|e| self.network(format!("find {name}"), e))?;
        found.next().ok_or_else(|| self.network(format!("find {name}"), ErrorKind::NotFound.into()))
    }

    /// Where this process listens, with rank 0 at `master`: what is reached over loopback listens there alone.
    fn listens_at(&self, master: SocketAddr) -> SocketAddr {
        let ip = match master.ip() {
            // The name of the own machine may be mapped to loopback (127.0.1.1 in Debian's /etc/hosts), where others do not reach it.
            ip if self.machines == Machines::Several || !ip.is_loopback() => unspecified(ip),
            ip if self.rank == 0 => ip,
            ip => localhost(ip),
        };
        SocketAddr::new(ip, if self.rank == 0 { master.port() } else { 0 })
    }
}

/// The connections to the two neighbours in the ring.
#[derive(Debug)]
pub(super) struct Neighbours {
    /// From the process before this one.
    pub(super) previous: Channel,
    /// To the process after this one.
    pub(super) next: Channel,
}

/// Brings all processes together, in a ring.
pub(super) fn meet(place: &Place, secret: Option<&Secret>, timeout: Duration) -> Result<Neighbours, Error> {
    let master = place.resolve()?;
    let listen = place.listens_at(master);
    if secret.is_none() && !listen.ip().is_loopback() {
        return Err(Error::NoSecret { address: place.address.clone() });
    }
    let listener = TcpListener::bind(listen).map_err(|e| {
        let advice = if e.kind() == ErrorKind::AddrInUse { " (choose another MASTER_PORT)" } else { "" };
        place.network(format!("listen on {listen}{advice}"), e)
    })?;
    meet_at(place, secret, listener, master, timeout)
}

/// [`meet`] with a listener that exists already; that of rank 0 is at `master`.
pub(super) fn meet_at(
    place: &Place,
    secret: Option<&Secret>,
    listener: TcpListener,
    master: SocketAddr,
    timeout: Duration,
) -> Result<Neighbours, Error> {
    let deadline = Instant::now() + timeout;
    listener.set_nonblocking(true).map_err(|e| place.network("listen", e))?;
    let next = match place.rank {
        0 => host(place, secret, &listener, deadline, timeout)?,
        _ => call(place, secret, &listener, master, deadline)?,
    };
    let before = (place.rank + place.world - 1) % place.world;
    let missing = || place.network(format!("wait for a call of rank {before}"), ErrorKind::TimedOut.into());
    // Both at once: each call waits until it is answered, and in a ring all call.
    let failed = AtomicBool::new(false);
    let (forward, previous) = std::thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let forward = connect(place, secret, next, deadline).and_then(|mut forward| {
                greet(&mut forward, place, 0).map_err(|e| place.network(format!("greet {next}"), e))?;
                Ok(forward)
            });
            failed.store(forward.is_err(), Ordering::Relaxed);
            forward
        });
        let previous = loop {
            match accept(&listener, secret, deadline, &failed) {
                Some((stream, caller)) if caller.rank == before && caller.world == place.world => break Ok(stream),
                Some(_) => {}
                None => break Err(missing()),
            }
        };
        (calling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), previous)
    });
    // Its own error says more than that no call came.
    let next = forward?;
    Ok(Neighbours { previous: previous?, next })
}

fn unspecified(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn localhost(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// Where a process at `caller`, which has reached this machine at `here`, reaches one that listens at `next`: loopback is each machine's own.
fn reached_from(caller: IpAddr, here: IpAddr, next: SocketAddr) -> SocketAddr {
    if next.ip().is_loopback() && !caller.is_loopback() { SocketAddr::new(here, next.port()) } else { next }
}

/// Rank 0 waits for all others, then tells each where the one after it listens.
fn host(place: &Place, secret: Option<&Secret>, listener: &TcpListener, deadline: Instant, timeout: Duration) -> Result<SocketAddr, Error> {
    let mut callers: Vec<Option<(Channel, SocketAddr)>> = (1..place.world).map(|_| None).collect();
    while callers.iter().any(Option::is_none) {
        let Some((mut stream, caller)) = accept(listener, secret, deadline, &AtomicBool::new(false)) else {
            let missing = (1..place.world).zip(&callers).filter(|(_, c)| c.is_none()).map(|(rank, _)| rank).collect();
            let address = format!("{}:{}", place.address, place.port);
            return Err(Error::Missing { world: place.world, address, seconds: timeout.as_secs(), missing });
        };
        let from = stream.stream().peer_addr().map_err(|e| place.network("answer a call", e))?;
        if caller.world != place.world {
            tracing::warn!("a process at {from} was started for {} processes, not {}: it was sent away", caller.world, place.world);
            // It may be gone already.
            let _ = write_words(&mut stream, &[MAGIC, place.world as u32, 0]);
            continue;
        }
        if let Some(slot @ None) = caller.rank.checked_sub(1).and_then(|i| callers.get_mut(i)) {
            // Whatever address of loopback it has called from, it listens at this one.
            let ip = from.ip().to_canonical();
            let ip = if ip.is_loopback() { localhost(ip) } else { ip };
            *slot = Some((stream, SocketAddr::new(ip, caller.port)));
        } else {
            tracing::warn!("a second process at {from} calls itself rank {}: it was sent away", caller.rank);
        }
    }
    let addresses: Vec<SocketAddr> = callers.iter().flatten().map(|(_, address)| *address).collect();
    for (i, (stream, own)) in callers.iter_mut().flatten().enumerate() {
        let here = stream.stream().local_addr().map_err(|e| place.network("answer a call", e))?.ip().to_canonical();
        // The last one's neighbour is rank 0, which it has reached already: all zeros.
        let next = addresses.get(i + 1).map(|next| reached_from(own.ip(), here, *next));
        write_address(stream, place.world, next).map_err(|source| Error::Lost { rank: 0, peer: i + 1, source })?;
    }
    addresses.first().copied().ok_or_else(|| place.network("be a ring of one", ErrorKind::InvalidInput.into()))
}

/// Another rank calls rank 0, says where it listens, and is told where the one after it listens.
fn call(
    place: &Place,
    secret: Option<&Secret>,
    listener: &TcpListener,
    master: SocketAddr,
    deadline: Instant,
) -> Result<SocketAddr, Error> {
    let port = listener.local_addr().map_err(|e| place.network("listen", e))?.port();
    let mut stream = connect(place, secret, master, deadline)?;
    greet(&mut stream, place, port).map_err(|e| place.network(format!("greet rank 0 at {master}"), e))?;
    let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
    stream.stream().set_read_timeout(Some(left)).map_err(|e| place.network("wait for rank 0", e))?;
    let lost = |source| Error::Lost { rank: place.rank, peer: 0, source };
    let [_, world] = read_words(&mut stream).and_then(|words: [u32; 2]| known(words[0]).map(|()| words)).map_err(lost)?;
    if world as usize != place.world {
        return Err(Error::World { rank: place.rank, world: place.world, other: world as usize });
    }
    let [port, a, b, c, d] = read_words(&mut stream).map_err(lost)?;
    if port == 0 {
        return Ok(master);
    }
    let mut octets = [0; 16];
    for (bytes, word) in octets.chunks_exact_mut(4).zip([a, b, c, d]) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = Ipv6Addr::from(octets);
    Ok(SocketAddr::new(ip.to_ipv4_mapped().map_or(ip.into(), IpAddr::from), port as u16))
}

/// What a process that connects says of itself.
struct Caller {
    world: usize,
    rank: usize,
    port: u16,
}

/// The next connection of a process of this run; `None` at the deadline, or when `ends` is set. Other connections are closed.
fn accept(listener: &TcpListener, secret: Option<&Secret>, deadline: Instant, ends: &AtomicBool) -> Option<(Channel, Caller)> {
    while Instant::now() < deadline && !ends.load(Ordering::Relaxed) {
        let Ok((stream, from)) = listener.accept() else {
            std::thread::sleep(PAUSE);
            continue;
        };
        let set = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(GREETING)));
        let greeted = set.and_then(|()| Channel::answered(stream, secret)).and_then(|mut channel| {
            let words: [u32; 4] = read_words(&mut channel)?;
            known(words[0]).map(|()| (channel, words))
        });
        match greeted {
            Ok((channel, [_, world, rank, port])) => {
                return Some((channel, Caller { world: world as usize, rank: rank as usize, port: port as u16 }));
            }
            Err(error) => tracing::warn!("{from} connected and is no process of this run ({error}): it was sent away"),
        }
    }
    None
}

/// Connects, again and again while the other one is not there yet.
fn connect(place: &Place, secret: Option<&Secret>, to: SocketAddr, deadline: Instant) -> Result<Channel, Error> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
        match TcpStream::connect_timeout(&to, left) {
            Ok(stream) => {
                let set = stream.set_read_timeout(Some(left));
                let channel = set.and_then(|()| Channel::called(stream, secret));
                return channel.map_err(|source| place.network(format!("connect to {to}"), source));
            }
            Err(source) if Instant::now() >= deadline => return Err(place.network(format!("connect to {to}"), source)),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn known(magic: u32) -> std::io::Result<()> {
    let error = || std::io::Error::new(ErrorKind::InvalidData, "it speaks another language");
    if magic == MAGIC { Ok(()) } else { Err(error()) }
}

fn greet(stream: &mut Channel, place: &Place, port: u16) -> std::io::Result<()> {
    write_words(stream, &[MAGIC, place.world as u32, place.rank as u32, u32::from(port)])
}

fn write_address(stream: &mut Channel, world: usize, address: Option<SocketAddr>) -> std::io::Result<()> {
    let mut words = [MAGIC, world as u32, 0, 0, 0, 0, 0];
    if let Some(address) = address {
        let octets = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        words[2] = u32::from(address.port());
        for (word, bytes) in words[3..].iter_mut().zip(octets.as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
    }
    write_words(stream, &words)
}

fn write_words(stream: &mut Channel, words: &[u32]) -> std::io::Result<()> {
    stream.write_all(&words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>())
}

fn read_words<const N: usize>(stream: &mut Channel) -> std::io::Result<[u32; N]> {
    let mut words = [0; N];
    for word in &mut words {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes)?;
        *word = u32::from_ne_bytes(bytes);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::atomic::{AtomicU16, Ordering};
    use std::thread;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Lets processes meet that know rank 0 by these names, and gives where each of them reaches the next one.
    fn meeting(names: &[&str], machines: Machines, secret: Option<&Secret>) -> Vec<Result<IpAddr, String>> {
        // Below those that the system gives to whoever asks for any.
        static MEETINGS: AtomicU16 = AtomicU16::new(0);
        let port = 20_000 + (std::process::id() % 1000) as u16 * 10 + MEETINGS.fetch_add(1, Ordering::Relaxed);
        let join = |place: &Place| -> Result<IpAddr, String> {
            let neighbours = meet(place, secret, TIMEOUT).map_err(|error| error.to_string())?;
            Ok(neighbours.next.stream().peer_addr().unwrap().ip())
        };
        let place = |(rank, name): (usize, &&str)| Place { rank, world: names.len(), address: (*name).to_owned(), port, machines };
        let places: Vec<Place> = names.iter().enumerate().map(place).collect();
        thread::scope(|scope| {
            let running: Vec<_> = places.iter().map(|place| scope.spawn(move || join(place))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// An address of this machine at which others reach it; loopback where it has none. Nothing is sent.
    fn outside() -> IpAddr {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let found = socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).and_then(|()| socket.local_addr());
        found.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
    }

    #[test]
    fn a_machine_whose_name_is_mapped_to_loopback_is_reached_by_others() {
        let secret = Secret::new("0123456789abcdef").unwrap();
        let outside = outside();
        let other = outside.to_string();
        // The second process stands for one on another machine; the third is on that of rank 0.
        let found = meeting(&["127.0.1.1", &other, "127.0.1.1"], Machines::Several, Some(&secret));
        assert_eq!(found[..2], [Ok(outside), Ok(outside)]);
        assert!(found[2].as_ref().is_ok_and(IpAddr::is_loopback), "{found:?}");
    }

    #[test]
    fn processes_of_several_machines_need_a_secret_at_any_address() {
        let found = meeting(&["127.0.0.1"; 2], Machines::Several, None);
        assert!(found.iter().all(|found| found.as_ref().is_err_and(|said| said.contains("set DINO_EXCHANGE_SECRET"))), "{found:?}");
    }

    #[test]
    fn processes_of_one_machine_meet_at_any_address_of_loopback() {
        for machines in [Machines::One, Machines::Unknown] {
            let found = meeting(&["127.0.1.1"; 3], machines, None);
            assert!(found.iter().all(|found| found.as_ref().is_ok_and(IpAddr::is_loopback)), "{machines:?}: {found:?}");
        }
    }

    #[test]
    fn loopback_is_listened_at_alone_where_no_other_machine_is_known() {
        let listens = |rank: usize, machines: Machines, master: &str| {
            let place = Place { rank, world: 4, address: String::new(), port: 7, machines };
            place.listens_at(master.parse().unwrap()).to_string()
        };
        for machines in [Machines::One, Machines::Unknown] {
            assert_eq!([0, 1].map(|rank| listens(rank, machines, "127.0.1.1:7")), ["127.0.1.1:7", "127.0.0.1:0"]);
            assert_eq!([0, 1].map(|rank| listens(rank, machines, "[::1]:7")), ["[::1]:7", "[::1]:0"]);
            assert_eq!([0, 1].map(|rank| listens(rank, machines, "10.0.0.1:7")), ["0.0.0.0:7", "0.0.0.0:0"]);
        }
        for master in ["127.0.1.1:7", "10.0.0.1:7"] {
            assert_eq!([0, 1].map(|rank| listens(rank, Machines::Several, master)), ["0.0.0.0:7", "0.0.0.0:0"]);
        }
        assert_eq!(listens(0, Machines::Several, "[::1]:7"), "[::]:7");
    }

    #[test]
    fn loopback_is_told_to_processes_of_this_machine_alone() {
        let told = |caller: &str, next: &str| {
            let here = IpAddr::from([10, 0, 0, 1]);
            reached_from(caller.parse().unwrap(), here, next.parse().unwrap()).to_string()
        };
        assert_eq!(told("10.0.0.2", "127.0.0.1:7"), "10.0.0.1:7");
        assert_eq!(told("127.0.0.1", "127.0.0.1:7"), "127.0.0.1:7");
        assert_eq!(told("127.0.0.1", "10.0.0.2:7"), "10.0.0.2:7");
        assert_eq!(told("10.0.0.3", "10.0.0.2:7"), "10.0.0.2:7");
    }

    #[test]
    fn it_is_known_where_the_processes_are_if_those_of_a_machine_are_counted() {
        let found = [Some(2), Some(4), None, Some(0), Some(5)].map(|local| Machines::of(local, 4));
        assert_eq!(found, [Machines::Several, Machines::One, Machines::Unknown, Machines::Unknown, Machines::Unknown]);
    }
}
