//! Cuts a list into parts that each fit, such as into a message of a job.
//!
//! The rule is the same for every list: the entries keep their order, a part takes entries as long
//! as they fit, and the entry that does not fit begins the next part. Sizes are those of the JSON
//! that is written, not estimates. `cut` works on a list in memory; code that writes a message
//! while the list arrives asks `Filling` about each entry.

use serde::Serialize;

use crate::audience::Recipient;
use crate::job::{JOB_BYTES_MAX, JOB_RECIPIENTS_MAX, Job, ListPart};

/// Room in a message for the number of the part and the name of its list.
const PART_BYTES_MAX: usize = 256;

/// The fewest bytes that a list gets in each message, even if the job leaves less: the first
/// message is then refused as too large, and the list does not become thousands of messages before.
const LIST_BYTES_MIN: usize = 512 * 1024;

/// The most that one part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub entries: usize,
    /// The bytes of the entries as JSON, with a comma between two of them.
    pub bytes: usize,
}

impl Bounds {
    /// For at most `entries` recipients in a message whose job takes `job_bytes` without them.
    pub fn of_message(entries: usize, job_bytes: usize) -> Self {
        let free = JOB_BYTES_MAX.saturating_sub(job_bytes + PART_BYTES_MAX);
        Self {
            entries,
            bytes: free.max(LIST_BYTES_MIN),
        }
    }

    /// For entries that arrived in one message, so that their bytes have a bound already.
    pub fn of_slice(entries: u32) -> Self {
        Self {
            entries: entries as usize,
            bytes: usize::MAX,
        }
    }
}

/// How full a part is.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    bounds: Bounds,
    entries: usize,
    bytes: usize,
}

impl Filling {
    /// Begins an empty part.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: 0,
            bytes: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Counts an entry of this many bytes, unless it does not fit.
    pub fn take(&mut self, bytes: usize) -> bool {
        let sum = self.with(bytes);
        let fits = self.entries < self.bounds.entries && sum <= self.bounds.bytes;
        if fits {
            self.entries += 1;
            self.bytes = sum;
        }
        fits
    }

    /// The bytes of the part with one more entry.
    fn with(&self, bytes: usize) -> usize {
        let comma = usize::from(!self.is_empty());
        self.bytes.saturating_add(comma).saturating_add(bytes)
    }
}

/// Cuts a list into parts. An entry that is larger than the bounds gets a part of its own, which
/// the reader of the message refuses.
pub fn cut<T>(
    list: impl IntoIterator<Item = T>,
    bounds: Bounds,
    bytes: impl Fn(&T) -> usize,
) -> impl Iterator<Item = Vec<T>> {
    let mut rest = list.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = rest.next()?;
        let mut filling = Filling::new(bounds);
        filling.take(bytes(&first));
        let mut part = Vec::with_capacity(bounds.entries.min(1 + rest.size_hint().0));
        part.push(first);
        // A part whose first entry does not fit takes no other.
        while !filling.is_empty()
            && let Some(entry) = rest.next_if(|entry| filling.take(bytes(entry)))
        {
            part.push(entry);
        }
        Some(part)
    })
}

/// Cuts recipients into lists that each fit into one message of a job, which takes `job_bytes`
/// without them.
pub fn messages(
    recipients: Vec<Recipient>,
    job_bytes: usize,
) -> impl Iterator<Item = Vec<Recipient>> {
    let bounds = Bounds::of_message(JOB_RECIPIENTS_MAX, job_bytes);
    cut(recipients, bounds, json_bytes)
}

impl Job {
    /// The messages that carry the job over AMQP: one, or as many parts as its list needs. The same
    /// job always gives the same messages, so that publishing it again stays harmless.
    ///
    /// ```
    /// use fanwise_client::{Audience, Job, Message};
    ///
    /// let users = (0..250_000).map(|number| format!("u{number}"));
    /// let job = Job::new("promo-7", Audience::users(users), Message::text("Hello"));
    /// assert_eq!(job.into_messages().count(), 3);
    /// ```
    pub fn into_messages(mut self) -> impl Iterator<Item = Vec<u8>> + Send {
        let lists: Vec<_> = match self.audience.users.take() {
            Some(users) if !users.is_empty() => {
                self.audience.users = Some(Vec::new());
                messages(users, json_bytes(&self)).map(Some).collect()
            }
            users => vec![users],
        };
        let together = self.part.as_ref().and_then(|part| part.together.clone());
        let of = lists.len() as u32;
        (1..).zip(lists).map(move |(number, users)| {
            self.audience.users = users;
            if of > 1 {
                self.part = Some(ListPart {
                    number,
                    of,
                    together: together.clone(),
                });
            }
            json(&self)
        })
    }
}

