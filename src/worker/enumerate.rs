//! Expands an audience of all users: asks the target for its users page by page, and makes every
//! few pages a part of the job, with an explicit list.
//!
//! The request for pages is a message on the target's lane: a slice without recipients that carries
//! the cursor. So it waits for a parked target like any other slice, is retried on the retry
//! ladder, and continues at its cursor when a worker dies. A fault that it meets, such as a wrong
//! password of the directory, parks the job, and parks the target when a second job meets the same
//! fault, as with a send. One turn publishes the part and the next request together, confirmed,
//! before its ack. A turn that is repeated publishes the same part again, which the ledger absorbs.
//!
//! The number of parts is known only at the end. Each part announces one more until the last one,
//! so the job cannot be completed before.

use std::sync::Arc;
use std::time::Duration;

use super::delivery::DeliveryEnd;
use super::session::WorkerSession;
use crate::clock::{now_ms, rfc3339};
use crate::domain::audience::{MemberDocument, fold};
use crate::domain::directive::Go;
use crate::domain::job::{AudienceDocument, JOB_BYTES_MAX, JobDocument, ListPart};
use crate::domain::mapping::Strictness;
use crate::domain::outcome::{Class, TargetAnswer};
use crate::domain::schedule::rung;
use crate::domain::slice::{Enumeration, Head, Slice};
use crate::domain::window::Window;
use crate::json;
use crate::ports::{Directory, Lost, Outgoing, Page, Publisher, Route, Store, Transport};
use crate::runtime::WAIT_MAX;
use crate::runtime::call::authorised;
use crate::runtime::context::TargetRuntime;
use crate::runtime::credential::Held;

/// A part is published when it has this many users, or this many bytes of them. This is not the
/// rule of [`crate::domain::parts`]: a part ends with a page, because a cursor continues at the next
/// page only, so these numbers say when to ask for no further page.
const PART_USERS: usize = 20_000;
const PART_BYTES: usize = JOB_BYTES_MAX / 4;

/// Most pages of one turn, so that a slice is acked in time even if its pages hold few users.
const PAGES: usize = 100;

/// Takes one turn.
pub(super) async fn enumerate<S: Store, T: Transport, P: Publisher>(
    session: &WorkerSession<S, T, P>,
    target: &TargetRuntime,
    slice: &Slice,
    asking: &Enumeration,
    traceparent: Option<String>,
) -> Result<DeliveryEnd, Lost> {
    let turn = Turn {
        session,
        target,
        slice,
        asking,
        traceparent,
    };
    turn.take().await
}

struct Turn<'a, S, T, P> {
    session: &'a WorkerSession<S, T, P>,
    target: &'a TargetRuntime,
    slice: &'a Slice,
    asking: &'a Enumeration,
    traceparent: Option<String>,
}

/// The users that a turn found, and the cursor of the next page.
struct Found {
    users: Vec<MemberDocument>,
    next: Option<String>,
}

