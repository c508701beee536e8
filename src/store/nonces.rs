//! Remembers the nonces of signed requests: one key each, which expires by itself.

use std::time::Duration;

use redis::Value;

use super::Store;
use crate::ports::{LedgerError, Nonces};

impl Nonces for Store {
    async fn is_new(&self, nonce: &str, lives: Duration) -> Result<bool, LedgerError> {
        let mut cmd = redis::cmd("SET");
        cmd.arg(self.0.keys.nonce(nonce))
            .arg(1)
            .arg("NX")
            .arg("PX")
            .arg(lives.as_millis().max(1) as u64);
        Ok(self.0.connection.command(&cmd).await? != Value::Nil)
    }

    async fn release(&self, nonce: &str) -> Result<(), LedgerError> {
        let mut cmd = redis::cmd("DEL");
        cmd.arg(self.0.keys.nonce(nonce));
        self.0.connection.command(&cmd).await?;
        Ok(())
    }
}
