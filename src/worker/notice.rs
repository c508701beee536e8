//! Notifies the callback URL and the reply queue that a job named when the job is completed.
//!
//! A callback is a message on the notices lane of the job's target, published before the job is
//! marked completed: if the worker dies in between, the next one publishes it again, under the same
//! id. From there it is one request at a time, retried on the retry ladder like a recipient, and
//! abandoned after as many attempts. Neither a parked target nor a directive affects it. A reply
//! over AMQP needs no lane: it goes straight to the broker.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use serde_json::value::RawValue;

use super::completion::{NotifiedJob, event};
use super::delivery::DeliveryEnd;
use super::session::WorkerSession;
use crate::clock::now_ms;
use crate::domain::announce::{EventKind, JobEvent};
use crate::domain::job::{Context as _, check_callback};
use crate::domain::lane::Lane;
use crate::domain::notice::{NOTICE_VERSION, Notice};
use crate::domain::schedule::rung;
use crate::error::chain;
use crate::json;
use crate::metrics::{NoticeKind, NoticeResult};
use crate::ports::{
    JobRecord, Lost, Outgoing, PublishError, Publisher, Request, Route, Store, Transport,
};
use crate::runtime::context::{Context, RECONNECT};

/// Holds the id of the notice, as in every request of Fanwise that a receiver may see twice.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

impl<S: Store, T, P: Publisher> WorkerSession<S, T, P> {
    /// Notifies those that the job named: `Ok` when the callback is durable and the reply
    /// published.
    pub(super) async fn notify(
        &self,
        job: &NotifiedJob<'_>,
        record: &JobRecord,
    ) -> Result<(), Lost> {
        // A record that was rebuilt from slices has no callback and no reply queue; the slices do.
        let url = record.callback_url.as_deref().or(job.callback_url);
        let queue = record.reply_to.as_deref().or(job.reply_to);
        if url.is_none() && queue.is_none() {
            return Ok(());
        }
        // Another end of the job is another notice.
        let id = match record.reopened {
            0 => format!("{}.{}", job.id, record.submissions),
            times => format!("{}.{}.{times}", job.id, record.submissions),
        };
        let event = JobEvent {
            id: Some(id.clone()),
            ..event(EventKind::Completed, job, record.accounts)
        };
        let event = json::raw(&event);
        if let Some(url) = url {
            let lane = Lane::of_notices(job.target);
            let notice = Notice {
                v: NOTICE_VERSION,
                id: id.clone(),
                app: job.app.to_owned(),
                url: url.to_owned(),
                lane: lane.clone(),
                failures: 0,
                event: event.clone(),
            };
            let message = outgoing(&notice, Route::Lane(lane), None);
            self.publish(vec![message]).await?;
        }
        match queue {
            Some(queue) => self.reply(job, queue, id, &event).await,
            None => Ok(()),
        }
    }

    /// Publishes to a reply queue. If the queue is gone or full, the reply is abandoned: the app
    /// that named the queue must fix it. If the broker does not confirm, the publish is repeated,
    /// as often as a recipient would be tried.
    async fn reply(
        &self,
        job: &NotifiedJob<'_>,
        queue: &str,
        id: String,
        event: &RawValue,
    ) -> Result<(), Lost> {
        let context = &*self.context;
        let given_up = |why: &str| {
            context
                .metrics
                .notice(NoticeKind::Reply, NoticeResult::Abandoned);
            tracing::warn!(
                job.id = %job.id, reply_to = queue, error = why,
                "no reply is sent over AMQP about the completed job"
            );
        };
        // The configuration may have changed since the job was accepted.
        if let Err(why) = context.check_reply_to(job.app, queue) {
            given_up(&why);
            return Ok(());
        }
        let message = Outgoing {
            route: Route::Reply {
                queue: queue.to_owned(),
                correlation_id: job.client_msg_no.to_owned(),
            },
            body: Bytes::copy_from_slice(event.get().as_bytes()),
            message_id: id,
            traceparent: None,
        };
        let mut delays = RECONNECT.delays();
        let mut attempt = 1;
        loop {
            let error = match self.publisher.publish(vec![message.clone()]).await {
                Ok(()) => {
                    let (kind, result) = (NoticeKind::Reply, NoticeResult::Delivered);
                    context.metrics.notice(kind, result);
                    return Ok(());
                }
                Err(PublishError::Lost(lost)) => return Err(lost),
                Err(error) => error,
            };
            let passes = matches!(error, PublishError::Timeout(_) | PublishError::Store(_));
            if !passes || attempt >= context.settings.attempts_max {
                given_up(&chain(&error).to_string());
                return Ok(());
            }
            context
                .metrics
                .notice(NoticeKind::Reply, NoticeResult::Retried);
            attempt += 1;
            tokio::select! {
                biased;
                () = self.lost.cancelled() => return Err(Lost),
                () = tokio::time::sleep(delays.next_delay()) => {}
            }
        }
    }
}

