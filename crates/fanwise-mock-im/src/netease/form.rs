//! Reads the parameters of a call as a Java servlet does: only from a body with the content type of
//! a form, and without parameters that cannot be decoded.

use http::header::CONTENT_TYPE;

use crate::Call;
use crate::webhook::percent_decoded;

const FORM: &str = "application/x-www-form-urlencoded";

pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn from_call(call: &Call) -> Form {
        let announced = call.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        if !announced.to_ascii_lowercase().starts_with(FORM) {
            return Form(Vec::new());
        }
        let text = String::from_utf8_lossy(&call.body);
        let parameter = |text: &str| {
            let (name, value) = text.split_once('=')?;
            Some((decoded(name)?, decoded(value)?))
        };
        Form(text.split('&').filter_map(parameter).collect())
    }

    /// A parameter that is present and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut named = self.0.iter().filter(|(given, _)| given == name);
        let (_, value) = named.next()?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

fn decoded(text: &str) -> Option<String> {
    percent_decoded(&text.replace('+', " "))
}
