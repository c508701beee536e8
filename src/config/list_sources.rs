//! Reads `[apps.NAME.list_sources.SOURCE]`: where the lists of an app may be fetched from.

use super::reader::{Findings, Section};
use super::sections::check_name;
use super::{HOUR, MINUTE, SECOND};
use crate::domain::list_reference::ListHosts;
use crate::domain::notice::HostPattern;
use crate::gateway::ListSource;

/// Of each source `hosts` (`["lists.example.com", "*.example.com:8443"]`; required), `private`
/// (false), `token` or `token_file` (none) and `timeout` (10m; 1s to 1h).
pub(super) fn read(section: &mut Section, findings: &mut Findings) -> Vec<ListSource> {
    let all = section.key("list_sources");
    let sources = section.named("list_sources", findings).into_iter();
    let sources = sources.map(|(name, mut section)| {
        check_name(&format!("{all}.{name}"), &name, findings);
        let source = ListSource {
            hosts: ListHosts {
                hosts: read_hosts(&mut section, "hosts", findings),
                private: section.boolean("private", false, findings),
            },
            token: section.secret("token", "token_file", findings),
            timeout: section.duration("timeout", 10 * MINUTE, SECOND..=HOUR, findings),
        };
        if source.hosts.hosts.is_empty() {
            let what = "empty: name the hosts that lists may be fetched from";
            findings.problem(section.key("hosts"), what);
        }
        section.finish(findings);
        source
    });
    sources.collect()
}

pub(super) fn read_hosts(
    section: &mut Section,
    key: &'static str,
    findings: &mut Findings,
) -> Vec<HostPattern> {
    let mut hosts = Vec::new();
    for text in section.list(key, &[], findings) {
        match HostPattern::parse(&text) {
            Ok(host) => hosts.push(host),
            Err(what) => findings.problem(section.key(key), what),
        }
    }
    hosts
}
