//! A list by reference: a job names the address of its list, and the gateway fetches it before it
//! accepts the job. The job then says which version of the list it was.

pub use fanwise_client::FetchedList;
use http::Uri;

use super::fields::{Fields, Problems};
use super::list::Format;
use super::notice::{HostPattern, UrlPlace};
use crate::codec;

/// Longest column name and longest `etag`, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// The advice for a job that nothing fetches a list for.
const NOT_HERE: &str = "only the gateway fetches a list, before it accepts the job: send the job to POST /v1/jobs, \
                        or with fanwise send --server; or send the recipients themselves in `users`";

/// The address of a list, and what the list must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListReference {
    pub url: String,
    /// By the list's content type or the ending of its path, if left out.
    pub format: Option<Format>,
    pub column: Option<String>,
    pub vars: bool,
    /// In lower case.
    pub sha256: Option<String>,
    /// Without the quotation marks.
    pub etag: Option<String>,
}

impl ListReference {
    /// The names of its fields in an audience.
    pub const FIELDS: [&str; 6] = ["url", "format", "column", "vars", "sha256", "etag"];

    /// Reads the reference of an audience; `None` if it has no `url`.
    pub fn from_fields(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let url: Option<String> = fields.get("url", "a text", problems);
        let formats = "one of \"lines\", \"csv\", \"ndjson\"";
        let format = fields.get("format", formats, problems);
        let column = fields.line("column", TEXT_BYTES_MAX, problems);
        let vars: Option<bool> = fields.get("vars", "true or false", problems);
        let sha256 = fields.line("sha256", TEXT_BYTES_MAX, problems);
        let etag = fields.line("etag", TEXT_BYTES_MAX, problems);
        if let Some(sha256) = &sha256
            && !is_sha256(sha256)
        {
            fields.problem("sha256", "64 hexadecimal digits are expected", problems);
        }
        let Some(url) = url else {
            let given = [
                ("format", format.is_some()),
                ("column", column.is_some()),
                ("vars", vars.is_some()),
                ("sha256", sha256.is_some()),
                ("etag", etag.is_some()),
            ];
            for (name, _) in given.iter().filter(|(_, given)| *given) {
                let what = "has no meaning without `url`, the list that it describes";
                fields.problem(name, what, problems);
            }
            return None;
        };
        Some(Self {
            url,
            format,
            column,
            vars: vars.unwrap_or_default(),
            sha256: sha256.map(|it| it.to_ascii_lowercase()),
            etag: etag.as_deref().map(entity_tag).map(str::to_owned),
        })
    }

    /// Reads the reference where nothing can fetch the list, which is a problem.
    pub(super) fn refuse(fields: &mut Fields<'_>, problems: &mut Problems) -> bool {
        let is_there = Self::from_fields(fields, problems).is_some();
        if is_there {
            fields.problem("url", NOT_HERE, problems);
        }
        is_there
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|it| it.is_ascii_hexdigit())
}

/// An entity tag as a header has it, without the sign of a weak one and without quotation marks:
/// people copy it in either form.
pub fn entity_tag(text: &str) -> &str {
    let strong = text.trim();
    let strong = strong.strip_prefix("W/").unwrap_or(strong);
    strong.trim_matches('"')
}

/// A digest as hexadecimal digits.
pub fn digits(digest: &[u8]) -> String {
    codec::hex(digest)
}

/// An address without its query.
pub fn without_query(uri: &Uri) -> String {
    let (scheme, authority) = (uri.scheme_str(), uri.authority());
    let authority = authority.map_or("", |it| it.as_str());
    format!("{}://{authority}{}", scheme.unwrap_or("https"), uri.path())
}

/// The format of a list, by its content type, or else by the ending of its path.
pub fn format_of(content_type: Option<&str>, path: &str) -> Option<Format> {
    let essence = content_type.and_then(|it| it.split(';').next());
    let essence = essence.map(|it| it.trim().to_ascii_lowercase());
    let by_type = match essence.as_deref() {
        Some("application/x-ndjson" | "application/ndjson" | "application/jsonl") => {
            Some(Format::Ndjson)
        }
        Some("text/csv") => Some(Format::Csv),
        _ => None,
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let by_name = || match name.to_ascii_lowercase().rsplit_once('.')?.1 {
        "csv" => Some(Format::Csv),
        "ndjson" | "jsonl" => Some(Format::Ndjson),
        "txt" => Some(Format::Lines),
        _ => None,
    };
    // Servers give this type to files that they do not know, so the ending counts first.
    let plain = (essence.as_deref() == Some("text/plain")).then_some(Format::Lines);
    by_type.or_else(by_name).or(plain)
}

/// Hosts that lists may be fetched from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListHosts {
    pub hosts: Vec<HostPattern>,
    /// They may have private addresses.
    pub private: bool,
}

