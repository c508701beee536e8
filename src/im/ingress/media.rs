//! Reads files and places, which all systems describe alike: by an address and further properties.
//!
//! A value that the model cannot hold, such as a malformed digest, is left out of the message.
//! Nothing is lost if the message goes to the system it was written for: the original fields go
//! there unchanged.

use super::loose::Loose;
use crate::domain::message::{LINE_BYTES_MAX, MessageDocument};

/// A system's names for the properties of a file. An empty name means that it does not have the
/// property.
#[derive(Clone, Copy)]
pub(in crate::im) struct Names {
    pub(in crate::im) url: &'static str,
    pub(in crate::im) name: &'static str,
    pub(in crate::im) size: &'static str,
    pub(in crate::im) format: &'static str,
    pub(in crate::im) md5: &'static str,
    pub(in crate::im) width: &'static str,
    pub(in crate::im) height: &'static str,
    pub(in crate::im) duration: &'static str,
    pub(in crate::im) cover: &'static str,
    /// Milliseconds of one unit of the duration.
    pub(in crate::im) unit_ms: u64,
}

/// A file as a message of type `kind`; `None` without its address.
pub(in crate::im) fn file(kind: &str, from: &Loose<'_>, names: &Names) -> Option<MessageDocument> {
    let text = |name| from.text(name).ok().flatten();
    let line = |name| text(name).filter(|text| text.len() <= LINE_BYTES_MAX);
    let pixels = |name| from.number::<u32>(name).ok().flatten();
    let duration = from.number::<u64>(names.duration).ok().flatten();
    let is = |kinds: &[&str]| kinds.contains(&kind);
    Some(MessageDocument {
        kind: Some(kind.to_owned()),
        url: Some(text(names.url)?),
        name: line(names.name),
        size: from.number(names.size).ok().flatten(),
        format: line(names.format).map(ending),
        md5: text(names.md5).filter(|md5| is_md5(md5)),
        width: pixels(names.width).filter(|_| is(&["image", "video"])),
        height: pixels(names.height).filter(|_| is(&["image", "video"])),
        duration_ms: duration
            .map(|duration| duration.saturating_mul(names.unit_ms))
            .filter(|_| is(&["audio", "video"])),
        cover: line(names.cover).filter(|_| is(&["image", "video"])),
        ..MessageDocument::default()
    })
}

/// A place; `None` without its coordinates.
pub(in crate::im) fn place(
    from: &Loose<'_>,
    latitude: &str,
    longitude: &str,
) -> Option<MessageDocument> {
    let degrees = |name| from.fraction(name).ok().flatten();
    Some(MessageDocument {
        kind: Some("location".to_owned()),
        latitude: Some(degrees(latitude)?),
        longitude: Some(degrees(longitude)?),
        title: from.text("title").ok().flatten(),
        ..MessageDocument::default()
    })
}

/// Turns `image/png`, which some callers write, into `png`.
fn ending(format: String) -> String {
    match format.rsplit_once('/') {
        Some((_, ending)) if !ending.is_empty() => ending.to_owned(),
        _ => format,
    }
}

fn is_md5(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}
