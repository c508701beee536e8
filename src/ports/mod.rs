//! Defines what the worker and the services need from a broker, a ledger, a limiter and a target.
//!
//! Each contract says what `Ok` means, what is durable on return, and what the caller must do after
//! an error. The engines (`amqp` with `store`, or `embedded`) implement the contracts of broker and
//! ledger, the adapters in `im` implement [`Target`]. Nothing in this module depends on one of
//! them.

mod backup;
mod broker;
mod directives;
mod frequency_caps;
mod job_record;
mod ledger;
mod limiter;
mod message_ids;
mod nonces;
mod outline;
mod pulse;
mod quotas;
mod retained;
mod steering;
mod sub_lanes;
mod target;
mod templates;
mod transport;

pub use self::backup::*;
pub use self::broker::*;
pub use self::directives::*;
pub use self::frequency_caps::*;
pub use self::job_record::*;
pub use self::ledger::*;
pub use self::limiter::*;
pub use self::message_ids::*;
pub use self::nonces::*;
pub use self::outline::*;
pub use self::pulse::*;
pub use self::quotas::*;
pub use self::retained::*;
pub use self::steering::*;
pub use self::sub_lanes::*;
pub use self::target::*;
pub use self::templates::*;
pub use self::transport::*;
pub use crate::domain::delivery::ClaimState;
pub use crate::domain::directive::Scope;

/// Everything that one engine stores besides messages: the ledger, the ids of messages, the sub-lanes of jobs, the limiter,
/// the directives, the stored messages, the quotas, the frequency caps, the nonces and the heartbeats.
pub trait Store:
    Ledger
    + MessageIds
    + Steering
    + Upkeep
    + SubLanes
    + Limiter
    + Directives
    + Templates
    + Quotas
    + FrequencyCaps
    + Nonces
    + Pulse
{
}

impl<
    S: Ledger
        + MessageIds
        + Steering
        + Upkeep
        + SubLanes
        + Limiter
        + Directives
        + Templates
        + Quotas
        + FrequencyCaps
        + Nonces
        + Pulse,
> Store for S
{
}
