//! Reads the parts of a job that both versions of the API handle alike: sender, unread count,
//! native fields.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::Settings;
use super::account::length;
use crate::domain::slice::Head;

/// Reports a problem of a job's sender.
pub(in crate::im) fn check_sender(sender: &str, problem: &mut impl FnMut(&str, String)) {
    let most = Settings::ACCID_LENGTH_MAX;
    if sender.trim().is_empty() {
        let what = "a sender is needed; name an accid in the job or in the target's settings";
        problem("sender", what.to_owned());
    } else if length(sender) > most {
        let what = format!("{} characters, an accid has at most {most}", length(sender));
        problem("sender", what);
    }
}

/// Whether the message counts as unread, which is all that `badge` decides.
pub(in crate::im) fn badge(head: &Head) -> Option<bool> {
    let badge = head.options.push.as_ref().and_then(|push| push.badge);
    head.options.unread.or(badge)
}

pub(in crate::im) fn check_badge(head: &Head, problem: &mut impl FnMut(&str, String)) {
    let asked = head.options.push.as_ref().and_then(|push| push.badge);
    if asked.is_some() && asked != badge(head) {
        let what = "differs from `options.unread`; here both are the unread count";
        problem("options.push.badge", what.to_owned());
    }
}

/// The native fields of a job. Accepting the job checked that they are an object.
pub(in crate::im) fn native(head: &Head) -> BTreeMap<String, Box<RawValue>> {
    let json = head.native.as_ref().map_or("{}", |native| native.get());
    crate::json::again(json)
}

/// Refuses native fields that Fanwise sets, which are listed in `ours`.
pub(in crate::im) fn check_native(
    head: &Head,
    ours: &[&str],
    problem: &mut impl FnMut(&str, String),
) {
    for name in native(head).keys() {
        if ours.contains(&name.as_str()) {
            let what = "this field is not for a job to set";
            problem(&format!("message.native.{name}"), what.to_owned());
        }
    }
}
