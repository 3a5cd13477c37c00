//! An exchange over TCP: each process sends to the next in a ring and receives from the one before.
//!
//! A sum is a reduce-scatter and an all-gather: each process sends and receives `2 (n - 1) / n` times the values, whatever their number n.
//! One process adds up each part, in the order of the ring, and hands its bits to all.
//!
//! Messages are encrypted and signed where the run has a secret ([`super::channel`]). Without one, processes meet on one machine alone.
//!
//! ```
//! use std::{thread, time::Duration};
//!
//! use dino_train::exchange::tcp::Ring;
//!
//! let ring = Ring::between_threads(2, None, Duration::from_secs(60))?;
//! let sums: Vec<f32> = thread::scope(|scope| {
//!     let sum = |rank: usize| {
//!         let mut values = [rank as f32 + 1.0];
//!         ring[rank].sum(&mut values).map(|()| values[0])
//!     };
//!     let threads = [0, 1].map(|rank| scope.spawn(move || sum(rank)));
//!     threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Result<_, _>>()
//! })?;
//! assert_eq!(sums, [3.0, 3.0]);
//! # Ok::<(), dino_train::exchange::Error>(())
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::channel::{Channel, Secret};
use super::meeting::{self, Machines, Neighbours, Place};
use super::{Error, Exchange};

/// A process's place in the ring, and its two connections.
#[derive(Debug)]
pub struct Ring {
    rank: usize,
    world: usize,
    timeout: Duration,
    connections: Mutex<Connections>,
}

#[derive(Debug)]
struct Connections {
    previous: Channel,
    next: Channel,
    /// Number of messages so far: both ends count the same.
    messages: u64,
    /// What was received last.
    received: Vec<f32>,
}

impl Ring {
    /// Waits for all processes; `timeout` is also how long one may be silent later.
    ///
    /// # Errors
    /// When they do not come together in time.
    pub fn join(place: &Place, secret: Option<&Secret>, timeout: Duration) -> Result<Self, Error> {
        Self::new(place, meeting::meet(place, secret, timeout)?, timeout)
    }

