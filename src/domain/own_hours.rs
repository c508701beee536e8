//! The sending hours of each recipient of a slice, in the zone that the recipient brings among its
//! values.
//!
//! A recipient that brings no zone has that of the message's own values, else that of the job. So has
//! one whose zone is not known. A slice has few zones, and each is looked up once.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use super::fields::{each_field, shorten};
use super::slice::Slice;
use super::window::Window;

/// The sending hours of the recipients of a slice.
#[derive(Debug)]
pub struct OwnHours {
    /// The hours in each zone that occurs.
    windows: Vec<Window>,
    /// For each recipient, the place of its hours in `windows`.
    of: Vec<u16>,
}

impl OwnHours {
    /// `None` unless the hours of the job are those of its recipients.
    pub fn of(slice: &Slice) -> Option<Self> {
        let mut zones = Zones::new(slice.head.window.as_ref()?, slice.head.vars.as_deref())?;
        let recipients = 0..slice.recipients.len();
        let of = recipients.map(|index| zones.place(slice.vars_of(index)));
        let of = of.collect();
        Some(Self {
            windows: zones.windows,
            of,
        })
    }

    /// Puts recipients of one zone side by side, so that calls for several recipients stay full where
    /// some are outside of their hours. Only if nothing was tried yet: a repeated call keeps its
    /// recipients.
    pub fn sort(&mut self, slice: &mut Slice) {
        let untouched = slice.attempts.is_empty()
            && slice.calls.is_empty()
            && slice.doubts.is_empty()
            && slice.remarks.is_empty();
        if !untouched || self.windows.len() < 2 {
            return;
        }
        let mut order: Vec<usize> = (0..self.of.len()).collect();
        order.sort_by_key(|index| self.of[*index]);
        let sorted = |index: &usize| std::mem::take(&mut slice.recipients[*index]);
        slice.recipients = order.iter().map(sorted).collect();
        if !slice.vars.is_empty() {
            slice.vars.resize(order.len(), None);
            let sorted = |index: &usize| slice.vars[*index].take();
            slice.vars = order.iter().map(sorted).collect();
        }
        self.of.sort_unstable();
    }

    /// The recipients that are outside of their hours now; `None` if all are within them.
    pub fn closed(&self, now_ms: u64) -> Option<Closed<'_>> {
        let windows = self.windows.iter();
        let opens: Vec<_> = windows.map(|window| window.opens_ms(now_ms)).collect();
        let any = opens.iter().any(Option::is_some);
        any.then_some(Closed {
            opens,
            of: &self.of,
        })
    }

    /// Whether these recipients are within their hours.
    pub fn are_open(&self, recipients: &[usize], now_ms: u64) -> bool {
        let mut open = None;
        recipients.iter().all(|index| {
            let zone = self.of.get(*index).copied();
            open == zone || {
                open = zone;
                let window = zone.and_then(|zone| self.windows.get(usize::from(zone)));
                window.is_none_or(|window| window.opens_ms(now_ms).is_none())
            }
        })
    }
}

/// When the hours of recipients begin that are outside of them.
pub struct Closed<'a> {
    opens: Vec<Option<u64>>,
    of: &'a [u16],
}

impl Closed<'_> {
    /// When the hours of this recipient begin; `None` if it is within them.
    pub fn opens_ms(&self, index: usize) -> Option<u64> {
        let zone = self.of.get(index)?;
        self.opens.get(usize::from(*zone)).copied().flatten()
    }
}

/// The hours of a window in all zones that occur among recipients.
struct Zones<'a> {
    hours: &'a Window,
    var: &'a str,
    /// The hours of those that bring no zone, or an unknown one.
    others: u16,
    windows: Vec<Window>,
    /// The place of the hours of each zone by its name; `None` if there is no such zone.
    places: HashMap<String, Option<u16>>,
}

impl<'a> Zones<'a> {
    /// `defaults`: the values of the message, which apply to recipients that lack them.
    fn new(hours: &'a Window, defaults: Option<&RawValue>) -> Option<Self> {
        let mut zones = Self {
            hours,
            var: hours.zone_var()?,
            others: 0,
            windows: vec![hours.clone()],
            places: HashMap::new(),
        };
        zones.others = zones.of_values(defaults).ok().flatten().unwrap_or(0);
        Some(zones)
    }

    /// The place of the hours of a recipient with these values.
    fn place(&mut self, vars: Option<&RawValue>) -> u16 {
        self.of_values(vars).ok().flatten().unwrap_or(self.others)
    }

