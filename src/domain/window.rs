//! Sending hours: the hours of the day, in a time zone, in which something may be sent.
//!
//! The hours are those of the wall clock. Where clocks change, an hour that comes twice is within
//! the hours twice, and hours that begin at a time that does not exist begin when the clock has
//! passed it.
//!
//! A window may take the zone of each recipient from a value that the recipient brings. Its own zone
//! then applies to recipients that bring none (`own_hours`).

use std::fmt;
use std::str::FromStr;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Hours such as `09:00-21:00`, up to and without the second time; `21:00-06:00` covers midnight.
/// A time may have seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    from: Time,
    until: Time,
    zone: TimeZone,
    /// The name of the zone, as it was given.
    zone_name: String,
    /// The value of a recipient that names its own zone.
    zone_var: Option<String>,
}

/// Before the name of the value that holds the zone of a recipient, in the text of a window.
const VARS: &str = "vars.";

/// Between that name and the zone for all others.
const OR: &str = " or ";

/// Why texts are no sending hours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWindow {
    #[error("{0:?} is not a window such as \"09:00-21:00\" or \"21:00-06:00\"")]
    Hours(String),
    #[error("{0:?} is no time zone of the IANA database, such as \"Asia/Shanghai\" or \"UTC\"")]
    Zone(String),
}

impl Window {
    /// The zone of hours that name none.
    pub const ZONE: &'static str = "UTC";

    pub fn new(hours: &str, zone: &str) -> Result<Self, NoWindow> {
        let wrong = || NoWindow::Hours(hours.to_owned());
        let (from, until) = hours.split_once('-').ok_or_else(wrong)?;
        let (from, until) = (time(from), time(until));
        let (from, until) = (from.ok_or_else(wrong)?, until.ok_or_else(wrong)?);
        if from == until {
            return Err(wrong());
        }
        let known = TimeZone::get(zone).map_err(|_| NoWindow::Zone(zone.to_owned()))?;
        Ok(Self {
            from,
            until,
            zone: known,
            zone_name: zone.to_owned(),
            zone_var: None,
        })
    }

    /// The same hours in the zone that the value `var` of a recipient names, if it names one.
    pub fn with_zone_var(self, var: Option<String>) -> Self {
        Self {
            zone_var: var,
            ..self
        }
    }

    /// The value of a recipient that names its own zone.
    pub fn zone_var(&self) -> Option<&str> {
        self.zone_var.as_deref()
    }

    /// The same hours in another zone; `None` if there is no such zone.
    pub fn in_zone(&self, zone: &str) -> Option<Self> {
        let known = TimeZone::get(zone).ok()?;
        Some(Self {
            zone: known,
            zone_name: zone.to_owned(),
            zone_var: None,
            ..*self
        })
    }

    /// The hours alone.
    pub fn hours(&self) -> String {
        let text = |time: Time| match time.second() {
            0 => time.strftime("%H:%M"),
            _ => time.strftime("%H:%M:%S"),
        };
        format!("{}-{}", text(self.from), text(self.until))
    }

    pub fn zone(&self) -> &str {
        &self.zone_name
    }

    fn contains(&self, time: Time) -> bool {
        match self.from < self.until {
            true => (self.from..self.until).contains(&time),
            false => time >= self.from || time < self.until,
        }
    }

    /// When the window opens, in milliseconds since 1970; `None` if it is open now.
    pub fn opens_ms(&self, now_ms: u64) -> Option<u64> {
        self.changes_ms(now_ms, true)
    }

    /// When the window closes; `None` if it is closed now.
    pub fn closes_ms(&self, now_ms: u64) -> Option<u64> {
        self.changes_ms(now_ms, false)
    }

