//! The port to directives of operators.

use std::future::Future;

use super::LedgerError;
use crate::domain::directive::{Directive, Kind, Subject};

/// The directives in force, shared by all workers. Workers read them often; they change seldom.
pub trait Directives: Clone + Send + Sync + 'static {
    /// Puts a directive in force. It replaces a directive of the same kind about the same subject.
    fn direct(
        &self,
        directive: &Directive,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send {
        self.direct_all(std::slice::from_ref(directive))
    }

    /// Puts directives in force together.
    fn direct_all(
        &self,
        directives: &[Directive],
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Ends a directive before its time. `Ok(false)`: there was none.
    fn lift(
        &self,
        subject: &Subject,
        kind: Kind,
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send {
        async move {
            let lifted = self.lift_all(&[(subject.clone(), kind)]).await?;
            Ok(lifted > 0)
        }
    }

    /// Ends directives together. Returns how many of them there were.
    fn lift_all(
        &self,
        directives: &[(Subject, Kind)],
    ) -> impl Future<Output = Result<u64, LedgerError>> + Send;

    /// Returns all directives, or `None` if their version is still `known`; then the call costs
    /// next to nothing. A version is above 0 once there was a directive, and is never used again,
    /// not even after the store lost its data.
    fn directives(
        &self,
        known: u64,
    ) -> impl Future<Output = Result<Option<Directed>, LedgerError>> + Send;
}

/// The directives of one version. Some may have expired.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directed {
    pub version: u64,
    pub all: Vec<Directive>,
}
