//! Builds a message's type number and the JSON object that describes its file or place, for both
//! versions of the API.

use serde::Serialize;

use crate::domain::message::{Content, File};
use crate::im::json;

/// The number of a message's type; `None` for contents that contain their own type.
pub(in crate::im) fn number(content: &Content) -> Option<u8> {
    Some(match content {
        // A mention arrives as its text only: the API cannot mention users.
        Content::Text(_) | Content::Mention { .. } => 0,
        Content::Image(_) => 1,
        Content::Audio(_) => 2,
        Content::Video(_) => 3,
        Content::Location { .. } => 4,
        Content::File(_) => 6,
        Content::Notice(_) => 10,
        Content::Custom(_) => 100,
        Content::Raw(_) | Content::Native | Content::Template(_) => return None,
    })
}

/// The text of a text message.
pub(in crate::im) fn text(content: &Content) -> Option<&str> {
    match content {
        Content::Text(text) | Content::Notice(text) | Content::Mention { text, .. } => Some(text),
        _ => None,
    }
}

/// The names of members that differ between the versions.
pub(in crate::im) struct Names {
    pub(in crate::im) width: &'static str,
    pub(in crate::im) height: &'static str,
    pub(in crate::im) duration: &'static str,
    pub(in crate::im) longitude: &'static str,
    pub(in crate::im) latitude: &'static str,
}

impl Names {
    /// The object that describes a file or a place, or an application's own object.
    pub(in crate::im) fn object(&self, content: &Content) -> Option<String> {
        match content {
            Content::Image(file)
            | Content::Audio(file)
            | Content::Video(file)
            | Content::File(file) => Some(self.file(file)),
            Content::Location {
                latitude,
                longitude,
                title,
            } => {
                let mut object = Object::new();
                object.member("title", title);
                object.member(self.longitude, longitude);
                object.member(self.latitude, latitude);
                Some(object.close())
            }
            Content::Custom(data) => Some(data.get().to_owned()),
            _ => None,
        }
    }

    fn file(&self, file: &File) -> String {
        let mut object = Object::new();
        object.member("url", &file.url);
        object.some("name", file.name.as_ref());
        object.some("md5", file.md5.as_ref());
        object.some("size", file.size);
        object.some("ext", file.format.as_ref());
        object.some(self.width, file.width);
        object.some(self.height, file.height);
        object.some(self.duration, file.duration_ms);
        object.close()
    }
}

/// A JSON object, built member by member in the order of the calls.
pub(in crate::im) struct Object(Vec<u8>);

impl Object {
    pub(in crate::im) fn new() -> Self {
        Self(b"{".to_vec())
    }

    pub(in crate::im) fn member(&mut self, name: &str, value: impl Serialize) {
        if !self.is_empty() {
            self.0.push(b',');
        }
        json::push_string(&mut self.0, name);
        self.0.push(b':');
        json::push(&mut self.0, &value);
    }

    pub(in crate::im) fn some(&mut self, name: &str, value: Option<impl Serialize>) {
        if let Some(value) = value {
            self.member(name, value);
        }
    }

    pub(in crate::im) fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    pub(in crate::im) fn close(mut self) -> String {
        self.0.push(b'}');
        crate::json::written(self.0)
    }

    /// The object, or `None` if it has no members.
    pub(in crate::im) fn close_some(self) -> Option<String> {
        (!self.is_empty()).then(|| self.close())
    }
}
