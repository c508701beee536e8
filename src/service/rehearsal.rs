//! What a dry run tells, beyond that a job would be accepted: the message as its first recipients
//! would get it, how many recipients could not get it, and what sending it would take.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use super::admission::{Admission, Refused, Rules, resolve};
use super::api::{Estimate, Preview, TimeLimit};
use super::control::{Facts, LimitedJob, in_force};
use crate::clock::now;
use crate::domain::directive::Board;
use crate::domain::job::Job;
use crate::domain::job_limits::LimitOf;
use crate::domain::limits::{Cost, Weight};
use crate::domain::moment;
use crate::domain::personal::Personal;
use crate::domain::slice::Head;
use crate::domain::spread;
use crate::ports::{Request, Target};

/// Recipients for whom the message is shown.
pub const PREVIEWS: usize = 5;

/// Recipients for whom a personal message is rendered, so that the dry run of a long list takes
/// seconds at most.
const RENDERED_MAX: u64 = 100_000;

/// A job as it would be sent.
pub struct Rehearsal {
    head: Arc<Head>,
    personal: Option<Personal>,
    /// The message as each of the first recipients would get it, or why not.
    first: Vec<(String, Result<Arc<Head>, String>)>,
    rendered: u64,
    would_fail: u64,
}

impl Rehearsal {
    /// `message` is a message of the job with its first recipients.
    pub async fn of<A: Admission>(admission: &A, message: &[u8]) -> Result<Self, Refused> {
        let rules = admission.rules();
        let job = Job::parse(message, None, rules, now()).map_err(Refused::Problems)?;
        let head = resolve(admission, &job.head, None).await?.head;
        let mut rehearsal = Self {
            personal: Personal::of(&head).map_err(Refused::Problems)?,
            head,
            first: Vec::new(),
            rendered: 0,
            would_fail: 0,
        };
        let target = rules.target(&job.head.target);
        job.for_each_recipient(|member| {
            if rehearsal.first.len() < PREVIEWS {
                let rendered = rehearsal.render(target, member.vars);
                rehearsal.first.push((member.id.into_owned(), rendered));
            }
        });
        Ok(rehearsal)
    }

    fn render(
        &self,
        target: Option<&dyn Target>,
        vars: Option<&RawValue>,
    ) -> Result<Arc<Head>, String> {
        let Some(personal) = &self.personal else {
            return Ok(Arc::clone(&self.head));
        };
        let head = personal.render(vars).map_err(|it| it.to_string())?;
        let problem = target.and_then(|target| target.check(&head).into_iter().next());
        problem.map_or(Ok(head), |problem| Err(problem.to_string()))
    }

    /// Whether each recipient gets a message of its own, which [`Self::count`] then renders.
    pub fn is_personal(&self) -> bool {
        self.personal.is_some()
    }

    /// Renders a personal message for the recipients of one message of the job, up to a bound.
    pub fn count(&mut self, rules: &impl Rules, message: &[u8]) -> Result<(), Refused> {
        if !self.is_personal() || self.rendered == RENDERED_MAX {
            return Ok(());
        }
        let job = Job::parse(message, None, rules, now()).map_err(Refused::Problems)?;
        let target = rules.target(&job.head.target);
        job.for_each_recipient(|member| {
            if self.rendered < RENDERED_MAX {
                self.rendered += 1;
                self.would_fail += u64::from(self.render(target, member.vars).is_err());
            }
        });
        Ok(())
    }

    pub fn previews(&self) -> Vec<Preview> {
        let first = self.first.iter();
        let previews = first.map(|(recipient, rendered)| Preview {
            recipient: recipient.clone(),
            message: rendered.as_ref().ok().map(|it| it.content.clone().into()),
            problem: rendered.as_ref().err().cloned(),
        });
        previews.collect()
    }

    /// What it takes to send the job to this number of recipients, with the limits in force.
    pub fn estimate(
        &self,
        rules: &impl Rules,
        recipients: u64,
        (facts, board): (&Facts, &Board),
        now_ms: u64,
    ) -> Option<Estimate> {
        let target = rules.target(&self.head.target)?;
        let (calls, bytes) = self.calls_and_bytes(target, recipients);
        let slowest = self.slowest(calls, recipients, facts, board, now_ms);
        let (seconds, limits) = slowest.unzip();
        let (limits, sentences): (Vec<_>, Vec<_>) = limits.into_iter().flatten().unzip();
        Some(Estimate {
            rendered: self.rendered,
            would_fail: self.would_fail,
            calls,
            bytes,
            seconds,
            limit: seconds.map(|_| sentences.join(", ")),
            limits,
        })
    }

