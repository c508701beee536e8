//! Shows what would be sent, without sending anything.

use serde_json::json;

use super::messages::Messages;
use super::{SendArgs, audience, report};
use crate::cli::access::Access;
use crate::exit::{Exit, Failure};

pub(super) async fn dry_run(
    args: &SendArgs,
    access: &Access,
    job: &Messages,
) -> Result<Exit, Failure> {
    let tried = access.try_out(&job.submission).await?;
    for warning in &tried.warnings {
        tracing::warn!("{warning}");
    }
    let recipients = (!job.for_all).then_some(tried.recipients);
    let what = json!({"job": tried.job, "recipients": recipients, "messages": tried.messages, "target": tried.target});
    report(args, &what, || {
        format!(
            "would send job {} to {} of {} in {} message(s); nothing was sent",
            tried.job,
            audience(recipients),
            tried.target,
            tried.messages
        )
    })
}
