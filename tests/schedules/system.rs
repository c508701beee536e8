//! Simulates the IM system: it records every accepted message, and its answers vary.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fanwise::domain::fields::Problem;
use fanwise::domain::mapping::{Feature, Mapping};
use fanwise::domain::outcome::{Class, TargetAnswer, Verdict};
use fanwise::domain::slice::Head;
use fanwise::ports::{Calls, HttpReply, Profile, Request, SendError, Target, Transport};
use http::{HeaderMap, Method};

use crate::memory::Way;

/// What the second target adds to the name of a job.
pub(crate) const SECOND: &str = "@second";

/// Answers of one recipient in a reply, one letter each.
const DONE: u8 = b'd';
const NO_SUCH_USER: u8 = b'n';
const BUSY: u8 = b'b';

/// The record of the IM system.
#[derive(Clone, Default)]
pub(crate) struct System(Arc<Mutex<Log>>);

#[derive(Default)]
pub(crate) struct Log {
    /// How often it accepted a message for a recipient, by job and recipient. A system that
    /// recognises repeats by their key counts them once.
    pub(crate) accepted: BTreeMap<(String, String), u32>,
    /// Recipients that it refused at least once.
    pub(crate) refused: BTreeSet<(String, String)>,
}

/// The course of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    Answer,
    /// Some recipients are answered as throttled or transient.
    Partly,
    TooFast,
    Unavailable,
    /// No connection is made.
    Unreachable,
    /// The request is lost.
    RequestLost,
    /// The call is handled, and the reply is lost: immediately, or after the caller has waited for
    /// it.
    ReplyLost,
    NoReply,
    /// It is handled after the caller has given up.
    Late,
}

/// Decides the course of each call, and which users do not exist.
pub(crate) trait Moods: Send + Sync + 'static {
    fn reaction(&self) -> (Reaction, Duration);
    /// Whether it answers now that there is no such user. `second`: the second target.
    fn refuses(&self, user: &str, second: bool) -> bool;
    fn idempotent(&self) -> bool;
    fn note(&self, line: std::fmt::Arguments<'_>);
}

impl System {
    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The access of one process to the IM system.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) system: System,
    pub(crate) moods: Arc<dyn Moods>,
    pub(crate) way: Way,
}

impl Wire {
    fn carry_out(&self, body: &[u8], partly: bool) -> Vec<u8> {
        let text = std::str::from_utf8(body).unwrap();
        let mut words = text.split('\n');
        let job = words.next().unwrap();
        let mut log = self.system.log();
        let mut answers = Vec::new();
        for (number, user) in words.enumerate() {
            let key = (job.to_owned(), user.to_owned());
            if partly && number % 2 == 1 {
                answers.push(BUSY);
            } else if self.moods.refuses(user, job.ends_with(SECOND)) {
                log.refused.insert(key);
                answers.push(NO_SUCH_USER);
            } else {
                let times = log.accepted.entry(key).or_default();
                *times = if self.moods.idempotent() {
                    1
                } else {
                    *times + 1
                };
                answers.push(DONE);
            }
        }
        let shown = String::from_utf8_lossy(&answers);
        self.moods
            .note(format_args!("accepts {} {shown}", text.replace('\n', " ")));
        answers
    }
}

fn unknown(code: &'static str) -> SendError {
    let what = code.to_owned();
    SendError::Unknown { what, code }
}

fn reply(status: u16, body: Vec<u8>) -> HttpReply {
    HttpReply {
        status,
        headers: HeaderMap::new(),
        body: body.into(),
    }
}

impl Transport for Wire {
    async fn send(&self, request: Request, timeout: Duration) -> Result<HttpReply, SendError> {
        let (reaction, takes) = self.moods.reaction();
        // Before and after a request leaves, the process may stall or die.
        if self.way.step("send", || ()).await.is_err() {
            let (what, code) = ("not connected".to_owned(), "connect");
            return Err(SendError::NotSent { what, code });
        }
        self.moods.note(format_args!(
            "{reaction:?} {}",
            String::from_utf8_lossy(&request.body).replace('\n', " ")
        ));
        let sent = async {
            match reaction {
                Reaction::Answer | Reaction::Partly => {
                    let answers = self.carry_out(&request.body, reaction == Reaction::Partly);
                    tokio::time::sleep(takes).await;
                    Ok(reply(200, answers))
                }
                Reaction::TooFast => Ok(reply(429, Vec::new())),
                Reaction::Unavailable => Ok(reply(503, Vec::new())),
                Reaction::Unreachable => {
                    let (what, code) = ("refused".to_owned(), "connect");
                    Err(SendError::NotSent { what, code })
                }
                Reaction::RequestLost => Err(unknown("reset")),
                Reaction::ReplyLost => {
                    self.carry_out(&request.body, false);
                    Err(unknown("reset"))
                }
                Reaction::NoReply => {
                    tokio::time::sleep(takes).await;
                    self.carry_out(&request.body, false);
                    std::future::pending().await
                }
                Reaction::Late => {
                    let (wire, body) = (self.clone(), request.body.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(timeout * 2).await;
                        wire.carry_out(&body, false);
                    });
                    std::future::pending().await
                }
            }
        };
        let answered = tokio::time::timeout(timeout, sent).await;
        let answered = answered.unwrap_or_else(|_| Err(unknown("timeout")));
        // A reply that arrived but was not read does not count.
        match self.way.step("reply", || ()).await {
            Ok(()) => answered,
            Err(_) => Err(unknown("half a reply")),
        }
    }
}

/// The target that calls it.
pub(crate) struct Im {
    profile: Profile,
    /// Follows the id of a job in its calls.
    suffix: &'static str,
}

impl Im {
    pub(crate) fn new(per_call: usize, idempotent: bool, suffix: &'static str) -> Self {
        let profile = Profile {
            recipients_per_call: per_call,
            idempotent,
            ..Profile::default()
        };
        Self { profile, suffix }
    }
}

impl Target for Im {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn maps(&self, _: Feature) -> Mapping {
        Mapping::Exact("text")
    }

    fn check(&self, _: &Head) -> Vec<Problem> {
        Vec::new()
    }

    fn open(&self, head: &Arc<Head>) -> Box<dyn Calls> {
        Box::new(Texts(format!("{}{}", head.id, self.suffix)))
    }
}

struct Texts(String);

impl Calls for Texts {
    fn request(&self, recipients: &[&str]) -> Request {
        Request {
            method: Method::POST,
            uri: "http://im/send".parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from(format!("{}\n{}", self.0, recipients.join("\n"))),
        }
    }

    fn read_reply(&self, _: &[&str], reply: &HttpReply) -> Verdict {
        let all = |class, code: &'static str| Verdict::All(TargetAnswer::new(class, code, code));
        match reply.status {
            429 => all(Class::Throttled, "429"),
            503 => all(Class::Transient, "503"),
            _ => {
                let answers = reply.body.iter().map(|letter| match *letter {
                    DONE => TargetAnswer::done(),
                    NO_SUCH_USER => TargetAnswer::new(Class::Permanent, "404", "no such user"),
                    _ => TargetAnswer::new(Class::Transient, "busy", "come again"),
                });
                Verdict::Each(answers.collect())
            }
        }
    }
}
