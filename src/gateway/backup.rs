//! `GET /v1/backup`: a copy of the embedded store, as a file to put into a data folder.

use std::io::Seek as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures_util::{StreamExt as _, stream};
use tokio::io::AsyncReadExt as _;

use super::Gateway;
use super::params::NoParams;
use super::problem::Refusal;
use crate::error::chain;
use crate::ports::{Broker, Store, Transport};

const PIECE_BYTES: usize = 64 * 1024;

/// The copy is made before the answer begins, so an error has a status, and a slow reader holds up
/// nothing. It needs as much free space in `gateway.upload_dir` as the store has rows.
pub(super) async fn backup<B: Broker, S: Store, T: Transport>(
    State(gateway): State<Arc<Gateway<B, S, T>>>,
    _: NoParams,
) -> Result<Response, Refusal> {
    let broker = gateway.broker.clone();
    let folder = gateway.upload_dir.clone();
    let copied = tokio::task::spawn_blocking(move || {
        let Some(backup) = broker.backup() else {
            let what = "the data is in RabbitMQ and Redis: back these up, see docs/backup.md";
            return Err(Refusal::NotFound(what.to_owned()));
        };
        let place = |error: &dyn std::error::Error| {
            let what = format!(
                "gateway.upload_dir ({}): {}",
                folder.display(),
                chain(error)
            );
            tracing::error!("a copy cannot be made in {what}");
            Refusal::Unavailable(format!("a copy cannot be made in {what}"))
        };
        let mut file = tempfile::tempfile_in(&folder).map_err(|error| place(&error))?;
        let copy = file.try_clone().map_err(|error| place(&error))?;
        backup.copy_to(copy).map_err(|error| place(&error))?;
        let size = file.metadata().map_err(|error| place(&error))?.len();
        file.rewind().map_err(|error| place(&error))?;
        Ok((file, size))
    });
    let copied = copied.await;
    let (file, size) =
        copied.map_err(|_| Refusal::Unavailable("the copy could not be made".to_owned()))??;
    let pieces = stream::unfold(tokio::fs::File::from_std(file), |mut file| async move {
        let mut piece = vec![0; PIECE_BYTES];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(piece), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"fanwise.redb\"".to_owned(),
        ),
    ];
    Ok((headers, Body::from_stream(pieces.boxed())).into_response())
}
