//! Reads query parameters one by one, and reports every problem of a query at once.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use axum::http::Uri;
use axum::http::request::Parts;

use super::problem::Refusal;
use crate::domain::fields::{Problem, suggestion};
use crate::domain::letters::{moment, not_a_moment};

/// The parameters of one query that are not read yet.
pub(super) struct Params {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
    problems: Vec<Problem>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        Self::of(&parts.uri)
    }
}

impl Params {
    /// The parameters of an address.
    pub(super) fn of(uri: &Uri) -> Result<Self, Refusal> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
        let pairs =
            pairs.map_err(|error| Refusal::BadQuery(vec![Problem::new("", error.body_text())]))?;
        Ok(Self::new(pairs.0))
    }

    pub(super) fn new(pairs: Vec<(String, String)>) -> Self {
        Self {
            left: pairs,
            known: Vec::new(),
            problems: Vec::new(),
        }
    }

    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let mut values = Vec::new();
        self.left.retain_mut(|(found, value)| {
            let other = found != name;
            if !other {
                values.push(std::mem::take(value));
            }
            other
        });
        if values.len() > 1 {
            self.problem(name, "given more than once");
        }
        values.pop()
    }

    pub(super) fn get<T: FromStr>(&mut self, name: &'static str, expected: &str) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.problem(name, format!("{expected} is expected, not {text:?}"));
        }
        value
    }

    /// One of these values, by its name.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        known: &[T],
        name_of: impl Fn(T) -> &'static str,
    ) -> Option<T> {
        let text = self.text(name)?;
        let found = known.iter().copied().find(|it| name_of(*it) == text);
        if found.is_none() {
            let names: Vec<_> = known.iter().map(|it| name_of(*it)).collect();
            let hint = hint(&text, &names);
            let names = names.join(", ");
            self.problem(name, format!("{text:?} is not one of {names}{hint}"));
        }
        found
    }

    /// A time, or a time ago, in milliseconds since 1970.
    pub(super) fn time(&mut self, name: &'static str, now_ms: u64) -> Option<u64> {
        let text = plus_again(self.text(name)?);
        let found = moment(&text, now_ms);
        if found.is_none() {
            self.problem(name, not_a_moment(&text));
        }
        found
    }

    /// The number of rows to show: 1 to `most`.
    pub(super) fn limit(&mut self, usual: usize, most: usize) -> usize {
        let expected = format!("a number, 1 to {most},");
        let Some(limit) = self.get("limit", &expected) else {
            return usual;
        };
        if !(1..=most).contains(&limit) {
            self.problem("limit", format!("{limit} is not 1 to {most}"));
        }
        limit
    }

    pub(super) fn problem(&mut self, name: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(name, what));
    }

    /// Ends the reading: every parameter left over is unknown.
    pub(super) fn finish(mut self) -> Result<(), Refusal> {
        for (name, _) in std::mem::take(&mut self.left) {
            let hint = hint(&name, &self.known);
            let known = match self.known.is_empty() {
                true => "this path takes none".to_owned(),
                false => format!("known are {}", self.known.join(", ")),
            };
            self.problem(&name, format!("unknown parameter; {known}{hint}"));
        }
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(Refusal::BadQuery(self.problems)),
        }
    }
}

/// The query of a route that takes no parameters: any parameter is refused.
pub(super) struct NoParams;

impl<S: Send + Sync> FromRequestParts<S> for NoParams {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        Params::of(&parts.uri)?.finish()?;
        Ok(Self)
    }
}

/// Repairs a time whose offset begins with a space, because its `+` was not written as `%2B`. No
/// valid time has a space there.
pub(super) fn plus_again(mut text: String) -> String {
    const OFFSET: usize = " 08:00".len();
    let at = text.len().saturating_sub(OFFSET);
    let has_date = text.as_bytes().get(4) == Some(&b'-');
    if has_date
        && text
            .get(at..)
            .is_some_and(|it| it.starts_with(' ') && it.contains(':'))
    {
        text.replace_range(at..=at, "+");
    }
    text
}

fn hint(name: &str, known: &[&'static str]) -> String {
    suggestion(name, known.iter().copied())
        .map(|known| format!("; did you mean `{known}`?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_a_query_is_told() {
        let pairs = [
            ("stat", "running"),
            ("limit", "0"),
            ("since", "soon"),
            ("app", "a"),
            ("app", "b"),
            ("state", "runing"),
        ];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut params = Params::new(pairs.into());
        params.text("app");
        params.time("since", 0);
        params.limit(10, 100);
        params.one_of("state", &["accepted", "running", "completed"], |it| it);
        let Err(Refusal::BadQuery(problems)) = params.finish() else {
            panic!("it is wrong");
        };
        let fields: Vec<_> = problems.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(fields, ["app", "since", "limit", "state", "stat"]);
        assert!(problems[3].what.contains("did you mean `running`"));
        assert_eq!(
            problems[4].what,
            "unknown parameter; known are app, since, limit, state; did you mean `state`?"
        );
    }

    #[test]
    fn a_route_without_parameters_says_so() {
        let uri = "/docs?nonsense=1".parse().unwrap();
        let Err(Refusal::BadQuery(problems)) = Params::of(&uri).unwrap().finish() else {
            panic!("it is wrong");
        };
        assert_eq!(
            problems[0].to_string(),
            "nonsense: unknown parameter; this path takes none"
        );
    }

    #[test]
    fn a_plus_that_became_a_space_is_one_again() {
        let check = |text: &str, expected: &str| {
            assert_eq!(plus_again(text.to_owned()), expected);
        };
        check("2020-01-01T00:00:00 08:00", "2020-01-01T00:00:00+08:00");
        check("2020-01-01T00:00:00.5 00:00", "2020-01-01T00:00:00.5+00:00");
        for same in [
            "1h",
            "",
            "2020-01-01T00:00:00Z",
            "2020-01-01 00:00:00",
            "soon 08:00",
            "é 08:00",
        ] {
            check(same, same);
        }
        let uri = "/v1/jobs?since=1970-01-01T08:00:01+08:00".parse().unwrap();
        let mut params = Params::of(&uri).unwrap();
        assert_eq!(params.time("since", 0), Some(1000));
    }

    #[test]
    fn what_is_right_is_read() {
        let pairs = vec![("since".to_owned(), "1h".to_owned())];
        let mut params = Params::new(pairs);
        assert_eq!(params.time("since", 3_700_000), Some(100_000));
        assert_eq!(params.limit(10, 100), 10);
        assert!(params.finish().is_ok());
    }
}