    /// Joins `world` threads of this process, for tests, with a secret or without. Element i is for the thread of rank i.
    ///
    /// # Errors
    /// When loopback cannot be used.
    pub fn between_threads(world: usize, secret: Option<&Secret>, timeout: Duration) -> Result<Vec<Arc<dyn Exchange>>, Error> {
        if world < 2 {
            return Ok(vec![Arc::new(super::Alone)]);
        }
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| Ok((l.local_addr()?, l)));
        let bind = || bind().map_err(|source| Error::Network { rank: 0, what: "listen on loopback".to_owned(), source });
        let (master, first) = bind()?;
        let mut listeners = vec![first];
        for _ in 1..world {
            listeners.push(bind()?.1);
        }
        let joining: Vec<_> = (0..world)
            .zip(listeners)
            .map(|(rank, listener)| {
                let place = Place { rank, world, address: master.ip().to_string(), port: master.port(), machines: Machines::One };
                let secret = secret.cloned();
                thread::spawn(move || {
                    let neighbours = meeting::meet_at(&place, secret.as_ref(), listener, master, timeout)?;
                    Self::new(&place, neighbours, timeout)
                })
            })
            .collect();
        joining
            .into_iter()
            .map(|thread| Ok(Arc::new(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?) as Arc<dyn Exchange>))
            .collect()
    }

    fn new(place: &Place, neighbours: Neighbours, timeout: Duration) -> Result<Self, Error> {
        let Neighbours { previous, next } = neighbours;
        for stream in [previous.stream(), next.stream()] {
            let set = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(timeout)));
            set.and_then(|()| stream.set_write_timeout(Some(timeout))).map_err(|source| Error::Network {
                rank: place.rank,
                what: "set up its connections".to_owned(),
                source,
            })?;
        }
        let connections = Mutex::new(Connections { previous, next, messages: 0, received: Vec::new() });
        Ok(Self { rank: place.rank, world: place.world, timeout, connections })
    }

    fn before(&self) -> usize {
        (self.rank + self.world - 1) % self.world
    }

    fn after(&self) -> usize {
        (self.rank + 1) % self.world
    }

    fn failed(&self, peer: usize, source: std::io::Error) -> Error {
        let rank = self.rank;
        match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Silent { rank, peer, seconds: self.timeout.as_secs() },
            ErrorKind::InvalidData => Error::OutOfStep { rank, peer },
            _ => Error::Lost { rank, peer, source },
        }
    }

    /// Elements of part number `part` of `len`.
    fn part(&self, len: usize, part: usize) -> Range<usize> {
        len * part / self.world..len * (part + 1) / self.world
    }

    /// Sends part `send` of the values while it receives another, of which `take` says what becomes of it.
    fn pass_on(
        &self,
        connections: &mut Connections,
        values: &mut [f32],
        send: usize,
        receive: usize,
        take: impl Fn(&mut f32, f32),
    ) -> Result<(), Error> {
        let Connections { previous, next, messages, received } = connections;
        let forward = Arc::clone(next.stream());
        let target = self.part(values.len(), receive);
        received.resize(target.len(), 0.0);
        let outgoing = &values[self.part(values.len(), send)];
        let number = *messages;
        *messages += 1;
        // Both at once: where all only sent, each would wait for the next one to receive.
        let (sent, read) = thread::scope(|scope| {
            let sending = scope.spawn(|| write(next, number, bytemuck::cast_slice(outgoing)));
            let read = read(previous, number, bytemuck::cast_slice_mut(received));
            if read.is_err() {
                // Nothing more will come of this: it ends a write that no process reads, and tells the next one.
                let _ = forward.shutdown(std::net::Shutdown::Both);
            }
            (sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), read)
        });
        read.map_err(|e| self.failed(self.before(), e))?;
        sent.map_err(|e| self.failed(self.after(), e))?;
        for (value, &new) in values[target].iter_mut().zip(received.iter()) {
            take(value, new);
        }
        Ok(())
    }
}

impl Exchange for Ring {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), Error> {
        let (rank, n) = (self.rank, self.world);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for round in 0..n - 1 {
            self.pass_on(&mut connections, values, (rank + n - round) % n, (rank + 2 * n - round - 1) % n, |value, new| *value += new)?;
        }
        for round in 0..n - 1 {
            self.pass_on(&mut connections, values, (rank + 1 + n - round) % n, (rank + n - round) % n, |value, new| *value = new)?;
        }
        Ok(())
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<(), Error> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let Connections { previous, next, messages, .. } = &mut *connections;
        let number = *messages;
        *messages += 1;
        if self.rank > 0 {
            read(previous, number, bytes).map_err(|e| self.failed(self.before(), e))?;
        }
        if self.after() > 0 {
            write(next, number, bytes).map_err(|e| self.failed(self.after(), e))?;
        }
        Ok(())
    }
}

/// A message: its number, its length, its bytes.
fn write(stream: &mut Channel, number: u64, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytemuck::cast_slice(&[number, bytes.len() as u64]))?;
    stream.write_all(bytes)
}

