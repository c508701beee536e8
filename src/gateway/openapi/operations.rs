//! The table of operations. A new route gets an entry here, next to those of its group.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::super::dead;
use super::{EVENTS, NDJSON, Operation, content, json, of, text};
use crate::domain::announce::{EventKind, JobEvent};
use crate::domain::audience::MemberDocument;
use crate::domain::directive::Scope;
use crate::domain::job::JobDocument;
use crate::domain::job_limits::LimitKind;
use crate::domain::lane::Priority;
use crate::domain::letters::DeadRow;
use crate::domain::message::MessageDocument;
use crate::ports::JobState;
use crate::service::api::{
    About, DeadList, JobDetail, JobList, KeptLine, PurgeRequest, RecallRequest, RecallResult,
    RecipientFate, RecipientRow, RedriveRequest, ResolveRequest, Submitted, TemplateRow,
    TemplateView, Verification,
};
use crate::service::control::{ControlResult, DirectiveView, LimitView, ManyResult, TargetView};
use crate::service::dead_letters::{Purged, Redriven, Resolved};
use crate::service::jobs::LIST_MAX;
use crate::service::target_test::{TestRequest, Tested};

/// Why a request is refused (RFC 9457).
#[derive(JsonSchema)]
#[expect(
    dead_code,
    reason = "only its schema is used: refusals are written field by field"
)]
pub(super) struct ProblemDetails {
    /// Always `about:blank`: `status` and `kind` tell the kind of problem.
    r#type: String,
    status: u16,
    /// The same for programs, such as `bad_job`, `conflict` or `forbidden`; absent if the request did
    /// not get as far as its operation.
    kind: Option<String>,
    title: String,
    /// An explanation, with what to do about it.
    detail: String,
    /// Each problem of the request; for an uploaded list, the first bad lines.
    problems: Option<Vec<FieldProblem>>,
    /// Number of bad lines in an uploaded list.
    bad_lines: Option<u64>,
    /// The job that the key belongs to.
    job: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename = "Problem")]
#[expect(dead_code, reason = "only its schema is used")]
struct FieldProblem {
    /// Path of the field, such as `audience.users[17]`, or `line 3`; empty for the whole.
    field: String,
    what: String,
}

/// One event of a stream.
#[derive(JsonSchema)]
#[expect(
    dead_code,
    reason = "only its schema is used: events are written line by line"
)]
struct ServerSentEvent {
    /// The state of the job: send it as `Last-Event-ID` to continue from here. Only in the events of
    /// one job.
    id: Option<String>,
    event: Option<EventKind>,
    /// A `JobEvent` as JSON.
    #[schemars(schema_with = "job_event")]
    data: Option<String>,
    /// Milliseconds to wait before reconnecting; only in the first event.
    retry: Option<u64>,
}

fn job_event(generator: &mut SchemaGenerator) -> Schema {
    let event = generator.subschema_for::<JobEvent>();
    json_schema!({
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": event,
    })
}

/// The author of a directive, the reason, and how long it lasts.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "only its schema is used: commands are read field by field"
)]
pub(super) struct DirectiveRequest {
    /// Shown wherever the directive is shown.
    reason: Option<String>,
    author: Option<String>,
    /// Such as `30m`; without it, the directive lasts until it is lifted.
    expires_in: Option<String>,
}

/// Sets the rate of one job.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "only its schema is used: commands are read field by field"
)]
pub(super) struct RateRequest {
    /// Such as `2000/s`; `default` for the configured one.
    rate: String,
    reason: Option<String>,
    author: Option<String>,
    /// Such as `30m`; without it, the rate lasts until it is set again.
    expires_in: Option<String>,
}

/// Sets the priority of one job.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "only its schema is used: commands are read field by field"
)]
pub(super) struct PriorityRequest {
    priority: Priority,
    reason: Option<String>,
    author: Option<String>,
}

/// Moves the start of one job.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "only its schema is used: commands are read field by field"
)]
pub(super) struct ScheduleRequest {
    /// An RFC 3339 time, a time from now such as `+2h`, or `now`.
    not_before: String,
    reason: Option<String>,
    author: Option<String>,
}

/// Sets the deadline of one job.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "only its schema is used: commands are read field by field"
)]
pub(super) struct DeadlineRequest {
    /// An RFC 3339 time to come, a time from now such as `+2h`, or `never`.
    expires_at: String,
    reason: Option<String>,
    author: Option<String>,
}

