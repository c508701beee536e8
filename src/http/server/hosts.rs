//! Refuses requests of web pages that bring no credentials. A browser on this machine reaches
//! servers on loopback addresses, and any page that a user opens can make it send requests to them.
//!
//! A request with credentials comes from a caller who has them. Where no credentials are required,
//! a request without any must not come from a page of another site. On a loopback address it also
//! must not use a host name other than this machine's: a page may own such a name and have just
//! pointed it here.

use std::net::{IpAddr, SocketAddr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

/// Why a request without credentials is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outside {
    /// A page of another site may have sent it.
    Page,
    /// It names this host, which is not this machine.
    Host(String),
}

/// The host names that a server accepts without credentials.
#[derive(Clone, Copy)]
pub(crate) struct Hosts {
    /// Whether the names are checked. On any other address, a network has names of its own for it.
    loopback: bool,
}

/// `Sec-Fetch-Site` of requests that no other site caused.
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
        let host = host(uri, headers);
        if by_other_site || !is_own_page(uri, headers, host.as_deref()) {
            return Err(Outside::Page);
        }
        match host {
            Some(host) if self.loopback && !is_this_machine(&host) => Err(Outside::Host(host)),
            _ => Ok(()),
        }
    }
}

/// Whether a request comes from no page, or from a page of this server. A page can point a name of
/// its own here, so that it seems to be such a page; it cannot do that with an address or with
/// `localhost`.
fn is_own_page(uri: &Uri, headers: &HeaderMap, host: Option<&str>) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return true;
    };
    let asked = uri.authority().map(|it| it.as_str().as_bytes());
    let asked = asked.or_else(|| headers.get(header::HOST).map(|it| it.as_bytes()));
    let page = origin.as_bytes();
    let page = [&b"http://"[..], b"https://"]
        .iter()
        .find_map(|scheme| page.strip_prefix(*scheme));
    let bare = |host: &str| {
        host.trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned()
    };
    let is_fixed = host.is_some_and(|it| is_this_machine(it) || bare(it).parse::<IpAddr>().is_ok());
    page.is_some() && page == asked && is_fixed && origins.next().is_none()
}

/// The host that a request names, without the port.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    if let Some(host) = uri.host() {
        return Some(host.to_owned());
    }
    let value = headers.get(header::HOST)?.as_bytes();
    let authority = Authority::try_from(value).ok();
    // A value that is not a host name is treated as a foreign one.
    let host = authority.map_or_else(|| "?".to_owned(), |it| it.host().to_owned());
    Some(host)
}

/// Whether a host is this machine. A page can point a name elsewhere, but not an address.
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
        // The forms of HTTP/2 and HTTP/1.0.
        assert!(refused("[::1]:9700", "http://evil.example/v1/jobs", &[]));
        assert!(!refused("[::1]:9700", "http://localhost/v1/jobs", &[]));
        assert!(!refused("127.0.0.1:9700", "/v1/jobs", &[]));
    }

    #[test]
    fn a_page_of_this_server_is_answered_if_no_other_page_can_pass_for_it() {
        for listen in ["127.0.0.1:9700", "0.0.0.0:9700"] {
            for host in ["127.0.0.1:9700", "localhost:9700", "[::1]:9700"] {
                let own = format!("http://{host}");
                let own: &'static str = own.leak();
                let pairs = [("host", host), ("origin", own)];
                assert!(!refused(listen, "/", &pairs), "{host}");
                let pairs = [("host", host), ("origin", "http://127.0.0.1:9701")];
                assert!(refused(listen, "/", &pairs), "{host}");
            }
        }
        let address = [
            ("host", "192.0.2.1:9700"),
            ("origin", "http://192.0.2.1:9700"),
        ];
        assert!(!refused("0.0.0.0:9700", "/", &address));
        assert!(refused("127.0.0.1:9700", "/", &address));
        let name = [("host", "evil.example"), ("origin", "http://evil.example")];
        assert!(refused("0.0.0.0:9700", "/", &name));
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
