//! `fanwise target test`: sends one message to one user, and shows the request and the answer.
//!
//! With the configuration of this machine it calls the target itself; through a server, the server
//! calls it.

use clap::Args;

use super::access::{Access, known};
use super::at::At;
use super::output;
use crate::app::{self, Names};
use crate::config::Config;
use crate::domain::fields::summary;
use crate::exit::{Exit, Failure};
use crate::http::client::{Client, ClientSettings};
use crate::runtime::Keyring;
use crate::runtime::target_test::{self, Through};
use crate::service::target_test::{TestRequest, Tested};

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// Name of the target in the configuration
    target: String,
    /// User who gets the message
    #[arg(long, value_name = "USER")]
    to: String,
    /// Text of the message [default: a harmless one]
    #[arg(long)]
    text: Option<String>,
    /// Sender of the message [default: the target's default sender]
    #[arg(long)]
    sender: Option<String>,
    /// Print one JSON object
    #[arg(short, long)]
    json: bool,
}

pub(super) async fn run(args: TestArgs, at: At) -> Result<Exit, Failure> {
    let message = TestRequest {
        to: args.to.clone(),
        text: args.text.clone(),
        sender: args.sender.clone(),
        ..TestRequest::default()
    };
    let tested = match at.named_server()? {
        Some(access) => through_server(&access, &args.target, &message).await?,
        None => from_here(&at.config()?, &args.target, &message).await?,
    };
    show(&args, &tested)
}

async fn through_server(
    access: &Access,
    target: &str,
    message: &TestRequest,
) -> Result<Tested, Failure> {
    access.knows_target(target).await?;
    access.test_target(target, message).await
}

async fn from_here(
    config: &Config,
    target: &str,
    message: &TestRequest,
) -> Result<Tested, Failure> {
    let names = Names::of(config)?;
    known("target", target, config.targets.keys().map(String::as_str))?;
    let settings = &config.targets[target];
    let app = config.apps.keys().next().cloned().unwrap_or_default();
    let client = Client::new(ClientSettings {
        tls_of: app::own_tls(config),
        ..ClientSettings::defaults()
    });
    let through = Through {
        target: &*app::target(config, target)?,
        transport: &client,
        keyring: &Keyring::default(),
        timeout: settings.call_timeout,
        classes: &settings.classes,
    };
    let tested = target_test::test(&names, &through, &app, target, message).await;
    tested.map_err(|problems| Failure::message(Exit::BadInput, summary(&problems)))
}

fn show(args: &TestArgs, tested: &Tested) -> Result<Exit, Failure> {
    let exit = match tested.sent {
        true => Exit::Ok,
        false => Exit::NotAll,
    };
    if args.json {
        output::json(tested)?;
        return Ok(exit);
    }
    if let Some(request) = &tested.request {
        output::line(format!("{} {}", request.method, request.url))?;
        for (name, value) in &request.headers {
            output::line(format!("{name}: {value}"))?;
        }
        output::line(format!("\n{}\n", request.body))?;
    }
    if let Some(reply) = &tested.reply {
        output::line(format!("{} after {} ms", reply.status, reply.milliseconds))?;
        for (name, value) in &reply.headers {
            output::line(format!("{name}: {value}"))?;
        }
        output::line(format!("\n{}\n", reply.body))?;
    }
    let verdict = match exit {
        Exit::Ok => format!("{} got the message", args.to),
        _ => format!(
            "{} did not get the message, or may not have got it: {} {} {}",
            args.to,
            tested.class.as_str(),
            tested.code,
            tested.text
        ),
    };
    output::line(verdict.trim_end())?;
    Ok(exit)
}
