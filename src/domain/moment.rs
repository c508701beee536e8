//! Writes times for readers outside: RFC 3339 texts in UTC, as in `2026-01-31T12:00:00Z`. Inside, and
//! in the stores, times are milliseconds since 1970.
//!
//! The functions are for `#[serde(with = "…")]`. They also read milliseconds, which earlier versions
//! wrote.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use jiff::Timestamp;

/// A time in milliseconds since 1970, as it is written outside.
#[derive(Clone, Copy)]
struct Moment(u64);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let at = Timestamp::from_millisecond(self.0.cast_signed()).unwrap_or_default();
        serializer.collect_str(&at)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Milliseconds(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Milliseconds(ms) => Ok(Self(ms)),
            Written::Text(text) => {
                let at: Timestamp = text.parse().map_err(de::Error::custom)?;
                Ok(Self(at.as_millisecond().max(0).cast_unsigned()))
            }
        }
    }
}

/// A time as it is written outside.
pub fn text(ms: u64) -> String {
    let at = Timestamp::from_millisecond(ms.cast_signed()).unwrap_or_default();
    at.to_string()
}

pub fn serialize<S: Serializer>(ms: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    Moment(*ms).serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(Moment::deserialize(deserializer)?.0)
}

/// The same for a time that may be missing; also with `#[serde(default)]`.
pub mod optional {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Moment;

    pub fn serialize<S: Serializer>(ms: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        ms.map(Moment).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        let at = Option::<Moment>::deserialize(deserializer)?;
        Ok(at.map(|at| at.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Times {
        #[serde(rename = "at", alias = "at_ms", with = "super")]
        at_ms: u64,
        #[serde(
            rename = "end",
            alias = "end_ms",
            with = "super::optional",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        end_ms: Option<u64>,
    }

    #[test]
    fn times_are_texts_outside_and_milliseconds_are_still_read() {
        let times = |at_ms, end_ms| Times { at_ms, end_ms };
        for (json, expected) in [
            (r#"{"at":"1970-01-01T00:00:01.5Z"}"#, times(1500, None)),
            (
                r#"{"at":"1970-01-01T00:00:01Z","end":"1970-01-01T00:00:02Z"}"#,
                times(1000, Some(2000)),
            ),
        ] {
            assert_eq!(serde_json::to_string(&expected).unwrap(), json);
            let read: Times = serde_json::from_str(json).unwrap();
            assert_eq!(read, expected);
        }
        let earlier: Times = serde_json::from_str(r#"{"at_ms":7,"end_ms":8}"#).unwrap();
        assert_eq!(earlier, times(7, Some(8)));
        assert!(serde_json::from_str::<Times>(r#"{"at":"soon"}"#).is_err());
    }
}
