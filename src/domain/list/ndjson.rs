//! Reads the lines of NDJSON: a recipient as a text or a number, or an object that holds one.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::heading::{KEYS, rank};
use crate::domain::audience::Member;
use crate::domain::fields::{TWICE, shorten};

pub(super) fn from_json<'a>(line: &'a str, column: Option<&str>) -> Result<Member<'a>, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let member = Line { column }.deserialize(&mut json);
    let member = member.and_then(|member| json.end().map(|()| member));
    member.map_err(|error| {
        // serde counts lines within this line, so its line number is always 1.
        let what = error.to_string().replace(" at line 1 column", " at column");
        shorten(&what, WHAT_SHOWN).into_owned()
    })
}

/// The longest text about one line; it may repeat kilobytes of the line.
const WHAT_SHOWN: usize = 300;

/// Reads one line of NDJSON.
struct Line<'c> {
    column: Option<&'c str>,
}

impl Line<'_> {
    /// The rank of a field as the recipient's field; the lowest one counts.
    fn rank(&self, key: &str) -> Option<usize> {
        match self.column {
            Some(column) => (key == column).then_some(0),
            None => rank(key),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Line<'_> {
    type Value = Member<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Member<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Line<'_> {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a recipient, or an object that holds one")
    }

    fn visit_borrowed_str<E>(self, id: &'de str) -> Result<Member<'de>, E> {
        let id = Cow::Borrowed(id);
        Ok(Member { id, vars: None })
    }

    fn visit_str<E>(self, id: &str) -> Result<Member<'de>, E> {
        let id = Cow::Owned(id.to_owned());
        Ok(Member { id, vars: None })
    }

    fn visit_u64<E>(self, id: u64) -> Result<Member<'de>, E> {
        let id = Cow::Owned(id.to_string());
        Ok(Member { id, vars: None })
    }

    fn visit_i64<E>(self, id: i64) -> Result<Member<'de>, E> {
        let id = Cow::Owned(id.to_string());
        Ok(Member { id, vars: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member<'de>, A::Error> {
        let mut id: Option<(usize, Cow<'de, str>)> = None;
        let mut vars = None;
        let twice = |key: &str| {
            let what = format!("`{}` {TWICE}", shorten(key, 40));
            serde::de::Error::custom(what)
        };
        while let Some(Key(key)) = map.next_key()? {
            match (self.rank(&key), &id) {
                (Some(rank), Some((found, _))) if rank == *found => return Err(twice(&key)),
                (Some(rank), Some((found, _))) if rank > *found => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
                (Some(rank), _) => id = Some((rank, map.next_value::<Id<'de>>()?.0)),
                (None, _) if key == "vars" => {
                    if vars.replace(map.next_value::<&'de RawValue>()?).is_some() {
                        return Err(twice(&key));
                    }
                }
                (None, _) => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
            }
        }
        let looked_for = || self.column.map_or_else(|| KEYS.join(", "), str::to_owned);
        let (_, id) = id.ok_or_else(|| {
            let what = format!("no recipient in it; looked for: {}", looked_for());
            serde::de::Error::custom(what)
        })?;
        Ok(Member { id, vars })
    }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// An id: a text, or the number of a table row.
struct Id<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Id<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Id<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a number")
            }
            fn visit_borrowed_str<E>(self, id: &'de str) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Borrowed(id)))
            }
            fn visit_str<E>(self, id: &str) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Owned(id.to_owned())))
            }
            fn visit_u64<E>(self, id: u64) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Owned(id.to_string())))
            }
            fn visit_i64<E>(self, id: i64) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Owned(id.to_string())))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
