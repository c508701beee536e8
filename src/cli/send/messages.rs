//! Writes the messages of a job from flags, or from a file whose fields the flags override. A list
//! that is too long for one message becomes several parts of one job.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use bytes::Bytes;
use fanwise_client::http::{Format, List};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::SendArgs;
use crate::cli::access::{Submission, Upload};
use crate::cli::recipients::{self, ListFormat};
use crate::domain::fields::{TWICE, each_field, shorten};
use crate::domain::ids::{Fingerprinter, JobId};
use crate::domain::job::{
    AudienceDocument, JOB_VERSION, ListPart, MemberDocument, MessageDocument,
};
use crate::domain::list::Reading;
use crate::domain::{parts, text};
use crate::exit::{Exit, Failure, OrExit as _};

/// A job ready to submit, with what is known of it before anybody has checked it.
pub(super) struct Messages {
    pub(super) submission: Submission,
    /// `None` if it has no key; then it is refused.
    pub(super) id: Option<JobId>,
    pub(super) app: String,
    pub(super) target: Option<String>,
}

impl Messages {
    fn of(fields: &Fields, bodies: Vec<Bytes>, upload: Option<Upload>) -> Result<Self, Failure> {
        let (app, key) = app_and_key(fields);
        let audience = object(fields, "audience")?;
        Ok(Self {
            submission: Submission {
                bodies,
                upload,
                for_all: audience.get("all").is_some_and(|all| all.get() == "true"),
            },
            id: key.as_deref().map(|key| JobId::of(&app, key)),
            app,
            target: text(fields, "target"),
        })
    }
}

/// A field of the job that is a text.
fn text(fields: &Fields, name: &str) -> Option<String> {
    serde_json::from_str(fields.get(name)?.get()).ok()
}

fn app_and_key(fields: &Fields) -> (String, Option<String>) {
    let app = text(fields, "app").unwrap_or_else(|| "default".to_owned());
    (app, text(fields, "client_msg_no"))
}

/// Sorts a list as a gateway sorts an upload: by fingerprint, so that each slice touches few buckets
/// of the ledger, however many messages the list needs. The same list always gives the same messages.
fn sort(recipients: &mut [MemberDocument], fields: &Fields, secret: &str) {
    let (app, key) = app_and_key(fields);
    let Some(key) = key else { return };
    let fingerprinter = Fingerprinter::new(secret, JobId::of(&app, &key));
    recipients.sort_by_cached_key(|member| fingerprinter.fingerprint(member.id()));
}

/// The fields of a job, or of one of its objects, as raw JSON: a file's values pass byte for byte.
type Fields = BTreeMap<String, Box<RawValue>>;

fn set(fields: &mut Fields, name: &str, value: &impl Serialize) -> Result<(), Failure> {
    let raw = to_raw_value(value).or_exit(Exit::Internal)?;
    fields.insert(name.to_owned(), raw);
    Ok(())
}

fn set_some<T: Serialize>(
    fields: &mut Fields,
    name: &str,
    value: Option<&T>,
) -> Result<(), Failure> {
    value.map_or(Ok(()), |value| set(fields, name, value))
}

/// An object among the fields; empty if it is missing.
fn object(fields: &Fields, name: &str) -> Result<Fields, Failure> {
    let json = fields.get(name).map_or("{}", |raw| raw.get());
    fields_of(json).map_err(|what| Failure::message(Exit::BadInput, format!("{name}: {what}")))
}

impl SendArgs {
    /// Recipients from the arguments and the file, in that order.
    fn recipients(&self) -> Result<Vec<MemberDocument>, Failure> {
        let mut all: Vec<MemberDocument> =
            self.recipients.iter().cloned().map(Into::into).collect();
        if let Some(path) = &self.file {
            let format = self.format.unwrap_or_else(|| ListFormat::of(path));
            let how = Reading {
                format: format.into(),
                column: self.column.as_deref(),
                vars: self.vars,
            };
            if self.vars && format != ListFormat::Csv {
                let what = "--vars takes the columns of a CSV; give --format csv, or `vars` in each \
                            object of NDJSON";
                return Err(Failure::message(Exit::Usage, what));
            }
            let list = if path == Path::new("-") {
                recipients::read(std::io::stdin().lock(), how)
            } else {
                let file = File::open(path).map_err(|error| cannot_read(path, &error))?;
                recipients::read(file, how)
            };
            let from = path.display();
            all.extend(
                list.map_err(|what| Failure::message(Exit::BadInput, format!("{from}: {what}")))?,
            );
        }
        Ok(all)
    }

