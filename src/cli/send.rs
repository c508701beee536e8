//! `fanwise send`: submits a job from the shell, made of flags, or of a file whose fields the flags
//! override. A list that is too long for one message is submitted as parts of one job.
//!
//! Sending to all users of a target needs a confirmation unless they are few. The command asks the
//! target itself for their number, with the target's settings from the configuration, so the rule
//! is the same for a broker and for a server. If the target cannot tell, the command asks for the
//! confirmation.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::access::Access;
use super::output::grouped;
use super::recipients::{self, ListFormat};
use super::{checked_config, form, output, progress};
use crate::app;
use crate::config::Config;
use crate::domain::fields::{Problem, TWICE, each_field, shorten};
use crate::domain::ids::JobId;
use crate::domain::job::{
    AudienceDocument, JOB_VERSION, ListPart, MemberDocument, MessageDocument,
};
use crate::domain::lane::Priority;
use crate::domain::list::Reading;
use crate::domain::outcome::TargetAnswer;
use crate::domain::parts;
use crate::domain::permissions::Asked;
use crate::domain::text;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::http::client::{Client, ClientSettings};
use crate::ports::{Entry, JobRecord, JobState};
use crate::runtime::{UserCount, count_users};
use crate::service::admission::{Refused, conflicts, examine, keeps_rules};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fanwise send --client-msg-no promo-1 --text 'Hello' ana bob
  fanwise send --client-msg-no promo-2 --text 'Hello' --file users.csv --wait
  generate-users | fanwise send --client-msg-no promo-3 --data '{\"kind\":\"sale\"}' --file -
  fanwise send --client-msg-no promo-4 --text 'Hello {{ name }}' --file users.csv --vars
  fanwise send --client-msg-no promo-5 --template welcome --var shop=Fan ana bob
  fanwise send --job job.json --target staging --client-msg-no rehearsal-1
  fanwise send --client-msg-no notice-1 --text 'Hello' --all --yes")]
