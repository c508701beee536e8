//! Remembers the nonces of signed requests: one key each, which expires by itself.

use std::time::Duration;

use redis::Value;

use super::Store;
use crate::ports::{LedgerError, Nonces};

impl Nonces for Store {
    async fn is_new(&self, nonce: &str, lives: Duration) -> Result<bool, LedgerError> {
        // In a cluster the same command may be sent twice; the mark tells it from another request.
        let mark = fastrand::u64(..).to_string();
        let mut cmd = redis::cmd("SET");
        cmd.arg(self.0.keys.nonce(nonce))
            .arg(&mark)
            .arg("NX")
            .arg("GET")
            .arg("PX")
            .arg(lives.as_millis().max(1) as u64);
        Ok(match self.0.connection.command(&cmd).await? {
            Value::Nil => true,
            stood => stood == Value::BulkString(mark.into_bytes()),
        })
    }

    async fn release(&self, nonce: &str) -> Result<(), LedgerError> {
        let mut cmd = redis::cmd("DEL");
        cmd.arg(self.0.keys.nonce(nonce));
        self.0.connection.command(&cmd).await?;
        Ok(())
    }
}
