//! Makes examples for the document: a curl command for each operation, and a value for each answer
//! from its schema.

use serde_json::{Map, Value, json};

use super::{EVENTS, NDJSON, Operation};

/// The address in examples: the usual one of a gateway.
const SERVER: &str = "http://127.0.0.1:9700";

/// References that lead on from each other, and values inside of each other, are followed this far.
const DEPTH_MAX: usize = 8;

/// The command that carries out an operation.
pub(super) fn curl(operation: &Operation) -> String {
    let path: String = operation
        .path
        .split('{')
        .map(|piece| match piece.split_once('}') {
            Some((name, rest)) => format!("{}{rest}", name.to_uppercase()),
            None => piece.to_owned(),
        })
        .collect();
    let mut parts = vec![format!("curl {SERVER}{path}")];
    let streams = operation.answers.iter().flat_map(|it| &it.contents);
    if streams.into_iter().any(|content| content.kind == EVENTS) {
        parts[0].insert_str("curl".len(), " --no-buffer");
    }
    let has_body = operation.body_example.is_some();
    match (operation.method, has_body) {
        ("get", _) | ("post", true) => {}
        (method, _) => parts.push(format!("--request {}", method.to_uppercase())),
    }
    if !operation.open {
        parts.push("--header 'Authorization: Bearer TOKEN'".to_owned());
    }
    let headers = operation.header_examples.iter();
    parts.extend(headers.map(|header| format!("--header '{header}'")));
    if let (Some(body), Some(kind)) = (operation.body_example, operation.bodies.first()) {
        parts.push(format!("--header 'Content-Type: {}'", kind.kind));
        parts.push(format!("--data '{}'", body.replace('\'', r"'\''")));
    }
    parts.join(" \\\n  ")
}

/// A value of a content type: an object for one line or one event of a sequence.
pub(super) fn of_content(kind: &str, schema: &Value, document: &Value) -> Option<Value> {
    let is_json = kind.ends_with("json") || kind == NDJSON;
    is_json.then(|| value("", schema, document, 0))
}

fn value(name: &str, schema: &Value, document: &Value, depth: usize) -> Value {
    if depth > DEPTH_MAX {
        return Value::Null;
    }
    let inner = |schema: &Value| value(name, schema, document, depth + 1);
    if let Some(reference) = schema["$ref"].as_str() {
        let found = reference
            .strip_prefix('#')
            .and_then(|it| document.pointer(it));
        return found.map_or(Value::Null, inner);
    }
    if let Some(all) = schema["allOf"].as_array().filter(|it| !it.is_empty()) {
        return all.iter().map(inner).fold(json!({}), merged);
    }
    let alternative = ["oneOf", "anyOf"]
        .iter()
        .find_map(|key| schema[key].as_array());
    let of_alternative = alternative.and_then(|all| {
        let is_null = |it: &&Value| it["type"] == "null";
        all.iter().find(|it| !is_null(it)).map(inner)
    });
    let fixed = [&schema["examples"][0], &schema["const"], &schema["enum"][0]];
    if let Some(fixed) = fixed.into_iter().find(|it| !it.is_null()) {
        return fixed.clone();
    }
    let own = plain(name, schema, document, depth);
    match of_alternative {
        Some(alternative) => merged(own, alternative),
        None => own,
    }
}

fn plain(name: &str, schema: &Value, document: &Value, depth: usize) -> Value {
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|it| *it != "null"),
        kind => Some(kind),
    };
    match kind.and_then(Value::as_str) {
        Some("object") => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            let fields = fields
                .map(|(name, schema)| (name.clone(), value(name, schema, document, depth + 1)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Some("array") => json!([value(name, &schema["items"], document, depth + 1)]),
        Some("integer") => schema["minimum"]
            .as_u64()
            .map_or(json!(0), |least| json!(least)),
        Some("number") => json!(0.0),
        Some("boolean") => json!(false),
        Some("string") => json!(text(name)),
        _ => Value::Null,
    }
}

/// One object with the fields of both; the second, if they are no objects.
fn merged(first: Value, second: Value) -> Value {
    match (first, second) {
        (Value::Object(mut first), Value::Object(second)) => {
            first.extend(second);
            Value::Object(first)
        }
        (_, second) => second,
    }
}

/// A text that fits a field of this name.
fn text(name: &str) -> &'static str {
    match name {
        "job" => "5f0c2a9d41e37b8865d10e2f",
        "app" => "default",
        "target" => "im",
        "client_msg_no" => "spring-sale",
        "recipient" => "ann",
        "at" | "since" | "until" | "now" => "2026-01-31T12:00:00Z",
        name if name.ends_with("_at") => "2026-01-31T12:00:00Z",
        "rate" | "limit" | "configured" => "2000/s",
        "version" => env!("CARGO_PKG_VERSION"),
        "callback_url" => "https://example.com/done",
        _ => "…",
    }
}
