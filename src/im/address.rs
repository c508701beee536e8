//! Where the API of an account is, and the addresses of its calls.

use bytes::Bytes;
use http::Uri;

/// A base URL as configured: scheme, host, and a path that may be empty, without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base(String);

impl Base {
    /// Nothing for what is not HTTP, and for a URL with a query or a fragment, which would swallow
    /// what is appended to it.
    pub(super) fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?;
        if !["http", "https"].contains(&scheme) || url.contains(['?', '#']) {
            return None;
        }
        let path = uri.path().trim_end_matches('/');
        Some(Self(format!("{scheme}://{}{path}", uri.authority()?)))
    }

    /// The address of a call. `path` begins with a slash and holds only what a path may.
    #[expect(
        clippy::expect_used,
        reason = "the base was read as a URL before, and the path is ours or percent-encoded, and \
                  bounded by the limits of a job"
    )]
    pub(super) fn join(&self, path: &str) -> Uri {
        let uri = format!("{}{path}", self.0);
        Uri::from_maybe_shared(Bytes::from(uri)).expect("a URL and an encoded path")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_behind_the_path_of_the_base() {
        for (base, expected) in [
            ("http://im:5001", "http://im:5001/message/send"),
            ("http://im:5001/", "http://im:5001/message/send"),
            ("https://x/im//", "https://x/im/message/send"),
            ("http://[::1]:80/a/b", "http://[::1]:80/a/b/message/send"),
        ] {
            let uri = Base::of(base).unwrap().join("/message/send");
            assert_eq!(uri, expected, "{base}");
        }
    }

    #[test]
    fn what_is_no_base_is_refused() {
        for url in [
            "",
            "im",
            "im:5001",
            "/im",
            "ftp://im",
            "http://",
            "http://im?a=1",
            "http://im/#a",
            "http://i m",
        ] {
            assert_eq!(Base::of(url), None, "{url}");
        }
    }
}
