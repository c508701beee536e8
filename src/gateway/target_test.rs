//! Tests a target with a message: `POST /v1/targets/{target}:test`.

use super::Gateway;
use super::asker::Asker;
use super::problem::Refusal;
use crate::domain::fields::{Fields, Problem, Problems};
use crate::domain::job::Context as _;
use crate::ports::{Broker, Store, Transport};
use crate::runtime::target_test::{self, Through};
use crate::service::target_test::{TestRequest, Tested};

pub(super) async fn test<B: Broker, S: Store, T: Transport>(
    gateway: &Gateway<B, S, T>,
    name: &str,
    asker: &Asker,
    body: &[u8],
) -> Result<Tested, Refusal> {
    let context = &*gateway.context;
    context.check_target(name).map_err(Refusal::NotFound)?;
    let message = parse(body).map_err(Refusal::BadRequest)?;
    let target = &context.targets[name];
    let app = context.apps.keys().next().cloned().unwrap_or_default();
    let through = Through {
        target: &*target.target,
        transport: &context.transport,
        keyring: &target.keyring,
        timeout: target.call_timeout,
        classes: &target.classes,
    };
    let origin = &asker.origin;
    tracing::info!(
        author = message.author,
        reason = message.reason,
        via = origin.via.as_str(),
        caller = origin.caller,
        address = origin.address,
        "command over HTTP: test target {name:?} with a message"
    );
    let tested = target_test::test(context, &through, &app, name, &message).await;
    tested.map_err(Refusal::BadRequest)
}

fn parse(body: &[u8]) -> Result<TestRequest, Vec<Problem>> {
    let text = std::str::from_utf8(body)
        .map_err(|error| vec![Problem::new("", format!("not UTF-8: {error}"))])?;
    let text = if text.trim().is_empty() { "{}" } else { text };
    let mut problems = Problems::default();
    let mut request = TestRequest::default();
    if let Some(mut fields) = Fields::open("", text, &mut problems) {
        let mut text = |name| fields.get::<String>(name, "a text", &mut problems);
        let to = text("to");
        request.text = text("text");
        request.sender = text("sender");
        request.reason = text("reason");
        request.author = text("author");
        match to {
            Some(to) => request.to = to,
            None if problems.is_empty() => {
                fields.problem(
                    "to",
                    "missing; the user who gets the message",
                    &mut problems,
                );
            }
            None => {}
        }
        fields.finish(&mut problems);
    }
    match problems.is_empty() {
        true => Ok(request),
        false => Err(problems.into()),
    }
}
