//! Rewrites methods of the broker that carry texts which others may have written.

use std::borrow::Cow;

use super::{Reader, put_short};

/// A text to check, or a number of bytes to skip.
#[derive(Clone, Copy)]
enum Field {
    Text,
    Bytes(usize),
}

use Field::{Bytes, Text};

const TUNE: [u8; 4] = [0, 10, 0, 30];

/// The fields of the method, up to its last text; `None` if no other party writes into it.
fn fields(method: [u8; 4]) -> Option<&'static [Field]> {
    Some(match method {
        // connection.close and channel.close: the text is cut at 255 bytes, also within a
        // character.
        [0, 10, 0, 50] | [0, 20, 0, 40] => &[Bytes(2), Text],
        // connection.blocked: the reason.
        [0, 10, 0, 60] => &[Text],
        // basic.cancel: the consumer.
        [0, 60, 0, 30] => &[Text],
        // basic.return: the code, the text, the exchange and the routing key.
        [0, 60, 0, 50] => &[Bytes(2), Text, Text, Text],
        // basic.deliver: the consumer, the delivery, the exchange and the routing key.
        [0, 60, 0, 60] => &[Text, Bytes(9), Text, Text],
        // basic.get-ok: the delivery, the exchange and the routing key.
        [0, 60, 0, 71] => &[Bytes(9), Text, Text],
        _ => return None,
    })
}

/// The method, with all its texts in UTF-8.
pub(super) fn readable(payload: &[u8]) -> Cow<'_, [u8]> {
    let whole = Cow::Borrowed(payload);
    let mut reader = Reader(payload);
    let Some(method) = reader.array() else {
        return whole;
    };
    let Some(fields) = fields(method) else {
        return whole;
    };
    let mut out = method.to_vec();
    let mut intact = true;
    for field in fields {
        let done = match field {
            Text => reader.short().map(|text| {
                intact &= put_short(text, &mut out);
            }),
            Bytes(count) => reader
                .take(*count)
                .map(|bytes| out.extend_from_slice(bytes)),
        };
        if done.is_none() {
            return whole;
        }
    }
    if intact {
        return whole;
    }
    out.extend_from_slice(reader.0);
    Cow::Owned(out)
}

/// The largest frame that the broker takes, if this method says so. The broker says 0 for any size.
pub(super) fn frame_max(payload: &[u8]) -> Option<usize> {
    let mut reader = Reader(payload);
    if reader.array()? != TUNE {
        return None;
    }
    let _channels: [u8; 2] = reader.array()?;
    let bytes = u32::from_be_bytes(reader.array()?);
    usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}
