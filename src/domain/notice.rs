//! Notices: reports that a job is completed, and the rules for their destinations.
//!
//! With `callback_url` a producer makes us send requests to an address of its choice. So the
//! configuration of an app lists the allowed hosts, and private addresses are refused unless it
//! allows them. This module checks addresses that are in the URL; the client that connects checks
//! the addresses of a host name.

use std::net::IpAddr;

use fanwise_net::http::is_public;
use http::Uri;
use http::uri::Scheme;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::lane::Lane;

/// Version of a notice on its lane.
pub const NOTICE_VERSION: u32 = 1;
/// Longest `callback_url`, in bytes.
pub const CALLBACK_URL_BYTES_MAX: usize = 2048;
/// Longest `reply_to`, in bytes: the longest name of a queue.
pub const REPLY_TO_BYTES_MAX: usize = 255;

/// A notice for a `callback_url`. Its content is the same on every attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Notice {
    pub v: u32,
    /// The id that repeats of the notice share: `<job>.<submissions>`.
    pub id: String,
    pub app: String,
    pub url: String,
    /// The lane to which it returns.
    pub lane: Lane,
    /// The number of failed attempts.
    #[serde(default)]
    pub failures: u32,
    /// The body of the request, a `completed` event.
    pub event: Box<RawValue>,
}

/// The hosts that the callbacks of an app may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallbackRules {
    pub hosts: Vec<HostPattern>,
    /// Private addresses are allowed too.
    pub private: bool,
}

impl CallbackRules {
    /// An error text if a job may not name this URL.
    pub fn check(&self, url: &str) -> Result<(), String> {
        let place = UrlPlace::of(url)?;
        if !self.hosts.iter().any(|it| it.matches(&place)) {
            return Err(format!(
                "host {:?} with port {} is not among callbacks.hosts of the app",
                place.host, place.port
            ));
        }
        match place.private_address().filter(|_| !self.private) {
            Some(address) => Err(format!(
                "{address} is not a public address, and callbacks.private of the app is false"
            )),
            None => Ok(()),
        }
    }
}

/// The server of a URL that a producer names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlPlace {
    pub host: String,
    pub port: u16,
}

impl UrlPlace {
    /// An error text if no URL of a producer may be like this.
    pub fn of(url: &str) -> Result<Self, String> {
        if url.len() > CALLBACK_URL_BYTES_MAX {
            let length = url.len();
            return Err(format!(
                "{length} bytes, at most {CALLBACK_URL_BYTES_MAX} are allowed"
            ));
        }
        let uri: Uri = url
            .parse()
            .map_err(|error| format!("{url:?} is not a URL: {error}"))?;
        let schemes = [Scheme::HTTP, Scheme::HTTPS];
        if !uri.scheme().is_some_and(|scheme| schemes.contains(scheme)) {
            return Err("a URL that begins with https:// or http:// is expected".to_owned());
        }
        if uri.authority().is_some_and(|it| it.as_str().contains('@')) {
            return Err("a user name or password in the URL is not allowed".to_owned());
        }
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let usual = if uri.scheme() == Some(&Scheme::HTTPS) {
            443
        } else {
            80
        };
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(usual),
        })
    }

    /// The address in the URL, if it is one and not public.
    pub fn private_address(&self) -> Option<IpAddr> {
        let address = self.host.parse().ok();
        address.filter(|address| !is_public(*address))
    }
}

/// The queues that the replies of an app's jobs may go to; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyRules(pub Vec<QueuePattern>);

impl ReplyRules {
    /// An error text if a job of this app may not name this queue.
    ///
    /// `namespace`: that of the broker; the embedded engine has none.
    pub fn check(&self, namespace: Option<&str>, app: &str, queue: &str) -> Result<(), String> {
        let Some(namespace) = namespace else {
            let what = "there is no AMQP broker here to reply through; use callback_url";
            return Err(what.to_owned());
        };
        // The default exchange routes to every queue of the virtual host, including ours.
        let below = queue.strip_prefix(namespace);
        if below.is_some_and(|rest| rest.starts_with('.')) {
            return Err(format!(
                "queue {queue:?} belongs to Fanwise itself; name a queue of your own"
            ));
        }
        match self.0.iter().any(|pattern| pattern.matches(queue)) {
            true => Ok(()),
            false => Err(format!(
                "queue {queue:?} is not in apps.{app}.reply_to of the configuration, which lists \
                 the queues that jobs of this app may have their accounts sent to"
            )),
        }
    }
}

/// `orders.done`, or `orders.*` for every queue whose name begins with `orders.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePattern(String);

impl QueuePattern {
    /// Parses a pattern; an error text if it is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('*').unwrap_or(text);
        if name.is_empty() || name.contains('*') || text.len() > REPLY_TO_BYTES_MAX {
            return Err(format!(
                "{text:?} is neither a queue such as \"orders.done\" nor the beginning of names \
                 such as \"orders.*\""
            ));
        }
        Ok(Self(text.to_owned()))
    }

    fn matches(&self, queue: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => queue.len() > beginning.len() && queue.starts_with(beginning),
            None => queue == self.0,
        }
    }
}

/// `api.example.com`, an address, or `*.example.com` for every name below it; with a port, as in
/// `api.example.com:8443`, only that port, else any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    host: String,
    port: Option<u16>,
}