    /// The messages of the job: one, or as many parts as its list needs. `own` is its app if it names
    /// none. With the secret of the fingerprints, a list of several parts is sorted.
    pub(super) fn messages(
        &self,
        own: Option<&str>,
        secret: Option<&str>,
    ) -> Result<Messages, Failure> {
        let mut fields = match &self.job {
            Some(path) => read_job(path)?,
            None => Fields::new(),
        };
        self.set_fields(&mut fields)?;
        if !fields.contains_key("app") {
            set_some(&mut fields, "app", own.as_ref())?;
        }
        let recipients = self.recipients()?;
        let body = |fields: &Fields| {
            serde_json::to_vec(fields)
                .map(Bytes::from)
                .or_exit(Exit::Internal)
        };
        if recipients.is_empty() {
            self.set_audience(&mut fields)?;
            let bodies = vec![body(&fields)?];
            return Messages::of(&fields, bodies, None);
        }
        let upload = self.upload(&fields, &recipients)?;
        let audience = |users| AudienceDocument {
            users: Some(users),
            exclude: self.exclude.clone(),
            ..AudienceDocument::default()
        };
        set(&mut fields, "audience", &audience(Vec::new()))?;
        let job_bytes = body(&fields)?.len();
        let mut parts: Vec<_> = parts::messages(recipients, job_bytes).collect();
        if parts.len() > 1
            && let Some(secret) = secret
        {
            let mut recipients = parts.into_iter().flatten().collect::<Vec<_>>();
            sort(&mut recipients, &fields, secret);
            parts = parts::messages(recipients, job_bytes).collect();
        }
        let of = parts.len() as u32;
        let body = |(number, users): (u32, Vec<MemberDocument>)| {
            set(&mut fields, "audience", &audience(users))?;
            if of > 1 {
                let together = None;
                set(
                    &mut fields,
                    "part",
                    &ListPart {
                        number,
                        of,
                        together,
                    },
                )?;
            }
            body(&fields)
        };
        let bodies = (1..).zip(parts).map(body).collect::<Result<_, _>>()?;
        Messages::of(&fields, bodies, (of > 1).then_some(upload))
    }

    /// The job and its whole list as an upload. A server cuts the list into parts, and sends to none
    /// of them before it has accepted all.
    fn upload(&self, fields: &Fields, recipients: &[MemberDocument]) -> Result<Upload, Failure> {
        let mut fields = fields.clone();
        let audience = AudienceDocument {
            exclude: self.exclude.clone(),
            ..AudienceDocument::default()
        };
        set(&mut fields, "audience", &audience)?;
        let mut lines = Vec::new();
        for recipient in recipients {
            serde_json::to_writer(&mut lines, recipient).or_exit(Exit::Internal)?;
            lines.push(b'\n');
        }
        Ok(Upload {
            job: serde_json::to_vec(&fields).or_exit(Exit::Internal)?.into(),
            list: List::bytes(Format::Ndjson, lines),
        })
    }

    /// Sets the fields that flags give, in place of those of the file; all but the audience.
    fn set_fields(&self, fields: &mut Fields) -> Result<(), Failure> {
        if self.job.is_none() {
            set(fields, "v", &JOB_VERSION)?;
        }
        for (name, value) in [
            ("client_msg_no", &self.client_msg_no),
            ("app", &self.app),
            ("target", &self.target),
            ("sender", &self.sender),
            ("priority", &self.priority),
            ("not_before", &self.not_before),
            ("expires_at", &self.expires_at),
            ("window", &self.window),
            ("timezone", &self.timezone),
            ("timezone_var", &self.timezone_var),
            ("pace_until", &self.pace_until),
            ("category", &self.category),
            ("rate", &self.rate),
            ("on_uncertain", &self.on_uncertain),
            ("mapping", &self.mapping),
            ("callback_url", &self.callback_url),
            ("reply_to", &self.reply_to),
        ] {
            set_some(fields, name, value.as_ref())?;
        }
        set_some(fields, "keep_ids", self.keep_ids.then_some(&true))?;
        if !self.tags.is_empty() {
            set(fields, "tags", &self.tags)?;
        }
        if let Some(target) = &self.fallback {
            let mut fallback = object(fields, "fallback")?;
            set(&mut fallback, "target", target)?;
            if !self.fallback_on.is_empty() {
                set(&mut fallback, "on", &self.fallback_on)?;
            }
            set(fields, "fallback", &fallback)?;
        }
        set_some(fields, "message", self.message()?.as_ref())?;
        if self.literal {
            let mut message = object(fields, "message")?;
            set(&mut message, "literal", &true)?;
            set(fields, "message", &message)?;
        }
        if self.online_only || self.no_unread {
            let mut options = object(fields, "options")?;
            set_some(
                &mut options,
                "online_only",
                self.online_only.then_some(&true),
            )?;
            set_some(&mut options, "unread", self.no_unread.then_some(&false))?;
            set(fields, "options", &options)?;
        }
        Ok(())
    }