/// Spreads one job evenly until a time.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "only its schema is used: commands are read field by field"
)]
pub(super) struct PaceRequest {
    /// An RFC 3339 time to come, a time from now such as `+2h`, or `none`.
    pace_until: String,
    reason: Option<String>,
    author: Option<String>,
}

/// Has workers look for what is left of one job.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "only its schema is used: commands are read field by field"
)]
pub(super) struct RepairRequest {
    reason: Option<String>,
    author: Option<String>,
}

/// Selects jobs that are not completed; at least one of `app`, `target` and `tag` is needed.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "only its schema is used: commands are read field by field"
)]
pub(super) struct ManyRequest {
    app: Option<String>,
    target: Option<String>,
    tag: Option<String>,
    /// The new priority, for that command.
    priority: Option<Priority>,
    /// Only count the jobs.
    dry_run: Option<bool>,
    reason: Option<String>,
    author: Option<String>,
    /// Such as `30m`, for a pause.
    expires_in: Option<String>,
}

/// Sets the rate of a target, an app or a job.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "only its schema is used: commands are read field by field"
)]
pub(super) struct LimitRequest {
    scope: Scope,
    /// Name of the target, the app or the shared limit, or id of the job.
    name: String,
    /// Which of its limits: `main` if left out, `daily` of a target or an app, or `sender` for each
    /// sender of a target.
    kind: Option<LimitKind>,
    /// Such as `2000/s`; `default` for the configured one.
    rate: String,
    reason: Option<String>,
    author: Option<String>,
    /// Such as `30m`; without it, the rate lasts until it is set again.
    expires_in: Option<String>,
}

/// A job and its list of recipients, uploaded together.
#[derive(JsonSchema)]
#[expect(
    dead_code,
    reason = "only its schema is used: forms are read as a stream"
)]
struct UploadForm {
    /// A job whose `audience` names no users.
    job: serde_json::Map<String, serde_json::Value>,
    /// A file, named `.ndjson`, `.csv` or `.txt` or with its content type; the last part of the
    /// form.
    audience: String,
}

pub(super) fn segment(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1})
}

fn number(most: usize) -> Schema {
    json_schema!({"type": "integer", "minimum": 1, "maximum": most})
}

fn moment(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "examples": ["2026-01-31T12:00:00Z", "2h"]})
}

fn dead_outcome(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["failed", "uncertain"]})
}

fn dead_class(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["permanent", "transient", "uncertain"]})
}

const JOB_NAME: &str = "Id of the job, or its `client_msg_no` together with `app`.";
const JOB_ID: &str = "Id of the job, 24 hexadecimal digits.";
const APP: &str = "The app; `default` if left out.";
const CURSOR: &str = "`next` of the previous page.";

const SUBMIT: &str = "The job is JSON. A long list of recipients follows its job instead of being \
in it: as the body, with the job in the header `Fanwise-Job-Spec`, or as the second part of a form. Or the job names the list (`audience.url`), and the gateway fetches it while \
the request waits. All or nothing: a list with bad lines is refused with their numbers, and one that does not \
come whole is refused too; no recipient is sent to.\n\n\
The same `client_msg_no` with the same message is the same job: further recipients extend it, and \
no recipient gets it twice. With another message it is refused with 409.";

const FOLLOW: &str = "`accepted`, `progress` and `completed`, each with the whole accounts. \
`Last-Event-ID` continues where a reader was cut off, at any gateway. The stream ends after `completed`.";

const LOOK_UP: &str = "The list may have 8 MiB, more than 100,000 recipients with ids of usual length. It is read \
whole before the answer begins, and the answer is written as the ledger gives it.";

const RESOLVE: &str = "`sent` and `failed` change the outcome of recipients that are uncertain, once, and their dead \
letters with it; other recipients stay as they are. `resend` sends to them again in a new job, by the rules of any \
redrive: a second resend of the same recipients sends nothing. The uncertain recipients of a job are at \
`/v1/dead?job=…&outcome=uncertain`. The audit trail of the job notes it.";

const RECALL: &str = "For jobs with `keep_ids`, where the target has a call that recalls a message (NetEase, Yunxin). \
One request works for at most `gateway.wait_max`: repeat it until `left` is 0. A repeat goes on where the last one \
ended, and recalls no message twice that has its result. The audit trail of the job notes it.";

const TEST: &str = "The gateway calls the target as a worker does, at once: no limit, pause or parking holds the message \
back, and it belongs to no job. Credentials are left out of the request that is shown. Only with `gateway.token`.";

