//! Reads how requests are signed: `signature_scheme` of webhook targets, callbacks and
//! `before_accept`.

use fanwise_client::webhook::{Scheme, Signer};

use super::reader::{Findings, Section};
use crate::secret::Secret;

/// `signature_scheme`: `standard` (default) or `fanwise`.
pub(super) fn read_scheme(section: &mut Section, findings: &mut Findings) -> Scheme {
    let choices: Vec<_> = Scheme::ALL.iter().map(|it| (it.as_str(), *it)).collect();
    let scheme = section.choice(
        "signature_scheme",
        Scheme::default().as_str(),
        &choices,
        findings,
    );
    scheme.unwrap_or_default()
}

/// The signer of a section with `secret` and `signature_scheme`.
pub(super) fn read_signer(
    section: &mut Section,
    secret: Option<Secret>,
    findings: &mut Findings,
) -> Option<Signer> {
    let scheme = read_scheme(section, findings);
    match Signer::new(secret?.expose(), scheme) {
        Ok(signer) => Some(signer),
        Err(what) => {
            findings.problem(section.key("secret"), what.to_string());
            None
        }
    }
}
