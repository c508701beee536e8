//! Implements the port of frequency caps: per recipient, the units of the jobs that count.
//!
//! The units of one cap are in one hash slot, in up to 65,536 hashes. A server with default settings
//! stores a hash compactly while it has at most 128 recipients with up to five units each.

use std::sync::LazyLock;

use super::Store;
use super::connection::{Call, Script, broken};
use crate::domain::frequency_cap::UnitOwner;
use crate::domain::ids::Fingerprint;
use crate::ports::{CapUnits, FrequencyCaps, LedgerError};

static TAKE_UNITS: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/take_units.lua")));
static GIVE_BACK_UNITS: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/give_back_units.lua")));

/// Recipients of one script call: some milliseconds of the server, which does nothing else
/// meanwhile.
const AT_ONCE: usize = 1000;

impl FrequencyCaps for Store {
    async fn take_units(&self, units: CapUnits<'_>) -> Result<Vec<bool>, LedgerError> {
        let mut taken = Vec::with_capacity(units.recipients.len());
        for recipients in units.recipients.chunks(AT_ONCE) {
            let mut call = self.units_call(&TAKE_UNITS, &units, recipients.len());
            call.push(units.cap.max)
                .push(units.cap.period_ms())
                .push(packed(recipients));
            let reply = self.0.connection.call(&call).await?;
            let flags: Vec<u8> = redis::from_redis_value(reply).map_err(broken)?;
            if flags.len() != recipients.len() {
                return Err(broken(format!(
                    "{} answers for {} recipients",
                    flags.len(),
                    recipients.len()
                )));
            }
            taken.extend(flags.iter().map(|flag| *flag == b'1'));
        }
        Ok(taken)
    }

    async fn give_back_units(&self, units: CapUnits<'_>) -> Result<(), LedgerError> {
        for recipients in units.recipients.chunks(AT_ONCE) {
            let mut call = self.units_call(&GIVE_BACK_UNITS, &units, recipients.len());
            call.push(packed(recipients));
            self.0.connection.call(&call).await?;
        }
        Ok(())
    }
}

impl Store {
    /// A call up to and with its first argument, the owner.
    fn units_call<'a>(
        &self,
        script: &'a Script,
        units: &CapUnits<'_>,
        recipients: usize,
    ) -> Call<'a> {
        let mut call = Call::new(script, 1, 4, 128 + 8 * recipients);
        let UnitOwner(owner) = units.job.into();
        call.push(self.0.keys.cap(units)).push(&owner);
        call
    }
}

fn packed(recipients: &[Fingerprint]) -> Vec<u8> {
    recipients.iter().flat_map(|it| it.to_bytes()).collect()
}
