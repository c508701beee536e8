//! Fills placeholders in texts, percent-encoded: first the values of the job, once; then the
//! recipient, for each call.

use bytes::Bytes;
use http::Uri;
use http::uri::{Authority, Parts, PathAndQuery, Scheme};

use crate::codec::push_segment;
use crate::domain::job::{CLIENT_MSG_NO_BYTES_MAX, NAME_BYTES_MAX, RECIPIENT_BYTES_MAX};
use crate::domain::slice::Head;
use crate::im::address::no_credentials;

/// Longest path and query after all placeholders are filled in. Servers accept less.
const PATH_BYTES_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placeholder {
    Recipient,
    ClientMsgNo,
    Job,
    App,
}

impl Placeholder {
    const ALL: [(&str, Self); 4] = [
        ("recipient", Self::Recipient),
        ("client_msg_no", Self::ClientMsgNo),
        ("job", Self::Job),
        ("app", Self::App),
    ];

    /// Most bytes that the value can take; an encoded byte takes three.
    fn bytes_max(self) -> usize {
        match self {
            Self::Recipient => 3 * RECIPIENT_BYTES_MAX,
            Self::ClientMsgNo => 3 * CLIENT_MSG_NO_BYTES_MAX,
            Self::Job => 24,
            Self::App => 3 * NAME_BYTES_MAX,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Placeholder(Placeholder),
}

/// A text with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let known = after.split_once('}').and_then(|(name, after)| {
                let (_, placeholder) = Placeholder::ALL.into_iter().find(|(n, _)| *n == name)?;
                Some((placeholder, after))
            });
            let Some((placeholder, after)) = known else {
                let names = Placeholder::ALL
                    .map(|(name, _)| format!("{{{name}}}"))
                    .join(", ");
                return Err(format!("after a brace one of these is expected: {names}"));
            };
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Placeholder(placeholder));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    pub(super) fn names_recipient(&self) -> bool {
        let recipient = Piece::Placeholder(Placeholder::Recipient);
        self.0.contains(&recipient)
    }

    /// The template with one letter in place of each placeholder.
    pub(super) fn sample(&self) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Placeholder(_) => "x".to_owned(),
        };
        self.0.iter().map(piece).collect()
    }

    fn bytes_max(&self) -> usize {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.len(),
            Piece::Placeholder(placeholder) => placeholder.bytes_max(),
        };
        self.0.iter().map(piece).sum()
    }

    /// Fills in all placeholders but the recipient.
    pub(super) fn open(&self, head: &Head) -> Opened {
        let mut between = vec![String::new()];
        for piece in &self.0 {
            let text = match between.last_mut() {
                Some(text) => text,
                None => continue,
            };
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Placeholder(Placeholder::ClientMsgNo) => {
                    push_segment(text, &head.client_msg_no)
                }
                Piece::Placeholder(Placeholder::Job) => text.push_str(&head.id.to_string()),
                Piece::Placeholder(Placeholder::App) => push_segment(text, &head.app),
                Piece::Placeholder(Placeholder::Recipient) => between.push(String::new()),
            }
        }
        Opened { between }
    }
}

/// A template in which only the recipient is missing.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    /// The texts before, between and after the recipient's places: at least one.
    between: Vec<String>,
}

impl Opened {
    /// The whole text, if it does not contain the recipient.
    pub(super) fn whole(&self) -> Option<&str> {
        match self.between.as_slice() {
            [whole] => Some(whole),
            _ => None,
        }
    }

    pub(super) fn fill(&self, recipient: &str) -> String {
        let length: usize = self
            .between
            .iter()
            .map(|text| text.len() + recipient.len())
            .sum();
        let mut filled = String::with_capacity(length);
        for (index, text) in self.between.iter().enumerate() {
            if index > 0 {
                push_segment(&mut filled, recipient);
            }
            filled.push_str(text);
        }
        filled
    }
}

/// An absolute URL with placeholders in its path and query.
#[derive(Clone, Debug)]
pub(super) struct Url {
    scheme: Scheme,
    authority: Authority,
    path: Template,
}

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let expected = "a URL such as https://example.com/hook/{recipient} is expected";
        let (scheme, rest) = text.split_once("://").ok_or(expected)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::HTTP,
            "https" => Scheme::HTTPS,
            _ => return Err(expected.into()),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('{') {
            return Err(
                "placeholders can stand in the path and in the query, not in the host".into(),
            );
        }
        if path.contains('#') {
            return Err("a fragment (`#`) is never sent; leave it out".into());
        }
        let authority: Authority = authority
            .parse()
            .map_err(|error| format!("{expected}: {error}"))?;
        no_credentials(&authority).map_err(|what| {
            format!(
                "{what} and set `headers.authorization`, such as \"Basic dXNlcjpwYXNzd29yZA==\""
            )
        })?;
        let path = match path.starts_with('/') {
            true => Template::parse(path)?,
            false => Template::parse(&format!("/{path}"))?,
        };
        if path.bytes_max() > PATH_BYTES_MAX {
            return Err(format!(
                "filled in, it could be longer than {PATH_BYTES_MAX} bytes"
            ));
        }
        path.sample()
            .parse::<PathAndQuery>()
            .map_err(|error| format!("{expected}: {error}"))?;
        Ok(Self {
            scheme,
            authority,
            path,
        })
    }

    pub(super) fn names_recipient(&self) -> bool {
        self.path.names_recipient()
    }

    pub(super) fn open(&self, head: &Head) -> OpenedUrl {
        let path = self.path.open(head);
        OpenedUrl {
            whole: path.whole().map(|whole| self.with(whole.to_owned())),
            url: self.clone(),
            path,
        }
    }

    #[expect(
        clippy::expect_used,
        reason = "the template was tried with a letter for each placeholder, what is filled in is \
                  encoded, and the length is bounded by the limits of a job"
    )]
    fn with(&self, path: String) -> Uri {
        let mut parts = Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        let path = PathAndQuery::from_maybe_shared(Bytes::from(path)).expect("an encoded path");
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).expect("scheme, host and path are a URI")
    }
}

/// A URL in which only the recipient may be missing.
pub(super) struct OpenedUrl {
    url: Url,
    path: Opened,
    /// The URL, if it is the same for all recipients.
    whole: Option<Uri>,
}

impl OpenedUrl {
    pub(super) fn fill(&self, recipient: &str) -> Uri {
        match &self.whole {
            Some(whole) => whole.clone(),
            None => self.url.with(self.path.fill(recipient)),
        }
    }
}
