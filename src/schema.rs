//! Generates the public formats as JSON Schema, AsyncAPI and OpenAPI, from the types that write
//! them. The files in `schemas/` are these documents, together with the mapping of all targets. A
//! test fails when they differ.

use schemars::{JsonSchema, schema_for};
use serde_json::{Value, json};

use crate::domain::announce::{DeadLetter, JobEvent};
use crate::domain::job::JobDocument;
use crate::im::webhook::{AnswerDocument, CallDocument};

/// The file names of all documents.
pub const DOCUMENTS: [&str; 8] = [
    "job.schema.json",
    "dead-letter.schema.json",
    "job-event.schema.json",
    "webhook-call.schema.json",
    "webhook-answer.schema.json",
    "asyncapi.json",
    "openapi.json",
    "mapping.md",
];

/// The text of one of [`DOCUMENTS`]; empty for another name.
pub fn document(name: &str) -> String {
    let value = match name {
        "job.schema.json" => schema::<JobDocument>(),
        "dead-letter.schema.json" => schema::<DeadLetter>(),
        "job-event.schema.json" => schema::<JobEvent>(),
        "webhook-call.schema.json" => schema::<CallDocument>(),
        "webhook-answer.schema.json" => schema::<AnswerDocument>(),
        "asyncapi.json" => asyncapi(),
        "openapi.json" => crate::gateway::openapi(),
        "mapping.md" => return crate::im::mapping::markdown(),
        _ => return String::new(),
    };
    format!("{value:#}\n")
}

fn schema<T: JsonSchema>() -> Value {
    schema_for!(T).to_value()
}

fn asyncapi() -> Value {
    let channel = |address: Option<&str>, summary: &str, message: &str| {
        json!({
            "address": address,
            "title": summary,
            "messages": { message: { "$ref": format!("#/components/messages/{message}") } },
        })
    };
    let message = |file: &str, title: &str| {
        json!({
            "title": title,
            "contentType": "application/json",
            "payload": { "schemaFormat": "application/schema+json;version=draft-2020-12",
                         "schema": { "$ref": format!("./{file}") } },
        })
    };
    let operation = |action: &str, channel: &str, summary: &str| {
        json!({
            "action": action,
            "summary": summary,
            "channel": { "$ref": format!("#/channels/{channel}") },
        })
    };
    let mut webhook = operation("send", "webhooks", "One call for one recipient or several");
    let answer = json!({ "$ref": "#/channels/webhooks/messages/webhookAnswer" });
    webhook["reply"] =
        json!({ "channel": { "$ref": "#/channels/webhooks" }, "messages": [answer] });
    let mut document = json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Fanwise over AMQP 0-9-1, and its calls to webhooks",
            "version": "1",
            "description": "Publish persistent JSON with the mandatory flag and publisher confirms; \
                            a job is accepted when its confirm has come.",
        },
        "channels": {
            "jobs": channel(Some("fanwise.jobs"), "Exchange for jobs; routing key high, normal or bulk", "job"),
            "dead": channel(Some("fanwise.dead"), "Exchange of dead letters; routing key <app>.<target>", "deadLetter"),
            "replies": channel(None, "The queue that a job named, through the default exchange; correlation id client_msg_no", "jobEvent"),
            "events": channel(Some("fanwise.events"), "Exchange of job events; routing key <app>.<event>", "jobEvent"),
            "webhooks": channel(None, "POST to the url of a webhook target, signed by Standard Webhooks", "webhookCall"),
            "callbacks": channel(None, "POST to the callback_url of a job, signed by Standard Webhooks", "jobEvent"),
        },
        "operations": {
            "submitJob": operation("receive", "jobs", "Producers publish jobs here"),
            "publishDeadLetter": operation("send", "dead", "Recipients that ended failed or uncertain"),
            "publishReply": operation("send", "replies", "The completed event, with an id that repeats share"),
            "publishJobEvent": operation("send", "events", "accepted, progress, completed"),
            "callWebhook": webhook,
            "callBack": operation("send", "callbacks", "The completed event, with an id that repeats share"),
        },
        "components": { "messages": {
            "job": message("job.schema.json", "Job"),
            "deadLetter": message("dead-letter.schema.json", "Dead letter"),
            "jobEvent": message("job-event.schema.json", "Job event"),
            "webhookCall": message("webhook-call.schema.json", "Call of a webhook"),
            "webhookAnswer": message("webhook-answer.schema.json", "Answer of a webhook"),
        } },
    });
    document["channels"]["webhooks"]["messages"]["webhookAnswer"] =
        json!({ "$ref": "#/components/messages/webhookAnswer" });
    document
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_committed_schemas_are_what_the_code_generates() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
        for name in DOCUMENTS {
            let committed = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            assert!(
                committed == document(name),
                "schemas/{name} has drifted: cargo run -- schema --write schemas"
            );
        }
    }

    /// The reader of jobs is written by hand, so that it can report every problem at once. It must
    /// know exactly the fields that the schema names.
    #[test]
    fn the_job_reader_knows_the_fields_of_the_schema() {
        let schema: Value = serde_json::from_str(&document("job.schema.json")).unwrap();
        let source = concat!(
            include_str!("../crates/fanwise-client/src/audience.rs"),
            include_str!("../crates/fanwise-client/src/job.rs"),
            include_str!("domain/job.rs"),
            include_str!("domain/job/parse.rs"),
            include_str!("domain/audience.rs"),
            include_str!("domain/list_reference.rs"),
            include_str!("domain/message.rs"),
            include_str!("domain/message/parse.rs")
        );
        let mut fields = Vec::new();
        collect(&schema, &mut fields);
        assert!(fields.len() > 20, "{fields:?}");
        for field in fields {
            assert!(
                source.contains(&format!("\"{field}\""))
                    || source.contains(&format!("\"part.{field}\""))
                    || source.contains(&format!("\"fallback.{field}\""))
                    || source.contains(&format!("pub {field}: u32"))
                    || source.contains(&format!("pub {field}: u64")),
                "{field} is not read"
            );
        }
    }

    fn collect(schema: &Value, fields: &mut Vec<String>) {
        match schema {
            Value::Object(object) => {
                if let Some(Value::Object(properties)) = object.get("properties") {
                    fields.extend(properties.keys().cloned());
                }
                object.values().for_each(|value| collect(value, fields));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, fields)),
            _ => {}
        }
    }
}