const MANY: &str = "Reaches every job that is accepted and not completed when the request arrives, and no \
later one. With the token of an app only jobs of that app. Each job notes the command in its audit trail. Try it \
with `dry_run` first.";

const FOLLOW_ALL: &str = "`accepted`, `progress` and `completed` of every job that the caller may \
see, each with the whole accounts. The stream begins with one event for each job that is not completed. It is \
for people and dashboards: it repeats nothing after an interruption, and a client that reads it too slowly is \
cut off. Read the list of jobs after you have opened the stream.";

pub(super) fn operations() -> Vec<Operation> {
    let groups = [
        ("Jobs", jobs()),
        ("Dead letters", dead_letters()),
        ("Templates", templates()),
        ("Steering", steering()),
        ("Drop-in endpoints", super::dropins::dropins()),
        ("About", about()),
    ];
    let named = groups.into_iter().flat_map(|(group, operations)| {
        operations
            .into_iter()
            .map(move |operation| Operation { group, ..operation })
    });
    named.collect()
}

fn jobs() -> Vec<Operation> {
    let of_job = |path, id| {
        Operation::new("get", path, id)
            .path("id", JOB_NAME)
            .query("app", APP, of::<String>)
            .refuses(&[404])
    };
    vec![
        Operation::new("post", "/v1/jobs", "submitJob")
            .summary("Submit a job")
            .about(SUBMIT)
            .query(
                "priority",
                "The priority of a job that has none; `normal` if left out.",
                of::<Priority>,
            )
            .query("dry_run", "Only check the job.", of::<bool>)
            .query(
                "column",
                "Name of the column with the recipients, for a CSV with several; its number if the first line is no \
                 heading.",
                of::<String>,
            )
            .query(
                "vars",
                "Take the other columns of a CSV as the recipient's values for placeholders.",
                of::<bool>,
            )
            .header("Idempotency-Key", "The `client_msg_no` of a job that has none.")
            .header(
                "Prefer",
                "`wait=10`: answer when the job is completed, or after this many seconds.",
            )
            .header(
                "Fanwise-Job-Spec",
                "The job of an uploaded list, as JSON or base64 of it. All headers together may have at most \
                 32 KiB; send a longer job as a form.",
            )
            .header("traceparent", "W3C trace context; it travels up to the send.")
            .takes(json(of::<JobDocument>))
            .example(r#"{"v":1,"client_msg_no":"spring-sale","audience":{"users":["ann","bob"]},"message":{"type":"text","text":"Spring sale starts now"}}"#)
            .takes(content(NDJSON, of::<MemberDocument>))
            .takes(text("text/csv"))
            .takes(text("text/plain"))
            .takes(content("multipart/form-data", of::<UploadForm>))
            .answers(
                202,
                "Accepted: the job is durable, and is sent in its turn.",
                vec![json(of::<Submitted>)],
            )
            .answers(
                200,
                "All of the job was known before, the job was waited for and is completed, or it was only checked.",
                vec![json(of::<Submitted>)],
            )
            .refuses(&[409, 415]),
        Operation::new("get", "/v1/jobs", "listJobs")
            .summary("Running jobs, and jobs that completed within the dedup window, newest first")
            .query("app", "Only jobs of this app.", of::<String>)
            .query("target", "Only jobs to this target.", of::<String>)
            .query(
                "client_msg_no",
                "Only jobs with this key; with `app` it finds the one job at once.",
                of::<String>,
            )
            .query("tag", "Only jobs with this tag.", of::<String>)
            .query("state", "Only jobs in this state.", of::<JobState>)
            .query("since", "Accepted at or after this: an RFC 3339 time, or a time ago such as `2h`.", moment)
            .query("until", "Accepted before this.", moment)
            .query("scheduled", "Only jobs whose start time is still to come.", of::<bool>)
            .query("limit", "Jobs on a page; 50 if left out.", |_| number(LIST_MAX))
            .query("cursor", CURSOR, of::<String>)
            .answers(200, "A page of jobs.", vec![json(of::<JobList>)]),
        of_job("/v1/jobs/{id}", "showJob")
            .summary("One job: accounts, speed, time left, and what limits it")
            .answers(200, "The job.", vec![json(of::<JobDetail>)]),
        of_job("/v1/jobs/{id}/events", "followJob")
            .summary("Server-sent events of one job")
            .about(FOLLOW)
            .header("Last-Event-ID", "Id of the last event that was received.")
            .answers(
                200,
                "Events as they happen.",
                vec![content(EVENTS, of::<ServerSentEvent>)],
            )
            .answers(204, "The client has seen the end and need not reconnect.", vec![]),
        Operation::new("get", "/v1/events", "followJobs")
            .summary("Server-sent events of all jobs")
            .about(FOLLOW_ALL)
            .query("app", "Only jobs of this app.", of::<String>)
            .query("target", "Only jobs to this target.", of::<String>)
            .answers(
                200,
                "Events as they happen.",
                vec![content(EVENTS, of::<ServerSentEvent>)],
            ),
        of_job("/v1/jobs/{id}/recipients/{user}", "showRecipient")
            .path("user", "The recipient.")
            .summary("Whether this user got the message, and if not, why")
            .answers(200, "The state of the recipient, with an explanation.", vec![json(of::<RecipientFate>)]),
        Operation::new("post", "/v1/jobs/{id}/recipients:lookup", "lookUpRecipients")
            .path("id", JOB_NAME)
            .query("app", APP, of::<String>)
            .refuses(&[404])
            .summary("What became of each recipient of a list")
            .about(LOOK_UP)
            .takes(content(NDJSON, of::<MemberDocument>))
            .example(r#""ann""#)
            .takes(text("text/csv"))
            .takes(text("text/plain"))
            .answers(
                200,
                "A line for each recipient, in the order of the list.",
                vec![content(NDJSON, of::<RecipientRow>)],
            ),
        Operation::new("post", "/v1/jobs/{id}/uncertain:resolve", "resolveUncertain")
            .path("id", JOB_NAME)
            .query("app", APP, of::<String>)
            .refuses(&[404])
            .summary("Say what became of uncertain recipients, or send to them again")
            .about(RESOLVE)
            .takes(json(of::<ResolveRequest>))
            .example(r#"{"to":"sent","recipients":["ann"],"reason":"seen in the backend's log"}"#)
            .answers(200, "How many were uncertain and are no longer.", vec![json(of::<Resolved>)]),
        of_job("/v1/jobs/{id}/verification", "verifyJob")
            .summary("The accounts, counted again in the ledger")
            .answers(
                200,
                "The counters, the count in the ledger, and the differences between them.",
                vec![json(of::<Verification>)],
            ),
    ]
}

fn dead_letters() -> Vec<Operation> {
    vec![
        Operation::new("get", "/v1/dead", "listDeadLetters")
            .summary("Dead letters, one row for each recipient")
            .about("A page of them, or all of them as lines with `Accept: application/x-ndjson`. Recipients that the ledger knows not to be dead are left out.")
            .answers(404, "There is no such job, app or target.", vec![])
            .query("job", "Only this job: its id, or its `client_msg_no` together with `app`.", of::<String>)
            .query("app", "Only this app.", of::<String>)
            .query("target", "Only this target.", of::<String>)
            .query("recipient", "Only this recipient.", of::<String>)
            .query("outcome", "Only this outcome.", dead_outcome)
            .query("class", "Only this class of the last answer.", dead_class)
            .query("code", "Only this code of the backend.", of::<String>)
            .query("since", "Last attempt at or after this: an RFC 3339 time, or a time ago such as `2h`.", moment)
            .query("until", "Last attempt before this.", moment)
            .query("content", "Include the messages; then at most 100 rows on a page.", of::<bool>)
            .query("limit", "Rows on a page; 100 if left out.", |_| number(dead::PAGE_MAX))
            .query("cursor", CURSOR, of::<String>)
            .answers(
                200,
                "A page, or all of them as lines.",
                vec![json(of::<DeadList>), content(NDJSON, of::<DeadRow>)],
            ),
        Operation::new("post", "/v1/dead:redrive", "redriveDeadLetters")
            .summary("Send to recipients of dead letters again")
            .about("Makes new jobs of the letters that the filter selects, by the rules of every job. Failed recipients are sent to again, uncertain ones only on request. Recipients that were redriven before are not sent to again.")
            .answers(404, "There is no such job, app or target.", vec![])
            .takes(json(of::<RedriveRequest>))
            .example(r#"{"code":"503","since":"2h","dry_run":true}"#)
            .answers(200, "What was done, or would be.", vec![json(of::<Redriven>)]),
        Operation::new("post", "/v1/dead:purge", "purgeDeadLetters")
            .summary("Remove dead letters permanently")
            .takes(json(of::<PurgeRequest>))
            .example(r#"{"until":"72h","dry_run":true}"#)
            .answers(200, "What was removed, or would be.", vec![json(of::<Purged>)]),
        Operation::new("get", "/v1/rejected", "listRejected")
            .summary("Rejected messages, as lines")
            .answers(200, "All of them.", vec![content(NDJSON, of::<KeptLine>)]),
        Operation::new("get", "/v1/backup", "backUp")
            .summary("A copy of the embedded store, made while it works")
            .answers(404, "The data is in RabbitMQ and Redis.", vec![])
            .answers(200, "The file.", vec![content("application/octet-stream", of::<String>)]),
    ]
}

fn templates() -> Vec<Operation> {
    let one = |method, id| {
        Operation::new(method, "/v1/templates/{name}", id)
            .path("name", "Name of the stored message.")
            .query("app", APP, of::<String>)
    };
    vec![
        Operation::new("get", "/v1/templates", "listTemplates")
            .summary("Stored messages of an app")
            .query("app", APP, of::<String>)
            .answers(200, "All of them.", vec![json(of::<Vec<TemplateRow>>)]),
        one("get", "showTemplate")
            .summary("One stored message")
            .query("version", "The newest if left out.", of::<u32>)
            .answers(200, "The message.", vec![json(of::<TemplateView>)])
            .refuses(&[404]),
        one("put", "putTemplate")
            .summary("Store a message, as its next version")
            .about("Jobs that have started keep the version they started with.")
            .takes(json(of::<MessageDocument>))
            .example(r#"{"type":"text","text":"Hello {{ name }}"}"#)
            .answers(
                200,
                "The message as it is stored.",
                vec![json(of::<TemplateView>)],
            ),
        one("delete", "deleteTemplate")
            .summary("Remove a stored message")
            .answers(204, "It is removed.", vec![])
            .refuses(&[404]),
    ]
}

fn steering() -> Vec<Operation> {
    let told = |path, id, parameter: (&'static str, &'static str)| {
        Operation::new("post", path, id)
            .path(parameter.0, parameter.1)
            .answers(
                200,
                "The state that results.",
                vec![json(of::<ControlResult>)],
            )
            .refuses(&[404, 409])
    };
    let order = |operation: Operation| {
        operation
            .takes(json(of::<DirectiveRequest>))
            .example(r#"{"reason":"wrong picture","author":"ana","expires_in":"30m"}"#)
            .may_be_empty()
    };
    let many = |path, id| {
        Operation::new("post", path, id)
            .about(MANY)
            .takes(json(of::<ManyRequest>))
            .example(r#"{"app":"shop","tag":"spring","reason":"wrong picture","dry_run":true}"#)
            .answers(
                200,
                "How many jobs were selected and changed.",
                vec![json(of::<ManyResult>)],
            )
            .refuses(&[404])
    };
    let job = |path, id| order(told(path, id, ("id", JOB_ID)));
    let app = |path, id| order(told(path, id, ("name", "Name of the app.")));
    let target = |path, id| order(told(path, id, ("name", "Name of the target.")));
    vec![
        job("/v1/jobs/{id}:pause", "pauseJob").summary("Pause a job"),
        job("/v1/jobs/{id}:resume", "resumeJob").summary("Resume a paused job"),
        job("/v1/jobs/{id}:cancel", "cancelJob")
            .summary("Cancel a job: recipients without an outcome end cancelled"),
        told("/v1/jobs/{id}:rate", "rateJob", ("id", JOB_ID))
            .summary("Set the rate of a job")
            .takes(json(of::<RateRequest>))
            .example(r#"{"rate":"500/s","reason":"slow backend"}"#),
        told("/v1/jobs/{id}:priority", "prioritiseJob", ("id", JOB_ID))
            .summary("Set the priority of a job")
            .takes(json(of::<PriorityRequest>))
            .example(r#"{"priority":"high","reason":"urgent"}"#),
        told("/v1/jobs/{id}:schedule", "scheduleJob", ("id", JOB_ID))
            .summary("Move the start of a job")
            .takes(json(of::<ScheduleRequest>))
            .example(r#"{"not_before":"2026-12-24T18:00:00+08:00"}"#),
        told("/v1/jobs/{id}:deadline", "setDeadline", ("id", JOB_ID))
            .summary("Set the time from which no recipient of a job is sent to")
            .takes(json(of::<DeadlineRequest>))
            .example(r#"{"expires_at":"2026-12-25T00:00:00+08:00"}"#),
        told("/v1/jobs/{id}:pace", "paceJob", ("id", JOB_ID))
            .summary("Spread a job evenly until a time")
            .takes(json(of::<PaceRequest>))
            .example(r#"{"pace_until":"2026-12-24T20:00:00+08:00"}"#),
        told("/v1/jobs/{id}:repair", "repairJob", ("id", JOB_ID))
            .summary("Look for what is left of a job, and end it if nothing is")
            .takes(json(of::<RepairRequest>))
            .example(r#"{"reason":"a queue was purged"}"#),
        Operation::new("post", "/v1/jobs/{id}:recall", "recallJob")
            .path("id", JOB_ID)
            .summary("Take the messages of a completed job back")
            .about(RECALL)
            .takes(json(of::<RecallRequest>))
            .example(r#"{"confirm":true,"reason":"wrong price","author":"ana"}"#)
            .answers(
                200,
                "What became of its messages.",
                vec![json(of::<RecallResult>)],
            )
            .refuses(&[404, 409]),
        many("/v1/jobs:cancel", "cancelJobs")
            .summary("Cancel all jobs of an app, a target or a tag"),
        many("/v1/jobs:pause", "pauseJobs").summary("Pause all jobs of an app, a target or a tag"),
        many("/v1/jobs:resume", "resumeJobs")
            .summary("Resume all jobs of an app, a target or a tag"),
        many("/v1/jobs:priority", "prioritiseJobs")
            .summary("Set the priority of all jobs of an app, a target or a tag"),
        app("/v1/apps/{name}:pause", "pauseApp").summary("Pause all jobs of an app"),
        app("/v1/apps/{name}:resume", "resumeApp").summary("Resume a paused app"),
        target("/v1/targets/{name}:pause", "pauseTarget").summary("Pause a target"),
        target("/v1/targets/{name}:resume", "resumeTarget").summary("Resume a paused target"),
        target("/v1/targets/{name}:park", "parkTarget")
            .summary("Park a target, for 10 minutes unless `expires_in` says otherwise"),
        target("/v1/targets/{name}:unpark", "unparkTarget").summary("Unpark a target"),
        Operation::new("post", "/v1/targets/{name}:test", "testTarget")
            .path("name", "Name of the target in the configuration.")
            .summary("Send one message to one user through a target, and show the request and the answer")
            .about(TEST)
            .takes(json(of::<TestRequest>))
            .example(r#"{"to":"ann"}"#)
            .answers(
                200,
                "What the target made of it; `sent` says whether it accepted the message.",
                vec![json(of::<Tested>)],
            )
            .refuses(&[404]),
        Operation::new("get", "/v1/targets", "listTargets")
            .summary("Targets and their state")
            .answers(200, "All of them.", vec![json(of::<Vec<TargetView>>)]),
        Operation::new("get", "/v1/limits", "listLimits")
            .summary(
                "Limits of targets and apps, shared ones, and those of jobs that have a live one",
            )
            .answers(200, "All of them.", vec![json(of::<Vec<LimitView>>)]),
        Operation::new("put", "/v1/limits", "setLimit")
            .summary("Set a limit of a target, an app or a job, or one that targets share")
            .takes(json(of::<LimitRequest>))
            .example(r#"{"scope":"app","name":"default","rate":"50/s"}"#)
            .answers(
                200,
                "The state that results.",
                vec![json(of::<ControlResult>)],
            )
            .refuses(&[404, 409]),
        Operation::new("get", "/v1/directives", "listDirectives")
            .summary("All directives in force")
            .answers(200, "All of them.", vec![json(of::<Vec<DirectiveView>>)]),
    ]
}

fn about() -> Vec<Operation> {
    vec![
        Operation::new("get", "/v1/about", "about")
            .summary("The process that answers, whether its parts work, and what the caller may do")
            .answers(200, "What is known.", vec![json(of::<About>)]),
        Operation::new("get", "/openapi.json", "openApi")
            .summary("This document")
            .answers(
                200,
                "OpenAPI 3.1.",
                vec![json(of::<serde_json::Map<String, serde_json::Value>>)],
            )
            .open()
            .refuses(&[400]),
        Operation::new("get", "/docs", "documentation")
            .summary("This document as a page for people")
            .answers(200, "HTML, complete in itself.", vec![text("text/html")])
            .open()
            .refuses(&[400]),
        Operation::new("get", "/livez", "live")
            .summary("Whether the process serves")
            .open()
            .answers(200, "It does.", vec![text("text/plain")]),
    ]
}
