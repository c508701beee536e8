//! Keeps lists during their upload and messages during their download in files without a name:
//! however the request or the process ends, nothing is left behind.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, Write as _};
use std::path::Path;

use axum::body::Bytes;
use axum::http::StatusCode;
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::problem::Refusal;

const BUFFER_BYTES: usize = 64 * 1024;

/// Writes a stream of at most `most` bytes to a file that only this process can see.
pub(super) async fn spool(
    folder: &Path,
    most: u64,
    chunks: impl Stream<Item = Result<Bytes, Refusal>>,
) -> Result<File, Refusal> {
    let mut chunks = std::pin::pin!(chunks);
    let mut file =
        tokio::fs::File::from_std(tempfile::tempfile_in(folder).map_err(|error| full(&error))?);
    let mut size = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        size += chunk.len() as u64;
        if size > most {
            return Err(too_long(most));
        }
        file.write_all(&chunk).await.map_err(|error| full(&error))?;
    }
    // Written, not synced: only the broker's confirm promises that the list lasts.
    file.flush().await.map_err(|error| full(&error))?;
    Ok(file.into_std().await)
}

pub(super) fn too_long(most: u64) -> Refusal {
    let what = format!("the list has more than {most} bytes (gateway.upload_bytes_max)");
    Refusal::BadBody(StatusCode::PAYLOAD_TOO_LARGE, what)
}

/// Writes records into a file. Only the disk can make it wait.
pub(super) struct Writing {
    file: BufWriter<File>,
    count: u64,
}

impl Writing {
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufWriter::with_capacity(BUFFER_BYTES, tempfile::tempfile_in(folder)?),
            count: 0,
        })
    }

    pub(super) fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let size = u32::try_from(record.len()).map_err(io::Error::other)?;
        self.count += 1;
        self.file.write_all(&size.to_be_bytes())?;
        self.file.write_all(record)
    }

    pub(super) fn finish(self) -> io::Result<Records> {
        let mut file = self.file.into_inner().map_err(|error| error.into_error())?;
        file.rewind()?;
        let file = tokio::fs::File::from_std(file);
        Ok(Records {
            file: BufReader::with_capacity(BUFFER_BYTES, file),
            left: self.count,
        })
    }
}

/// Reads records from a file, in order.
pub(super) struct Records {
    file: BufReader<tokio::fs::File>,
    left: u64,
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.left == 0
    }

    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let size = self.file.read_u32().await?;
        let mut record = vec![0; size as usize];
        self.file.read_exact(&mut record).await?;
        Ok(Some(record))
    }
}

pub(super) fn full(error: &io::Error) -> Refusal {
    tracing::error!(%error, "a list cannot be kept on disk (gateway.upload_dir)");
    Refusal::Unavailable("the list cannot be kept on disk".to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn chunks(texts: &[&'static str]) -> impl Stream<Item = Result<Bytes, Refusal>> + use<> {
        let chunks: Vec<_> = texts.iter().map(|text| Ok(Bytes::from(*text))).collect();
        futures_util::stream::iter(chunks)
    }

    #[tokio::test]
    async fn records_come_back_as_they_were() {
        let mut writing = Writing::create(&std::env::temp_dir()).unwrap();
        let long = vec![b'x'; 3 * BUFFER_BYTES];
        for record in [&b"a\n"[..], b"", &long] {
            writing.write(record).unwrap();
        }
        let mut records = writing.finish().unwrap();
        let mut back = Vec::new();
        while let Some(record) = records.next().await.unwrap() {
            back.push(record);
        }
        assert_eq!(back, [b"a\n".to_vec(), Vec::new(), long]);
    }

    #[tokio::test]
    async fn a_list_is_kept_without_a_name_and_within_its_bound() {
        let folder = std::env::temp_dir().join(format!("fanwise-spool-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut file = spool(&folder, 4, chunks(&["ab", "cd"])).await.unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcd");
        let refused = spool(&folder, 3, chunks(&["ab", "cd"])).await.unwrap_err();
        assert!(matches!(
            refused,
            Refusal::BadBody(StatusCode::PAYLOAD_TOO_LARGE, _)
        ));
        std::fs::remove_dir_all(&folder).unwrap();
        let refused = spool(&folder, 3, chunks(&[])).await.unwrap_err();
        assert!(matches!(refused, Refusal::Unavailable(_)));
    }
}
