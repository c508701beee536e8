//! Reads what a script returns.

use redis::Value;

use crate::domain::accounts::Accounts;
use crate::domain::slice::Shape;
use crate::ports::{JobProgress, LedgerError};
use crate::store::connection::broken;

/// The array that a script returns.
pub(in crate::store) struct ScriptReply(pub(super) Vec<Value>);

impl ScriptReply {
    pub(in crate::store) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(in crate::store) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in crate::store) fn new(value: Value) -> Result<Self, LedgerError> {
        match value {
            Value::Array(items) => Ok(Self(items)),
            other => Err(broken(format!("{other:?} where an array is expected"))),
        }
    }

    pub(in crate::store) fn bytes(&self, at: usize) -> Result<&[u8], LedgerError> {
        match self.0.get(at) {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            other => Err(broken(format!("{other:?} where a string is expected"))),
        }
    }

    pub(in crate::store) fn array(&self, at: usize) -> Result<Self, LedgerError> {
        match self.0.get(at) {
            Some(Value::Array(items)) => Ok(Self(items.clone())),
            other => Err(broken(format!("{other:?} where an array is expected"))),
        }
    }

    pub(super) fn text(&self, at: usize) -> Result<String, LedgerError> {
        String::from_utf8(self.bytes(at)?.to_vec()).map_err(broken)
    }

    pub(in crate::store) fn number(&self, at: usize) -> Result<u64, LedgerError> {
        self.0
            .get(at)
            .ok_or_else(|| broken("the reply is too short"))
            .and_then(number)
    }

    /// The shape in second place of the array.
    pub(in crate::store) fn shape(&self) -> Result<Shape, LedgerError> {
        Ok(Shape {
            buckets: self.number(1)? as u32,
        })
    }

    /// A version or a size, where 0 means none.
    pub(super) fn version(&self, at: usize) -> Result<Option<u32>, LedgerError> {
        Ok(Some(self.number(at)? as u32).filter(|version| *version > 0))
    }

    pub(in crate::store) fn progress(&self, from: usize) -> Result<JobProgress, LedgerError> {
        let at = |index: usize| self.number(from + index);
        Ok(JobProgress {
            accounts: Accounts {
                total: at(0)?,
                sent: at(1)?,
                duplicate: at(2)?,
                failed: at(3)?,
                uncertain: at(4)?,
                expired: at(5)?,
                cancelled: at(6)?,
                capped: at(9)?,
            },
            finished: at(7)? == 1,
            completed: at(8)? == 1,
        })
    }
}

pub(in crate::store) fn number(value: &Value) -> Result<u64, LedgerError> {
    match value {
        Value::Int(number) => u64::try_from(*number).map_err(broken),
        Value::BulkString(digits) => std::str::from_utf8(digits)
            .map_err(broken)?
            .parse()
            .map_err(broken),
        other => Err(broken(format!("{other:?} where a number is expected"))),
    }
}
