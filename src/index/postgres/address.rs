//! Where the database is: a URL that may hold a password, and therefore never shows itself.

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

/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`, as it was given.
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
    /// Refuses what is no URL of a database.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] says what is wrong, without any part of the URL that could be a secret.
    pub fn check(&self) -> Result<(), Error> {
        self.options().map(drop)
    }

    /// How to connect.
    pub(super) fn options(&self) -> Result<PgConnectOptions, Error> {
        let refused = |why: &str| Error::InvalidParameter(format!("--index (DINO_INDEX): {why}"));
        if !["postgres://", "postgresql://"].iter().any(|scheme| self.0.starts_with(scheme)) {
            return Err(refused("expected postgres://USER:PASSWORD@HOST:PORT/DATABASE"));
        }
        let parameters = self.0.split_once('?').map_or("", |(_, parameters)| parameters).split('#').next().unwrap_or_default();
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let name = parameter.split('=').next().unwrap_or_default();
            if !PARAMETERS.contains(&name) && !name.starts_with("options[") {
                // An unknown name may be a mistyped secret.
                return Err(refused(&format!("a parameter is none of {}", PARAMETERS.join(", "))));
            }
        }
        let options = PgConnectOptions::from_str(&self.0).map_err(|error| match error {
            sqlx::Error::Configuration(error) if error.to_string().contains("ssl_mode") => {
                refused("sslmode is one of disable, allow, prefer, require, verify-ca, verify-full")
            }
            _ => refused("it is no URL that can be read; in a name or password write @ as %40, : as %3A, / as %2F, # as %23, % as %25"),
        })?;
        let options = if options.get_application_name().is_none() { options.application_name("dino-server") } else { options };
        Ok(options.disable_statement_logging())
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
        let options = "postgres://u:pass%40word@h:5433/d".parse::<IndexUrl>().unwrap().options().unwrap();
        assert_eq!((options.get_host(), options.get_port(), options.get_database()), ("h", 5433, Some("d")));
        assert_eq!(options.get_application_name(), Some("dino-server"));
    }
}