    /// Sets an audience that is not a list here: a list elsewhere, groups, all users, or the audience
    /// of the file.
    fn set_audience(&self, fields: &mut Fields) -> Result<(), Failure> {
        let flags = self.all || !self.group.is_empty() || self.audience_url.is_some();
        if !flags && self.job.is_none() {
            let what = "no recipients: name them, or give --file, --audience-url, --group or --all";
            return Err(Failure::message(Exit::BadInput, what));
        }
        if flags {
            let audience = AudienceDocument {
                groups: (!self.group.is_empty()).then(|| self.group.clone()),
                group_type: self.group_type,
                all: self.all,
                url: self.audience_url.clone(),
                format: self.format.map(Into::into),
                column: self.column.clone(),
                vars: self.vars,
                sha256: self.sha256.clone(),
                etag: self.etag.clone(),
                ..AudienceDocument::default()
            };
            set(fields, "audience", &audience)?;
        }
        if !self.exclude.is_empty() {
            let mut audience = object(fields, "audience")?;
            set(&mut audience, "exclude", &self.exclude)?;
            set(fields, "audience", &audience)?;
        }
        // `confirm` asks before anything is sent.
        if self.all || self.yes {
            set(fields, "confirm_all", &true)?;
        }
        Ok(())
    }

    /// The message that flags give; `None` if the file has it.
    fn message(&self) -> Result<Option<MessageDocument>, Failure> {
        let raw = |name: &str, text: &Option<String>| {
            let raw = text.clone().map(RawValue::from_string).transpose();
            raw.map_err(|error| {
                Failure::message(Exit::BadInput, format!("--{name} is not JSON: {error}"))
            })
        };
        let message = MessageDocument {
            kind: match (&self.text, &self.data) {
                (Some(_), _) => Some("text".to_owned()),
                (_, Some(_)) => Some("custom".to_owned()),
                _ => None,
            },
            text: self.text.clone(),
            data: raw("data", &self.data)?,
            native: raw("native", &self.native)?,
            template: self.template.clone(),
            vars: self.vars_of_all()?,
            ..MessageDocument::default()
        };
        if message.kind.is_some() || message.native.is_some() || message.template.is_some() {
            return Ok(Some(message));
        }
        if self.job.is_some() {
            return Ok(None);
        }
        let what = "no message: give --text, --data, --native or --template";
        Err(Failure::message(Exit::Usage, what))
    }

    fn vars_of_all(&self) -> Result<Option<Box<RawValue>>, Failure> {
        let values: BTreeMap<_, _> = self.var.iter().cloned().collect();
        let some = (!values.is_empty()).then(|| to_raw_value(&values));
        some.transpose().or_exit(Exit::Internal)
    }
}

/// Reads the fields of a job from a file.
fn read_job(path: &Path) -> Result<Fields, Failure> {
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().read_to_end(&mut bytes),
        false => File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(|error| cannot_read(path, &error))?;
    let bad = |what: String| {
        let what = format!("{}: {what}", path.display());
        Failure::message(Exit::BadInput, what)
    };
    let text = text::decode(&bytes).map_err(bad)?;
    fields_of(text).map_err(bad)
}

/// Reads the fields of an object. Refuses a field that occurs twice: a flag may replace it, and
/// then no later check would see it.
fn fields_of(json: &str) -> Result<Fields, String> {
    let (mut fields, mut twice) = (Fields::new(), None);
    each_field(json, |name, value| {
        if fields.insert(name.to_string(), value.to_owned()).is_some() {
            twice = Some(format!("{:?} {TWICE}", shorten(&name, 40)));
        }
    })
    .map_err(|error| error.to_string())?;
    twice.map_or(Ok(fields), Err)
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Failure {
    let what = format!("cannot read {}: {error}", path.display());
    Failure::message(Exit::BadInput, what)
}
