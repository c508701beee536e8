//! A list on its way in, in a file without a name: whatever ends the request or the process, nothing
//! of it is left behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use axum::body::Bytes;
use axum::http::StatusCode;
use futures_util::{Stream, StreamExt as _};
use tokio::io::AsyncWriteExt as _;

use super::problem::Refusal;

/// Writes a stream of at most `most` bytes to a file that only this process can see.
pub(super) async fn spool(
    folder: &Path,
    most: u64,
    chunks: impl Stream<Item = Result<Bytes, Refusal>>,
) -> Result<File, Refusal> {
    let mut chunks = std::pin::pin!(chunks);
    let mut file = tokio::fs::File::from_std(nameless(folder).map_err(|error| full(&error))?);
    let mut size = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        size += chunk.len() as u64;
        if size > most {
            let what = format!("the list has more than {most} bytes (gateway.upload_bytes_max)");
            return Err(Refusal::BadBody(StatusCode::PAYLOAD_TOO_LARGE, what));
        }
        file.write_all(&chunk).await.map_err(|error| full(&error))?;
    }
    // Written, not synced: what is promised to last is what the broker confirms.
    file.flush().await.map_err(|error| full(&error))?;
    Ok(file.into_std().await)
}

/// A new file, for its owner alone, that is gone when it is closed.
fn nameless(folder: &Path) -> io::Result<File> {
    let name = format!("fanwise-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let path = folder.join(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

pub(super) fn full(error: &io::Error) -> Refusal {
    tracing::error!(%error, "an upload cannot be kept on disk (gateway.upload_folder)");
    Refusal::Unavailable("the list cannot be kept on disk".to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    fn chunks(texts: &[&'static str]) -> impl Stream<Item = Result<Bytes, Refusal>> + use<> {
        let chunks: Vec<_> = texts.iter().map(|text| Ok(Bytes::from(*text))).collect();
        futures_util::stream::iter(chunks)
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
