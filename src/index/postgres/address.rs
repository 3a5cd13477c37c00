//! Where the databases are: URLs that may hold a password, and therefore never show themselves.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use super::super::Error;

/// Parameters of the URL that are read.
const PARAMETERS: [&str; 13] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Starts of a URL of a database.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
/// Most databases that hold collections together. Each request asks all of them.
const MOST: usize = 32;

/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`, as it was given: one, or several with commas between them.
///
/// What it leaves out comes from the environment as for other clients of PostgreSQL: `PGPASSWORD`, `PGPASSFILE`, `PGSSLMODE`
/// and so on.
#[derive(Clone, PartialEq, Eq)]
pub struct IndexUrl(String);

impl FromStr for IndexUrl {
    type Err = Infallible;

    /// Takes any string: clap would show an error here together with the string. [`IndexUrl::check`] checks it.
    fn from_str(url: &str) -> Result<Self, Infallible> {
        Ok(Self(url.to_owned()))
    }
}

impl fmt::Debug for IndexUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IndexUrl(…)")
    }
}

impl IndexUrl {
    /// Refuses what is no URL of a database, and what is no list of them.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] says what is wrong, without any part of the URL that could be a secret.
    pub fn check(&self) -> Result<(), Error> {
        self.databases().map(drop)
    }

    /// How to connect to each database, in the order of their URLs.
    pub(super) fn databases(&self) -> Result<Vec<PgConnectOptions>, Error> {
        let urls = split(&self.0);
        if urls.len() > MOST {
            return Err(refused(&format!("it names {} databases, of at most {MOST}", urls.len())));
        }
        for (place, url) in urls.iter().enumerate() {
            if let Some(first) = urls[..place].iter().position(|other| other == url) {
                return Err(refused(&format!("databases {} and {} are the same", first + 1, place + 1)));
            }
        }
        let several = urls.len() > 1;
        let named = |place: usize| if several { format!("database {}: ", place + 1) } else { String::new() };
        urls.into_iter().enumerate().map(|(place, url)| options(url).map_err(|why| refused(&format!("{}{why}", named(place))))).collect()
    }
}

fn refused(why: &str) -> Error {
    Error::InvalidParameter(format!("--index (DINO_INDEX): {why}"))
}

/// The URLs of a list. A comma ends one only where another URL follows: passwords may have commas.
fn split(list: &str) -> Vec<&str> {
    let starts_url = |at: usize| SCHEMES.iter().any(|scheme| list[at..].starts_with(scheme)) && list[..at].trim_end().ends_with(',');
    let starts: Vec<usize> = list.match_indices("postgres").map(|(at, _)| at).filter(|&at| starts_url(at)).collect();
    let ends = starts.iter().copied().chain([list.len()]);
    let urls = std::iter::once(0).chain(starts.iter().copied()).zip(ends).map(|(start, end)| &list[start..end]);
    urls.enumerate().map(|(place, url)| if place < starts.len() { url.trim().trim_end_matches(',') } else { url.trim() }).collect()
}

/// How to connect to the database of one URL, or why that cannot be told.
fn options(url: &str) -> Result<PgConnectOptions, String> {
    if !SCHEMES.iter().any(|scheme| url.starts_with(scheme)) {
        return Err("expected postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned());
    }
    if url.ends_with(',') {
        return Err("a URL of another database has to follow the comma".to_owned());
    }
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters).split('#').next().unwrap_or_default();
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.split('=').next().unwrap_or_default();
        if !PARAMETERS.contains(&name) && !name.starts_with("options[") {
            // An unknown name may be a mistyped secret.
            return Err(format!("a parameter is none of {}", PARAMETERS.join(", ")));
        }
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(error) if error.to_string().contains("ssl_mode") => {
            "sslmode is one of disable, allow, prefer, require, verify-ca, verify-full".to_owned()
        }
        _ => "it is no URL that can be read; in a name or password write @ as %40, : as %3A, / as %2F, # as %23, % as %25".to_owned(),
    })?;
    let options = if options.get_application_name().is_none() { options.application_name("dino-server") } else { options };
    Ok(options.disable_statement_logging())
}

/// What a database is called in messages: host and name, nothing of its user.
pub(super) fn label(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_default();
    match options.get_socket() {
        Some(socket) => format!("{}/{database}", socket.display()),
        None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        for url in [
            "mysql://user:sEcret@host/db",
            "sEcret",
            "postgres://user:sEcret#x@host/db",
            "postgres://user:sEcret@host:port/db",
            "postgres://user@host/db?passwrd=sEcret",
            "postgres://user:sEcret@host/db?sslmode=sEcret",
            "postgres://user:sEcret@host/db?port=sEcret",
            "postgres://user:sEcret@host/db,",
            "postgres://user:sEcret@host/db,postgres://user:sEcret@host/db",
            "postgres://user:sEcret@host/a, postgres://user:sEcret@host/b?passwrd=sEcret",
        ] {
            let url: IndexUrl = url.parse().unwrap();
            let error = url.check().unwrap_err().to_string();
            assert!(error.starts_with("--index") && !error.contains("sEcret"), "{error}");
            assert!(!format!("{url:?}").contains("sEcret"));
        }
    }

    #[test]
    fn the_usual_forms_are_read() {
        for url in [
            "postgres://user:pass%40word@host:5433/db?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            "postgresql:///db?host=/var/run/postgresql",
            "postgres://host/db?options[search_path]=dino&application_name=x",
        ] {
            url.parse::<IndexUrl>().unwrap().check().unwrap();
        }
        let options = "postgres://u:pass%40word@h:5433/d".parse::<IndexUrl>().unwrap().databases().unwrap().remove(0);
        assert_eq!((options.get_host(), options.get_port(), options.get_database()), ("h", 5433, Some("d")));
        assert_eq!(options.get_application_name(), Some("dino-server"));
    }

    #[test]
    fn several_are_parted_by_commas_that_a_url_follows() {
        let list = "postgres://u:a,b@one/d, postgresql://two:5433/d?options[search_path]=a,b,postgres:///d?host=/run/pg";
        let databases = list.parse::<IndexUrl>().unwrap().databases().unwrap();
        assert_eq!(databases.iter().map(label).collect::<Vec<_>>(), ["one:5432/d", "two:5433/d", "/run/pg/d"]);
        let many: Vec<_> = (0..=MOST).map(|i| format!("postgres://h/d{i}")).collect();
        let error = many.join(",").parse::<IndexUrl>().unwrap().check().unwrap_err().to_string();
        assert!(error.contains("33 databases"), "{error}");
    }
}
