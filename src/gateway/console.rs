//! The console: pages for people, at `/`.
//!
//! The pages are files in this program, so that nothing is built or loaded from elsewhere. They use
//! only the HTTP interface that every client uses, with the token that the user gives them. So the
//! files need no token: they show nothing by themselves.
//!
//! The browser may run only these files and send requests only to this server. If a text from
//! outside ever became more than text, it could do nothing.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::shares::Static;
use crate::domain::ids::digest_hex;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

macro_rules! files {
    ($($kind:ident $path:literal $file:literal,)*) => {
        /// Each file with its content type and its path.
        const FILES: &[(&str, &str, &str)] = &[
            $(($kind, $path, include_str!(concat!("console/", $file))),)*
        ];
    };
}

files! {
    HTML "/" "index.html",
    STYLE "/console/console.css" "console.css",
    PICTURE "/console/icon.svg" "icon.svg",
    SCRIPT "/console/main.js" "main.js",
    SCRIPT "/console/server.js" "server.js",
    SCRIPT "/console/history.js" "history.js",
    SCRIPT "/console/words.js" "words.js",
    SCRIPT "/console/chinese.js" "chinese.js",
    SCRIPT "/console/chinese_sentences.js" "chinese_sentences.js",
    SCRIPT "/console/sentences.js" "sentences.js",
    SCRIPT "/console/parts.js" "parts.js",
    SCRIPT "/console/curve.js" "curve.js",
    SCRIPT "/console/steer.js" "steer.js",
    SCRIPT "/console/letters.js" "letters.js",
    SCRIPT "/console/test_message.js" "test_message.js",
    SCRIPT "/console/pages/sign_in.js" "pages/sign_in.js",
    SCRIPT "/console/pages/jobs.js" "pages/jobs.js",
    SCRIPT "/console/pages/job.js" "pages/job.js",
    SCRIPT "/console/pages/targets.js" "pages/targets.js",
    SCRIPT "/console/pages/dead.js" "pages/dead.js",
    SCRIPT "/console/pages/templates.js" "pages/templates.js",
    SCRIPT "/console/pages/schedules.js" "pages/schedules.js",
    SCRIPT "/console/pages/submit.js" "pages/submit.js",
    SCRIPT "/console/pages/about.js" "pages/about.js",
    SCRIPT "/console/vendor/preact.js" "vendor/preact.js",
    SCRIPT "/console/vendor/hooks.js" "vendor/hooks.js",
    SCRIPT "/console/vendor/htm.js" "vendor/htm.js",
}

/// What the browser may do with the pages.
const RULES: [(header::HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    // The browser asks each time whether its copy is still right, so that it never mixes versions.
    (header::CACHE_CONTROL, "no-cache"),
];

pub(super) fn routes<G: Clone + Send + Sync + 'static>() -> Router<G> {
    let mut router = Router::new();
    for (kind, path, text) in FILES {
        let tag = format!("\"{}\"", digest_hex(&[text.as_bytes()], 8));
        let serve = async move |headers: HeaderMap| file(kind, text, &tag, &headers);
        router = router.route(path, get(serve));
    }
    router
}

fn file(kind: &'static str, text: &'static str, tag: &str, headers: &HeaderMap) -> Response {
    let known = headers.get(header::IF_NONE_MATCH);
    let mut response = match known.is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => Bytes::from_static(text.as_bytes()).into_response(),
    };
    response.extensions_mut().insert(Static);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.extend(HeaderValue::try_from(tag).map(|tag| (header::ETAG, tag)));
    for (name, value) in RULES {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests;
