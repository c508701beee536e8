//! Panics at the store. Where the file is damaged, its reader panics as well as refuses; both mean the
//! same to a caller. A panic of ours is a mistake in one step, and costs that step.

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

use super::disk::StorageError;

thread_local! {
    static SHELTERED: Cell<bool> = const { Cell::new(false) };
    static MET: RefCell<Option<StorageError>> = const { RefCell::new(None) };
}

/// Does something with the store; a panic there is an error, with what it said and where. It is not
/// printed besides.
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

/// What a panic tells of the file.
fn met(panicked: &PanicHookInfo<'_>) -> StorageError {
    let said = panicked.payload_as_str().unwrap_or("a panic");
    // The rest is values of the file.
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
