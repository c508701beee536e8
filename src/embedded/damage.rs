//! Turns panics at the store into errors. When the file is damaged, its reader sometimes panics and
//! sometimes returns an error; both mean the same to a caller. A panic in Fanwise's own code is a
//! bug in one step, and costs only that step.

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

use super::disk::StorageError;

thread_local! {
    static SHELTERED: Cell<bool> = const { Cell::new(false) };
    static MET: RefCell<Option<StorageError>> = const { RefCell::new(None) };
}

/// Runs an action on the store. A panic in it becomes an error with its text and place, and is not
/// printed.
pub(super) fn sheltered<T>(
    what: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| match SHELTERED.get() {
            true => MET.set(Some(met(panicked))),
            false => usual(panicked),
        }));
    });
    let outer = SHELTERED.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(what));
    SHELTERED.set(outer);
    done.unwrap_or_else(|_| {
        let met = MET.take();
        Err(met.unwrap_or_else(|| StorageError::Damaged("its reader panicked".to_owned())))
    })
}

/// The error that a panic stands for.
fn met(panicked: &PanicHookInfo<'_>) -> StorageError {
    let said = panicked.payload_as_str().unwrap_or("a panic");
    // Further lines are values of the file.
    let said = said.lines().next().unwrap_or(said);
    match panicked.location() {
        Some(place) if !place.file().contains("redb") => {
            StorageError::Broken(format!("{said} ({place}): report this as a bug"))
        }
        Some(place) => {
            let file = place.file().rsplit('/').next().unwrap_or_default();
            StorageError::Damaged(format!("{said} (redb, {file}:{})", place.line()))
        }
        None => StorageError::Damaged(said.to_owned()),
    }
}
