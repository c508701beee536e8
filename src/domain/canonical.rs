//! Brings JSON into a canonical form, to tell whether two documents have the same content. White
//! space and the order of keys do not count; everything else does. A number counts with all its
//! digits, and a repeated key with all its values.

use serde_json::value::RawValue;
use serde_json::{Number, Value};

use super::fields::each_field;

/// The form that equal documents share. JSON that serde reads without loss keeps serde's form,
/// because the digests of known jobs contain it.
pub(super) fn canonical(json: &str) -> String {
    // Not JSON, or nested too deep for the recursion below.
    if serde_json::from_str::<Value>(json).is_err() {
        return json.to_owned();
    }
    let mut form = String::with_capacity(json.len());
    match write(&mut form, json) {
        Ok(()) => form,
        Err(_) => json.to_owned(),
    }
}

fn write(form: &mut String, json: &str) -> Result<(), serde_json::Error> {
    let json = json.trim_ascii();
    match json.as_bytes().first() {
        Some(b'{') => {
            let mut fields = Vec::new();
            each_field(json, |name, value| fields.push((name, value)))?;
            // A stable sort: repeated keys keep their order.
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            form.push('{');
            for (index, (name, value)) in fields.iter().enumerate() {
                form.push_str(if index == 0 { "" } else { "," });
                form.push_str(&serde_json::to_string(name)?);
                form.push(':');
                write(form, value.get())?;
            }
            form.push('}');
        }
        Some(b'[') => {
            let entries: Vec<&RawValue> = serde_json::from_str(json)?;
            form.push('[');
            for (index, entry) in entries.iter().enumerate() {
                form.push_str(if index == 0 { "" } else { "," });
                write(form, entry.get())?;
            }
            form.push(']');
        }
        Some(b'"') => {
            let text: String = serde_json::from_str(json)?;
            form.push_str(&serde_json::to_string(&text)?);
        }
        Some(b'-' | b'0'..=b'9') => {
            let number: Number = serde_json::from_str(json)?;
            let short = number.to_string();
            let whole = number.is_u64() || number.is_i64() || decimal(json) == decimal(&short);
            form.push_str(if whole { &short } else { json });
        }
        _ => form.push_str(json),
    }
    Ok(())
}

/// The sign, the digits and the exponent of a number; `None` if the exponent is out of range.
fn decimal(number: &str) -> Option<(bool, String, i64)> {
    let (negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number),
    };
    let (number, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    let exponent: i64 = exponent.trim_start_matches('+').parse().ok()?;
    let short = digits.trim_end_matches('0');
    let power = exponent
        .checked_sub(fraction.len() as i64)?
        .checked_add((digits.len() - short.len()) as i64)?;
    match short.trim_start_matches('0') {
        "" => Some((negative, String::new(), 0)),
        digits => Some((negative, digits.to_owned(), power)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn same(a: &str, b: &str) {
        assert_eq!(canonical(a), canonical(b));
    }

    fn differ(a: &str, b: &str) {
        assert_ne!(canonical(a), canonical(b));
    }

    #[test]
    fn white_space_order_and_the_spelling_of_a_number_do_not_count() {
        same(
            r#"{"a":1,"b":[1.5, "é"]}"#,
            " {\"b\" : [1.50,\"\\u00e9\"],\"a\":1}",
        );
        same("100.0", "1e2");
        same("1.10", "1.1");
        assert_eq!(canonical("{oops"), "{oops");
        let deep = format!("{}1{}", "[ ".repeat(200), "]".repeat(200));
        assert_eq!(canonical(&deep), deep);
    }

    #[test]
    fn every_digit_and_every_value_counts() {
        let digits = "12345678901234567890123456789";
        differ(&format!("{digits}0"), &format!("{digits}1"));
        differ("0.12345678901234567890", "0.12345678901234567891");
        differ(r#"{"a":1,"a":2}"#, r#"{"a":3,"a":2}"#);
        differ(r#"{"a":1,"a":2}"#, r#"{"a":2}"#);
        differ(r#"[{"x":{"a":1,"a":2}}]"#, r#"[{"x":{"a":2}}]"#);
        same(r#"{"b":0,"a":1,"a":2}"#, r#"{"a":1, "a":2, "b":0}"#);
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".{0,4}", inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// A job that an older version accepted is still recognised.
        #[test]
        fn what_is_read_without_a_loss_keeps_its_form(value in values()) {
            // Parsed first, since parsing a number may change it.
            let value: Value = serde_json::from_str(&value.to_string()).unwrap();
            prop_assert_eq!(canonical(&value.to_string()), value.to_string());
            prop_assert_eq!(canonical(&serde_json::to_string_pretty(&value).unwrap()), value.to_string());
        }
    }
}
