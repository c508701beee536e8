//! Writes the document as one page of HTML: no script, no other file, readable on a phone and when
//! saved.

use std::fmt::Write as _;

use serde_json::Value;

use super::{EVENTS, NDJSON};

const STYLE: &str = include_str!("page.css");

/// Methods in the order in which they are shown.
const METHODS: [&str; 4] = ["get", "post", "put", "delete"];

pub(super) fn page(document: &Value) -> String {
    let title = text(&document["info"]["title"]);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head><body>\n"
    );
    contents(&mut html, document);
    write(&mut html, format_args!("<main><h1>{title}</h1>"));
    prose(&mut html, &document["info"]["description"]);
    let token = &document["components"]["securitySchemes"]["token"]["description"];
    html.push_str("<p>Send <code>Authorization: Bearer TOKEN</code> with ");
    html.push_str(&inline(token.as_str().unwrap_or_default()));
    html.push_str(
        "</p><p>All of this as a document: <a href=\"openapi.json\">openapi.json</a></p>\n",
    );
    for group in items(&document["tags"]) {
        let name = group["name"].as_str().unwrap_or_default();
        write(&mut html, format_args!("<h2>{}</h2>\n", escape(name)));
        for (path, method, it) in operations(document, name) {
            operation(&mut html, path, method, it);
        }
    }
    html.push_str("<h2>Refusals</h2>\n");
    for (name, refusal) in members(&document["components"]["responses"]) {
        let name = escape(name);
        write(
            &mut html,
            format_args!("<section id=\"refusal-{name}\"><h3>{name}</h3><table>"),
        );
        let status = refusal["x-status"].to_string();
        answer(&mut html, &status, refusal);
        html.push_str("</table></section>\n");
    }
    html.push_str("<h2>Types</h2>\n");
    for (name, schema) in members(&document["components"]["schemas"]) {
        let name = escape(name);
        write(
            &mut html,
            format_args!("<section id=\"type-{name}\"><h3>{name}</h3>\n"),
        );
        prose(&mut html, &schema["description"]);
        shape(&mut html, schema);
        html.push_str("</section>\n");
    }
    html.push_str("</main></body></html>\n");
    html
}

fn contents(html: &mut String, document: &Value) {
    html.push_str("<nav>");
    for group in items(&document["tags"]) {
        let name = group["name"].as_str().unwrap_or_default();
        write(
            html,
            format_args!("<details open><summary>{}</summary>", escape(name)),
        );
        for (path, method, operation) in operations(document, name) {
            let id = text(&operation["operationId"]);
            let path = breakable(path);
            write(
                html,
                format_args!("<a href=\"#{id}\"><b class=\"{method}\">{method}</b> {path}</a>"),
            );
        }
        html.push_str("</details>");
    }
    html.push_str("<details><summary>Types</summary>");
    for (name, _) in members(&document["components"]["schemas"]) {
        let name = escape(name);
        write(html, format_args!("<a href=\"#type-{name}\">{name}</a>"));
    }
    html.push_str("</details></nav>\n");
}

/// The operations of a group, with their path and method.
fn operations<'a>(
    document: &'a Value,
    group: &'a str,
) -> impl Iterator<Item = (&'a str, &'static str, &'a Value)> {
    let paths = members(&document["paths"]);
    let all = paths.flat_map(|(path, methods)| METHODS.map(|it| (path, it, &methods[it])));
    all.filter(move |(_, _, operation)| operation["tags"][0] == group)
}

fn operation(html: &mut String, path: &str, method: &str, it: &Value) {
    let id = text(&it["operationId"]);
    write(
        html,
        format_args!(
            "<section id=\"{id}\"><h3><b class=\"{method}\">{method}</b> <code>{}</code></h3>\
             <p class=\"summary\">{}</p>\n",
            breakable(path),
            inline(it["summary"].as_str().unwrap_or_default()),
        ),
    );
    prose(html, &it["description"]);
    if it["security"] == serde_json::json!([]) {
        html.push_str("<p>Needs no token.</p>");
    }
    if let Some(curl) = it["x-codeSamples"][0]["source"].as_str() {
        write(html, format_args!("<pre>{}</pre>\n", escape(curl)));
    }
    let parameters = items(&it["parameters"]);
    if !parameters.is_empty() {
        html.push_str("<h4>Parameters</h4><table>");
        for parameter in parameters {
            let place = text(&parameter["in"]);
            let what = inline(parameter["description"].as_str().unwrap_or_default());
            let (name, kind) = (text(&parameter["name"]), kind(&parameter["schema"]));
            row(html, &name, &place, &format!("<i>{kind}</i> {what}"));
        }
        html.push_str("</table>");
    }
    if let Some(content) = it["requestBody"]["content"].as_object() {
        let may = match it["requestBody"]["required"] == true {
            true => "",
            false => ", which may be left out",
        };
        write(html, format_args!("<h4>Body{may}</h4><table>"));
        for (name, content) in content {
            row(html, &escape(name), "", &kind_of_content(name, content));
        }
        html.push_str("</table>");
    }
    html.push_str("<h4>Answers</h4><table>");
    let mut refusals = Vec::new();
    for (status, it) in members(&it["responses"]) {
        match it["$ref"].as_str().and_then(|it| it.rsplit('/').next()) {
            // Refusals mean the same everywhere, so the page describes them once.
            Some(name) => refusals.push(format!("<a href=\"#refusal-{name}\">{status}</a>")),
            None => answer(html, status, it),
        }
    }
    if !refusals.is_empty() {
        row(html, "refusals", "", &refusals.join(", "));
    }
    html.push_str("</table></section>\n");
}