    /// The place of the hours in the zone that these values name; `None` if they name none, and the
    /// text if there is no such zone.
    fn of_values(&mut self, vars: Option<&RawValue>) -> Result<Option<u16>, String> {
        let Some(zone) = vars.and_then(|vars| named(vars, self.var)) else {
            return Ok(None);
        };
        if let Some(place) = self.places.get(&*zone) {
            return place.map(Some).ok_or_else(|| zone.into_owned());
        }
        let window = self.hours.in_zone(&zone);
        // There are some hundred zones, and some hundred further names for them.
        let place = window.and_then(|window| {
            let place = u16::try_from(self.windows.len()).ok()?;
            self.windows.push(window);
            Some(place)
        });
        let zone = zone.into_owned();
        self.places.insert(zone.clone(), place);
        place.map(Some).ok_or(zone)
    }
}

/// The text of a value; a value of another kind counts as its JSON, which is no zone.
fn named<'a>(vars: &'a RawValue, var: &str) -> Option<Cow<'a, str>> {
    let mut found = None;
    // The reader of jobs refuses values that are no object.
    let _ = each_field(vars.get(), |name, value| {
        if name == var && value.get() != "null" {
            found = Some(value.get());
        }
    });
    let json = found?;
    Some(match serde_json::from_str::<String>(json) {
        Ok(text) => text.into(),
        Err(_) => json.into(),
    })
}

/// Counts recipients that bring a zone which is not known.
pub struct UnknownZones<'a> {
    zones: Option<Zones<'a>>,
    recipients: u64,
    first: Option<String>,
}

impl<'a> UnknownZones<'a> {
    /// For a job with these sending hours.
    pub fn new(hours: Option<&'a Window>) -> Self {
        Self {
            zones: hours.and_then(|hours| Zones::new(hours, None)),
            recipients: 0,
            first: None,
        }
    }

    /// Whether recipients may bring a zone of their own.
    pub fn may_be(&self) -> bool {
        self.zones.is_some()
    }

    /// Counts a recipient with these values.
    pub fn note(&mut self, vars: Option<&RawValue>) {
        let Some(zones) = &mut self.zones else {
            return;
        };
        if let Err(zone) = zones.of_values(vars) {
            self.recipients += 1;
            self.first.get_or_insert(zone);
        }
    }

    pub fn recipients(&self) -> u64 {
        self.recipients
    }

    /// What to tell about them, if there are any.
    pub fn warning(&self) -> Option<String> {
        let (first, zones) = (self.first.as_ref()?, self.zones.as_ref()?);
        let first = shorten(first, ZONE_SHOWN);
        Some(format!(
            "{} recipient(s) bring a {:?} that is no time zone of the IANA database, such as {first:?}: \
             the sending hours in {} apply to them",
            self.recipients,
            zones.var,
            zones.hours.zone()
        ))
    }
}