fn read(stream: &mut Channel, number: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    let mut head = [0_u64; 2];
    stream.read_exact(bytemuck::cast_slice_mut(&mut head))?;
    if head != [number, bytes.len() as u64] {
        return Err(ErrorKind::InvalidData.into());
    }
    stream.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    /// Runs `f` in one thread for each process, and gives what each returned.
    fn each<T: Send>(processes: Vec<Arc<dyn Exchange>>, f: impl Fn(Arc<dyn Exchange>) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let running: Vec<_> = processes.into_iter().map(|exchange| scope.spawn(|| f(exchange))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn values(rank: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + rank * 104_729 + 1) % 1009) as f32 / 3.0).collect()
    }

    #[test]
    fn all_processes_hold_the_same_bits_of_the_sum() {
        let secret = Secret::new("0123456789abcdef").unwrap();
        for (world, secret) in [(1, None), (2, None), (3, None), (4, None), (3, Some(&secret))] {
            // Shorter than the ring, not divisible by it, and longer than the buffers of a socket.
            for len in [0, 1, 2, 5, 1000, 3_000_001] {
                let sums = each(Ring::between_threads(world, secret, TIMEOUT).unwrap(), |exchange| {
                    let mut sum = values(exchange.rank(), len);
                    exchange.sum(&mut sum).unwrap();
                    sum
                });
                for sum in &sums {
                    assert!(sum.iter().zip(&sums[0]).all(|(a, b)| a.to_bits() == b.to_bits()) && sum.len() == len);
                }
                let all: Vec<Vec<f32>> = (0..world).map(|rank| values(rank, len)).collect();
                for (i, sum) in sums[0].iter().enumerate() {
                    let want: f64 = all.iter().map(|values| f64::from(values[i])).sum();
                    assert!((f64::from(*sum) - want).abs() < 1e-3, "{sum}, not {want}");
                }
            }
        }
    }

    #[test]
    fn everyone_gets_what_the_first_one_has() {
        let got = each(Ring::between_threads(3, None, TIMEOUT).unwrap(), |exchange| {
            let mut bytes = vec![exchange.rank() as u8 + 7; 1_000_001];
            exchange.broadcast(&mut bytes).unwrap();
            exchange.barrier().unwrap();
            bytes
        });
        assert!(got.iter().flatten().all(|byte| *byte == 7));
    }

    #[test]
    fn a_process_that_ends_is_named_at_once() {
        let said = each(Ring::between_threads(3, None, TIMEOUT).unwrap(), |exchange| {
            let started = Instant::now();
            exchange.barrier().unwrap();
            if exchange.rank() == 1 {
                return String::new();
            }
            let error = exchange.sum(&mut vec![1.0; 1 << 20]).unwrap_err();
            assert!(started.elapsed() < TIMEOUT / 2);
            error.to_string()
        });
        assert!(said[2].contains("rank 1 has ended"), "{said:?}");
        assert!(said[0].contains("has ended"), "{said:?}");
    }

    #[test]
    fn a_process_that_is_silent_is_given_up() {
        let said = each(Ring::between_threads(2, None, Duration::from_millis(300)).unwrap(), |exchange| {
            if exchange.rank() == 1 {
                thread::sleep(Duration::from_secs(1));
                return String::new();
            }
            exchange.barrier().unwrap_err().to_string()
        });
        assert!(said[0].contains("heard nothing from rank 1"), "{said:?}");
    }

    #[test]
    fn processes_that_do_different_things_are_told() {
        let said = each(Ring::between_threads(2, None, TIMEOUT).unwrap(), |exchange| {
            exchange.sum(&mut vec![1.0; 10 + 2 * exchange.rank()]).map_err(|e| e.to_string())
        });
        assert!(said.iter().any(|said| said.as_ref().is_err_and(|e| e.contains("not in step"))), "{said:?}");
    }

    #[test]
    fn strangers_are_sent_away_and_absent_ones_are_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let master = listener.local_addr().unwrap();
        let place = |rank, world| {
            let machines = Machines::Unknown;
            Place { rank, world, address: master.ip().to_string(), port: master.port(), machines }
        };
        let (first, other) = (place(0, 3), place(1, 2));
        let timeout = Duration::from_millis(1500);
        let host = thread::spawn(move || meeting::meet_at(&first, None, listener, master, timeout).unwrap_err().to_string());
        TcpStream::connect(master).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let said = Ring::join(&other, None, TIMEOUT).unwrap_err().to_string();
        assert!(said.contains("WORLD_SIZE=2, but rank 0 with 3"), "{said}");
        let said = host.join().unwrap();
        assert!(said.contains("[1, 2]"), "{said}");
    }
}
