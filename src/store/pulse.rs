//! Keeps heartbeats in Redis, and the times at which Redis was found to have gone back.

use std::sync::LazyLock;

use redis::Value;

use super::Store;
use super::connection::{Call, Script, broken, json};
use super::ledger::number;
use crate::ports::{ALIVE, Beat, Beaten, LedgerError, Pulse, Raised};

static BEAT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/beat.lua")));
static BEATS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/beats.lua")));
static RAISE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/raise.lua")));

impl Pulse for Store {
    async fn beat(&self, beat: &Beat) -> Result<Beaten, LedgerError> {
        let mut call = Call::new(&BEAT, 2, 3, 256);
        call.push(self.0.keys.beats())
            .push(self.0.keys.went_back())
            .push(format!("{:016x}", beat.process))
            .push(beat.number)
            .push(json(beat)?);
        // Recorded as an outcome is: no lane moves while an outcome could not be recorded.
        match self.0.connection.call_recorded(&call).await? {
            Value::Array(reply) if reply.len() == 2 => Ok(Beaten {
                number: number(&reply[0])?,
                went_back: number(&reply[1])? == 1,
            }),
            other => Err(broken(format!("beat says {other:?}"))),
        }
    }

    async fn raise(&self, seen: u64) -> Result<Raised, LedgerError> {
        let mut call = Call::new(&RAISE, 2, 1, 128);
        call.push(self.0.keys.sequence())
            .push(self.0.keys.went_back())
            .push(seen);
        match self.0.connection.call(&call).await? {
            Value::Array(reply) if reply.len() == 2 => Ok(Raised {
                number: number(&reply[0])?,
                went_back: number(&reply[1])? == 1,
            }),
            other => Err(broken(format!("raise says {other:?}"))),
        }
    }

    async fn beats(&self) -> Result<Vec<Beat>, LedgerError> {
        let mut call = Call::new(&BEATS, 1, 0, 64);
        call.push(self.0.keys.beats());
        let reply = self.0.connection.call(&call).await?;
        let (now_ms, beats): (u64, Vec<(String, String)>) =
            redis::from_redis_value(reply).map_err(broken)?;
        let alive = beats.iter().filter_map(|(process, text)| {
            let (at_ms, beat) = read(process, text)?;
            (u128::from(now_ms.saturating_sub(at_ms)) < ALIVE.as_millis()).then_some(beat)
        });
        Ok(alive.collect())
    }
}

/// Reads a heartbeat as `beat.lua` writes it; none if another version wrote it differently.
fn read(process: &str, text: &str) -> Option<(u64, Beat)> {
    let mut parts = text.splitn(3, ' ');
    let number = parts.next()?.parse().ok()?;
    let at_ms = parts.next()?.parse().ok()?;
    let beat: Beat = serde_json::from_str(parts.next()?).ok()?;
    let process = u64::from_str_radix(process, 16).ok()?;
    let beat = Beat {
        process,
        number,
        ..beat
    };
    Some((at_ms, beat))
}