    /// When it is next open, or next closed; `None` if it is so now.
    fn changes_ms(&self, now_ms: u64, open: bool) -> Option<u64> {
        let now = Timestamp::from_millisecond(i64::try_from(now_ms).ok()?).ok()?;
        let here = now.to_zoned(self.zone.clone());
        if self.contains(here.time()) == open {
            return None;
        }
        let time = if open { self.from } else { self.until };
        let by_clock = [0, 1, 2].into_iter().flat_map(|days| {
            let date = here.date().checked_add(days.days()).ok();
            let at = date.map(|date| date.to_datetime(time));
            let moment = at.map(|at| self.zone.to_ambiguous_timestamp(at));
            // Two moments where the clock shows this time twice, or not at all.
            let earlier = moment.and_then(|it| it.earlier().ok());
            [earlier, moment.and_then(|it| it.later().ok())]
        });
        // A clock that changes may jump into the hours, or out of them.
        let jumps = self.zone.following(now).map(|change| change.timestamp());
        let soon = now.checked_add(48.hours()).ok()?;
        let jumps = jumps.take_while(|jump| *jump <= soon);
        let changes = |moment: &Timestamp| {
            let then = moment.to_zoned(self.zone.clone()).time();
            *moment > now && self.contains(then) == open
        };
        let next = by_clock.flatten().chain(jumps).filter(changes).min()?;
        u64::try_from(next.as_millisecond()).ok()
    }
}

/// `09:00` or `09:00:30`
fn time(text: &str) -> Option<Time> {
    let two_digits = |text: &str| {
        let are_digits = text.len() == 2 && text.bytes().all(|it| it.is_ascii_digit());
        text.parse::<i8>().ok().filter(|_| are_digits)
    };
    let parts: Option<Vec<_>> = text.trim().split(':').map(two_digits).collect();
    match parts?[..] {
        [hour, minute] => Time::new(hour, minute, 0, 0).ok(),
        [hour, minute, second] => Time::new(hour, minute, second, 0).ok(),
        _ => None,
    }
}

/// `09:00-21:00 Asia/Shanghai`, or `09:00-21:00 vars.tz or Asia/Shanghai`
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hours, zone) = (self.hours(), &self.zone_name);
        match &self.zone_var {
            Some(var) => write!(f, "{hours} {VARS}{var}{OR}{zone}"),
            None => write!(f, "{hours} {zone}"),
        }
    }
}

impl FromStr for Window {
    type Err = NoWindow;

    fn from_str(text: &str) -> Result<Self, NoWindow> {
        let (hours, zone) = text.split_once(' ').unwrap_or((text, Self::ZONE));
        let named = zone
            .strip_prefix(VARS)
            .and_then(|names| names.rsplit_once(OR));
        let (var, zone) = named.map_or((None, zone), |(var, zone)| (Some(var), zone));
        Ok(Self::new(hours, zone)?.with_zone_var(var.map(ToOwned::to_owned)))
    }
}

