//! Reads the base URL of an account and builds the addresses of its calls.

use bytes::Bytes;
use http::Uri;
use http::uri::Authority;

/// Refuses a user name or password before the host: it is not part of the address, is not sent, and
/// would appear wherever the address is shown.
pub(crate) fn no_credentials(authority: &Authority) -> Result<(), String> {
    if authority.as_str().contains('@') {
        return Err("a user name or password in the URL is not sent; leave it out".to_owned());
    }
    Ok(())
}

/// A base URL as configured: scheme, host, and a path that may be empty, without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base(String);

impl Base {
    /// Refuses anything but HTTP and HTTPS, and a URL with a query or a fragment, which would
    /// swallow the path of a call. `example` is a valid URL for the message.
    pub(super) fn parse(url: &str, example: &str) -> Result<Self, String> {
        let expected = || format!("a URL such as {example} is expected");
        let uri: Uri = url.parse().map_err(|_| expected())?;
        let scheme = uri.scheme_str().ok_or_else(expected)?;
        let authority = uri.authority().ok_or_else(expected)?;
        if !["http", "https"].contains(&scheme) || url.contains(['?', '#']) {
            return Err(expected());
        }
        no_credentials(authority)?;
        let path = uri.path().trim_end_matches('/');
        Ok(Self(format!("{scheme}://{authority}{path}")))
    }

    /// The address of a call. `path` begins with a slash and holds only characters that a path may
    /// hold.
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
            let uri = Base::parse(base, "x").unwrap().join("/message/send");
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
            "http://user:password@im",
            "http://user@im:5001/",
        ] {
            assert!(Base::parse(url, "http://im:5001").is_err(), "{url}");
        }
    }
}
