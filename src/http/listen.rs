//! Where the server listens: an address, or a name with all addresses that it has.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs},
    str::FromStr,
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the system keeps until they are accepted.
const BACKLOG: i32 = 1024;

/// `ADDRESS:PORT` or `NAME:PORT`. `[::]:PORT` (also `*:PORT`) is every address of this machine in both families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(String),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected ADDRESS:PORT, such as 127.0.0.1:8080, localhost:8080, or [::]:8080 for every address of this machine";
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let is_name = |host: &str| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match (bracketed, host.parse()) {
            (Some(inside), _) => Host::Address(IpAddr::V6(inside.parse().map_err(|_| wrong())?)),
            (None, Ok(address)) => Host::Address(IpAddr::V4(address)),
            (None, Err(_)) if host == "*" => Host::Address(Ipv6Addr::UNSPECIFIED.into()),
            // Digits and dots alone are an address with a mistake in it, which some resolvers would complete.
            (None, Err(_)) if is_name(host) && host.contains(|letter: char| letter.is_ascii_alphabetic()) => Host::Name(host.to_owned()),
            (None, Err(_)) => return Err(wrong().to_owned()),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl Listen {
    /// The addresses to listen on: one, or those that the name has. It may ask the network for them.
    ///
    /// # Errors
    /// One sentence where the name has none.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let name = match &self.host {
            Host::Address(address) => return Ok(vec![SocketAddr::new(*address, self.port)]),
            Host::Name(name) => name,
        };
        let mut found = Vec::new();
        for address in (name.as_str(), self.port).to_socket_addrs().map_err(|error| named(&error, self))? {
            if !found.contains(&address) {
                found.push(address);
            }
        }
        if found.is_empty() { Err(named(&io::Error::from(io::ErrorKind::NotFound), self)) } else { Ok(found) }
    }

    /// The addresses under which a program on this machine reaches a server that listens here.
    ///
    /// # Errors
    /// As [`addresses`](Self::addresses).
    pub fn reachable(&self) -> io::Result<Vec<SocketAddr>> {
        let loopback = |address: SocketAddr| -> Vec<SocketAddr> {
            let [four, six]: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let ips = match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => vec![four],
                IpAddr::V6(ip) if ip.is_unspecified() => vec![six, four],
                ip => vec![ip],
            };
            ips.into_iter().map(|ip| SocketAddr::new(ip, address.port())).collect()
        };
        Ok(self.addresses()?.into_iter().flat_map(loopback).collect())
    }

    /// Whether this machine alone can reach it, as far as that can be told without asking for the addresses of a name.
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Address(address) => address.is_loopback(),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

fn named(error: &io::Error, listen: &Listen) -> io::Error {
    let detail = format!("cannot listen on {listen}: no address of that name is known ({error}); choose another --listen");
    io::Error::new(error.kind(), detail)
}

/// Binds all addresses of `listen`, so that an occupied port is found before models are loaded. A name may have addresses that this
/// machine lacks, as `::1` where there is no IPv6: one that it has is enough. Port 0 picks one port for all.
///
/// # Errors
/// One sentence that names the address and what to do.
pub fn bind(listen: &Listen) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let (mut port, mut lacking) = (None, None);
    for mut address in listen.addresses()? {
        address.set_port(port.unwrap_or(address.port()));
        match open(address) {
            Ok(listener) => {
                port.get_or_insert(listener.local_addr()?.port());
                listeners.push(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                tracing::debug!(%address, "not listened on: this machine does not have that address");
                lacking.get_or_insert((address, error));
            }
            Err(error) => return Err(explained(address, &error)),
        }
    }
    match lacking {
        Some((address, error)) if listeners.is_empty() => Err(explained(address, &error)),
        _ => Ok(listeners),
    }
}

/// A socket that listens; on `[::]` it takes both families, and where the machine has no IPv6, all addresses of IPv4.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let IpAddr::V6(ip) = address.ip() else { return TcpListener::bind(address) };
    // The kernel may have been built or started without the family.
    let lacks = |error: io::Error| io::Error::new(io::ErrorKind::AddrNotAvailable, error);
    let try_six = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).map_err(lacks)?;
        // Linux' own default, which an administrator may have changed.
        socket.set_only_v6(!ip.is_unspecified())?;
        // As the standard library does: a server that is started again does not wait for the connections of the one before.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    match try_six() {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && ip.is_unspecified() => {
            tracing::info!("this machine has no IPv6: listening on the addresses of IPv4");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()))
        }
        outcome => outcome,
    }
}

fn explained(address: SocketAddr, error: &io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => ": another program listens there; stop it, or choose another --listen",
        io::ErrorKind::PermissionDenied => ": ports under 1024 need privileges; choose another --listen",
        io::ErrorKind::AddrNotAvailable => ": this machine does not have that address; choose another --listen",
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn listen(text: &str) -> Listen {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_names_are_told_from_mistakes() {
        for (text, shown) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:8080", "[::1]:8080"),
            ("[::]:0", "[::]:0"),
            ("*:8080", "[::]:8080"),
            ("localhost:8080", "localhost:8080"),
            ("dino-0.dino.svc:8080", "dino-0.dino.svc:8080"),
        ] {
            assert_eq!(listen(text).to_string(), shown);
        }
        for wrong in
            ["", "8080", ":8080", "localhost", "::1:8080", "[127.0.0.1]:80", "127.0.0:80", "a b:80", "a:99999", "a:", "http://a:80"]
        {
            assert!(wrong.parse::<Listen>().unwrap_err().contains("ADDRESS:PORT"), "{wrong}");
        }
        assert!(listen("localhost:1").is_loopback() && listen("[::1]:1").is_loopback() && !listen("[::]:1").is_loopback());
    }

    #[test]
    fn every_address_means_both_families() {
        let bound = bind(&listen("[::]:0")).unwrap();
        let port = bound[0].local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
        let asked = listen(&format!("[::]:{port}")).reachable().unwrap();
        assert!(asked.iter().all(|address| address.ip().is_loopback()) && asked.len() == 2, "{asked:?}");
    }

    #[test]
    fn a_name_is_listened_on_at_all_its_addresses_with_one_port() {
        let bound = bind(&listen("localhost:0")).unwrap();
        let addresses: Vec<_> = bound.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == addresses[0].port()), "{addresses:?}");
        let taken = bind(&listen(&addresses[0].to_string())).unwrap_err().to_string();
        assert!(taken.contains("another program listens there"), "{taken}");
        let unknown = bind(&listen("no-such-host.invalid:0")).unwrap_err().to_string();
        assert!(unknown.contains("no-such-host.invalid:0") && unknown.contains("--listen"), "{unknown}");
    }
}
