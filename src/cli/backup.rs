//! `fanwise backup`: writes a copy of the data of a running `fanwise serve` into a file.
//!
//! The copy goes into a temporary file in the same folder. It gets its name when it is complete, on
//! the disk, and opens as a store, so a file of that name is always a whole copy.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use tempfile::NamedTempFile;

use super::access::Access;
use super::at::{At, ServerArgs};
use super::output::{self, grouped};
use super::progress::Interrupt;
use crate::app;
use crate::exit::{Exit, Failure, OrExit as _};

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// File to write; to restore it, put it into an empty data folder as fanwise.redb
    file: PathBuf,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

pub(super) async fn run(args: BackupArgs, at: At) -> Result<Exit, Failure> {
    let file = &args.file;
    let access = at.open(|_, _| {})?;
    if !args.force && file.symlink_metadata().is_ok() {
        return Err(exists(file));
    }
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let cannot = |error: std::io::Error| cannot_write(file, &error);
    let mut copy = NamedTempFile::with_prefix_in(".fanwise-backup-", folder).map_err(cannot)?;
    let received = receive(&access, &mut copy, file);
    let nothing = || format!("interrupted: {} is not written", file.display());
    let bytes = Interrupt::watch()?.or(received, nothing).await?;
    let (jobs, copy) = checked(copy).await?;
    keep(copy, file, args.force)?;
    // The name is on the disk too.
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(cannot)?;
    if args.json {
        output::json(&json!({"file": file, "bytes": bytes, "jobs": jobs}))?;
    } else {
        output::line(format!(
            "wrote {}: {} bytes, {} job(s); it opens as a store",
            file.display(),
            grouped(bytes),
            grouped(jobs)
        ))?;
    }
    Ok(Exit::Ok)
}

/// Writes what the server sends; returns the number of bytes.
async fn receive(access: &Access, copy: &mut NamedTempFile, file: &Path) -> Result<u64, Failure> {
    let mut writer = BufWriter::new(copy.as_file_mut());
    let (mut bytes, mut written) = (0, Ok(()));
    let each = |piece: &[u8]| {
        bytes += piece.len() as u64;
        written = writer.write_all(piece);
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let received = access.backup(each).await;
    // A full disk ends the transfer, which is then no fault of the server.
    let written = written.and_then(|()| writer.flush());
    written.map_err(|error| cannot_write(file, &error))?;
    received.map(|()| bytes)
}

/// Syncs the copy and gives it its name.
fn keep(copy: NamedTempFile, file: &Path, replace: bool) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(file),
        _ => cannot_write(file, &error),
    };
    copy.as_file().sync_all().map_err(cannot)?;
    let kept = match replace {
        true => copy.persist(file),
        false => copy.persist_noclobber(file),
    };
    kept.map(drop).map_err(|kept| cannot(kept.error))
}

/// Opens the copy as a store and reads all of it; returns the number of its jobs.
async fn checked(copy: NamedTempFile) -> Result<(u64, NamedTempFile), Failure> {
    let checked = tokio::task::spawn_blocking(move || {
        let jobs = app::check_backup(copy.path())?;
        Ok((jobs, copy))
    });
    checked.await.or_exit(Exit::Internal)?
}

fn exists(file: &Path) -> Failure {
    let what = format!(
        "{} exists already and stays as it is: choose another name, or replace it with --force",
        file.display()
    );
    Failure::message(Exit::Usage, what)
}

fn cannot_write(file: &Path, error: &std::io::Error) -> Failure {
    let what = format!("cannot write {}: {error}", file.display());
    Failure::message(Exit::Unavailable, what)
}
