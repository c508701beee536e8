//! Calls any HTTP endpoint: one `POST` with JSON for each recipient, or for up to 1,000 of them.
//!
//! ```text
//! POST /hook/u1 HTTP/1.1
//! content-type: application/json
//! idempotency-key: 5f0c…-9a1e…          the job and its recipients; the same on every attempt
//! webhook-id: 5f0c…-9a1e…               if a secret is set: the idempotency key,
//! webhook-timestamp: 1764426000         the time of the attempt,
//! webhook-signature: v1,<base64>        and the signature
//!
//! {"job":"5f0c…","app":"shop","client_msg_no":"promo-1","sender":"news",
//!  "message":{"type":"text","text":"hello"},
//!  "options":{},
//!  "recipient":"u1"}
//! ```
//!
//! `message` is as the producer wrote it: `type` and `text`, `type` and `data`, or `native` alone,
//! JSON byte for byte. With `recipients_per_call` above 1, `recipients` (a list) takes the place of
//! `recipient`, and the answer may name recipients that failed while the others got the message:
//!
//! ```text
//! {"failed":[{"recipient":"u1","code":"gone","message":"no such user","class":"permanent"}]}
//! ```
//!
//! `class` is one of `permanent` (the default), `transient`, `throttled`, `uncertain`, `config`,
//! `done`. An answer without a body, or with a plain text such as `ok`, names no failed recipients.
//! An answer that cannot be read leaves its recipients in doubt if it claims to be JSON, begins
//! like JSON, is compressed, or is not UTF-8. For all other answers the status alone decides
//! (`statuses`).
//!
//! [`fanwise_client::webhook`] describes the signature. A receiver that remembers the idempotency keys
//! it has seen is idempotent, and also safe from replayed requests.

/// Maps each status to a class.
pub(in crate::im) mod statuses;
/// Builds calls and reads their replies.
mod target;
/// Fills placeholders in URLs and headers.
mod template;
#[cfg(test)]
mod tests;

pub use fanwise_client::webhook::{Answer as AnswerDocument, Call as CallDocument};
use fanwise_client::webhook::{ID, SIGNATURE, Scheme, Signer, TIMESTAMP};
pub use statuses::Statuses;
pub use target::Webhook;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use self::target::Base;
use self::template::{Template, Url};
use crate::domain::fields::Problem;
use crate::domain::outcome::Class;
use crate::ports::Profile;
use crate::secret::Secret;

/// Settings of one endpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Such as `https://example.com/hook/{recipient}`. Path and query may contain `{recipient}`,
    /// `{client_msg_no}`, `{job}` and `{app}`, which are filled in percent-encoded.
    pub url: String,
    /// Further headers, with the same placeholders and encoding.
    pub headers: Vec<(String, String)>,
    /// With 1, each call has one recipient; with more, each call has a list. Default
    /// [`Self::RECIPIENTS_PER_CALL`], at most [`Self::RECIPIENTS_PER_CALL_MAX`].
    pub recipients_per_call: usize,
    /// If set, every call is signed.
    pub signature: Option<Signature>,
    /// The endpoint recognises a repeated call by its `Idempotency-Key`, so that a call in doubt
    /// may be repeated. Default: no.
    pub idempotent: bool,
    /// Statuses with another class here: `409`, `500-599` or `2xx`, and the class. The narrowest
    /// range that matches wins.
    pub statuses: Vec<(String, Class)>,
}

impl Settings {
    pub const RECIPIENTS_PER_CALL: usize = 1;
    pub const RECIPIENTS_PER_CALL_MAX: usize = 1000;

    /// Every kind of webhook honours the same features.
    pub(super) fn samples() -> Vec<(&'static str, Self)> {
        vec![("webhook", Self::new("http://localhost/{recipient}"))]
    }

    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            recipients_per_call: Self::RECIPIENTS_PER_CALL,
            signature: None,
            idempotent: false,
            statuses: Vec::new(),
        }
    }
}

/// How calls are signed.
#[derive(Clone, Debug)]
pub struct Signature {
    pub secret: Secret,
    /// Default [`Scheme::Standard`].
    pub scheme: Scheme,
    /// The header of [`Scheme::Fanwise`]. Default [`Scheme::FANWISE_HEADER`].
    pub header: String,
}

