//! Creates folders that are deleted with the test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

/// An empty folder of one test. Dropping it deletes it with its content.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Below the folder of this run if `tests/run` sets one, so that nothing stays behind even if
    /// the test is killed.
    pub(crate) fn new(name: &str) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let parent = env::var_os("FANWISE_TEST_DIR").map_or_else(env::temp_dir, PathBuf::from);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("fanwise-{name}-{}-{number}", process::id()));
        fs::create_dir_all(&path).expect("create a scratch folder");
        Scratch { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content).expect("write a scratch file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that cannot be deleted must not fail a test.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[test]
fn two_of_one_name_are_apart_and_go_away() {
    let (first, second) = (Scratch::new("pair"), Scratch::new("pair"));
    assert_ne!(first.path(), second.path());
    let file = first.write("note", "text");
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    drop(first);
    assert!(!file.exists() && second.path().exists());
}
