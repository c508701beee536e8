//! Lists of recipients that are uploaded, however long they are.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncRead, ReadBuf};

use crate::audience::Recipient;
use crate::parts::json;

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One recipient a line; blank lines and lines that begin with `#` are skipped.
    Lines,
    /// With a heading that names the column of the recipients, or with one column.
    Csv,
    /// One JSON value a line: a text, or an object with `id` and `vars`.
    Ndjson,
}

impl Format {
    /// The format by the ending of a file name.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => Self::Csv,
            Some("ndjson" | "jsonl") => Self::Ndjson,
            _ => Self::Lines,
        }
    }

    /// A file name by which a server knows the format.
    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Lines => "audience.txt",
            Self::Csv => "audience.csv",
            Self::Ndjson => "audience.ndjson",
        }
    }
}

/// A list of recipients that can be read as often as a request is tried.
#[derive(Clone)]
pub struct List {
    pub(super) format: Format,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Bytes(Bytes),
    File(PathBuf),
    Recipients(Arc<dyn Fn() -> Recipients + Send + Sync>),
}

type Recipients = Box<dyn Iterator<Item = Recipient> + Send>;

impl List {
    /// A file; its ending tells the format.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            format: Format::of(&path),
            source: Source::File(path),
        }
    }

    /// A list in memory.
    pub fn bytes(format: Format, list: impl Into<Bytes>) -> Self {
        Self {
            format,
            source: Source::Bytes(list.into()),
        }
    }

    /// Recipients that are made while they are sent. Each try asks for them from the beginning, and
    /// they should then be the same.
    ///
    /// ```
    /// use fanwise_client::http::List;
    ///
    /// let list = List::recipients(|| (0..10_000_000).map(|number| format!("u{number}")));
    /// # drop(list);
    /// ```
    pub fn recipients<I>(make: impl Fn() -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<Recipient> + 'static, IntoIter: Send + 'static>,
    {
        let make = move || -> Recipients { Box::new(make().into_iter().map(Into::into)) };
        Self {
            format: Format::Ndjson,
            source: Source::Recipients(Arc::new(make)),
        }
    }

    /// Takes the list in another format than the ending of its file tells.
    #[must_use]
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Opens the list at its beginning.
    pub(super) async fn open(&self) -> io::Result<OpenList> {
        Ok(match &self.source {
            Source::Bytes(bytes) => OpenList::Bytes(bytes.clone()),
            Source::File(path) => OpenList::File(File::open(path).await.map_err(|error| {
                let what = format!("cannot read {}: {error}", path.display());
                io::Error::new(error.kind(), what)
            })?),
            Source::Recipients(make) => OpenList::Recipients(make(), Bytes::new()),
        })
    }
}

/// A list that is being read.
pub(super) enum OpenList {
    Bytes(Bytes),
    File(File),
    /// The recipients that are left, and lines that are not read yet.
    Recipients(Recipients, Bytes),
}

/// Bytes of lines that are made at a time.
const LINES_BYTES: usize = 16 * 1024;

impl AsyncRead for OpenList {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = match self.get_mut() {
            Self::File(file) => return Pin::new(file).poll_read(cx, out),
            Self::Bytes(bytes) => bytes,
            Self::Recipients(recipients, lines) => {
                if lines.is_empty() {
                    *lines = next_lines(recipients);
                }
                lines
            }
        };
        let count = bytes.len().min(out.remaining());
        out.put_slice(&bytes.split_to(count));
        Poll::Ready(Ok(()))
    }
}

fn next_lines(recipients: &mut Recipients) -> Bytes {
    let mut lines = Vec::new();
    while lines.len() < LINES_BYTES
        && let Some(recipient) = recipients.next()
    {
        lines.extend(json(&recipient));
        lines.push(b'\n');
    }
    lines.into()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn read(list: &List) -> String {
        let mut text = String::new();
        let mut open = list.open().await.unwrap();
        open.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_list_is_the_same_each_time_it_is_read() {
        let users = || (0..10_000).map(|number| format!("\"u{number}"));
        let expected: String = users().map(|user| format!("\"\\{user}\"\n")).collect();
        let list = List::recipients(users);
        for _ in 0..2 {
            assert!(read(&list).await == expected);
        }
        let bytes = List::bytes(Format::Lines, "ann\nbob\n");
        for _ in 0..2 {
            assert_eq!(read(&bytes).await, "ann\nbob\n");
        }
        assert_eq!(read(&List::recipients(Vec::<String>::new)).await, "");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_named() {
        let list = List::file("/nowhere/users.csv");
        assert_eq!(list.format, Format::Csv);
        let Err(error) = list.open().await else {
            panic!("there is such a file");
        };
        assert!(error.to_string().contains("/nowhere/users.csv"), "{error}");
    }
}