impl Signature {
    pub fn new(secret: Secret) -> Self {
        Self {
            secret,
            scheme: Scheme::default(),
            header: Scheme::FANWISE_HEADER.to_owned(),
        }
    }

    fn signer(&self, problems: &mut Vec<Problem>) -> Option<Signer> {
        let signer = Signer::new(self.secret.expose(), self.scheme)
            .map_err(|what| problems.push(Problem::new("signature_secret", what.to_string())));
        let header = header_name(&self.header, "signature_header", problems)?;
        if self.scheme == Scheme::Standard && self.header != Scheme::FANWISE_HEADER {
            let what = "has no effect: Standard Webhooks names the headers; leave this out, or set \
                        `signature_scheme` to \"fanwise\"";
            problems.push(Problem::new("signature_header", what));
        }
        Some(signer.ok()?.with_header(header))
    }

    /// Whether the signature sets this header, so that no setting may.
    fn sets(&self, name: &HeaderName) -> bool {
        match self.scheme {
            Scheme::Standard => [ID, TIMESTAMP, SIGNATURE].contains(name),
            Scheme::Fanwise => self.header.eq_ignore_ascii_case(name.as_str()),
        }
    }
}

pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Headers that this module or the worker sets.
const RESERVED: [&str; 6] = [
    "connection",
    "content-length",
    "transfer-encoding",
    "idempotency-key",
    "traceparent",
    "tracestate",
];

pub(super) fn target(settings: &Settings, problems: &mut Vec<Problem>) -> Option<Webhook> {
    let most = Settings::RECIPIENTS_PER_CALL_MAX;
    if !(1..=most).contains(&settings.recipients_per_call) {
        let what = format!("{} is not 1 to {most}", settings.recipients_per_call);
        problems.push(Problem::new("recipients_per_call", what));
    }
    let packed = settings.recipients_per_call > 1;
    let url = Url::parse(&settings.url)
        .map_err(|what| problems.push(Problem::new("url", what)))
        .ok();
    let per_recipient = url.as_ref().is_some_and(Url::names_recipient);
    if packed && per_recipient {
        let what =
            "`{recipient}` cannot stand for many; leave it out or set `recipients_per_call` to 1";
        problems.push(Problem::new("url", what));
    }
    let signer = settings.signature.as_ref();
    let signer = signer.and_then(|signature| signature.signer(problems));
    let mut headers = HeaderMap::with_capacity(8);
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let mut templates = Vec::new();
    for (name, value) in &settings.headers {
        let field = format!("headers.{name}");
        let Some(name) = header_name(name, &field, problems) else {
            continue;
        };
        let signature = settings.signature.as_ref();
        if signature.is_some_and(|it| it.sets(&name)) {
            problems.push(Problem::new(&field, "the signature has this name"));
        }
        let template = Template::parse(value).and_then(|template| {
            let sample = template.sample();
            HeaderValue::from_str(&sample)
                .map(|_| template)
                .map_err(|_| "there are characters in it that no HTTP header can carry".to_owned())
        });
        match template {
            Ok(template) if packed && template.names_recipient() => {
                let what = "`{recipient}` cannot stand for many recipients";
                problems.push(Problem::new(&field, what));
            }
            Ok(template) => templates.push((name, template)),
            Err(what) => problems.push(Problem::new(&field, what)),
        }
    }
    let statuses = Statuses::new(&settings.statuses, per_recipient, problems);
    let profile = Profile {
        recipients_per_call: settings.recipients_per_call,
        idempotent: settings.idempotent,
        ..Profile::default()
    };
    let base = Base {
        headers,
        signer,
        statuses,
    };
    Some(Webhook::new(profile, url?, templates, base))
}

fn header_name(name: &str, field: &str, problems: &mut Vec<Problem>) -> Option<HeaderName> {
    let mut problem = |what: &str| problems.push(Problem::new(field, what));
    match name.parse::<HeaderName>() {
        Ok(name) if RESERVED.contains(&name.as_str()) => {
            problem("Fanwise sets this header itself");
            None
        }
        Ok(name) => Some(name),
        Err(_) => {
            problem("this is not the name of an HTTP header");
            None
        }
    }
}