/// A value as JSON.
#[expect(
    clippy::expect_used,
    reason = "the types of this crate have no maps with other keys than texts, and nothing else can fail"
)]
pub fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("a value of ours can be written as JSON")
}

/// The bytes of a value as JSON.
#[expect(clippy::expect_used, reason = "see `json`")]
pub fn json_bytes<T: Serialize + ?Sized>(value: &T) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("a value of ours can be written as JSON");
    count.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;
    use crate::audience::Audience;
    use crate::message::Message;

    fn raw(value: &impl Serialize) -> Box<RawValue> {
        serde_json::value::to_raw_value(value).unwrap()
    }

    fn sizes(entries: usize, bounds: Bounds) -> Vec<usize> {
        cut(0..entries, bounds, |_| 1).map(|it| it.len()).collect()
    }

    #[test]
    fn parts_are_full_but_for_the_last() {
        let bounds = Bounds {
            entries: 100,
            bytes: usize::MAX,
        };
        assert!(sizes(0, bounds).is_empty());
        assert_eq!(sizes(1, bounds), [1]);
        assert_eq!(sizes(100, bounds), [100]);
        assert_eq!(sizes(101, bounds), [100, 1]);
        assert_eq!(sizes(100_000, bounds), [100; 1000]);
        let whole = Bounds::of_message(JOB_RECIPIENTS_MAX, 300);
        assert_eq!(sizes(100_000, whole), [100_000]);
        assert_eq!(sizes(100_001, whole), [100_000, 1]);
    }

    #[test]
    fn bytes_count_with_their_commas() {
        // "aa","bb" take nine bytes.
        let list = || ["aa", "bb", "cc"];
        let cut = |bytes| {
            let entries = 10;
            let parts = cut(list(), Bounds { entries, bytes }, json_bytes);
            parts.map(|it| it.len()).collect::<Vec<_>>()
        };
        assert_eq!(cut(14), [3]);
        assert_eq!(cut(13), [2, 1]);
        assert_eq!(cut(9), [2, 1]);
        assert_eq!(cut(8), [1, 1, 1]);
        // Nothing is lost if an entry alone is too large.
        assert_eq!(cut(0), [1, 1, 1]);
    }

    #[test]
    fn a_job_that_leaves_no_room_is_not_multiplied() {
        let recipients = vec![Recipient::Id("u".repeat(10)); 100_000];
        for job_bytes in [JOB_BYTES_MAX - 300, 2 * JOB_BYTES_MAX, usize::MAX / 2] {
            let parts = messages(recipients.clone(), job_bytes).count();
            assert_eq!(
                parts,
                1_300_000_usize.div_ceil(LIST_BYTES_MIN),
                "{job_bytes}"
            );
        }
    }

    /// Ids with characters that JSON writes as two or six, with and without values.
    fn member() -> impl Strategy<Value = Recipient> {
        let vars = prop::option::of("[a-z\"\\\\é]{0,20}");
        ("[a-z\"\\\\\u{1}é]{1,12}", vars).prop_map(|(id, text)| {
            let vars = text.map(|text| raw(&[("text", text)]));
            Recipient::new(id, vars)
        })
    }

    fn key(member: &Recipient) -> (String, Option<String>) {
        let vars = member.vars().map(RawValue::get);
        (member.id().to_owned(), vars.map(str::to_owned))
    }

    proptest! {
        /// Nothing is lost, the order stays, each part is within both bounds, and no part could
        /// take the entry that begins the next one.
        #[test]
        fn a_cut_list_is_the_same_list(
            list in prop::collection::vec(member(), 0..60),
            entries in 1_usize..20,
            bytes in 200_usize..1000,
        ) {
            let bounds = Bounds { entries, bytes };
            let parts: Vec<_> = cut(list.clone(), bounds, json_bytes).collect();
            let back: Vec<_> = parts.iter().flatten().map(key).collect();
            prop_assert_eq!(back, list.iter().map(key).collect::<Vec<_>>());
            // The brackets of the list take two bytes.
            let written = |part: &[Recipient]| json(part).len() - 2;
            for part in &parts {
                prop_assert!(!part.is_empty() && part.len() <= entries);
                prop_assert!(written(part) <= bytes);
            }
            for pair in parts.windows(2) {
                let more = [&pair[0][..], &pair[1][..1]].concat();
                prop_assert!(more.len() > entries || written(&more) > bytes);
            }
        }

        /// Writing entry by entry fills parts exactly as cutting does.
        #[test]
        fn a_filling_follows_the_same_rule(
            sizes in prop::collection::vec(1_usize..40, 0..200),
            entries in 1_usize..20, bytes in 40_usize..200,
        ) {
            let bounds = Bounds { entries, bytes };
            let mut parts: Vec<Vec<usize>> = Vec::new();
            let mut filling = Filling::new(bounds);
            for size in &sizes {
                if filling.is_empty() || !filling.take(*size) {
                    filling = Filling::new(bounds);
                    prop_assert!(filling.take(*size));
                    parts.push(Vec::new());
                }
                parts.last_mut().unwrap().push(*size);
            }
            prop_assert_eq!(parts, cut(sizes, bounds, |it| *it).collect::<Vec<_>>());
        }
    }

    #[test]
    fn lists_fit_one_message() {
        let recipients: Vec<_> = (0..250_000)
            .map(|number| "\"".repeat(if number < 50_000 { 255 } else { 1 + number % 8 }))
            .collect();
        let members: Vec<_> = recipients.iter().cloned().map(Into::into).collect();
        let job_bytes = 1024 * 1024;
        let lists: Vec<_> = messages(members, job_bytes).collect();
        for list in &lists {
            let bytes = job_bytes + json(list).len();
            assert!(bytes <= JOB_BYTES_MAX, "{bytes}");
            assert!(list.len() <= JOB_RECIPIENTS_MAX);
        }
        let back: Vec<_> = lists.concat().iter().map(|it| it.id().to_owned()).collect();
        assert_eq!(back, recipients);
    }

    fn bodies(job: &Job) -> Vec<serde_json::Value> {
        let messages = job.clone().into_messages();
        messages
            .map(|body| {
                assert!(body.len() <= JOB_BYTES_MAX);
                serde_json::from_slice(&body).unwrap()
            })
            .collect()
    }

    #[test]
    fn a_job_is_one_message_until_its_list_is_too_long() {
        let job = |count: usize| {
            let users = (0..count).map(|number| format!("u{number}"));
            Job::new("k", Audience::users(users), Message::text("hello"))
        };
        for (count, of) in [(1, 1), (100_000, 1), (100_001, 2), (200_001, 3)] {
            let bodies = bodies(&job(count));
            assert_eq!(bodies.len(), of, "{count}");
            let users: Vec<_> = bodies
                .iter()
                .flat_map(|body| body["audience"]["users"].as_array().unwrap())
                .collect();
            assert_eq!(users.len(), count);
            assert_eq!(users[count - 1], &format!("u{}", count - 1));
            let parts: Vec<_> = bodies
                .iter()
                .map(|it| it["part"]["number"].as_u64())
                .collect();
            let numbers = (1..=of as u64).map(|it| (of > 1).then_some(it));
            assert_eq!(parts, numbers.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_job_without_a_list_keeps_its_audience() {
        let groups = Audience {
            groups: Some(vec!["g".to_owned()]),
            ..Audience::default()
        };
        for audience in [
            groups,
            Audience::everybody(),
            Audience::users(Vec::<String>::new()),
        ] {
            let job = Job::new("k", audience, Message::text("hello"));
            assert_eq!(bodies(&job), [serde_json::to_value(&job).unwrap()]);
        }
    }
}
