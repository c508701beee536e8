//! Describes the HTTP interface as an OpenAPI 3.1 document and as a page for people.
//!
//! `operations` is the table: every path with its requests and answers. The document is made from
//! it, with the schemas of the very types that the gateway reads and writes; the page is made from
//! the document. A test compares the table with the router, in both directions.
//!
//! Neither needs a token: clients and people read them before they have one.

mod dropins;
mod example;
mod operations;
mod page;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use bytes::Bytes;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use self::operations::operations;
use super::params::NoParams;

/// A type as a schema; the generator keeps the types that it refers to.
type Shape = fn(&mut SchemaGenerator) -> Schema;

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// One method of one path.
struct Operation {
    method: &'static str,
    path: &'static str,
    /// The operation's name in generated clients.
    id: &'static str,
    summary: &'static str,
    group: &'static str,
    about: &'static str,
    open: bool,
    parameters: Vec<Parameter>,
    bodies: Vec<Content>,
    /// A body of the first of these types.
    body_example: Option<&'static str>,
    /// Headers that the example sends besides the token.
    header_examples: Vec<&'static str>,
    /// Whether the body may be left out.
    may_be_empty: bool,
    answers: Vec<DocumentedResponse>,
    refusals: Vec<u16>,
}

struct Parameter {
    place: &'static str,
    name: &'static str,
    what: &'static str,
    shape: Shape,
}

struct Content {
    kind: &'static str,
    shape: Shape,
}

/// Content types that hold a sequence of values. OpenAPI 3.1 cannot express this; the schema is
/// that of one line or event.
const NDJSON: &str = "application/x-ndjson";
const EVENTS: &str = "text/event-stream";

struct DocumentedResponse {
    status: u16,
    what: &'static str,
    contents: Vec<Content>,
}

fn content(kind: &'static str, shape: Shape) -> Content {
    Content { kind, shape }
}

fn json(shape: Shape) -> Content {
    content("application/json", shape)
}

/// A text of this content type.
fn text(kind: &'static str) -> Content {
    content(kind, of::<String>)
}

impl Operation {
    fn new(method: &'static str, path: &'static str, id: &'static str) -> Self {
        Self {
            method,
            path,
            id,
            summary: "",
            group: "",
            about: "",
            open: false,
            parameters: Vec::new(),
            bodies: Vec::new(),
            body_example: None,
            header_examples: Vec::new(),
            may_be_empty: false,
            answers: Vec::new(),
            refusals: Vec::new(),
        }
    }

    fn summary(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    /// Marks an operation that needs no token.
    fn open(mut self) -> Self {
        self.open = true;
        self
    }

    fn parameter(
        mut self,
        place: &'static str,
        name: &'static str,
        what: &'static str,
        shape: Shape,
    ) -> Self {
        self.parameters.push(Parameter {
            place,
            name,
            what,
            shape,
        });
        self
    }

    fn path(self, name: &'static str, what: &'static str) -> Self {
        self.parameter("path", name, what, operations::segment)
    }

    fn query(self, name: &'static str, what: &'static str, shape: Shape) -> Self {
        self.parameter("query", name, what, shape)
    }

    fn header(self, name: &'static str, what: &'static str) -> Self {
        self.parameter("header", name, what, of::<String>)
    }

    fn takes(self, content: Content) -> Self {
        self.body(content).refuses(&[408, 413])
    }

    /// Adds a body whose refusals have another form than ours.
    fn body(mut self, content: Content) -> Self {
        self.bodies.push(content);
        self
    }

    /// The body in the example of this operation.
    fn example(mut self, body: &'static str) -> Self {
        self.body_example = Some(body);
        self
    }

    /// A header in the example of this operation.
    fn sends(mut self, header: &'static str) -> Self {
        self.header_examples.push(header);
        self
    }

    fn may_be_empty(mut self) -> Self {
        self.may_be_empty = true;
        self
    }

    fn answers(mut self, status: u16, what: &'static str, contents: Vec<Content>) -> Self {
        self.answers.push(DocumentedResponse {
            status,
            what,
            contents,
        });
        self
    }

    /// Adds refusals of this operation to those of all operations.
    fn refuses(mut self, statuses: &[u16]) -> Self {
        self.refusals.extend(statuses);
        self
    }

    /// All refusals, including those that any request may meet.
    fn all_refusals(&self) -> Vec<u16> {
        let any: &[u16] = match self.open {
            true => &[],
            false => &[400, 401, 403, 429, 503],
        };
        let mut all = [&self.refusals[..], any].concat();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The meaning of a refusal, which is the same in every operation.
fn meaning(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => (
            "BadRequest",
            "The request is wrong; `problems` says where, all at once.",
        ),
        401 => ("Unauthorized", "No token, or a wrong one."),
        403 => ("Forbidden", "This caller may not do it."),
        404 => ("NotFound", "It does not exist."),
        408 => ("TooSlow", "The body arrived too slowly."),
        409 => (
            "Conflict",
            "It contradicts the present state: a `client_msg_no` that belongs to another message, or a \
             command that comes too late.",
        ),
        413 => ("TooLarge", "The body is too large."),
        415 => ("WrongKind", "The content type is not supported here."),
        429 => (
            "TooOften",
            "More requests than the app may send. Try again after `Retry-After` seconds.",
        ),
        _ => (
            "Unavailable",
            "Neither done nor refused: broker or ledger cannot be reached, or there are too many \
             requests. Try again after `Retry-After` seconds; repeating the request does no harm.",
        ),
    }
}

/// The whole document.
pub fn openapi() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let operations = operations();
    let mut paths = Map::new();
    let mut refusals = Map::new();
    for operation in &operations {
        for status in operation.all_refusals() {
            let (name, what) = meaning(status);
            refusals.insert(name.to_owned(), refusal(status, what, &mut generator));
        }
        let methods = paths.entry(operation.path).or_insert_with(|| json!({}));
        methods[operation.method] = written(operation, &mut generator);
    }
    let mut groups: Vec<_> = operations.iter().map(|it| it.group).collect();
    groups.dedup();
    let tags: Vec<_> = groups.iter().map(|name| json!({"name": name})).collect();
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Fanwise over HTTP",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE")},
        },
        "servers": [{"url": "/"}],
        // The token, or nothing where none is configured.
        "security": [{"token": []}, {}],
        "tags": tags,
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "`gateway.token` of the configuration, or the token of an app.",
            }},
            "responses": refusals,
            "schemas": generator.take_definitions(true),
        },
    });
    add_examples(&mut document);
    document
}

