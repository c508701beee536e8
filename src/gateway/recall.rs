//! Recalls the messages of a job: `POST /v1/jobs/{job}:recall`.
//!
//! One request works for as long as a request may wait (`gateway.wait_max`), and its answer says how
//! many messages are left. The client repeats it until none is.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Gateway;
use super::asker::Asker;
use super::problem::Refusal;
use super::query::unknown;
use crate::clock::now_ms;
use crate::domain::fields::{Fields, Problem, Problems};
use crate::domain::ids::JobId;
use crate::ports::{Broker, JobRecord, JobState, Store, Transport};
use crate::runtime::{NoRecall, Recallable};
use crate::service::api::{RecallRequest, RecallResult};
use crate::service::control::{self, DirectiveNote};

/// The jobs whose messages this gateway recalls now.
#[derive(Clone, Default)]
pub(super) struct Recalls(Arc<Mutex<HashSet<JobId>>>);

/// One of them, until it is dropped.
struct Mine(Recalls, JobId);

impl Recalls {
    fn begin(&self, job: JobId) -> Option<Mine> {
        let is_first = self.0.lock().insert(job);
        is_first.then(|| Mine(self.clone(), job))
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

pub(super) async fn recall<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    job: JobId,
    asker: &Asker,
    body: &[u8],
) -> Result<RecallResult, Refusal> {
    let request = parse(body).map_err(Refusal::BadRequest)?;
    let context = &*gateway.context;
    let record = context.store.job(job).await?;
    let own = asker.own_app();
    let record = record.filter(|it| own.is_none_or(|app| it.app == app));
    let record = record.ok_or_else(|| unknown(&job.to_string()))?;
    let recallable = Recallable::of(context, &record).map_err(|error| match error {
        NoRecall(what) => Refusal::BadRequest(vec![Problem::new("", what)]),
    })?;
    let before = recallable.count(&context.store).await?;
    if request.dry_run {
        return Ok(before);
    }
    if record.state != JobState::Completed {
        let what = "the job still sends: cancel it first, then recall what it has sent";
        return Err(Refusal::TooLate(what.to_owned()));
    }
    if !request.confirm {
        let what = format!(
            "missing; {} message(s) would disappear from the devices of their recipients, which cannot \
             be undone: say \"confirm\": true",
            before.left
        );
        return Err(Refusal::BadRequest(vec![Problem::new("confirm", what)]));
    }
    let Some(_mine) = gateway.recalls.begin(job) else {
        let what = "another request recalls the messages of this job now; repeat this one later";
        return Err(Refusal::Unavailable(what.to_owned()));
    };
    let note = DirectiveNote {
        reason: request.reason,
        author: request.author,
        expires_in: None,
        origin: asker.origin.clone(),
    };
    let is_new = before.recalled == 0 && before.refused == 0;
    if is_new && before.left > 0 {
        noted(
            context,
            &record,
            format!("of {} message(s)", before.left),
            &note,
        )
        .await?;
    }
    let had_left = before.left > 0;
    let until = Instant::now() + gateway.wait_max;
    let result = recallable.run(context, before, until).await?;
    if had_left && result.left == 0 {
        let (recalled, refused) = (result.recalled, result.refused);
        let detail = format!("ended: {recalled} recalled, {refused} cannot be recalled");
        noted(context, &record, detail, &note).await?;
    }
    tracing::info!(
        job.id = %job, author = note.author, reason = note.reason,
        recalled = result.recalled, refused = result.refused, left = result.left,
        failed = result.failed, stopped = result.stopped, "messages recalled"
    );
    Ok(result)
}

async fn noted<S: Store, T>(
    context: &crate::runtime::Context<S, T>,
    record: &JobRecord,
    detail: String,
    note: &DirectiveNote,
) -> Result<(), Refusal> {
    let noted = control::note_recall(&context.store, record, detail, note, now_ms());
    Ok(noted.await?)
}

fn parse(body: &[u8]) -> Result<RecallRequest, Vec<Problem>> {
    let mut problems = Problems::default();
    let text = std::str::from_utf8(body)
        .map_err(|error| vec![Problem::new("", format!("not UTF-8: {error}"))])?;
    let text = if text.trim().is_empty() { "{}" } else { text };
    let mut request = RecallRequest::default();
    if let Some(mut fields) = Fields::open("", text, &mut problems) {
        let mut flag = |name| fields.get(name, "true or false", &mut problems);
        request.confirm = flag("confirm").unwrap_or_default();
        request.dry_run = flag("dry_run").unwrap_or_default();
        request.reason = fields.get("reason", "a text", &mut problems);
        request.author = fields.get("author", "a text", &mut problems);
        fields.finish(&mut problems);
    }
    match problems.is_empty() {
        true => Ok(request),
        false => Err(problems.into()),
    }
}
