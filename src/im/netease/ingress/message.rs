//! Reads the messages of both versions of the API.

use serde_json::value::RawValue;

use crate::domain::message::MessageDocument;
use crate::im::ingress::loose::Loose;
use crate::im::ingress::media::{self, Names};

/// The numbers of the types that can be sent.
pub(in crate::im) const TYPES: [i64; 8] = [0, 1, 2, 3, 4, 6, 10, CUSTOM];

const TEXT: i64 = 0;
const IMAGE: i64 = 1;
const AUDIO: i64 = 2;
const VIDEO: i64 = 3;
const LOCATION: i64 = 4;
const FILE: i64 = 6;
const TIP: i64 = 10;
pub(in crate::im) const CUSTOM: i64 = 100;

/// A version's names for the properties of a file or a place.
pub(in crate::im) struct Described {
    pub(in crate::im) file: Names,
    pub(in crate::im) latitude: &'static str,
    pub(in crate::im) longitude: &'static str,
}

/// The names of version 1.
pub(super) const NAMES: Described = Described {
    file: Names {
        url: "url",
        name: "name",
        size: "size",
        format: "ext",
        md5: "md5",
        width: "w",
        height: "h",
        duration: "dur",
        cover: "",
        unit_ms: 1,
    },
    latitude: "lat",
    longitude: "lng",
};

/// Whether a type contains only text: a text or a tip.
pub(in crate::im) fn is_text(number: i64) -> bool {
    number == TEXT || number == TIP
}

/// A text or a tip.
pub(in crate::im) fn words(number: i64, text: String) -> MessageDocument {
    let kind = if number == TIP { "notice" } else { "text" };
    MessageDocument {
        kind: Some(kind.to_owned()),
        text: Some(text),
        ..MessageDocument::default()
    }
}

pub(in crate::im) fn custom(data: Box<RawValue>) -> MessageDocument {
    MessageDocument {
        kind: Some("custom".to_owned()),
        data: Some(data),
        ..MessageDocument::default()
    }
}

/// A file or a place; `None` for a file without an address or a place without coordinates.
pub(in crate::im) fn described(
    number: i64,
    from: &Loose<'_>,
    names: &Described,
) -> Option<MessageDocument> {
    let kind = match number {
        IMAGE => "image",
        AUDIO => "audio",
        VIDEO => "video",
        FILE => "file",
        LOCATION => return media::place(from, names.latitude, names.longitude),
        _ => return None,
    };
    media::file(kind, from, &names.file)
}
