//! Reads the audience of a job: a list of users, a list of groups, or all users of the target.
//!
//! A list stays in the message that carried it and is read from there, entry by entry, so no
//! audience needs a second copy. An audience of all users has no list: the intake asks the target
//! page by page and publishes each page as a part of the same job.

use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;

pub use fanwise_client::Recipient as MemberDocument;
use ring::digest;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::fields::{Fields, Problem, Problems, TWICE, each_field, name_twice, shorten};
use super::job::{JOB_RECIPIENTS_MAX, ListPart, RECIPIENT_BYTES_MAX, wrong_id};
use super::list_reference::{FetchedList, ListReference};
use super::personal::{Form, Unfilled};
use super::slice::Addressed;
use super::text::{half_character, long_number};

/// Largest `vars` of one recipient, in bytes of JSON.
pub const VARS_BYTES_MAX: usize = 16 * 1024;

/// The most recipients whose message is rendered before a job is accepted. The first success ends
/// it.
const TRIED_MAX: usize = 10;

impl From<Member<'_>> for MemberDocument {
    fn from(Member { id, vars }: Member<'_>) -> Self {
        Self::new(id.into_owned(), vars.map(ToOwned::to_owned))
    }
}

/// One entry of a list.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    pub id: Cow<'a, str>,
    pub vars: Option<&'a RawValue>,
}

impl AsRef<str> for Member<'_> {
    fn as_ref(&self) -> &str {
        &self.id
    }
}

#[derive(Debug)]
pub(super) struct Audience<'a> {
    who: Who<'a>,
    exclude: Vec<Cow<'a, str>>,
    /// The version of the list, if it was fetched.
    fetched: Option<FetchedList>,
    /// The target treats `Ana` and `ana` as the same user.
    folds_case: bool,
}

