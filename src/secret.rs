//! Keeps settings that are never shown or logged.

use std::fmt;

/// A password, token or key. No formatter prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A URL in a form that may be shown: without user and password, with only those query values that
/// are placeholders, and with only those path segments that look like words, because the keys of
/// many webhooks are in the path.
pub fn without_credentials(url: &str) -> String {
    let (url, query) = match url.split_once(['?', '#']) {
        Some((url, query)) => (url, Some(query)),
        None => (url, None),
    };
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split('/').next().unwrap_or_default();
    // A slash in the password ends the authority too early; then the authority has no valid port.
    let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
    let users_end = match authority.rfind('@') {
        None if !port.ends_with(']') && !port.bytes().all(|it| it.is_ascii_digit()) => {
            rest.rfind('@')
        }
        end => end,
    };
    let mut shown = match scheme {
        "" => String::new(),
        scheme => format!("{scheme}://"),
    };
    let rest = match users_end {
        Some(end) => {
            shown.push_str("(secret)");
            &rest[end..]
        }
        None => rest,
    };
    let (server, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    shown.push_str(server);
    let segments: Vec<_> = path.split('/').map(shown_segment).collect();
    shown.push_str(&segments.join("/"));
    if let Some(query) = query {
        shown.push('?');
        let pairs: Vec<_> = query.split('&').map(shown_pair).collect();
        shown.push_str(&pairs.join("&"));
    }
    shown
}

/// Shows a segment of a path, or hides it. Keys are long, and most have digits.
fn shown_segment(segment: &str) -> &str {
    let has_digit = segment.bytes().any(|byte| byte.is_ascii_digit());
    let most = if has_digit { 8 } else { 20 };
    match segment.len() < most || is_placeholder(segment) {
        true => segment,
        false => "(secret)",
    }
}

fn is_placeholder(text: &str) -> bool {
    text.starts_with('{') && text.ends_with('}')
}

/// Shows a pair of a query, or hides it. A word without a value may be a key as well.
fn shown_pair(pair: &str) -> String {
    match pair.split_once('=') {
        Some((_, value)) if is_placeholder(value) => pair.to_owned(),
        Some((name, _)) => format!("{name}=(secret)"),
        None => "(secret)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_what_may_be_a_credential() {
        for (url, shown) in [
            ("http://im:5001", "http://im:5001"),
            ("https://x/{app}/@me", "https://x/{app}/@me"),
            ("https://[::1]:80/@me", "https://[::1]:80/@me"),
            ("https://[::1]/@me", "https://[::1]/@me"),
            ("https://u:pw@x/im", "https://(secret)@x/im"),
            ("https://u:p@w@x/im", "https://(secret)@x/im"),
            ("https://u:p/w@x/im", "https://(secret)@x/im"),
            ("u:pw@x/im", "(secret)@x/im"),
            (
                "https://x/h?key=k1&to={recipient}&k2#k3",
                "https://x/h?key=(secret)&to={recipient}&(secret)",
            ),
            ("https://x/?a={b}k4", "https://x/?a=(secret)"),
            (
                "https://hooks.slack.example/services/T00000000/B00000000/XxXxXxXxXxXxXxXxXxXxXxXx",
                "https://hooks.slack.example/services/(secret)/(secret)/(secret)",
            ),
            (
                "https://open.feishu.example/open-apis/bot/v2/hook/5f0e-77aa-11",
                "https://open.feishu.example/open-apis/bot/v2/hook/(secret)",
            ),
            (
                "https://t.example/bot123456:AbC/sendMessage",
                "https://t.example/(secret)/sendMessage",
            ),
            (
                "https://x/nimserver/msg/sendBatchMsg.action",
                "https://x/nimserver/msg/sendBatchMsg.action",
            ),
            (
                "https://x/{recipient_of_the_message_2}/",
                "https://x/{recipient_of_the_message_2}/",
            ),
            ("", ""),
        ] {
            assert_eq!(without_credentials(url), shown, "{url}");
        }
    }
}
