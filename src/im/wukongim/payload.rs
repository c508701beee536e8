//! Builds the payload of a message, before base64.
//!
//! The server accepts any bytes; the clients agree on their meaning: a JSON object with a `type`
//! and the fields of that type. The numbers and names here are those of WuKongIM's own SDKs
//! (WuKongIMFlutterSDK, `lib/type/const.dart` and `lib/model/`) and of TangSengDaoDao, the
//! application they were made with (TangSengDaoDaoServerLib, `common/msg.go`; the contents of
//! TangSengDaoDaoWeb). Locations, files, tips and mentions follow TangSengDaoDao. Applications with
//! other types send `custom` or `raw`. A property of a file without a place in the convention keeps
//! its name from the job: clients ignore it.

use std::borrow::Cow;

use serde::Serialize;

use crate::domain::message::{Content, File};
use crate::im::json;

const TEXT: u16 = 1;
const IMAGE: u16 = 2;
const VOICE: u16 = 4;
const VIDEO: u16 = 5;
const LOCATION: u16 = 6;
const FILE: u16 = 8;
/// A line in grey that users cannot act on.
const TIP: u16 = 2000;

/// A text, which may mention users.
#[derive(Serialize)]
struct Words<'a> {
    r#type: u16,
    content: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mention: Option<Mention<'a>>,
}

#[derive(Serialize)]
struct Mention<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    uids: &'a [String],
    /// 1 to mention all; never `true`, which some SDKs do not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    all: Option<u8>,
}

#[derive(Serialize)]
struct Place<'a> {
    r#type: u16,
    lat: f64,
    lng: f64,
    title: &'a str,
}

#[derive(Serialize)]
struct Media<'a> {
    r#type: u16,
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extension: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    md5: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    height: Option<u32>,
    /// Duration of a voice message in whole seconds.
    #[serde(rename = "timeTrad", skip_serializing_if = "Option::is_none")]
    time_trad: Option<u64>,
    /// Duration of a video in whole seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cover: Option<&'a str>,
}

/// The payload of a message; empty if native fields provide it or if it is missing.
pub(super) fn payload(content: &Content) -> Cow<'_, [u8]> {
    match content {
        Content::Text(text) => words(TEXT, text, None),
        Content::Notice(text) => words(TIP, text, None),
        Content::Mention {
            text,
            users,
            everybody,
        } => {
            let mention = Mention {
                uids: users,
                all: everybody.then_some(1),
            };
            words(TEXT, text, Some(mention))
        }
        Content::Image(file) => media(IMAGE, file),
        Content::Audio(file) => media(VOICE, file),
        Content::Video(file) => media(VIDEO, file),
        Content::File(file) => media(FILE, file),
        Content::Location {
            latitude,
            longitude,
            title,
        } => written(&Place {
            r#type: LOCATION,
            lat: *latitude,
            lng: *longitude,
            title,
        }),
        Content::Custom(data) | Content::Raw(data) => data.get().as_bytes().into(),
        Content::Native | Content::Template(_) => Cow::Borrowed(&[]),
    }
}

fn words<'a>(r#type: u16, content: &str, mention: Option<Mention<'_>>) -> Cow<'a, [u8]> {
    written(&Words {
        r#type,
        content,
        mention,
    })
}

fn media<'a>(r#type: u16, file: &File) -> Cow<'a, [u8]> {
    // Rounded up, so that a short sound does not have the length 0.
    let seconds = file.duration_ms.map(|length| length.div_ceil(1000));
    written(&Media {
        r#type,
        url: &file.url,
        name: file.name.as_deref(),
        size: file.size,
        extension: file.format.as_deref(),
        md5: file.md5.as_deref(),
        width: file.width,
        height: file.height,
        time_trad: seconds.filter(|_| r#type == VOICE),
        second: seconds.filter(|_| r#type == VIDEO),
        cover: file.cover.as_deref(),
    })
}

fn written<'a>(payload: &impl Serialize) -> Cow<'a, [u8]> {
    let mut bytes = Vec::new();
    json::push(&mut bytes, payload);
    bytes.into()
}
