//! Reads the content of each type as a message.
//!
//! A target of OpenIM checks contents when the job is made. This module requires only the fields
//! without which there is no message.

use serde_json::value::RawValue;

use super::{ARGS, Refused};
use crate::domain::message::MessageDocument;
use crate::im::ingress::loose::Loose;
use crate::im::ingress::media::{self, Names};
use crate::im::ingress::quoted;

const TEXT: i32 = 101;
const PICTURE: i32 = 102;
const VOICE: i32 = 103;
const VIDEO: i32 = 104;
const FILE: i32 = 105;
const AT: i32 = 106;
const CUSTOM: i32 = 110;
const QUOTE: i32 = 114;
const MARKDOWN: i32 = 118;
/// A notice of a notification account.
pub(super) const NOTICE: i32 = 1400;

/// The id that mentions all users.
const EVERYBODY: &str = "AtAllTag";

const OF_PICTURE: Names = Names {
    url: "url",
    name: "",
    size: "size",
    format: "type",
    md5: "uuid",
    width: "width",
    height: "height",
    duration: "",
    cover: "",
    unit_ms: 1000,
};
const OF_VOICE: Names = Names {
    url: "sourceUrl",
    size: "dataSize",
    format: "soundType",
    duration: "duration",
    ..OF_PICTURE
};
const OF_VIDEO: Names = Names {
    url: "videoUrl",
    size: "videoSize",
    format: "videoType",
    md5: "videoUUID",
    width: "snapshotWidth",
    height: "snapshotHeight",
    duration: "duration",
    cover: "snapshotUrl",
    ..OF_PICTURE
};
const OF_FILE: Names = Names {
    url: "sourceUrl",
    name: "fileName",
    size: "fileSize",
    format: "fileType",
    ..OF_PICTURE
};

/// The message of a content, and whether it expresses the content completely.
pub(super) fn message(
    content_type: i32,
    from: &Loose<'_>,
    mentions_max: usize,
) -> Result<(MessageDocument, bool), Refused> {
    let needed = |name: &str| {
        let text = from.text(name).map_err(|wrong| args(wrong.to_string()))?;
        text.ok_or_else(|| args(format!("content.{name} is missing")))
    };
    let described = |file: Option<MessageDocument>, name: &str| {
        file.ok_or_else(|| args(format!("content.{name} is missing")))
    };
    let only = |names: &[&str]| !from.has_more_than(names);
    Ok(match content_type {
        TEXT => (words("text", needed("content")?), only(&["content"])),
        MARKDOWN => (words("text", needed("content")?), false),
        QUOTE => (words("text", needed("text")?), false),
        NOTICE => (words("notice", needed("text")?), false),
        PICTURE => (described(picture(from), "sourcePicture.url")?, false),
        VOICE => {
            let file = media::file("audio", from, &OF_VOICE);
            (described(file, OF_VOICE.url)?, false)
        }
        VIDEO => {
            let file = media::file("video", from, &OF_VIDEO);
            (described(file, OF_VIDEO.url)?, false)
        }
        FILE => {
            let file = media::file("file", from, &OF_FILE);
            (described(file, OF_FILE.url)?, false)
        }
        AT => (mention(needed("text")?, from, mentions_max)?, false),
        CUSTOM => {
            let whole = ["description", "extension"]
                .iter()
                .all(|name| from.text(name).is_ok_and(|text| text.is_none()));
            (custom(&needed("data")?), whole)
        }
        _ => return Err(args("not support err contentType")),
    })
}

fn args(detail: impl Into<String>) -> Refused {
    Refused::new(ARGS, detail)
}

fn words(kind: &str, text: String) -> MessageDocument {
    MessageDocument {
        kind: Some(kind.to_owned()),
        text: Some(text),
        ..MessageDocument::default()
    }
}

fn picture(from: &Loose<'_>) -> Option<MessageDocument> {
    let part = |name: &str| {
        let json = from.object(name).ok().flatten()?;
        media::file("image", &Loose::parse(name, &json).ok()?, &OF_PICTURE)
    };
    let whole = part("sourcePicture").or_else(|| part("bigPicture"))?;
    // A cover that is the picture itself is not a cover.
    let cover = part("snapshotPicture").and_then(|part| part.url);
    Some(MessageDocument {
        cover: cover.filter(|cover| Some(cover) != whole.url.as_ref()),
        ..whole
    })
}

fn mention(text: String, from: &Loose<'_>, most: usize) -> Result<MessageDocument, Refused> {
    let users = from.texts("atUserList");
    let mut users = users
        .map_err(|wrong| args(wrong.to_string()))?
        .unwrap_or_default();
    if users.len() > most {
        return Err(args(format!("content.atUserList holds more than {most}")));
    }
    let named = users.len();
    users.retain(|user| user != EVERYBODY);
    Ok(MessageDocument {
        everybody: (users.len() < named).then_some(true),
        users: (!users.is_empty()).then_some(users),
        ..words("mention", text)
    })
}

/// The data of an application: the object or list inside the text, or else the text.
fn custom(data: &str) -> MessageDocument {
    let json = data.starts_with(['{', '[']);
    let json = json.then(|| RawValue::from_string(data.to_owned()).ok());
    MessageDocument {
        kind: Some("custom".to_owned()),
        data: json.flatten().or_else(|| quoted(data)),
        ..MessageDocument::default()
    }
}