fn answer(html: &mut String, status: &str, answer: &Value) {
    let mut what = inline(answer["description"].as_str().unwrap_or_default());
    for (name, content) in members(&answer["content"]) {
        let kind = kind_of_content(name, content);
        write(
            &mut what,
            format_args!("<br><code>{}</code> {kind}", escape(name)),
        );
        if let Some(example) = content.get("example") {
            let example = escape(&format!("{example:#}"));
            let summary = "<summary>Example</summary>";
            write(
                &mut what,
                format_args!("<details>{summary}<pre>{example}</pre></details>"),
            );
        }
    }
    row(html, status, "", &what);
}

fn kind_of_content(name: &str, content: &Value) -> String {
    let many = match name {
        NDJSON | EVENTS => "<i>many</i> ",
        _ => "",
    };
    format!("{many}{}", kind(&content["schema"]))
}

/// Writes the fields of a schema, or its alternatives.
fn shape(html: &mut String, schema: &Value) {
    let required = items(&schema["required"]);
    if let Some(fields) = schema["properties"].as_object() {
        html.push_str("<table>");
        for (name, field) in fields {
            let must = required.iter().any(|it| it == name);
            let what = inline(field["description"].as_str().unwrap_or_default());
            let kind = format!("<i>{}</i> {what}", kind(field));
            row(
                html,
                &escape(name),
                if must { "required" } else { "" },
                &kind,
            );
        }
        html.push_str("</table>");
    } else if schema.get("oneOf").or(schema.get("anyOf")).is_none() {
        write(html, format_args!("<p><i>{}</i></p>", kind(schema)));
    }
    for (key, title) in [("oneOf", "One of"), ("anyOf", "One of"), ("allOf", "With")] {
        let parts = items(&schema[key]);
        if parts.is_empty() {
            continue;
        }
        write(html, format_args!("<h4>{title}</h4><ul>"));
        for part in parts {
            html.push_str("<li>");
            html.push_str(&inline(part["description"].as_str().unwrap_or_default()));
            shape(html, part);
            html.push_str("</li>");
        }
        html.push_str("</ul>");
    }
}

/// Describes a schema in a few words.
fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = escape(reference.rsplit('/').next().unwrap_or_default());
        return format!("<a href=\"#type-{name}\">{name}</a>");
    }
    if let Some(value) = schema.get("const") {
        return format!("<code>{}</code>", escape(&plain(value)));
    }
    let choices = items(&schema["enum"]);
    if !choices.is_empty() {
        let choices = choices.iter();
        let choices = choices.map(|it| format!("<code>{}</code>", escape(&plain(it))));
        return choices.collect::<Vec<_>>().join(" or ");
    }
    for key in ["oneOf", "anyOf"] {
        let kinds: Vec<_> = items(&schema[key]).iter().map(kind).collect();
        if !kinds.is_empty() {
            return kinds.join(" or ");
        }
    }
    let named = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(plain).collect::<Vec<_>>().join(" or "),
        Value::String(kind) if kind == "array" => format!("list of {}", kind_of_items(schema)),
        Value::String(kind) => escape(kind),
        _ => "any JSON".to_owned(),
    };
    match (&schema["minimum"], &schema["maximum"]) {
        (Value::Number(least), Value::Number(most)) => format!("{named}, {least} to {most}"),
        _ => named,
    }
}

fn kind_of_items(schema: &Value) -> String {
    kind(&schema["items"])
}

fn row(html: &mut String, name: &str, note: &str, what: &str) {
    write(
        html,
        format_args!("<tr><th><code>{name}</code> <small>{note}</small></th><td>{what}</td></tr>"),
    );
}

/// Writes paragraphs, with code between backticks.
fn prose(html: &mut String, value: &Value) {
    for paragraph in value.as_str().unwrap_or_default().split("\n\n") {
        if !paragraph.is_empty() {
            write(html, format_args!("<p>{}</p>\n", inline(paragraph)));
        }
    }
}

fn inline(text: &str) -> String {
    let pieces = text.split('`').enumerate();
    let pieces = pieces.map(|(index, piece)| match index % 2 {
        0 => escape(piece),
        _ => format!("<code>{}</code>", escape(piece)),
    });
    pieces.collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A path that may break at its slashes.
fn breakable(path: &str) -> String {
    escape(path).replace('/', "/<wbr>").replace(':', "<wbr>:")
}

fn text(value: &Value) -> String {
    escape(&plain(value))
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let members = value.as_object().into_iter().flatten();
    members.map(|(name, value)| (name.as_str(), value))
}

fn write(html: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = html.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_stay_texts() {
        assert_eq!(inline("a `<b>` & c"), "a <code>&lt;b&gt;</code> &amp; c");
    }

    #[test]
    fn kinds_are_told_in_words() {
        for (schema, expected) in [
            (json!({"type": ["string", "null"]}), "string or null"),
            (
                json!({"type": "integer", "minimum": 1, "maximum": 9}),
                "integer, 1 to 9",
            ),
            (
                json!({"enum": ["a", "b"]}),
                "<code>a</code> or <code>b</code>",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                "list of string",
            ),
            (
                json!({"$ref": "#/components/schemas/Job"}),
                "<a href=\"#type-Job\">Job</a>",
            ),
            (json!(true), "any JSON"),
        ] {
            assert_eq!(kind(&schema), expected);
        }
    }

    /// Every link has a place to lead to, and the page loads nothing from outside.
    #[test]
    fn the_page_needs_nothing_else() {
        let document = super::super::openapi();
        let page = page(&document);
        for link in page.split("href=\"").skip(1) {
            let link = link.split('"').next().unwrap();
            let id = link.strip_prefix('#');
            assert!(
                link == "openapi.json"
                    || id.is_some_and(|id| page.contains(&format!("id=\"{id}\""))),
                "{link} leads nowhere"
            );
        }
        for outside in ["<script", "<link", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
