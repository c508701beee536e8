//! Decides who sent a request, and what the sender may do.
//!
//! `gateway.token` is for everything. The token of an app submits jobs of that app and reads them;
//! every other path, and every path that is added later, is closed to it. The queries of an app are
//! confined here, before any handler sees them: whatever they say, they ask only for what belongs
//! to that app.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use axum::extract::{Query, Request};
use axum::http::{HeaderMap, Method, Uri, header};
use parking_lot::Mutex;

use super::fetch::ListSource;
use super::pool::Holder;
use super::problem::Refusal;
use crate::domain::fields::Problem;
use crate::domain::limits::{Grant, Rate, Tat};
use crate::im::ingress::same;
use crate::secret::Secret;
use crate::service::BeforeAccept;

/// The credentials, and what they permit.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// No caller needs credentials.
    pub open: bool,
    /// The token for everything.
    pub token: Option<Secret>,
    pub apps: BTreeMap<String, AppAccess>,
}

/// How callers may use one app over HTTP.
#[derive(Clone, Debug, Default)]
pub struct AppAccess {
    pub token: Option<Secret>,
    /// No caller needs its token.
    pub open: bool,
    /// Rate of requests; each gateway counts its own.
    pub requests: Option<Rate>,
    pub before_accept: Option<BeforeAccept>,
    /// Where the lists that its jobs name may be fetched from; the first that has the host counts.
    pub list_sources: Vec<ListSource>,
}

/// The sender of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    Admin,
    App(String),
    /// Without credentials: for the apps that need none.
    Nobody,
}

impl Holder for Caller {
    fn is_administrator(&self) -> bool {
        *self == Self::Admin
    }
}

/// The token of an `Authorization` header. Its scheme may be in upper or lower case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    let fits = scheme.eq_ignore_ascii_case(b"Bearer ");
    fits.then(|| token.trim_ascii_start())
}

impl Access {
    /// The sender of a request with these headers.
    pub(super) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        if self.open {
            return Ok(Caller::Admin);
        }
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            let some_are_open = self.apps.values().any(|app| app.open);
            return some_are_open
                .then_some(Caller::Nobody)
                .ok_or(Refusal::Unauthorized);
        };
        let given = bearer(given.as_bytes()).unwrap_or_default();
        let fits = |token: &Option<Secret>| {
            let token = token.as_ref().map(|token| token.expose().as_bytes());
            token.is_some_and(|token| same(given, token))
        };
        if fits(&self.token) {
            return Ok(Caller::Admin);
        }
        let mut apps = self.apps.iter();
        apps.find(|(_, app)| fits(&app.token))
            .map(|(name, _)| Caller::App(name.clone()))
            .ok_or(Refusal::Unauthorized)
    }

    /// Refuses a caller that may not act as this app.
    pub(super) fn check(&self, caller: &Caller, app: &str) -> Result<(), Refusal> {
        match caller {
            Caller::Admin => Ok(()),
            Caller::App(own) if own == app => Ok(()),
            Caller::App(own) => {
                let what = format!("is {app:?}, but this token belongs to app {own:?}");
                Err(Refusal::Forbidden(vec![Problem::new("app", what)]))
            }
            Caller::Nobody if self.apps.get(app).is_some_and(|app| app.open) => Ok(()),
            Caller::Nobody => Err(Refusal::Unauthorized),
        }
    }

    /// The same request, confined to what the caller may ask for.
    pub(super) fn confine(
        &self,
        caller: &Caller,
        mut request: Request,
    ) -> Result<Request, Refusal> {
        if *caller == Caller::Admin {
            return Ok(request);
        }
        let path = request.uri().path();
        match reach(request.method(), path) {
            // The job itself names its app.
            Reach::Submit | Reach::Oneself => {}
            // The handler compares the app of each job.
            Reach::OwnSteering if matches!(caller, Caller::App(_)) => {}
            Reach::OwnJobs => {
                let uri = self.confined(caller, request.uri())?;
                *request.uri_mut() = uri;
            }
            Reach::OwnSteering | Reach::Admin => {
                let what = format!("{} {path} needs gateway.token", request.method());
                return Err(Refusal::Forbidden(vec![Problem::new("", what)]));
            }
        }
        Ok(request)
    }

    /// The same address, with the caller's app in its query.
    fn confined(&self, caller: &Caller, uri: &Uri) -> Result<Uri, Refusal> {
        let bad = |what: String| Refusal::BadQuery(vec![Problem::new("", what)]);
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| bad(error.body_text()))?;
        let named = pairs.iter().filter(|(name, _)| name == "app");
        let mut named = named.map(|(_, app)| app.as_str()).peekable();
        if named.peek().is_some() {
            named.try_for_each(|app| self.check(caller, app))?;
            return Ok(uri.clone());
        }
        let own = match caller {
            Caller::App(own) => own,
            Caller::Admin | Caller::Nobody => "default",
        };
        self.check(caller, own)?;
        let joint = if uri.query().is_some() { '&' } else { '?' };
        // The name of an app is letters, digits, - and _.
        let mut parts = uri.clone().into_parts();
        let confined = format!("{uri}{joint}app={own}");
        let confined: Uri = confined
            .parse()
            .map_err(|_| bad("is too long".to_owned()))?;
        parts.path_and_query = confined.into_parts().path_and_query;
        Uri::from_parts(parts).map_err(|_| bad("is too long".to_owned()))
    }
}

