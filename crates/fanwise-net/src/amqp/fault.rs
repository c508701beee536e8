//! An error of the client library in words for an operator: what the broker or the system said, and
//! for a connection that does not open, what to do.

use std::fmt;
use std::io;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};

/// Why the client library failed.
#[derive(Debug)]
pub struct Fault {
    error: lapin::Error,
    advice: Option<String>,
}

impl Fault {
    pub(super) fn new(error: lapin::Error) -> Self {
        Self {
            error,
            advice: None,
        }
    }

    /// The fault of a connection that did not open; `section` of the configuration has the address.
    pub(super) fn of_opening(error: lapin::Error, uri: &AMQPUri, section: &str) -> Self {
        let advice = match error.kind() {
            ErrorKind::ProtocolError(said) => Some(about_login(
                said.kind(),
                said.get_message().as_str(),
                uri,
                section,
            )),
            ErrorKind::IOError(error) => about_network(error, uri, section),
            ErrorKind::ParsingError(_) => Some(about_port(section)),
            _ => None,
        };
        Self { error, advice }
    }

    pub(super) fn kind(&self) -> &ErrorKind {
        self.error.kind()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error.kind() {
            ErrorKind::ProtocolError(said) => {
                let said = said.get_message().as_str();
                f.write_str(said.strip_suffix('.').unwrap_or(said))?;
            }
            ErrorKind::IOError(error) => error.fmt(f)?,
            ErrorKind::ParsingError(_) => f.write_str("what it says is not AMQP")?,
            _ => self.error.fmt(f)?,
        }
        match &self.advice {
            Some(advice) => write!(f, ". {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

fn about_login(kind: &AMQPErrorKind, said: &str, uri: &AMQPUri, section: &str) -> String {
    let (vhost, user) = (&uri.vhost, &uri.authority.userinfo.username);
    match kind {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
            if uri.query.auth_mechanism == Some(SASLMechanism::External) =>
        {
            format!("Check that the broker knows the user of {section}.certificate")
        }
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => format!(
            "Check user and password in {section}.url; special characters must be percent-encoded"
        ),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if said.contains("not found") => format!(
            "Correct the virtual host in {section}.url, or create it: \
             `rabbitmqctl add_vhost '{vhost}'`"
        ),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if said.contains("refused for user") => {
            format!(
                "Permit it: `rabbitmqctl set_permissions -p '{vhost}' '{user}' '.*' '.*' '.*'`, or \
                 correct {section}.url"
            )
        }
        _ => format!("Check {section}.url"),
    }
}

fn about_network(error: &io::Error, uri: &AMQPUri, section: &str) -> Option<String> {
    let advice = match error.kind() {
        // The error of a name that is not known has no kind.
        _ if error.to_string().contains("failed to lookup address") => {
            format!("Check the host in {section}.url, and the name server of this machine")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("Check host and port in {section}.url, and whether RabbitMQ runs there")
        }
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::TimedOut => {
            format!("Check host and port in {section}.url, and the network between here and there")
        }
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
            if uri.scheme == AMQPScheme::AMQP =>
        {
            about_port(section)
        }
        // Those of TLS say what to do.
        _ => return None,
    };
    Some(advice)
}

fn about_port(section: &str) -> String {
    format!(
        "Check that the port in {section}.url is that of AMQP, and whether RabbitMQ runs there; the \
         port for TLS needs an address that begins with amqps://"
    )
}