impl<S: Store, T: Transport, P: Publisher> Turn<'_, S, T, P> {
    async fn take(&self) -> Result<DeliveryEnd, Lost> {
        let head = &*self.slice.head;
        if self.session.halt.is_cancelled() {
            return self.ask_again(Duration::ZERO, self.asking.clone()).await;
        }
        if let Some(left) = self.session.context.parked_for(&self.target.name) {
            return self.ask_again(left, self.asking.clone()).await;
        }
        let job = head.id.to_string();
        let control = {
            let directives = self.session.context.directives();
            let board = directives.borrow();
            board.control([&head.target, &head.app, &job], now_ms())
        };
        if let Go::Wait(wait) = control.go {
            return self.ask_again(wait, self.asking.clone()).await;
        }
        let Some(directory) = self.target.target.directory() else {
            let what = format!("target {:?} cannot list its users", head.target);
            return Ok(DeliveryEnd::Reject(what));
        };
        // No further recipient may be sent to: the job ends with the recipients that it has.
        let (_, expires_at) = control.times(head);
        let expired = expires_at.is_some_and(|at| now_ms() >= at);
        let found = if expired || control.go == Go::Cancelled {
            Ok(Found {
                users: Vec::new(),
                next: None,
            })
        } else {
            self.find(directory).await
        };
        match found {
            Ok(found) => self.publish(found).await,
            Err(answer) => self.failed(answer).await,
        }
    }

    /// Asks for pages until there are enough users for a part.
    async fn find(&self, directory: &dyn Directory) -> Result<Found, TargetAnswer> {
        let profile = self.target.target.profile();
        let mut found = Found {
            users: Vec::new(),
            next: self.asking.cursor.clone(),
        };
        let mut bytes = 0;
        for _ in 0..PAGES {
            let Page { users, next, .. } = self.page(directory, found.next.as_deref()).await?;
            self.target.health.succeeded(now_ms());
            for user in users {
                let mut id = user.into();
                fold(&mut id, profile.folds_case);
                if self.is_wanted(&id, &profile.left_out) {
                    bytes += json::size(&*id) + 1;
                    found.users.push(MemberDocument::Id(id.into_owned()));
                }
            }
            found.next = next;
            if found.next.is_none() || found.users.len() >= PART_USERS || bytes >= PART_BYTES {
                break;
            }
        }
        Ok(found)
    }

    /// Asks for one page. If the credential was refused, asks once more with a new one.
    async fn page(
        &self,
        directory: &dyn Directory,
        cursor: Option<&str>,
    ) -> Result<Page, TargetAnswer> {
        let _permit = self.target.calls.take().await;
        match self.ask(directory, cursor).await? {
            (Err(answer), Some(held)) if answer.stale => {
                self.target.directory_keyring.refuse(&held);
                self.ask(directory, cursor).await?.0
            }
            (page, _) => page,
        }
    }

    /// Asks for one page, once. The outer error means that the request could not be made.
    async fn ask(
        &self,
        directory: &dyn Directory,
        cursor: Option<&str>,
    ) -> Result<(Result<Page, TargetAnswer>, Option<Arc<Held>>), TargetAnswer> {
        let transport = &self.session.context.transport;
        let (keyring, timeout) = (&self.target.directory_keyring, self.target.call_timeout);
        let login = directory.login();
        let sign = |request: &mut _, signing| self.target.target.sign(request, signing);
        let request = || directory.page(cursor);
        let (reply, held) = authorised(transport, login, keyring, timeout, sign, request).await?;
        let page = match reply {
            Ok(reply) => directory.read_page(cursor, &reply),
            Err(error) => Err(TargetAnswer::from(&error)),
        };
        Ok((page, held))
    }

    fn is_wanted(&self, id: &str, left_out: &[String]) -> bool {
        let sender = self.slice.head.sender.as_deref();
        sender != Some(id)
            && !left_out.iter().any(|left_out| left_out == id)
            && self
                .asking
                .exclude
                .binary_search_by(|it| (**it).cmp(id))
                .is_err()
    }

    /// Publishes the part, and the next request if there are more users.
    async fn publish(&self, found: Found) -> Result<DeliveryEnd, Lost> {
        let number = self.asking.number;
        let last = found.next.is_none();
        let mut messages = Vec::with_capacity(2);
        if last || !found.users.is_empty() {
            // The request for users counts as one submission; a part that is not the last one
            // announces another.
            let of = number.saturating_add(if last { 1 } else { 2 });
            let body = part(
                &self.slice.head,
                found.users,
                ListPart {
                    number,
                    of,
                    together: None,
                },
            );
            messages.push(Outgoing {
                route: Route::Job(self.slice.head.priority),
                body: body.into(),
                message_id: format!("{}/all/{number}", self.slice.head.id),
                traceparent: self.traceparent.clone(),
            });
        }
        if let Some(cursor) = found.next {
            let next = Enumeration {
                cursor: Some(cursor),
                number: number.saturating_add(messages.len() as u32),
                failures: 0,
                exclude: self.asking.exclude.clone(),
            };
            let lane = self.slice.lane.clone();
            messages.push(self.asking_message(Route::Lane(lane), next));
        }
        self.session.publish(messages).await?;
        Ok(DeliveryEnd::Done)
    }

    fn asking_message(&self, route: Route, asking: Enumeration) -> Outgoing {
        let mut slice = self.slice.clone();
        slice.enumeration = Some(asking);
        slice.outgoing(route, self.traceparent.clone())
    }

    /// Publishes the request again, to come back after a while.
    async fn ask_again(&self, wait: Duration, asking: Enumeration) -> Result<DeliveryEnd, Lost> {
        self.session.context.note_waiting(self.slice.head.id).await;
        let lane = self.slice.lane.clone();
        let route = if wait.is_zero() {
            Route::Lane(lane)
        } else {
            let rung = rung(wait);
            Route::Wait { lane, rung }
        };
        let message = self.asking_message(route, asking);
        self.session.publish(vec![message]).await?;
        Ok(DeliveryEnd::Deferred)
    }

    /// Asks again a directory that does not answer, until it does: without a list there are no
    /// recipients that could fail. Its answer has the same meaning for the target as the answer to
    /// a send.
    async fn failed(&self, mut answer: TargetAnswer) -> Result<DeliveryEnd, Lost> {
        let context = &*self.session.context;
        answer.text = format!("its users cannot be listed: {}", answer.text).into();
        // No recipient is refused here, so a permanent refusal is about the configuration of the
        // target.
        let class = match answer.class {
            Class::Permanent => Class::Config,
            class => class,
        };
        if class == Class::Config {
            // Only jobs to all users ask the directory, so a fault there does not concern other
            // jobs.
            answer.reached = true;
        }
        let job = self.slice.head.id.to_string();
        // Users are listed without a sender.
        context.heed(self.target, &job, None, class, &answer).await;
        // A parked job finds out that it is parked when it comes back.
        let parked = context.parked_for(&self.target.name).unwrap_or(WAIT_MAX);
        if let Class::Config | Class::Throttled = class {
            return self.ask_again(parked, self.asking.clone()).await;
        }
        let failures = self.asking.failures.saturating_add(1);
        let wait = context.settings.retry.delay(failures);
        tracing::warn!(
            job.id = %self.slice.head.id, target.name = self.target.name, code = %answer.code,
            wait_ms = wait.as_millis() as u64,
            "a target is asked again: {}", answer.text
        );
        let asking = Enumeration {
            failures,
            ..self.asking.clone()
        };
        self.ask_again(wait, asking).await
    }
}