/// Which callers may ask for a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Submit,
    /// Every caller; the answer is about the caller.
    Oneself,
    /// An app, for what `?app=` names.
    OwnJobs,
    /// An app with its token, for its own jobs.
    OwnSteering,
    Admin,
}

/// Paths that are not listed are for the administrator.
fn reach(method: &Method, path: &str) -> Reach {
    let reads = *method == Method::GET || *method == Method::HEAD;
    let mut parts = path.split('/').skip(1);
    let parts: [_; 6] = std::array::from_fn(|_| parts.next());
    match parts {
        [Some("v1"), Some("about"), None, ..] if reads => Reach::Oneself,
        [Some("v1"), Some("jobs"), None, ..] if *method == Method::POST => Reach::Submit,
        [
            Some("v1"),
            Some("jobs" | "dead" | "templates" | "events"),
            None,
            ..,
        ]
        | [Some("v1"), Some("jobs" | "templates"), Some(_), None, ..]
        | [
            Some("v1"),
            Some("jobs"),
            Some(_),
            Some("events" | "verification"),
            None,
            _,
        ]
        | [
            Some("v1"),
            Some("jobs"),
            Some(_),
            Some("recipients"),
            Some(_),
            None,
        ] if reads => Reach::OwnJobs,
        [
            Some("v1"),
            Some("jobs"),
            Some(_),
            Some("recipients:lookup"),
            None,
            _,
        ] if *method == Method::POST => Reach::OwnJobs,
        [Some("v1"), Some(jobs), None, ..]
            if *method == Method::POST && jobs.starts_with("jobs:") =>
        {
            Reach::OwnSteering
        }
        [Some("v1"), Some("jobs"), Some(_), None, ..] if *method == Method::POST => {
            Reach::OwnSteering
        }
        _ => Reach::Admin,
    }
}

/// Counts the requests of each app that has a limit.
pub(super) struct Rates {
    since: Instant,
    apps: Mutex<HashMap<String, Tat>>,
}