pub(super) struct SendArgs {
    /// Key of the job: sending again with the same key and message sends to no recipient twice
    #[arg(long, value_name = "KEY", required_unless_present = "job")]
    client_msg_no: Option<String>,
    /// Read the job from a JSON file, or from standard input with `-`; flags override its fields
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// Recipients
    recipients: Vec<String>,
    /// Read recipients from a file, or from standard input with `-`
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Format of the file [default: by its ending, .csv, .ndjson, else lines]
    #[arg(long, value_enum)]
    format: Option<ListFormat>,
    /// Column (CSV) or field (NDJSON) that holds the recipient; for a CSV without a heading, its
    /// number
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Send to this group, as one group message (can be repeated)
    #[arg(long, value_name = "ID", conflicts_with_all = ["recipients", "file"])]
    group: Vec<String>,
    /// The target's number for the kind of group [default: 2]
    #[arg(long, value_name = "NUMBER", requires = "group")]
    group_type: Option<u8>,
    /// Send to all users of the target
    #[arg(long, conflicts_with_all = ["recipients", "file", "group"])]
    all: bool,
    /// Send to all users without asking
    #[arg(long, visible_alias = "confirm-all")]
    yes: bool,
    /// Ask before sending to more users than this, or if the target cannot tell how many there are
    #[arg(long, value_name = "USERS", default_value_t = 100, requires = "all")]
    confirm_above: u64,
    /// Leave this recipient out (can be repeated)
    #[arg(long, value_name = "RECIPIENT")]
    exclude: Vec<String>,
    /// Send this text
    #[arg(long, group = "message")]
    text: Option<String>,
    /// Send this JSON as application data
    #[arg(long, group = "message", value_name = "JSON")]
    data: Option<String>,
    /// Send this JSON as the target's own message body
    #[arg(long, group = "message", value_name = "JSON")]
    native: Option<String>,
    /// Send this stored message (see `fanwise template`)
    #[arg(long, group = "message", value_name = "NAME")]
    template: Option<String>,
    /// Value for a placeholder, for all recipients (can be repeated)
    #[arg(long, value_name = "NAME=TEXT", value_parser = name_and_text)]
    var: Vec<(String, String)>,
    /// Take values for placeholders from the other columns of the CSV, for each recipient
    #[arg(long, requires = "file")]
    vars: bool,
    /// Send texts as they are: `{{ name }}` is no placeholder
    #[arg(long, conflicts_with_all = ["var", "vars"])]
    literal: bool,
    /// App (tenant) of the job
    #[arg(long)]
    app: Option<String>,
    /// Target to send to [default: the app's]
    #[arg(long)]
    target: Option<String>,
    /// Sender of the message [default: the target's default sender]
    #[arg(long)]
    sender: Option<String>,
    /// Priority [default: normal]
    #[arg(long, value_parser = ["high", "normal", "bulk"])]
    priority: Option<String>,
    /// Send only to recipients that are online
    #[arg(long)]
    online_only: bool,
    /// Do not count the message as unread
    #[arg(long)]
    no_unread: bool,
    /// Send nothing before this RFC 3339 time
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// Send nothing after this RFC 3339 time
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Rate limit of this job alone, such as 500/s
    #[arg(long)]
    rate: Option<String>,
    /// What to do about recipients in doubt after a lost reply [default: the target's policy]
    #[arg(long, value_parser = ["retry", "hold", "drop"])]
    on_uncertain: Option<String>,
    /// What to do about fields that the target cannot honour [default: strict, which refuses the
    /// job]
    #[arg(long, value_parser = ["strict", "lenient"])]
    mapping: Option<String>,
    /// Send the accounts to this address when the job is completed; the app's callback settings
    /// name the hosts that are allowed
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,
    /// Publish the accounts to this RabbitMQ queue when the job is completed
    #[arg(long, value_name = "QUEUE")]
    reply_to: Option<String>,
    /// Wait until the job is completed, with a progress bar on a terminal; exit code 1 if a
    /// recipient did not get the message or may not have got it
    #[arg(long)]
    wait: bool,
    /// Check everything and print what would be sent, but send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: SendArgs, file: Option<PathBuf>) -> Result<Exit, Failure> {
    let config = checked_config(file.as_deref(), |config, findings| {
        if args.wait && config.broker.url.is_some() {
            config.require_ledger(findings);
        }
    })?;
    let Messages { bodies, form } = args.messages()?;
    let job = check(&bodies, &config)?;
    for warning in &job.warnings {
        tracing::warn!("{warning}");
    }
    let late = job.too_late.as_ref().map(ToString::to_string);
    if args.dry_run {
        if let Some(late) = late {
            return Err(Failure::message(Exit::BadInput, late));
        }
        let messages = bodies.len();
        Access::of(&config)?.consider(job.priority, bodies).await?;
        let what = json!({"job": job.id, "recipients": job.entries, "messages": messages, "target": job.target});
        return report(&args, &what, || {
            format!(
                "would send job {} to {} of {} in {} message(s); nothing was sent",
                job.id,
                job.audience(),
                job.target,
                messages
            )
        });
    }
    if args.all && !args.yes {
        args.confirm(&job.target, &config).await?;
    }
    let access = Access::of(&config)?;
    let before = match args.wait || job.too_late.is_some() {
        true => access.job_if_known(job.id).await?,
        false => None,
    };
    if let Some(late) = late.filter(|_| before.is_none()) {
        return Err(Failure::message(Exit::BadInput, late));
    }
    let whole = match form {
        Some(form) => access.upload(job.priority, form).await?,
        None => false,
    };
    if !whole {
        access.submit(job.id, job.priority, bodies).await?;
        access.enter(&job.entry).await;
    }
    if !args.wait {
        let what = json!({"job": job.id, "recipients": job.entries, "accepted": true});
        return report(&args, &what, || {
            format!(
                "accepted: job {} for {}; fanwise job watch {}",
                job.id,
                job.audience(),
                job.id
            )
        });
    }
    wait(&args, &access, &job, before).await
}

fn name_and_text(argument: &str) -> Result<(String, String), String> {
    match argument.split_once('=') {
        Some((name, text)) if !name.is_empty() => Ok((name.to_owned(), text.to_owned())),
        _ => Err("NAME=TEXT is expected".to_owned()),
    }
}

/// A job ready to submit: its messages, and, if there are several, the whole job as one form.
struct Messages {
    bodies: Vec<Vec<u8>>,
    form: Option<Vec<u8>>,
}

/// What the check of a job found.
struct Checked {
    id: JobId,
    client_msg_no: String,
    target: String,
    priority: Priority,
    content_digest: String,
    /// The job's entry in the ledger.
    entry: Entry,
    /// Set if it is too late to send the job.
    too_late: Option<Problem>,
    /// List entries of all messages; `None` for all users, whom only the target can count.
    entries: Option<usize>,
    /// What the job goes on without.
    warnings: Vec<String>,
    /// What the app needs permission for.
    asked: Asked,
}

