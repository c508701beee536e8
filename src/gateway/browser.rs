//! Checks the heads of requests: each names one host, and, where no credentials are required, no
//! web page has sent it.

use axum::http::{HeaderMap, Version, header};

use super::problem::Refusal;
use crate::http::server::Outside;

impl From<Outside> for Refusal {
    fn from(outside: Outside) -> Self {
        match outside {
            Outside::Page => Self::FromBrowser,
            Outside::Host(host) => Self::OtherHost(host),
        }
    }
}

/// Refuses a request that names two hosts, of which each server on the way may believe another one,
/// or that names none in HTTP/1.1.
pub(super) fn one_host(version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let hosts = headers.get_all(header::HOST).iter().count();
    let right = match version {
        Version::HTTP_11 => hosts == 1,
        _ => hosts <= 1,
    };
    if !right {
        let what = format!("{hosts} `Host` headers; a request has exactly one");
        return Err(Refusal::BadHead(what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_host() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            headers
        };
        let check = |version, pairs: &[(&'static str, &'static str)], right: bool| {
            assert_eq!(one_host(version, &headers(pairs)).is_ok(), right);
        };
        check(Version::HTTP_11, &[("host", "a")], true);
        check(Version::HTTP_11, &[], false);
        check(Version::HTTP_11, &[("host", "a"), ("host", "a")], false);
        check(Version::HTTP_10, &[], true);
        check(Version::HTTP_10, &[("host", "a"), ("host", "b")], false);
        check(Version::HTTP_2, &[], true);
    }
}
