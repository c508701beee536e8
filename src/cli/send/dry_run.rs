//! Shows what would be sent, without sending anything.

use serde_json::json;

use super::messages::Messages;
use super::{SendArgs, audience};
use crate::cli::access::Access;
use crate::cli::output::{self, grouped, narrow};
use crate::domain::message::MessageDocument;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::service::api::{Estimate, Preview, Submitted};

pub(super) async fn dry_run(
    args: &SendArgs,
    access: &Access,
    job: &Messages,
) -> Result<Exit, Failure> {
    let tried = access.try_out(&job.submission).await?;
    for warning in &tried.warnings {
        tracing::warn!("{warning}");
    }
    let recipients = (!job.submission.for_all).then_some(tried.recipients);
    if args.json {
        output::json(&json!({
            "job": tried.job, "recipients": recipients, "messages": tried.messages,
            "target": tried.target, "preview": tried.preview, "estimate": tried.estimate,
        }))?;
        return Ok(Exit::Ok);
    }
    tell(&tried, recipients)?;
    Ok(Exit::Ok)
}

fn tell(tried: &Submitted, recipients: Option<u64>) -> Result<(), Failure> {
    output::line(format!(
        "would send job {} to {} of {} in {} message(s); nothing was sent",
        tried.job,
        audience(recipients),
        tried.target,
        tried.messages
    ))?;
    for preview in &tried.preview {
        output::line(narrow(&format!(
            "  {}: {}",
            preview.recipient,
            shown(preview)?
        )))?;
    }
    let Some(estimate) = &tried.estimate else {
        return Ok(());
    };
    if estimate.would_fail > 0 {
        output::line(format!(
            "{} of {} recipient(s) would fail: they lack a value, or the message does not fit",
            grouped(estimate.would_fail),
            grouped(estimate.rendered)
        ))?;
    }
    output::line(takes(estimate))
}

/// The message as one recipient would get it, or why not.
fn shown(preview: &Preview) -> Result<String, Failure> {
    Ok(match (&preview.message, &preview.problem) {
        (_, Some(problem)) => format!("would fail: {problem}"),
        (
            Some(MessageDocument {
                text: Some(text), ..
            }),
            None,
        ) => format!("{text:?}"),
        (Some(message), None) => serde_json::to_string(message).or_exit(Exit::Internal)?,
        (None, None) => String::new(),
    })
}

/// `3 call(s), about 1.2 KB; at least 6 s (500/s of target im)`
fn takes(estimate: &Estimate) -> String {
    let bytes = estimate.bytes as f64;
    let size = match estimate.bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} KB", bytes / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} GB", bytes / 1e9),
    };
    let time = match (estimate.seconds, &estimate.limit) {
        (Some(seconds), Some(limit)) => format!("at least {} s ({limit})", grouped(seconds)),
        _ => "no limit applies, so it takes as long as the target's answers".to_owned(),
    };
    format!("{} call(s), about {size}; {time}", grouped(estimate.calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_one_line() {
        let mut estimate = Estimate {
            rendered: 0,
            would_fail: 0,
            calls: 1_000_000,
            bytes: 412_345_678,
            seconds: Some(2_000),
            limit: Some("500/s of target im".to_owned()),
            limits: Vec::new(),
        };
        assert_eq!(
            takes(&estimate),
            "1,000,000 call(s), about 412.3 MB; at least 2,000 s (500/s of target im)"
        );
        (estimate.bytes, estimate.seconds, estimate.limit) = (999, None, None);
        assert!(takes(&estimate).contains("999 B; no limit applies"));
    }
}
