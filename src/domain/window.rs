//! Sending hours: the hours of the day, in a time zone, in which something may be sent.
//!
//! The hours are those of the wall clock. Where clocks change, an hour that comes twice is within
//! the hours twice, and hours that begin at a time that does not exist begin when the clock has
//! passed it.

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
}

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
        let now = Timestamp::from_millisecond(i64::try_from(now_ms).ok()?).ok()?;
        let here = now.to_zoned(self.zone.clone());
        if self.contains(here.time()) {
            return None;
        }
        let openings = [0, 1, 2].into_iter().flat_map(|days| {
            let date = here.date().checked_add(days.days()).ok();
            let at = date.map(|date| date.to_datetime(self.from));
            let moment = at.map(|at| self.zone.to_ambiguous_timestamp(at));
            // Two moments where the clock shows this time twice, or not at all.
            let earlier = moment.and_then(|it| it.earlier().ok());
            [earlier, moment.and_then(|it| it.later().ok())]
        });
        // A clock that changes may jump into the hours.
        let changes = self.zone.following(now).map(|change| change.timestamp());
        let soon = now.checked_add(48.hours()).ok()?;
        let changes = changes.take_while(|change| *change <= soon);
        let opens = |moment: &Timestamp| {
            *moment > now && self.contains(moment.to_zoned(self.zone.clone()).time())
        };
        let next = openings.flatten().chain(changes).filter(opens).min()?;
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

/// `09:00-21:00 Asia/Shanghai`
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.hours(), self.zone_name)
    }
}

impl FromStr for Window {
    type Err = NoWindow;

    fn from_str(text: &str) -> Result<Self, NoWindow> {
        let (hours, zone) = text.split_once(' ').unwrap_or((text, Self::ZONE));
        Self::new(hours, zone)
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
        }
    }

    proptest! {
        /// A window opens at the first minute at which its clock is within the hours.
        #[test]
        fn a_window_opens_at_the_first_minute_within_its_hours(
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
            let first = (0..3 * 1440).map(|minutes| now + minutes * 60_000).find(|ms| open(*ms));
            prop_assert_eq!(window.opens_ms(now).unwrap_or(now), first.unwrap());
        }
    }
}
