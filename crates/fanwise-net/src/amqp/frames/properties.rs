//! Rewrites the properties of a message so that the client can read them.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::{Reader, UNREADABLE, put_short};

/// Most values of the headers, including those of nested tables: in memory each takes much more
/// than on the wire.
const VALUES_MAX: usize = 4096;

/// Deepest nesting of tables and arrays. Real ones have a few levels (`x-death` has two); the
/// client reads them by recursion.
const DEPTH_MAX: usize = 16;

/// The kinds of properties.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Bytes(usize),
    Table,
}

use Kind::{Bytes, Table, Text};

/// All properties in their order on the wire; the first has the highest bit.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content_type", Text),
    ("content_encoding", Text),
    ("headers", Table),
    ("delivery_mode", Bytes(1)),
    ("priority", Bytes(1)),
    ("correlation_id", Text),
    ("reply_to", Text),
    ("expiration", Text),
    ("message_id", Text),
    ("timestamp", Bytes(8)),
    ("type", Text),
    ("user_id", Text),
    ("app_id", Text),
    ("cluster_id", Text),
];

/// The index of the headers among them.
const HEADERS: usize = 2;

const fn flag(index: usize) -> u16 {
    1 << (15 - index)
}

/// Class, weight and size of the body.
const FIXED_BYTES: usize = 12;

/// The content header, rewritten to at most `bytes_max` bytes.
pub(super) fn readable(payload: &[u8], bytes_max: usize) -> Cow<'_, [u8]> {
    let mut reader = Reader(payload);
    let (Some(fixed), Some(flags)) = (reader.take(FIXED_BYTES), reader.array()) else {
        return Cow::Borrowed(payload);
    };
    let mut found = Properties::decode(reader, u16::from_be_bytes(flags), bytes_max / 2);
    if found.changed.is_empty() && payload.len() <= bytes_max {
        return Cow::Borrowed(payload);
    }
    let mut out = found.write(fixed);
    if out.len() > bytes_max {
        found.drop_headers();
        out = found.write(fixed);
    }
    if out.len() > bytes_max {
        out = Properties::default().write(fixed);
    }
    Cow::Owned(out)
}

/// Properties in their wire form.
#[derive(Default)]
struct Properties {
    flags: u16,
    /// The properties before the headers, the entries of the headers, and the properties after
    /// them.
    parts: [Vec<u8>; 3],
    /// Names of the properties that were changed.
    changed: Vec<&'static str>,
}

impl Properties {
    fn decode(mut reader: Reader<'_>, flags: u16, headers_max: usize) -> Self {
        let mut it = Self::default();
        for (index, (name, kind)) in PROPERTIES.into_iter().enumerate() {
            if flags & flag(index) == 0 {
                continue;
            }
            let [before, headers, behind] = &mut it.parts;
            let part = match index.cmp(&HEADERS) {
                Ordering::Less => before,
                Ordering::Equal => headers,
                Ordering::Greater => behind,
            };
            let intact = match kind {
                Text => reader.short().map(|text| put_short(text, part)),
                Bytes(count) => reader.take(count).map(|bytes| {
                    part.extend_from_slice(bytes);
                    true
                }),
                Table => reader.long().map(|table| {
                    let mut room = Room {
                        bytes: headers_max,
                        values: VALUES_MAX,
                    };
                    room.entries(table, 0, true, part)
                }),
            };
            if intact.is_some() {
                it.flags |= flag(index);
            }
            if intact != Some(true) {
                it.changed.push(name);
            }
            if intact.is_none() {
                // Where the next property begins is not known any more.
                it.changed.push("what follows");
                return it;
            }
        }
        // More flags than there are properties, or bytes that no flag announces.
        let announced = PROPERTIES
            .iter()
            .enumerate()
            .fold(0, |all, (i, _)| all | flag(i));
        if flags & !announced != 0 || !reader.0.is_empty() {
            it.changed.push("what follows");
        }
        it
    }

    fn drop_headers(&mut self) {
        self.parts[1].clear();
        if !self.changed.contains(&PROPERTIES[HEADERS].0) {
            self.changed.push(PROPERTIES[HEADERS].0);
        }
    }

    fn write(&self, fixed: &[u8]) -> Vec<u8> {
        let [before, headers, behind] = &self.parts;
        let mut headers = headers.clone();
        let mut flags = self.flags;
        if !self.changed.is_empty() {
            flags |= flag(HEADERS);
            put_short(UNREADABLE.as_bytes(), &mut headers);
            headers.push(b'S');
            put_long(self.changed.join(", ").as_bytes(), &mut headers);
        }
        let mut out = fixed.to_vec();
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(before);
        if flags & flag(HEADERS) != 0 {
            put_long(&headers, &mut out);
        }
        out.extend_from_slice(behind);
        out
    }
}

/// The room that the headers have left.
struct Room {
    bytes: usize,
    values: usize,
}

impl Room {
    /// Writes the entries of a table or an array that can be read and fit. Returns whether they are
    /// unchanged.
    fn entries(&mut self, bytes: &[u8], depth: usize, named: bool, out: &mut Vec<u8>) -> bool {
        let mut reader = Reader(bytes);
        let mut intact = true;
        let mut entry = Vec::new();
        while !reader.0.is_empty() {
            let Some(values) = self.values.checked_sub(1) else {
                return false;
            };
            self.values = values;
            entry.clear();
            let Some(same) = self.entry(&mut reader, depth, named, &mut entry) else {
                return false;
            };
            // Nested entries count with the entry that holds them. A smaller entry may still fit.
            let fits = depth > 0 || entry.len() <= self.bytes;
            if fits {
                self.bytes = self
                    .bytes
                    .saturating_sub(if depth > 0 { 0 } else { entry.len() });
                out.extend_from_slice(&entry);
            }
            intact &= same && fits;
        }
        intact
    }

    /// One entry of a table or an array; `None` if its end is not known.
    fn entry(
        &mut self,
        reader: &mut Reader<'_>,
        depth: usize,
        named: bool,
        out: &mut Vec<u8>,
    ) -> Option<bool> {
        let mut intact = true;
        if named {
            intact &= put_short(reader.short()?, out);
        }
        let [kind] = reader.array()?;
        let bytes = match kind {
            b't' | b'b' | b'B' => reader.take(1)?,
            b's' | b'U' | b'u' => reader.take(2)?,
            b'I' | b'i' | b'f' => reader.take(4)?,
            b'D' => reader.take(5)?,
            b'L' | b'l' | b'd' | b'T' => reader.take(8)?,
            b'V' => &[],
            b'S' | b'x' => {
                let bytes = reader.long()?;
                out.push(kind);
                put_long(bytes, out);
                return Some(intact);
            }
            b'A' | b'F' => {
                let bytes = reader.long()?;
                if depth == DEPTH_MAX {
                    out.push(b'V');
                    return Some(false);
                }
                let mut inner = Vec::new();
                intact &= self.entries(bytes, depth + 1, kind == b'F', &mut inner);
                out.push(kind);
                put_long(&inner, out);
                return Some(intact);
            }
            _ => return None,
        };
        out.push(kind);
        out.extend_from_slice(bytes);
        Some(intact)
    }
}

fn put_long(bytes: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}