impl Rates {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            apps: Mutex::new(HashMap::new()),
        }
    }

    /// Counts a request, or refuses it and says when to try again.
    pub(super) fn count(&self, app: &str, access: &Access) -> Result<(), Refusal> {
        let Some(rate) = access.apps.get(app).and_then(|app| app.requests) else {
            return Ok(());
        };
        let now = self.since.elapsed().as_micros() as u64;
        let mut apps = self.apps.lock();
        let tat = apps.entry(app.to_owned()).or_default();
        match tat.lease(&rate, now, 1, Duration::ZERO) {
            Grant::Units { .. } => Ok(()),
            Grant::Later { after } => Err(Refusal::TooOften { rate, after }),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn access() -> Access {
        let app = |token: &str, open| AppAccess {
            token: (!token.is_empty()).then(|| Secret::new(token)),
            open,
            ..AppAccess::default()
        };
        Access {
            open: false,
            token: Some(Secret::new("all")),
            apps: BTreeMap::from([
                ("shop".to_owned(), app("s", false)),
                ("bank".to_owned(), app("b", false)),
                ("lobby".to_owned(), app("", true)),
            ]),
        }
    }

    fn request(method: &str, uri: &str, token: Option<&str>) -> Request {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Body::empty()).unwrap()
    }

    /// Checks the address that a handler sees, or the status of the refusal.
    fn check(method: &str, uri: &str, token: Option<&str>, expected: Result<&str, u16>) {
        use axum::response::IntoResponse as _;
        let access = access();
        let request = request(method, uri, token);
        let confined = access
            .caller(request.headers())
            .and_then(|caller| access.confine(&caller, request));
        let seen = confined
            .map(|request| request.uri().to_string())
            .map_err(|refusal| refusal.into_response().status().as_u16());
        assert_eq!(
            seen.as_deref().map_err(|status| *status),
            expected,
            "{method} {uri} {token:?}"
        );
    }

    #[test]
    fn the_token_for_everything_changes_nothing() {
        for (method, uri) in [
            ("GET", "/v1/jobs?limit=3"),
            ("POST", "/v1/jobs/1:cancel"),
            ("GET", "/v1/rejected"),
            ("PUT", "/v1/limits"),
        ] {
            check(method, uri, Some("all"), Ok(uri));
        }
    }

    #[test]
    fn an_app_sees_its_own() {
        check("GET", "/v1/jobs", Some("s"), Ok("/v1/jobs?app=shop"));
        let listed = Ok("/v1/jobs?limit=3&app=shop");
        check("GET", "/v1/jobs?limit=3", Some("s"), listed);
        let named = "/v1/jobs/k/events?app=shop";
        check("GET", named, Some("s"), Ok(named));
        let fate = Ok("/v1/jobs/k/recipients/u%2F1?app=bank");
        check("GET", "/v1/jobs/k/recipients/u%2F1", Some("b"), fate);
        check("POST", "/v1/jobs", Some("s"), Ok("/v1/jobs"));
        // The handlers compare the app of the jobs.
        for steering in ["/v1/jobs/1:cancel", "/v1/jobs:pause"] {
            check("POST", steering, Some("s"), Ok(steering));
        }
    }

    #[test]
    fn an_app_sees_nothing_else() {
        for (method, uri) in [
            ("GET", "/v1/jobs?app=bank"),
            ("GET", "/v1/jobs?app=shop&app=bank"),
            ("GET", "/v1/jobs?%61pp=bank"),
            ("GET", "/v1/rejected"),
            ("GET", "/v1/limits"),
            ("POST", "/v1/apps/shop:pause"),
            ("POST", "/v1/dead:redrive"),
            ("PUT", "/v1/templates/hi"),
            ("DELETE", "/v1/templates/hi?app=shop"),
            ("GET", "/v1/anything/new"),
        ] {
            check(method, uri, Some("s"), Err(403));
        }
        for token in [Some("wrong"), Some("")] {
            check("GET", "/v1/jobs", token, Err(401));
        }
    }

    #[test]
    fn the_scheme_of_a_token_may_be_written_in_any_case() {
        for (value, token) in [
            ("Bearer s", Some("s")),
            ("bearer s", Some("s")),
            ("BEARER  s", Some("s")),
            ("Bearers", None),
            ("Basic s", None),
            ("Bearer", None),
        ] {
            let token = token.map(str::as_bytes);
            assert_eq!(bearer(value.as_bytes()), token, "{value}");
        }
    }

    #[test]
    fn without_credentials_only_open_apps_can_be_used() {
        let lobby = "/v1/jobs?app=lobby";
        check("GET", lobby, None, Ok(lobby));
        check("GET", "/v1/jobs?app=shop", None, Err(401));
        // Without `app=` the app is `default`.
        check("GET", "/v1/jobs", None, Err(401));
        check("POST", "/v1/jobs/1:cancel", None, Err(403));
        check("POST", "/v1/jobs:cancel", None, Err(403));
        let closed = Access {
            apps: BTreeMap::new(),
            ..access()
        };
        assert!(matches!(
            closed.caller(&HeaderMap::new()),
            Err(Refusal::Unauthorized)
        ));
    }

    #[test]
    fn requests_beyond_the_rate_are_told_when_to_come_again() {
        let mut access = access();
        let rate: Rate = "1/h burst 2".parse().unwrap();
        access.apps.entry("shop".to_owned()).or_default().requests = Some(rate);
        let rates = Rates::new();
        for _ in 0..2 {
            rates.count("shop", &access).unwrap();
            rates.count("bank", &access).unwrap();
        }
        let refused = rates.count("shop", &access).unwrap_err();
        let Refusal::TooOften { after, .. } = refused else {
            panic!("{refused:?}");
        };
        assert!(after > Duration::from_secs(3500), "{after:?}");
        rates.count("bank", &access).unwrap();
    }
}
