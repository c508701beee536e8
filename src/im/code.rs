//! The codes of answers, as far as all systems have them in common.

use crate::domain::codes::Codes;

/// How a system writes its codes, as dead letters show them.
#[derive(Debug)]
pub(crate) struct CodeForms {
    /// What stands before a number; empty for a plain one.
    pub(super) prefixes: &'static [&'static str],
    /// Codes that are words.
    pub(super) words: &'static [&'static str],
    /// Codes that are read as a success.
    pub(super) successes: &'static [&'static str],
}

/// Plain numbers below it are no refusals, in the numbers of HTTP and in those modelled on them.
const FIRST_REFUSAL: u32 = 300;

impl CodeForms {
    /// Reads the codes that an operator gives another class.
    pub(crate) fn parse(&self, text: &str) -> Result<Codes, String> {
        let codes = text.parse().map_err(|_| self.expected())?;
        let known = match &codes {
            Codes::Word(word) => self.words.contains(&word.as_str()),
            Codes::Numbers { prefix, .. } => self.prefixes.contains(&prefix.as_str()),
        };
        if !known {
            return Err(self.expected());
        }
        let succeeds = match &codes {
            Codes::Word(_) => false,
            Codes::Numbers { prefix, to, .. } if prefix.is_empty() => *to < FIRST_REFUSAL,
            Codes::Numbers { .. } => false,
        };
        if succeeds || self.successes.contains(&text) {
            return Err("the backend reports a success with it".to_owned());
        }
        Ok(codes)
    }

    fn expected(&self) -> String {
        let numbers = self.prefixes.iter().map(|prefix| match *prefix {
            "" => "a number such as 403, 500-599 or 5xx".to_owned(),
            prefix => format!("{prefix}N with a number, such as {prefix}2"),
        });
        let words = self.words.iter().map(|word| (*word).to_owned());
        let choices: Vec<_> = numbers.chain(words).collect();
        format!(
            "not a code of this system; one of these is expected: {}",
            choices.join(", ")
        )
    }
}

/// Whether a code is an HTTP status, or one of the numbers of three digits that NetEase models on
/// them.
pub(super) fn is_status(code: &str) -> bool {
    code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit()) && !code.starts_with('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_no_backend_of_the_system_sends_is_refused_with_the_choices() {
        let forms = CodeForms {
            prefixes: &["", "err_"],
            words: &["failed"],
            successes: &["err_0", "417"],
        };
        for text in [
            "403",
            "5xx",
            "300-399",
            "err_1302",
            "err_1300-1399",
            "failed",
            "200-403",
        ] {
            assert!(forms.parse(text).is_ok(), "{text}");
        }
        for text in ["", "reason_3", "timeout", "err_", "4x", "ERR_7"] {
            let what = forms.parse(text).unwrap_err();
            assert!(
                what.ends_with("5xx, err_N with a number, such as err_2, failed"),
                "{what}"
            );
        }
        for text in ["200", "2xx", "417", "err_0"] {
            let what = forms.parse(text).unwrap_err();
            assert_eq!(what, "the backend reports a success with it", "{text}");
        }
    }
}
