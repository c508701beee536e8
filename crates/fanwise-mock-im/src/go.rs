//! Reads JSON as a server written in Go does, which is stricter than serde in one way and laxer in
//! another.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Go decodes `null` into any field as its zero value.
pub(super) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Decodes a body into a struct. The error text is the one that Go would give, or close to it.
pub(super) fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    // serde would fill a struct from a JSON array by position; in Go that is a decode error.
    if body.trim_ascii_start().starts_with(b"{") {
        return serde_json::from_slice(body).map_err(|error| error.to_string());
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(_) => Err("json: cannot unmarshal into Go value of a struct type".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
