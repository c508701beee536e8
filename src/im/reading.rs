//! Reads the parts that replies of all systems have in common: `Retry-After`, texts, codes, and
//! lists of failed recipients.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};
use jiff::fmt::rfc2822::DateTimeParser;

use crate::clock::now_ms;
use crate::domain::outcome::{ANSWER_TEXT_MAX, Class, TargetAnswer, Verdict};

/// Longest wait that a target can ask for. A longer one counts as a mistake and is cut to this.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest part of a backend's own code that is kept, in characters.
const CODE_MAX: usize = 40;

/// The code of a reply that cannot be understood.
pub(super) const BAD_REPLY: &str = "bad_reply";

/// The wait that `Retry-After` asks for, in seconds or as a date. A date is compared with the
/// `Date` of the same reply, so the two clocks need not agree.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if text.starts_with(|first: char| first.is_ascii_digit()) {
        Duration::from_secs(text.parse().ok()?)
    } else {
        let until = date(text)?;
        let now = sent_at(headers).unwrap_or_else(|| (now_ms() / 1000).cast_signed());
        Duration::from_secs(u64::try_from(until - now).unwrap_or(0))
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

fn sent_at(headers: &HeaderMap) -> Option<i64> {
    date(headers.get(DATE)?.to_str().ok()?)
}

/// Seconds since 1970 of an HTTP date.
fn date(text: &str) -> Option<i64> {
    // The day of the week need not match the date.
    const PARSER: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
    Some(PARSER.parse_timestamp(text).ok()?.as_second())
}

/// The beginning of a body as one line, for display.
pub(super) fn excerpt(body: &[u8]) -> String {
    let start = &body[..body.len().min(2 * ANSWER_TEXT_MAX)];
    let mut line = String::new();
    for word in String::from_utf8_lossy(start)
        .split(|letter: char| letter.is_whitespace() || letter.is_control())
        .filter(|word| !word.is_empty())
    {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > ANSWER_TEXT_MAX {
            break;
        }
    }
    line
}

/// A backend's own code as one token, without spaces.
pub(super) fn token(code: &str) -> String {
    code.chars()
        .map(|letter| match letter {
            letter if letter.is_alphanumeric() || "._-".contains(letter) => letter,
            _ => '_',
        })
        .take(CODE_MAX)
        .collect()
}

/// The answer for a reply that cannot be read, to a call that may have had its effect.
pub(super) fn unreadable(body: &[u8]) -> TargetAnswer {
    let text = match body {
        [] => Cow::Borrowed("the reply is empty"),
        body => Cow::Owned(format!("a reply of another shape: {}", excerpt(body))),
    };
    TargetAnswer::new(Class::Uncertain, BAD_REPLY, text)
}

/// The verdict of a reply that names the failed recipients; all others got the message. If the
/// reply names a recipient that was not in the call, the others are in doubt.
pub(super) fn all_but<'a>(
    recipients: &[&str],
    failed: impl IntoIterator<Item = (Cow<'a, str>, TargetAnswer)>,
) -> Verdict {
    let failed: HashMap<_, _> = failed.into_iter().collect();
    if failed.is_empty() {
        return Verdict::All(TargetAnswer::done());
    }
    let known = recipients
        .iter()
        .filter(|recipient| failed.contains_key(**recipient))
        .count();
    let others = if known < failed.len() {
        let text = "the reply names recipients that were not in the call";
        TargetAnswer::new(Class::Uncertain, BAD_REPLY, text)
    } else {
        TargetAnswer::done()
    };
    let answer = |recipient: &&str| failed.get(*recipient).unwrap_or(&others).clone();
    Verdict::Each(recipients.iter().map(answer).collect())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn wait(retry_after_value: &'static str, date: Option<&'static str>) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(retry_after_value));
        if let Some(date) = date {
            headers.insert(DATE, HeaderValue::from_static(date));
        }
        retry_after(&headers).map(|wait| wait.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(wait("0", None), Some(0));
        assert_eq!(wait(" 120 ", None), Some(120));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:07 GMT", date), Some(30));
        // A date in the past means now; a date in the far future counts as a mistake.
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:00 GMT", date), Some(0));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:00 GMT", None), Some(0));
        assert_eq!(wait("Fri, 31 Dec 2120 23:59:59 GMT", date), Some(86_400));
        assert_eq!(wait("99999999", None), Some(86_400));
        for nonsense in ["", "soon", "-5", "1.5", "99999999999999999999999", "6 Nov"] {
            assert_eq!(wait(nonsense, None), None, "{nonsense}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn excerpts_are_one_short_line() {
        assert_eq!(excerpt(b""), "");
        assert_eq!(
            excerpt(b"<html>\r\n  <h1>502\tBad Gateway</h1>\0\n"),
            "<html> <h1>502 Bad Gateway</h1>"
        );
        assert!(excerpt(&b"\xff\xfe word".repeat(100_000)).len() <= 4 * ANSWER_TEXT_MAX);
    }

    #[test]
    fn codes_are_one_token() {
        assert_eq!(token("not found!"), "not_found_");
        assert_eq!(token(&"x".repeat(100)).len(), CODE_MAX);
    }

    #[test]
    fn a_name_that_was_not_asked_for_leaves_the_others_in_doubt() {
        let no = TargetAnswer::new(Class::Permanent, "no", "");
        let verdict = all_but(
            &["a", "b"],
            [("b".into(), no.clone()), ("x".into(), no.clone())],
        );
        assert_eq!(verdict.of(0).class, Class::Uncertain);
        assert_eq!(verdict.of(1).class, Class::Permanent);
        let verdict = all_but(&["a", "b"], [("b".into(), no)]);
        assert_eq!(verdict.of(0).class, Class::Done);
        assert_eq!(all_but(&["a"], []), Verdict::All(TargetAnswer::done()));
    }
}
