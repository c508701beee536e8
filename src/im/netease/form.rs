//! Encodes `application/x-www-form-urlencoded` bodies.
//!
//! Everything but letters, digits and `-._~` is percent-encoded, a space as `%20`. Readers that
//! take `+` for a space and readers that do not get the same result.

use crate::codec::push_percent;

/// Fields in the order in which they are sent. Each name occurs once.
#[derive(Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Sets a field. A later value of a name replaces the earlier one, in its position.
    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    pub(super) fn set_some(&mut self, name: &str, value: Option<impl Into<String>>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        Some(value)
    }

    /// The body up to the value of one more field, `last`.
    pub(super) fn encode_up_to(&self, last: &str) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, value) in &self.0 {
            push_percent(&mut body, name.as_bytes());
            body.push(b'=');
            push_percent(&mut body, value.as_bytes());
            body.push(b'&');
        }
        push_percent(&mut body, last.as_bytes());
        body.push(b'=');
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_means_nothing_stands_as_it_is() {
        let mut form = Form::default();
        form.set("a", "1 +&=%~");
        form.set("b/c", "é\n");
        form.set_some("none", None::<String>);
        form.set("a", "2 +&=%~");
        assert_eq!(form.get("a"), Some("2 +&=%~"));
        assert_eq!(
            form.encode_up_to("last"),
            b"a=2%20%2B%26%3D%25~&b%2Fc=%C3%A9%0A&last="
        );
    }
}
