//! `fanwise send`: submits a job from the shell. Lists longer than one message holds travel as parts
//! of one job.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::access::Access;
use super::recipients::{self, ListFormat, Reading};
use super::{checked_config, form, output, progress};
use crate::app;
use crate::config::Config;
use crate::domain::fields::summary;
use crate::domain::ids::JobId;
use crate::domain::job::{
    AudienceDocument, JOB_BYTES_MAX, JOB_RECIPIENTS_MAX, Job, JobDocument, MemberDocument,
    MessageDocument, Part,
};
use crate::domain::lane::Priority;
use crate::domain::message::Options;
use crate::domain::outcome::OnUncertain;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::ports::{JobRecord, JobState};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fanwise send --client-msg-no promo-1 --text 'Hello' ana bob
  fanwise send --client-msg-no promo-2 --text 'Hello' --file users.csv --wait
  generate-users | fanwise send --client-msg-no promo-3 --data '{\"kind\":\"sale\"}' --file -
  fanwise send --client-msg-no promo-4 --text 'Hello {{ name }}' --file users.csv --vars
  fanwise send --client-msg-no promo-5 --template welcome --var shop=Fan ana bob")]
pub(super) struct SendArgs {
    /// Key of the job: sending it again with the same message sends to nobody twice
    #[arg(long, value_name = "KEY")]
    client_msg_no: String,
    /// Recipients
    recipients: Vec<String>,
    /// Take recipients from a file, or from standard input with `-`
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How the file is written [default: by its ending, .csv, .ndjson, else lines]
    #[arg(long, value_enum)]
    format: Option<ListFormat>,
    /// Column (CSV) or field (NDJSON) that holds the recipient
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Leave this recipient out (can be repeated)
    #[arg(long, value_name = "RECIPIENT")]
    exclude: Vec<String>,
    /// Say this text
    #[arg(long, group = "message")]
    text: Option<String>,
    /// Send this JSON as application data
    #[arg(long, group = "message", value_name = "JSON")]
    data: Option<String>,
    /// Send this JSON as the target's own message body
    #[arg(long, group = "message", value_name = "JSON")]
    native: Option<String>,
    /// Send this stored message, see `fanwise template`
    #[arg(long, group = "message", value_name = "NAME")]
    template: Option<String>,
    /// A value for a placeholder, for all recipients (can be repeated)
    #[arg(long, value_name = "NAME=TEXT", value_parser = name_and_text)]
    var: Vec<(String, String)>,
    /// Values for placeholders from the other columns of the CSV, for each recipient
    #[arg(long, requires = "file")]
    vars: bool,
    /// App (tenant) of the job
    #[arg(long)]
    app: Option<String>,
    /// Target to send to [default: the app's]
    #[arg(long)]
    target: Option<String>,
    /// Who the message is from [default: the target's default sender]
    #[arg(long)]
    sender: Option<String>,
    /// Priority
    #[arg(long, value_parser = ["high", "normal", "bulk"], default_value = "normal")]
    priority: String,
    /// Only to recipients that are online
    #[arg(long)]
    online_only: bool,
    /// Do not count as unread
    #[arg(long)]
    no_unread: bool,
    /// Send nothing before this RFC 3339 time
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// Send nothing after this RFC 3339 time
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Limit of this job alone, such as 500/s
    #[arg(long)]
    rate: Option<String>,
    /// What to do when a reply is lost [default: the target's rule]
    #[arg(long, value_parser = ["retry", "hold", "drop"])]
    on_uncertain: Option<String>,
    /// Wait until the job is completed, with a progress bar on a terminal
    #[arg(long)]
    wait: bool,
    /// Check everything and say what would be sent, but send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: SendArgs, file: Option<PathBuf>) -> Result<Exit, Failure> {
    let config = checked_config(file.as_deref(), |config, findings| {
        if args.wait && !config.broker.url.expose().is_empty() {
            config.require_ledger(findings);
        }
    })?;
    let recipients = args.recipients()?;
    let count = recipients.len();
    let form = args.form(&recipients)?;
    let bodies = args.bodies(recipients)?;
    let job = check(&bodies, &config, args.priority())?;
    if args.dry_run {
        let what = json!({"job": job.id, "recipients": count, "messages": bodies.len(), "target": job.target});
        return report(&args, &what, || {
            format!(
                "would send job {} to {count} recipient(s) of {} in {} message(s); nothing was sent",
                job.id,
                job.target,
                bodies.len()
            )
        });
    }
    let access = Access::of(&config)?;
    let before = if args.wait {
        access.job(job.id).await?
    } else {
        None
    };
    let whole = bodies.len() > 1 && access.upload(args.priority(), form).await?;
    if !whole {
        access.submit(job.id, args.priority(), bodies).await?;
    }
    if !args.wait {
        let what = json!({"job": job.id, "recipients": count, "accepted": true});
        return report(&args, &what, || {
            format!(
                "accepted: job {} for {count} recipient(s); fanwise job watch {}",
                job.id, job.id
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

/// What a checked job is known by.
struct Checked {
    id: JobId,
    target: String,
    content_digest: String,
}

impl SendArgs {
    fn priority(&self) -> Priority {
        match self.priority.as_str() {
            "high" => Priority::High,
            "bulk" => Priority::Bulk,
            _ => Priority::Normal,
        }
    }

    /// Recipients from the arguments and the file, in that order.
    fn recipients(&self) -> Result<Vec<MemberDocument>, Failure> {
        let mut all: Vec<MemberDocument> =
            self.recipients.iter().cloned().map(Into::into).collect();
        if let Some(path) = &self.file {
            let how = Reading {
                format: self.format.unwrap_or_else(|| ListFormat::of(path)),
                column: self.column.as_deref(),
                vars: self.vars,
            };
            if self.vars && how.format != ListFormat::Csv {
                let what = "--vars takes the columns of a CSV; give --format csv, or `vars` in each \
                            object of NDJSON";
                return Err(Failure::message(Exit::Usage, what));
            }
            let list = if path == Path::new("-") {
                recipients::read(std::io::stdin().lock(), how)
            } else {
                let file = File::open(path).map_err(|error| {
                    Failure::message(
                        Exit::BadInput,
                        format!("cannot read {}: {error}", path.display()),
                    )
                })?;
                recipients::read(file, how)
            };
            let from = path.display();
            all.extend(
                list.map_err(|what| Failure::message(Exit::BadInput, format!("{from}: {what}")))?,
            );
        }
        if all.is_empty() {
            let what = "no recipients: name them, or give --file";
            return Err(Failure::message(Exit::BadInput, what));
        }
        Ok(all)
    }

    /// The messages of the job, as many parts as its list needs.
    fn bodies(&self, recipients: Vec<MemberDocument>) -> Result<Vec<Vec<u8>>, Failure> {
        let message = self.message()?;
        let parts = parts(recipients);
        let of = parts.len() as u32;
        (1..)
            .zip(parts)
            .map(|(number, users)| {
                let part = (of > 1).then_some(Part {
                    number,
                    of,
                    together: None,
                });
                let document = self.document(message.clone(), Some(users), part);
                serde_json::to_vec(&document).or_exit(Exit::Internal)
            })
            .collect()
    }

    /// The job and its whole list, for a server that cuts it into parts that are sent to together.
    fn form(&self, recipients: &[MemberDocument]) -> Result<Vec<u8>, Failure> {
        let job = self.document(self.message()?, None, None);
        let mut form = form::part("job", None);
        serde_json::to_writer(&mut form, &job).or_exit(Exit::Internal)?;
        form.extend(form::part("audience", Some("audience.ndjson")));
        for recipient in recipients {
            serde_json::to_writer(&mut form, recipient).or_exit(Exit::Internal)?;
            form.push(b'\n');
        }
        form.extend(form::end());
        Ok(form)
    }

    fn message(&self) -> Result<MessageDocument, Failure> {
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
        if message.kind.is_none() && message.native.is_none() && message.template.is_none() {
            return Err(Failure::message(
                Exit::Usage,
                "no message: give --text, --data, --native or --template",
            ));
        }
        Ok(message)
    }

    fn vars_of_all(&self) -> Result<Option<Box<RawValue>>, Failure> {
        let values: BTreeMap<_, _> = self.var.iter().cloned().collect();
        let some = (!values.is_empty()).then(|| to_raw_value(&values));
        some.transpose().or_exit(Exit::Internal)
    }

    fn document(
        &self,
        message: MessageDocument,
        users: Option<Vec<MemberDocument>>,
        part: Option<Part>,
    ) -> JobDocument {
        let audience = AudienceDocument {
            users,
            exclude: self.exclude.clone(),
            ..AudienceDocument::default()
        };
        JobDocument {
            app: self.app.clone(),
            target: self.target.clone(),
            sender: self.sender.clone(),
            options: Some(Options {
                online_only: self.online_only.then_some(true),
                unread: self.no_unread.then_some(false),
                ..Options::default()
            }),
            not_before: self.not_before.clone(),
            expires_at: self.expires_at.clone(),
            rate: self.rate.clone(),
            on_uncertain: self.on_uncertain.as_deref().map(|policy| match policy {
                "retry" => OnUncertain::Retry,
                "hold" => OnUncertain::Hold,
                _ => OnUncertain::Drop,
            }),
            part,
            ..JobDocument::new(&self.client_msg_no, audience, message)
        }
    }
}

/// Room left in a message for everything but its recipients.
const BODY_MARGIN: usize = 512 * 1024;

/// Most bytes that a recipient takes in a message.
fn size_of(recipient: &MemberDocument) -> usize {
    let (id, vars) = match recipient {
        MemberDocument::Id(id) => (id, 0),
        MemberDocument::WithVars { id, vars } => {
            (id, vars.get().len() + r#"{"id":,"vars":}"#.len())
        }
    };
    // Six bytes for every one is the longest JSON escape.
    let quoted = match id.contains(['"', '\\']) {
        true => id.len() * 6,
        false => id.len(),
    };
    quoted + vars + 3
}

/// Cuts a list so that every part fits into one message.
fn parts(recipients: Vec<MemberDocument>) -> Vec<Vec<MemberDocument>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for recipient in recipients {
        let size = size_of(&recipient);
        let full = parts
            .last()
            .is_some_and(|part| part.len() >= JOB_RECIPIENTS_MAX);
        if full || bytes + size > JOB_BYTES_MAX - BODY_MARGIN {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(recipient);
        }
    }
    parts
}

/// Reads every message as the worker will, so that mistakes are found before anything is sent.
fn check(bodies: &[Vec<u8>], config: &Config, priority: Priority) -> Result<Checked, Failure> {
    let names = app::Names::of(config);
    let mut checked = None;
    for body in bodies {
        let job = Job::read(body, Some(priority), &names, jiff::Timestamp::now())
            .map_err(|problems| Failure::message(Exit::BadInput, summary(&problems)))?;
        let Job {
            head,
            content_digest,
            ..
        } = job;
        checked.get_or_insert(Checked {
            id: head.id,
            target: head.target,
            content_digest,
        });
    }
    checked.ok_or_else(|| Failure::message(Exit::BadInput, "no recipients"))
}

/// How long a job that was completed before may look completed after it was sent again.
const EXTENSION_PATIENCE: Duration = Duration::from_secs(3);

async fn wait(
    args: &SendArgs,
    access: &Access,
    job: &Checked,
    before: Option<JobRecord>,
) -> Result<Exit, Failure> {
    if let Some(before) = before.filter(|before| before.state == JobState::Completed) {
        // With further recipients it runs again in a moment; without, it stays as it is.
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
    if record.content_digest != job.content_digest {
        return Err(Failure::message(
            Exit::BadInput,
            format!(
                "conflict: {:?} stands for another message, job {}; your message was rejected and \
                 lies in fanwise.rejected",
                args.client_msg_no, job.id
            ),
        ));
    }
    report(args, &record, || {
        format!(
            "job {} completed: {}",
            job.id,
            progress::summary(&record.accounts)
        )
    })
}

fn report(
    args: &SendArgs,
    value: &impl serde::Serialize,
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

    #[test]
    fn long_lists_become_parts_that_fit() {
        let list = vec![MemberDocument::Id("u".repeat(200)); 150_000];
        let parts = parts(list);
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 150_000);
        for part in &parts {
            assert!(part.len() <= JOB_RECIPIENTS_MAX);
            assert!(part.len() * 203 < JOB_BYTES_MAX);
        }
    }
}