impl HostPattern {
    /// Parses a pattern; an error text if it is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = match text.split_once(':') {
            // A text with more than one colon is an address.
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (text, None),
        };
        let number = |port: &str| port.parse::<u16>().ok().filter(|number| *number > 0);
        let is_port = port.is_none_or(|port| number(port).is_some());
        let name = host.strip_prefix("*.").unwrap_or(host);
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-:_".contains(c);
        let is_address = name.parse::<IpAddr>().is_ok();
        if name.is_empty()
            || !is_port
            || !name.chars().all(allowed)
            || name.starts_with('.')
            || (name.contains(':') && !is_address)
            || (is_address && name.len() < host.len())
        {
            return Err(format!(
                "{text:?} is neither a host such as \"api.example.com\" nor \"*.example.com\", with or \
                 without a port; it has no scheme"
            ));
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port: port.and_then(number),
        })
    }

    pub fn matches(&self, place: &UrlPlace) -> bool {
        let host = place.host.to_ascii_lowercase();
        let is_host = match self.host.strip_prefix('*') {
            // The name needs something before the dot.
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => host == self.host,
        };
        is_host && self.port.is_none_or(|it| it == place.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(hosts: &[&str], private: bool) -> CallbackRules {
        CallbackRules {
            hosts: hosts
                .iter()
                .map(|host| HostPattern::parse(host).unwrap())
                .collect(),
            private,
        }
    }

    /// Promise 11: the default exchange routes to every queue of the virtual host.
    #[test]
    fn only_queues_that_the_app_lists_are_taken() {
        let none = ReplyRules::default();
        let refused = none.check(Some("fanwise"), "shop", "payments.commands");
        let why = refused.unwrap_err();
        assert!(why.contains("apps.shop.reply_to"), "{why}");
        let why = none.check(None, "shop", "done").unwrap_err();
        assert!(why.contains("no AMQP broker"), "{why}");

        let patterns = ["done", "orders.*", "fan*"];
        let rules = ReplyRules(patterns.map(|it| QueuePattern::parse(it).unwrap()).into());
        for (queue, taken) in [
            ("done", true),
            ("done2", false),
            ("orders.x", true),
            ("orders.", false),
            ("orders", false),
            ("payments.commands", false),
            ("fan.club", true),
            ("fan.wise.dead.v1", false),
            ("fan.wise", true),
            ("fan.wiser.v1", true),
        ] {
            let answer = rules.check(Some("fan.wise"), "shop", queue);
            assert_eq!(answer.is_ok(), taken, "{queue}: {answer:?}");
        }
        for wrong in ["", "*", "*.done", "a*b", "a**"] {
            assert!(QueuePattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_hosts_that_the_app_allows_are_taken() {
        let rules = rules(&["api.example.com", "*.hooks.example.com"], false);
        for url in [
            "https://api.example.com/done?x=1",
            "http://API.Example.com:8080/",
            "https://a.hooks.example.com/",
            "https://a.b.hooks.example.com/",
        ] {
            assert_eq!(rules.check(url), Ok(()), "{url}");
        }
        for url in [
            "https://example.com/",
            "https://hooks.example.com/",
            "https://evilhooks.example.com/",
            "https://.hooks.example.com/",
            "https://api.example.com.evil.com/",
            "https://api.example.com@evil.com/",
            "https://evil.com/#api.example.com",
            "https://user:pw@api.example.com/",
            "ftp://api.example.com/",
            "//api.example.com/",
            "/done",
            "",
        ] {
            assert!(rules.check(url).is_err(), "{url}");
        }
        let long = format!("https://api.example.com/{}", "x".repeat(2048));
        assert!(rules.check(&long).unwrap_err().contains("2072 bytes"));
    }

    #[test]
    fn a_port_that_is_named_is_the_only_one() {
        let rules = rules(&["api.example.com:8443", "*.example.org:443"], false);
        for url in ["https://api.example.com:8443/", "https://a.example.org/"] {
            assert_eq!(rules.check(url), Ok(()), "{url}");
        }
        for url in [
            "https://api.example.com/",
            "https://api.example.com:6379/",
            "http://a.example.org/",
        ] {
            assert!(rules.check(url).unwrap_err().contains("with port"), "{url}");
        }
    }

    #[test]
    fn an_address_inside_a_network_is_refused_unless_allowed() {
        let hosts = ["127.0.0.1", "::1", "10.1.2.3", "1.1.1.1"];
        let urls = [
            "http://127.0.0.1:8080/",
            "http://[::1]/",
            "http://10.1.2.3/",
        ];
        for url in urls {
            let refused = rules(&hosts, false).check(url).unwrap_err();
            assert!(refused.contains("not a public address"), "{refused}");
            assert_eq!(rules(&hosts, true).check(url), Ok(()));
        }
        assert_eq!(rules(&hosts, false).check("http://1.1.1.1/"), Ok(()));
    }

    #[test]
    fn a_pattern_is_a_host_and_nothing_else() {
        for text in [
            "a.example.com",
            "*.example.com",
            "localhost",
            "::1",
            "10.0.0.1",
            "a:80",
            "*.example.com:8443",
        ] {
            assert!(HostPattern::parse(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "*",
            "*.",
            "https://a",
            "a:",
            ":80",
            "a:0",
            "a:http",
            "a:65536",
            "a/b",
            "*.*.com",
            "a b",
            "*.10.0.0.1",
        ] {
            assert!(HostPattern::parse(text).is_err(), "{text}");
        }
    }
}