    fn calls_and_bytes(&self, target: &dyn Target, recipients: u64) -> (u64, u64) {
        let bytes = |head: &Arc<Head>, to: &[&str]| size(&target.open(head).request(to));
        if self.is_personal() {
            let calls = recipients.saturating_sub(self.would_fail);
            let first = self.first.iter();
            let sizes = first.filter_map(|(to, head)| Some(bytes(head.as_ref().ok()?, &[to])));
            let (sum, count) = sizes.fold((0, 0), |(sum, count), size| (sum + size, count + 1));
            return (calls, calls * sum / count.max(1));
        }
        let per_call = target.recipients_per_call(&self.head).max(1);
        let to: Vec<_> = self.first.iter().map(|(to, _)| to.as_str()).collect();
        let to = &to[..to.len().min(per_call)];
        let Some(one) = to.get(..1).map(|one| bytes(&self.head, one)) else {
            return (0, 0);
        };
        let further = (to.len() as u64 - 1).max(1);
        let per_recipient = bytes(&self.head, to).saturating_sub(one) / further;
        let calls = recipients.div_ceil(per_call as u64);
        let rest = recipients.saturating_sub(calls);
        (calls, calls * one + rest * per_recipient)
    }

    /// The seconds until the last recipient can be sent to, at least, and what takes them.
    fn slowest(
        &self,
        calls: u64,
        recipients: u64,
        facts: &Facts,
        board: &Board,
        now_ms: u64,
    ) -> Option<(u64, Vec<(TimeLimit, String)>)> {
        let head = &*self.head;
        let of_app = facts.windows.get(&head.app);
        let windows = head.window.iter().chain(of_app);
        // The hours of recipients in zones of their own are not known.
        let windows = windows.filter(|window| window.zone_var().is_none());
        let start = head.not_before_ms.unwrap_or(0).max(now_ms);
        let (needed, limit) = self
            .limited(calls, recipients, facts, board, now_ms)
            .unzip();
        let needed = needed.unwrap_or_default();
        let mut end = spread::end_ms(&windows, start, needed);
        let mut why = limit;
        if let Some(until) = head.pace_until_ms {
            let gaps = recipients.saturating_sub(1) as f64 / recipients.max(1) as f64;
            let left = spread::left(&windows, start, until);
            let paced = spread::end_ms(&windows, start, left.mul_f64(gaps));
            if paced > end {
                let pace_until = moment::text(until);
                let sentence = format!("spread until {pace_until}");
                (end, why) = (paced, Some((TimeLimit::Spread { pace_until }, sentence)));
            }
        }
        let mut whys: Vec<_> = why.into_iter().collect();
        if start > now_ms {
            let at = moment::text(start);
            let sentence = format!("not before {at}");
            whys.push((TimeLimit::NotBefore { at }, sentence));
        }
        if spread::end_ms(&std::iter::empty(), start, needed) < end {
            whys.extend(windows.map(|window| {
                let window = window.to_string();
                let sentence = format!("within {window}");
                (TimeLimit::Hours { window }, sentence)
            }));
        }
        let seconds = end.saturating_sub(now_ms).div_ceil(1000);
        (!whys.is_empty()).then_some((seconds, whys))
    }

    /// The limit that takes longest, and the time that it takes at least.
    fn limited(
        &self,
        calls: u64,
        recipients: u64,
        facts: &Facts,
        board: &Board,
        now_ms: u64,
    ) -> Option<(Duration, (TimeLimit, String))> {
        let head = &*self.head;
        let job = LimitedJob {
            target: &head.target,
            app: &head.app,
            job: "",
            rate: head.rate,
            sender: head.sender.as_deref(),
        };
        let prices = facts.targets.get(&head.target).map(|it| &it.prices);
        let message = prices.map_or(Weight::ONE, |prices| prices.of(&head.content));
        let times = in_force(job, facts, board, now_ms)
            .into_iter()
            .map(|limit| {
                let each = match limit.cost() {
                    Cost::PerCall => calls,
                    Cost::PerRecipient => recipients,
                };
                let units = each.saturating_mul(limit.of.weight(message).units.into());
                let wait = units.saturating_sub(u64::from(limit.rate.burst)) as f64;
                // Rounded to milliseconds: 3.0000001 s are 3 s.
                let ms = (wait * 1000.0 / limit.rate.per_second()).round() as u64;
                let about = match limit.of {
                    LimitOf::Job => "the job".to_owned(),
                    _ => limit.about(&head.target),
                };
                let rate = limit.rate.short();
                let sentence = format!("{rate} of {about}");
                let limit = TimeLimit::Limit {
                    limit: limit.of.as_str().to_owned(),
                    name: limit.name.to_owned(),
                    target: head.target.clone(),
                    rate,
                };
                (Duration::from_millis(ms), (limit, sentence))
            });
        times.max_by_key(|(time, _)| *time)
    }
}

/// Bytes of a request, nearly.
fn size(request: &Request) -> u64 {
    let headers = request.headers.iter();
    let headers: usize = headers
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    let line = request
        .uri
        .path_and_query()
        .map_or(1, |it| it.as_str().len());
    (line + headers + request.body.len()) as u64
}