impl Checked {
    fn audience(&self) -> String {
        match self.entries {
            Some(entries) => format!("{entries} recipient(s)"),
            None => "all users".to_owned(),
        }
    }
}

/// The question to ask before sending to all users; `None` if they are known to be few.
fn to_confirm(
    target: &str,
    found: Result<UserCount, TargetAnswer>,
    above: u64,
    excluded: usize,
) -> Option<String> {
    let reached = match found {
        Ok(UserCount::Exactly(users)) if users <= above => return None,
        Ok(UserCount::Exactly(users)) => grouped(users),
        Ok(UserCount::AtLeast(users)) => format!("at least {}", grouped(users)),
        Err(answer) => {
            return Some(format!(
                "this reaches all users of target {target}, and their number is not known \
                 ({}: {})",
                answer.code, answer.text
            ));
        }
    };
    let excluded = match excluded {
        0 => String::new(),
        some => format!(", less {some} excluded"),
    };
    Some(format!(
        "this reaches {reached} users of target {target}{excluded}"
    ))
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
    /// Asks for a confirmation that all users are meant, unless they are few.
    async fn confirm(&self, name: &str, config: &Config) -> Result<(), Failure> {
        let target = app::target(config, name)?;
        let patience = config.targets.get(name).map(|it| it.call_timeout);
        let client = Client::new(ClientSettings::defaults());
        let found = count_users(&*target, &client, patience.unwrap_or_default()).await;
        let excluded = self.exclude.len();
        let Some(what) = to_confirm(name, found, self.confirm_above, excluded) else {
            return Ok(());
        };
        let refused = |what| Err(Failure::message(Exit::Usage, what));
        if !std::io::stdin().is_terminal() {
            return refused(format!("nothing was sent: {what}; confirm it with --yes"));
        }
        match output::is_meant(&what)? {
            true => Ok(()),
            false => refused("nothing was sent: not confirmed".to_owned()),
        }
    }

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

    /// The messages of the job: one, or as many parts as its list needs.
    fn messages(&self) -> Result<Messages, Failure> {
        let mut fields = match &self.job {
            Some(path) => read_job(path)?,
            None => Fields::new(),
        };
        self.set_fields(&mut fields)?;
        let recipients = self.recipients()?;
        let body = |fields: &Fields| serde_json::to_vec(fields).or_exit(Exit::Internal);
        if recipients.is_empty() {
            self.set_audience(&mut fields)?;
            let bodies = vec![body(&fields)?];
            return Ok(Messages { bodies, form: None });
        }
        let form = self.form(&fields, &recipients)?;
        let audience = |users| AudienceDocument {
            users: Some(users),
            exclude: self.exclude.clone(),
            ..AudienceDocument::default()
        };
        set(&mut fields, "audience", &audience(Vec::new()))?;
        let parts: Vec<_> = parts::messages(recipients, body(&fields)?.len()).collect();
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
        Ok(Messages {
            bodies: (1..).zip(parts).map(body).collect::<Result<_, _>>()?,
            form: (of > 1).then_some(form),
        })
    }

    /// The job and its whole list as one form. A server cuts the list into parts, and sends to none
    /// of them before it has accepted all.
    fn form(&self, fields: &Fields, recipients: &[MemberDocument]) -> Result<Vec<u8>, Failure> {
        let mut fields = fields.clone();
        let audience = AudienceDocument {
            exclude: self.exclude.clone(),
            ..AudienceDocument::default()
        };
        set(&mut fields, "audience", &audience)?;
        let mut form = form::part("job", None);
        serde_json::to_writer(&mut form, &fields).or_exit(Exit::Internal)?;
        form.extend(form::part("audience", Some("audience.ndjson")));
        for recipient in recipients {
            serde_json::to_writer(&mut form, recipient).or_exit(Exit::Internal)?;
            form.push(b'\n');
        }
        form.extend(form::end());
        Ok(form)
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
            ("rate", &self.rate),
            ("on_uncertain", &self.on_uncertain),
            ("mapping", &self.mapping),
            ("callback_url", &self.callback_url),
            ("reply_to", &self.reply_to),
        ] {
            set_some(fields, name, value.as_ref())?;
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

    /// Sets an audience that is not a list: groups, all users, or the audience of the file.
    fn set_audience(&self, fields: &mut Fields) -> Result<(), Failure> {
        let flags = self.all || !self.group.is_empty();
        if !flags && self.job.is_none() {
            let what = "no recipients: name them, or give --file, --group or --all";
            return Err(Failure::message(Exit::BadInput, what));
        }
        if flags {
            let audience = AudienceDocument {
                groups: (!self.group.is_empty()).then(|| self.group.clone()),
                group_type: self.group_type,
                all: self.all,
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
    let text = text::read(&bytes).map_err(bad)?;
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

/// Reads every message as the worker will, to find mistakes before anything is sent.
fn check(bodies: &[Vec<u8>], config: &Config) -> Result<Checked, Failure> {
    let refused = |refused: Refused| Failure::message(Exit::BadInput, refused.to_string());
    let names = app::Names::of(config)?;
    let mut checked: Option<Checked> = None;
    for body in bodies {
        let job = examine(&names, body, None).map_err(refused)?;
        let entries = (!job.for_all).then_some(job.recipients as usize);
        match &mut checked {
            Some(checked) => {
                checked.entries = checked.entries.zip(entries).map(|(sum, more)| sum + more);
                checked.asked.lists.extend(job.asked.lists);
            }
            None => {
                checked = Some(Checked {
                    entry: job.entry(0),
                    too_late: job.too_late,
                    id: job.id,
                    client_msg_no: job.asked.client_msg_no.clone(),
                    target: job.target,
                    priority: job.priority,
                    content_digest: job.content_digest,
                    entries,
                    warnings: job.warnings,
                    asked: job.asked,
                });
            }
        }
    }
    let mut checked = checked.ok_or_else(|| Failure::message(Exit::BadInput, "no recipients"))?;
    checked.entry.entries = checked.entries.unwrap_or(0) as u64;
    keeps_rules(&names, &checked.asked).map_err(refused)?;
    Ok(checked)
}

/// How long a job that was completed before may still look completed after it was sent again.
const EXTENSION_PATIENCE: Duration = Duration::from_secs(3);

async fn wait(
    args: &SendArgs,
    access: &Access,
    job: &Checked,
    before: Option<JobRecord>,
) -> Result<Exit, Failure> {
    if let Some(before) = before.filter(|before| before.state == JobState::Completed) {
        // With further recipients, it soon runs again; without, it stays completed.
        let deadline = Instant::now() + EXTENSION_PATIENCE;
        while Instant::now() < deadline
            && access
                .job(job.id)
                .await?
                .is_some_and(|now| now.submissions == before.submissions)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let record = progress::follow(access, job.id).await?;
    if conflicts(&record, &job.content_digest) {
        return Err(Failure::message(
            Exit::BadInput,
            format!(
                "conflict: {:?} is the key of another message, job {}; your message was rejected and \
                 is in fanwise.rejected",
                job.client_msg_no, job.id
            ),
        ));
    }
    report(args, &record, || {
        format!(
            "job {} completed: {}",
            job.id,
            progress::summary(&record.accounts)
        )
    })?;
    Ok(progress::exit(&record.accounts))
}

fn report(
    args: &SendArgs,
    value: &impl Serialize,
    text: impl Fn() -> String,
) -> Result<Exit, Failure> {
    if args.json {
        output::json(value)?
    } else {
        output::line(text())?
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::Class;

    #[test]
    fn many_users_and_an_unknown_number_are_to_be_confirmed() {
        let what = |found, excluded| to_confirm("im", found, 100, excluded);
        assert_eq!(what(Ok(UserCount::Exactly(100)), 0), None);
        let many = what(Ok(UserCount::Exactly(1_204_331)), 0).unwrap();
        assert_eq!(many, "this reaches 1,204,331 users of target im");
        let less = what(Ok(UserCount::Exactly(101)), 2).unwrap();
        assert_eq!(less, "this reaches 101 users of target im, less 2 excluded");
        // A first page with fewer users than the threshold says nothing about the rest.
        let some = what(Ok(UserCount::AtLeast(50)), 0).unwrap();
        assert_eq!(some, "this reaches at least 50 users of target im");
        let unknown = what(
            Err(TargetAnswer::new(Class::Config, "401", "token is wrong")),
            0,
        );
        assert_eq!(
            unknown.unwrap(),
            "this reaches all users of target im, and their number is not known (401: token is \
             wrong)"
        );
    }
}
