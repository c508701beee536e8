//! Redriving: makes a new job from the dead letters of an old one.
//!
//! The `client_msg_no` of the new job is derived from the old one. A second redrive of the same
//! letters, by mistake or because an answer was lost, is therefore the same job, and no recipient
//! is sent to twice. Letters that arrive later extend it. A recipient that fails again has a letter
//! of the new job; redriving that makes the next generation.

use super::announce::DeadLetter;
use super::ids::digest_hex;
use super::job::{AudienceDocument, CLIENT_MSG_NO_BYTES_MAX, JobDocument, MessageDocument};
use super::lane::Priority;
use super::mapping::Strictness;
use super::message::Options;
use super::placeholders::as_it_stands;

/// Separates the key of the first job from the number of the redrive.
const MARK: &str = "~r";

/// The key of the job that redrives the letters of a job.
pub fn redrive_key(client_msg_no: &str) -> String {
    let (base, generation) = generation(client_msg_no);
    let suffix = format!("{MARK}{}", generation + 1);
    if base.len() + suffix.len() <= CLIENT_MSG_NO_BYTES_MAX {
        return format!("{base}{suffix}");
    }
    // A hash distinguishes keys that do not fit.
    let hash = digest_hex(&[base.as_bytes()], 8);
    let room = CLIENT_MSG_NO_BYTES_MAX - suffix.len() - hash.len() - 1;
    let start = &base[..base.floor_char_boundary(room)];
    format!("{start}~{hash}{suffix}")
}

/// The key of the first job, and how often it was redriven.
fn generation(client_msg_no: &str) -> (&str, u32) {
    let split = client_msg_no.rsplit_once(MARK);
    let number = split.and_then(|(_, number)| {
        let written = number.parse::<u32>().ok()?;
        // Only as we write it: "~r007" is part of a producer's key.
        (written > 0 && written < u32::MAX && written.to_string() == number).then_some(written)
    });
    match (split, number) {
        (Some((base, _)), Some(number)) => (base, number),
        _ => (client_msg_no, 0),
    }
}

/// The redriven job of a letter, still without recipients.
pub fn document(letter: &DeadLetter, priority: Priority) -> serde_json::Result<JobDocument> {
    let message: MessageDocument = serde_json::from_str(letter.message.get())?;
    let options: Options = serde_json::from_str(letter.options.get())?;
    let message = as_it_stands(message, &options);
    let key = redrive_key(&letter.client_msg_no);
    Ok(JobDocument {
        app: Some(letter.app.clone()),
        target: Some(letter.target.clone()),
        sender: letter.sender.clone(),
        category: letter.category.clone(),
        keep_ids: letter.keep_ids,
        options: Some(options),
        priority: Some(priority),
        // Features that the target does not support were dropped or refused when the first job was
        // accepted.
        mapping: Some(Strictness::Lenient),
        ..JobDocument::new(key, AudienceDocument::default(), message)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_count_the_redrives() {
        for (old, new) in [
            ("promo", "promo~r1"),
            ("promo~r1", "promo~r2"),
            ("promo~r9", "promo~r10"),
            ("promo~r01", "promo~r01~r1"),
            ("promo~r", "promo~r~r1"),
            ("~r3", "~r4"),
        ] {
            assert_eq!(redrive_key(old), new);
        }
    }

    proptest! {
        /// A key of any length has a redrive key that fits and differs from those of other jobs.
        #[test]
        fn keys_fit_and_differ(
            base in "[a-z~]{60,68}é{20,30}", other in "[a-z~]{60,68}é{20,30}",
        ) {
            let mut key = base.clone();
            for _ in 0..12 {
                let next = redrive_key(&key);
                prop_assert!(next.len() <= CLIENT_MSG_NO_BYTES_MAX, "{next}");
                prop_assert_ne!(&next, &key);
                key = next;
            }
            prop_assert_eq!(base == other, redrive_key(&base) == redrive_key(&other));
        }
    }

    #[test]
    fn the_message_comes_back_as_it_was_sent() {
        let raw = |value: serde_json::Value| serde_json::value::to_raw_value(&value).unwrap();
        let contents = [
            json!({"type": "text", "text": "hi"}),
            json!({"type": "custom", "data": {"a": 1}}),
            json!({"type": "raw", "data": [1]}),
            json!({"type": "text", "text": "hi", "native": {"b": 2}}),
            json!({"native": {"b": 2}}),
        ];
        for message in contents {
            let letter = DeadLetter {
                v: 1,
                job: String::new(),
                app: "shop".to_owned(),
                client_msg_no: "promo".to_owned(),
                target: "im".to_owned(),
                slice: String::new(),
                sender: Some("news".to_owned()),
                category: Some("marketing".to_owned()),
                group_type: None,
                keep_ids: true,
                message: raw(message.clone()),
                options: raw(json!({"unread": false, "expire_seconds": 7})),
                first_attempt_at: String::new(),
                last_attempt_at: String::new(),
                recipients: Vec::new(),
            };
            let job = document(&letter, Priority::Bulk).unwrap();
            let job = serde_json::to_value(job).unwrap();
            assert_eq!(job["message"], message);
            assert_eq!(job["client_msg_no"], "promo~r1");
            assert_eq!(job["sender"], "news");
            assert_eq!(job["category"], "marketing");
            assert_eq!(job["keep_ids"], true);
            assert_eq!(job["options"]["expire_seconds"], 7);
            assert_eq!(job["options"]["unread"], false);
        }
    }
}