#[derive(Debug)]
enum Who<'a> {
    Users(&'a RawValue),
    Groups(&'a RawValue, u8),
    All,
}

/// The kind of group in most systems that have groups.
pub const GROUP: u8 = 2;

impl<'a> Audience<'a> {
    pub(super) fn from_fields(mut fields: Fields<'a>, problems: &mut Problems) -> Option<Self> {
        let users = fields.raw("users");
        let groups = fields.raw("groups");
        let kind: Option<u8> = fields.get("group_type", "a number, 2 to 255,", problems);
        let all: Option<bool> = fields.get("all", "true or false", problems);
        let exclude = fields
            .texts("exclude", JOB_RECIPIENTS_MAX, problems)
            .unwrap_or_default();
        let expected =
            "an object such as {\"url\":\"https://a/u.csv\",\"sha256\":\"…\",\"bytes\":1}";
        let fetched = fields.get("fetched", expected, problems);
        let elsewhere = ListReference::refuse(&mut fields, problems);
        let who = match (users, groups, all.unwrap_or_default()) {
            _ if elsewhere => None,
            (Some(users), None, false) => Some(Who::Users(users)),
            (None, Some(groups), false) => Some(Who::Groups(groups, kind.unwrap_or(GROUP))),
            (None, None, true) => Some(Who::All),
            (None, None, false) => {
                let what = "missing; a list of recipient ids is expected, or `groups`, or `all`";
                fields.problem("users", what, problems);
                None
            }
            _ => {
                let what = "only one of `users`, `groups` and `all` can be the audience of a job";
                fields.problem("users", what, problems);
                None
            }
        };
        if kind.is_some_and(|kind| kind < GROUP) {
            fields.problem("group_type", "is not 2 to 255", problems);
        }
        fields.finish(problems);
        Some(Self {
            who: who?,
            exclude,
            fetched,
            folds_case: false,
        })
    }

    /// Sorts the excluded ids for look-ups, in the form in which the target compares ids.
    pub(super) fn prepare(&mut self, folds_case: bool) {
        self.folds_case = folds_case;
        for id in &mut self.exclude {
            fold(id, folds_case);
        }
        self.exclude.sort_unstable();
    }

    pub(super) fn addressed(&self) -> Addressed {
        match self.who {
            Who::Users(_) | Who::All => Addressed::Users,
            Who::Groups(_, kind) => Addressed::Groups(kind),
        }
    }

    pub(super) fn is_all(&self) -> bool {
        matches!(self.who, Who::All)
    }

    pub(super) fn excludes(&self, id: &str) -> bool {
        self.exclude
            .binary_search_by(|probe| (**probe).cmp(id))
            .is_ok()
    }

    pub(super) fn excluded(&self) -> &[Cow<'a, str>] {
        &self.exclude
    }

    pub(super) fn fetched(&self) -> Option<&FetchedList> {
        self.fetched.as_ref()
    }

    fn list(&self) -> Option<(&'a RawValue, &'static str)> {
        match self.who {
            Who::Users(list) => Some((list, "users")),
            Who::Groups(list, _) => Some((list, "groups")),
            Who::All => None,
        }
    }

    pub(super) fn for_each(&self, mut each: impl FnMut(Member<'a>)) {
        self.walk(|member| {
            each(member);
            ControlFlow::Continue(())
        });
    }

    fn walk(&self, mut each: impl FnMut(Member<'a>) -> ControlFlow<()>) {
        let Some((list, _)) = self.list() else {
            return;
        };
        // The totals reported every fault before the job was accepted.
        let _ = read_list(list.get(), |mut member| {
            fold(&mut member.id, self.folds_case);
            match self.excludes(&member.id) {
                true => ControlFlow::Continue(()),
                false => each(member),
            }
        });
    }

    /// Counts, hashes and checks the recipients.
    pub(super) fn totals(&self, problems: &mut Problems) -> AudienceTotals {
        let mut totals = AudienceTotals {
            entries: 0,
            personal: false,
            hash: digest::Context::new(&digest::SHA256),
        };
        let Some((list, name)) = self.list() else {
            return totals;
        };
        let mut index = 0;
        let read = read_list(list.get(), |mut member| {
            // Later entries are not read.
            if index == JOB_RECIPIENTS_MAX {
                let what =
                    format!("more than {JOB_RECIPIENTS_MAX} recipients in one message; send parts");
                problems.push(Problem::new(format!("audience.{name}"), what));
                return ControlFlow::Break(());
            }
            if let Some(what) = wrong_id(&member.id, RECIPIENT_BYTES_MAX) {
                problems.push(Problem::new(format!("audience.{name}[{index}]"), what));
            }
            if let Some(what) = member.vars.and_then(wrong_vars) {
                problems.push(Problem::new(format!("audience.{name}[{index}].vars"), what));
            }
            index += 1;
            fold(&mut member.id, self.folds_case);
            if !self.excludes(&member.id) {
                totals.count(&member);
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = read {
            let what = format!("a list of recipients is expected: at entry {index}, {error}");
            problems.push(Problem::new(format!("audience.{name}"), what));
        }
        totals
    }

    /// Returns a problem if no recipient can have the message, most likely because of a mistake in
    /// its texts. It renders the message for the first few recipients only, and looks through the
    /// others just for the variable that those lack.
    pub(super) fn unfillable(&self, form: &Form) -> Option<Problem> {
        let (mut tried, mut filled, mut all) = (0, false, true);
        let mut first: Option<(Unfilled, Option<&RawValue>)> = None;
        let mut try_out = |vars| {
            if tried == TRIED_MAX {
                all = false;
                return ControlFlow::Break(());
            }
            tried += 1;
            match form.try_out(vars) {
                Ok(()) => {
                    filled = true;
                    ControlFlow::Break(())
                }
                Err(unfilled) => {
                    first.get_or_insert((unfilled, vars));
                    ControlFlow::Continue(())
                }
            }
        };
        match self.is_all() {
            true => drop(try_out(None)),
            false => self.walk(|member| try_out(member.vars)),
        }
        let (Unfilled { problem, lacks }, vars) = first.filter(|_| !filled)?;
        let lacks = lacks.as_deref().map(root);
        let hopeless = lacks.is_some_and(|name| form.reads(name) && !self.is_brought(name));
        if !all && !hopeless {
            return None;
        }
        let hint = lacks.zip(vars).and_then(|(name, vars)| misread(name, vars));
        let what = format!(
            "no recipient could get this: {}{}",
            problem.what,
            hint.unwrap_or_default()
        );
        Some(Problem::new(problem.field, what))
    }

    /// Whether any recipient has a value of this name.
    fn is_brought(&self, name: &str) -> bool {
        let mut brought = false;
        self.walk(|member| {
            let vars = member.vars.map_or("{}", RawValue::get);
            let _ = each_field(vars, |key, value| {
                brought |= key == name && value.get() != "null";
            });
            match brought {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        brought
    }
}

/// The name of the variable itself, for a path such as `user.name`.
fn root(variable: &str) -> &str {
    let end = variable.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    &variable[..end.unwrap_or(variable.len())]
}

/// A hint, if there is a value whose name begins with this name and is not a valid name of a
/// placeholder.
fn misread(name: &str, vars: &RawValue) -> Option<String> {
    let mut whole = None;
    let _ = each_field(vars.get(), |key, _| {
        let rest = key.strip_prefix(name);
        if rest.is_some_and(|rest| !rest.is_empty() && root(&key) == name) {
            whole = Some(shorten(&key, 40).into_owned());
        }
    });
    let whole = whole?;
    Some(format!(
        "; there is a value {whole:?}, and the name of a placeholder consists of letters, digits and _"
    ))
}

/// Changes an id to the form in which a target compares ids. Copies only the ids that change.
pub fn fold(id: &mut Cow<'_, str>, folds_case: bool) {
    if folds_case && id.chars().any(char::is_uppercase) {
        *id = Cow::Owned(id.to_lowercase());
    }
}

pub(super) fn wrong_vars(vars: &RawValue) -> Option<String> {
    let size = vars.get().len();
    if size > VARS_BYTES_MAX {
        Some(format!(
            "{size} bytes, at most {VARS_BYTES_MAX} are allowed"
        ))
    } else if !vars.get().starts_with('{') {
        Some("a JSON object is expected".to_owned())
    } else {
        wrong_values(vars.get())
    }
}

/// Why values for placeholders would not be rendered as they are written.
pub(super) fn wrong_values(vars: &str) -> Option<String> {
    if let Some(name) = name_twice(vars) {
        return Some(format!("{name:?} {TWICE}"));
    }
    if let Some(half) = half_character(vars) {
        return Some(format!(
            "half of a character, as when an emoji is cut: {half}"
        ));
    }
    let number = long_number(vars)?;
    Some(format!(
        "{number} has more digits than a number can keep; write it as a text, in quotes"
    ))
}

/// The results of one pass over an audience.
pub(super) struct AudienceTotals {
    pub(super) entries: usize,
    /// Some recipient has values for placeholders.
    pub(super) personal: bool,
    hash: digest::Context,
}

impl AudienceTotals {
    fn count(&mut self, member: &Member<'_>) {
        self.entries += 1;
        let mut update = |text: &str| {
            self.hash.update(&(text.len() as u32).to_be_bytes());
            self.hash.update(text.as_bytes());
        };
        update(&member.id);
        if let Some(vars) = member.vars {
            update(vars.get());
            self.personal = true;
        }
    }

    /// The name of the list within its job.
    pub(super) fn digest(self, part: &ListPart) -> String {
        let mut hash = self.hash;
        hash.update(&part.number.to_be_bytes());
        let digest = hash.finish();
        digest.as_ref()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads a JSON list entry by entry without collecting it, until `each` breaks off.
fn read_list<'a>(
    json: &'a str,
    mut each: impl FnMut(Member<'a>) -> ControlFlow<()>,
) -> Result<(), serde_json::Error> {
    struct Each<F>(F);
    impl<'de, F: FnMut(Member<'de>) -> ControlFlow<()>> Visitor<'de> for Each<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(member) = list.next_element()? {
                if (self.0)(member).is_break() {
                    return Err(serde::de::Error::custom("broken off"));
                }
            }
            Ok(())
        }
    }
    impl<'de, F: FnMut(Member<'de>) -> ControlFlow<()>> DeserializeSeed<'de> for Each<F> {
        type Value = ();
        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_seq(self)
        }
    }
    let mut broken_off = false;
    let each = |member| {
        let flow = each(member);
        broken_off = flow.is_break();
        flow
    };
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let read = Each(each).deserialize(&mut deserializer);
    match broken_off {
        true => Ok(()),
        false => read.and_then(|()| deserializer.end()),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Member<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = Member<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or an object with `id` and `vars`")
            }
            fn visit_borrowed_str<E>(self, id: &'de str) -> Result<Member<'de>, E> {
                let id = Cow::Borrowed(id);
                Ok(Member { id, vars: None })
            }
            fn visit_str<E>(self, id: &str) -> Result<Member<'de>, E> {
                let id = Cow::Owned(id.to_owned());
                Ok(Member { id, vars: None })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member<'de>, A::Error> {
                let (mut id, mut vars) = (None, None);
                while let Some(Text(key)) = map.next_key()? {
                    let before = match &*key {
                        "id" => id.replace(map.next_value::<Text<'de>>()?.0).is_some(),
                        "vars" => vars.replace(map.next_value::<&'de RawValue>()?).is_some(),
                        other => {
                            let other = shorten(other, 40);
                            return Err(serde::de::Error::unknown_field(&other, &["id", "vars"]));
                        }
                    };
                    if before {
                        return Err(serde::de::Error::custom(format!("`{key}` {TWICE}")));
                    }
                }
                let id = id.ok_or_else(|| serde::de::Error::missing_field("id"))?;
                Ok(Member { id, vars })
            }
        }
        deserializer.deserialize_any(Entry)
    }
}