/// A window is serialized as its text.
impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> u64 {
        let time: Timestamp = text.parse().unwrap();
        time.as_millisecond().unsigned_abs()
    }

    fn opens(hours: &str, zone: &str, now: &str) -> Option<String> {
        let opens = Window::new(hours, zone).unwrap().opens_ms(at(now))?;
        let opens = Timestamp::from_millisecond(opens as i64).unwrap();
        Some(opens.to_string())
    }

    #[test]
    fn a_window_opens_at_its_hour_in_its_zone() {
        let shanghai = |now| opens("09:00-21:00", "Asia/Shanghai", now);
        assert_eq!(
            shanghai("2026-11-29T00:59:59Z").as_deref(),
            Some("2026-11-29T01:00:00Z")
        );
        assert_eq!(shanghai("2026-11-29T01:00:00Z"), None);
        assert_eq!(shanghai("2026-11-29T12:59:59Z"), None);
        assert_eq!(
            shanghai("2026-11-29T13:00:00Z").as_deref(),
            Some("2026-11-30T01:00:00Z")
        );
        let night = |now| opens("21:00-06:00", "UTC", now);
        assert_eq!(night("2026-11-29T05:59:00Z"), None);
        assert_eq!(
            night("2026-11-29T06:00:00Z").as_deref(),
            Some("2026-11-29T21:00:00Z")
        );
        assert_eq!(night("2026-11-29T23:00:00Z"), None);
        let seconds = |now| opens("09:00:30-09:00:40", "UTC", now);
        assert_eq!(
            seconds("2026-11-29T09:00:29Z").as_deref(),
            Some("2026-11-29T09:00:30Z")
        );
        assert_eq!(seconds("2026-11-29T09:00:39Z"), None);
        assert_eq!(
            seconds("2026-11-29T09:00:40Z").as_deref(),
            Some("2026-11-30T09:00:30Z")
        );
    }

    #[test]
    fn clocks_that_change_neither_skip_a_day_nor_open_early() {
        let berlin = |hours, now| opens(hours, "Europe/Berlin", now);
        // 2026-03-29: after 01:59 the clock shows 03:00.
        let opening = berlin("02:30-04:00", "2026-03-29T00:10:00Z");
        assert_eq!(opening.as_deref(), Some("2026-03-29T01:00:00Z"));
        assert_eq!(berlin("02:30-04:00", "2026-03-29T01:00:00Z"), None);
        // The same hour of the clock, an hour earlier in the world.
        let opening = berlin("09:00-21:00", "2026-03-29T02:00:00Z");
        assert_eq!(opening.as_deref(), Some("2026-03-29T07:00:00Z"));
        // 2026-10-25: 02:00 to 03:00 comes twice.
        let opening = berlin("02:30-04:00", "2026-10-25T01:10:00Z");
        assert_eq!(opening.as_deref(), Some("2026-10-25T01:30:00Z"));
    }

    #[test]
    fn texts_that_are_no_window_are_refused() {
        for hours in [
            "",
            "9-21",
            "09:00",
            "09:00-09:00",
            "24:00-06:00",
            "09:00-21:0",
            "09:00-21:00:60",
            "09:00-21:00:00:00",
            "09.00-21.00",
        ] {
            let wrong = Window::new(hours, "UTC").unwrap_err();
            assert_eq!(wrong, NoWindow::Hours(hours.to_owned()));
        }
        for zone in ["", "Asia", "China", "Asia/Shangai", "+08:00"] {
            let wrong = Window::new("09:00-21:00", zone).unwrap_err();
            assert_eq!(wrong, NoWindow::Zone(zone.to_owned()), "{zone}");
        }
        for hours in ["09:00-21:00", "09:00:30-21:00"] {
            let window = Window::new(hours, "Asia/Shanghai").unwrap();
            let json = serde_json::to_string(&window).unwrap();
            assert_eq!(json, format!("\"{hours} Asia/Shanghai\""));
            assert_eq!(serde_json::from_str::<Window>(&json).unwrap(), window);
            for var in ["tz", "zone or other", "vars.x"] {
                let own = window.clone().with_zone_var(Some(var.to_owned()));
                let text = own.to_string();
                assert_eq!(text, format!("{hours} vars.{var} or Asia/Shanghai"));
                assert_eq!(text.parse::<Window>().unwrap(), own);
            }
        }
    }

    proptest! {
        /// A window opens at the first minute at which its clock is within the hours, and closes at
        /// the first one at which it is not.
        #[test]
        fn a_window_opens_and_closes_at_the_first_minute(
            zone in prop::sample::select(vec![
                "UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe",
                "Asia/Kathmandu", "America/Sao_Paulo",
            ]),
            from in 0i8..96, until in 0i8..96, day in 0u64..366, minute in 0u64..1440,
        ) {
            prop_assume!(from != until);
            let hours = format!("{:02}:{:02}-{:02}:{:02}", from / 4, from % 4 * 15, until / 4, until % 4 * 15);
            let window = Window::new(&hours, zone).unwrap();
            let now = at("2026-01-01T00:00:00Z") + (day * 1440 + minute) * 60_000;
            let open = |ms: u64| {
                let time = Timestamp::from_millisecond(ms as i64).unwrap();
                window.contains(time.to_zoned(window.zone.clone()).time())
            };
            let minutes = || (0..3 * 1440).map(|minutes| now + minutes * 60_000);
            let first = minutes().find(|ms| open(*ms));
            prop_assert_eq!(window.opens_ms(now).unwrap_or(now), first.unwrap());
            let last = minutes().find(|ms| !open(*ms));
            prop_assert_eq!(window.closes_ms(now).unwrap_or(now), last.unwrap());
        }
    }
}
