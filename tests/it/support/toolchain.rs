//! Builds and finds the programs in `examples/`, in the languages that this machine has.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::Process;
use super::scratch::Scratch;
use super::servers::skip;

/// Only the example itself is compiled; its dependencies are there.
const BUILD_BOUND: Duration = Duration::from_secs(300);

/// A program and the arguments before its flags.
pub(crate) struct Program {
    pub(crate) program: PathBuf,
    pub(crate) first: Vec<PathBuf>,
}

impl Program {
    fn of(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            first: Vec::new(),
        }
    }

    fn with(mut self, argument: impl Into<PathBuf>) -> Self {
        self.first.push(argument.into());
        self
    }

    pub(crate) fn start(&self, flags: &[&str]) -> Process {
        let flags = flags.iter().map(PathBuf::from);
        let arguments: Vec<_> = self.first.iter().cloned().chain(flags).collect();
        Process::start(&self.program, &arguments, &[], b"")
    }

    /// `None` means skip.
    pub(crate) fn python(script: &str) -> Option<Self> {
        Some(Self::of(tool("FANWISE_TEST_PYTHON")?).with(example(script)))
    }

    /// Node.js looks for modules beside the file that imports them, so it runs a copy beside them.
    pub(crate) fn node(script: &str, folder: &Scratch) -> Option<Self> {
        let modules = tool("FANWISE_TEST_NODE_PATH")?;
        let folder = folder.path();
        std::os::unix::fs::symlink(modules, folder.join("node_modules")).unwrap();
        let copy = folder.join(script);
        std::fs::copy(example(script), &copy).unwrap();
        Some(Self::of("node").with(copy))
    }

    pub(crate) fn php(script: &str) -> Option<Self> {
        Some(Self::of(optional_tool("FANWISE_TEST_PHP")?).with(example(script)))
    }

    /// Built with the packages of the distribution, which need no network.
    pub(crate) async fn go(source: &str, folder: &Scratch) -> Option<Self> {
        let modules = optional_tool("FANWISE_TEST_GOPATH")?;
        let program = folder.path().join("program");
        let (modules, cache) = (text(&modules), text(&folder.path().join("cache")));
        let (out, source) = (text(&program), text(&example(source)));
        let variables = [
            format!("GOPATH={modules}"),
            format!("GOCACHE={cache}"),
            "GO111MODULE=off".to_owned(),
        ];
        let mut build: Vec<&str> = variables.iter().map(String::as_str).collect();
        build.extend(["go", "build", "-o", &out, &source]);
        built("env", &build).await;
        Some(Self::of(program))
    }

    /// Compiled with the jars of the distribution.
    pub(crate) async fn java(source: &str, folder: &Scratch) -> Option<Self> {
        let jars = text(&optional_tool("FANWISE_TEST_JAVA_JARS")?);
        let classes = text(folder.path());
        let flags = ["-d", &classes, "-cp", &jars, &text(&example(source))];
        built("javac", &flags).await;
        let class = Path::new(source).file_stem().unwrap();
        let program = Self::of("java").with("-cp");
        Some(program.with(format!("{classes}:{jars}")).with(class))
    }

    /// Built as this test was: into target/<profile>/examples, beside target/<profile>/deps/<test>,
    /// and for the whole workspace, so that its libraries have the features that they had for the
    /// tests and need no second build.
    pub(crate) async fn rust(name: &str) -> Self {
        let test = env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let of_test = profile.file_name().and_then(OsStr::to_str).unwrap();
        let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        // Variables that cargo sets for a test would make build scripts run again.
        let of_the_test = env::vars()
            .map(|(variable, _)| variable)
            .filter(|variable| {
                ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
                    .iter()
                    .any(|it| variable.starts_with(it))
            });
        let without: Vec<_> = of_the_test
            .flat_map(|variable| ["-u".to_owned(), variable])
            .collect();
        let without: Vec<_> = without.iter().map(String::as_str).collect();
        let build = [
            cargo.as_str(),
            "build",
            "--quiet",
            "--locked",
            "--workspace",
            "--example",
            name,
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
            "--target-dir",
            profile.parent().unwrap().to_str().unwrap(),
            "--profile",
            if of_test == "debug" { "dev" } else { of_test },
        ];
        built("env", &[without.as_slice(), &build].concat()).await;
        Self::of(profile.join("examples").join(name))
    }
}

async fn built(program: &str, arguments: &[&str]) {
    let built = Process::start(Path::new(program), arguments, &[], b"");
    let built = built.finish(BUILD_BOUND).await;
    assert_eq!(built.code, Some(0), "{program}: {}", built.stderr);
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of UTF-8").to_owned()
}

fn tool(variable: &str) -> Option<PathBuf> {
    let found = set(variable);
    if found.is_none() {
        skip(&format!("{variable} is not set; tests/run sets it"));
    }
    found
}

/// A tool that not every machine can have.
fn optional_tool(variable: &str) -> Option<PathBuf> {
    let found = set(variable);
    if found.is_none() {
        eprintln!("skipped: {variable} is not set; tests/run sets it where the packages are there");
    }
    found
}

fn set(variable: &str) -> Option<PathBuf> {
    let value = env::var_os(variable).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}