/// A part of the job with an explicit list.
fn part(head: &Head, users: Vec<MemberDocument>, part: ListPart) -> Vec<u8> {
    let audience = AudienceDocument {
        users: Some(users),
        ..AudienceDocument::default()
    };
    let document = JobDocument {
        app: Some(head.app.clone()),
        target: Some(head.target.clone()),
        sender: head.sender.clone(),
        options: Some(head.options.clone()),
        priority: Some(head.priority),
        not_before: head.not_before_ms.map(rfc3339),
        expires_at: head.expires_at_ms.map(rfc3339),
        window: head.window.as_ref().map(Window::hours),
        timezone: head.window.as_ref().map(|it| it.zone().to_owned()),
        timezone_var: head
            .window
            .as_ref()
            .and_then(|it| it.zone_var().map(ToOwned::to_owned)),
        pace_until: head.pace_until_ms.map(rfc3339),
        category: head.category.clone(),
        rate: head.rate.map(|rate| rate.short()),
        on_uncertain: head.on_uncertain,
        callback_url: head.callback_url.clone(),
        reply_to: head.reply_to.clone(),
        fallback: head.fallback.clone(),
        // The checks were made when the job was accepted.
        mapping: Some(Strictness::Lenient),
        part: Some(part),
        ..JobDocument::new(&head.client_msg_no, audience, head.message())
    };
    json::bytes(&document)
}
