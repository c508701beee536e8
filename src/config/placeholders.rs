//! Finds values that an example or `fanwise config init` wrote and nobody replaced.

use toml::{Table, Value};

use super::reader::Findings;

/// Words of a placeholder, in small letters with `-` between them. No real value has one.
const WORDS: [&str; 5] = [
    "replace-with-",
    "replace-me",
    "change-me",
    "changeme",
    "your-secret",
];

/// Whether this is a value to replace.
fn is_placeholder(value: &str) -> bool {
    let plain = value.to_ascii_lowercase().replace(['_', ' '], "-");
    WORDS.iter().any(|word| plain.contains(word))
}

/// What to put in its place.
fn instead(key: &str) -> &'static str {
    match key.rsplit('.').next().unwrap_or_default() {
        "app_key" => "put the AppKey of the application there, from the console of Yunxin",
        "app_secret" => {
            "put the AppSecret of the application there, from the console of Yunxin, or name a file \
             that holds it with app_secret_file"
        }
        "url" => "put the real address there",
        "token" | "secret" | "signature_secret" | "manager_password" | "sentinel_password" => {
            "put the real one there, or name a file that holds it with the same key and _file at its end"
        }
        _ => "put the real value there",
    }
}

/// Reports a value that is still a placeholder.
pub(super) fn check(key: &str, value: &str, findings: &mut Findings) {
    if is_placeholder(value) {
        let what = format!("is still a placeholder: {}", instead(key));
        findings.placeholder(key, what);
    }
}

/// Reports all placeholders of a table, whatever its keys are.
pub(super) fn find(path: &str, table: &Table, findings: &mut Findings) {
    for (name, value) in table {
        let key = match path {
            "" => name.clone(),
            path => format!("{path}.{name}"),
        };
        find_in(&key, value, findings);
    }
}

fn find_in(key: &str, value: &Value, findings: &mut Findings) {
    match value {
        Value::Table(table) => find(key, table, findings),
        Value::Array(values) => {
            let mut texts = values.iter().filter_map(Value::as_str);
            if let Some(text) = texts.find(|text| is_placeholder(text)) {
                check(key, text, findings);
            }
        }
        Value::String(text) => check(key, text, findings),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_known_however_it_is_written() {
        for value in [
            "REPLACE-WITH-THE-APP-KEY",
            "replace_with_the_token",
            "change-me",
            "CHANGE_ME_TOO",
            "amqp://fanwise:change-me@rabbitmq:5672/%2f",
            "Authorization: Bearer change-me",
        ] {
            assert!(is_placeholder(value), "{value}");
        }
        for value in ["", "openIM123", "news", "https://im.example.com/replace"] {
            assert!(!is_placeholder(value), "{value}");
        }
    }

    #[test]
    fn placeholders_are_found_at_any_depth() {
        let table: Table = "[a.b]\nurl = \"http://change-me/\"\nlist = [\"x\", \"change-me\"]\n\
                            list_of = [1]\n[c]\napp_key = \"REPLACE-WITH-IT\"\nfine = \"x\"\n"
            .parse()
            .unwrap();
        let mut findings = Findings::default();
        find("", &table, &mut findings);
        let found: Vec<_> = findings
            .warnings
            .iter()
            .map(|it| it.field.as_str())
            .collect();
        assert_eq!(found, ["a.b.list", "a.b.url", "c.app_key"]);
        assert!(found.iter().all(|key| findings.is_placeholder(key)));
    }
}
