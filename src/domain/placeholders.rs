//! Finds placeholders in the message of a job that has no values for them.
//!
//! Such a job would send `Hi {{ name }}` to all recipients, which cannot be undone. It is refused,
//! which loses no recipient. A producer that wants the text unchanged sets `"literal": true`.

use super::fields::Problem;
use super::message::{Content, MessageDocument, Options};

/// The most characters of a placeholder that are shown.
const SHOWN_CHARACTERS_MAX: usize = 40;

/// The problem of a message with a placeholder, without values and without `literal`.
pub fn unfilled(content: &Content, options: &Options) -> Option<Problem> {
    let mut texts = texts(content, options).into_iter();
    let (field, found) = texts.find_map(|(field, text)| Some((field, placeholder(text)?)))?;
    let what = format!(
        "has the placeholder {found}, and there is no value for it: give `vars`, or set \"literal\": \
         true in `message` to send it unchanged"
    );
    Some(Problem::new(field, what))
}

/// Sets `literal` on a message that was accepted without values, so that its texts stay unchanged.
pub fn as_it_stands(message: MessageDocument, options: &Options) -> MessageDocument {
    let content = Content::try_from(message.clone()).ok();
    let is_literal = message.vars.is_none()
        && content.is_some_and(|content| unfilled(&content, options).is_some());
    MessageDocument {
        literal: is_literal.then_some(true),
        ..message
    }
}

/// The texts that would be rendered; of JSON, the whole.
fn texts<'a>(content: &'a Content, options: &'a Options) -> Vec<(&'static str, &'a str)> {
    let mut texts = Vec::new();
    match content {
        Content::Text(text) | Content::Notice(text) | Content::Mention { text, .. } => {
            texts.push(("message.text", text.as_str()));
        }
        Content::Image(file)
        | Content::Audio(file)
        | Content::Video(file)
        | Content::File(file) => {
            texts.extend(file.name.as_deref().map(|name| ("message.name", name)));
        }
        Content::Location { title, .. } => texts.push(("message.title", title)),
        Content::Custom(data) => texts.push(("message.data", data.get())),
        Content::Raw(_) | Content::Native | Content::Template(_) => {}
    }
    if let Some(push) = &options.push {
        let title = push.title.as_deref();
        texts.extend(title.map(|title| ("options.push.title", title)));
        texts.extend(push.text.as_deref().map(|text| ("options.push.text", text)));
    }
    let extension = options.extension.as_deref().map(|it| it.get());
    let extension = extension.filter(|it| it.starts_with('"'));
    texts.extend(extension.map(|text| ("options.extension", text)));
    texts
}

/// The first `{{ name … }}` or `{% word … %}`. Two braces without a word after them, as in code,
/// are not a placeholder.
fn placeholder(text: &str) -> Option<String> {
    text.match_indices('{').find_map(|(at, _)| {
        let from = &text[at..];
        let end = ["}}", "%}"][usize::from(from.starts_with("{%"))];
        let inside = from
            .strip_prefix("{{")
            .or_else(|| from.strip_prefix("{%"))?;
        let word = inside.trim_start_matches(['-', '+']).trim_start();
        if !word.starts_with(|first: char| first.is_alphabetic() || first == '_') {
            return None;
        }
        let length = inside.find(end)?;
        let whole = &from[..2 + length + end.len()];
        Some(match whole.chars().count() > SHOWN_CHARACTERS_MAX {
            true => whole
                .chars()
                .take(SHOWN_CHARACTERS_MAX)
                .chain(['…'])
                .collect(),
            false => whole.to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(placeholder(text).as_deref(), expected, "{text}");
    }

    #[test]
    fn what_looks_like_a_value_is_found() {
        check("Hi {{ name }}!", Some("{{ name }}"));
        check("{{name}}", Some("{{name}}"));
        check(
            "a { b {{- user.name | upper -}} c",
            Some("{{- user.name | upper -}}"),
        );
        check("{{{ name }}}", Some("{{ name }}"));
        check("{{ 名前 }}", Some("{{ 名前 }}"));
        check("{% if vip %}x{% endif %}", Some("{% if vip %}"));
        for plain in [
            "",
            "{ a }",
            "{{}}",
            "{{ }}",
            "{{ name",
            "{{1, 2}, {3}}",
            "100 {% off",
            "}}{{",
        ] {
            check(plain, None);
        }
        let long = format!("{{{{ {} }}}}", "x".repeat(100));
        assert!(placeholder(&long).unwrap().ends_with("x…"));
    }

    #[test]
    fn every_text_that_would_be_filled_in_is_looked_at() {
        let raw = |json: &str| serde_json::value::RawValue::from_string(json.to_owned()).unwrap();
        let push = |title: &str| Options {
            push: Some(super::super::message::Push {
                title: Some(title.to_owned()),
                ..Default::default()
            }),
            ..Options::default()
        };
        let field = |content: &Content, options: &Options| {
            unfilled(content, options).map_or(String::new(), |problem| problem.field)
        };
        let (text, none) = (Content::Text("{{ a }}".to_owned()), Options::default());
        assert_eq!(field(&text, &none), "message.text");
        let data = Content::Custom(raw(r#"{"a": {"b": ["{{ c }}"]}}"#));
        assert_eq!(field(&data, &none), "message.data");
        let nested = Content::Custom(raw(r#"{"a":{"b":{"c":1}}}"#));
        assert_eq!(field(&nested, &none), "");
        let plain = Content::Text("hi".to_owned());
        assert_eq!(field(&plain, &push("{{ a }}")), "options.push.title");
        assert_eq!(field(&Content::Raw(raw(r#""{{ a }}""#)), &none), "");
    }
}
