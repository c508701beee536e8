//! Web pages that ask without credentials. A browser on this machine reaches what listens on a loopback
//! address, and any page that somebody looks at can make it ask.
//!
//! A request that brings credentials comes from somebody who has them. One that brings none, where none
//! are asked for, must not come from a page of another site, nor, on a loopback address, by a name that
//! is not this machine's: such a name may be a page's own, and lead here since a minute ago.

use std::net::{IpAddr, SocketAddr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

/// Why a request without credentials is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outside {
    /// A page of another site may have made it.
    Page,
    /// It is for this host, which is not this machine.
    Host(String),
}

/// By which names a server is asked without credentials.
#[derive(Clone, Copy)]
pub(crate) struct Hosts {
    /// On any other address, a network knows it by names of its own.
    loopback: bool,
}

/// `Sec-Fetch-Site` of what no other site made the browser do.
const OWN: [&str; 2] = ["same-origin", "none"];

impl Hosts {
    pub(crate) fn of(listen: SocketAddr) -> Self {
        Self {
            loopback: listen.ip().is_loopback(),
        }
    }

    /// Refuses a request without credentials that a web page may have sent.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Outside> {
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        let by_other_site = site.is_some_and(|site| OWN.iter().all(|own| own.as_bytes() != site));
        if by_other_site || headers.contains_key(header::ORIGIN) {
            return Err(Outside::Page);
        }
        match host(uri, headers) {
            Some(host) if self.loopback && !is_this_machine(&host) => Err(Outside::Host(host)),
            _ => Ok(()),
        }
    }
}

/// For whom a request is, without the port.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    if let Some(host) = uri.host() {
        return Some(host.to_owned());
    }
    let value = headers.get(header::HOST)?.as_bytes();
    let authority = Authority::try_from(value).ok();
    // What is no name is not ours.
    let host = authority.map_or_else(|| "?".to_owned(), |it| it.host().to_owned());
    Some(host)
}

/// An address cannot be made to lead elsewhere, as a name can.
fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn refused(listen: &str, uri: &'static str, pairs: &[(&'static str, &'static str)]) -> bool {
        let hosts = Hosts::of(listen.parse().unwrap());
        hosts
            .check(&Uri::from_static(uri), &headers(pairs))
            .is_err()
    }

    #[test]
    fn on_a_loopback_address_only_this_machines_names_are_answered() {
        for host in [
            "localhost",
            "LocalHost:9700",
            "localhost.",
            "127.0.0.1:9700",
            "127.8.8.8",
            "[::1]:9700",
        ] {
            assert!(!refused("127.0.0.1:9700", "/", &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "192.0.2.1",
            "",
            "a b",
        ] {
            assert!(refused("127.0.0.1:9700", "/", &[("host", host)]), "{host}");
            assert!(!refused("0.0.0.0:9700", "/", &[("host", host)]), "{host}");
        }
        // As HTTP/2 says it, and HTTP/1.0.
        assert!(refused("[::1]:9700", "http://evil.example/v1/jobs", &[]));
        assert!(!refused("[::1]:9700", "http://localhost/v1/jobs", &[]));
        assert!(!refused("127.0.0.1:9700", "/v1/jobs", &[]));
    }

    #[test]
    fn pages_of_other_sites_are_refused_on_every_address() {
        for listen in ["127.0.0.1:9700", "0.0.0.0:9700"] {
            for (name, value) in [
                ("origin", "http://evil.example"),
                ("origin", "null"),
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-site"),
            ] {
                assert!(refused(listen, "/", &[(name, value)]), "{name}: {value}");
            }
            for site in OWN {
                assert!(!refused(listen, "/", &[("sec-fetch-site", site)]));
            }
        }
    }
}
