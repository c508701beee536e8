//! The exit codes of all commands, as in sysexits(3) where it has one.

use std::process::ExitCode;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or drained in time.
    Ok = 0,
    /// The job that the command waited for is completed, but some recipients did not get the
    /// message, or may not have got it: they are failed, uncertain, expired, cancelled or capped.
    NotAll = 1,
    /// The command line is wrong.
    Usage = 64,
    /// Input data is wrong: a job, a list of recipients.
    BadInput = 65,
    /// A broker, ledger or target cannot be reached, or the requested object does not exist.
    Unavailable = 69,
    /// A task ended that should not end.
    Internal = 70,
    /// It may succeed later: the server or the broker does not take it now, or the job is not known
    /// yet. Of a worker: the drain deadline passed, and unfinished deliveries were requeued.
    Temporary = 75,
    /// Rules refuse it: the permissions of the app or of the caller, a quota, or `before_accept`.
    NotPermitted = 77,
    /// The configuration is wrong.
    BadConfig = 78,
    /// A second signal ended the process, or a signal ended a command that only watched.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with its exit code.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl Failure {
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
        }
    }

    pub fn message(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            error: anyhow::Error::msg(message.into()),
        }
    }
}

/// Gives an error its exit code.
pub trait OrExit<T> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(exit, error))
    }
}
