//! Looks up a message in doubt: `GET /message/byclientmsgno`, from 2.2.2 on.
//!
//! It can only confirm a message. 2.x stores after it has answered, and forgets messages that it
//! could not store. So a message that is not found may still arrive: a miss proves nothing.

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde::Deserialize;

use crate::codec::push_segment;
use crate::domain::message_id::MessageId;
use crate::ports::{HttpReply, Probed, Request};

/// The suffix of the id of the channel that holds a channel's commands.
const COMMANDS: &str = "____cmd";

/// The channel type of a user.
pub(super) const PERSON: u8 = 1;

/// The parts that the look-ups of a job have in common.
pub(super) struct LookUp {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) sender: String,
    pub(super) channel_type: u8,
    pub(super) sync_once: bool,
}

impl LookUp {
    pub(super) fn request(&self, recipient: &str, client_msg_no: &str) -> Option<Request> {
        let mut channel = match self.channel_type {
            PERSON => pair(&self.sender, recipient),
            _ => recipient.to_owned(),
        };
        if self.sync_once {
            channel.push_str(COMMANDS);
        }
        let mut uri = format!("{}?channel_id=", self.uri);
        push_segment(&mut uri, &channel);
        uri.push_str(&format!(
            "&channel_type={}&client_msg_no=",
            self.channel_type
        ));
        push_segment(&mut uri, client_msg_no);
        Some(Request {
            method: Method::GET,
            uri: uri.parse().ok()?,
            headers: self.headers.clone(),
            body: Bytes::new(),
        })
    }
}

/// The internal id of the channel between two users: the one with the larger CRC-32 comes first.
fn pair(sender: &str, recipient: &str) -> String {
    if crc32(sender.as_bytes()) > crc32(recipient.as_bytes()) {
        format!("{sender}@{recipient}")
    } else {
        format!("{recipient}@{sender}")
    }
}

/// CRC-32 as in IEEE 802.3 and Go's `hash/crc32`. It works bit by bit, since only look-ups need it.
fn crc32(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), bit);
    !bytes.iter().fold(u32::MAX, byte)
}

/// The message with that number, or `{"status":404}` with the HTTP status 200.
#[derive(Deserialize)]
struct Found {
    message_id: Option<i64>,
    client_msg_no: Option<String>,
}

pub(super) fn read_reply(client_msg_no: &str, reply: &HttpReply) -> Probed {
    let found = serde_json::from_slice::<Found>(&reply.body).ok();
    let ours = found.filter(|it| it.client_msg_no.as_deref() == Some(client_msg_no));
    let id = ours.and_then(|it| it.message_id).filter(|id| *id != 0);
    match id {
        Some(id) if reply.status == 200 => Probed::Sent(MessageId::new(id.to_string(), None)),
        _ => Probed::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order follows Python's `zlib.crc32`, which computes the same as Go.
    #[test]
    fn the_uid_with_the_larger_checksum_comes_first() {
        for (text, checksum) in [
            ("123456789", 0xcbf4_3926),
            ("____system", 0x276a_f308),
            ("u1", 0x424f_9f76),
            ("news", 0x1dd3_9950),
            ("ü", 0x63d9_69d5),
        ] {
            assert_eq!(crc32(text.as_bytes()), checksum, "{text}");
        }
        assert_eq!(pair("____system", "u1"), "u1@____system");
        assert_eq!(pair("u1", "____system"), "u1@____system");
        assert_eq!(pair("news", "ü"), "ü@news");
        assert_eq!(pair("u1", "u1"), "u1@u1");
    }
}
