//! Reads `[apps.NAME.callbacks]` and `reply_to`: where an app's completed jobs may send their
//! accounts.

use std::time::Duration;

use fanwise_client::webhook::Signer;

use super::list_sources::read_hosts;
use super::reader::{Findings, Section};
use super::signatures::read_signer;
use super::{MINUTE, SECOND};
use crate::domain::notice::{CallbackRules, QueuePattern, ReplyRules};

#[derive(Clone, Debug)]
pub struct CallbackConfig {
    /// `hosts` (`["api.example.com", "*.hooks.example.com"]`; required) and `private` (false).
    pub rules: CallbackRules,
    /// `secret` or `secret_file` (required), and `signature_scheme` (`standard` or `fanwise`).
    pub signer: Signer,
    /// `timeout`: longest wait for a receiver. Default 10s; 100ms to 1m.
    pub timeout: Duration,
}

pub(super) fn from_section(
    mut section: Section,
    findings: &mut Findings,
) -> Option<CallbackConfig> {
    let hosts = read_hosts(&mut section, "hosts", findings);
    if hosts.is_empty() {
        let what = "empty: name the hosts that jobs may send their accounts to";
        findings.problem(section.key("hosts"), what);
    }
    let missing = "missing: receivers need it to verify that a notice is from Fanwise";
    let secret = section.required_secret("secret", "secret_file", missing, findings);
    let signer = read_signer(&mut section, secret, findings);
    let least = Duration::from_millis(100);
    let rules = CallbackRules {
        hosts,
        private: section.boolean("private", false, findings),
    };
    let timeout = section.duration("timeout", 10 * SECOND, least..=MINUTE, findings);
    section.finish(findings);
    Some(CallbackConfig {
        rules,
        signer: signer?,
        timeout,
    })
}

pub(super) fn read_replies(section: &mut Section, findings: &mut Findings) -> ReplyRules {
    let mut queues = Vec::new();
    for text in section.list("reply_to", &[], findings) {
        match QueuePattern::parse(&text) {
            Ok(queue) => queues.push(queue),
            Err(what) => findings.problem(section.key("reply_to"), what),
        }
    }
    ReplyRules(queues)
}