/// Adds a value to each answer, now that all schemas are there.
fn add_examples(document: &mut Value) {
    let whole = document.clone();
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    let operations = paths.flat_map(|(_, methods)| methods.as_object_mut().into_iter().flatten());
    let answers = operations
        .flat_map(|(_, operation)| operation["responses"].as_object_mut().into_iter().flatten());
    for (_, answer) in answers {
        let contents = answer.get_mut("content").and_then(Value::as_object_mut);
        for (kind, content) in contents.into_iter().flatten() {
            if let Some(example) = example::of_content(kind, &content["schema"], &whole) {
                content["example"] = example;
            }
        }
    }
}

const ABOUT: &str = "Submit jobs, follow and steer them, and handle what could not be sent. \
A job is accepted, with 202, once the broker has confirmed it or it is on disk; submitting it again does \
no harm.\n\nEvery refusal is `application/problem+json` and lists all problems of the request. \
Unknown parameters and fields are refused.";

fn written(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut written = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.group],
    });
    if !operation.about.is_empty() {
        written["description"] = json!(operation.about);
    }
    written["x-codeSamples"] = json!([{
        "lang": "sh",
        "label": "curl",
        "source": example::curl(operation),
    }]);
    if operation.open {
        written["security"] = json!([]);
    }
    if !operation.parameters.is_empty() {
        let parameters = operation.parameters.iter().map(|parameter| {
            json!({
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.what,
                "schema": (parameter.shape)(generator),
            })
        });
        written["parameters"] = parameters.collect();
    }
    if !operation.bodies.is_empty() {
        written["requestBody"] = json!({
            "required": !operation.may_be_empty,
            "content": contents(&operation.bodies, generator),
        });
        if let (Some(body), Some(first)) = (operation.body_example, operation.bodies.first()) {
            let parsed = serde_json::from_str(body).unwrap_or_else(|_| json!(body));
            written["requestBody"]["content"][first.kind]["example"] = parsed;
        }
    }
    let mut responses = Map::new();
    for answer in &operation.answers {
        let mut response = json!({"description": answer.what});
        if !answer.contents.is_empty() {
            response["content"] = contents(&answer.contents, generator);
        }
        responses.insert(answer.status.to_string(), response);
    }
    for status in operation.all_refusals() {
        let (name, _) = meaning(status);
        let reference = json!({"$ref": format!("#/components/responses/{name}")});
        responses.insert(status.to_string(), reference);
    }
    written["responses"] = Value::Object(responses);
    written
}

fn contents(contents: &[Content], generator: &mut SchemaGenerator) -> Value {
    let written = contents.iter().map(|content| {
        let schema = (content.shape)(generator);
        (content.kind.to_owned(), json!({"schema": schema}))
    });
    Value::Object(written.collect())
}

fn refusal(status: u16, what: &str, generator: &mut SchemaGenerator) -> Value {
    let problem = content("application/problem+json", of::<operations::ProblemDetails>);
    let mut refusal = json!({
        "description": what,
        "content": contents(&[problem], generator),
        "x-status": status,
    });
    if [429, 503].contains(&status) {
        refusal["headers"] = json!({"Retry-After": {
            "description": "Seconds.",
            "schema": {"type": "integer"},
        }});
    }
    refusal
}

/// `GET /openapi.json` and `GET /docs`, both made once.
pub(super) fn routes<G: Clone + Send + Sync + 'static>() -> Router<G> {
    let document = openapi();
    let page = Bytes::from(page::page(&document));
    let document = Bytes::from(document.to_string());
    let json = [(header::CONTENT_TYPE, "application/json")];
    let html = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        // The page needs nothing else. If a text in it ever became more than text, it could do
        // nothing.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
    ];
    Router::new()
        .route(
            "/openapi.json",
            get(async move |_: NoParams| (json, document.clone())),
        )
        .route("/docs", get(async move |_: NoParams| (html, page.clone())))
}

#[cfg(test)]
mod tests;