impl ListHosts {
    /// Whether these are the hosts of an address; an error text if the address itself may not be
    /// called.
    pub fn permit(&self, place: &UrlPlace) -> Option<Result<(), String>> {
        if !self.hosts.iter().any(|it| it.matches(place)) {
            return None;
        }
        let inside = place.private_address().filter(|_| !self.private);
        Some(match inside {
            Some(address) => Err(format!(
                "{address} is not a public address, and `private` of its source is false"
            )),
            None => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::fields::Problem;

    fn read(json: &str) -> (Option<ListReference>, Vec<String>) {
        let mut problems = Problems::default();
        let mut fields = Fields::open("audience", json, &mut problems).unwrap();
        let found = ListReference::from_fields(&mut fields, &mut problems);
        fields.finish(&mut problems);
        let problems = Vec::from(problems);
        (found, problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn a_reference_says_where_the_list_is_and_what_it_must_be() {
        let sha256 = "AB".repeat(32);
        let json = format!(
            r#"{{"url":"https://a/u","format":"csv","column":"uid","vars":true,"sha256":"{sha256}","etag":"W/\"7\""}}"#
        );
        let (found, problems) = read(&json);
        assert_eq!(problems, [""; 0]);
        let expected = ListReference {
            url: "https://a/u".to_owned(),
            format: Some(Format::Csv),
            column: Some("uid".to_owned()),
            vars: true,
            sha256: Some("ab".repeat(32)),
            etag: Some("7".to_owned()),
        };
        assert_eq!(found, Some(expected));
        assert_eq!(read("{}"), (None, Vec::new()));
    }

    #[test]
    fn a_reference_with_a_mistake_is_told() {
        let (_, problems) = read(r#"{"url":"https://a/u","format":"xls","sha256":"12"}"#);
        assert_eq!(
            problems,
            [
                "audience.format: one of \"lines\", \"csv\", \"ndjson\" is expected, not \"xls\"",
                "audience.sha256: 64 hexadecimal digits are expected",
            ]
        );
        let (found, problems) = read(r#"{"etag":"7"}"#);
        assert_eq!(found, None);
        assert!(problems[0].starts_with("audience.etag: has no meaning without `url`"));
    }

    #[test]
    fn the_format_is_that_of_the_answer_or_of_the_name() {
        for (content_type, path, expected) in [
            (Some("text/csv; charset=utf-8"), "/u", Some(Format::Csv)),
            (
                Some("application/octet-stream"),
                "/u.csv",
                Some(Format::Csv),
            ),
            (Some("text/plain"), "/u.NDJSON", Some(Format::Ndjson)),
            (Some("text/plain"), "/u", Some(Format::Lines)),
            (None, "/u.txt", Some(Format::Lines)),
            (None, "/v1.csv/u", None),
            (Some("application/json"), "/u", None),
        ] {
            assert_eq!(format_of(content_type, path), expected, "{path}");
        }
    }

    #[test]
    fn the_query_of_an_address_is_not_kept() {
        let uri: Uri = "https://a:8443/x/u.csv?signature=secret".parse().unwrap();
        assert_eq!(without_query(&uri), "https://a:8443/x/u.csv");
    }

    #[test]
    fn only_listed_hosts_are_permitted_and_private_addresses_only_where_it_says_so() {
        let hosts = |private| ListHosts {
            hosts: vec![
                HostPattern::parse("*.example.com").unwrap(),
                HostPattern::parse("10.0.0.1").unwrap(),
            ],
            private,
        };
        let permit = |url: &str, private| hosts(private).permit(&UrlPlace::of(url).unwrap());
        assert_eq!(permit("https://a.example.com/u", false), Some(Ok(())));
        assert_eq!(permit("https://example.com/u", false), None);
        assert_eq!(permit("https://10.0.0.2/u", true), None);
        assert!(permit("https://10.0.0.1/u", false).unwrap().is_err());
        assert_eq!(permit("http://10.0.0.1/u", true), Some(Ok(())));
    }
}