/// Bytes of an unknown zone that a warning shows.
const ZONE_SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::delivery::tests::slice;
    use crate::domain::slice::Head;
    use crate::json::joined;

    fn raw(json: &str) -> Option<Box<RawValue>> {
        Some(joined(json.to_owned()))
    }

    /// A slice of one recipient for each of these values, with hours from 09:00 to 21:00.
    fn with(window: &str, defaults: Option<&str>, vars: &[Option<&str>]) -> Slice {
        let mut slice = slice(vars.len() as u32, 0);
        let head = Head {
            window: window.parse().ok(),
            vars: defaults.and_then(raw),
            ..(*slice.head).clone()
        };
        slice.head = Arc::new(head);
        slice.vars = vars.iter().map(|vars| vars.and_then(raw)).collect();
        slice
    }

    /// 02:00 in UTC, 10:00 in Shanghai, 21:00 of the day before in New York.
    const NIGHT: u64 = 1_767_232_800_000;
    const HOUR: u64 = 3_600_000;

    const OWN: &str = "09:00-21:00 vars.tz or UTC";

    #[test]
    fn each_recipient_has_the_hours_of_its_own_zone() {
        let slice = with(
            OWN,
            None,
            &[
                Some(r#"{"tz":"Asia/Shanghai"}"#),
                Some(r#"{"tz":"America/New_York"}"#),
                // Missing, unknown, of another kind.
                Some(r#"{"name":"Ana"}"#),
                None,
                Some(r#"{"tz":null}"#),
                Some(r#"{"tz":"Mars/Base"}"#),
                Some(r#"{"tz":8}"#),
                Some(r#"{"tz":"Asia\/Shanghai"}"#),
            ],
        );
        let own = OwnHours::of(&slice).unwrap();
        let opens = |now| {
            let closed = own.closed(now).unwrap();
            (0..8).map(|at| closed.opens_ms(at)).collect::<Vec<_>>()
        };
        let (utc, new_york) = (Some(NIGHT + 7 * HOUR), Some(NIGHT + 12 * HOUR));
        assert_eq!(
            opens(NIGHT),
            [None, new_york, utc, utc, utc, utc, utc, None]
        );
        assert!(own.are_open(&[0, 7], NIGHT) && !own.are_open(&[0, 7, 1], NIGHT));
        assert!(!own.are_open(&[1, 0], NIGHT));
        assert_eq!(own.windows.len(), 3, "{own:?}");
        // 13:00 in UTC, 21:00 in Shanghai, 08:00 in New York.
        assert_eq!(opens(NIGHT + 11 * HOUR)[2], None);
        assert!(own.closed(NIGHT + 13 * HOUR).is_some());
        let others = with(OWN, None, &[None, None]);
        assert!(
            OwnHours::of(&others)
                .unwrap()
                .closed(NIGHT + 9 * HOUR)
                .is_none()
        );
    }

    #[test]
    fn the_zone_among_the_values_of_the_message_applies_to_all_others() {
        let defaults = Some(r#"{"tz":"Asia/Shanghai"}"#);
        let slice = with(OWN, defaults, &[None, Some(r#"{"tz":"UTC"}"#)]);
        let own = OwnHours::of(&slice).unwrap();
        assert!(own.are_open(&[0], NIGHT) && !own.are_open(&[1], NIGHT));
    }

    #[test]
    fn other_jobs_have_no_hours_of_their_recipients() {
        let of_job = with(
            "09:00-21:00 UTC",
            None,
            &[Some(r#"{"tz":"Asia/Shanghai"}"#)],
        );
        assert!(OwnHours::of(&of_job).is_none());
        assert!(OwnHours::of(&slice(1, 0)).is_none());
    }

    #[test]
    fn recipients_of_one_zone_are_put_side_by_side() {
        let [shanghai, utc] = [r#"{"tz":"Asia/Shanghai"}"#, r#"{"tz":"UTC"}"#].map(Some);
        let mut mixed = with(OWN, None, &[shanghai, utc, shanghai, utc, None]);
        let names = mixed.recipients.clone();
        let mut own = OwnHours::of(&mixed).unwrap();
        own.sort(&mut mixed);
        let expected: Vec<_> = [4, 0, 2, 1, 3].map(|it| names[it].clone()).into();
        assert_eq!(mixed.recipients, expected);
        let zones: Vec<_> = (0..5)
            .map(|at| mixed.vars_of(at).map(RawValue::get))
            .collect();
        assert_eq!(zones, [None, shanghai, shanghai, utc, utc]);
        assert!(own.are_open(&[1, 2], NIGHT) && !own.are_open(&[3], NIGHT));
        // A call that may be repeated keeps its recipients.
        let mut tried = with(OWN, None, &[shanghai, utc, shanghai]);
        tried.attempts = vec![1, 0, 0];
        let names = tried.recipients.clone();
        OwnHours::of(&tried).unwrap().sort(&mut tried);
        assert_eq!(tried.recipients, names);
    }

    #[test]
    fn unknown_zones_are_counted_and_said() {
        let window: Window = OWN.parse().unwrap();
        let mut unknown = UnknownZones::new(Some(&window));
        assert!(unknown.may_be());
        for vars in [
            r#"{"tz":"UTC"}"#,
            r#"{"tz":"Mars/Base"}"#,
            r#"{"tz":7}"#,
            r#"{}"#,
        ] {
            unknown.note(raw(vars).as_deref());
        }
        unknown.note(None);
        assert_eq!(unknown.recipients(), 2);
        assert_eq!(
            unknown.warning().unwrap(),
            "2 recipient(s) bring a \"tz\" that is no time zone of the IANA database, such as \
             \"Mars/Base\": the sending hours in UTC apply to them"
        );
        let plain: Window = "09:00-21:00 UTC".parse().unwrap();
        for hours in [None, Some(&plain)] {
            let mut none = UnknownZones::new(hours);
            none.note(raw(r#"{"tz":"Mars/Base"}"#).as_deref());
            assert!(none.warning().is_none() && !none.may_be());
        }
    }
}