/// Works on one notice of a notices lane. It is retried on that lane, whatever lane the notice
/// names.
pub(super) async fn deliver_notice<S: Store, T: Transport, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    lane: Lane,
    body: Bytes,
    traceparent: Option<String>,
) -> DeliveryEnd {
    match serde_json::from_slice(&body) {
        Ok(notice) => {
            let notice = Notice {
                lane: lane.clone(),
                ..notice
            };
            attempt(session, notice, traceparent)
                .await
                .unwrap_or(DeliveryEnd::Lost)
        }
        Err(error) => DeliveryEnd::Reject(format!("not a notice: {error}")),
    }
}

async fn attempt<S: Store, T: Transport, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    notice: Notice,
    traceparent: Option<String>,
) -> Result<DeliveryEnd, Lost> {
    let context = &*session.context;
    let lane = notice.lane.clone();
    if session.halt.is_cancelled() {
        let message = outgoing(&notice, Route::Lane(lane), traceparent);
        session.publish(vec![message]).await?;
        return Ok(DeliveryEnd::Deferred);
    }
    let count = |result| context.metrics.notice(NoticeKind::Callback, result);
    let what = match call(context, &notice, traceparent.as_deref()).await {
        Ok(()) => {
            count(NoticeResult::Delivered);
            return Ok(DeliveryEnd::Done);
        }
        Err(what) => what,
    };
    let failures = notice.failures.saturating_add(1);
    if failures >= context.settings.attempts_max {
        count(NoticeResult::Abandoned);
        tracing::warn!(
            notice.id = notice.id,
            notice.app = notice.app,
            attempts = failures,
            "a callback is abandoned: {what}"
        );
        return Ok(DeliveryEnd::Done);
    }
    count(NoticeResult::Retried);
    let wait = context.settings.retry.delay(failures);
    tracing::info!(
        notice.id = notice.id,
        notice.app = notice.app,
        attempts = failures,
        wait_ms = wait.as_millis() as u64,
        "a callback is tried again: {what}"
    );
    let notice = Notice { failures, ..notice };
    let rung = rung(wait);
    let message = outgoing(&notice, Route::Wait { lane, rung }, traceparent);
    session.publish(vec![message]).await?;
    Ok(DeliveryEnd::Deferred)
}

/// Makes one request. Returns an error text unless the receiver answers 2xx.
async fn call<S, T: Transport>(
    context: &Context<S, T>,
    notice: &Notice,
    traceparent: Option<&str>,
) -> Result<(), String> {
    let callbacks = context.callbacks.get(&notice.app);
    // The configuration may have changed since the job was accepted.
    check_callback(&notice.app, callbacks.map(|it| &it.rules), &notice.url)?;
    let Some(callbacks) = callbacks else {
        return Ok(());
    };
    let uri: Uri = notice.url.parse().map_err(|_| "not a URL".to_owned())?;
    let body = Bytes::copy_from_slice(notice.event.get().as_bytes());
    let text = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let id = text(&notice.id)?;
    headers.insert(IDEMPOTENCY_KEY, id.clone());
    let signer = &callbacks.signer;
    signer.sign(&mut headers, &id, now_ms(), &body);
    if let Some(traceparent) = traceparent {
        headers.insert("traceparent", text(traceparent)?);
    }
    let request = Request {
        method: Method::POST,
        uri,
        headers,
        body,
    };
    match callbacks.transport.send(request, callbacks.timeout).await {
        Ok(reply) if (200..300).contains(&reply.status) => Ok(()),
        Ok(reply) => Err(format!("the receiver answers {}", reply.status)),
        Err(error) => Err(error.to_string()),
    }
}

fn outgoing(notice: &Notice, route: Route, traceparent: Option<String>) -> Outgoing {
    Outgoing {
        route,
        body: json::bytes(notice).into(),
        message_id: format!("{}/notice", notice.id),
        traceparent,
    }
}
